"""``vaultline verify`` and what belongs to it: exit codes, messages, bundles, drafts, passports."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from vaultline.attest.policy import Policy
from vaultline.cli.main import main
from vaultline.core.errors import InputError
from vaultline.core.yaml import from_yaml
from vaultline.owner.devroot import make_devroot
from vaultline.owner.verification import parse_time
from vaultline.testing import attestation as simulated
from vaultline.testing.attestation import recorded
from vaultline.testing.certificates import ISSUED, crl
from vaultline.testing.intel_vectors import MRENCLAVE, Vector
from vaultline.testing.snp_vectors import LAUNCH_DIGEST, SnpVector

SGX, SNP = Vector(), SnpVector()
AT = (ISSUED + datetime.timedelta(days=1)).isoformat()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Evidence, collateral and a policy that accepts both kinds."""
    (tmp_path / "quote.bin").write_bytes(SGX.quote())
    (tmp_path / "report.hex").write_text(SNP.report().hex() + "\n")
    (tmp_path / "sgx.json").write_bytes(SGX.collateral())
    (tmp_path / "snp.json").write_bytes(SNP.collateral())
    (tmp_path / "policy.yaml").write_text(f"""
version: 1
accept:
  - kind: sgx
    roots: ["{SGX.root_id}"]
    measurements: ["{MRENCLAVE.hex()}"]
  - kind: snp
    roots: ["{SNP.root_id}"]
    guests: [{{launch_digest: "{LAUNCH_DIGEST.hex()}"}}]
""")
    return tmp_path


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    assert run("collateral", "pack", "sgx.json", "snp.json", "--out", "bundle.json")[0] == 0
    return run


GOOD = ("--collateral", "bundle.json", "--policy", "policy.yaml", "--at", AT)


def test_genuine_evidence_is_accepted(call: Any) -> None:
    code, out, _ = call("verify", "quote.bin", "report.hex", *GOOD)
    assert code == 0
    assert out.count("genuine and accepted") == 2
    assert "not checked: what it commits to" in out


def test_a_refusal_says_what_why_and_the_fix(call: Any, folder: Path) -> None:
    (folder / "quote.bin").write_bytes(SGX.with_(mrenclave=bytes(32)).quote())
    code, out, _ = call("verify", "quote.bin", *GOOD)
    assert code == 1
    for words in ("MeasurementRefused", "what: ", "why: ", "to fix: ", MRENCLAVE.hex()):
        assert words in out


def test_what_passes_with_a_warning_says_why(call: Any, folder: Path) -> None:
    (folder / "old.json").write_bytes(SGX.with_(tcb_status="OutOfDate").collateral())
    policy = (folder / "policy.yaml").read_text()
    lenient = policy.replace("    measurements", "    tcb_statuses: [OutOfDate]\n    measurements")
    (folder / "lenient.yaml").write_text(lenient)
    given = ("--collateral", "old.json", "--policy", "lenient.yaml", "--at", AT)
    code, out, _ = call("verify", "quote.bin", *given)
    assert (code, "warning: tcb status OutOfDate" in out) == (0, True)


def test_the_result_as_json(call: Any) -> None:
    data = bytes(range(64)).hex()
    code, out, _ = call("verify", "quote.bin", *GOOD, "--report-data", data, "--json")
    submodule = json.loads(out)["submods"]["quote"]
    assert (code, submodule["ear.status"], submodule["vaultline.fresh"]) == (0, "affirming", True)
    code, out, _ = call("verify", "quote.bin", *GOOD, "--report-data", "00", "--json")
    submodule = json.loads(out)["submods"]["quote"]
    assert (code, submodule["vaultline.reasons"][0]["code"]) == (1, "ReportDataMismatch")


def test_stale_collateral_is_refused_by_name(call: Any) -> None:
    for at in ("2026-05-01", "2030-01-01T00:00:00Z", "1900000000"):
        code, out, _ = call("verify", "quote.bin", *GOOD[:-1], at)
        assert code == 1
        assert "CollateralExpired" in out
        assert "or --at" in out
        assert "UnixTime" not in out
    assert "2030-03-17T17:46:40Z" in out, "moments are dates"


