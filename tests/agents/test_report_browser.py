"""The page in headless Chromium: every part of it, by mouse and by keyboard, in both themes."""

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from journeyman.agents.evaluation.records import EpisodeFile
from journeyman.agents.evaluation.viewer.document import page, page_data, read_runs
from journeyman.agents.evaluation.viewer.live import LiveData, PageServer

from .viewed import HOSTILE, played, small_run

pytestmark = pytest.mark.browser
LISTED = "document.querySelectorAll('.list tbody tr').length"
CHROMIUM = "/usr/bin/chromium"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
Tab = Any
"""A page of Playwright, which only `make test-browser` installs."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # As root its sandbox does not start; and a container's shared memory may be too small.
        flags = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        found = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("viewed")
    run = small_run(folder / "small")
    target = folder / "page.html"
    target.write_text(page(page_data(read_runs([run]))), encoding="utf-8")
    return target.as_uri()


class Watched:
    """A tab, and all that it complained of or asked for."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": WIDE, **options})
        self.tab: Tab = self.context.new_page()
        self.troubles: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda it: self.troubles.append(f"{it.type}: {it.text}"))
        self.tab.on("pageerror", lambda it: self.troubles.append(str(it)))
        self.tab.on("dialog", lambda it: self.troubles.append("dialog") or it.dismiss())
        self.tab.on("request", lambda it: self.asked.append(it.url))
        self.url = url
        self.tab.goto(url)
        self.tab.wait_for_selector("h1, main:empty", state="attached")

    def at(self, address: str) -> Tab:
        go(self.tab, address)
        return self.tab

    def where(self) -> str:
        found: str = self.tab.evaluate("location.hash")
        return found


@pytest.fixture
def watched(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Watched]:
    found = Watched(browser, url, **getattr(request, "param", {}))
    yield found
    assert found.troubles == []
    assert [it for it in found.asked if it.partition("#")[0] != url] == []
    found.context.close()


def episode_of(tab: Tab, test: str) -> str:
    """The id of the first episode that a script of a page says yes to."""
    found: str = tab.evaluate(f"store.data.episodes.find((it) => {test}).id")
    return found


def go(tab: Tab, address: str) -> None:
    """Be at an address of the page, drawn; its own listener is older than this one."""
    tab.evaluate(
        """it => new Promise(done => {
            if (location.hash === it) return done()
            const drawn = () => requestAnimationFrame(() => requestAnimationFrame(done))
            addEventListener("hashchange", drawn, { once: true })
            location.hash = it
        })""",
        address,
    )


def until(tab: Tab, test: str) -> None:
    """Wait for it; Playwright's own way needs an `eval` that the page does not allow."""
    for _ in range(600):
        if tab.evaluate(test):
            return
        tab.wait_for_timeout(100)
    raise AssertionError(f"never: {test}")


def addresses(tab: Tab) -> list[str]:
    """One of every kind of page."""
    scored = episode_of(tab, "it.tree")
    other = episode_of(tab, "it.task === 'test/0' && it.id !== store.data.episodes[0].id")
    first = tab.evaluate("store.data.episodes[0].id")
    hostile = episode_of(tab, "it.turns.some((turn) => turn.text.includes('owned'))")
    return [
        "#/",
        "#/episodes",
        "#/rows",
        f"#/episode/{scored}",
        f"#/episode/{scored}/tree",
        f"#/episode/{hostile}",
        f"#/side/{first}/{other}",
        "#/episode/none",
    ]


def test_overview_shows_figures_and_pictures(watched: Watched) -> None:
    tab = watched.tab
    assert tab.title() == "small · Journeyman"
    assert tab.locator(".figures tbody tr").count() == 5
    headings = tab.locator(".panel h2").all_inner_texts()
    assert headings[:4] == [
        "Success by policy",
        "Success by kind of task",
        "Success by environment",
        "Success by level",
    ]
    assert {"Why episodes failed", "Calls by tool and status", "Success against cost"} <= {
        *headings
    }
    assert {"Learning curve: success", "What training logged"} <= {*headings}
    assert tab.locator(".panel .band").count() == 1
    marks = tab.locator(".panel").first.locator(".dot")
    assert marks.count() == 5
    tab.get_by_role("button", name="oracle").click()  # hides it in the pictures
    assert marks.count() == 4
    tab.get_by_label("Policy whose calls are shown").select_option("student after")
    assert "student after" in tab.locator("svg[aria-label^='Calls of']").get_attribute("aria-label")


