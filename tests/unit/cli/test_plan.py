"""``vaultline plan`` on files: tables within 100 columns, comparisons, privacy, pictures."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from vaultline.cli.main import main
from vaultline.core.leakage import CutLeakage, LeakageReport, write_leakage
from vaultline.core.plan import read_plan
from vaultline.core.profile import RecordedOn, write_profile
from vaultline.testing.planning import MIB, profile

LAYERS = profile([0.01] * 8, weight_bytes=20 * MIB, scale={"accelerator": 0.1})
CLUSTER = """\
owner: box
hosts:
  - {name: box, cores: 8, memory: 8GiB}
devices:
  - {name: enclave, host: box, kind: simulated, trust: attested, memory: 93MiB, count: 2}
"""
GPU = "  - {name: gpu, host: box, kind: accelerator, trust: none, memory: unlimited}\n"
POLICY = """\
version: 1
input: {metric: reconstruction, limit: 0.3}
model: {disclose: [all]}
"""
#: Falls along the model: cuts 4 to 8 are at most 0.3.
LEAKS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.1, 0.05)


def report(leaks: tuple[float, ...] = LEAKS) -> LeakageReport:
    cuts = tuple(
        CutLeakage(
            position=position,
            tensors=(f"t{position}",),
            resolution_px=64,
            similarity=leak,
            reconstruction=leak,
            psnr_db=20.0,
            revealing="t0:0",
        )
        for position, leak in enumerate(leaks)
    )
    return LeakageReport(
        model_name="chain",
        model_digest="ab" * 32,
        images_digest="cd" * 32,
        images=4,
        decoder="ridge",
        recorded_on=RecordedOn(host="h", cpu="c", date="2026-01-01", command="none"),
        positions=tuple(range(len(leaks))),
        cuts=cuts,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    files = {
        "p.json": write_profile(LAYERS),
        "paged.json": write_profile(
            replace(LAYERS, rates=replace(LAYERS.rates, page_s={"crypto": 2e-6, "sgx1": 11e-6}))
        ),
        "c.yaml": CLUSTER.encode(),
        "gpu.yaml": (CLUSTER + GPU).encode(),
        "only-gpu.yaml": (CLUSTER.rsplit("\n", 2)[0] + "\n" + GPU).encode(),
        "privacy.yaml": POLICY.encode(),
        "leakage.json": write_leakage(report()),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def plan(*more: str, profile: str = "p.json", cluster: str = "c.yaml") -> int:
    return main(["plan", profile, "--cluster", cluster, "-o", "plan.json", *more])


def document(capsys: pytest.CaptureFixture[str], *more: str, **files: str) -> dict[str, Any]:
    assert plan(*more, "--json", **files) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_line_fits_into_100_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "an-enclave-with-quite-a-long-name-on-a-far-away-host"
    (folder / "long.yaml").write_text((CLUSTER + GPU).replace("name: enclave", f"name: {long}"))
    released = ("--privacy", "privacy.yaml", "--leakage", "leakage.json")
    for cluster, more in product(("c.yaml", "long.yaml"), ((), ("--compare",), released)):
        assert plan(*more, profile="paged.json", cluster=cluster) == 0
        out = capsys.readouterr().out
        tables = out.split("wrote")[0].splitlines()
        assert all(len(line) <= 100 for line in tables), out
        for word in ("latency", "throughput", "chunk", "predicted", "the owner"):
            assert word in out


def test_replicas_are_named_and_limited(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = document(capsys, "--stages", "1")
    assert wide["stages"][0]["devices"] == ["enclave-0", "enclave-1"]
    assert plan("--stages", "1") == 0
    assert "2 in turn:" in capsys.readouterr().out
    alone = document(capsys, "--stages", "1", "--replicas-max", "1")
    assert alone["stages"][0]["devices"] == ["enclave-0"]


def test_a_comparison_has_a_row_for_every_baseline(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, "--compare", profile="paged.json")
    rows = {row["name"]: row for row in found["comparison"]}
    assert next(iter(rows)) == "one-enclave"
    assert rows["vaultline"]["ratio"] == 1.0
    assert all(row["ratio"] >= 1.0 for row in rows.values() if row.get("runnable"))
    assert rows["one-enclave"]["runnable"] is True
    assert "crypto" in rows["one-enclave"]["note"]
    assert rows["serdab"]["frames_per_s"] == pytest.approx(1 / rows["serdab"]["bottleneck_s"])
    dearer = document(capsys, "--compare", "--page-cost", "sgx1", profile="paged.json")
    assert dearer["comparison"][0]["latency_s"] > rows["one-enclave"]["latency_s"]


def test_a_baseline_without_a_price_says_why(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("--compare") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "one-enclave: no plan: the profile does not say what a swapped page costs" in out


def test_the_users_own_partition_is_compared_with_ours(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = document(capsys, "--compare", "--partition", "0:7@enclave,7:8@enclave")
    row = mine["comparison"][0]
    assert (row["name"], row["cuts"]) == ("as asked", [7])
    assert row["ratio"] > 1.0


def test_released_tensors_are_printed_with_leakage_metric_and_limit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released = ("--privacy", "privacy.yaml", "--leakage", "leakage.json")
    assert plan(*released, cluster="gpu.yaml") == 0
    out = capsys.readouterr().out
    assert "released to untrusted devices" in out
    assert "(untrusted)" in out
    assert "est." in out
    found = read_plan((folder / "plan.json").read_bytes())
    (tensor,) = found.released
    assert (tensor.metric, tensor.limit) == ("reconstruction", 0.3)
    first = found.stages[tensor.stage].first
    assert first >= 4
    assert (tensor.tensor, tensor.leakage) == (f"t{first}", LEAKS[first])
    line = next(line for line in out.splitlines() if f"t{first} " in line)
    assert line.split()[-3:] == ["reconstruction", f"{LEAKS[first]:g}", "0.3"]


def test_without_a_policy_nothing_reaches_the_accelerator(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, cluster="gpu.yaml")
    assert found["released"] == []
    assert not any(stage["untrusted"] for stage in found["stages"])


def test_a_policy_that_releases_nothing_is_said_to(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "leakage.json").write_bytes(write_leakage(report((0.9,) * 9)))
    released = ("--privacy", "privacy.yaml", "--leakage", "leakage.json")
    assert plan(*released, cluster="gpu.yaml") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "no untrusted device takes part: 0 of 9 cuts leak at most 0.3 (reconstruction)" in out
    assert document(capsys, *released, cluster="gpu.yaml")["privacy"]["cuts_released"] == 0


def test_a_later_cut_that_leaks_more_keeps_a_stage_off_the_accelerator(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "leakage.json").write_bytes(write_leakage(report((*LEAKS[:6], 0.9, *LEAKS[7:]))))
    released = ("--privacy", "privacy.yaml", "--leakage", "leakage.json")
    assert plan(*released, cluster="gpu.yaml") == 0
    for stage in read_plan((folder / "plan.json").read_bytes()).stages:
        assert not (stage.device.untrusted and stage.first <= 6 <= stage.last)


REFUSED = {
    "only an accelerator, and a model that starts with the input": (
        3,
        "only-gpu.yaml",
        ("--privacy", "privacy.yaml", "--leakage", "leakage.json"),
        ("trust", "5 of 9 cuts leak at most 0.3"),
    ),
    "an own partition that shows the accelerator too much": (
        3,
        "gpu.yaml",
        (
            *("--privacy", "privacy.yaml", "--leakage", "leakage.json"),
            *("--partition", "0:3@enclave,3:8@gpu"),
        ),
        (
            "nodes 3:8 may not run on gpu",
            "reconstruction 0.5 at the cut after 3 nodes",
            "at most 0.3",
        ),
    ),
    "a leakage report without a policy": (
        2,
        "gpu.yaml",
        ("--leakage", "leakage.json"),
        ("--privacy",),
    ),
    "a limit that nothing was measured for": (
        2,
        "gpu.yaml",
        ("--privacy", "privacy.yaml"),
        ("nobody measured", "vaultline privacy"),
    ),
    "a policy file that is missing": (2, "gpu.yaml", ("--privacy", "no.yaml"), ("privacy policy",)),
    "a leakage report that is none": (
        2,
        "gpu.yaml",
        ("--privacy", "privacy.yaml", "--leakage", "p.json"),
        ("leakage report",),
    ),
    "a picture of an unknown kind": (2, "c.yaml", ("--plot", "plan.gif"), (".png or .svg",)),
    "a picture in a folder that is missing": (
        2,
        "c.yaml",
        ("--plot-compare", "no/compare.png"),
        ("the picture",),
    ),
    "no replica at all": (2, "c.yaml", ("--replicas-max", "0"), ("replicas-max",)),
    "an unknown page cost": (2, "c.yaml", ("--page-cost", "free"), ("page-cost",)),
}


@pytest.mark.parametrize(("code", "cluster", "more", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    code: int,
    cluster: str,
    more: tuple[str, ...],
    said: tuple[str, ...],
) -> None:
    assert plan(*more, cluster=cluster) == code
    text = " ".join(capsys.readouterr().err.split())
    for words in said:
        assert words in text
    assert not (folder / "plan.json").exists()


def test_both_pictures_are_written(folder: Path) -> None:
    pictures = ("--plot", "plan.svg", "--plot-compare", "compare.png")
    assert plan(*pictures, profile="paged.json") == 0
    assert b"<svg" in (folder / "plan.svg").read_bytes()
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_streamed_stage_says_what_stays_and_what_every_pass_decrypts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heavy = profile([0.1] * 4, weight_bytes=40 * MIB, decrypt_bytes_per_s=1e9)
    (folder / "heavy.json").write_bytes(write_profile(heavy))
    assert plan("--stages", "1", profile="heavy.json") == 0
    assert "of weights and decrypts" in capsys.readouterr().out
    (stage,) = document(capsys, "--stages", "1", profile="heavy.json")["stages"]
    memory = stage["memory"]
    assert stage["mode"] == "streamed"
    assert memory["streamed_bytes"] == sum(step["streamed_bytes"] for step in memory["steps"])
    assert memory["resident_bytes"] + memory["streamed_bytes"] == 160 * MIB
    held = ("resident_bytes", "workspace_bytes", "engine_bytes", "io_bytes")
    assert sum(memory[kind] for kind in held) <= stage["memory_bytes"]
