"""Runs untrusted code and reports what came of it. Knows nothing of the rest of journeyman."""

from journeyman.sandbox.aio import AsyncSession
from journeyman.sandbox.base import (
    Backend,
    ExecResult,
    KilledReason,
    Limits,
    Sandbox,
    Session,
    Snapshot,
    resolve_backend,
)
from journeyman.sandbox.errors import (
    IsolationUnavailable,
    SandboxDied,
    SandboxError,
    UnsafeSandboxWarning,
)
from journeyman.sandbox.pool import Pool

__all__ = [
    "AsyncSession",
    "Backend",
    "ExecResult",
    "IsolationUnavailable",
    "KilledReason",
    "Limits",
    "Pool",
    "Sandbox",
    "SandboxDied",
    "SandboxError",
    "Session",
    "Snapshot",
    "UnsafeSandboxWarning",
    "resolve_backend",
]
