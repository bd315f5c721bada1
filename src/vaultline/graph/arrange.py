"""The arrangement of an optimised segment for a given memory: tiles of matrices, then ``fit``."""

from __future__ import annotations

from dataclasses import replace

from vaultline.core.errors import InfeasibleError
from vaultline.core.program import Isa
from vaultline.graph.fit import Arranged, Fitting
from vaultline.graph.placing import Limits
from vaultline.graph.structure import Model
from vaultline.graph.tiles import tiled

#: Channels of a block of the engine's convolution layout.
BLOCKS: dict[Isa, int] = {"portable": 1, "x86-64-avx2": 8, "x86-64-avx512": 16, "aarch64": 16}
#: Matrices are not cut into more tiles than this, whatever the memory: each is a node, which takes
#: memory of the engine's and time to compile.
_TILES_MAX = 512


class Arranger:
    """Finds the arrangement of an optimised segment for any amount of memory."""

    def __init__(self, model: Model, limits: Limits, step_bytes: int, target: Isa) -> None:
        self._model, self._limits, self._block = model, limits, BLOCKS[target]
        self._step_bytes = step_bytes
        self._fittings: dict[int, Fitting] = {}

    def found(self, memory_bytes: int, *, quickest: bool = True) -> Arranged:
        """Tiles are smaller than asked for only where nothing fits otherwise.

        Raises:
            InfeasibleError: no way of running the segment fits.
        """
        step_bytes = self._step_bytes
        while True:
            fitting = self._fitting(step_bytes)
            try:
                return fitting.found(memory_bytes, quickest=quickest)
            except InfeasibleError:
                step_bytes //= 2
                small = step_bytes < max(self._model.weight_bytes // _TILES_MAX, 1)
                if small or not fitting.tiles_are_too_large(memory_bytes):
                    raise

    def _fitting(self, step_bytes: int) -> Fitting:
        if step_bytes not in self._fittings:
            made, alone = self._model, frozenset[str]()
            if self._limits.mode != "resident":
                made, alone = tiled(made, step_bytes)
            limits = replace(self._limits, ahead_bytes=step_bytes)
            self._fittings[step_bytes] = Fitting(made, alone, limits, self._block)
        return self._fittings[step_bytes]
