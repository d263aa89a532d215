"""Several servers of one model: who is asked, what becomes of one that fails, what is refused."""

import itertools
import json
import os
import pickle
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel

from journeyman.agents.credit import Judge
from journeyman.agents.errors import (
    SettingError,
    StudentServerError,
    TeacherServerError,
    VocabularyMismatchError,
)
from journeyman.agents.networks import endpoints, outages
from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.networks.endpoints import Endpoint
from journeyman.agents.networks.loading import load_model
from journeyman.agents.networks.replicas import Replicas, reach
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.openai import OpenAIPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.teachers import Detail
from journeyman.agents.teachers.served import ServedTeacher

from .chat_server import ChatServer, chatting, gold, graded
from .teacher_server import Handler, Server, serving
from .test_openai import TASKS
from .test_served import SMALL, STEPS, VOCABULARY, K, always, hang_up, other_tokens, played
from .tiny import chat, llama, tokenizer

PATIENCE = 60.0
"""Seconds; more than a loaded machine takes."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.01)


class EchoHandler(Handler):
    """Answers a number by it, from its server's own `act`."""

    server: "Echo"  # type: ignore[assignment]

    def do_GET(self) -> None:
        if not self.faulty():
            self.send(200, {"data": [{"id": "echo"}]})

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(self.body["n"])
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            if not self.faulty():
                self.server.act(self.body["n"])
                self.send(200, {"n": self.body["n"]})
        finally:
            with self.server.lock:
                self.server.now -= 1


