"""Workers of each kind of hardware, started by `run` in the way that each takes, on fake hardware.

The processor and its firmware are replaced (`testing.hardware`); launcher, worker, evidence and
verification are the real ones, and the evidence is genuine under the vectors' own root.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaultline.attest.challenge import Challenge
from vaultline.attest.collateral import items_of, pack
from vaultline.attest.evidence import Evidence
from vaultline.cli import main as cli
from vaultline.core.cluster_file import parse_cluster
from vaultline.core.control import ReadyLine, WorkerConfig, WorkerLine
from vaultline.core.serde import from_json
from vaultline.host.remote import connect_worker
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.keyfile import load_kek
from vaultline.owner.prepare import prepare
from vaultline.owner.starting import transport_for
from vaultline.serve.cluster import servers_of
from vaultline.serve.gateway import Gateway
from vaultline.serve.prepared import load_prepared
from vaultline.testing import hardware
from vaultline.testing.certificates import NOW_S
from vaultline.testing.intel_vectors import MRENCLAVE, MRTD, RTMR1, RTMR2, Vector
from vaultline.testing.snp_vectors import LAUNCH_DIGEST, SnpVector

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
SGX, TDX, SNP = Vector(version=3), Vector(version=4), SnpVector()
SIGN = {
    "sgx": lambda data: SGX.with_(report_data=data).quote(),
    "tdx": lambda data: TDX.with_(report_data=data).quote(),
    "snp": lambda data: SNP.with_(report_data=data).report(),
}
ACCEPT = {
    "sgx": {"roots": [SGX.root_id], "measurements": [MRENCLAVE.hex()]},
    "tdx": {
        "roots": [TDX.root_id],
        "trust_domains": [{"mrtd": MRTD.hex(), "rtmr1": RTMR1.hex(), "rtmr2": RTMR2.hex()}],
    },
    "snp": {
        "roots": [SNP.root_id],
        "guests": [{"launch_digest": LAUNCH_DIGEST.hex(), "svn_min": 1}],
    },
}
CLUSTER = """
owner: box
hosts:
  - {{name: box, cores: 2, memory: 8GiB, gramine: {gramine}}}
  - {{name: td, cores: 1, memory: 8GiB, address: 127.0.0.1, launch: "{tdx}", vaults: {vaults}}}
  - {{name: guest, cores: 1, memory: 8GiB, address: 127.0.0.1, launch: "{snp}", vaults: {vaults}}}
devices:
  - {{name: enclave, host: box, kind: sgx, trust: attested, memory: 93MiB, speed_class: simulated}}
  - {{name: domain, host: td, kind: tdx, trust: attested, memory: 93MiB, speed_class: simulated}}
  - {{name: vm, host: guest, kind: snp, trust: attested, memory: 93MiB, speed_class: simulated}}
links:
  - {{source: box, target: td, bandwidth: 10Gbit/s}}
  - {{source: box, target: guest, bandwidth: 10Gbit/s}}
  - {{source: td, target: guest, bandwidth: 10Gbit/s}}
