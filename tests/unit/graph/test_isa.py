"""Instruction sets from what the kernel says."""

from __future__ import annotations

import pytest

from vaultline.core.isa import isa_of
from vaultline.graph.isa import local_isa

AVX2 = {"sse4_2", "avx", "avx2", "fma"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
CASES = {
    "a server of today": ("x86_64", AVX512, "x86-64-avx512"),
    "Windows names it otherwise": ("AMD64", AVX512, "x86-64-avx512"),
    "a laptop": ("x86_64", AVX2, "x86-64-avx2"),
    "AVX-512 in part is not enough": ("x86_64", AVX2 | {"avx512f"}, "x86-64-avx2"),
    "AVX2 without FMA is not enough": ("x86_64", {"avx2"}, "portable"),
    "an old one": ("x86_64", {"sse4_2"}, "portable"),
    "ARM": ("aarch64", set(), "aarch64"),
    "another": ("riscv64", AVX512, "portable"),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_isa_of(case: str) -> None:
    machine, flags, expected = CASES[case]
    assert isa_of(machine, flags) == expected


def test_this_machine_has_one() -> None:
    assert local_isa() in ("portable", "x86-64-avx2", "x86-64-avx512", "aarch64")
