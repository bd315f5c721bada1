"""Evidence on the wire: well formed, or a protocol error."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.attest.evidence import (
    PUBLIC_KEY_BYTES,
    QUOTE_BYTES_MAX,
    Evidence,
)
from vaultline.attest.granting import EVIDENCE_BYTES_MAX, read_evidence
from vaultline.core.errors import RemoteProtocolError
from vaultline.core.serde import to_msgpack

KEY = b"k" * PUBLIC_KEY_BYTES


def test_decoding_gives_back_what_was_encoded() -> None:
    for kind in ("simulated", "sgx", "tdx", "snp"):
        evidence = Evidence(kind=kind, public_key=KEY, quote=b"q" * QUOTE_BYTES_MAX)
        assert read_evidence(evidence.encode()) == evidence


MALFORMED = {
    "a kind that does not exist": {"kind": "trustme", "public_key": KEY, "quote": b"q"},
    "a key that is too short": {"kind": "sgx", "public_key": KEY[1:], "quote": b"q"},
    "no quote": {"kind": "sgx", "public_key": KEY, "quote": b""},
    "a quote over the limit": {
        "kind": "sgx",
        "public_key": KEY,
        "quote": b"q" * (QUOTE_BYTES_MAX + 1),
    },
    "a field too many": {"kind": "sgx", "public_key": KEY, "quote": b"q", "extra": 1},
    "a field too few": {"kind": "sgx", "quote": b"q"},
    "text for bytes": {"kind": "sgx", "public_key": 5, "quote": b"q"},
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED.keys())
def test_evidence_is_refused_with(fields: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        read_evidence(to_msgpack(fields))


def test_evidence_over_the_limit_is_refused_before_parsing() -> None:
    with pytest.raises(RemoteProtocolError, match="too long"):
        read_evidence(b"\xc1" * (EVIDENCE_BYTES_MAX + 1))


@given(st.data())
@settings(derandomize=True, deadline=None)
def test_mutated_evidence_raises_only_protocol_errors(data: st.DataObject) -> None:
    encoded = bytearray(Evidence(kind="sgx", public_key=KEY, quote=b"quote").encode())
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(encoded)))
    try:
        evidence = read_evidence(bytes(encoded[:end]))
    except RemoteProtocolError:
        return
    assert msgspec.msgpack.decode(evidence.encode()) == msgspec.structs.asdict(evidence)
