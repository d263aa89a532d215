"""The recipe of the embedded pair, which is no part of the package: `benchmarks/factory`."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "factory"
if not FOLDER.is_dir():
    pytest.skip("no checkout beside the tests", allow_module_level=True)
sys.path.insert(0, str(FOLDER))
build, vocabulary, wiring = map(importlib.import_module, ("build", "vocabulary", "wiring"))
