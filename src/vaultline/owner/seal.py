"""Sealing: compiled stages become one vault file that any host may store.

The file is written chunk by chunk from the stages' own buffers, so sealing needs a few MiB beside
them, and it appears under its name only when it is complete.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from vaultline.channel.chunks import (
    OVERHEAD_BYTES,
    RESEAL,
    Buffer,
    VaultFormatError,
    VaultOtherModelError,
    VaultOtherPlanError,
    VaultStaleError,
    VaultTamperedError,
    VaultTruncatedError,
    chunk_count,
    places,
    sealed_bytes,
)
from vaultline.channel.sections import KEY_BYTES, VAULT_TENSORS_MAX, ChunkSealer, walk
from vaultline.channel.vaultfile import (
    Front,
    SectionEntry,
    VaultHeader,
    read_front,
    write_front,
)
from vaultline.core.errors import InputError, MachineError, VaultlineError
from vaultline.core.limits import PROGRAM_BYTES_MAX, STAGES_MAX, VAULT_CHUNK_BYTES_MAX
from vaultline.core.program import StageProgram
from vaultline.core.section import SectionAccess, SectionId
from vaultline.core.serde import Struct, to_msgpack

ID_BYTES, DIGEST_BYTES, SALT_BYTES = 16, 32, 32
_STAGE_LABEL = b"vaultline stage key v1"
_MODEL_LABEL = b"vaultline model id v1"

WeightBytes = NDArray[Any] | Buffer


class SealableStage(Protocol):
    """A compiled stage: the program, and a C-contiguous buffer for each of its weights."""

    @property
    def program(self) -> StageProgram: ...
    @property
    def weights(self) -> Sequence[WeightBytes]: ...


class SealedSection(Struct, frozen=True):
    """One stage's section: its digest, its place in the file, and the size of its program."""

    digest: bytes
    offset: int
    length: int
    program_bytes: int


class Sealing(Struct, frozen=True):
    """What the owner must remember of a vault, out of the host's reach: see ``keyfile``.

    Attributes:
        salt: with the model key, the plan digest and a stage it gives that stage's key.
        front_digest: of the vault's public header.
        sections: every stage's section, for the grants.
    """

    vault_id: bytes
    model_id: bytes
    plan_digest: bytes
    model_digest: str
    created: str
    salt: bytes
    front_digest: bytes
    sections: tuple[SealedSection, ...]

    def __post_init__(self) -> None:
        digests = (self.plan_digest, self.front_digest, *(part.digest for part in self.sections))
        if (
            not 1 <= len(self.sections) <= STAGES_MAX
            or {len(digest) for digest in digests} != {DIGEST_BYTES}
            or (len(self.vault_id), len(self.model_id)) != (ID_BYTES, ID_BYTES)
            or len(self.salt) != SALT_BYTES
        ):
            raise InputError("a sealing's ids, salt or digests have a wrong length")

    def stage_key(self, model_key: bytes, stage: int) -> bytes:
        """The key of one stage's section."""
        return derive_stage_key(
            model_key, salt=self.salt, plan_digest=self.plan_digest, stage=stage
        )

    def access(self, model_key: bytes, stage: int) -> SectionAccess:
        """What opens one stage's section, for its grant."""
        section = self.sections[stage]
        return SectionAccess(
            vault_id=self.vault_id,
            model_id=self.model_id,
            plan_digest=self.plan_digest,
            stage=stage,
            stage_key=self.stage_key(model_key, stage),
            section_digest=section.digest,
            section_offset=section.offset,
            section_bytes=section.length,
            program_bytes=section.program_bytes,
        )