"""

appraise_now = Appraiser.appraise_now


def verb(*arguments: str | Path) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


@dataclass(frozen=True)
class Machines:
    """A sealed plan over three kinds of hardware, and what each of them has signed."""

    folder: Path
    services: Mapping[str, hardware.QuotingService]

    def policy(self, **changes: dict[str, Any]) -> Path:
        entries = [{"kind": kind} | ACCEPT[kind] | changes.get(kind, {}) for kind in ACCEPT]
        kept = [entry for entry in entries if not entry.pop("left_out", False)]
        path = self.folder / "policy.yaml"
        path.write_text(json.dumps({"version": 1, "accept": kept}))
        return path

    def run(self, policy: Path, *more: str) -> int:
        return cli.main(
            [
                *("run", "--plan", str(self.folder / "plan.json"), "--policy", str(policy)),
                *("--vault", str(self.folder / "vaults" / "model.vault")),
                *("--key", str(self.folder / "owner.key"), "--kek", str(self.folder / "kek.jwk")),
                *("--collateral", str(self.folder / "collateral.json"), "--limit", "20"),
                *("--cluster", str(self.folder / "cluster.yaml")),
                *("--source", str(DIGITS / "digits.mp4"), "--sink", str(self.sink)),
                *("--preprocess", str(DIGITS / "digits.preprocess.yaml"), *more),
            ]
        )

    @property
    def sink(self) -> Path:
        return self.folder / "results.jsonl"


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("hardware")
    vaults, gramine, libraries = (folder / name for name in ("vaults", "worker", "libraries"))
    vaults.mkdir()
    (libraries / "runtime" / "glibc").mkdir(parents=True)
    (libraries / "libsysdb.so").write_bytes(b"library OS")
    verb("deploy", "gramine", "--out", gramine, "--vaults", vaults, "--gramine", libraries)
    hardware.sign_manifest(gramine)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        services = {}
        for kind, sign in SIGN.items():
            services[kind] = hardware.QuotingService(folder / f"{kind}.socket", sign)
            stack.callback(services[kind].close)
        hardware.write_gramine(folder / "bin", services["sgx"].path)
        at = {
            kind: stack.enter_context(hardware.confidential_vm(kind, services[kind].path))
            for kind in ("tdx", "snp")
        }
        patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        patch.setattr(Appraiser, "appraise_now", at_the_vectors_time)
        cluster = folder / "cluster.yaml"
        cluster.write_text(CLUSTER.format(gramine=gramine, vaults=vaults, **at))
        items = [item for each in (SGX, TDX, SNP) for item in items_of(each.collateral())]
        (folder / "collateral.json").write_bytes(pack(items))
        profile, plan = folder / "profile.json", folder / "plan.json"
        verb("profile", DIGITS / "digits.onnx", "-o", profile, "--repeats", "3")
        verb("plan", profile, "--cluster", cluster, "-o", plan, "--stages", "3")
        verb(
            *("seal", DIGITS / "digits.onnx", "--plan", plan, "-o", vaults / "model.vault"),
            *("--key", folder / "owner.key", "--kek", folder / "kek.jwk"),
        )
        yield Machines(folder, services)


def at_the_vectors_time(self: Appraiser, evidence: Evidence, challenge: Challenge) -> object:
    """As `appraise_now`, while the synthetic certificates are valid."""
    simulated = evidence.kind == "simulated"
    return (
        appraise_now(self, evidence, challenge)
        if simulated
        else self.appraise(evidence, challenge, NOW_S)
    )


def test_frames_flow_through_sgx_tdx_and_snp_workers(
    machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    signed = {kind: service.signed for kind, service in machines.services.items()}
    assert machines.run(machines.policy(), "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["frames_in"], summary["frames_out"]) == (20, 20)
    assert summary["enclave"] == "sgx,snp,tdx"
    assert summary["attested"] == (
        "SGX quote; SEV-SNP report of the whole VM; TDX quote of the whole VM"
    )
    now = {kind: service.signed for kind, service in machines.services.items()}
    assert now == {kind: count + 1 for kind, count in signed.items()}
    steps = {step.partition(": ")[2] for worker in summary["hardening"] for step in worker}
    assert {"skipped", "done"} <= steps
    assert len(machines.sink.read_text().splitlines()) == 20


def changed(machines: Machines, tmp_path: Path, *pairs: tuple[str, str]) -> str:
    text = (machines.folder / "cluster.yaml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return str(path)


def launched_at(machines: Machines, host: str) -> str:
    text = (machines.folder / "cluster.yaml").read_text()
    return text.split(f"name: {host},")[1].split('launch: "')[1].split('"')[0]


def refusal(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The error that ``--json`` prints."""
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["error"]
    return found


