"""Which instruction set a machine offers, told from what its kernel says of the processor."""

from __future__ import annotations

from collections.abc import Set

from vaultline.core.program import Isa

_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
_AVX2 = frozenset({"avx2", "fma"})


def isa_of(machine: str, flags: Set[str]) -> Isa:
    """The instruction set that fixes the width of the engine's blocked convolution layout.

    Args:
        machine: ``platform.machine()``.
        flags: the ``flags`` line of ``/proc/cpuinfo``, split.
    """
    if machine in ("aarch64", "arm64"):
        return "aarch64"
    if machine in ("x86_64", "AMD64") and flags >= _AVX512:
        return "x86-64-avx512"
    if machine in ("x86_64", "AMD64") and flags >= _AVX2:
        return "x86-64-avx2"
    return "portable"
