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
from pathlib import Path
from typing import Any

import pytest

from vaultline.attest.challenge import Challenge
from vaultline.attest.collateral import items_of, pack
from vaultline.attest.evidence import Evidence
from vaultline.cli import main as cli
from vaultline.owner.appraisal import Appraiser
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
    return appraise_now(self, evidence, challenge) if simulated else self.appraise(
        evidence, challenge, NOW_S
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
