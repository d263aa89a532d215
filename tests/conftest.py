import shutil
import sys

import pytest


@pytest.fixture(scope="session")
def bwrap() -> str:
    if sys.platform != "linux":
        pytest.skip("namespaces are Linux's")
    program = shutil.which("bwrap")
    # A skip would let CI go green with the walls untested.
    assert program is not None, "bubblewrap is missing: apt-get install bubblewrap"
    return program
