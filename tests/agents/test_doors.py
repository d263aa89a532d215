"""`docs/extending.md`: its code, installed as a package from outside, opens every door."""

import json
import re
import sys
from pathlib import Path

import pytest

from .side import install, journeyman, run

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the wheel's tests come without docs/")
DOORS = {
    "envs": 'acme = "acme_env"',
    "tools": 'acme = "acme_tools"',
    "dialects": 'acme = "acme_dialect:AcmeDialect"',
    "students": 'acme_parrot = "acme_student:Parrot"',
    "teachers": 'acme_word = "acme_teacher:Word"',
    "losses": 'acme_huber = "acme_loss:Huber"',
    "credits": 'acme_last = "acme_credit:Last"',
    "estimators": 'acme_halved = "acme_estimator:Halved"',
    "metrics": 'longest_turn = "acme_metric:longest_turn"\nhasty = "acme_metric:HASTY"',
    "sandboxes": 'acme_box = "acme_box:Box"',
}
LINES = 30


def files() -> dict[str, str]:
    """Name of each file in the docs -> its text."""
    return dict(re.findall(r"```python (\w+\.py)\n(.*?)```", DOCS.read_text(), re.DOTALL))


def test_a_file_a_door_and_none_is_long() -> None:
    assert len(files()) == len(DOORS)
    for name, text in files().items():
        assert len(text.splitlines()) <= LINES, name
    for group, line in DOORS.items():
        assert f"`journeyman.{group}`" in DOCS.read_text()
        assert re.search(r'= "(\w+)', line)[1] + ".py" in files()  # type: ignore[index]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a venv with the package, which borrows all others from this one."""
    package = tmp_path_factory.mktemp("acme")
    for name, text in files().items():
        (package / name).write_text(text)
    (package / "acme_conf" / "loss").mkdir(parents=True)
    (package / "acme_conf" / "__init__.py").write_text("")
    wide = "_target_: acme_loss.Huber\nwidth: 5.0\n"
    (package / "acme_conf" / "loss" / "acme_wide.yaml").write_text(wide)
    doors = "".join(
        f'[project.entry-points."journeyman.{group}"]\n{line}\n' for group, line in DOORS.items()
    )
    modules = [Path(name).stem for name in files()]
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "acme"\nversion = "1"\n{doors}'
        '[project.entry-points."journeyman.conf"]\nacme = "acme_conf"\n'
        f"[tool.setuptools]\npy-modules = {json.dumps(modules)}\n"
        'packages = ["acme_conf"]\n[tool.setuptools.package-data]\nacme_conf = ["**/*.yaml"]\n'
    )
    return install(package, tmp_path_factory.mktemp("side"))


def test_it_is_listed(python: Path) -> None:
    asked = [["envs", "list"], ["tools", "list", "--plugins"], ["train", "--help"]]
    program = f"""
from journeyman.agents.cli import main
for arguments in {asked}:
    assert main(arguments) == 0
    print("====")
"""
    environments, tools, helped, _ = run(python, "-c", program).split("====\n")
    assert "acme/Door-v0" in environments
    assert "ring(bell): Ring a bell." in tools
    for option in ("acme_parrot", "acme_word", "acme_huber", "acme_wide", "acme_last"):
        assert option in helped


@pytest.mark.slow
def test_one_run_uses_the_learning_doors(python: Path, tmp_path: Path) -> None:
    """Environment, dialect, teacher, loss, credit, estimator and metric at once."""
    for loss in ("acme_huber", "acme_wide"):
        run_dir = tmp_path / loss
        table = journeyman(
            python,
            "train",
            "debug=tiny",
            "env=acme/Door-v0",
            "student.dialect=acme",
            "teacher=acme_word",
            f"loss={loss}",
            f"loss.width={2.0 if loss == 'acme_huber' else 5.0}",
            "credit=acme_last",
            "search=credit",
            "search.rows=4",
            "values=acme_halved",
            "values.factor=0.25",
            "evaluation.tasks=2",
            "+env.kwargs.max_turns=2",
            f"run_dir={run_dir}",
        )
        header, _, *rows = table[table.index("policy ") :].splitlines()
        assert header.endswith("longest_turn")
        assert [row.split()[0] for row in rows[:2]] == ["no-op", "oracle"]
        logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in logged] == [1, 2]
        assert all(record["acme/episodes"] >= 1 for record in logged)
        assert all(record["grad_norm"] > 0 for record in logged)