PASSPORT = ("--policy", "policy.yaml", "--verifier-key", "policy.yaml")
BAD_INPUT: dict[str, tuple[str, ...]] = {
    "no such evidence": ("verify", "none.bin", *GOOD),
    "evidence that is none": ("verify", "policy.yaml", *GOOD),
    "no such policy": ("verify", "quote.bin", "--policy", "none.yaml"),
    "no policy": ("verify", "quote.bin"),
    "no collateral": ("verify", "quote.bin", "--policy", "policy.yaml"),
    "a time that is none": ("verify", "quote.bin", *GOOD[:-1], "yesterday"),
    "report data that is not hex": ("verify", "quote.bin", *GOOD, "--report-data", "x"),
    "a key that is none": ("verify", "quote.bin", *GOOD, "--sign", "policy.yaml"),
    "report data that is empty": ("verify", "quote.bin", *GOOD, "--report-data", " "),
    "a nonce that is empty": ("verify", "quote.bin", *GOOD, "--nonce", ""),
    "a nonce that is no text": ("verify", "quote.bin", *GOOD, "--nonce", "\udcff"),
    "a warning accepted of no passport": ("verify", "quote.bin", *GOOD, "--allow-warning"),
    "several passports": ("verify", "a", "b", *PASSPORT),
    "a passport with collateral": ("verify", "a", *PASSPORT, "--collateral", "bundle.json"),
    "a passport with report data": ("verify", "a", *PASSPORT, "--report-data", "00"),
    "a passport to be signed": ("verify", "a", *PASSPORT, "--sign", "policy.yaml"),
    "a passport of simulations": ("verify", "a", *PASSPORT, "--allow-simulated"),
    "an endless key": ("verify", "a", *PASSPORT[:-1], "/dev/zero"),
    "an endless policy": ("verify", "quote.bin", "--policy", "/dev/zero"),
    "a time before evidence": ("verify", "quote.bin", *GOOD[:-1], "1969-12-31"),
    "a time after the last year": ("verify", "quote.bin", *GOOD[:-1], "18446744073709551616"),
    "a time before the first year": ("verify", "quote.bin", *GOOD[:-1], "0001-01-01T00:00+23:59"),
    "certificates of no kind": ("collateral", "pack", "quote.bin", "--out", "x"),
    "certificates that are none": (
        *("collateral", "pack", "quote.bin", "--kind", "snp", "--out", "x"),
    ),
    "nothing to pack": ("collateral", "pack", "--out", "x"),
    "an address without quotes": ("collateral", "pack", "--pccs", "http://[::1]:9", "--out", "x"),
    "a bundle to nowhere": ("collateral", "pack", "sgx.json", "--out", "none/x"),
}


@pytest.mark.parametrize("arguments", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_told_apart(call: Any, arguments: tuple[str, ...]) -> None:
    code, _, err = call(*arguments)
    assert code == 2
    assert err


def test_names_that_are_no_text_are_spelt_out(call: Any, folder: Path) -> None:
    (folder / "a\udcff\x1b[2J.bin").write_bytes(SGX.quote())
    code, out, _ = call("verify", "a\udcff\x1b[2J.bin", *GOOD, "--json")
    assert (code, list(json.loads(out)["submods"])) == (0, ["a\\udcff\\x1b[2J"])
    code, out, _ = call("verify", "a\udcff\x1b[2J.bin", *GOOD)
    assert (code, out.startswith("a\\udcff\\x1b[2J (sgx): ")) == (0, True)
    code, out, _ = call("verify", "none\udcff", *GOOD, "--json")
    assert (code, "none\\udcff" in json.loads(out)["error"]["got"]) == (2, True)


def test_no_file_hides_another_of_a_name_that_reads_alike(call: Any, folder: Path) -> None:
    (folder / "a\udcff.bin").write_bytes(b"not evidence")
    (folder / "a\\udcff.bin").write_bytes(SGX.quote())
    code, _, err = call("verify", "a\udcff.bin", "a\\udcff.bin", *GOOD)
    assert (code, "read alike" in err) == (2, True)


def test_a_policy_is_drafted_for_known_vendors_alone(call: Any) -> None:
    code, _, err = call("policy", "from", "quote.bin", "--collateral", "bundle.json", "--at", AT)
    assert (code, "no known vendor's" in err) == (1, True)


def test_a_pccs_that_is_not_there_is_the_machines_fault(call: Any) -> None:
    arguments = ("--pccs", "http://127.0.0.1:9", "--quote", "quote.bin", "--out", "x")
    code, _, err = call("collateral", "pack", *arguments)
    assert code == 4
    assert "cannot be fetched" in err


def test_certificates_and_lists_are_packed(call: Any, folder: Path) -> None:
    chain = [SNP.authority(name).certificate() for name in ("leaf", "ask", "ark")]
    (folder / "vcek.der").write_bytes(chain[0].public_bytes(Encoding.DER))
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain[1:])
    (folder / "ask_ark.pem").write_bytes(pem)
    (folder / "crl.der").write_bytes(crl(SNP.authority("ark")))
    files = ("vcek.der", "ask_ark.pem", "crl.der")
    assert call("collateral", "pack", *files, "--kind", "snp", "--out", "own.json")[0] == 0
    assert call("verify", "report.hex", "--collateral", "own.json", *GOOD[2:])[0] == 0


