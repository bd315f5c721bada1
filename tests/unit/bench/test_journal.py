"""What a journal keeps of an interrupted measurement, and what it refuses to go on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from vaultline.bench.journal import Journal, JournalKey
from vaultline.bench.measuring import Blocks, Inside, Parts, Rates, Round, Wanted
from vaultline.core.errors import InputError, MachineError, RemoteProtocolError
from vaultline.core.profile import BlockProfile, DeviceRates, LoopbackRate
from vaultline.core.serde import canonical_json

KEY = JournalKey(
    vaultline_version="1",
    model_digest="ab" * 32,
    positions=(0, 3, 7),
    engine_version="1.31.1",
    isa="x86-64-avx512",
    host="h",
    cpu="c",
    core=0,
    neighbours=0,
    device_class="simulated",
    settings="{}",
)
BLOCK = BlockProfile(compute_s=((1, 0.0),), weight_bytes=0, activation_bytes=4)
BLOCKS = Blocks(engine_version="1.31.1", isa="x86-64-avx512", blocks=(BLOCK, BLOCK), stacked=(1,))
ROUND = Round(frames=1, seconds=(0.3, 0.1, 0.2))
STACKED = Round(frames=4, seconds=(0.4,))
INSIDE = Inside(seconds=(0.1, 0.15))
RATES = Rates(
    device=DeviceRates(
        seal_bytes_per_s=1e9, open_bytes_per_s=1e9, decrypt_bytes_per_s=1e9, call_s=1e-5
    ),
    loopback=LoopbackRate(bytes_per_s=1e9, latency_s=1e-5),
)
ALL = (BLOCKS, ROUND, ROUND, STACKED, INSIDE, RATES)


def filled(target: Path, *parts: Blocks | Round | Inside | Rates) -> Path:
    with Journal(target, KEY) as journal:
        for part in parts:
            journal.add(part)
        assert journal.path is not None
        return journal.path


def test_an_interrupted_measurement_goes_on_with_all_its_parts(tmp_path: Path) -> None:
    filled(tmp_path / "p.json", *ALL)
    with Journal(tmp_path / "p.json", KEY) as journal:
        parts = journal.parts
        assert (parts.blocks, parts.inside, parts.rates) == (BLOCKS, INSIDE, RATES)
        assert parts.rounds == {1: [ROUND.seconds, ROUND.seconds], 4: [STACKED.seconds]}
        assert journal.note == ""
        wanted = Wanted.after(parts, 3)
        assert wanted == Wanted(single_rounds=1, stacked_rounds=2, node_runs=0, rates=False)


def test_nothing_is_wanted_once_all_parts_are_there() -> None:
    parts = Parts(2)
    for part in (*ALL, STACKED):
        parts.add(part)
    assert not Wanted.after(parts, 2).anything
    assert Wanted.after(parts, 3).anything


def test_nothing_stacked_is_wanted_of_a_model_without_stackable_products() -> None:
    parts = Parts(2)
    assert Wanted.after(parts, 5).stacked_rounds == 5  # not known yet
    parts.add(replace(BLOCKS, stacked=()))
    assert Wanted.after(parts, 5).stacked_rounds == 0


@pytest.mark.parametrize("torn", [1, 10, len(canonical_json(STACKED))])
def test_a_torn_part_is_lost_and_no_other(tmp_path: Path, torn: int) -> None:
    path = filled(tmp_path / "p.json", BLOCKS, ROUND, STACKED)
    path.write_bytes(path.read_bytes()[:-torn])
    with Journal(tmp_path / "p.json", KEY) as journal:
        assert journal.parts.round_count == 1
        assert journal.parts.rounds[4] == []
        journal.add(STACKED)
    assert path.read_bytes() == filled(tmp_path / "other.json", BLOCKS, ROUND, STACKED).read_bytes()


def test_parts_after_one_that_does_not_fit_are_not_used(tmp_path: Path) -> None:
    path = filled(tmp_path / "p.json", BLOCKS, ROUND)
    odd = canonical_json(replace(ROUND, seconds=(0.1,)))
    path.write_bytes(path.read_bytes() + odd + b"\n" + canonical_json(ROUND) + b"\n")
    with Journal(tmp_path / "p.json", KEY) as journal:
        assert journal.parts.round_count == 1


OTHERS = {
    "another model": {"model_digest": "cd" * 32},
    "another machine": {"host": "elsewhere"},
    "another core": {"core": 1},
    "another engine": {"engine_version": "2"},
    "another instruction set": {"isa": "portable"},
    "other cuts": {"positions": (0, 2, 7)},
    "neighbours": {"neighbours": 1},
    "another class": {"device_class": "gpu"},
    "other settings": {"settings": "[]"},
    "another version": {"vaultline_version": "2"},
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_journal_of_something_else_is_left_and_said_so(tmp_path: Path, case: str) -> None:
    filled(tmp_path / "p.json", BLOCKS, ROUND)
    with Journal(tmp_path / "p.json", replace(KEY, **OTHERS[case])) as journal:
        assert journal.parts.round_count == 0
        assert "not used" in journal.note


def test_a_file_that_is_no_journal_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "p.json.partial").write_bytes(b"\x00" * 100)
    with Journal(tmp_path / "p.json", KEY) as journal:
        assert "not used" in journal.note
        assert not journal.parts.anything


def test_a_journal_of_nothing_is_not_left_behind(tmp_path: Path) -> None:
    path = filled(tmp_path / "p.json", BLOCKS)
    assert not path.exists()


def test_a_journal_is_gone_once_it_is_removed(tmp_path: Path) -> None:
    with Journal(tmp_path / "p.json", KEY) as journal:
        journal.add(BLOCKS)
        journal.add(ROUND)
        journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_two_measurements_for_one_file_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "p.json", KEY) as first:
        first.add(BLOCKS)
        first.add(ROUND)
        with pytest.raises(InputError, match="another process is measuring"):
            Journal(tmp_path / "p.json", KEY)
        assert first.path is not None
        assert first.path.exists()


def test_an_output_that_is_no_file_has_no_journal() -> None:
    with Journal(Path("/dev/null"), KEY) as journal:
        assert journal.path is None
        assert "do not interrupt" in journal.note
        journal.add(BLOCKS)
        journal.add(ROUND)
        journal.remove()
    assert not Path("/dev/null.partial").exists()


def test_a_journal_that_cannot_be_opened_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "p.json.partial").mkdir()
    with pytest.raises(MachineError, match="cannot keep"):
        Journal(tmp_path / "p.json", KEY)


BAD_PARTS = {
    "blocks of another model": replace(BLOCKS, blocks=(BLOCK,)),
    "a stacked block that isn't there": replace(BLOCKS, stacked=(2,)),
    "other blocks than before": replace(BLOCKS, stacked=(0,)),
    "a round of other blocks": replace(ROUND, seconds=(0.1,)),
    "a round of frames that nobody times": replace(ROUND, frames=3),
    "a negative time": replace(ROUND, seconds=(0.1, -0.1, 0.2)),
    "a time that is no number": replace(ROUND, seconds=(0.1, float("nan"), 0.2)),
    "node times of other blocks": replace(INSIDE, seconds=(0.1,)),
    "an endless node time": replace(INSIDE, seconds=(0.1, float("inf"))),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_a_part_that_makes_no_sense_is_refused(case: str) -> None:
    parts = Parts(2)
    parts.add(BLOCKS)
    with pytest.raises(RemoteProtocolError):
        parts.add(BAD_PARTS[case])