@pytest.mark.slow
def test_a_student_of_text_alone(python: Path, tmp_path: Path) -> None:
    arguments = ["env=acme/Door-v0", "student=acme_parrot", "student.side_by_side=2"]
    more = ["evaluation.tasks=20", f"run_dir={tmp_path / 'parrot'}"]
    table = journeyman(python, "eval", *arguments, *more)
    assert re.search(r"^student +20 +100\.0%", table, re.MULTILINE)


@pytest.mark.slow
def test_a_sandbox(python: Path, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text("print('hello')")
    box = ("sandbox", "run", tmp_path / "hello.py", "--backend", "acme_box")
    assert journeyman(python, *box) == "hello\n"
    table = journeyman(
        python,
        "eval",
        "env=journeyman/Python-v0",
        "sandbox=namespace",
        "sandbox.backend=acme_box",
        "evaluation.tasks=2",
        f"run_dir={tmp_path / 'box'}",
    )
    assert re.search(r"^oracle +2 +100\.0%", table, re.MULTILINE)


FROM_PYTHON = """
import acme_box, acme_credit, acme_estimator, acme_loss, acme_student, acme_teacher
from journeyman.agents.evaluation.measures import estimate, functions, measures
from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.dialect import dialect_of
from journeyman.agents.teachers import Annotations, Detail
from journeyman.sandbox import resolve_backend
from journeyman.tools import plugin_tools
from transformers import AutoTokenizer

tasks = [TaskRef("acme/Door-v0", f"test/{i}", seed=i) for i in range(5)]
episodes = rollout(acme_student.Parrot(), tasks)
assert all(episode.success for episode in episodes)
(signal, *_) = Annotations(acme_teacher.Word(), Detail.SAMPLED).of(episodes)
assert signal.logprobs.min() < -7
assert functions()["longest_turn"](episodes) > 10
assert estimate(measures()["hasty"], episodes).value == 1.0
assert [tool.name for tool in plugin_tools("acme")] == ["ring"]
assert isinstance(resolve_backend("acme_box"), acme_box.Box)
tokenizer = AutoTokenizer.from_pretrained(resolve("embedded-student"))
spoken = dialect_of(tokenizer, "acme", "names")
assert spoken.how_to_call.endswith("as JSON with name and arguments")
tokenizer.chat_template += "{# <|acme|> #}"
assert type(dialect_of(tokenizer, None, "names")).__name__ == "AcmeDialect"
print("every door")
"""


def test_the_same_from_python(python: Path) -> None:
    assert run(python, "-c", FROM_PYTHON) == "every door\n"


SCRIPT = """
from journeyman.agents.credit import Uniform
from journeyman.envs import Task, ToolEnv, register
from journeyman.tools import ToolCall, tool

@tool
def push(state: int) -> tuple[int, str]:
    \"\"\"Push the button.\"\"\"
    return state + 1, "pushed"

class ButtonEnv(ToolEnv):
    \"\"\"A button.\"\"\"
    toolset = (push,)

    @classmethod
    def generate(cls, rng, split, level):
        word = f"{split}-{rng.randrange(10**6)}"
        return Task("", "push", f"Push, then say {word}.", 0, (ToolCall("push", {}),), answer=word)

class Twice(Uniform):
    pass

register("acme/Button-v0", ButtonEnv)
"""


@pytest.mark.slow
def test_a_script_needs_no_package(tmp_path: Path) -> None:
    """An environment and a part of a run from a file in the current folder, and YAML beside it."""
    (tmp_path / "my_button.py").write_text(SCRIPT)
    (tmp_path / "my_conf" / "credit").mkdir(parents=True)
    twice = "_target_: my_button.Twice\n"
    (tmp_path / "my_conf" / "credit" / "twice.yaml").write_text(twice)
    table = run(
        *(sys.executable, "-m", "journeyman.agents.cli", "train", "--config-dir", "my_conf"),
        *("debug=tiny", "env=my_button:acme/Button-v0", "credit=twice", "evaluation.tasks=2"),
        *("+env.kwargs.max_turns=2", "run_dir=run"),
        cwd=tmp_path,
    )
    assert re.search(r"^oracle +2 +100\.0%", table, re.MULTILINE)
    line = json.loads((tmp_path / "run" / "episodes.jsonl").read_text().splitlines()[0])
    assert line["env_id"] == "my_button:acme/Button-v0"
