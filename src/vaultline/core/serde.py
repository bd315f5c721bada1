"""The only place where bytes become dataclasses (JSON and MessagePack); see also ``yaml``.

Structs are frozen, keyword-only and refuse unknown fields; ``__post_init__`` of each validates,
so that an invalid value cannot exist once decoding has returned.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from vaultline.core.errors import InputError, RemoteProtocolError

T = TypeVar("T")
#: Nesting beyond the interpreter's limit is no ``DecodeError`` of msgspec's.
_MALFORMED = (
    msgspec.ValidationError,
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
)


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record that is written to a file or a wire."""


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: keys sorted, no spaces, UTF-8."""
    return msgspec.json.encode(value, order="sorted")


def from_json(data: bytes, kind: type[T], *, what: str, remedy: str | None = None) -> T:
    """Decode a file's JSON; ``remedy`` says how to come by a valid one.

    Raises:
        InputError: not JSON, or not a valid ``kind``; the message carries the path in the text.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except _MALFORMED as error:
        raise InputError(f"{what} is not valid", got=str(error), remedy=remedy) from error


def to_msgpack(value: Any) -> bytes:
    """Encode for the wire or for a sealed section."""
    return msgspec.msgpack.encode(value)


def from_msgpack(data: bytes | memoryview, kind: type[T], *, what: str, bytes_max: int) -> T:
    """Decode a peer's MessagePack.

    Raises:
        RemoteProtocolError: too long, not MessagePack, or not a valid ``kind``.
    """
    if len(data) > bytes_max:
        raise RemoteProtocolError(
            f"{what} is too long", got=f"{len(data)} bytes", expected=f"at most {bytes_max}"
        )
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except _MALFORMED as error:
        raise RemoteProtocolError(f"{what} is malformed", got=str(error)) from error
    except InputError as error:
        raise RemoteProtocolError(f"{what} is malformed", got=error.message) from error