def test_a_bar_leads_to_its_episodes(watched: Watched) -> None:
    watched.tab.locator("svg[aria-label^='Failed'] a").first.click()
    until(watched.tab, "document.querySelector('main').className === 'episodes'")
    assert re.fullmatch(r"#/episodes\?row=\d&failure=[\w+]+", watched.where())
    assert 0 < watched.tab.locator(".list tbody tr").count() < 50


def test_the_list_is_filtered_searched_and_sorted(watched: Watched) -> None:
    tab = watched.at("#/episodes")
    rows = tab.locator(".list tbody tr")
    until(tab, f"{LISTED} === 52")
    tab.get_by_label("every policy").select_option(label="student before")
    tab.get_by_label("every outcome").select_option("solved")
    until(tab, f"{LISTED} === 4")
    assert tab.locator(".count").inner_text() == "4 episodes, 4 solved"
    tab.get_by_label("every level").select_option("hard")
    until(tab, f"{LISTED} === 0")
    tab.go_back()
    watched.at("#/episodes")
    tab.keyboard.press("/")
    tab.keyboard.type("BILL 7.")
    until(tab, "location.hash.includes('q=BILL')")
    until(tab, f"{LISTED} === 4")
    tab.keyboard.press("Escape")
    tab.get_by_role("button", name="sort by task").click()
    tab.get_by_role("button", name="sort by policy").click()
    assert tab.locator("th[aria-sort=ascending]").inner_text().startswith("policy")
    tab.get_by_role("button", name="sort by policy").click()
    assert "training" not in rows.first.inner_text() and "student after" in rows.first.inner_text()


def test_an_episode_tells_what_happened(watched: Watched) -> None:
    tab = watched.tab
    tab = watched.at(f"#/episode/{episode_of(tab, 'it.tree')}")
    why = tab.locator(".why")
    assert "accounts.A2.balance" in why.inner_text() and "absent" in why.inner_text()
    assert tab.locator(".turn.decides .badge.decides").count() == 1
    assert "V 0.8 → 0.1 (−0.7 ± 0.05)" in tab.locator("#turn-1 .told").inner_text()
    call = tab.locator("#turn-1 .call")
    assert "tool error" in call.inner_text() and "amount: 6" in call.inner_text()
    less = tab.locator("#turn-1 .less4")
    assert less.get_attribute("title").startswith("teacher’s log-ratio −2.5, advantage −0.4")
    spans = tab.locator("#turn-1 .shaded span")
    shades = [spans.nth(place).get_attribute("class") for place in range(4)]
    assert shades == ["", "less4", "more2", "end less1"]
    text = tab.evaluate("store.data.episodes.find((it) => it.tree).turns[0].text")
    assert tab.locator("#turn-1 .shaded").inner_text() == f"{text} end"
    tab.get_by_label("Tokens shaded by").select_option("advantage")
    assert tab.locator("#turn-1 .less4").count() == 4
    assert 'transfer(source: "A1", target: "A2", amount: 5)' in tab.locator(".gold").inner_text()
    tab.locator(".steps a").nth(1).click()
    until(tab, "location.hash.endsWith('/2')")
    assert tab.evaluate("document.activeElement.id") == "turn-2"


