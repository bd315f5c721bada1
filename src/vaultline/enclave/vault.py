"""A stage's sealed section, read in place: the program once, a weight whenever it is needed.

The host owns the file and may rewrite it at any time. So every chunk's ciphertext is copied into
memory of the enclave's own before the cipher sees it (the cipher may read it twice), everything
that decides where to read comes from the grant and the verified program, and every chunk's tag is
checked at every use. Weights are copied from a map of the file, whose pages are the host's page
cache and not protected memory. A file that is found cut short is an error; one that is cut in the
microseconds between that look and the copy kills the process, as the host can at any time.
"""

from __future__ import annotations

import hashlib
import hmac
import mmap
import os
import threading
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
#: Where ciphertext is copied to: of all sections of the process, one for each thread that reads.
_CELLS: list[bytearray] = []


class VaultSection:
    """One stage's section of an open vault file; weights may be read from several threads.

    Attributes:
        program: the verified stage program.
    """

    def __init__(self, fd: int, access: SectionAccess, *, mapped: bool = True) -> None:
        """Open the program, then check the whole section against the grant.

        Args:
            fd: the vault file, open for reading; stays the caller's, and open while in use.
            mapped: copy weights from a map of the file, which is a tenth quicker than reading. Not
                where maps of files take protected memory (Gramine).

        Raises:
            VaultError: the file is not what the owner sealed; the subclass says how.
            MachineError: the file can't be read.
        """
        self._fd, self._access = fd, access
        self._map: memoryview | None = None
        self._known: dict[int, list[tuple[int, Place, bytes]]] = {}
        self._opener = ChunkOpener(access.stage_key)
        self._end = access.section_offset + access.section_bytes
        self._offsets = [access.section_offset]
        program = bytearray(access.program_bytes)
        self._read_tensor_into(0, memoryview(program))
        self.program = _decode(program)
        self._sizes = [len(program), *(weight.spec.nbytes for weight in self.program.weights)]
        starts = accumulate(map(sealed_bytes, self._sizes), initial=access.section_offset)
        *self._offsets, end = starts
        self._known.clear()  # whether the program is the section's last tensor is known only now
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
        self._map = memoryview(_mapped(fd, self._end)) if mapped else None

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

    def _chunks(self, tensor: int, size: int) -> list[tuple[int, Place, bytes]]:
        """The chunks of a tensor, each with its offset in the file and the header it must have."""
        if tensor not in self._known:
            offset, found = self._offsets[tensor], []
            last_tensor = offset + sealed_bytes(size) == self._end
            for place in places(tensor, size, last_tensor=last_tensor):
                found.append((offset, place, chunk_header(self._access, place)))
                offset += place.length + OVERHEAD_BYTES
            self._known[tensor] = found
        return self._known[tensor]

    def _check_digest(self) -> None:
        """Every header and tag of the section, before any weight is used."""
        digest = hashlib.sha256(DIGEST_LABEL)
        for tensor, size in enumerate(self._sizes):
            for offset, place, expected in self._chunks(tensor, size):
                header = _read(self._fd, offset, HEADER_BYTES)
                if header != expected:
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
            cell = _CELLS.pop()
        except IndexError:  # the first of this process, or another thread is reading with it
            cell = bytearray(CELL_BYTES_MAX)
        done = 0
        try:
            if self._map is not None and _size(self._fd) < self._end:
                raise _truncated(self._end)
            for offset, place, header in self._chunks(tensor, len(buffer)):
                sealed = memoryview(cell)[: place.length + TAG_BYTES]
                start = offset + HEADER_BYTES
                if self._map is None:
                    _read_into(self._fd, start, sealed)
                else:
                    sealed[:] = self._map[start : start + len(sealed)]
                part = buffer[done : done + place.length]
                if not self._opener.open_into(place, header, sealed, part):
                    raise mismatch(self._access, _read(self._fd, offset, HEADER_BYTES), place)
                done += place.length
        except BaseException:
            for start in range(0, len(buffer), _WIPE_BYTES):
                part = buffer[start : start + _WIPE_BYTES]
                part[:] = bytes(len(part))
            raise
        finally:
            _CELLS.append(cell)


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
            raise _truncated(offset + len(out))
        out, offset = out[count:], offset + count


def _size(fd: int) -> int:
    try:
        return os.fstat(fd).st_size
    except OSError as error:
        raise MachineError("the vault can't be read", got=str(error)) from error


def _truncated(end: int) -> VaultTruncatedError:
    needed = f"at least {end} bytes"
    return VaultTruncatedError("the vault ends too early", expected=needed, remedy=RESEAL)


def _mapped(fd: int, size_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise MachineError("the vault can't be mapped", got=str(error)) from error
