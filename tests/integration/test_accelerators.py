"""Stages on untrusted accelerators, in real workers: outputs as unsplit, marked unverified."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from vaultline.attest.appraise import Verdict
from vaultline.bench.cutting import cut_plan
from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.bench.rig import make_rig, make_trust
from vaultline.cli.main import main
from vaultline.core.cluster_file import parse_cluster
from vaultline.core.leakage import LeakageReport, write_leakage
from vaultline.core.plan import Plan, write_plan
from vaultline.core.privacy import PrivacyPolicy, parse_privacy
from vaultline.graph.cuts import candidates
from vaultline.graph.engine import run_plain
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.owner.disclosure import Disclosure
from vaultline.owner.frames import OwnerFrame
from vaultline.planner import PlanRequest, parse_partition, plan_request
from vaultline.planner.release import release_of
from vaultline.testing.privacy import leakage_report, on_accelerators

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
FRAMES = 4
CLUSTER = """
owner: edge
hosts:
  - {name: edge, cores: 2, memory: 8GiB}
devices:
  - {name: enclave, host: edge, kind: simulated, trust: attested, memory: 93MiB, count: 2}
  - {name: gpu, host: edge, kind: accelerator, trust: none, memory: unlimited}
"""
#: What leaks is the first half of the network; the classifier's weights stay secret.
PRIVACY = """
version: 1
input: {metric: reconstruction, limit: 0.30}
model: {disclose: ["23:52"]}
"""
POLICY: PrivacyPolicy = parse_privacy(PRIVACY, "privacy.yaml")


@cache
def digits() -> Model:
    return load_model(DIGITS / "digits.onnx")


def report() -> LeakageReport:
    """Leaks 1 at the input, and less from cut to cut; 0.3 is undercut after 18 nodes."""
    return leakage_report(digits(), {at: (56 - at) / 56 - 0.38 for at in candidates(digits())})


PLANS = {
    "enclave, accelerator, enclave": ((27, 44), (1,)),
    "enclave, accelerator": ((44,), (1,)),
    "enclave, two accelerators in a row, enclave": ((27, 34, 44), (1, 2)),
    "an accelerator with the frame itself, enclave": ((27,), (0,)),
}


@pytest.mark.parametrize("case", PLANS)
def test_outputs_are_those_of_the_whole_model(case: str, tmp_path: Path) -> None:
    positions, untrusted = PLANS[case]
    plan = on_accelerators(cut_plan(digits(), positions), untrusted)
    measured = leakage_report(digits(), dict.fromkeys((0, *positions, 56), 0.2))
    policy = parse_privacy(PRIVACY.replace("23:52", "0:56"), "privacy.yaml")
    owner = Disclosure(policy=policy, report=measured)
    rig = make_rig(digits(), plan, tmp_path, disclosure=owner)
    rng = np.random.default_rng(1)
    images = [rng.standard_normal((1, 3, 64, 64), np.float32) for _ in range(FRAMES)]
    with rig.session() as session:
        verdicts = [granted.verdict for granted in session.releases]
        kinds = [verdict.kind for verdict in verdicts if isinstance(verdict, Verdict)]
        frames = [OwnerFrame(n, float(n), [image]) for n, image in enumerate(images)]
        results = list(session.stream(frames))
    assert [kind == "accelerator" for kind in kinds] == [
        stage.device.untrusted for stage in plan.stages
    ]
    assert len(results) == FRAMES
    for image, result in zip(images, results, strict=True):
        expected = run_plain(digits(), {"image": image})["scores"]
        np.testing.assert_allclose(result.outputs["scores"], expected, rtol=1e-4, atol=1e-4)


@cache
def planned() -> Plan:
    """The planner's own plan with the middle on the accelerator."""
    profile = profile_model(digits(), ProfileRequest(repeats=1))
    request = PlanRequest(
        release=release_of(profile, POLICY, report()),
        partition=parse_partition("0:27@enclave-0,27:44@gpu,44:56@enclave-1"),
    )
    return plan_request(profile, parse_cluster(CLUSTER, "cluster.yaml"), request)


def files(folder: Path) -> None:
    make_trust(folder / "trust")
    (folder / "privacy.yaml").write_text(PRIVACY)
    (folder / "leakage.json").write_bytes(write_leakage(report()))
    (folder / "plan.json").write_bytes(write_plan(planned()))


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


SEAL = ("seal", str(DIGITS / "digits.onnx"), "--plan", "plan.json", "-o", "digits.vault")
SOURCE = ("--source", str(DIGITS / "digits.mp4"), "--limit", "20", "--sink", "results.jsonl")
RUN = (
    *("run", "--plan", "plan.json", "--vault", "digits.vault", "--key", "owner.key"),
    *("--policy", "trust/policy.yaml", "--allow-simulated", *SOURCE),
    *("--preprocess", str(DIGITS / "digits.preprocess.yaml")),
)
PRIVATE = ("--privacy", "privacy.yaml")
MEASURED = ("--leakage", "leakage.json")


def test_from_a_plan_to_results_that_are_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    files(tmp_path)
    assert [each.tensor for each in planned().released] == ["block2a.relu2"]
    code, out, err = call(capsys, *SEAL)
    assert (code, out) == (1, ""), "no policy discloses nothing"
    assert "27 is not disclosed" in err
    code, out, err = call(capsys, *SEAL, *PRIVATE, "--json")
    assert code == 0, err
    for missing in ((), PRIVATE, MEASURED):
        code, out, err = call(capsys, *RUN, *missing)
        assert (code, out) == (1, ""), missing
        assert "untrusted" in err
    code, out, err = call(capsys, *RUN, *PRIVATE, *MEASURED, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["unverified"] == [1]
    assert summary["untrusted_devices"] == ["gpu"]
    assert summary["enclave"] == "simulated"
    assert "NOT stage 1" in summary["attested"]
    lines = [json.loads(line) for line in Path("results.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    assert all(line["unverified"] == [1] and "NOT stage 1" in line["attested"] for line in lines)
    code, out, err = call(capsys, *RUN, *PRIVATE, *MEASURED)
    assert code == 0, err
    assert "UNVERIFIED: stage 1 ran on gpu" in " ".join(out.split())
