"""A stage's sealed section, read in place: the program once, a weight whenever it is needed.

The host owns the file and may rewrite it at any time. So every read copies ciphertext into memory
of the enclave's own before the cipher sees it (the cipher may read it twice), everything that
decides where to read comes from the grant and the verified program, and every chunk's tag is
checked at every use. The file is read, not mapped: its pages don't count against the protected
memory, and a file cut short is an error instead of a dead process.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Iterator
from itertools import accumulate

from vaultline.channel.chunks import (
    CELL_BYTES_MAX,
    DIGEST_LABEL,
    HEADER_BYTES,
    OVERHEAD_BYTES,
    RESEAL,
    TAG_BYTES,
    ChunkOpener,
    Place,
    VaultFormatError,
    VaultOtherStageError,
    VaultTamperedError,
    VaultTruncatedError,
    chunk_header,
    mismatch,
    places,
    sealed_bytes,
)
from vaultline.core.errors import LocalProtocolError, MachineError, RemoteProtocolError
from vaultline.core.limits import PROGRAM_BYTES_MAX
from vaultline.core.program import StageProgram
from vaultline.core.section import SectionAccess
from vaultline.core.serde import from_msgpack

_WIPE_BYTES = 1 << 20
#: Held from seek to read: Gramine has no ``preadv``, and ``pread`` copies every chunk once more.
_READING = threading.Lock()


class VaultSection:
    """One stage's section of an open vault file; weights may be read from several threads.

    Attributes:
        program: the verified stage program.
    """

    def __init__(self, fd: int, access: SectionAccess) -> None:
        """Open the program, then check the whole section against the grant.

        Args:
            fd: the vault file, open for reading; stays the caller's, and open while in use.

        Raises:
            VaultError: the file is not what the owner sealed; the subclass says how.
            MachineError: the file can't be read.
        """
        self._fd, self._access = fd, access
        self._opener = ChunkOpener(access.stage_key, access)
        self._cells = [bytearray(CELL_BYTES_MAX)]
        self._end = access.section_offset + access.section_bytes
        self._offsets = [access.section_offset]
        program = bytearray(access.program_bytes)
        self._read_tensor_into(0, memoryview(program))
        self.program = _decode(program)
        self._sizes = [len(program), *(weight.spec.nbytes for weight in self.program.weights)]
        starts = accumulate(map(sealed_bytes, self._sizes), initial=access.section_offset)
        *self._offsets, end = starts
        if end != self._end:
            raise VaultFormatError(
                "the vault's weights don't have the sizes that its program says", remedy=RESEAL
            )
        if self.program.settings.stage != access.stage:
            raise VaultOtherStageError(
                "the sealed program is for another stage",
                got=f"stage {self.program.settings.stage}",
                expected=f"stage {access.stage}",
                remedy=RESEAL,
            )
        self._check_digest()

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        """Decrypt a whole weight into ``buffer``: its bytes, exactly as long as the weight.

        Raises:
            VaultError: the file was altered since it was opened; ``buffer`` has been zeroed.
            MachineError: the file can't be read; ``buffer`` has been zeroed.
        """
        if not 0 <= index < len(self.program.weights):
            raise LocalProtocolError(f"the stage has no weight {index}")
        if len(buffer) != self._sizes[index + 1]:
            raise LocalProtocolError(f"weight {index} does not fit a buffer of {len(buffer)} bytes")
        self._read_tensor_into(index + 1, buffer)

    def _chunks(self, tensor: int, size: int) -> Iterator[tuple[int, Place]]:
        """The chunks of a tensor, each with its offset in the file."""
        offset = self._offsets[tensor]
        last_tensor = offset + sealed_bytes(size) == self._end
        for place in places(tensor, size, last_tensor=last_tensor):
            yield offset, place
            offset += place.length + OVERHEAD_BYTES

    def _check_digest(self) -> None:
        """Every header and tag of the section, before any weight is used."""
        digest = hashlib.sha256(DIGEST_LABEL)
        for tensor, size in enumerate(self._sizes):
            for offset, place in self._chunks(tensor, size):
                header = _read(self._fd, offset, HEADER_BYTES)
                if header != chunk_header(self._access, place):
                    raise mismatch(self._access, header, place)
                digest.update(header)
                digest.update(_read(self._fd, offset + HEADER_BYTES + place.length, TAG_BYTES))
        if not hmac.compare_digest(digest.digest(), self._access.section_digest):
            raise VaultTamperedError(
                "the vault's section does not have the digest that the owner granted",
                got=digest.hexdigest(),
                expected=self._access.section_digest.hex(),
                remedy=RESEAL,
            )

    def _read_tensor_into(self, tensor: int, buffer: memoryview) -> None:
        try:
            cell = self._cells.pop()
        except IndexError:  # another thread is reading with it
            cell = bytearray(CELL_BYTES_MAX)
        done = 0
        try:
            for offset, place in self._chunks(tensor, len(buffer)):
                sealed = memoryview(cell)[: place.length + TAG_BYTES]
                _read_into(self._fd, offset + HEADER_BYTES, sealed)
                if not self._opener.open_into(place, sealed, buffer[done : done + place.length]):
                    raise mismatch(self._access, _read(self._fd, offset, HEADER_BYTES), place)
                done += place.length
        except BaseException:
            for start in range(0, len(buffer), _WIPE_BYTES):
                part = buffer[start : start + _WIPE_BYTES]
                part[:] = bytes(len(part))
            raise
        finally:
            self._cells.append(cell)


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


def _read(fd: int, offset: int, count: int) -> bytearray:
    data = bytearray(count)
    _read_into(fd, offset, memoryview(data))
    return data


def _read_into(fd: int, offset: int, out: memoryview) -> None:
    while len(out):
        try:
            with _READING:
                os.lseek(fd, offset, os.SEEK_SET)
                count = os.readv(fd, [out])
        except OSError as error:
            raise MachineError("the vault can't be read", got=str(error)) from error
        if count == 0:
            needed = f"at least {offset + len(out)} bytes"
            raise VaultTruncatedError("the vault ends too early", expected=needed, remedy=RESEAL)
        out, offset = out[count:], offset + count
