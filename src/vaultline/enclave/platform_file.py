"""The file of a provider that has no processor's secrets: simulated enclaves, accelerators."""

from __future__ import annotations

from pathlib import Path

from vaultline.core.errors import RemoteProtocolError


def read_platform(path: str) -> bytes:
    """The secrets that make evidence where no processor does.

    Raises:
        RemoteProtocolError: the host named a file that can't be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RemoteProtocolError("cannot read the platform file", got=str(error)) from error
