"""The page of runs: its data, what it lets a browser do, and the server that serves it live."""

import base64
import hashlib
import http.client
import json
import math
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from journeyman.agents.cli import main
from journeyman.agents.evaluation.intervals import wilson
from journeyman.agents.evaluation.lost import Chance, Lost, SearchFile, episode_key
from journeyman.agents.evaluation.records import EpisodeFile
from journeyman.agents.evaluation.transcript import as_text
from journeyman.agents.evaluation.viewer.document import as_json, page, page_data, read_runs
from journeyman.agents.evaluation.viewer.live import LiveData, PageServer
from journeyman.agents.evaluation.viewer.overview import curves

from .viewed import BIDI, HOSTILE, played, scores, small_run, tree

Data = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def data(run: Path) -> Data:
    return page_data(read_runs([run]))


def embedded(text: str) -> Data:
    """The data of a page as a browser finds it: what lies before the next end tag."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script', text, re.S)
    read: Data = json.loads(found)
    return read


def row(data: Data, label: str) -> Data:
    (found,) = [it for it in data["rows"] if it["label"] == label]
    return found  # type: ignore[no-any-return]


# --- data -----------------------------------------------------------------------------------------


def test_rows_have_the_figures_of_their_episodes(data: Data) -> None:
    after = row(data, "student after")
    # Of 12 tasks those with n % 4 == 1 fail (3); one more fails, and one broke.
    assert after["success"] == pytest.approx([9 / 13, *wilson(9, 13), 13])
    assert (after["episodes"], after["infra"]) == (14, 1)
    # Of the twelve that a server played; what infrastructure broke costs the others nothing.
    assert after["cost"] == after["measures"]["cost"][0] == pytest.approx(0.12 / 12)
    assert after["level"]["hard"][0] == pytest.approx(sum(n % 4 != 1 for n in (2, 5, 8, 11)) / 4)
    assert after["environment"]["journeyman/Bank-v0"][3] == 6
    assert sum(after["failures"].values()) == 5
    assert after["failures"]["infrastructure"] == 1
    assert row(data, "no-op")["tools"] == {"transfer": {"ok": 6, "tool_error": 6}}
    assert after["measures"]["success"][0] == pytest.approx(9 / 13)


def test_scripts_are_listed_last(data: Data) -> None:
    labels = [data["rows"][it["row"]]["label"] for it in data["episodes"]]
    assert list(dict.fromkeys(labels)) == [
        "student before",
        "student after",
        "training",
        "no-op",
        "oracle",
    ]


def test_a_call_is_told_apart_from_what_is_said(data: Data) -> None:
    it = next(it for it in data["episodes"] if not it["success"] and it["task"] == "test/medium/1")
    turn = it["turns"][0]
    assert turn["said"] == "I pay."
    assert turn["calls"][0]["arguments"] == [
        ["source", '"A1"'],
        ["target", '"A2"'],
        ["amount", "6"],
    ]
    assert "more" not in turn  # the tool's reply only repeats the result
    assert it["gold"] == ['transfer(source: "A1", target: "A2", amount: 5)']
    assert it["shortfall"] == {
        "state": [["accounts.A2.balance", "106", "105"], ["transfers.T2", "6", None]],
        "answers": [["done", "T1", False]],
    }
    assert (it["level"], it["kind"], it["score"]) == ("medium", "balance", 0.5)


def test_scores_are_those_of_the_record(data: Data) -> None:
    judged = [it for it in data["episodes"] if data["rows"][it["row"]]["training"]]
    first, second = judged
    turn = first["turns"][0]
    assert turn["shades"]["ratio"] == [0.0, -2.5, 0.7, -0.2]
    assert turn["shades"]["advantage"] == [-0.4] * 4
    assert sum(turn["shades"]["widths"]) == len(turn["text"])
    assert turn["score"]["value"] == {
        "before": 0.8,
        "after": 0.1,
        "gain": -0.7,
        "error": 0.05,
        "samples": 12.0,
    }
    assert first["decides"] == 0 and "value" not in second["turns"][0]["score"]
    assert [node["visits"] for node in first["tree"]["children"]] == [4, 3]
    assert "tree" not in second


def test_widths_count_what_a_browser_counts(tmp_path: Path) -> None:
    """Characters beyond 16 bits are two there, and a spelt-out one is six."""
    answer = "\U0001f600\x1b!"
    it = played(0, "training", False, step=1, answer=answer)
    told = scores(it.episode.steps[0].text)
    widths = (*told.widths[:8], 1, 2, 0, 0)
    told = type(told)(told.steps, told.weights, told.advantages, widths, told.log_ratio)
    EpisodeFile(tmp_path).append([played(0, "training", False, step=1, answer=answer, scores=told)])
    turn = page_data(read_runs([tmp_path]))["episodes"][0]["turns"][1]
    assert turn["text"] == "\U0001f600\\u001b!"
    assert turn["shades"]["widths"] == [2, 7]


def test_where_it_was_lost_is_told_as_show_tells_it(tmp_path: Path) -> None:
    it = played(1, "student", False)
    EpisodeFile(tmp_path).append([it, played(2, "student", False)])
    key = episode_key(it.episode)
    tries, ways = (Chance(0, 15, 16), Chance(1, 3, 16)), (Chance(0, 1, 1), Chance(1, 0, 3))
    SearchFile(tmp_path).append(Lost(key, "student", {}, tries, tree()))
    SearchFile(tmp_path).append(Lost(key, "oracle", {}, ways))
    first, other = page_data(read_runs([tmp_path]))["episodes"]
    assert [(found["turn"], found["fell"]) for found in first["lost"]] == [(1, 0), (0, None)]
    before = "from here the student wins 15 of 16: 94% [72%, 99%]"
    after = "from here the student wins 3 of 16: 19% [7%, 43%]"
    assert [turn["chances"] for turn in first["turns"]] == [
        [before, "from here the gold calls win"],
        [after, "from here the gold calls do not win"],
    ]
    assert [node["visits"] for node in first["tree"]["children"]] == [4, 3]
    assert not {"lost", "tree"} & other.keys() and "chances" not in other["turns"][0]
    (shown, _) = EpisodeFile(tmp_path).read()
    for found in first["lost"]:
        assert found["words"] in as_text(shown)


def test_curves_are_thinned_by_means(tmp_path: Path, run: Path) -> None:
    assert curves(run)["eval/success"][0] == pytest.approx([1, 0.1, 1 / 12, 1 / 9], abs=1e-6)
    lines = [{"step": n, "loss": float(n)} for n in range(1, 481)]
    lines[0]["grad_norm"] = math.nan
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = curves(tmp_path)
    assert found.keys() == {"loss"}
    assert found["loss"][:2] == [[1.5, 1.5], [3.5, 3.5]] and len(found["loss"]) == 240
    assert curves(tmp_path / "none") == {}


def test_several_runs_have_rows_of_their_own(run: Path, tmp_path: Path) -> None:
    other = small_run(tmp_path / "other", tasks=3)
    data = page_data(read_runs([run, other]), limit=2)
    assert "small: oracle" in [it["label"] for it in data["rows"]]
    assert "other: oracle" in [it["label"] for it in data["rows"]]
    assert len(data["episodes"]) == 2 * len(data["rows"])  # figures are of all:
    assert row(data, "small: oracle")["tasks"] == 12
    assert len({it["id"] for it in data["episodes"]}) == len(data["episodes"])
    assert sorted(data["texts"]) == ["Pay bill 0.", "Pay bill 1.", "You pay bills."]  # each once


# --- the page -------------------------------------------------------------------------------------


def test_hostile_words_stay_in_the_data(data: Data) -> None:
    text = page(data)
    assert text.count("</script") == 2 and text.count("<script") == 2
    assert "<!--" not in text.partition('id="data">')[2]
    assert not set(BIDI[:1] + "\u2028\u2029\x1b") & set(text)
    found = embedded(text)
    assert found == json.loads(json.dumps(data))
    said = [t["text"] for it in found["episodes"] for t in it["turns"]]
    assert f"{HOSTILE}\\u202eowned\\u202c\\u2028\\u001b[2J" in said


@pytest.mark.parametrize("live", [False, True])
def test_the_policy_names_what_runs_by_its_hash(data: Data, live: bool) -> None:
    text = page(None if live else data)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for kind, opening in (("script", "<script>"), ("style", "<style>")):
        own = text.partition(opening)[2].partition(f"</{kind}>")[0]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert rules.pop("connect-src", None) == ("'self'" if live else None)
    assert rules == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    drawn = text if live else text.replace(as_json(data), "")
    assert not re.search(r"\son\w+=|\sstyle=|\ssrc=|eval\(|innerHTML|://", drawn)


def test_numbers_that_json_has_not_are_null() -> None:
    assert as_json({"a": [1.5, math.nan, (math.inf,)]}) == '{"a":[1.5,null,[null]]}'


def test_report_writes_one_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "page.html"
    arguments = ["report", str(run), "-o", str(target)]
    assert main([*arguments, "--row", "student after", "--failed", "--limit", "2"]) == 0
    assert f"page: {target} (2 of 5 episodes, " in capsys.readouterr().out
    found = embedded(target.read_text(encoding="utf-8"))
    assert [it["label"] for it in found["rows"]] == ["student after"]
    assert not any(it["success"] for it in found["episodes"])
    assert main([*arguments, "--row", "studnet"]) == 2
    assert "no row 'studnet'; it has" in capsys.readouterr().err
    assert main(["report", str(run), "-o", str(tmp_path)]) == 2
    assert "is a folder: name a file in it" in capsys.readouterr().err


# --- the server -----------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server(run: Path) -> Iterator[PageServer]:
    found = PageServer(LiveData([run], lambda: page_data(read_runs([run]))))
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def ask(
    server: PageServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), dict(answer.getheaders())
    connection.close()
    return found


def test_the_server_serves_page_version_and_data(server: PageServer, data: Data) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, text, headers = ask(server, "/")
    assert status == 200 and embedded(text) is None
    assert headers["Content-Security-Policy"].endswith("frame-ancestors 'none'")
    assert ask(server, "/version")[1] == "1"
    status, text, headers = ask(server, "/data", host=f"localhost:{server.port}")
    assert json.loads(text) == json.loads(as_json(data))
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "method", "host", "status"),
    [
        ("/data", "GET", "evil.example", 421),
        ("/data", "GET", "127.0.0.1", 421),  # without the port: a page of another server
        ("/", "GET", "evil.example:80", 421),
        ("/../episodes.jsonl", "GET", None, 404),
        ("/episodes.jsonl", "GET", None, 404),
        ("/data?x", "GET", None, 404),
        ("/data", "POST", None, 405),
        ("/data", "HEAD", None, 405),
        ("/data", "OPTIONS", None, 405),
    ],
)
def test_the_server_refuses(
    server: PageServer, path: str, method: str, host: str | None, status: int
) -> None:
    found, text, _ = ask(server, path, method, host)
    assert found == status and "{" not in text


def test_what_a_run_writes_shows(tmp_path: Path) -> None:
    run, clock = small_run(tmp_path / "run", tasks=2), Clock()
    reading = LiveData([run], lambda: page_data(read_runs([run])), clock)
    before = json.loads(reading.data())
    assert (reading.version(), reading.version()) == (1, 1)
    EpisodeFile(run).append([played(99, "student after", True)])
    assert reading.version() == 2
    assert len(json.loads(reading.data())["episodes"]) == len(before["episodes"]) + 1
    SearchFile(run).append(Lost("0", "oracle", {}, ()))
    assert reading.version() == 3
    with (run / "episodes.jsonl").open("a") as file:
        file.write("{}\n")  # damage is told of once, and what was read stays
    assert (reading.version(), reading.version()) == (3, 3)


def test_reading_leaves_the_machine_to_the_run(tmp_path: Path) -> None:
    clock, read = Clock(), []

    def slow() -> Data:
        clock.now += 3
        read.append(clock.now)
        return {}

    (tmp_path / "episodes.jsonl").write_text("")
    reading = LiveData([tmp_path], slow, clock)
    (tmp_path / "episodes.jsonl").write_text("x")
    assert reading.version() == 1
    clock.now = 17.9  # three seconds were read, so fifteen are not
    assert reading.version() == 1
    clock.now = 18.0
    assert reading.version() == 2 and read == [3, 21]


def test_a_port_that_is_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run), "--port", "70000"]) == 2
    assert "'70000' is no port: expected 0 to 65535" in capsys.readouterr().err


def test_a_port_that_is_taken(
    run: Path, server: PageServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", str(run), "--port", str(server.port)]) == 2
    assert (
        f"--port {server.port}: Address already in use; choose another" in capsys.readouterr().err
    )


VIEW = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started this may ignore it
from journeyman.agents.cli import main
status = main(["view", sys.argv[1]])
sys.exit(status if "torch" not in sys.modules else "torch was imported")
"""


def test_view_serves_until_it_is_interrupted(run: Path) -> None:
    command = [sys.executable, "-c", VIEW, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ shows .*; Ctrl-C ends it\n", told)
        assert found, told
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        connection.request("GET", "/version")
        assert connection.getresponse().read() == b"1"
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
