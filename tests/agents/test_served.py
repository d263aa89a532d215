"""A teacher on a server: what it tells, what it survives, and which servers it refuses."""

import itertools
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from journeyman.agents.errors import (
    SettingError,
    TeacherServerError,
    VocabularyMismatchError,
)
from journeyman.agents.networks import outages
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.teachers import Detail
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.agents.teachers.served import ServedTeacher
from journeyman.envs import Episode

from .teacher_server import MODEL, Fault, Handler, Server, serving
from .tiny import chat, episode, llama, tokenizer

VOCABULARY = len(tokenizer())
K = 8


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama(VOCABULARY, seed=3)


@pytest.fixture(scope="module")
def student(model: PreTrainedModel) -> HFPlayer:
    return HFPlayer(llama(VOCABULARY, seed=4), chat(), Sampling())


@pytest.fixture
def server(model: PreTrainedModel) -> Iterator[Server]:
    with serving(model, tokenizer()) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For servers that never answer: one that does may take its time elsewhere."""
    monkeypatch.setattr("journeyman.agents.teachers.served.START_PATIENCE", 0.2)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.01)


def played(count: int = 6) -> list[Episode]:
    rng = random.Random(5)
    return [episode(rng, VOCABULARY, turns=1 + i % 3) for i in range(count)]


def times(count: int, fault: Callable[[Handler], Any]) -> Fault:
    """A fault that passes."""
    left = iter(range(count))

    def once_more(handler: Handler) -> bool:
        if next(left, None) is None:
            return False
        fault(handler)
        return True

    return once_more


def always(fault: Callable[[Handler], Any]) -> Fault:
    return lambda handler: (fault(handler), True)[1]


def hang_up(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def test_it_tells_what_the_same_model_tells_here(
    model: PreTrainedModel, student: HFPlayer, server: Server
) -> None:
    teacher = ServedTeacher(server.url, top_k=K)
    teacher.check(student)
    local, rows = LocalTeacher(model, tokenizer(), top_k=K), played()
    for detail in (Detail.SAMPLED, Detail.TOP_K):
        ours, theirs = (it.annotate(rows, detail) for it in (teacher, local))
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.logprobs, other.logprobs, atol=1e-5, rtol=0)
            assert (mine.top is None) is (other.top is None) is (detail is Detail.SAMPLED)
            if mine.top is not None and other.top is not None:
                assert torch.equal(mine.top.ids, other.top.ids)
                torch.testing.assert_close(mine.top.logprobs, other.top.logprobs, atol=1e-5, rtol=0)
                torch.testing.assert_close(mine.top.tail, other.top.tail, atol=1e-4, rtol=0)


def test_with_the_whole_vocabulary_nothing_is_left(student: HFPlayer, server: Server) -> None:
    server.most = VOCABULARY
    teacher = ServedTeacher(server.url, top_k=VOCABULARY + 5)
    teacher.check(student)
    (told,) = teacher.annotate(played(1), Detail.TOP_K)
    assert told.top is not None and told.top.ids.shape[1] == VOCABULARY
    assert told.top.tail.tolist() == [-math.inf] * len(told.top.tail)
    torch.testing.assert_close(told.top.logprobs.exp().sum(-1), torch.ones(len(told.top.ids)))


def test_what_rounding_hides_is_left_to_the_others(student: HFPlayer) -> None:
    """One token has all the mass that float32 can tell."""
    sure = llama(VOCABULARY, seed=3)
    with torch.no_grad():
        sure.lm_head.weight *= 100
    with serving(sure, tokenizer()) as server:
        teacher = ServedTeacher(server.url, top_k=K)
        teacher.check(student)
        (told,) = teacher.annotate(played(1), Detail.TOP_K)
    assert told.top is not None
    assert math.isclose(told.top.tail.min(), math.log(1e-7), rel_tol=1e-6)


def test_a_wider_teacher_is_cut_to_what_the_student_has(student: HFPlayer) -> None:
    wider = llama(VOCABULARY + 24, seed=3)
    with torch.no_grad():  # padding that takes a share of the mass
        wider.lm_head.weight[-1] = wider.lm_head.weight[0]
    with serving(wider, tokenizer()) as server:
        teacher = ServedTeacher(server.url, top_k=K)
        server.most = K + 24
        teacher.check(student)
        (told,) = teacher.annotate(played(1), Detail.TOP_K)
    assert told.top is not None and int(told.top.ids.max()) < VOCABULARY


FAULTS: dict[str, Callable[[Handler], Any]] = {
    "busy": lambda handler: handler.send(429, {"error": "slow down"}, retry_after="0"),
    "broken": lambda handler: handler.send(500, {"error": {"message": "out of memory"}}),
    "a proxy's page": lambda handler: handler.send(502, "<html>Bad Gateway</html>"),
    "gone": hang_up,
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_passes_is_waited_for_and_said_once(
    name: str,
    model: PreTrainedModel,
    student: HFPlayer,
    server: Server,
    capfd: pytest.CaptureFixture[str],
) -> None:
    teacher = ServedTeacher(server.url, top_k=K, concurrency=3)
    teacher.check(student)
    rows = played()
    expected = teacher.annotate(rows, Detail.TOP_K)
    server.faults.append(times(7, FAULTS[name]))
    told = teacher.annotate(rows, Detail.TOP_K)
    for one, other in zip(told, expected, strict=True):
        assert torch.equal(one.logprobs, other.logprobs)
    said = capfd.readouterr().err.splitlines()
    assert sum("does not answer" in line for line in said) >= 1
    assert len(said) == 2 * sum("does not answer" in line for line in said)  # each ends with "back"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_pass_ends_in_one_line(name: str, server: Server, student: HFPlayer) -> None:
    server.faults.append(always(FAULTS[name]))
    with pytest.raises(TeacherServerError, match="has not answered for") as caught:
        ServedTeacher(server.url).check(student)
    assert "\n" not in str(caught.value) and server.url in str(caught.value)


def answer(**fields: Any) -> Fault:
    """Another answer to a request for log-probabilities."""

    def instead(handler: Handler) -> bool:
        if handler.command == "POST":
            handler.send(200, {"choices": [handler.server.complete(handler.body) | fields]})
        return handler.command == "POST"

    return instead


def shifted(handler: Handler) -> bool:
    """Log-probabilities of the token after."""
    if handler.command != "POST":
        return False
    choice = handler.server.complete(handler.body)
    if "prompt_logprobs" in choice:
        choice["prompt_logprobs"] = [None, *choice["prompt_logprobs"][2:], {}]
    handler.send(200, {"choices": [choice]})
    return True


def cooled(handler: Handler) -> bool:
    """What is written is told at temperature 1, the prompt at another."""
    if handler.command != "POST":
        return False
    choice = handler.server.complete(handler.body)
    for place in choice.get("prompt_logprobs", [])[1:]:
        for told in place.values():
            told["logprob"] *= 1.5
    handler.send(200, {"choices": [choice]})
    return True


def unsteady() -> Fault:
    noise = random.Random(0)

    def fault(handler: Handler) -> bool:
        if handler.command != "POST":
            return False
        choice = handler.server.complete(handler.body)
        for place in choice.get("prompt_logprobs", [])[1:]:
            for told in place.values():
                told["logprob"] -= noise.random()
        handler.send(200, {"choices": [choice]})
        return True

    return fault


def other_tokens(handler: Handler) -> bool:
    """A tokenizer whose ids are one further."""
    server = handler.server
    server.text = lambda token: str(tokenizer().decode([(token + 1) % VOCABULARY]))  # type: ignore[method-assign]
    return False


def raw_logits(handler: Handler) -> bool:
    """What vLLM gives by --logprobs-mode raw_logits, where it writes and where it reads."""
    if handler.command != "POST":
        return False
    choice = handler.server.complete(handler.body)
    for place in choice.get("prompt_logprobs", [])[1:]:
        for told in place.values():
            told["logprob"] += 5
    if "logprobs" in choice:
        choice["logprobs"]["token_logprobs"] = [
            it + 5 for it in choice["logprobs"]["token_logprobs"]
        ]
    handler.send(200, {"choices": [choice]})
    return True


def told_as(name: str, logprob: Any) -> Fault:
    """One more token at each place."""

    def fault(handler: Handler) -> bool:
        if handler.command != "POST":
            return False
        choice = handler.server.complete(handler.body)
        for place in choice.get("prompt_logprobs", [])[1:]:
            place[name] = {"logprob": logprob, "decoded_token": None}
        handler.send(200, {"choices": [choice]})
        return True

    return fault


def not_packed(handler: Handler) -> bool:
    handler.send(200, {}, content_encoding="gzip")
    return True


def refusing(status: int, content: Any) -> Fault:
    return always(lambda handler: handler.send(status, content))


REFUSED: dict[str, tuple[Fault, str]] = {
    "HTML": (refusing(200, "<html>Welcome</html>"), "answers text/html and not JSON"),
    "not JSON's object": (refusing(200, [1]), "and not JSON"),
    "no models": (refusing(200, {}), "gives no list of models"),
    "another path": (refusing(404, {"detail": "Not Found"}), "ends in /v1"),
    "a key": (refusing(401, {"error": {"message": "no key"}}), "'no key'; teacher.key names"),
    "no choices": (
        lambda h: h.command == "POST" and (h.send(200, {}), True)[1],
        "gives no choices",
    ),
    "no log-probabilities": (answer(prompt_logprobs=None), "gives no prompt_logprobs"),
    "of other rows": (answer(prompt_logprobs=[None]), "tokens for a row of"),
    "not numbers": (
        lambda h: (
            h.command == "POST"
            and (
                h.send(
                    200,
                    {
                        "choices": [
                            {"prompt_logprobs": [{"1": {"logprob": "x"}}] * len(h.body["prompt"])}
                        ]
                    },
                ),
                True,
            )[1]
        ),
        "cannot be read",
    ),
    "nan": (
        lambda h: (
            h.command == "POST"
            and (
                h.send(
                    200,
                    {
                        "choices": [
                            {
                                "prompt_logprobs": [{"1": {"logprob": math.nan}}]
                                * len(h.body["prompt"])
                            }
                        ]
                    },
                ),
                True,
            )[1]
        ),
        "cannot be read",
    ),
    "of other places": (shifted, "of other places"),
    "at another temperature": (cooled, "another temperature"),
    "never the same": (unsteady(), "apart from one reading to the next"),
    "logits": (raw_logits, "of all probability, more than 1"),
    "no token": (told_as("-1", -0.1), "cannot be read"),
    "no number of a machine": (told_as("1", 10**400), "cannot be read"),
    "nan where it writes": (
        lambda h: (
            "logprobs" in getattr(h, "body", {})
            and answer(logprobs={"tokens": ["token_id:1"], "token_logprobs": [math.nan]})(h)
        ),
        "log-probability nan",
    ),
    "not packed": (not_packed, "not encoded as it says"),
    "lists without end": (refusing(200, "[" * 50_000), "and not JSON"),
    "models without names": (refusing(200, {"data": [1, "a", {"id": None}]}), "serves nothing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_server_that_would_teach_nonsense_is_refused(
    name: str, server: Server, student: HFPlayer
) -> None:
    fault, message = REFUSED[name]
    server.faults.append(fault)
    with pytest.raises(TeacherServerError, match=re.escape(message)) as caught:
        ServedTeacher(server.url, top_k=K).check(student)
    assert "\n" not in str(caught.value)


def test_another_tokenizer_is_refused(server: Server, student: HFPlayer) -> None:
    server.faults.append(other_tokens)
    with pytest.raises(VocabularyMismatchError, match=r"token \d+ is '.*' to the student and"):
        ServedTeacher(server.url, top_k=K).check(student)


def test_too_few_tokens_are_refused(server: Server, student: HFPlayer) -> None:
    server.most = 4
    with pytest.raises(TeacherServerError, match="--max-logprobs 12"):
        ServedTeacher(server.url, top_k=K).check(student)


def test_the_model_must_be_served(server: Server, student: HFPlayer) -> None:
    with pytest.raises(TeacherServerError, match=f"does not serve 'other'; it serves {MODEL}"):
        ServedTeacher(server.url, model="other").check(student)
    server.names = [MODEL, "second"]
    with pytest.raises(TeacherServerError, match=f"serves {MODEL}, second: choose one"):
        ServedTeacher(server.url).check(student)
    ServedTeacher(server.url, model="second").check(student)


def test_rows_must_fit(server: Server) -> None:
    long = llama(VOCABULARY, seed=4)
    long.config.max_position_embeddings = 4096
    writer = HFPlayer(long, chat(), Sampling(max_tokens=48))
    with pytest.raises(TeacherServerError, match=r"4097, or set student\.max_context=4047$"):
        ServedTeacher(server.url).check(writer)
    ServedTeacher(server.url).check(HFPlayer(long, chat(), Sampling(max_tokens=48), 4047))


@pytest.mark.usefixtures("impatient")
def test_nobody_is_there(student: HFPlayer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(TeacherServerError, match="has not answered for"):
        ServedTeacher(url).check(student)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url=localhost:8000: expected http://"),
        ({"base_url": "http://"}, "base_url=http://: expected http://"),
        ({"base_url": "http://[::1/v1"}, "expected http://"),
        ({"base_url": "http://127.0.0.1:1/v1\n"}, "expected http://"),
        ({"top_k": 0}, "top_k=0"),
        ({"concurrency": 1.5}, "concurrency=1.5"),
        ({"timeout": 0}, "timeout=0"),
        ({"patience": -1}, "patience=-1"),
        ({"key": "NO_SUCH_KEY"}, "no environment variable of that name"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        ServedTeacher(**{"base_url": "http://127.0.0.1:1/v1", **settings})


def test_the_key_is_sent_and_stands_nowhere(
    server: Server, student: HFPlayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_KEY", "s3cret")
    keys = set()
    server.faults.append(lambda handler: bool(keys.add(handler.headers["authorization"])))
    teacher = ServedTeacher(server.url, key="MASTER_KEY")
    teacher.check(student)
    assert keys == {"Bearer s3cret"}
    server.faults.append(refusing(403, {"error": "no"}))
    with pytest.raises(TeacherServerError) as caught:
        teacher.annotate(played(1), Detail.SAMPLED)
    assert "s3cret" not in str(caught.value)


def test_a_row_that_is_refused_ends_all_of_them_at_once(server: Server, student: HFPlayer) -> None:
    teacher = ServedTeacher(server.url, top_k=K, concurrency=2)
    teacher.check(student)
    asked = itertools.count()

    def first_is_too_long(handler: Handler) -> bool:
        first = next(asked) == 0
        status = 400 if first else 500
        handler.send(status, {"error": {"message": "This model's maximum length is 9"}})
        return True

    server.faults.append(first_is_too_long)
    with pytest.raises(TeacherServerError, match="maximum length is 9"):
        teacher.annotate(played(), Detail.TOP_K)  # the others would wait for an hour


def test_a_person_sees_when_it_tries_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    outage = outages.Outage("http://here", "teacher", TeacherServerError)
    outage.pause(time.monotonic(), "gone", 0.05, patience=60)
    outage.over()
    said = capsys.readouterr().err
    assert said.startswith(
        "teacher: http://here does not answer (gone): waiting until it is back\n"
    )
    assert "\rteacher: next try in  0 s" in said
    assert said.endswith("teacher: back after 0 s\n")


def test_what_hangs_is_not_waited_for(server: Server, student: HFPlayer) -> None:
    """A row is refused while others have no answer yet: the error need not wait for them."""
    teacher = ServedTeacher(server.url, top_k=K, concurrency=3, timeout=60)
    teacher.check(student)
    asked, over = itertools.count(), threading.Event()

    def third_is_refused(handler: Handler) -> bool:
        if next(asked) == 2:
            handler.send(400, {"error": "no"})
        else:
            over.wait(60)
            handler.close_connection = True
        return True

    server.faults.append(third_is_refused)
    begun = time.monotonic()
    try:
        with pytest.raises(TeacherServerError, match="refuses"):
            teacher.annotate(played(), Detail.TOP_K)
    finally:
        over.set()
    assert time.monotonic() - begun < 20


@pytest.mark.usefixtures("impatient")
def test_a_server_that_says_nothing_at_start_is_not_waited_for(
    server: Server, student: HFPlayer
) -> None:
    over = threading.Event()

    def silent(handler: Handler) -> bool:
        over.wait(60)
        hang_up(handler)
        return True

    server.faults.append(silent)
    begun = time.monotonic()
    try:
        with pytest.raises(TeacherServerError, match="has not answered for"):
            ServedTeacher(server.url, timeout=60).check(student)
    finally:
        over.set()
    assert time.monotonic() - begun < 20


def test_a_key_that_no_header_may_have_is_told_by_its_name(
    server: Server, student: HFPlayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_KEY", "s3cr\net")
    with pytest.raises(SettingError, match="key=MASTER_KEY") as caught:
        ServedTeacher(server.url, key="MASTER_KEY")
    assert "s3cr" not in str(caught.value)
    keys = set()
    server.faults.append(lambda handler: bool(keys.add(handler.headers["authorization"])))
    monkeypatch.setenv("MASTER_KEY", "s3cret\n")  # as a secret's file often ends
    ServedTeacher(server.url, top_k=K, key="MASTER_KEY").check(student)
    assert keys == {"Bearer s3cret"}


STEPS = 6
SMALL = (
    "teacher=served",
    "loss=top_k",
    "threads=1",
    f"steps={STEPS}",
    "evaluation.tasks=0",
    "env.kwargs.max_turns=3",
    "student.max_turn_tokens=24",
    "teacher.concurrency=4",
    "trainer.args.per_device_train_batch_size=4",
    "trainer.args.warmup_steps=0",
)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    return number


class Served:
    """The embedded teacher in a process of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.start()

    def start(self) -> None:
        script = Path(__file__).with_name("teacher_server.py")
        self._process = subprocess.Popen([sys.executable, "-P", str(script), str(self._port)])

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def wait(self) -> None:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError("the server does not start")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # one minute, if nothing else works
def test_a_run_outlives_its_teachers_server(tmp_path: Path, port: int) -> None:
    """Killed at three moments and started again: the weights are those of an unbroken run."""
    server = Served(port)

    def run(name: str) -> subprocess.Popen[str]:
        url = f"teacher.base_url=http://127.0.0.1:{port}/v1"
        command = (sys.executable, "-P", "-m", "journeyman.agents.cli", "train", *SMALL)
        return subprocess.Popen(
            [*command, url, f"run_dir={tmp_path / name}"],
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ, OMP_NUM_THREADS="1"),
        )

    def steps(name: str) -> int:
        metrics = tmp_path / name / "metrics.jsonl"
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    try:
        server.wait()
        whole = run("whole")
        _, said = whole.communicate(timeout=240)
        assert whole.returncode == 0, said
        broken = run("broken")
        moments = random.Random(0)
        for after in (1, 3, 4):
            while steps("broken") < after:
                assert broken.poll() is None
                time.sleep(0.01)
            time.sleep(moments.random() / 2)
            server.kill()
            time.sleep(0.5)
            server.start()
            server.wait()
        _, said = broken.communicate(timeout=240)
        assert broken.returncode == 0, said
    finally:
        server.kill()
    assert said.count("does not answer") == said.count("teacher: back after") >= 1, said
    ours, theirs = (
        load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "broken")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
