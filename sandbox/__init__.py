"""Runs untrusted code and reports what came of it. Knows nothing of the rest of journeyman."""

from journeyman.sandbox.base import (
    Backend,
    ExecResult,
    KilledReason,
    Limits,
    Sandbox,
    SandboxSnapshot,
    Session,
)
from journeyman.sandbox.errors import (
    InvalidBackendError,
    IsolationUnavailable,
    SandboxDied,
    SandboxError,
    UnknownBackendError,
    UnsafeSandboxWarning,
)
from journeyman.sandbox.registry import backend_names, resolve_backend

__all__ = [
    "Backend",
    "ExecResult",
    "InvalidBackendError",
    "IsolationUnavailable",
    "KilledReason",
    "Limits",
    "Sandbox",
    "SandboxDied",
    "SandboxError",
    "SandboxSnapshot",
    "Session",
    "UnknownBackendError",
    "UnsafeSandboxWarning",
    "backend_names",
    "resolve_backend",
]
