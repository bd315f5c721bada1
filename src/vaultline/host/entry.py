"""How a host's process begins, and how it is told to end."""

from __future__ import annotations

import os
import signal


def first_line(bytes_max: int) -> bytes:
    """What its owner writes to standard input first: a line, or what there is of one."""
    data = bytearray()
    while not data.endswith(b"\n") and len(data) <= bytes_max:
        part = os.read(0, 1 << 16)
        if not part:
            break
        data += part
    return bytes(data)


def end_when_told() -> None:
    """Leave by the usual way upon SIGTERM, so that workers are ended; Ctrl-C is the owner's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)


def _stop(*_: object) -> None:
    raise SystemExit(0)