def test_a_simulated_enclave_needs_consent(call: Any, folder: Path) -> None:
    (folder / "sim.bin").write_bytes(simulated.evidence().quote)
    (folder / "sim.json").write_bytes(simulated.devroot().collateral)
    common = ("sim.bin", "--collateral", "sim.json", "--at", str(simulated.NOW_S))
    code, out, _ = call("policy", "from", *common)
    assert code == 0
    (folder / "sim.yaml").write_text(out)
    assert call("verify", *common, "--policy", "sim.yaml")[0] == 1
    code, out, _ = call("verify", *common, "--policy", "sim.yaml", "--allow-simulated")
    assert code == 0
    assert "SIMULATED" in out


def test_a_passport_from_issue_to_use(call: Any, folder: Path) -> None:
    made = make_devroot(datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1))
    (folder / "sim.bin").write_bytes(simulated.evidence(root=made).quote)
    (folder / "sim.json").write_bytes(made.collateral)
    common = ("sim.bin", "--collateral", "sim.json")
    (folder / "sim.yaml").write_text(call("policy", "from", *common)[1])
    assert call("policy", "verifier", "--out", "keys")[0] == 0
    _, out, _ = call("verify", *common, "--policy", "sim.yaml", "--allow-simulated", "--json")
    data = json.loads(out)["submods"]["sim"]["vaultline.claims"]["report_data"]
    issue = ("--allow-simulated", "--report-data", data, "--sign", "keys/verifier.jwk")
    code, token, _ = call("verify", *common, "--policy", "sim.yaml", *issue, "--nonce", "n")
    assert code == 0
    (folder / "result.jwt").write_text(token)
    check = ("verify", "result.jwt", "--verifier-key", "keys/verifier.pub.jwk", "--nonce", "n")
    code, out, _ = call(*check, "--policy", "sim.yaml", "--allow-warning")
    assert (code, "sim: warning" in out) == (0, True)
    unsafe = (folder / "sim.yaml").read_text() + "    unsafe_any_advisory: true\n"
    (folder / "unsafe.yaml").write_text(unsafe)
    _, token, _ = call("verify", *common, "--policy", "unsafe.yaml", *issue)
    (folder / "unsafe.jwt").write_text(token)
    unsafe_check = ("verify", "unsafe.jwt", *check[2:4], "--policy", "unsafe.yaml")
    code, out, _ = call(*unsafe_check, "--allow-warning")
    assert (code, "unsafe_any_advisory" in out) == (0, True)
    code, _, err = call(*check, "--policy", "sim.yaml")
    assert (code, "does not affirm" in err) == (1, True)
    code, _, err = call(*check, "--policy", "policy.yaml", "--allow-warning")
    assert (code, "judged by another policy" in err) == (1, True)
    code, _, err = call(*check, "--policy", "sim.yaml", "--allow-warning", "--at", "2040-01-01")
    assert (code, "not valid at this time" in err) == (1, True)
    assert "2040-01-01T00:00:00Z" in err
    code, _, err = call("verify", "result.jwt", "--policy", "sim.yaml")
    assert (code, "--verifier-key" in err) == (2, True)


