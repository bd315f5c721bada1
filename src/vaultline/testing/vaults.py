"""Small vaults: programs without steps, weights of any size, and where each chunk lies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaultline.channel.chunks import HEADER_BYTES, TAG_BYTES, places
from vaultline.channel.vaultfile import VaultHeader, read_front
from vaultline.core.program import PROGRAM_VERSION, Place, StageProgram, StageSettings, Weight
from vaultline.core.serde import to_msgpack
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.vault import VaultSection
from vaultline.owner.seal import Sealing, seal_vault


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallStage:
    """A stage that passes its input through and owns some weights."""

    program: StageProgram
    weights: tuple[NDArray[np.uint8], ...] = field(repr=False)


def small_stage(
    weight_bytes: Sequence[int],
    *,
    stage: int = 0,
    stages: int = 1,
    replicas: tuple[int, int, int] = (1, 1, 1),
) -> SmallStage:
    """A stage with weights of these sizes, filled from a generator seeded with the stage.

    ``replicas`` are those of the stage before, of this one and of the one after.
    """
    random = np.random.default_rng(stage)
    settings = StageSettings(
        stage=stage,
        stages=stages,
        threads=1,
        budget_bytes=1 << 20,
        mode="streamed",
        frames_per_pass=1,
        queue_frames=2,
        sources=replicas[0],
        replicas=replicas[1],
        targets=replicas[2],
    )
    program = StageProgram(
        version=PROGRAM_VERSION,
        engine_version="1.0.0",
        isa="portable",
        settings=settings,
        tensors=(TensorSpec(name="frame", dtype="float32", shape=(1, 3)),),
        places=(Place(),),
        inputs=(0,),
        outputs=(0,),
        weights=tuple(
            Weight(spec=TensorSpec(name=f"w{index}", dtype="uint8", shape=(size,)))
            for index, size in enumerate(weight_bytes)
        ),
        graphs=(),
        steps=(),
    )
    weights = tuple(random.integers(0, 256, size, np.uint8) for size in weight_bytes)
    return SmallStage(program=program, weights=weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSpan:
    """Where one chunk lies in the file."""

    tensor: int
    chunk: int
    start: int
    length: int

    @property
    def ciphertext(self) -> int:
        """Offset of the ciphertext."""
        return self.start + HEADER_BYTES

    @property
    def tag(self) -> int:
        """Offset of the tag."""
        return self.ciphertext + self.length

    @property
    def end(self) -> int:
        """Offset of what follows."""
        return self.tag + TAG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallVault:
    """A sealed vault, everything that was sealed into it, and its bytes."""

    path: Path
    stages: tuple[SmallStage, ...]
    model_key: bytes
    sealing: Sealing
    sealed: bytes = field(repr=False)

    @classmethod
    def seal(
        cls, path: Path, stages: Sequence[SmallStage], *, model_key: bytes, plan_digest: bytes
    ) -> SmallVault:
        """Seal the stages to ``path``."""
        sealing = seal_vault(
            path, stages, model_key=model_key, plan_digest=plan_digest, model_digest="00" * 32
        )
        return cls(
            path=path,
            stages=tuple(stages),
            model_key=model_key,
            sealing=sealing,
            sealed=path.read_bytes(),
        )

    @property
    def header(self) -> VaultHeader:
        """The public header."""
        return read_front(lambda offset, count: self.sealed[offset : offset + count]).header

    def chunks(self, stage: int = 0) -> list[ChunkSpan]:
        """Every chunk of a stage's section in order."""
        front = read_front(lambda offset, count: self.sealed[offset : offset + count])
        start, _ = front.bounds(stage)
        built = self.stages[stage]
        spans = []
        sizes = (len(to_msgpack(built.program)), *(weight.nbytes for weight in built.weights))
        for tensor, size in enumerate(sizes):
            for place in places(tensor, size, last_tensor=tensor == len(sizes) - 1):
                span = ChunkSpan(tensor=tensor, chunk=place.chunk, start=start, length=place.length)
                spans.append(span)
                start = span.end
        return spans

    @contextmanager
    def opened(
        self, stage: int = 0, path: Path | None = None, *, mapped: bool = True
    ) -> Iterator[VaultSection]:
        """The stage's section as an enclave with the right grant sees it in a file."""
        fd = os.open(path or self.path, os.O_RDONLY)
        try:
            yield VaultSection(fd, self.sealing.access(self.model_key, stage), mapped=mapped)
        finally:
            os.close(fd)


def read_weights(section: VaultSection) -> list[bytes]:
    """Every weight of a section."""
    weights = []
    for index, weight in enumerate(section.program.weights):
        buffer = bytearray(weight.spec.nbytes)
        section.read_weight_into(index, memoryview(buffer))
        weights.append(bytes(buffer))
    return weights
