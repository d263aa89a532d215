"""Tools of other packages, found by entry point."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from journeyman.tools import UnknownToolsError, doors, load_plugins, plugin_tools
from journeyman.tools import plugins as tool_plugins
from journeyman.tools.apis import bank


def test_the_built_in_domains_come_by_the_public_entry_point() -> None:
    assert plugin_tools("bank") == bank.TOOLS
    assert {"bank", "calendar", "orders", "python"} <= set(load_plugins())


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    source = "from journeyman.tools import tool\n@tool\ndef dig() -> str:\n    '''Dig.'''\n"
    (tmp_path / "acme_garden.py").write_text(f"{source}TOOLS = (dig,)\n")
    (tmp_path / "acme_nothing.py").write_text("TOOLS = 'dig'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"garden": "acme_garden", "broken": "acme_missing", "nothing": "acme_nothing"}
    points = [EntryPoint(name, value, tool_plugins.ENTRY_POINTS) for name, value in names.items()]
    monkeypatch.setattr(doors, "entry_points", lambda group: points)
    for cached in (load_plugins, doors.load_group):
        cached.cache_clear()
    yield
    for cached in (load_plugins, doors.load_group):
        cached.cache_clear()


def test_a_broken_plugin_takes_no_other_down(plugins: None) -> None:
    with pytest.warns(UserWarning, match="failed to load") as warned:
        found = load_plugins()
    assert {name: [t.name for t in tools] for name, tools in found.items()} == {"garden": ["dig"]}
    said = " ".join(str(warning.message) for warning in warned)
    assert "'broken' (acme_missing)" in said and "No module named" in said
    assert "'nothing' (acme_nothing)" in said and "TOOLS, a tuple of Tool, not 'dig'" in said


@pytest.mark.parametrize(
    ("name", "says"), [("bnak", "did you mean 'bank'?"), ("zzz", "there are: bank, ")]
)
def test_unknown_tools(name: str, says: str) -> None:
    with pytest.raises(UnknownToolsError) as error:
        plugin_tools(name)
    assert f"no tools {name!r}" in str(error.value) and says in str(error.value)
