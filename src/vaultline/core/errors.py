"""One root error, split by whose fault it is; every one says what to do next."""

from __future__ import annotations


class VaultlineError(Exception):
    """Root of every error that Vaultline raises on purpose.

    Attributes:
        exit_code: what the command line exits with.
        got: what was found, where that can be said without showing a secret.
        expected: what would have been right.
        remedy: what to do next.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        got: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.got = got
        self.expected = expected
        self.remedy = remedy

    @property
    def code(self) -> str:
        """The stable name of this kind of failure, for logs and JSON output."""
        return type(self).__name__

    def diagnostics(self) -> str:
        """Several lines for a person: the message, got, expected, what to do."""
        parts = {"got": self.got, "expected": self.expected, "to fix": self.remedy}
        said = [f"  {label}: {text}" for label, text in parts.items() if text]
        return "\n".join([self.message, *said])


class InputError(VaultlineError):
    """The user's input is wrong: a file, a flag, a model, a cluster description."""

    exit_code = 2


class RefusedError(VaultlineError):
    """A check said no: evidence, a policy, a seal, a measurement."""

    exit_code = 1


class InfeasibleError(VaultlineError):
    """The problem is well formed and has no solution; the message names the constraint."""

    exit_code = 3


class PeerError(VaultlineError):
    """The other side of a connection misbehaved, vanished or timed out."""


class MachineError(VaultlineError):
    """This machine lacks something that is needed, or a process on it failed."""


class RemoteProtocolError(PeerError):
    """Bytes from a peer broke the protocol: the only error that peer bytes can raise."""


class LocalProtocolError(VaultlineError):
    """Our own code used the protocol wrongly: a bug of ours, never of the peer."""
