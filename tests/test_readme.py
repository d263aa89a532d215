"""The README's example runs as it stands there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.skipif(not README.exists(), reason="the wheel's tests come without the README")
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(
        r"## Twenty lines\n\n```python\n(.*?)```", README.read_text(), re.DOTALL
    )
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert '{"account": "A' in printed and " ok" in printed
    assert "<|im_start|>assistant" in printed
