"""Preparing models and measuring them in a real worker, by the command and by the library."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from vaultline.bench.rig import make_trust
from vaultline.cli.main import main
from vaultline.core.errors import MachineError, RefusedError
from vaultline.graph.groups import GroupRule
from vaultline.graph.zoo import build
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.keyfile import Kek
from vaultline.owner.prepare import prepare
from vaultline.owner.served import ServedModel, read_served
from vaultline.serve import measuring
from vaultline.serve.lone_worker import LoneWorker, WorkerTrust
from vaultline.serve.measuring import measure
from vaultline.serve.prepared import load_one

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
KEK = Kek(kid="kbs:///default/kek/one", key=bytes(32))
EAGER = GroupRule(run_s_max=2e-6, cut_s=0.0, tensor_s=0.0, carried_bytes_per_s=1e15)


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> WorkerTrust:
    files = make_trust(tmp_path_factory.mktemp("trust") / "root")
    appraiser = Appraiser(
        policy=load_policy(files["policy"]),
        collateral=load_collateral({"simulated": files["collateral"]}),
        allow_simulated=True,
    )
    return WorkerTrust(platform_file=files["platform"], appraise=appraiser.appraise_now)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["prepare", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_model_of_several_groups_is_measured(tmp_path: Path, trust: WorkerTrust) -> None:
    before = os.sched_getaffinity(0)
    served = prepare(DIGITS, tmp_path, rule=EAGER, kek=KEK)
    assert len(served.groups) > 1
    found = measure(served, tmp_path, kek=KEK, trust=trust, rounds=1)
    assert found.measured
    assert found.facts.install_s > 0
    for facts, known in zip(found.facts.groups, served.facts.groups, strict=True):
        assert [count for count, _ in facts.run_s] == [count for count, _ in known.run_s]
        assert all(seconds > 0 for _, seconds in facts.run_s)
        assert replace(facts, run_s=known.run_s, load_s=known.load_s, streamed_s=()) == known
    assert replace(found, facts=served.facts, measured=False) == served
    assert os.sched_getaffinity(0) == before
    assert not read_served(tmp_path / "digits.served.json").measured


def test_others_on_the_core_are_told_of(
    tmp_path: Path, trust: WorkerTrust, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = prepare(DIGITS, tmp_path, kek=KEK)
    told: list[str] = []
    for most, expected in ((-1.0, 1), (1e9, 1)):
        monkeypatch.setattr(measuring, "WAITED_MAX", most)
        measure(served, tmp_path, kek=KEK, trust=trust, rounds=1, warn=told.append)
        assert len(told) == expected
    assert "digits: others had core" in told[0]


@pytest.mark.parametrize("mode", ["crypto", "sgx1"])
def test_a_model_that_pages_is_measured(mode: str, tmp_path: Path, trust: WorkerTrust) -> None:
    served = prepare(DIGITS, tmp_path, paged=mode, kek=KEK)
    found = measure(served, tmp_path, kek=KEK, trust=trust, rounds=1)
    (facts,) = found.facts.groups
    assert (facts.weight_bytes, facts.load_s) == (0, 0.0)
    assert facts.run_s[0][1] > 0


def test_a_worker_that_is_not_accepted_gets_nothing(tmp_path: Path, trust: WorkerTrust) -> None:
    served = prepare(DIGITS, tmp_path, kek=KEK)

    def refuse(*_: object) -> object:
        raise RefusedError("not that one")

    other = WorkerTrust(platform_file=trust.platform_file, appraise=refuse)
    with pytest.raises(RefusedError, match="not that one"):
        measure(served, tmp_path, kek=KEK, trust=other, rounds=1)


def test_what_the_worker_says_when_it_ends_is_told(tmp_path: Path, trust: WorkerTrust) -> None:
    prepare(DIGITS, tmp_path, kek=KEK)
    prepared = load_one(tmp_path / "digits.served.json", KEK)
    worker = LoneWorker(prepared, trust, core=min(os.sched_getaffinity(0)), memory_bytes=256 << 20)
    with worker:
        worker.install()
        with pytest.raises(MachineError) as caught:
            worker.run(7, worker.new_requests(1))
        assert "step group" in (caught.value.got or "")


def test_the_command_prepares_measures_and_does_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models"
    arguments = (str(DIGITS), "--out", str(out), "--kek", str(tmp_path / "kek.jwk"), "--json")
    code, text, _ = call(capsys, *arguments)
    assert code == 0
    first = json.loads(text)
    (model,) = first["models"]
    assert model["name"] == "digits"
    assert model["measured"]
    assert {path.name for path in out.iterdir()} == {
        "digits.vault",
        "digits.keys",
        "digits.served.json",
    }
    served = read_served(out / "digits.served.json")
    assert served.measured
    assert model["groups"][0]["run_s"]["1"] == served.facts.groups[0].run_s[0][1]
    assert json.loads(call(capsys, *arguments)[1]) == first


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "models")
    kek = str(tmp_path / "kek.jwk")
    code, text, _ = call(
        capsys, str(DIGITS), "--out", folder, "--kek", kek, "--no-measure", "--name", "seven"
    )
    assert code == 0
    assert "seven" in text
    assert "ESTIMATED" in text
    assert not read_served(Path(folder) / "seven.served.json").measured


BAD = {
    "a file that there is not": ["missing.onnx"],
    "two models of one name": [str(DIGITS), str(DIGITS)],
    "one name for two models": [str(DIGITS), "squeezenet", "--name", "both"],
    "a workspace that is no size": [str(DIGITS), "--workspace", "large"],
    "a cost of pages that there is not": [str(DIGITS), "--paged", "free"],
    "more frames than a run takes": [str(DIGITS), "--frames", "99"],
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_refused_before_any_work(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, err = call(
        capsys, *BAD[case], "--out", str(tmp_path / "out"), "--models-dir", str(tmp_path / "zoo")
    )
    assert code == 2
    assert text == ""
    assert err
    assert not (tmp_path / "out").exists()


def test_too_small_a_workspace_names_what_needs_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kek = str(tmp_path / "kek.jwk")
    code, _, err = call(
        capsys, str(DIGITS), "--out", str(tmp_path), "--workspace", "1KiB", "--kek", kek
    )
    assert code == 3
    assert "workspace" in err


@pytest.mark.full
@pytest.mark.parametrize("name", ["squeezenet", "alexnet"])
def test_networks_of_the_zoo_are_prepared_and_measured(
    name: str, tmp_path: Path, trust: WorkerTrust
) -> None:
    served: ServedModel = prepare(build(name, tmp_path / "zoo"), tmp_path / "out", kek=KEK)
    found = measure(served, tmp_path / "out", kek=KEK, trust=trust)
    tail = found.facts.groups[-1]
    if name == "alexnet":
        assert len(found.groups) == 2
        assert tail.frames_max == 16
        # Sixteen frames share the reading of 224 MiB of weights.
        assert tail.seconds(16, resident=True) < 8 * tail.seconds(1, resident=True)
        assert tail.load_s > 0
    for facts in found.facts.groups:
        assert facts.seconds(1, resident=True) < 1.0
