"""One tree: whoever catches the base catches all, and each is what Python calls such an error."""

import pickle

import pytest

from journeyman import tools
from journeyman.tools import errors
from journeyman.tools.python import ReplayError

KINDS = {
    errors.ToolError: RuntimeError,
    errors.ToolTimeout: TimeoutError,
    errors.ToolDefinitionError: TypeError,
    errors.ToolServerError: ConnectionError,
    errors.NoBranchError: NotImplementedError,
    errors.UnknownToolsError: KeyError,
    errors.UnknownParserError: KeyError,
    ReplayError: RuntimeError,
}


@pytest.mark.parametrize(("kind", "base"), KINDS.items(), ids=lambda kind: kind.__name__)
def test_each_error_is_of_the_floor(kind: type[Exception], base: type[Exception]) -> None:
    assert issubclass(kind, errors.ToolsError) and issubclass(kind, base)
    error = pickle.loads(pickle.dumps(kind("it's gone")))
    assert (type(error), str(error), str(kind())) == (kind, "it's gone", "")


def test_the_tree_is_whole() -> None:
    defined = {e for e in vars(errors).values() if isinstance(e, type)}
    assert defined | {ReplayError} == {errors.ToolsError, *KINDS}
    assert errors.__doc__ is not None
    assert all(kind.__name__ in errors.__doc__ for kind in KINDS)
    assert {e.__name__ for e in defined} <= set(tools.__all__)


def test_only_a_refusal_is_data_for_the_model() -> None:
    refusals = {kind for kind in KINDS if issubclass(kind, errors.ToolError)}
    assert refusals == {errors.ToolError, errors.ToolTimeout}
