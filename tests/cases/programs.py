"""Random programs of everyday code that cannot be run twice, and what must come of them.

A program stores readings (of the clock, of chance, of the kernel) in variables, crashes, comes back
to earlier states, and looks at its variables again. A `Ledger` knows what it must find there.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from journeyman.envs import Task
from journeyman.envs.task import ANSWER, answer_text
from journeyman.envs.tasks.analyst import AnalystEnv
from journeyman.envs.tasks.interpreter import InterpreterEnv
from journeyman.envs.tasks.python import FunctionTask, PythonEnv
from journeyman.envs.types import Level, Split
from journeyman.tools import ToolCall, ToolResult
from journeyman.tools.cells import Cells
from journeyman.tools.shell import Shell, shell

AGAIN = "restarted and the earlier calls were run again"
GONE = "restarted: what earlier calls did is gone"
NOT_KEPT = "Nothing of this call was kept"
AS_BEFORE = "variables are as before"

READINGS = (
    "time.time()",
    "time.time_ns()",
    "time.perf_counter()",
    "time.monotonic()",
    "time.process_time()",
    "time.thread_time_ns()",
    "time.ctime()",
    "datetime.datetime.now()",
    "datetime.datetime.now(datetime.timezone.utc).isoformat()",
    "uuid.uuid1()",
    "uuid.uuid4()",
    "os.getpid()",
    "os.urandom(8)",
    "os.times()",
    "os.listdir('/proc')",
    "os.stat('/proc/self')",
    "os.getloadavg()",
    "os.popen('echo $$').read()",
    "open('/proc/uptime').read()",
    "open('/proc/self/stat').read()",
    "secrets.token_hex(8)",
    "secrets.randbelow(10**9)",
    "random.random()",
    "random.Random().random()",
    "random.SystemRandom().random()",
    "tempfile.mkdtemp()",
    "tempfile.NamedTemporaryFile(delete=False).name",
    "tempfile.gettempprefix() + str(time.time())",
    "hash(object())",
    "id(object())",
    "object()",
    "[object() for _ in range(3)]",
    "logging.LogRecord('a', 30, '', 1, '', (), None).created",
    "logging.Formatter('%(asctime)s').format(logging.LogRecord('', 30, '', 1, '', (), None))",
    "email.utils.make_msgid()",
    "resource.getrusage(resource.RUSAGE_SELF)",
    "threading.get_native_id()",
    "subprocess.run(['date', '+%N'], capture_output=True).stdout",
    "gc.get_count()",
    "sorted([time.perf_counter_ns() % 97 for _ in range(5)])",
)
"""Python expressions that give something else each time."""
MODULE = re.compile(
    r"\b(datetime|email\.utils|gc|logging|os|random|resource|secrets|subprocess|tempfile"
    r"|threading|time|uuid)\."
)


UNCOPYABLE = (
    "held = open('held', 'a')",
    "thread = threading.Thread(target=time.sleep, args=(60,), daemon=True); thread.start()",
    "timer = threading.Timer(60, print); timer.daemon = True; timer.start()",
    "import sqlite3; db = sqlite3.connect('db')",
    "import mmap; shared = mmap.mmap(-1, 4096)",
    "import concurrent.futures as cf; pool = cf.ThreadPoolExecutor(2); list(pool.map(str, [1]))",
    "listening = open('/proc/uptime')",
)
"""What leaves something behind that a fork does not carry."""
CRASHES = (
    "os._exit(3)",
    "os.abort()",
    "os.kill(os.getpid(), 9)",
    "import ctypes; ctypes.string_at(0)",
    "while True: print('x' * 10**6)",
    "with open('big', 'wb') as file:\n    while True: file.write(bytes(10**6))",
)
HANGS = ("while True: pass", "time.sleep(60)")
MISTAKES = (
    "1 / 0",
    "not_defined",
    "sum(",
    "raise SystemExit(3)",
    "x = b'x' * 10**11",
    "def f(): f()\nf()",
    "print(time.time()); int('a')",
    "logging.warning('%s', time.time()); os.remove('nothing')",
    "print('x' * 10**5)",
)

SHELL_READINGS = (
    "$(date +%s%N)", "$(date)", "$$", "$PPID", "$(mktemp)", "$(mktemp -d)", "$(cat /proc/uptime)",
    "$(cat /proc/sys/kernel/random/uuid)", "$(od -An -N4 -tx4 /dev/urandom)", "$(sh -c 'echo $$')",
    "$(cat /proc/self/stat)", "$(cat /proc/loadavg)", "$(stat -c %z .)", "$(ls -l --full-time)",
    "$(seq 1000 | shuf | head -3)", "$(head -c 6 /dev/urandom | od -x)", "$(head -2 /proc/meminfo)",
    "$(ls /proc)", "$(readlink /proc/self)", "$(seq 50000)$(date +%N)",
)  # fmt: skip
SHELL_CRASHES = (
    "kill -9 $PPID",
    "cat /dev/zero",
    "yes",
    "cat /dev/zero > big; cat /dev/zero > more",
)
SHELL_HANGS = ("while :; do :; done", "sleep 60")
SHELL_MISTAKES = (
    "false", "no_such_program", "if then", "exit 3", "cd nowhere", "kill $$", "exec date",
    "trap 'date' EXIT; w=1", "(exit 4)", "ls /nowhere; date",
)  # fmt: skip


class ShellEnv(InterpreterEnv):
    """A question, and a shell beside it."""

    toolset = (shell,)
    interpreter = shell
    repl = Shell

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        number = rng.randint(100, 999)
        return Task("", "number", f"Say {number}.", Cells(), (), str(number))

    def solved(self) -> bool:
        return self.answered()

    @staticmethod
    def cells_of(state: Any) -> Cells:
        assert isinstance(state, Cells)
        return state

    @staticmethod
    def with_cells(state: Any, cells: Cells) -> Any:
        return cells


@dataclass
class Ledger:
    """What a program's variables must show."""

    shown: dict[str, str | None] = field(default_factory=dict)
    """By name, as it was shown; None if nobody has seen it yet."""
    loaded: dict[str, str] = field(default_factory=dict)
    """What is loaded for the student, and so survives all."""

    def copy(self) -> "Ledger":
        return Ledger(self.shown.copy(), self.loaded.copy())

    def told(self, text: str) -> bool:
        """Heed what the model was told; returns whether the call itself has counted."""
        if GONE in text:
            self.shown.clear()
        elif AGAIN in text:
            self.shown = dict.fromkeys(self.shown)
        return NOT_KEPT not in text and AS_BEFORE not in text

    def found(self, name: str, result: ToolResult) -> None:
        """Check what a variable showed."""
        if not self.told(result.content):
            return
        text = last_line(result)
        if name in self.loaded:
            assert (result.ok, text) == (True, self.loaded[name]), name
        elif name not in self.shown:
            assert not result.ok or text == "gone", f"{name} was never there: {text}"
        else:
            assert result.ok, f"{name} was there: {result.content}"
            before = self.shown[name]
            assert before in (None, text), f"{name} was {before}, and is {text}"
            self.shown[name] = text