def derive_stage_key(model_key: bytes, *, salt: bytes, plan_digest: bytes, stage: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) of the model key; info is a label, the plan digest and the stage."""
    info = _STAGE_LABEL + plan_digest + stage.to_bytes(4, "big")
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(model_key)


def derive_model_id(model_key: bytes) -> bytes:
    """A public name for a model key: 16 bytes that say nothing else of it."""
    hkdf = HKDF(algorithm=hashes.SHA256(), length=ID_BYTES, salt=None, info=_MODEL_LABEL)
    return hkdf.derive(model_key)


def seal_vault(
    path: Path,
    stages: Sequence[SealableStage],
    *,
    model_key: bytes,
    plan_digest: bytes,
    model_digest: str,
    created: datetime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sealing:
    """Seal compiled stages, in the plan's order, to a vault file.

    Args:
        model_key: 32 bytes; the same key may seal a model any number of times.
        progress: called with (bytes written, bytes in all) after every chunk.

    Raises:
        InputError: stages don't fit together, or a weight's buffer doesn't fit its spec.
        MachineError: the file can't be written; what was there before is untouched.
    """
    programs = [_checked_program(number, stage, len(stages)) for number, stage in enumerate(stages)]
    sizes = [
        (len(program), *(weight.spec.nbytes for weight in stage.program.weights))
        for program, stage in zip(programs, stages, strict=True)
    ]
    header = VaultHeader(
        vault_id=secrets.token_bytes(ID_BYTES),
        model_id=derive_model_id(model_key),
        plan_digest=plan_digest,
        created=(created or datetime.now(UTC)).isoformat(timespec="seconds"),
        sections=_entries(stages, sizes),
    )
    salt = secrets.token_bytes(SALT_BYTES)
    front, front_digest = write_front(header)
    end = header.sections[-1].offset + header.sections[-1].length
    meter = _Meter(progress, len(front) + end)
    sections = []
    with replaced_atomically(path) as file:
        meter.wrote(file.write(front))
        for number, stage in enumerate(stages):
            key = derive_stage_key(model_key, salt=salt, plan_digest=plan_digest, stage=number)
            sealer = ChunkSealer(key, _section_id(header, number))
            _write_section(file, sealer, (programs[number], *stage.weights), meter)
            sections.append(
                SealedSection(
                    digest=sealer.digest(),
                    offset=len(front) + header.sections[number].offset,
                    length=header.sections[number].length,
                    program_bytes=len(programs[number]),
                )
            )
    return Sealing(
        vault_id=header.vault_id,
        model_id=header.model_id,
        plan_digest=plan_digest,
        model_digest=model_digest,
        created=header.created,
        salt=salt,
        front_digest=front_digest,
        sections=tuple(sections),
    )


def check_vault(path: Path, sealing: Sealing) -> VaultHeader:
    """Compare a vault with the owner's record of it: header, and every chunk's header and tag.

    Reads 80 bytes per chunk. Altered ciphertext is found by the enclave, which checks every tag.

    Raises:
        VaultError: not the vault of this record; the subclass says why.
        MachineError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size
            front = _read_front(file, end)
            _check_front(front, sealing)
            for stage, sealed in enumerate(sealing.sections):
                start, length = front.bounds(stage)
                section = _section_id(sealing, stage)
                outline = walk(_reader(file, start, min(end, start + length)), section)
                if (outline.digest, outline.end) != (sealed.digest, length):
                    raise VaultTamperedError(
                        f"the section of stage {stage} was altered since it was sealed",
                        got=outline.digest.hex(),
                        expected=sealed.digest.hex(),
                        remedy=RESEAL,
                    )
            if end != start + length:
                raise VaultFormatError("the vault has bytes after its end", remedy=RESEAL)
    except OSError as error:
        raise _unreadable(path, error) from error
    return front.header


def read_vault_header(path: Path) -> VaultHeader:
    """The public header of a vault file, unverified.

    Raises:
        VaultTruncatedError: the file ends inside the header.
        VaultFormatError: not a vault.
        MachineError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            return _read_front(file, os.fstat(file.fileno()).st_size).header
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> VaultlineError:
    """A wrong name is the user's to correct; anything else is the machine's."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return InputError(
            f"there is no vault at {path}",
            got=error.strerror,
            expected="the file that `vaultline seal` wrote",
            remedy="name that file, or seal the model",
        )
    return MachineError("the vault can't be read", got=str(error))


@contextmanager
def replaced_atomically(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Write a new file beside ``path`` and give it that name once it is complete and on disk.

    Raises:
        MachineError: it can't be written; whatever was at ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(fd, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MachineError(
            f"cannot write {path}", got=str(error), remedy="check the folder, its rights and space"
        ) from error


