"""Where a worker's evidence comes from; which provider is said explicitly, never guessed."""

from __future__ import annotations

from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from vaultline.attest.challenge import RECEIPTS_VERSION, Challenge, report_data
from vaultline.attest.evidence import Evidence, Kind
from vaultline.attest.grant import GrantKey, public_key_bytes
from vaultline.core.control import ProviderName
from vaultline.core.errors import InputError


class Provider(Protocol):
    """A source of quotes over 64 bytes of report data."""

    @property
    def kind(self) -> Kind:
        """Who vouches."""

    @property
    def measurement(self) -> bytes:
        """What the process measured of itself; empty where the processor does, or nobody."""

    def quote(self, data: bytes) -> bytes:
        """A quote over report data."""


def open_provider(name: ProviderName, platform_file: str | None = None) -> Provider:
    """The provider of this name; its module is loaded by workers that were started for it.

    Raises:
        InputError: no such provider, or one without its file; see also each provider.
    """
    if name == "gramine":
        from vaultline.enclave.gramine_quotes import GramineProvider

        return GramineProvider()
    if name == "tdx" or name == "snp":
        from vaultline.enclave.tsm_quotes import TsmProvider

        return TsmProvider(name)
    if name == "simulated" and platform_file is not None:
        from vaultline.enclave.simulated_quotes import open_simulated

        return open_simulated(platform_file)
    if name == "pinned" and platform_file is not None:
        from vaultline.enclave.pinned_quotes import open_pinned

        return open_pinned(platform_file)
    raise InputError(
        "no such provider of evidence, or no file",
        got=f"{name}, file: {platform_file is not None}",
        expected="gramine, tdx or snp; simulated or pinned with a file",
    )


def fresh_key() -> GrantKey:
    """A key for one grant."""
    return GrantKey(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())


def answer(provider: Provider, challenge: Challenge, key: GrantKey) -> Evidence:
    """Evidence that commits to this challenge and this key, and to the one that signs if asked."""
    public_key, signing_key = public_key_bytes(key), b""
    if challenge.version == RECEIPTS_VERSION:
        signing_key = key.ed25519.public_key().public_bytes_raw()
    quote = provider.quote(report_data(challenge, public_key + signing_key))
    kind = provider.kind
    return Evidence(kind=kind, public_key=public_key, quote=quote, signing_key=signing_key)