class Echo(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0) -> None:
        self.faults: list[Callable[[Any], bool]] = []
        self.asked: list[int] = []
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.act: Callable[[int], object] = lambda n: None
        super().__init__(("127.0.0.1", port), EchoHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever was answered has gone: that is what some tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def echo(port: int = 0) -> Iterator[Echo]:
    with Echo(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def three() -> Iterator[list[Echo]]:
    with ExitStack() as stack:
        yield [stack.enter_context(echo()) for _ in range(3)]


def pool(servers: Sequence[Echo], **settings: Any) -> Endpoint:
    told = {"concurrency": 2, "timeout": PATIENCE, "patience": PATIENCE, **settings}
    return reach([it.url for it in servers], "teacher", TeacherServerError, **told)


def ask(endpoint: Endpoint, numbers: Sequence[int], tries: int = 0) -> list[int]:
    def one(client: Any, n: int) -> int:
        reply = endpoint.send(client, "POST", "echo", {"n": n}, tries=tries)
        if reply.status >= 400:
            raise endpoint.refusal(reply)
        return int(reply.data["n"])

    return endpoint.side_by_side(one, numbers)


def broken(handler: Any) -> None:
    handler.send(500, {"error": {"message": "out of memory"}})


def test_all_are_asked_side_by_side_within_their_concurrency(three: list[Echo]) -> None:
    """Nobody answers before two requests are under way at each of the three."""
    together = threading.Barrier(6)
    for server in three:
        server.act = lambda n: together.wait(PATIENCE)
    assert ask(pool(three), range(24)) == list(range(24))
    assert [it.most for it in three] == [2, 2, 2]


def test_who_is_slow_is_asked_less(three: list[Echo]) -> None:
    """The first answers its two when all others have been: which the others must have taken."""
    slow, *fast = three
    left, over = itertools.count(1), threading.Event()

    def count(n: int) -> None:
        if next(left) == 22:
            over.set()

    slow.act = lambda n: over.wait(PATIENCE)
    for it in fast:
        it.act = count
    assert ask(pool(three), range(24)) == list(range(24))
    assert over.is_set() and len(slow.asked) == 2
    assert len(fast[0].asked) + len(fast[1].asked) == 22


@pytest.mark.parametrize("fault", [hang_up, broken], ids=["dies", "breaks"])
def test_what_one_does_not_answer_the_others_do(
    fault: Callable[[Any], None], three: list[Echo], capfd: pytest.CaptureFixture[str]
) -> None:
    """Mid-run: the first two requests it answers. It is named once, and asked little from then."""
    answered = itertools.count()
    three[1].faults.append(lambda it: next(answered) > 1 and (fault(it), True)[1])
    endpoint = pool(three)
    assert ask(endpoint, range(60)) == list(range(60))
    figures = endpoint.figures()
    assert figures["replica_1/requests"] + figures["replica_3/requests"] >= 58
    assert figures["replica_2/retries"] >= 1 and figures["replica_1/retries"] == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("teacher:")]
    assert len(said) == 1
    assert f"{three[1].url} does not answer (" in said[0] and "2 of 3 go on without it" in said[0]


def test_one_that_hangs_is_left_alone(three: list[Echo], capfd: pytest.CaptureFixture[str]) -> None:
    over = threading.Event()
    three[2].faults.append(lambda it: over.wait(PATIENCE))
    try:
        assert ask(pool(three, timeout=1.0), range(30)) == list(range(30))
    finally:
        over.set()
    # It is silent when it is looked at, too: the first two are all that it was ever asked.
    assert len(three[2].asked) == 2
    assert f"{three[2].url} does not answer (timed out)" in capfd.readouterr().err


def test_one_that_is_back_is_asked_again(
    three: list[Echo], capfd: pytest.CaptureFixture[str]
) -> None:
    """It is gone until the others have answered ten, which wait for it then."""
    gone, back = threading.Event(), threading.Event()
    gone.set()
    answered = itertools.count(1)

    def count(n: int) -> None:
        if next(answered) == 10:
            gone.clear()
        if not gone.is_set():
            assert back.wait(PATIENCE)

    three[0].faults.append(lambda it: gone.is_set() and (hang_up(it), True)[1])
    three[0].act = lambda n: back.set()
    for it in three[1:]:
        it.act = count
    assert ask(pool(three), range(40)) == list(range(40))
    said = capfd.readouterr().err
    assert said.count(f"{three[0].url} does not answer") == 1
    assert said.count(f"{three[0].url} is back after") == 1


def test_one_that_is_back_with_another_model_is_not_asked(
    three: list[Echo], capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint = pool(three)
    changed, looked = threading.Event(), threading.Event()

    def check(one: Endpoint) -> None:
        one.models()
        if changed.is_set() and one.url == three[0].url:
            looked.set()
            raise TeacherServerError(f"{one.url} serves another")

    endpoint.each(check, PATIENCE)
    three[0].faults.append(
        lambda it: not changed.is_set() and (hang_up(it), changed.set(), True)[2]
    )
    for it in three[1:]:
        it.act = lambda n: n < 30 or looked.wait(PATIENCE)
    ask(endpoint, range(30))
    before = len(three[0].asked)
    assert ask(endpoint, range(30, 60)) == list(range(30, 60))
    assert looked.is_set() and len(three[0].asked) == before


def test_when_all_are_gone_each_is_named(
    three: list[Echo], capfd: pytest.CaptureFixture[str]
) -> None:
    for server, fault in zip(three, (hang_up, broken, hang_up), strict=True):
        server.faults.append(always(fault))
    with pytest.raises(TeacherServerError) as caught:
        ask(pool(three, patience=0.3), range(8))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("none of teacher.base_url has answered for ")
    assert f"{three[1].url} (HTTP 500: 'out of memory')" in message
    assert all(f"{it.url} (" in message for it in three)
    assert message.endswith("the same command goes on from the last checkpoint")
    assert capfd.readouterr().err.count("none of 3 answers: waiting") == 1


def test_when_all_are_gone_and_one_comes_back_it_goes_on(three: list[Echo]) -> None:
    gone = itertools.count()
    for server in three:  # twelve failures, then all is well
        server.faults.append(lambda it: next(gone) < 12 and (hang_up(it), True)[1])
    assert ask(pool(three), range(20)) == list(range(20))


def test_a_request_that_breaks_all_is_not_sent_for_ever(three: list[Echo]) -> None:
    for server in three:
        server.faults.append(
            lambda it: getattr(it, "body", {}).get("n") == 7 and (broken(it), True)[1]
        )
    with pytest.raises(TeacherServerError, match=r"refuses \(500\): 'out of memory'"):
        ask(pool(three), range(12), tries=4)
    assert Counter(n for it in three for n in it.asked)[7] == 4
    assert all(7 in it.asked for it in three)  # each was tried before one was tried again


def test_a_refusal_of_one_is_asked_of_the_others_and_of_all_ends(three: list[Echo]) -> None:
    """One that was started anew under another name knows no model of the old one."""

    def unknown(handler: Any) -> bool:
        if handler.command == "POST":
            handler.send(404, {"error": "no such model"})
        return bool(handler.command == "POST")

    three[0].faults.append(unknown)
    assert ask(pool(three), range(12)) == list(range(12))
    for it in three[1:]:
        it.faults.append(unknown)
    with pytest.raises(TeacherServerError, match=r"refuses \(404\): 'no such model'"):
        ask(pool(three), range(12))


def test_one_that_is_busy_is_left_alone_for_as_long_as_it_asks(three: list[Echo]) -> None:
    looked, both = itertools.count(), threading.Barrier(2)  # as many as it is sent at once

    def busy(handler: Any) -> bool:
        if handler.command == "GET":
            next(looked)
            return False
        both.wait(PATIENCE)
        handler.send(429, {"error": "slow down"}, Retry_After="600")
        return True

    three[0].faults.append(busy)
    for it in three[1:]:
        it.act = lambda n: time.sleep(0.02)  # a pause that nobody asked for is over long before
    assert ask(pool(three), range(60)) == list(range(60))
    assert len(three[0].asked) == 2 and next(looked) == 0


def test_a_page_of_one_is_asked_of_the_others_and_of_all_ends(three: list[Echo]) -> None:
    """A gateway says that all is well, and has nothing behind it."""

    def page(handler: Any) -> bool:
        if handler.command == "POST":
            handler.send(200, "<html>starting</html>")
        return bool(handler.command == "POST")

    three[0].faults.append(page)
    assert ask(pool(three), range(12)) == list(range(12))
    for it in three[1:]:
        it.faults.append(page)
    endpoint = pool(three)
    with pytest.raises(TeacherServerError, match=r"and not JSON: '<html>starting</html>'; is "):
        endpoint.side_by_side(lambda it, n: endpoint.ask(it, "POST", "echo", {"n": n}), range(9))


def test_who_is_asked_when_a_run_ends_is_not_called_silent(
    three: list[Echo], capfd: pytest.CaptureFixture[str]
) -> None:
    """All six requests are under way when one is refused: five lines are cut."""
    together, over = threading.Barrier(6), threading.Event()

    def act(n: int) -> None:
        together.wait(PATIENCE)
        assert n == 3 or over.wait(PATIENCE)

    for it in three:
        it.act = act
        it.faults.append(
            lambda it: (
                getattr(it, "body", {}).get("n") == 3
                and (it.server.act(3), it.send(400, {"error": "too long"}), True)[2]
            )
        )
    try:
        with pytest.raises(TeacherServerError, match=r"refuses \(400\): 'too long'"):
            ask(pool(three), range(6))
    finally:
        over.set()
    assert "does not answer" not in capfd.readouterr().err


def test_patience_begins_anew_with_the_next_batch(three: list[Echo]) -> None:
    for it in three:
        it.faults.append(always(hang_up))
    endpoint = pool(three, patience=0.3)
    with pytest.raises(TeacherServerError, match="has answered for"):
        ask(endpoint, range(3))
    assert isinstance(endpoint, Replicas) and endpoint._silent_since is not None
    endpoint._silent_since -= 1000 * PATIENCE  # an hour ago, as when the run was suspended
    for it in endpoint._replicas:
        it.due += 1000 * PATIENCE
    endpoint.patience = PATIENCE
    for server in three:
        server.faults.clear()
    assert ask(endpoint, range(3)) == [0, 1, 2]


def test_a_connection_that_is_never_made_is_not_waited_for(
    three: list[Echo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one to a machine without power: whoever ends the run could not cut it either."""
    monkeypatch.setattr(endpoints, "CONNECTING", 0.3)
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # whoever comes after them is left without a word
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        urls = [f"http://127.0.0.1:{full.getsockname()[1]}/v1", three[0].url]
        endpoint = reach(urls, "teacher", TeacherServerError, 2, timeout=10 * PATIENCE)
        begun = time.monotonic()
        assert ask(endpoint, range(8)) == list(range(8))
        assert time.monotonic() - begun < PATIENCE and endpoint.figures()["replica_1/retries"] > 0


def test_a_certificate_that_is_not_trusted_is_told_with_what_mends_it() -> None:
    told = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    endpoint = Endpoint("https://127.0.0.1:1/v1", "teacher", TeacherServerError, patience=0.01)

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(str(told)) from told

    with (
        httpx.Client(transport=httpx.MockTransport(refuse)) as client,
        pytest.raises(TeacherServerError, match=r"self-signed.*SSL_CERT_FILE names a file"),
    ):
        endpoint.send(client, "GET", "models")


def test_they_are_asked_from_another_process_too(three: list[Echo]) -> None:
    endpoint = pickle.loads(pickle.dumps(pool(three, concurrency=3)))
    together = threading.Barrier(9)
    for server in three:
        server.act = lambda n: together.wait(PATIENCE)
    assert ask(endpoint, range(9)) == list(range(9))


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ([], r"base_url=\[\]: expected http"),
        (None, "base_url=None: expected http"),
        ("http://a/v1,http://b/v1", r"b/v1: expected http.*replicas are a list, \[http"),
        (["http://a/v1", None], "base_url=None: expected http"),
        (["http://a/v1", "http://b:99999/v1"], "base_url=http://b:99999/v1: expected http"),
        (["http://a/v1", "http://A:80/v1/"], "http://a/v1 is there twice; expected each"),
    ],
)
def test_what_is_no_list_of_replicas_is_refused(urls: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ServedTeacher(urls)


@pytest.mark.parametrize("urls", [["http://me:hidden@a/v1"] * 2, "http://me:hidden@a/v1,http://b"])
def test_passwords_are_not_repeated(urls: Any) -> None:
    with pytest.raises(SettingError) as caught:
        ServedTeacher(urls)
    assert "use key" in str(caught.value) and "hidden" not in str(caught.value)


# Teachers.


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama(VOCABULARY, seed=3)


@pytest.fixture(scope="module")
def student() -> HFPlayer:
    return HFPlayer(llama(VOCABULARY, seed=4), chat(), Sampling())


@pytest.fixture
def two(model: PreTrainedModel) -> Iterator[list[Server]]:
    with serving(model, tokenizer()) as one, serving(model, tokenizer()) as other:
        yield [one, other]


def test_a_teachers_answers_hang_on_no_replica(two: list[Server], student: HFPlayer) -> None:
    rows = played(12)
    alone = ServedTeacher(two[0].url, top_k=K)
    alone.check(student)
    expected = alone.annotate(rows, Detail.TOP_K)
    teacher = ServedTeacher([it.url for it in two], top_k=K, concurrency=2)
    teacher.check(student)
    assert all(value == 0 for value in teacher.figures().values())  # what the check asked is none
    answered = itertools.count()
    two[1].faults.append(lambda it: next(answered) >= 3 and (hang_up(it), True)[1])
    for told, other in zip(teacher.annotate(rows, Detail.TOP_K), expected, strict=True):
        assert torch.equal(told.logprobs, other.logprobs)
        assert told.top is not None and other.top is not None
        assert torch.equal(told.top.ids, other.top.ids)
    figures = teacher.figures()
    assert figures["replica_1/requests"] + figures["replica_2/requests"] >= len(rows)
    assert figures["replica_2/retries"] >= 1 and figures["replica_1/seconds"] > 0


def test_replicas_of_two_models_are_refused(two: list[Server], student: HFPlayer) -> None:
    two[1].model = llama(VOCABULARY, seed=9)
    both = re.escape(f"{two[0].url} and {two[1].url} find the tokens of one row ")
    with pytest.raises(TeacherServerError, match=both + r"\d+\.\d\d nats apart"):
        ServedTeacher([it.url for it in two], top_k=K).check(student)


def test_replicas_under_two_names_are_refused(two: list[Server], student: HFPlayer) -> None:
    two[1].names = ["other"]
    expected = f"{two[1].url} does not serve 'master'; it serves other, and {two[0].url} serves it"
    with pytest.raises(TeacherServerError, match=re.escape(expected)):
        ServedTeacher([it.url for it in two], top_k=K).check(student)


def test_a_replica_of_another_vocabulary_is_refused(two: list[Server], student: HFPlayer) -> None:
    two[1].faults.append(other_tokens)
    with pytest.raises(VocabularyMismatchError, match=re.escape(two[1].url)):
        ServedTeacher([it.url for it in two], top_k=K).check(student)


def test_a_replica_that_is_not_there_yet_is_done_without(
    two: list[Server],
    student: HFPlayer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("journeyman.agents.teachers.served.START_PATIENCE", 0.2)
    two[0].faults.append(always(hang_up))
    teacher = ServedTeacher([it.url for it in two], top_k=K)
    teacher.check(student)
    assert f"{two[0].url} does not answer" in capfd.readouterr().err
    assert len(teacher.annotate(played(), Detail.TOP_K)) == 6
    two[1].faults.append(always(hang_up))
    with pytest.raises(TeacherServerError, match=r"none of teacher\.base_url has answered for"):
        ServedTeacher([it.url for it in two], top_k=K).check(student)


# Students and judges.


@pytest.fixture
def chats() -> Iterator[list[ChatServer]]:
    with chatting(gold) as one, chatting(gold) as other:
        yield [one, other]


def test_a_student_of_two_replicas_outlives_one(chats: list[ChatServer]) -> None:
    alone = OpenAIPlayer(chats[0].url)
    alone.check()
    expected = rollout(alone, TASKS)
    player = OpenAIPlayer([it.url for it in chats], concurrency=2)
    player.check()
    assert player.identity == alone.identity  # so that answers are found again
    answered = itertools.count()
    chats[0].faults.append(lambda it: next(answered) >= 4 and (hang_up(it), True)[1])
    found = rollout(player, TASKS)
    assert [e.tokens for e in found] == [e.tokens for e in expected]
    assert all(e.success for e in found) and chats[1].asked


def test_a_students_replicas_must_serve_one_model(chats: list[ChatServer]) -> None:
    chats[1].names = ["apprentice-2"]
    urls = [it.url for it in chats]
    with pytest.raises(StudentServerError) as caught:
        OpenAIPlayer(urls).check()
    expected = f"{urls[0]} serves apprentice-1, and {urls[1]} apprentice-2: all of student.base_url"
    assert expected in str(caught.value)
    with pytest.raises(StudentServerError) as caught:
        OpenAIPlayer(urls, model="apprentice-2").check()
    assert f"{urls[1]} serves apprentice-2, and {urls[0]} does not" in str(caught.value)


def test_a_judge_of_two_replicas_outlives_one(student: HFPlayer) -> None:
    with chatting(graded) as one, chatting(graded) as other:
        posts = itertools.count()
        one.faults.append(lambda it: it.command == "POST" and (hang_up(it), next(posts), True)[2])
        Judge([one.url, other.url], concurrency=1).check(student)  # it grades an episode
        assert next(posts) == 1 and len(other.asked) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)  # one minute, if nothing else works
def test_a_run_outlives_one_teacher_and_is_resumed_after_all(tmp_path: Path) -> None:
    """One dies, then both: the same command ends with the weights of an unbroken run."""
    teacher = (
        load_model("embedded-teacher"),
        AutoTokenizer.from_pretrained(resolve("embedded-teacher")),
    )
    with serving(*teacher) as one, serving(*teacher) as other:

        def run(name: str) -> subprocess.Popen[str]:
            command = (sys.executable, "-P", "-m", "journeyman.agents.cli", "train", *SMALL)
            more = (
                f"teacher.base_url=[{one.url},{other.url}]",
                "teacher.patience=1",
                "trainer.args.save_steps=1",
                f"run_dir={tmp_path / name}",
            )
            return subprocess.Popen(
                [*command, *more],
                stderr=subprocess.PIPE,
                text=True,
                env=dict(os.environ, OMP_NUM_THREADS="1"),
            )

        def steps(name: str) -> list[dict[str, Any]]:
            metrics = tmp_path / name / "metrics.jsonl"
            text = metrics.read_text() if metrics.exists() else ""
            return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

        def when(reached: int, process: subprocess.Popen[str]) -> None:
            while len(steps("broken")) < reached:
                assert process.poll() is None
                time.sleep(0.01)

        def end(process: subprocess.Popen[str], code: int) -> str:
            _, said = process.communicate(timeout=300)
            assert process.returncode == code, said
            return said

        end(run("whole"), 0)
        broken_off = run("broken")
        when(1, broken_off)
        one.faults.append(always(hang_up))
        when(3, broken_off)
        other.faults.append(always(hang_up))
        said = end(broken_off, 2)
        assert f"{one.url} does not answer" in said
        (line,) = (it for it in said.splitlines() if "has answered for" in it)
        assert one.url in line and other.url in line and "from the last checkpoint" in line
        reached = len(steps("broken"))
        assert 3 <= reached < STEPS
        other.faults.clear()  # the first stays away
        end(run("broken"), 0)
        told = [it for it in steps("whole") if "teacher/requests" in it]
        assert sum(it["teacher/replica_2/requests"] for it in told) > 0
        ours, theirs = (
            load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "broken")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
