"""Vaults of any shape come back whole; altered ones raise vault errors and nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.channel.chunks import VaultError, chunk_count, places, sealed_bytes
from vaultline.core.limits import VAULT_CHUNK_BYTES_MAX
from vaultline.owner.seal import check_vault
from vaultline.testing.vaults import SmallVault, read_weights, small_stage

CHUNK = VAULT_CHUNK_BYTES_MAX
EDGES = st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
SIZES = st.one_of(EDGES, st.integers(0, 5000))
KEY, PLAN = b"k" * 32, b"p" * 32


def sealed(folder: Path, sizes: list[list[int]]) -> SmallVault:
    stages = [
        small_stage(weights, stage=stage, stages=len(sizes)) for stage, weights in enumerate(sizes)
    ]
    return SmallVault.seal(folder / "a.vault", stages, model_key=KEY, plan_digest=PLAN)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.lists(SIZES, max_size=5), min_size=1, max_size=3))
def test_what_was_sealed_is_what_is_read(sizes: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        vault = sealed(Path(folder), sizes)
        assert check_vault(vault.path, vault.sealing) == vault.header
        for number, stage in enumerate(vault.stages):
            with vault.opened(number) as section:
                assert section.program == stage.program
                assert read_weights(section) == [weight.tobytes() for weight in stage.weights]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.integers(0, 4 * CHUNK), st.booleans())
def test_places_cover_a_tensor_in_chunks_without_gaps(size: int, last: bool) -> None:
    found = list(places(7, size, last_tensor=last))
    assert sum(place.length for place in found) == size
    assert [place.chunk for place in found] == list(range(chunk_count(size)))
    assert all(place.length == CHUNK for place in found[:-1])
    assert [place.last_of_tensor for place in found] == [False] * (len(found) - 1) + [True]
    assert [place.last_of_section for place in found] == [False] * (len(found) - 1) + [last]
    assert sealed_bytes(size) == sum(place.length + 80 for place in found)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallVault:
    return sealed(tmp_path_factory.mktemp("vault"), [[100, 0, 3000], [5]])


EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 2), st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(EDITS)
def test_altered_bytes_raise_vault_errors_or_change_nothing_that_is_used(
    small: SmallVault, edits: list[tuple[int, int, bytes]]
) -> None:
    """Each edit replaces up to two bytes by up to four, anywhere: flips, cuts and insertions."""
    data = small.sealed
    for position, removed, inserted in edits:
        at = position % (len(data) + 1)
        data = data[:at] + inserted + data[at + removed :]
    path = small.path.with_name("altered.vault")
    path.write_bytes(data)
    refused = 0
    for number, stage in enumerate(small.stages):
        try:
            with small.opened(number, path=path) as section:
                assert read_weights(section) == [weight.tobytes() for weight in stage.weights]
                assert section.program == stage.program
        except VaultError:
            refused += 1
    try:
        check_vault(path, small.sealing)
    except VaultError:
        return
    same_length = len(data) == len(small.sealed)
    assert same_length and (refused or data == small.sealed)
