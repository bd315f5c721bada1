"""Evidence of confidential VMs, from a fake of the kernel's report folders."""

from __future__ import annotations

import errno
import os

import pytest

from vaultline.attest.challenge import report_data
from vaultline.attest.evidence import QUOTE_BYTES_MAX
from vaultline.attest.grant import public_key_bytes
from vaultline.core.errors import InputError, MachineError
from vaultline.enclave.evidence import answer, fresh_key, open_provider
from vaultline.enclave.tsm_quotes import TsmProvider
from vaultline.testing.attestation import challenge
from vaultline.testing.intel_vectors import Vector
from vaultline.testing.tsm import FakeTsm, sign

DATA = bytes(range(64))


def quote(tsm: FakeTsm, kind: str = "tdx", data: bytes = DATA) -> bytes:
    return TsmProvider(kind, system=tsm).quote(data)  # type: ignore[arg-type]


def refusal(tsm: FakeTsm, kind: str = "tdx", data: bytes = DATA) -> str:
    """What is said; and whatever happens, nothing stays behind."""
    with pytest.raises(MachineError) as caught:
        quote(tsm, kind, data)
    assert (tsm.requests, tsm.open_files) == ({}, 0)
    return caught.value.diagnostics()


def failing(code: int) -> FakeTsm:
    def report(_: bytes) -> bytes:
        raise OSError(code, os.strerror(code))

    return FakeTsm(report=report)


def test_a_trust_domain_answers_with_its_report() -> None:
    tsm = FakeTsm()
    key = fresh_key()
    evidence = answer(TsmProvider("tdx", system=tsm), challenge(), key)
    assert evidence.kind == "tdx"
    assert evidence.quote == sign(report_data(challenge(), public_key_bytes(key)))
    assert (tsm.requests, tsm.open_files) == ({}, 0)


def test_an_snp_guest_adds_the_certificates_that_the_host_gave() -> None:
    for certificates in (b"", b"a table of certificates"):
        tsm = FakeTsm(provider="sev_guest", certificates=certificates)
        assert quote(tsm, "snp") == sign(DATA) + certificates


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("padding", [b"", bytes(1), bytes(4096)])
def test_zeros_after_a_trust_domain_s_quote_are_cut_off(version: int, padding: bytes) -> None:
    """Hosts fill the buffer that they were given; the owner takes no byte that nobody signed."""
    exact = Vector(version=version).quote()
    assert quote(FakeTsm(report=lambda _: exact + padding)) == exact


def test_anything_else_after_a_quote_is_left_for_the_owner_to_refuse() -> None:
    for odd in (b"\1", b"\0" * 8 + b"x"):
        report = Vector(version=4).quote() + odd
        assert quote(FakeTsm(report=lambda _, report=report: report)) == report  # type: ignore[misc]


def test_each_quote_is_a_request_of_its_own() -> None:
    made: list[str] = []
    tsm = FakeTsm(on_close=lambda tsm: made.extend(tsm.requests))
    for k in range(3):
        assert quote(tsm, data=bytes([k]) * 64) == sign(bytes([k]) * 64)
    assert len(set(made)) == len(made) == 3


@pytest.mark.parametrize(
    ("kind", "provider"), [("tdx", "sev_guest"), ("snp", "tdx_guest"), ("tdx", "arm_cca_guest")]
)
def test_another_kind_of_machine_is_refused_and_not_used_instead(kind: str, provider: str) -> None:
    tsm = FakeTsm(provider=provider)
    said = refusal(tsm, kind)
    assert provider in said
    assert "no other is tried" in said
    assert "open inblob" not in tsm.calls


def test_writes_of_another_process_are_noticed() -> None:
    def other(tsm: FakeTsm) -> None:
        for request in tsm.requests.values():
            tsm.put(request, b"x" * 64)

    assert "2 writes" in refusal(FakeTsm(on_close=other))


def test_another_write_between_report_and_certificates_is_noticed() -> None:
    tsm = FakeTsm(provider="sev_guest", certificates=b"")
    opened = tsm.open

    class Interrupted:
        mkdir, rmdir, read, write, close = tsm.mkdir, tsm.rmdir, tsm.read, tsm.write, tsm.close

        def open(self, path: str, flags: int) -> int:
            if path.endswith("auxblob"):
                tsm.put(next(iter(tsm.requests.values())), b"y" * 64)
            return opened(path, flags)

    with pytest.raises(MachineError, match="others wrote"):
        TsmProvider("snp", system=Interrupted()).quote(DATA)
    assert (tsm.requests, tsm.open_files) == ({}, 0)


def test_what_the_kernel_drops_without_a_word_is_noticed() -> None:
    """Without report data there is no report; one over old data must not pass either."""
    assert os.strerror(errno.EINVAL) in refusal(FakeTsm(advance=False))
    tsm = FakeTsm(advance=False)
    tsm.mkdir(f"{tsm.reports}/before")

    class OldData:
        rmdir, read, write, close, open = tsm.rmdir, tsm.read, tsm.write, tsm.close, tsm.open

        def mkdir(self, path: str, mode: int) -> None:
            tsm.mkdir(path, mode)
            tsm.put(tsm.requests[path.rpartition("/")[2]], b"z" * 64)

    with pytest.raises(MachineError, match="did not take") as caught:
        TsmProvider("tdx", system=OldData()).quote(DATA)
    assert "0 writes" in caught.value.diagnostics()


@pytest.mark.parametrize(
    "code", [errno.EBUSY, errno.EINVAL, errno.EACCES, errno.EIO, errno.ETIMEDOUT, errno.EFBIG]
)
def test_an_error_of_the_driver_says_what_to_do(code: int) -> None:
    said = refusal(failing(code))
    assert os.strerror(code) in said
    for word in ("busy", "root", "driver"):
        assert word in said


def test_busy_is_passing() -> None:
    tsm = failing(errno.EBUSY)
    refusal(tsm)
    tsm.report = sign
    assert quote(tsm) == sign(DATA)


@pytest.mark.parametrize("size", [63, 65])
def test_report_data_of_another_size_is_refused(size: int) -> None:
    refusal(FakeTsm(), data=bytes(size))


def test_without_a_driver_or_interface_nothing_is_tried() -> None:
    assert "driver" in refusal(FakeTsm(provider=None))
    assert "driver" in refusal(FakeTsm(reports="/elsewhere"))
    assert "driver" in refusal(FakeTsm(provider="sev_guest"), "snp")  # no auxblob


def test_a_report_without_end_is_cut_off_and_refused() -> None:
    tsm = FakeTsm(report=lambda _: bytes(3 * QUOTE_BYTES_MAX))
    with pytest.raises(InputError, match="too long"):
        answer(TsmProvider("tdx", system=tsm), challenge(), fresh_key())


def test_this_machine_says_that_it_is_none() -> None:
    for name in ("tdx", "snp"):
        provider = open_provider(name)
        assert provider.kind == name
        if not os.path.isdir("/sys/kernel/config/tsm/report"):  # noqa: PTH112
            with pytest.raises(MachineError):
                provider.quote(DATA)
