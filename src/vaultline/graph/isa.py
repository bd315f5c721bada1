"""The instruction set of the machine that compiles."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from vaultline.core.isa import isa_of
from vaultline.core.program import Isa


@cache
def local_isa() -> Isa:
    """The instruction set of this machine; ``portable`` where the kernel does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "")
    return isa_of(platform.machine(), set(flags.split()))
