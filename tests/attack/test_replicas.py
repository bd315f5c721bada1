"""A host that connects replicas otherwise than planned: each time refused by name, and no result is
wrong, repeated or left out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet
from msgspec.structs import replace

from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import Rig, make_rig, make_trust
from vaultline.core.control import ReadyLine
from vaultline.core.errors import VaultlineError
from vaultline.core.hostline import LaunchRequest, LaunchWorker
from vaultline.graph.engine import run_plain
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.host.wiring import data_addresses, next_addresses
from vaultline.owner.frames import OwnerFrame, ResultFrame
from vaultline.owner.hostlink import WorkerLostError
from vaultline.testing.middle import Middle, MiddleLink

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
FRAMES = 8
Lines = list[ReadyLine]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(DIGITS / "digits.onnx")


@pytest.fixture(scope="module")
def rigs(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rig]:
    """By the replicas of their two stages."""
    folder = tmp_path_factory.mktemp("sealed")
    trust = make_trust(folder / "trust")
    return {
        f"{before} to {after}": make_rig(
            model, cut_plan(model, [23], replicas=(before, after)), folder, trust
        )
        for before, after in ((2, 2), (2, 1), (1, 2))
    }


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the run's sockets lie; short, since the path of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vlt") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
        assert sorted(Path(folder).rglob("*")) == []


def swapped(lines: Lines, one: int, two: int, *names: str) -> Lines:
    """Two workers said to listen where the other one does."""
    there = {one: lines[two], two: lines[one]}
    return [
        replace(line, **{name: getattr(there[number], name) for name in names})
        if number in there
        else line
        for number, line in enumerate(lines)
    ]


def turned(lines: Lines, worker: int) -> Lines:
    """One worker's places for its sources exchanged."""
    line = lines[worker]
    return [*lines[:worker], replace(line, data=line.data[::-1]), *lines[worker + 1 :]]


def run(
    rig: Rig, model: Model, middle: Middle, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[ResultFrame], VaultlineError | None]:
    """Results before the error, and the error."""
    monkeypatch.setattr(
        "vaultline.owner.deployment.HostLink", lambda request: MiddleLink(request, middle)
    )
    rng = np.random.default_rng(5)
    images = [rng.standard_normal(model.inputs[0].shape, np.float32) for _ in range(FRAMES)]
    results: list[ResultFrame] = []
    error = None
    try:
        with rig.session() as session:
            for result in session.stream(
                [OwnerFrame(n, float(n), [image]) for n, image in enumerate(images)]
            ):
                results.append(result)
    except VaultlineError as failure:
        error = failure
    assert [result.index for result in results] == list(range(len(results)))
    for image, result in zip(images, results, strict=False):
        for name, reference in run_plain(model, {model.inputs[0].name: image}).items():
            np.testing.assert_allclose(result.outputs[name], reference, rtol=1e-4, atol=1e-4)
    return results, error


#: Case -> (replicas, what the host says of where workers listen).
CROSSED: dict[str, tuple[str, Callable[[Lines], Lines]]] = {
    "the owner's frames go to the other replica": (
        "2 to 2",
        lambda lines: swapped(lines, 0, 1, "data"),
    ),
    "frames of two replicas are exchanged": (
        "2 to 2",
        lambda lines: swapped(lines, 2, 3, "data"),
    ),
    "frames of one replica go to the other": (
        "1 to 2",
        lambda lines: swapped(lines, 1, 2, "data"),
    ),
    "one replica is taken for the other": ("2 to 1", lambda lines: turned(lines, 2)),
    "grants of two replicas are exchanged": (
        "2 to 1",
        lambda lines: swapped(lines, 0, 1, "control"),
    ),
    "a stage's frames go round it": ("2 to 2", lambda lines: swapped(lines, 0, 2, "data")),
}


def sampled(cases: Iterable[str], *sample: str) -> list[ParameterSet]:
    """All cases, those outside the sample only in the full run."""
    return [pytest.param(case, marks=() if case in sample else pytest.mark.full) for case in cases]


@pytest.mark.parametrize(
    "case",
    sampled(CROSSED, "frames of two replicas are exchanged", "one replica is taken for the other"),
)
def test_crossed_wires_are_refused(
    case: str, rigs: dict[str, Rig], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, rewire = CROSSED[case]
    results, error = run(rigs[counts], model, Middle(rewire=rewire), monkeypatch)
    assert isinstance(error, WorkerLostError)
    assert error.got == "RecordMiswiredError"
    assert len(results) < FRAMES


class CrossedResults(Middle):
    """The owner's places for the results of two replicas exchanged."""

    def results(self, request: LaunchRequest) -> tuple[str, ...]:
        return super().results(request)[::-1]


def test_crossed_results_are_refused_by_the_owner(
    rigs: dict[str, Rig], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, error = run(rigs["2 to 2"], model, CrossedResults(), monkeypatch)
    assert type(error).__name__ == "RecordMiswiredError"
    assert results == []


@pytest.mark.full
def test_replicas_are_alike_until_they_are_granted(
    rigs: dict[str, Rig], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which process is which replica is the host's to say, as long as it says one thing to all:
    the cases above fail because of what they do, not because somebody is in the middle."""
    everything = Middle(rewire=lambda lines: swapped(lines, 2, 3, "control", "data"))
    results, error = run(rigs["2 to 2"], model, everything, monkeypatch)
    # The workers themselves are told where to send by what the host has heard of them, so that
    # their places for results are exchanged: the owner refuses those and nothing else.
    assert type(error).__name__ == "RecordMiswiredError"
    assert results == []
    results, error = run(rigs["2 to 2"], model, Middle(), monkeypatch)
    assert error is None
    assert len(results) == FRAMES


def one_more(request: LaunchRequest, worker: LaunchWorker) -> int:
    return data_addresses(request, worker) + 1


def first_twice(request: LaunchRequest, ready: tuple[ReadyLine, ...]) -> list[tuple[str, ...]]:
    return [(addresses[0], *addresses) for addresses in next_addresses(request, ready)]


def one_less(request: LaunchRequest, ready: tuple[ReadyLine, ...]) -> list[tuple[str, ...]]:
    return [addresses[1:] for addresses in next_addresses(request, ready)]


COUNTS: dict[str, dict[str, object]] = {
    "a place too many to take frames": {
        "vaultline.host.launcher.data_addresses": one_more,
        "vaultline.host.wiring.data_addresses": one_more,
    },
    "a place too many to send frames": {"vaultline.host.engine.next_addresses": first_twice},
    "a place too few to send frames": {"vaultline.host.engine.next_addresses": one_less},
}


@pytest.mark.parametrize("case", sampled(COUNTS, "a place too many to take frames"))
def test_another_number_of_connections_than_planned_is_refused(
    case: str, rigs: dict[str, Rig], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, instead in COUNTS[case].items():
        monkeypatch.setattr(name, instead)
    results, error = run(rigs["1 to 2"], model, Middle(), monkeypatch)
    assert isinstance(error, WorkerLostError)
    assert error.got == "MiswiredError"
    assert results == []
