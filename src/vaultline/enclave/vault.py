"""A stage's sealed section, read in place: the program once, a weight whenever it is needed.

The host owns the file and may rewrite it at any time. So every read copies ciphertext into memory
of the enclave's own before the cipher sees it (the cipher may read it twice), everything that
decides where to read comes from the verified program, and every chunk's tag is checked at every
use. The file is read, not mapped: its pages don't count against the protected memory, and a file
cut short is an error instead of a dead process.
"""

from __future__ import annotations

import hmac
import os
from functools import partial
from itertools import accumulate

from vaultline.channel.chunks import (
    CELL_BYTES_MAX,
    HEADER_BYTES,
    RESEAL,
    TAG_BYTES,
    ChunkCipher,
    Place,
    SectionId,
    VaultError,
    VaultFormatError,
    VaultOtherStageError,
    VaultTamperedError,
    VaultTruncatedError,
    places,
    sealed_bytes,
    walk,
)
from vaultline.channel.vaultfile import read_front
from vaultline.core.errors import LocalProtocolError, MachineError, RemoteProtocolError
from vaultline.core.limits import PROGRAM_BYTES_MAX
from vaultline.core.program import StageProgram
from vaultline.core.serde import from_msgpack

_WIPE_BYTES = 1 << 20


class VaultSection:
    """One stage's section of an open vault file; weights may be read from several threads.

    Attributes:
        program: the verified stage program.
    """

    def __init__(self, fd: int, start: int, cipher: ChunkCipher, tensor_bytes: tuple[int, ...]):
        self._fd = fd
        self._cipher = cipher
        self._tensor_bytes = tensor_bytes
        self._offsets = tuple(accumulate(map(sealed_bytes, tensor_bytes), initial=start))
        self._cells = [bytearray(CELL_BYTES_MAX)]
        program = bytearray(tensor_bytes[0])
        self._read_tensor_into(0, memoryview(program))
        self.program = _decode(program)
        if tuple(weight.spec.nbytes for weight in self.program.weights) != tensor_bytes[1:]:
            raise VaultFormatError(
                "the vault's weights don't have the sizes that its program says", remedy=RESEAL
            )
        if self.program.settings.stage != cipher.section.stage:
            raise VaultOtherStageError(
                "the sealed program is for another stage",
                got=f"stage {self.program.settings.stage}",
                expected=f"stage {cipher.section.stage}",
                remedy=RESEAL,
            )

    @classmethod
    def open(
        cls,
        fd: int,
        *,
        stage: int,
        stage_key: bytes,
        section_digest: bytes,
        vault_id: bytes,
        model_id: bytes,
        plan_digest: bytes,
    ) -> VaultSection:
        """Check a stage's whole section against the grant and open its program.

        Args:
            fd: the vault file, open for reading; stays the caller's, and open while in use.
            section_digest: the grant's digest of this section; the other ids are the grant's too.

        Raises:
            VaultError: the file is not what the owner sealed; the subclass says how.
            MachineError: the file can't be read.
        """
        front = read_front(partial(_read, fd, 0, os.fstat(fd).st_size))
        start, length = front.bounds(stage)
        section = SectionId(
            vault_id=vault_id, model_id=model_id, plan_digest=plan_digest, stage=stage
        )
        outline = walk(partial(_read, fd, start, length), section)
        if not hmac.compare_digest(outline.digest, section_digest):
            raise VaultTamperedError(
                "the vault's section does not have the digest that the owner granted",
                got=outline.digest.hex(),
                expected=section_digest.hex(),
                remedy=RESEAL,
            )
        if outline.end != length:
            raise VaultFormatError(
                "the vault's section has bytes after its end",
                got=f"{length} bytes",
                expected=f"{outline.end}",
                remedy=RESEAL,
            )
        return cls(fd, start, ChunkCipher(stage_key, section), outline.tensor_bytes)

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        """Decrypt a whole weight into ``buffer``: its bytes, exactly as long as the weight.

        Raises:
            VaultError: the file was altered since it was opened; ``buffer`` has been zeroed.
            MachineError: the file can't be read; ``buffer`` has been zeroed.
        """
        if not 0 <= index < len(self.program.weights):
            raise LocalProtocolError(f"the stage has no weight {index}")
        if len(buffer) != self._tensor_bytes[index + 1]:
            raise LocalProtocolError(f"weight {index} does not fit a buffer of {len(buffer)} bytes")
        self._read_tensor_into(index + 1, buffer)

    def _read_tensor_into(self, tensor: int, buffer: memoryview) -> None:
        try:
            cell = self._cells.pop()
        except IndexError:  # another thread is reading with it
            cell = bytearray(CELL_BYTES_MAX)
        last_tensor = tensor == len(self._tensor_bytes) - 1
        offset, done = self._offsets[tensor], 0
        try:
            for place in places(tensor, len(buffer), last_tensor=last_tensor):
                target = buffer[done : done + place.length]
                self._open_chunk(offset, place, memoryview(cell), target)
                offset += place.length + HEADER_BYTES + TAG_BYTES
                done += place.length
        except BaseException:
            for start in range(0, len(buffer), _WIPE_BYTES):
                part = buffer[start : start + _WIPE_BYTES]
                part[:] = bytes(len(part))
            raise
        finally:
            self._cells.append(cell)

    def _open_chunk(self, offset: int, place: Place, cell: memoryview, out: memoryview) -> None:
        sealed = cell[: place.length + TAG_BYTES]
        _read_into(self._fd, offset + HEADER_BYTES, sealed)
        if not self._cipher.open_into(place, sealed, out):
            raise self._why(offset, place)

    def _why(self, offset: int, place: Place) -> VaultError:
        header = bytearray(HEADER_BYTES)
        _read_into(self._fd, offset, memoryview(header))
        return self._cipher.section.mismatch(header, place)


def _decode(program: bytearray) -> StageProgram:
    try:
        return from_msgpack(
            memoryview(program), StageProgram, what="the program", bytes_max=PROGRAM_BYTES_MAX
        )
    except RemoteProtocolError as error:
        raise VaultFormatError(
            "the sealed program is not one that this version can run",
            got=error.got,
            remedy="seal the model with the version of vaultline that runs it",
        ) from error


def _read(fd: int, start: int, length: int, offset: int, count: int) -> bytearray:
    """``count`` bytes at ``offset`` of the region of ``length`` bytes at ``start``."""
    if offset + count > length:
        raise _truncated(start + offset + count)
    data = bytearray(count)
    _read_into(fd, start + offset, memoryview(data))
    return data


def _read_into(fd: int, offset: int, out: memoryview) -> None:
    while len(out):
        try:
            count = os.preadv(fd, [out], offset)
        except OSError as error:
            raise MachineError("the vault can't be read", got=str(error)) from error
        if count == 0:
            raise _truncated(offset + len(out))
        out, offset = out[count:], offset + count


def _truncated(needed: int) -> VaultTruncatedError:
    return VaultTruncatedError(
        "the vault ends too early", expected=f"at least {needed} bytes", remedy=RESEAL
    )
