"""The built-in environments; importing this package registers them (entry point `builtin`)."""

from journeyman.envs import bfcl, tau2
from journeyman.envs.registry import register

register("journeyman/Bank-v0", "journeyman.envs.tasks.bank:BankEnv")
register("journeyman/Orders-v0", "journeyman.envs.tasks.orders:OrdersEnv")
register("journeyman/Calendar-v0", "journeyman.envs.tasks.calendar:CalendarEnv")
register("journeyman/Python-v0", "journeyman.envs.tasks.python:PythonEnv")
register("journeyman/ExactMDP-v0", "journeyman.envs.exact:ExactMDPEnv")
register("journeyman/Mail-v0", "journeyman.envs.tasks.mail:MailEnv")
register("journeyman/Travel-v0", "journeyman.envs.tasks.travel:TravelEnv")
register("journeyman/Files-v0", "journeyman.envs.tasks.files:FilesEnv")
register("journeyman/Tickets-v0", "journeyman.envs.tasks.tickets:TicketsEnv")
register("journeyman/Analyst-v0", "journeyman.envs.tasks.analyst:AnalystEnv")
for category, cls in bfcl.CATEGORIES.items():
    register(f"journeyman/BFCL-{category}-v0", cls)
for domain, environment in tau2.DOMAINS.items():
    register(f"journeyman/Tau2-{domain}-v0", environment)
