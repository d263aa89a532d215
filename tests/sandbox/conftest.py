from collections.abc import Iterator

import pytest

from journeyman.sandbox import Sandbox, Session


@pytest.fixture
def session(bwrap: str) -> Iterator[Session]:
    with Sandbox().session() as live:
        yield live
