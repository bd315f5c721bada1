"""What a host that stores a vault can do to it, and how each is found out."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from vaultline.channel.chunks import (
    HEADER_BYTES,
    OVERHEAD_BYTES,
    VaultError,
    VaultFormatError,
    VaultOtherModelError,
    VaultOtherPlanError,
    VaultOtherStageError,
    VaultStaleError,
    VaultSwappedError,
    VaultTamperedError,
    VaultTruncatedError,
)
from vaultline.channel.vaultfile import VaultHeader, write_front
from vaultline.core.limits import VAULT_CHUNK_BYTES_MAX
from vaultline.owner.seal import check_vault
from vaultline.testing.vaults import ChunkSpan, SmallVault, read_weights, small_stage

CHUNK = VAULT_CHUNK_BYTES_MAX
MODEL_KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
PLAN, OTHER_PLAN = b"p" * 32, b"q" * 32
#: Weights of stage 0: two of the same size, an empty one, one of two chunks and a bit.
SIZES = (1000, 1000, 0, 2 * CHUNK + 5)


class World(NamedTuple):
    """The vault under attack and what else the host has in store."""

    target: SmallVault
    other_model: SmallVault
    other_plan: SmallVault
    older: SmallVault


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("vaults")

    def seal(name: str, key: bytes, plan: bytes) -> SmallVault:
        stages = [small_stage(SIZES, stage=stage, stages=2) for stage in range(2)]
        return SmallVault.seal(folder / name, stages, model_key=key, plan_digest=plan)

    older = seal("older", MODEL_KEY, PLAN)
    return World(
        target=seal("target", MODEL_KEY, PLAN),
        other_model=seal("model", OTHER_KEY, PLAN),
        other_plan=seal("plan", MODEL_KEY, OTHER_PLAN),
        older=older,
    )


def span(vault: SmallVault, tensor: int, chunk: int = 0, stage: int = 0) -> ChunkSpan:
    return next(s for s in vault.chunks(stage) if (s.tensor, s.chunk) == (tensor, chunk))


def cut(where: Callable[[SmallVault], int]) -> Callable[[World], bytes]:
    return lambda world: world.target.sealed[: where(world.target)]


def flip(where: Callable[[SmallVault], int], bit: int = 1) -> Callable[[World], bytes]:
    def mutate(world: World) -> bytes:
        data = bytearray(world.target.sealed)
        data[where(world.target)] ^= bit
        return bytes(data)

    return mutate


def put(
    source: Callable[[World], tuple[SmallVault, ChunkSpan]],
    tensor: int,
    chunk: int = 0,
    *,
    relabel: bool = False,
) -> Callable[[World], bytes]:
    """Put another chunk of the same length at a place, perhaps under the header that belongs."""

    def mutate(world: World) -> bytes:
        donor, found = source(world)
        there = span(world.target, tensor, chunk)
        assert found.length == there.length
        start = HEADER_BYTES if relabel else 0
        data = bytearray(world.target.sealed)
        data[there.start + start : there.end] = donor.sealed[found.start + start : found.end]
        return bytes(data)

    return mutate


def swap(first: tuple[int, int], second: tuple[int, int], *, relabel: bool = False):
    def mutate(world: World) -> bytes:
        start = HEADER_BYTES if relabel else 0
        one, two = span(world.target, *first), span(world.target, *second)
        data = bytearray(world.target.sealed)
        data[one.start + start : one.end] = world.target.sealed[two.start + start : two.end]
        data[two.start + start : two.end] = world.target.sealed[one.start + start : one.end]
        return bytes(data)

    return mutate


def claim_length(length: int) -> Callable[[World], bytes]:
    def mutate(world: World) -> bytes:
        data = bytearray(world.target.sealed)
        header_end = span(world.target, 1).start + HEADER_BYTES
        data[header_end - 4 : header_end] = struct.pack("!I", length)
        return bytes(data)

    return mutate


def duplicate(world: World) -> bytes:
    there, data = span(world.target, 4, 1), world.target.sealed
    return data[: there.start] + data[there.start : there.end] + data[there.start :]


def remove(world: World) -> bytes:
    there, data = span(world.target, 4, 1), world.target.sealed
    return data[: there.start] + data[there.end :]


def whole_section(stage: int) -> Callable[[World], bytes]:
    """Stage 1's section in the place of stage 0's: both are of one size but for the program."""

    def mutate(world: World) -> bytes:
        data = world.target.sealed
        first, second = (world.target.chunks(number) for number in (0, stage))
        donor = data[second[0].start : second[-1].end]
        return data[: first[0].start] + donor + data[first[-1].end :]

    return mutate


def front(change: Callable[[VaultHeader], VaultHeader]) -> Callable[[World], bytes]:
    """A vault whose public header the host has rewritten, well formed."""

    def mutate(world: World) -> bytes:
        start = span(world.target, 0).start
        written = write_front(change(world.target.header))[0]
        return written.ljust(start) + world.target.sealed[start:]

    return mutate


def first_section(offset: int = 0, length: int = 0) -> Callable[[World], bytes]:
    """A public header that moves the first section and changes its length by this much."""

    def change(header: VaultHeader) -> VaultHeader:
        first, *rest = header.sections
        moved = replace(first, offset=first.offset + offset, length=first.length + length)
        return replace(header, sections=(moved, *rest))

    return front(change)


ATTACKS: dict[str, tuple[Callable[[World], bytes], type[VaultError]]] = {
    "an empty file": (lambda world: b"", VaultTruncatedError),
    "cut inside the prefix": (cut(lambda v: 9), VaultTruncatedError),
    "cut inside the public header": (cut(lambda v: 60), VaultTruncatedError),
    "cut after the public header": (cut(lambda v: span(v, 0).start), VaultTruncatedError),
    "cut inside a chunk's header": (cut(lambda v: span(v, 0).start + 7), VaultTruncatedError),
    "cut inside the program": (cut(lambda v: span(v, 0).ciphertext + 3), VaultTruncatedError),
    "cut between tensors": (cut(lambda v: span(v, 1).start), VaultTruncatedError),
    "cut between chunks": (cut(lambda v: span(v, 4, 1).start), VaultTruncatedError),
    "cut inside a weight": (cut(lambda v: span(v, 4, 1).ciphertext + 9), VaultTruncatedError),
    "cut inside the last tag": (cut(lambda v: span(v, 4, 2).end - 1), VaultTruncatedError),
    "a flipped bit in a chunk's magic": (flip(lambda v: span(v, 1).start), VaultFormatError),
    "a flipped bit in a chunk's vault id": (flip(lambda v: span(v, 1).start + 4), VaultStaleError),
    "a flipped bit in a chunk's model id": (
        flip(lambda v: span(v, 1).start + 20),
        VaultOtherModelError,
    ),
    "a flipped bit in a chunk's plan digest": (
        flip(lambda v: span(v, 1).start + 36),
        VaultOtherPlanError,
    ),
    "a flipped bit in a chunk's stage": (
        flip(lambda v: span(v, 1).start + 52),
        VaultOtherStageError,
    ),
    "a flipped end flag": (flip(lambda v: span(v, 1).start + 53), VaultFormatError),
    "a flag that does not exist": (
        flip(lambda v: span(v, 1).start + 53, bit=4),
        VaultFormatError,
    ),
    "a flipped bit in a chunk's index": (flip(lambda v: span(v, 1).start + 55), VaultSwappedError),
    "a flipped bit in a chunk's tensor": (flip(lambda v: span(v, 1).start + 59), VaultSwappedError),
    "a flipped bit in a chunk's length": (flip(lambda v: span(v, 1).start + 63), VaultFormatError),
    "a flipped bit in the program": (flip(lambda v: span(v, 0).ciphertext), VaultTamperedError),
    "a flipped bit in a weight": (
        flip(lambda v: span(v, 4, 1).ciphertext + 77),
        VaultTamperedError,
    ),
    "a flipped bit in a weight's last byte": (
        flip(lambda v: span(v, 4, 2).tag - 1),
        VaultTamperedError,
    ),
    "a flipped bit in a tag": (flip(lambda v: span(v, 4, 2).tag), VaultTamperedError),
    "a flipped bit in an empty weight's tag": (flip(lambda v: span(v, 3).tag), VaultTamperedError),
    "a chunk that claims 4 GiB": (claim_length((1 << 32) - 1), VaultFormatError),
    "a chunk that claims a byte more than any has": (claim_length(CHUNK + 1), VaultFormatError),
    "two chunks swapped": (swap((4, 0), (4, 1)), VaultSwappedError),
    "two chunks swapped under the right headers": (
        swap((4, 0), (4, 1), relabel=True),
        VaultTamperedError,
    ),
    "two tensors of one size swapped": (swap((1, 0), (2, 0)), VaultSwappedError),
    "two tensors swapped under the right headers": (
        swap((1, 0), (2, 0), relabel=True),
        VaultTamperedError,
    ),
    "a chunk twice": (duplicate, VaultSwappedError),
    "a chunk left out": (remove, VaultSwappedError),
    "another model's chunk": (
        put(lambda w: (w.other_model, span(w.other_model, 4, 1)), 4, 1),
        VaultOtherModelError,
    ),
    "another model's chunk under the right header": (
        put(lambda w: (w.other_model, span(w.other_model, 4, 1)), 4, 1, relabel=True),
        VaultTamperedError,
    ),
    "another plan's chunk": (
        put(lambda w: (w.other_plan, span(w.other_plan, 1)), 1),
        VaultOtherPlanError,
    ),
    "another plan's chunk under the right header": (
        put(lambda w: (w.other_plan, span(w.other_plan, 1)), 1, relabel=True),
        VaultTamperedError,
    ),
    "another stage's chunk": (
        put(lambda w: (w.target, span(w.target, 1, stage=1)), 1),
        VaultOtherStageError,
    ),
    "another stage's chunk under the right header": (
        put(lambda w: (w.target, span(w.target, 1, stage=1)), 1, relabel=True),
        VaultTamperedError,
    ),
    "an older sealing's chunk": (
        put(lambda w: (w.older, span(w.older, 4, 2)), 4, 2),
        VaultStaleError,
    ),
    "an older sealing's chunk under the right header": (
        put(lambda w: (w.older, span(w.older, 4, 2)), 4, 2, relabel=True),
        VaultTamperedError,
    ),
    "another stage's section": (whole_section(1), VaultOtherStageError),
    "another model's vault": (lambda world: world.other_model.sealed, VaultOtherModelError),
    "another plan's vault": (lambda world: world.other_plan.sealed, VaultOtherPlanError),
    "an older vault": (lambda world: world.older.sealed, VaultStaleError),
}
#: What a host can write before the sections. Grants say where those are, so no enclave reads it.
FRONTS: dict[str, Callable[[World], bytes]] = {
    "not a vault": flip(lambda v: 0),
    "another version": flip(lambda v: 11),
    "a public header of 4 GiB": flip(lambda v: 12, bit=0xFF),
    "a public header that is no JSON": flip(lambda v: 16, bit=0x80),
    "a header that sends stage 0 elsewhere": first_section(offset=9),
    "a header with a section beyond the file": first_section(1 << 40),
    "a header with a section too short": first_section(length=-1),
    "a header with a section too long": first_section(length=1),
    "a header without stage 0's section": front(lambda h: replace(h, sections=h.sections[1:])),
    "a header with the sections exchanged": front(lambda h: replace(h, sections=h.sections[::-1])),
}
#: The owner's check reads no ciphertext: these are left to the enclave, which reads all it uses.
ONLY_IN_CIPHERTEXT = {
    "a flipped bit in the program",
    "a flipped bit in a weight",
    "a flipped bit in a weight's last byte",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    def write(data: bytes) -> Path:
        path = tmp_path / "stored.vault"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_enclave_refuses(attack: str, world: World, store: Callable[[bytes], Path]) -> None:
    mutate, error = ATTACKS[attack]
    path = store(mutate(world))
    with pytest.raises(VaultError) as refusal, world.target.opened(path=path) as section:
        read_weights(section)
    assert type(refusal.value) is error, refusal.value.diagnostics()
    assert refusal.value.remedy


@pytest.mark.parametrize("attack", FRONTS)
def test_a_rewritten_public_header_misleads_no_enclave(
    attack: str, world: World, store: Callable[[bytes], Path]
) -> None:
    """Only one that is longer than the old one moves the sections, and then none is found."""
    data, start = FRONTS[attack](world), span(world.target, 0).start
    path = store(data)
    if data[start:] == world.target.sealed[start:]:
        with world.target.opened(path=path) as section:
            weights = [weight.tobytes() for weight in world.target.stages[0].weights]
            assert read_weights(section) == weights
    else:
        with pytest.raises(VaultFormatError), world.target.opened(path=path):
            pass


#: What the owner's check has to find.
VISIBLE = {name: mutate for name, (mutate, _) in ATTACKS.items() if name not in ONLY_IN_CIPHERTEXT}
VISIBLE |= FRONTS


@pytest.mark.parametrize("attack", VISIBLE)
def test_the_owner_refuses_before_a_run(
    attack: str, world: World, store: Callable[[bytes], Path]
) -> None:
    path = store(VISIBLE[attack](world))
    with pytest.raises(VaultError):
        check_vault(path, world.target.sealing)


@pytest.mark.parametrize(
    ("vault", "error"),
    [
        ("other_model", VaultOtherModelError),
        ("other_plan", VaultOtherPlanError),
        ("older", VaultStaleError),
    ],
)
def test_the_owner_says_which_vault_it_is_not(
    vault: str, error: type[VaultError], world: World
) -> None:
    with pytest.raises(error):
        check_vault(getattr(world, vault).path, world.target.sealing)


def test_untouched_vaults_pass_both(world: World) -> None:
    for vault in world:
        assert check_vault(vault.path, vault.sealing) == vault.header
        for stage in range(2):
            with vault.opened(stage) as section:
                assert section.program == vault.stages[stage].program
                assert read_weights(section) == [w.tobytes() for w in vault.stages[stage].weights]


def test_bytes_after_the_end_are_refused_by_the_owner(
    world: World, store: Callable[[bytes], Path]
) -> None:
    with pytest.raises(VaultFormatError):
        check_vault(store(world.target.sealed + b"more"), world.target.sealing)


#: After the section was opened: what is done to the weight in tensor 4 and what comes of it.
LATER: dict[str, tuple[Callable[[World], bytes], type[VaultError]]] = {
    name: ATTACKS[name]
    for name in (
        "an empty file",
        "cut between chunks",
        "cut inside a weight",
        "a flipped bit in a weight",
        "a flipped bit in a weight's last byte",
        "a flipped bit in a tag",
        "two chunks swapped",
        "two chunks swapped under the right headers",
        "another model's chunk",
        "another model's chunk under the right header",
        "an older sealing's chunk",
        "an older sealing's chunk under the right header",
        "another plan's vault",
        "an older vault",
    )
}


@pytest.mark.parametrize("attack", LATER)
def test_a_file_rewritten_after_opening_is_refused_and_the_buffer_wiped(
    attack: str, world: World, store: Callable[[bytes], Path]
) -> None:
    mutate, error = LATER[attack]
    path = store(world.target.sealed)
    buffer = bytearray(b"x" * SIZES[3])
    with world.target.opened(path=path) as section:
        section.read_weight_into(3, memoryview(buffer))
        assert buffer == world.target.stages[0].weights[3].tobytes()
        inode = path.stat().st_ino
        path.write_bytes(mutate(world))
        assert path.stat().st_ino == inode
        with pytest.raises(VaultError) as refusal:
            section.read_weight_into(3, memoryview(buffer))
        assert type(refusal.value) is error
        assert not any(buffer)
        path.write_bytes(world.target.sealed)
        section.read_weight_into(3, memoryview(buffer))
        assert buffer == world.target.stages[0].weights[3].tobytes()


def test_the_public_header_may_change_after_opening(
    world: World, store: Callable[[bytes], Path]
) -> None:
    path = store(world.target.sealed)
    with world.target.opened(path=path) as section:
        start = span(world.target, 0).start
        path.write_bytes(os.urandom(start) + world.target.sealed[start:])
        assert read_weights(section) == [w.tobytes() for w in world.target.stages[0].weights]


def test_oversize_claims_allocate_nothing(world: World, store: Callable[[bytes], Path]) -> None:
    def enclave(path: Path) -> None:
        with world.target.opened(path=path):
            pass

    def owner(path: Path) -> None:
        check_vault(path, world.target.sealing)

    attacks = (("a public header of 4 GiB", owner), ("a chunk that claims 4 GiB", owner))
    for attack, read in (*attacks, ("a chunk that claims 4 GiB", enclave)):
        path = store(VISIBLE[attack](world))
        tracemalloc.start()
        try:
            with pytest.raises(VaultFormatError):
                read(path)
            # The enclave's one buffer for a chunk is there before anything is read.
            assert tracemalloc.get_traced_memory()[1] < CHUNK * (2 if read is enclave else 1) + (
                64 << 10
            )
        finally:
            tracemalloc.stop()


def test_neither_program_nor_weights_are_in_the_file(world: World) -> None:
    sealed = world.target.sealed
    assert b"frame" not in sealed[world.target.chunks()[0].start :]
    for stage in world.target.stages:
        for weight in stage.weights:
            pieces = [weight[at : at + 16].tobytes() for at in range(0, weight.nbytes, 4096)]
            assert not any(piece in sealed for piece in pieces[:64])


def test_equal_weights_look_different_everywhere(tmp_path: Path) -> None:
    """Tensors 1 and 2 hold the same bytes, in two stages and in two sealings."""
    stages = [small_stage((64, 64), stage=stage, stages=2) for stage in range(2)]
    same = stages[0].weights[0]
    stages = [type(s)(program=s.program, weights=(same, same)) for s in stages]
    seen = set()
    for name in ("a", "b"):
        vault = SmallVault.seal(tmp_path / name, stages, model_key=MODEL_KEY, plan_digest=PLAN)
        for stage in range(2):
            for found in vault.chunks(stage)[1:]:
                seen.add(vault.sealed[found.ciphertext : found.tag])
    assert len(seen) == 8


def test_a_chunk_is_at_most_half_a_mebibyte_and_its_overhead_eighty_bytes(world: World) -> None:
    chunks = world.target.chunks()
    assert max(found.length for found in chunks) == CHUNK
    assert OVERHEAD_BYTES == 80
    assert sum(entry.chunks for entry in world.target.header.sections) == 2 * len(chunks)