def test_no_result_is_signed_that_has_ended_before(call: Any) -> None:
    assert call("policy", "verifier", "--out", "keys")[0] == 0
    sign = ("--report-data", bytes(range(64)).hex(), "--sign", "keys/verifier.jwk")
    past = ("--at", "2001-01-01")
    code, out, err = call("verify", "quote.bin", *GOOD[:-2], *past, *sign)
    assert (code, out) == (2, "")
    assert "ends before it is issued" in err


def load(name: str) -> bytes:
    data = recorded(name, Path(__file__))
    if data is None:
        pytest.skip("shared/data/attestation is not here")
    return data


#: Evidence, its collateral, a time within its validity, the verdict by the policy drafted from it.
RECORDED: dict[str, tuple[tuple[str, ...], tuple[str, ...], str, list[str]]] = {
    "sgx": (
        ("sgx_quote_v3.bin",),
        ("sgx_quote_v3.collateral.json",),
        "2025-07-01",
        ["TcbRefused", "AdvisoryRefused"],
    ),
    "tdx, outdated": (
        ("tdx_quote_v5_outdated.bin",),
        ("tdx_quote_v5_outdated.collateral.json",),
        "2026-03-01",
        ["TcbRefused", "AdvisoryRefused"],
    ),
    "tdx": (("tdx_quote_v4.bin",), ("tdx_quote_v4.collateral.json",), "2025-07-01", []),
    "snp": (
        ("snp_milan_report.bin",),
        ("snp_milan_vcek.der", "snp_milan_ask_ark.pem"),
        "2025-07-01",
        ["DebugRefused", "RevocationUnknown"],
    ),
    "nvidia": (
        ("nvidia_hopper_report.txt",),
        ("nvidia_hopper_chain.txt",),
        "2025-07-01",
        ["RevocationUnknown"],
    ),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_recorded_evidence_by_the_policy_drafted_from_it(
    call: Any, folder: Path, kind: str
) -> None:
    (name,), files, at, expected = RECORDED[kind]
    data = load(name)
    (folder / "evidence").write_bytes(data[:4936] if kind == "tdx" else data)
    for file in files:
        (folder / file).write_bytes(load(file))
    pack = ("--kind", kind) if kind in ("snp", "nvidia") else ()
    assert call("collateral", "pack", *files, *pack, "--out", "own.json")[0] == 0
    common = ("evidence", "--collateral", "own.json", "--at", at)
    code, text, _ = call("policy", "from", *common)
    assert code == 0
    (folder / "drafted.yaml").write_text(text)
    code, out, _ = call("verify", *common, "--policy", "drafted.yaml", "--json")
    reasons = json.loads(out)["submods"]["evidence"]["vaultline.reasons"]
    assert (code, [said["code"] for said in reasons]) == (1 if expected else 0, expected)

    # The comments say what would accept it; grace for an unlisted platform has no default.
    accepting = text.replace("    # tcb", "    tcb").replace("    # unsafe", "    unsafe")
    accepting = accepting.replace("    # accepted", "    accepted").replace(
        "days: ...", "days: 3000"
    )
    (folder / "accepting.yaml").write_text(accepting)
    from_yaml(accepting, Policy, what="the policy", path="p")
    code, out, _ = call("verify", *common, "--policy", "accepting.yaml")
    assert (code, "accepted" in out) == (0, True)


TIMES = {
    "2026-06-01": 1_780_272_000,
    "2026-06-01T02:00:00+02:00": 1_780_272_000,
    "2026-06-01T00:00:00Z": 1_780_272_000,
    "1780272000": 1_780_272_000,
}


@pytest.mark.parametrize("text, expected", TIMES.items())
def test_times(text: str, expected: int) -> None:
    assert parse_time(text) == expected


def test_a_time_that_is_none() -> None:
    with pytest.raises(InputError, match="not a time"):
        parse_time("12:00")


def test_the_time_of_a_verification_is_measured(call: Any) -> None:
    code, out, _ = call("bench", "verify", "quote.bin", *GOOD, "--rounds", "3", "--json")
    timing = json.loads(out)["timings"]["quote"]
    assert code == 0
    assert timing["accepted"]
    assert timing["median_ms"] > 0
