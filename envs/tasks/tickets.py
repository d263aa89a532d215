"""`journeyman/Tickets-v0`: a support desk with skills, loads, duplicates and rules for refunds."""

from __future__ import annotations

import random
from typing import Any

from journeyman.envs.core import ToolEnv
from journeyman.envs.task import Task
from journeyman.envs.tasks.scene import Kinds, Plan, Scene, rules
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools.apis import tickets
from journeyman.tools.apis.tickets import TOPICS, Agent, Ticket, TicketsState, Topic

_LIMIT = 9  # tickets of an agent who is not full


class _Scene(Scene):
    """A desk under construction: one topic the task is about, others for the rest."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        super().__init__(rng, split)
        self.topic, *self.elsewhere = rng.sample(TOPICS, len(TOPICS))
        self.tickets: dict[str, Ticket] = {}
        self.agents: dict[str, Agent] = {}
        self.team = [self.agent(self.topic, load) for load in rng.sample(range(1, 7), 3)]
        self.agent(self.elsewhere[0], 0)
        for _ in range(rng.randint(1, 3)):
            self.ticket(self.draw.person(), topic=rng.choice(self.elsewhere))

    def agent(self, skill: Topic, load: int) -> str:
        name = self.draw.person()
        self.agents[name] = Agent(skill, load, _LIMIT)
        return name

    def ticket(
        self, customer: str, topic: Topic | None = None, subject: str = "", days: int = 0
    ) -> str:
        key = self.draw.identifier("K")
        paid, days = self.draw.number(100, 999), days or self.rng.randint(1, 60)
        subject = subject or self.draw.document()
        self.tickets[key] = Ticket(customer, subject, topic or self.topic, paid, days)
        return key

    def fill(self, name: str) -> None:
        """Leave an agent no room for another ticket."""
        load = self.agents[name].load
        self.agents[name] = Agent(self.agents[name].skill, load, load)

    def plan(self) -> Plan:
        state = TicketsState(self.table(self.tickets), self.table(self.agents))
        return Plan(self, tickets.TOOLS, state)


def _only(plan: Plan, customer: str) -> str:
    """The id of the one ticket of a customer."""
    (found,) = plan.call("find_tickets", customer=customer)
    return str(found["ticket"])


def _least_busy(agents: list[dict[str, Any]]) -> str:
    free = [a for a in agents if a["load"] < a["limit"]]
    return str(min(free, key=lambda a: a["load"])["agent"])


# Easy: two or three calls in a row


def _read(scene: _Scene) -> Task:
    customer = scene.draw.person()
    scene.ticket(customer)
    money = scene.toss()
    wordings = (
        ('How much did "{c}" pay?', 'What did "{c}" pay, by the ticket?')
        if money
        else ('How many days ago did "{c}" buy?', 'How many days is the purchase of "{c}" past?')
    )
    plan = scene.plan()
    plan.user(*wordings, c=customer)
    record = plan.call("read_ticket", ticket=_only(plan, customer))
    plan.answer(record["paid" if money else "days_since_purchase"])
    return plan.task("paid" if money else "days")


def _prioritise(scene: _Scene) -> Task:
    customer, priority = scene.draw.person(), scene.rng.choice(("low", "high", "urgent"))
    scene.ticket(customer)
    plan = scene.plan()
    plan.user(
        'Set the ticket of "{c}" to {p}.',
        'The ticket of "{c}" gets the priority {p}.',
        c=customer,
        p=priority,
    )
    plan.call("set_priority", ticket=_only(plan, customer), priority=priority)
    plan.done()
    return plan.task("prioritise")


def _close(scene: _Scene) -> Task:
    customer, subject = scene.draw.person(), scene.draw.document()
    reason = f"Solved, see case {scene.draw.number(100, 999)}."
    scene.ticket(customer)
    scene.ticket(customer, subject=subject)
    plan = scene.plan()
    plan.user(
        'Close the ticket "{s}" of "{c}" with the reason "{r}".',
        'Tell "{c}" about "{s}": "{r}" - and close that ticket.',
        s=subject,
        c=customer,
        r=reason,
    )
    found = plan.call("find_tickets", customer=customer)
    key = next(t["ticket"] for t in found if t["subject"] == subject)
    plan.call("close", ticket=key, reason=reason)
    plan.done()
    return plan.task("close")


def _give(scene: _Scene) -> Task:
    customer, agent = scene.draw.person(), scene.rng.choice(scene.team)
    scene.ticket(customer)
    plan = scene.plan()
    plan.user(
        'Give the ticket of "{c}" to "{a}" and set it to {p}.',
        '"{a}" takes the ticket of "{c}": assign it, with the priority {p}.',
        c=customer,
        a=agent,
        p=(priority := scene.rng.choice(("low", "high", "urgent"))),
    )
    key = _only(plan, customer)
    plan.call("assign", ticket=key, agent=agent)
    plan.call("set_priority", ticket=key, priority=priority)
    plan.done()
    return plan.task("give")


# Medium: what is found decides, or a tool refuses


def _by_load(scene: _Scene) -> Task:
    customer = scene.draw.person()
    scene.ticket(customer)
    plan = scene.plan()
    plan.user(
        'Give the ticket of "{c}" to whoever works on its topic and has the fewest tickets. '
        "Who is it?",
        'Who of those with the right skill has the smallest load? Assign the ticket of "{c}".',
        c=customer,
    )
    key = _only(plan, customer)
    topic = plan.call("read_ticket", ticket=key)["topic"]
    agent = _least_busy(plan.call("list_agents", skill=topic))
    plan.call("assign", ticket=key, agent=agent)
    plan.answer(agent)
    return plan.task("by_load")


def _full(scene: _Scene) -> Task:
    """The agent may be full: the refusal names the topic to look for others."""
    customer, agent, full = scene.draw.person(), scene.rng.choice(scene.team), scene.toss()
    scene.ticket(customer)
    if full:
        scene.fill(agent)
    plan = scene.plan()
    plan.user(
        'Give the ticket of "{c}" to "{a}"; if "{a}" is full, to the one of the same skill '
        "with the smallest load who is not.",
        '"{a}" should take the ticket of "{c}", or if there is no room, whoever has the '
        "smallest load and the same skill.",
        c=customer,
        a=agent,
    )
    key = _only(plan, customer)
    if full:
        plan.refused("assign", ticket=key, agent=agent)
        agent = _least_busy(plan.call("list_agents", skill=scene.topic))
    plan.call("assign", ticket=key, agent=agent)
    plan.done()
    return plan.task("full" if full else "not_full")


def _refund_or_not(scene: _Scene) -> Task:
    customer, manager = scene.draw.person(), scene.draw.person()
    limit = scene.draw.number(300, 800)
    paid = scene.tickets[scene.ticket(customer)].paid
    plan = scene.plan()
    plan.user(
        'If "{c}" paid {n} or less, refund all of it; if more, escalate the ticket to "{m}".',
        'Refund "{c}" in full if that is at most {n}, or else escalate the ticket to "{m}".',
        c=customer,
        n=limit,
        m=manager,
    )
    key = _only(plan, customer)
    if plan.call("read_ticket", ticket=key)["paid"] <= limit:
        plan.call("refund", ticket=key, amount=paid)
    else:
        plan.call("escalate", ticket=key, manager=manager)
    plan.done()
    return plan.task("refund" if paid <= limit else "escalate")


def _duplicates(scene: _Scene) -> Task:
    """Two of three tickets have one subject."""
    customer, subject = scene.draw.person(), scene.draw.document()
    scene.ticket(customer)
    for _ in range(2):
        scene.ticket(customer, subject=subject)
    plan = scene.plan()
    plan.user(
        '"{c}" wrote twice about "{s}": merge the second ticket of the list into the first, '
        "which gets the priority high.",
        'Merge the two tickets of "{c}" on "{s}", the later of the list into the earlier, and '
        "set the one that stays to high.",
        c=customer,
        s=subject,
    )
    found = plan.call("find_tickets", customer=customer)
    first, second = (t["ticket"] for t in found if t["subject"] == subject)
    plan.call("merge", ticket=second, into=first)
    plan.call("set_priority", ticket=first, priority="high")
    plan.done()
    return plan.task("duplicates")


# Hard: rules, requests that need no call, users who come back, long programs


def _refund_rules(scene: _Scene) -> Task:
    """What was asked for is forbidden in two cases of three."""
    customer, manager = scene.draw.person(), scene.draw.person()
    limit, reason = scene.draw.number(300, 800), f"Rule {scene.draw.number(100, 999)}: too late."
    old = scene.rng.random() < 1 / 3
    days = scene.rng.randint(31, 60) if old else scene.rng.randint(1, 30)
    paid = scene.tickets[scene.ticket(customer, days=days)].paid
    policy = rules(
        scene,
        f'A purchase more than 30 days ago is not refunded: close the ticket, reason "{reason}".',
        f'A later one is refunded in full up to {limit}; above that, escalate to "{manager}".',
        "Priorities are left as they are.",
    )
    kind = "too_late" if old else "refundable" if paid <= limit else "too_dear"
    plan = scene.plan()
    plan.user('Refund "{c}".', '"{c}" wants the money back: refund it.', c=customer)
    key = _only(plan, customer)
    plan.call("read_ticket", ticket=key)
    if old:
        plan.call("close", ticket=key, reason=reason)
    elif paid <= limit:
        plan.call("refund", ticket=key, amount=paid)
    else:
        plan.call("escalate", ticket=key, manager=manager)
    plan.done()
    return plan.task(kind, policy)


def _not_urgent(scene: _Scene) -> Task:
    """A rule keeps one topic's tickets for urgent; all others get less than was asked for."""
    customer, allowed = scene.draw.person(), scene.toss()
    scene.ticket(customer)
    topic = scene.topic if allowed else scene.elsewhere[0]
    policy = rules(
        scene,
        f"Only tickets about {topic} may be urgent; where urgent is asked for and the topic is "
        "another, set high.",
        f'Refunds are for "{scene.draw.person()}" to decide.',
    )
    plan = scene.plan()
    plan.user(
        'The ticket of "{c}" is urgent: set it so.',
        'Make the ticket of "{c}" urgent.',
        c=customer,
    )
    key = _only(plan, customer)
    plan.call("read_ticket", ticket=key)
    plan.call("set_priority", ticket=key, priority="urgent" if allowed else "high")
    plan.done()
    return plan.task("urgent" if allowed else "not_urgent", policy)


