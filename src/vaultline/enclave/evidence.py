"""Where a worker's evidence comes from; which provider is said explicitly, never guessed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal, Protocol

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from vaultline.attest.challenge import Challenge, report_data
from vaultline.attest.evidence import Evidence, Kind
from vaultline.attest.grant import GrantKey, public_key_bytes
from vaultline.attest.pinned import AcceleratorKey
from vaultline.core.errors import InputError, MachineError
from vaultline.core.serde import from_json

ProviderName = Literal["simulated", "gramine", "pinned"]
GRAMINE_ATTESTATION = Path("/dev/attestation")


class Provider(Protocol):
    """A source of quotes over 64 bytes of report data."""

    kind: Kind

    def quote(self, data: bytes, measurement: bytes) -> bytes:
        """A quote over report data, and over this measurement if nothing else measures."""


class PinnedProvider:
    """Signatures by the key that an owner pinned: who this is, and not what it does."""

    kind: Kind = "accelerator"

    def __init__(self, key: bytes) -> None:
        self._key = from_json(key, AcceleratorKey, what="the accelerator's key")

    def quote(self, data: bytes, measurement: bytes) -> bytes:
        """The key's signature over report data; nobody would believe a measurement."""
        return self._key.quote(data)


class GramineProvider:
    """Quotes from SGX hardware through Gramine's pseudo-files, whose state is per process.

    Args:
        directory: where Gramine shows them; another one only in tests.
    """

    kind: Kind = "sgx"

    def __init__(self, directory: Path = GRAMINE_ATTESTATION) -> None:
        self._directory = directory
        self._lock = threading.Lock()

    def quote(self, data: bytes, measurement: bytes) -> bytes:
        """A quote over report data; the processor measures, so ``measurement`` is not used.

        Raises:
            MachineError: the pseudo-files are missing, or the quoting service failed.
        """
        try:
            with self._lock:
                (self._directory / "user_report_data").write_bytes(data)
                return (self._directory / "quote").read_bytes()
        except OSError as error:
            raise MachineError(
                "Gramine gave no quote",
                got=str(error),
                remedy='set sgx.remote_attestation = "dcap" and start the AESM service',
            ) from error


def open_provider(name: ProviderName, platform: bytes | None = None) -> Provider:
    """The provider of this name.

    Raises:
        InputError: no such provider, or one without its file.
    """
    if name == "gramine":
        return GramineProvider()
    if name == "simulated" and platform is not None:
        from vaultline.enclave.simulated_quotes import SimulatedProvider

        return SimulatedProvider(platform)
    if name == "pinned" and platform is not None:
        return PinnedProvider(platform)
    got, expected = f"{name}, file: {platform is not None}", "gramine, simulated or pinned with one"
    raise InputError("no such provider of evidence, or no file", got=got, expected=expected)


def fresh_key() -> GrantKey:
    """A key for one grant."""
    return GrantKey(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())


def answer(provider: Provider, challenge: Challenge, key: GrantKey, measurement: bytes) -> Evidence:
    """Evidence that commits to this challenge and this key."""
    public_key = public_key_bytes(key)
    quote = provider.quote(report_data(challenge, public_key), measurement)
    return Evidence(kind=provider.kind, public_key=public_key, quote=quote)
