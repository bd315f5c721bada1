"""Providers of evidence: simulated ones, and Gramine's pseudo-files as plain files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vaultline.attest.challenge import report_data
from vaultline.attest.grant import public_key_bytes
from vaultline.attest.granting import read_evidence
from vaultline.attest.pinned import AcceleratorKey
from vaultline.core.errors import InputError, MachineError, RemoteProtocolError
from vaultline.core.serde import canonical_json
from vaultline.enclave.evidence import answer, fresh_key, open_provider
from vaultline.enclave.gramine_quotes import GramineProvider
from vaultline.enclave.measurement import measure
from vaultline.enclave.pinned_quotes import PinnedProvider
from vaultline.enclave.simulated_quotes import SimulatedProvider
from vaultline.testing.attestation import MEASUREMENT, challenge, devroot
from vaultline.testing.intel_vectors import Vector


def test_an_answer_commits_to_challenge_and_key() -> None:
    key = fresh_key()
    evidence = answer(SimulatedProvider(devroot().platform, MEASUREMENT), challenge(), key)
    data = report_data(challenge(), public_key_bytes(key))
    assert evidence.kind == "simulated"
    assert evidence.public_key == public_key_bytes(key)
    assert evidence.quote[48 + 320 : 48 + 384] == data
    assert evidence.quote[48 + 64 : 48 + 96] == MEASUREMENT
    assert read_evidence(evidence.encode()) == evidence


def test_gramine_gets_the_report_data_and_gives_its_quote(tmp_path: Path) -> None:
    (tmp_path / "quote").write_bytes(b"a quote")
    provider = GramineProvider(tmp_path)
    evidence = answer(provider, challenge(), key := fresh_key())
    assert evidence.kind == "sgx"
    assert evidence.quote == b"a quote"
    written = (tmp_path / "user_report_data").read_bytes()
    assert written == report_data(challenge(), public_key_bytes(key))


@pytest.mark.parametrize("padding", [b"", bytes(4), bytes(4096)])
def test_zeros_after_gramine_s_quote_are_cut_off(tmp_path: Path, padding: bytes) -> None:
    """The quoting service may fill the buffer that it was given; no owner takes such a quote."""
    exact = Vector(version=3).quote()
    (tmp_path / "quote").write_bytes(exact + padding)
    assert GramineProvider(tmp_path).quote(bytes(64)) == exact
    (tmp_path / "quote").write_bytes(exact + padding + b"x")
    assert GramineProvider(tmp_path).quote(bytes(64)) == exact + padding + b"x"


def test_gramine_without_attestation_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        GramineProvider(tmp_path / "nowhere").quote(bytes(64))
    assert "remote_attestation" in caught.value.diagnostics()


def test_nothing_falls_back_to_another_provider(tmp_path: Path) -> None:
    platform, key = tmp_path / "platform", tmp_path / "key"
    platform.write_bytes(devroot().platform)
    key.write_bytes(canonical_json(AcceleratorKey(version=1, private_key=bytes(32))))
    assert isinstance(open_provider("gramine"), GramineProvider)
    assert isinstance(open_provider("simulated", str(platform)), SimulatedProvider)
    assert isinstance(open_provider("pinned", str(key)), PinnedProvider)
    for other, provider in ((platform, "pinned"), (key, "simulated")):
        with pytest.raises(InputError):
            open_provider(provider, str(other))  # type: ignore[arg-type]
        with pytest.raises(RemoteProtocolError, match="cannot read the platform file"):
            open_provider(provider, str(tmp_path / "nowhere"))  # type: ignore[arg-type]
    for name in ("simulated", "pinned", "sgx", "auto", ""):
        with pytest.raises(InputError):
            open_provider(name)  # type: ignore[arg-type]


def test_only_simulated_enclaves_measure_themselves(tmp_path: Path) -> None:
    """Hardware measures from outside: an enclave there does not have the code that would."""
    (tmp_path / "platform").write_bytes(devroot().platform)
    provider = open_provider("simulated", str(tmp_path / "platform"))
    assert provider.measurement == measure()
    for name in ("gramine", "tdx", "snp"):
        assert open_provider(name).measurement == b""  # type: ignore[arg-type]
    code = (
        "import sys, vaultline.enclave.__main__, vaultline.enclave.server\n"
        "from vaultline.enclave.evidence import open_provider\n"
        "for name in ('gramine', 'tdx', 'snp'): open_provider(name)\n"
        "print(*(name for name in sys.modules if name.startswith('vaultline.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "vaultline.enclave.tsm_quotes" in loaded.stdout, loaded.stderr
    assert "vaultline.enclave.measurement" not in loaded.stdout
    assert "simulated" not in loaded.stdout


def test_two_keys_are_never_the_same() -> None:
    assert public_key_bytes(fresh_key()) != public_key_bytes(fresh_key())