def last_line(result: ToolResult) -> str:
    return result.content.rpartition("\n")[2]


@dataclass(frozen=True)
class Writing:
    """How programs are written in a language."""

    tool: str
    argument: str
    readings: tuple[str, ...]
    store: Callable[[str, str], str]
    show: Callable[[str], str]
    uncopyable: tuple[str, ...]
    crashes: tuple[str, ...]
    hangs: tuple[str, ...]
    mistakes: tuple[str, ...]

    def call(self, code: str) -> ToolCall:
        if self.tool == "python" and (modules := sorted(set(MODULE.findall(code)))):
            code = f"import {', '.join(modules)}\n{code}"
        return ToolCall(self.tool, {self.argument: code})


PYTHON = Writing(
    "python",
    "code",
    READINGS,
    lambda name, reading: f"{name} = repr({reading})",
    lambda name: f"{name}",
    UNCOPYABLE,
    CRASHES,
    HANGS,
    MISTAKES,
)
SHELL = Writing(
    "shell",
    "command",
    SHELL_READINGS,
    lambda name, reading: f'{name}="{reading}"',
    # Long ones count too, by their ends.
    lambda name: f'[ "${name}" ] && echo $(echo "${name}" | head -c 99) ${{#{name}}} || echo gone',
    (),
    SHELL_CRASHES,
    SHELL_HANGS,
    SHELL_MISTAKES,
)


