"""A log of decisions as a file. Writing it never stops a server: what can't be written is left."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO

from vaultline.core.errors import InputError
from vaultline.sched.replay import LogEntry, LogHeader, encode


class EventLog:
    """An open log; ``lost`` says what went wrong if it is not complete."""

    def __init__(self, path: Path, header: LogHeader) -> None:
        """Replace whatever is there.

        Raises:
            InputError: it can't be written.
        """
        try:
            self._file: IO[bytes] = path.open("wb")
        except OSError as error:
            raise InputError("cannot write a log", got=f"{path}: {error.strerror}") from error
        self.lost: OSError | None = None
        self.write(header)

    def write(self, entry: LogEntry) -> None:
        """Append an entry."""
        if self.lost is None and not self._file.closed:
            try:
                self._file.write(encode(entry))
            except OSError as error:
                self.lost = error

    def flush(self) -> None:
        """Let others read what has been written."""
        if self.lost is None and not self._file.closed:
            try:
                self._file.flush()
            except OSError as error:
                self.lost = error

    def close(self) -> None:
        """Safe to call twice."""
        with contextlib.suppress(OSError):
            self._file.close()