def test_a_tree_is_walked_by_keys_and_mouse(watched: Watched) -> None:
    tab = watched.tab
    watched.at(f"#/episode/{episode_of(tab, 'it.tree')}")
    tab.get_by_role("link", name="Open the tree (5 nodes)").click()
    nodes = tab.locator("[role=treeitem]")
    seen = tab.locator("[role=treeitem] > .node-line:visible")
    assert seen.count() == 4  # the way of the episode is open
    tab.keyboard.press("End")
    assert tab.evaluate("document.activeElement.node.visits") == 3
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert seen.count() == 5
    detail = tab.locator(".node").inner_text()
    assert "After turn 2" in detail and "teacher" in detail and "Answer: T1" in detail
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert seen.count() == 4
    assert nodes.first.get_attribute("aria-expanded") == "true"
    tab.locator(".node-line").first.locator(".twist").click()
    assert seen.count() == 1
    tab.keyboard.press("Escape")
    until(tab, "!location.hash.endsWith('tree')")


def test_two_policies_are_compared_task_by_task(watched: Watched) -> None:
    tab = watched.at("#/rows")
    tiles = tab.locator(".tile strong").all_inner_texts()
    # before: n % 3 == 0; after: n % 4 != 1; of 12 tasks.
    before = {n for n in range(12) if n % 3 == 0}
    after = {n for n in range(12) if n % 4 != 1}
    groups = [before - after, after - before, before & after, {*range(12)} - before - after]
    assert tiles == [str(len(it)) for it in groups]
    tab.locator(".tile").nth(1).click()
    assert tab.locator(".pairs tbody tr").count() == len(groups[1])
    tab.get_by_role("link", name="side by side").first.click()
    assert tab.locator(".pair > section").count() == 2
    assert tab.locator(".badge.differs").count() == 2
    tab.keyboard.press("Escape")
    until(tab, "location.hash.startsWith('#/rows')")


def test_keys_lead_everywhere(watched: Watched) -> None:
    tab, press = watched.tab, watched.tab.keyboard.press

    def lies_at(page: str, address: str | None = None) -> None:
        """It is drawn, too: the next key is for it."""
        until(tab, f"document.querySelector('main').className === {json.dumps(page)}")
        if address is not None:
            until(tab, f"location.hash === {json.dumps(address)}")

    press("e")
    lies_at("episodes", "#/episodes")
    for key in "jjjk":
        press(key)
    chosen = tab.evaluate("document.activeElement.getAttribute('href')")
    press("Enter")
    lies_at("episode", chosen)
    press("j")
    until(tab, f"location.hash !== {json.dumps(chosen)}")
    following = watched.where()
    until(tab, f"'#/episode/' + store.last === {json.dumps(following)}")
    press("Escape")
    lies_at("episodes", "#/episodes")
    until(tab, f"document.activeElement.getAttribute('href') === {json.dumps(following)}")
    press("Escape")
    lies_at("overview", "#/")
    press("?")
    assert tab.get_by_role("dialog").is_visible()
    press("Escape")
    assert not tab.get_by_role("dialog").is_visible()
    tab.go_back()
    lies_at("episodes", "#/episodes")