def _no_call(scene: _Scene) -> Task:
    """The answer is in the question, or a rule says to refuse."""
    customer, other, number = scene.draw.person(), scene.draw.person(), scene.draw.number(100, 999)
    key = scene.ticket(customer)
    word = scene.rng.choice(("refused", "not allowed"))
    policy = rules(
        scene,
        f"What a customer paid is not told to another customer: call no tool and answer: {word}",
        "What the question itself tells is answered without a call.",
    )
    refuse = scene.toss()
    plan = scene.plan()
    if refuse:
        plan.user(
            'I am "{d}", a customer. How much did "{c}" pay?',
            'This is "{d}", a customer too: what did "{c}" pay?',
            c=customer,
            d=other,
        )
        plan.answer(word)
        return plan.task("refuse", policy)
    plan.user(
        '"{c}" wrote that ticket {k} is about {n} units that "{d}" owes. How many units?',
        'For my notes: "{d}" owes "{c}" {n} units, ticket {k}. How many units were it?',
        c=customer,
        d=other,
        k=key,
        n=number,
    )
    plan.answer(number)
    return plan.task("in_the_question", policy)


def _queue(scene: _Scene) -> Task:
    """Several tickets, each to whoever has the smallest load by then: the answers tell the load."""
    for _ in range(scene.rng.randint(3, 4)):
        scene.ticket(scene.draw.person())
    code = scene.draw.number(100, 999)
    plan = scene.plan()
    plan.user(
        'Plan "{n}": assign the open tickets about {t} in the order of the list, each to the '
        "agent with the smallest load by then; of two with as many, to the first listed.",
        'Run "{n}": go through the list of open tickets about {t} and give each to whoever has '
        "the fewest tickets by then, the one listed first if two have as many.",
        n=code,
        t=scene.topic,
    )
    listed = plan.call("list_tickets", topic=scene.topic)
    agents = plan.call("list_agents", skill=scene.topic)
    for ticket in listed:
        agent = _least_busy(agents)
        load = plan.call("assign", ticket=ticket["ticket"], agent=agent)["load"]
        agents = [{**a, "load": load} if a["agent"] == agent else a for a in agents]
    plan.done()
    return plan.task("queue")


