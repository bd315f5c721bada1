"""The corpus of every fuzzed parser, and a few new inputs for each; more with ``make fuzz``."""

from __future__ import annotations

import time

import pytest
from harness import (
    CORPUS,
    CORPUS_BYTES_MAX,
    CORPUS_FILES_MAX,
    SECONDS_MAX,
    Finding,
    Target,
    mutations,
    run_one,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS

from vaultline.core.errors import InputError


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_end_as_declared(name: str) -> None:
    target = TARGETS[name]
    ends = [run_one(target, data) for data in target.corpus()]
    assert len(ends) <= CORPUS_FILES_MAX
    assert not list(target.folder.glob("crash-*"))


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"sealed-record", "sigstruct"}))
def test_good_inputs_are_taken(name: str) -> None:
    """Otherwise mutations of them would show nothing; two targets have seeds that fail late."""
    assert run_one(TARGETS[name], TARGETS[name].seeds[0]) == "taken"


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_new_inputs_end_as_declared(name: str, data: st.DataObject) -> None:
    run_one(TARGETS[name], data.draw(mutations(TARGETS[name])))


def test_every_folder_of_the_corpus_has_its_parser_and_stays_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)
    sizes = [path.stat().st_size for path in CORPUS.rglob("*.bin")]
    assert max(sizes) <= CORPUS_BYTES_MAX
    assert sum(sizes) < 1 << 20


def bad(name: str, parse: object) -> Target:
    return Target(name, parse, lambda: (b"x",), (InputError,), memory_max=1 << 20)  # type: ignore[arg-type]


def test_the_harness_sees_what_it_looks_for() -> None:
    def slow(_: bytes) -> None:
        until_s = time.thread_time() + SECONDS_MAX
        while time.thread_time() < until_s:
            pass

    with pytest.raises(Finding, match="ZeroDivisionError"):
        run_one(bad("raises", lambda data: len(data) / 0), b"x")
    with pytest.raises(Finding, match="bytes taken"):
        run_one(bad("takes", lambda data: bytearray(2 << 20)), b"x")
    with pytest.raises(Finding, match="hangs: "):
        run_one(bad("hangs", slow), b"x")
