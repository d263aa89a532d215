"""What runs inside a sandbox: a supervisor, and the interpreters (REPLs) that it watches.

The host hands the modules of this folder to another Python (3.9 or later), which may have nothing
but the standard library. They go through the wall as ONE program (`worker_source`). Two kinds of
processes come of it:

* The **supervisor** holds the control socket. In the namespace backend it is process 1, which
  no signal from within can kill or stop, and not dumpable, so that nobody can reach its memory
  or descriptors through /proc. It never runs the user's code.
* A **REPL** runs the user's code and so belongs to it. It holds three pipes of the user's own
  and one channel to the supervisor. All that it says is taken for hearsay: a message counts
  only if it is well-formed, bounded and carries the current call's nonce (so that bytes written
  blindly to every descriptor do nothing), and it can claim no more than an exit status and a repr.

The supervisor imports and warms up everything first; each REPL is forked from it, or from another
REPL: that is a **branch**, a copy of live state. All branches share the namespaces, so one at a
time runs; the others are stopped, have no processes beside them, and what a running one could
reach them by is shut:

* signals: a seccomp filter asks the supervisor (the `Gate`) about every call that names a target;
* /proc: no REPL is dumpable, and so none can be read by another;
* files: each branch's files are put in place when it runs, and taken away when another does.

Between calls every process but the REPLs is killed and the REPLs are stopped: an idle session
uses no processor time, and nothing that a snippet left behind runs on unwatched.
"""

from __future__ import annotations

import functools
from importlib import resources

# Each imports only from those before it. Coverage does not see most of them: they run in other
# processes, as a rule in a namespace that cannot even see the project. The tests meet them
# through real sessions.
MODULES = ("frames", "repl", "processes", "gate", "files", "supervisor", "relay", "program")

OPTIONS = ("-s", "-B", "-u", "-X", "utf8")
"""How Python is started for it: without the user's packages; unbuffered, so that a kill loses no
output. Not isolated (-I): it would not see `ENVIRONMENT`."""
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""What a backend sets besides: sets have the same order in every session, or a program that is run
again in another one would print something else."""


@functools.cache
def worker_source() -> bytes:
    """What a backend hands through the wall: one program, which takes the link as its argument.

    It runs the modules one after the other, each under its own name, so that they find each other
    imported where there is no such package. The directory of a script (or, with -c, the current
    one) is no place to import from: the user's code may write there.
    """
    folder = resources.files(__name__)
    sources = {f"{__name__}.{m}": folder.joinpath(f"{m}.py").read_text("utf-8") for m in MODULES}
    return f"""\
import sys
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]
import types
for name, source in {sources!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = name
    exec(compile(source, name, "exec"), module.__dict__)
module.main(sys.argv[1])
""".encode()