def _conversation(scene: _Scene) -> Task:
    """Three user turns: ask, assign, and put two tickets together."""
    customer, subject = scene.draw.person(), scene.draw.document()
    scene.ticket(customer, subject=subject)
    other = scene.draw.document()
    scene.ticket(customer, subject=other)
    plan = scene.plan()
    plan.user(
        'What did "{c}" pay, by the ticket "{s}"?',
        'Look at the ticket "{s}" of "{c}": how much was paid?',
        c=customer,
        s=subject,
    )
    ids = {t["subject"]: t["ticket"] for t in plan.call("find_tickets", customer=customer)}
    record = plan.call("read_ticket", ticket=ids[subject])
    plan.answer(record["paid"])
    plan.user("Give it to whoever has its skill and the smallest load. Who is that?")
    agent = _least_busy(plan.call("list_agents", skill=record["topic"]))
    plan.call("assign", ticket=ids[subject], agent=agent)
    plan.answer(agent)
    plan.user(
        'Merge "{o}" of the same customer into it, and set it to {p}.',
        'The ticket "{o}" is a duplicate of it: merge it. Then set the one that stays to {p}.',
        o=other,
        p=(priority := scene.rng.choice(("high", "urgent"))),
    )
    plan.call("merge", ticket=ids[other], into=ids[subject])
    plan.call("set_priority", ticket=ids[subject], priority=priority)
    plan.done()
    return plan.task("conversation")


_KINDS: Kinds[_Scene] = {
    "easy": (_read, _prioritise, _close, _give),
    "medium": (_by_load, _full, _refund_or_not, _duplicates),
    "hard": (_refund_rules, _not_urgent, _no_call, _queue, _conversation),
}


class TicketsEnv(ToolEnv):
    """A support desk: 2 to 6 calls a task, none where none is called for."""

    toolset = tickets.TOOLS
    levels = LEVELS

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw a desk and a request."""
        kind = rng.choice(_KINDS[level])
        return kind(_Scene(rng, split))