class _Meter:
    """Adds up what was written for the progress callback."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def wrote(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _checked_program(number: int, stage: SealableStage, stages: int) -> bytes:
    """The encoded program of a stage whose weights are what it says."""
    program = stage.program
    if (program.settings.stage, program.settings.stages) != (number, stages):
        raise InputError(
            "the stages to seal are not in the order of one plan",
            got=f"stage {program.settings.stage} of {program.settings.stages}",
            expected=f"stage {number} of {stages}",
        )
    if len(stage.weights) != len(program.weights) or len(stage.weights) >= VAULT_TENSORS_MAX:
        raise InputError(
            f"stage {number} has a wrong number of weights",
            got=str(len(stage.weights)),
            expected=f"{len(program.weights)}, and fewer than {VAULT_TENSORS_MAX}",
        )
    for weight, data in zip(program.weights, stage.weights, strict=True):
        size = data.nbytes if isinstance(data, np.ndarray) else memoryview(data).nbytes
        if size != weight.spec.nbytes:
            raise InputError(
                f"the data of weight {weight.spec.name!r} does not fit its shape",
                got=f"{size} bytes",
                expected=f"{weight.spec.nbytes} bytes",
            )
    encoded = to_msgpack(program)
    if len(encoded) > PROGRAM_BYTES_MAX:
        raise InputError(
            f"the program of stage {number} is too long",
            got=f"{len(encoded)} bytes",
            expected=f"at most {PROGRAM_BYTES_MAX}",
            remedy="cut the model into more stages",
        )
    return encoded


def _entries(
    stages: Sequence[SealableStage], sizes: Sequence[Sequence[int]]
) -> tuple[SectionEntry, ...]:
    entries, offset = [], 0
    for stage, tensor_bytes in zip(stages, sizes, strict=True):
        entry = SectionEntry(
            offset=offset,
            length=sum(map(sealed_bytes, tensor_bytes)),
            chunks=sum(map(chunk_count, tensor_bytes)),
            isa=stage.program.isa,
            engine_version=stage.program.engine_version,
        )
        entries.append(entry)
        offset += entry.length
    return tuple(entries)


def _write_section(
    file: BinaryIO, sealer: ChunkSealer, tensors: Sequence[WeightBytes], meter: _Meter
) -> None:
    """Seal the tensors one after another."""
    chunk = memoryview(bytearray(VAULT_CHUNK_BYTES_MAX + OVERHEAD_BYTES))
    for tensor, data in enumerate(map(_as_bytes, tensors)):
        done = 0
        for place in places(tensor, len(data), last_tensor=tensor == len(tensors) - 1):
            sealed = sealer.seal_into(place, data[done : done + place.length], chunk)
            meter.wrote(file.write(sealed))
            done += place.length


def _as_bytes(data: WeightBytes) -> memoryview:
    """A tensor's bytes in row-major order, without a copy where they already are."""
    if isinstance(data, np.ndarray):  # numpy's own view: some element types export no buffer
        return memoryview(data.reshape(-1).view(np.uint8).data)
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _section_id(sealing: Sealing | VaultHeader, stage: int) -> SectionId:
    return SectionId(
        vault_id=sealing.vault_id,
        model_id=sealing.model_id,
        plan_digest=sealing.plan_digest,
        stage=stage,
    )


def _check_front(front: Front, sealing: Sealing) -> None:
    header = front.header
    checks = (
        (header.model_id, sealing.model_id, VaultOtherModelError, "under another model's key"),
        (header.plan_digest, sealing.plan_digest, VaultOtherPlanError, "for another plan"),
        (header.vault_id, sealing.vault_id, VaultStaleError, "at another time"),
    )
    for got, expected, kind, what in checks:
        if got != expected:
            raise kind(
                f"the vault was sealed {what}",
                got=f"{got.hex()}, which says it was sealed {header.created}",
                expected=f"{expected.hex()}, sealed {sealing.created}",
                remedy=RESEAL,
            )
    if front.digest != sealing.front_digest:
        raise VaultTamperedError("the vault's header was altered", remedy=RESEAL)


def _read_front(file: BinaryIO, end: int) -> Front:
    return read_front(_reader(file, 0, end))


def _reader(file: BinaryIO, start: int, end: int) -> Callable[[int, int], bytes]:
    """Reads relative to ``start`` and never past ``end``."""

    def read(offset: int, count: int) -> bytes:
        data = b""
        if start + offset + count <= end:
            file.seek(start + offset)
            data = file.read(count)
        if len(data) < count:
            raise VaultTruncatedError(
                "the vault ends too early",
                got=f"{end} bytes",
                expected=f"at least {start + offset + count}",
                remedy=RESEAL,
            )
        return data

    return read