def test_every_thing_to_press_is_reached_by_tab(watched: Watched) -> None:
    tab = watched.at("#/rows")
    wanted = tab.evaluate("document.querySelectorAll('a[href], button, select').length")
    tab.evaluate("document.activeElement.blur()")
    reached, outlines = set(), set()
    for _ in range(wanted + 3):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)")
        )
        outlines.add(tab.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    hidden = tab.evaluate("document.querySelectorAll('dialog button').length")
    assert len(reached) >= wanted - hidden
    assert "solid" in outlines


@pytest.mark.parametrize("watched", [{"color_scheme": "dark"}], indirect=True)
def test_dark_and_light(watched: Watched) -> None:
    tab = watched.tab
    colour = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(colour) == "rgb(13, 15, 18)"
    tab.get_by_role("button", name="Dark or light").click()
    assert tab.evaluate(colour) == "rgb(246, 247, 249)"
    tab.reload()
    assert tab.evaluate(colour) == "rgb(246, 247, 249)"  # it is kept


@pytest.mark.parametrize("watched", [{"viewport": NARROW}], indirect=True)
def test_a_narrow_page_does_not_scroll_sideways(watched: Watched) -> None:
    for address in addresses(watched.tab):
        tab = watched.at(address)
        assert tab.evaluate("document.documentElement.scrollWidth") <= NARROW["width"], address


@pytest.mark.parametrize(
    "watched",
    [
        {"color_scheme": scheme, "viewport": size}
        for scheme in ("light", "dark")
        for size in (WIDE, NARROW)
    ],
    indirect=True,
    ids=["light wide", "light narrow", "dark wide", "dark narrow"],
)
def test_axe_finds_nothing_serious(watched: Watched) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe, found = Axe(), []
    dark = watched.tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    scheme = "dark" if dark else "light"
    # It is put into the page from outside, which the page's own policy would rightly refuse.
    context = watched.context.browser.new_context(
        bypass_csp=True,
        viewport=watched.tab.viewport_size,
        color_scheme=scheme,
    )
    tab = context.new_page()
    tab.goto(watched.url)
    for address in addresses(tab):
        go(tab, address)
        for it in axe.run(tab).response["violations"]:
            if it["impact"] in ("serious", "critical"):
                found.append((address, it["id"], [node["html"][:160] for node in it["nodes"][:3]]))
    context.close()
    assert found == []


def test_words_of_a_model_are_words(watched: Watched) -> None:
    tab = watched.tab
    hostile = episode_of(tab, "it.turns.some((turn) => turn.text.includes('owned'))")
    watched.at(f"#/episode/{hostile}")
    told = tab.locator("#turn-2 .said").inner_text()
    assert told == f"{HOSTILE}\\u202eowned\\u202c\\u2028\\u001b[2J"
    assert tab.locator("main img, main script").count() == 0
    assert "owned" not in tab.title()
    watched.at(f"#/episode/{episode_of(tab, 'it.tree')}/tree")
    assert "alert(1)" in tab.locator(".tree").inner_text()


def test_two_thousand_episodes_open_in_two_seconds(browser: Any, tmp_path: Path) -> None:
    rows = ("no-op", "oracle", "student before", "student after")
    EpisodeFile(tmp_path).append(
        played(n, row, n % (place + 2) == 0) for place, row in enumerate(rows) for n in range(500)
    )
    target = tmp_path / "page.html"
    target.write_text(page(page_data(read_runs([tmp_path]))), encoding="utf-8")
    for address in ("#/", "#/episodes"):
        # Of three tries the best: a machine that is busy with something else is slow once.
        assert min(opening(browser, f"{target.as_uri()}{address}") for _ in range(3)) < 2000
    seen = Watched(browser, f"{target.as_uri()}#/episodes")
    count = "document.querySelectorAll('.list tbody tr').length"
    before = seen.tab.evaluate(count)
    assert before < 500  # the rest is drawn as one scrolls
    seen.tab.mouse.wheel(0, 20000)
    until(seen.tab, f"{count} > {before}")
    assert seen.at("#/episodes?q=bill+499").locator(".list tbody tr").count() == 4
    assert seen.troubles == []
    seen.context.close()


def opening(browser: Any, url: str) -> float:
    """Milliseconds until a page is loaded and drawn, by the browser's own count."""
    seen = Watched(browser, url)
    end = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    until(seen.tab, f"{end} > 0")
    took: float = seen.tab.evaluate(end)
    seen.context.close()
    return took


def test_the_live_page_follows_the_run(browser: Any, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", tasks=2)
    server = PageServer(LiveData([run], lambda: page_data(read_runs([run]))))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        seen = Watched(browser, server.url)
        tab = seen.tab
        until(tab, "store.data !== null && $('live').textContent === '● live'")
        count = tab.evaluate("store.data.episodes.length")
        EpisodeFile(run).append([played(99, "student after", True)])
        until(tab, f"store.data.episodes.length === {count + 1}")
        assert f"{count + 1} episodes" in tab.locator(".lead").inner_text()
        assert {it.removeprefix(server.url) for it in seen.asked} == {"", "version", "data"}
        assert seen.troubles == []
        seen.context.close()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
