"""`bench lasagna` and `bench sim`: bad input, what is printed, and pictures of both halves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lasagna_cases import result

from vaultline.bench.fidelity import Compared, FidelityResult, Performance, Round
from vaultline.bench.lasagna import LasagnaRequest
from vaultline.bench.sim_scale import ScaleRow
from vaultline.cli.bench_lasagna import document, show
from vaultline.cli.bench_sim import SimResult, figures
from vaultline.cli.bench_sim import show as show_sim
from vaultline.cli.main import main
from vaultline.cli.sim_pictures import draw_sim
from vaultline.core.serde import canonical_json

BAD = {
    "a policy that there isn't": (["lasagna", "--policies", "fifo,best"], "no such policy"),
    "a picture nowhere": (["lasagna", "--plot", "/nowhere/at/all.png"], "cannot write the picture"),
    "a picture of no known kind": (["lasagna", "--plot", "all.bmp"], "PNG or SVG"),
    "another of no known kind": (["sim", "--plot", "all"], "PNG or SVG"),
    "no rounds": (["lasagna", "--rounds", "0"], "--rounds"),
    "a part that there isn't": (["sim", "--part", "some"], "--part"),
    "another picture nowhere": (["sim", "--plot", "/nowhere/at/all.png"], "cannot write"),
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_input_is_refused_before_anything_is_measured(
    sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = BAD[sentence]
    zoo = tmp_path / "zoo"
    assert main(["bench", *arguments, "--models-dir", str(zoo), "--json"]) == 2
    out = capsys.readouterr().out
    assert said in json.loads(out)["error"]["message"]
    assert not zoo.exists()


def test_the_tables_name_every_policy_and_what_the_gain_consists_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(result())
    out = capsys.readouterr().out
    for text in ("fifo.sgx1", "vaultline", "of the bounded executor", "0 answered twice"):
        assert text in out


def test_the_document_is_json() -> None:
    found = json.loads(canonical_json(document(result(), LasagnaRequest())))
    assert found["saturated"][0]["name"] == "fifo.sgx1"
    assert found["offered"][0]["keeps_up"] is False
    assert found["killed"]["lost"] == 0


def simulated() -> SimResult:
    def compared(workload: str, ratio: float) -> Compared:
        def one(factor: float) -> Performance:
            return Performance(
                answered=100, throughput=10 * factor, mean_s=0.1 * factor, p95_s=0.3 * factor
            )

        return Compared(
            workload=workload,
            requests=100,
            rate_per_s=12.0,
            rounds=[Round(measured=one(1.0), simulated=one(ratio))] * 2,
            counts=workload != "all at once",
        )

    names = ("all at once", "poisson 50%", "poisson 80%", "bursty")
    rows = [
        ScaleRow(
            servers=count,
            models=200,
            requests=100_000,
            decision_us=20 * count**0.2,
            seconds=30.0,
            core_s=29.0,
            virtual_s=100.0,
            rate_per_s=1000.0,
            mean_s=0.1,
            p95_s=0.3,
            refused=0,
        )
        for count in (10, 100, 1000)
    ]
    compared_all = [compared(name, 0.9 + 0.05 * turn) for turn, name in enumerate(names)]
    return SimResult(fidelity=FidelityResult(compared=compared_all), scale=rows)


def test_figures_of_both_halves() -> None:
    made = figures(simulated())
    assert made["fidelity_p95"] == pytest.approx(0.95, abs=0.1)
    assert made["decision_us_1000_servers"] == pytest.approx(20 * 1000**0.2)
    assert made["seconds_1000_servers"] == 30.0


@pytest.mark.parametrize("halves", ["both", "fidelity", "scale"])
def test_the_picture_has_a_panel_for_each_half(halves: str, tmp_path: Path) -> None:
    found = simulated()
    fidelity = None if halves == "scale" else found.fidelity
    scale = () if halves == "fidelity" else found.scale
    draw_sim(fidelity, scale, tmp_path / "sim.png")
    assert (tmp_path / "sim.png").stat().st_size > 5_000


def test_the_tables_of_a_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    show_sim(simulated())
    out = capsys.readouterr().out
    assert "bursty" in out
    assert "median" in out
    assert "us a decision" in out
