"""What can go wrong with a sandbox, as opposed to what can go wrong inside one.

SandboxError
├── IsolationUnavailable (RuntimeError)      this machine cannot isolate code now
├── SandboxDied          (ChildProcessError) the session is over
├── UnknownBackendError  (ValueError)        no backend of that name
└── InvalidBackendError  (TypeError)         what a package offers as a backend is none
UnsafeSandboxWarning     (UserWarning)       a backend that isolates nothing is in use
"""


class SandboxError(Exception):
    """Base of every error that `journeyman.sandbox` raises on its own account."""


class IsolationUnavailable(SandboxError, RuntimeError):
    """This machine cannot isolate code now, so nothing was run.

    Attributes:
        missing: What was looked for and not found, or what did not hold.
        mend: What a person can do about it.
    """

    def __init__(self, missing: str, mend: str) -> None:
        super().__init__(f"cannot isolate untrusted code: {missing}. To mend it: {mend}.")
        self.missing = missing
        self.mend = mend


class SandboxDied(SandboxError, ChildProcessError):
    """The session is over: it was closed, killed for a limit, or its own code ended it."""


class UnknownBackendError(SandboxError, ValueError):
    """No backend of that name; the message suggests the nearest and names all there are."""


class InvalidBackendError(SandboxError, TypeError):
    """What a package offers as a backend cannot be imported, or lacks a method."""


class UnsafeSandboxWarning(UserWarning):
    """A backend that isolates nothing is in use."""