@pytest.mark.parametrize("kind", ["sgx", "tdx", "snp"])
def test_a_policy_that_leaves_a_kind_out_stops_the_run_before_any_frame(
    machines: Machines, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    machines.sink.unlink(missing_ok=True)
    policy = machines.policy(**{kind: {"left_out": True}})
    assert machines.run(policy, "--json") == 1
    found = refusal(capsys)
    assert found["code"] == "KindRefused"
    assert kind in found["got"]
    assert not machines.sink.exists() or not machines.sink.read_bytes()


OTHER = {
    "another enclave": ("sgx", {"measurements": ["00" * 32]}, "MeasurementRefused"),
    "Intel's own root": ("tdx", {"roots": ["intel"]}, "RootRefused"),
    "another guest": (
        "snp",
        {"guests": [{"launch_digest": "00" * 48, "svn_min": 1}]},
        "MeasurementRefused",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_genuine_evidence_of_what_the_owner_did_not_ask_for_is_refused(
    machines: Machines, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    kind, change, code = OTHER[case]
    assert machines.run(machines.policy(**{kind: change}), "--json") == 1
    assert refusal(capsys)["code"] == code


def test_an_enclave_that_can_be_debugged_is_refused(
    machines: Machines, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    debug = SGX.with_(attributes=0x7)
    service = machines.services["sgx"]
    monkeypatch.setattr(service, "_sign", lambda data: debug.with_(report_data=data).quote())
    assert machines.run(machines.policy(), "--json") == 1
    assert refusal(capsys)["code"] == "DebugRefused"


def test_a_quote_over_other_report_data_is_refused(
    machines: Machines, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = SGX.with_(report_data=bytes(64)).quote()
    monkeypatch.setattr(machines.services["sgx"], "_sign", lambda _: stale)
    assert machines.run(machines.policy(), "--json") == 1
    assert refusal(capsys)["code"] == "ReportDataMismatch"


def test_a_vm_of_another_kind_says_so_and_no_other_evidence_is_tried(
    machines: Machines, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    at = launched_at(machines, "guest")
    with hardware.confidential_vm("tdx", machines.services["tdx"].path) as wrong:
        cluster = changed(machines, tmp_path, (at, wrong))
        code = machines.run(machines.policy(), "--json", "--cluster", cluster)
    assert code == 1
    assert "of another kind than the worker's; no other is tried" in refusal(capsys)["message"]


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_a_launcher_cannot_talk_a_vm_s_worker_out_of_hardening_itself(
    kind: str, tmp_path: Path
) -> None:
    """No enclave stands around this process, whatever its configuration says."""
    vault = tmp_path / "model.vault"
    vault.write_bytes(b"no vault")
    config = WorkerConfig(
        name="w",
        platform="gramine",
        provider=kind,  # type: ignore[arg-type]
        platform_file=None,
        vault=str(vault),
        control="tcp:127.0.0.1:0",
        data=("tcp:127.0.0.1:0",),
        runtime_dir="/",
    )
    with hardware.confidential_vm(kind, tmp_path / "none.socket") as at:
        worker = connect_worker(at)
        try:
            worker.sock.settimeout(60.0)
            worker.say(config)
            with worker.sock.makefile("rb") as lines:
                said = (from_json(line, WorkerLine, what="a line") for line in lines)  # type: ignore[arg-type]
                ready = next(line for line in said if isinstance(line, ReadyLine))
        finally:
            worker.stop()
            worker.close()
    steps = {step.name: step.state for step in ready.hardening}
    assert "skipped" not in steps.values()
    assert steps["core-limit"] == "done"


def test_without_gramine_sgx_the_error_names_it_and_the_remedy(
    machines: Machines, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = f"{machines.folder / 'bin'}:"
    monkeypatch.setenv("PATH", os.environ["PATH"].replace(bin_folder, ""))
    assert machines.run(machines.policy(), "--json") == 4
    found = refusal(capsys)
    assert found["got"] == "GramineMissingError"
    assert "gramine-sgx is not installed" in found["message"]
    assert "install Gramine" in found["remedy"]


def test_a_vm_that_is_not_there_is_named_with_the_remedy(
    machines: Machines, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cluster = changed(machines, tmp_path, (launched_at(machines, "td"), "tcp:127.0.0.1:9"))
    assert machines.run(machines.policy(), "--json", "--cluster", cluster) == 4
    found = refusal(capsys)
    assert found["got"] == "WorkerUnreachableError"
    assert "tcp:127.0.0.1:9" in found["message"]
    assert "vaultline-worker.socket" in found["remedy"]


def test_a_local_worker_for_tdx_needs_a_confidential_vm(
    machines: Machines, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if Path("/sys/kernel/config/tsm/report").exists():
        pytest.skip("this is a confidential VM")
    text = (machines.folder / "cluster.yaml").read_text()
    line = next(line for line in text.splitlines() if "name: td," in line)
    local = "  - {name: td, cores: 1, memory: 8GiB}"
    cluster = changed(machines, tmp_path, (line, local))
    assert machines.run(machines.policy(), "--json", "--cluster", cluster) == 4
    found = refusal(capsys)
    assert found["got"] == "NotConfidentialError"
    assert "no folder /sys/kernel/config/tsm/report" in found["message"]


def test_nobody_guesses_how_a_worker_is_started(
    machines: Machines, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert machines.run(machines.policy(), "--json", "--transport", "unix") == 2
    assert "--transport tcp" in refusal(capsys)["expected"]
    cluster = changed(machines, tmp_path, (f", gramine: {machines.folder / 'worker'}", ""))
    assert machines.run(machines.policy(), "--json", "--cluster", cluster) == 2
    found = refusal(capsys)
    assert "nothing says how the SGX worker" in found["message"]
    assert "vaultline deploy gramine" in found["remedy"]


SERVERS = {
    "sgx": 'gramine: "{gramine}"',
    "tdx": 'address: 127.0.0.1, launch: "{tdx}", vaults: {vaults}',
    "snp": 'address: 127.0.0.1, launch: "{snp}", vaults: {vaults}',
}


def test_servers_of_each_kind_answer_requests(machines: Machines, tmp_path: Path) -> None:
    vaults, gramine = tmp_path / "models", tmp_path / "server"
    vaults.mkdir()
    libraries = machines.folder / "libraries"
    verb(
        *("deploy", "gramine", "--worker", "server", "--out", gramine, "--vaults", vaults),
        *("--gramine", libraries),
    )
    hardware.sign_manifest(gramine)
    kek = load_kek(tmp_path / "kek.jwk", create=True)
    prepare(DIGITS / "digits.onnx", vaults, kek=kek)
    module = "vaultline.enclave.server"
    with ExitStack() as stack:
        places = {"gramine": gramine, "vaults": vaults} | {
            kind: stack.enter_context(
                hardware.confidential_vm(kind, machines.services[kind].path, module)
            )
            for kind in ("tdx", "snp")
        }
        hosts = "".join(
            f"  - {{{{name: {kind}-host, cores: 1, memory: 8GiB, {how}}}}}\n"
            for kind, how in SERVERS.items()
        ).format(**places)
        devices = "".join(
            f"  - {{name: {kind}, host: {kind}-host, kind: {kind}, memory: 93MiB, "
            "trust: attested}\n"
            for kind in SERVERS
        )
        links = "".join(
            f"  - {{source: {a}-host, target: {b}-host, bandwidth: 1Gbit/s}}\n"
            for a, b in combinations(SERVERS, 2)
        )
        text = f"owner: sgx-host\nhosts:\n{hosts}devices:\n{devices}links:\n{links}"
        servers = servers_of(parse_cluster(text, "cluster.yaml"))
        appraiser = Appraiser(
            policy=load_policy(machines.policy()),
            collateral=load_collateral(dict.fromkeys(SERVERS, machines.folder / "collateral.json")),
            allow_simulated=False,
        )
        gateway = Gateway(
            load_prepared(vaults, kek),
            servers,
            "round-robin",
            platform_file=None,
            appraise=appraiser.appraise_now,
            transport=transport_for([server.start(None) for server in servers], None),
        )
        with gateway:
            (name,) = (model.name for model in gateway.models)
            (spec,) = gateway.models[0].inputs
            image = np.zeros(spec.shape, np.float32)
            answers = [gateway.submit(name, [image]).result(60.0) for _ in range(6)]
    assert {answer.server for answer in answers} == {"sgx", "tdx", "snp"}
    assert len({answer.outputs["scores"].tobytes() for answer in answers}) == 1