class Player:
    """Plays one random program in an environment, and checks all that it shows."""

    kinds: ClassVar[dict[type[InterpreterEnv], Writing]] = {
        PythonEnv: PYTHON,
        AnalystEnv: PYTHON,
        ShellEnv: SHELL,
    }

    def __init__(self, env: InterpreterEnv, make: Callable[[], InterpreterEnv], seed: int) -> None:
        self.env = env
        self.make = make
        """Another environment of the kind; who makes them closes them."""
        self.rng = random.Random(seed)
        self.writing = self.kinds[type(env)]
        self.ledger = Ledger()
        self.places: list[tuple[Any, str, Ledger]] = []
        self.counts = {"crash": 0, "restore": 0, "told": 0}

    def run(self, code: str) -> ToolResult:
        return self._play(self.writing.call(code))

    def play(self, length: int) -> None:
        """The program and its end: the reward is what its calls and its answer have earned."""
        self.store()
        for _ in range(length):
            actions = (self.store, self.show, self.other, self.back)
            self.rng.choices(actions, (3, 3, 2, 2))[0]()
        self.finish()

    def store(self) -> None:
        name = f"v{self.rng.randrange(6)}"
        code = self.writing.store(name, self.rng.choice(self.writing.readings))
        loud = self.rng.random() < 0.5
        result = self.run(f"{code}\n{self.writing.show(name)}" if loud else code)
        if self.ledger.told(result.content) and result.ok:
            self.ledger.shown[name] = last_line(result) if loud else None

    def show(self) -> None:
        names = [*self.ledger.shown, *self.ledger.loaded, "v0"]
        name = self.rng.choice(names)
        result = self.run(self.writing.show(name))
        self.ledger.found(name, result)

    def other(self) -> None:
        """Something that goes wrong, or leaves what cannot be copied."""
        dice = self.rng.random()
        if dice < 0.008:
            code = self.rng.choice(self.writing.hangs)
        elif dice < 0.5:
            code = self.rng.choice(self.writing.crashes)
        elif dice < 0.6 and self.writing.uncopyable:
            code = self.rng.choice(self.writing.uncopyable)
        elif dice < 0.8 and isinstance(self.env, AnalystEnv):
            return self.query()
        else:
            code = self.rng.choice(self.writing.mistakes)
        result = self.run(code)
        self.counts["crash"] += NOT_KEPT in result.content
        self.ledger.told(result.content)
        return None

    def query(self) -> None:
        table = self.rng.choice(("sales", "people"))
        result = self._play(ToolCall("sql", {"query": f"SELECT * FROM {table}"}))
        self.ledger.loaded["rows"] = repr(json.loads(result.content)["rows"])

    def back(self) -> None:
        """Note this place, or come back to one, here or in another environment."""
        if not self.places or self.rng.random() < 0.4:
            self.places.append((self.env.snapshot(), self.env.state_hash(), self.ledger.copy()))
            return
        snapshot, state_hash, ledger = self.rng.choice(self.places)
        if self.rng.random() < 0.3:
            self.env = self.make()
        self.env.restore(snapshot)
        assert self.env.state_hash() == state_hash
        self.ledger = ledger.copy()
        self.counts["restore"] += 1

    def finish(self) -> None:
        """Right or wrong, by dice; a function that was lost on the way has to fail its tests."""
        task = self.env.task
        earned = self.rng.random() < 0.5
        for call in self.env.oracle() if earned else ():
            self._play(call)
        answer = answer_text(task.turns[0]) if earned else f"{ANSWER} wrong"
        if isinstance(task, FunctionTask) and earned:
            self.run(self.rng.choice(self.writing.crashes))
            result = self.run("'fee' in globals() or 'pick' in globals()")
            earned = result.content.endswith("True")
        _, reward, terminated, truncated, info = self.env.step(answer)
        assert (terminated, truncated) == (True, False)
        assert (reward, info["success"]) == (float(earned), earned), task.kind

    def _play(self, call: ToolCall) -> ToolResult:
        *_, info = self.env.step([call])
        (result,) = info["calls"]
        assert isinstance(result, ToolResult)
        self.counts["told"] += AGAIN in result.content or GONE in result.content
        return result


@contextmanager
def opened(
    make: Callable[[], InterpreterEnv],
) -> Iterator[tuple[Callable[[], InterpreterEnv], list[InterpreterEnv]]]:
    """A maker of environments that are all closed in the end."""
    envs: list[InterpreterEnv] = []

    def one() -> InterpreterEnv:
        envs.append(make())
        return envs[-1]

    try:
        yield one, envs
    finally:
        for env in envs:
            env.close()
