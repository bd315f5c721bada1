"""The files around `vaultline.attest.examine`: evidence, collateral, policies, and times."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from vaultline.attest.collateral import Item, items_of, items_of_certificates, pack
from vaultline.attest.evidence import QUOTE_BYTES_MAX
from vaultline.attest.examine import kind_of
from vaultline.attest.refusals import QuoteInvalid
from vaultline.core.errors import InputError
from vaultline.owner.appraisal import COLLATERAL_BYTES_MAX
from vaultline.owner.pccs import fetch_collateral

#: Raw evidence, or the same in hex with line ends.
_EVIDENCE_BYTES_MAX = 4 * QUOTE_BYTES_MAX
_HEX = frozenset(b"0123456789abcdefABCDEF")


def load_evidence(path: Path) -> bytes:
    """Read evidence: the bytes as the hardware gave them, or those in hex.

    Raises:
        InputError: missing, too long, or none of the kinds that are known.
    """
    data = _read(path, "the evidence", _EVIDENCE_BYTES_MAX)
    text = b"".join(data.split())
    if text and not len(text) % 2 and _HEX.issuperset(text):
        data = bytes.fromhex(text.decode("ascii"))
    try:
        kind_of(data)
    except QuoteInvalid as error:
        raise InputError(
            f"{path}: {error.message}",
            got=error.got,
            expected=error.expected,
            remedy="name the file with the quote or report as the platform gave it, or in hex; "
            "a signed result (JWT) goes with --verifier-key",
        ) from error
    return data


def load_collateral_file(path: Path | None) -> bytes:
    """Read a collateral file or bundle; none is empty.

    Raises:
        InputError: missing or too long.
    """
    return b"" if path is None else _read(path, "the collateral", COLLATERAL_BYTES_MAX)


def parse_time(text: str | None) -> int:
    """A stated time as Unix time: ISO 8601 (UTC unless it says otherwise) or seconds; else now.

    Raises:
        InputError: neither.
    """
    if text is None:
        return int(datetime.datetime.now(datetime.UTC).timestamp())
    try:
        if text.isascii() and text.isdecimal() and len(text) > 8:
            moment = datetime.datetime.fromtimestamp(int(text), datetime.UTC)
        else:
            moment = datetime.datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(
            "not a time",
            got=text,
            expected="such as 2026-06-01, 2026-06-01T12:00:00Z, or Unix seconds",
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    if moment.timestamp() < 0:
        raise InputError("not a time of any evidence", got=text, expected="1970 or later")
    return int(moment.timestamp())


def pack_files(paths: Sequence[Path], *, kind: str | None = None) -> list[Item]:
    """Collateral of files: JSON each by itself; all certificates and lists together.

    Args:
        paths: JSON collateral or bundles; PEM or DER certificates and lists.
        kind: ``snp`` or ``nvidia``: what the certificates are for.

    Raises:
        InputError: a file is none of these, or there are certificates and no kind.
    """
    items: list[Item] = []
    loose: list[bytes] = []
    for path in paths:
        data = _read(path, "the collateral", COLLATERAL_BYTES_MAX)
        if data.lstrip().startswith(b"{"):
            items += items_of(data)
        else:
            loose.append(data)
    if not loose:
        return items
    if kind == "snp":
        return [*items, *items_of_certificates("snp", loose)]
    if kind == "nvidia":
        return [*items, *items_of_certificates("nvidia", loose)]
    raise InputError(
        "certificates do not say what they are for",
        got=f"--kind {kind}" if kind else "no --kind",
        expected="--kind snp or --kind nvidia",
    )


def fetch_intel(url: str, quote: bytes) -> list[Item]:
    """Fetch a quote's collateral from a PCCS; see `pccs`.

    Raises:
        InputError: the quote is not Intel's, or what came is not collateral.
        MachineError: it cannot be had.
    """
    if kind_of(quote) not in ("sgx", "tdx"):
        raise InputError("a PCCS has collateral for SGX and TDX quotes only")

    return list(items_of(fetch_collateral(url, quote)))


def write_bundle(items: Sequence[Item], path: Path) -> None:
    """Write a bundle.

    Raises:
        InputError: there is nothing to write, or no such place.
    """
    data = pack(items)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError("cannot write the bundle", got=f"{path}: {error.strerror}") from error


def _read(path: Path, what: str, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(bytes_max + 1)
    except OSError as error:
        raise InputError(f"cannot read {what}", got=f"{path}: {error.strerror}") from error
    if len(data) > bytes_max:
        raise InputError(f"{what} is too long", got=str(path), expected=f"at most {bytes_max} B")
    return data
