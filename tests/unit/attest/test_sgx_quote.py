"""Quotes that we build, read back by dcap-qvl's parser; limits of what can be built."""

from __future__ import annotations

import dcap_qvl
import pytest

from vaultline.attest.intel import check_length
from vaultline.attest.sgx_quote import (
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_INIT,
    BODY_BYTES,
    Platform,
    build_quote,
    report_body,
)
from vaultline.core.errors import InputError
from vaultline.core.serde import from_json
from vaultline.testing.attestation import devroot

PLATFORM = from_json(devroot().platform, Platform, what="the platform")


def test_the_fields_of_a_quote_are_where_the_format_has_them() -> None:
    body = report_body(
        measurement=b"m" * 32,
        report_data=b"r" * 64,
        signer=b"s" * 32,
        attributes=ATTRIBUTE_INIT | ATTRIBUTE_DEBUG,
    )
    quote = build_quote(PLATFORM, body)
    check_length(quote)
    parsed = dcap_qvl.parse_quote(quote)
    assert len(body) == BODY_BYTES == 384
    assert (parsed.header.version, parsed.header.attestation_key_type) == (3, 2)
    assert parsed.is_sgx()
    assert parsed.report.mr_enclave == b"m" * 32
    assert parsed.report.mr_signer == b"s" * 32
    assert parsed.report.report_data == b"r" * 64
    assert parsed.report.attributes[0] == 3
    assert parsed.fmspc() == "DEF000000000"
    assert parsed.cert_chain_pem_bytes() == PLATFORM.pck_chain.encode()


def test_report_data_is_filled_with_zeros() -> None:
    assert report_body(measurement=bytes(32), report_data=b"ab")[-64:] == b"ab" + bytes(62)


def test_a_platform_hides_its_keys() -> None:
    assert repr(PLATFORM) == str(PLATFORM) == "Platform(keys hidden)"


TOO_LONG = {
    "a measurement of 33 bytes": {"measurement": bytes(33), "report_data": b""},
    "a signer of 31 bytes": {"measurement": bytes(32), "report_data": b"", "signer": bytes(31)},
    "report data of 65 bytes": {"measurement": bytes(32), "report_data": bytes(65)},
}


@pytest.mark.parametrize("fields", TOO_LONG.values(), ids=TOO_LONG.keys())
def test_no_report_has(fields: dict[str, bytes]) -> None:
    with pytest.raises(InputError):
        report_body(**fields)


def test_a_damaged_platform_file_is_refused() -> None:
    damaged = devroot().platform.replace(b'"version":1', b'"version":2')
    with pytest.raises(InputError):
        from_json(damaged, Platform, what="the platform")
