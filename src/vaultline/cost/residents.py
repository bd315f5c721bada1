"""Which weights stay when the steps of a pass are given and memory is too small for all of them.

A weight that stays takes its bytes for good, and less of the workspace in each step that reads it.
With the weights R staying, the stage needs R and the largest step: choose R so that this fits and
the least time goes into decrypting the others. A knapsack problem with a bound per step; greedy,
for several sizes of the workspace, is within a weight or two of the optimum (tests compare).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vaultline.core.memory import StreamRates

#: Sizes of the workspace that are tried.
_BOUNDS_TRIED = 12


class Residents:
    """The weights of one sequence of steps."""

    def __init__(
        self,
        *,
        reads: Sequence[Sequence[str]],
        alone: Sequence[int],
        sizes: Mapping[str, int],
        rates: StreamRates,
        prefetch: bool,
    ) -> None:
        """Take the steps of a pass.

        Args:
            reads: per step, the weights that it reads.
            alone: per step, bytes of the workspace that tensors take.
            sizes: bytes of every weight.
            prefetch: the next step's weights are in the workspace too.
        """
        self._reads, self._alone, self._sizes = reads, alone, sizes
        self._prefetch, self._rates = prefetch, rates
        self._steps: dict[str, list[int]] = {}
        for step, names in enumerate(reads):
            for name in names:
                self._steps.setdefault(name, []).append(step)
        # Most worth having first; of those that are worth the same, what leaves the least room.
        self._by_worth = sorted(self._steps, key=lambda n: (-self.seconds(n) / sizes[n], n))
        self._by_size = sorted(self._steps, key=lambda n: (-sizes[n], n))

    def seconds(self, name: str) -> float:
        """What streaming a weight costs in a pass."""
        once = self._sizes[name] / self._rates.decrypt_bytes_per_s + self._rates.read_s
        return len(self._steps[name]) * once

    def streamed_s(self, resident: set[str]) -> float:
        """What streaming all others costs in a pass."""
        return sum(self.seconds(name) for name in self._steps if name not in resident)

    def workspace_bytes(self, resident: set[str]) -> int:
        """What the largest step needs, tensors included."""
        return max(self._loads(resident), default=0)

    def best(self, memory_bytes: int) -> set[str] | None:
        """The weights to keep; None if the steps don't fit whatever stays."""
        least, most = max(self._alone, default=0), self.workspace_bytes(set())
        loads = sorted({load for load in self._loads(set()) if least <= load})
        stride = max(1, -(-len(loads) // _BOUNDS_TRIED))
        bounds = {*loads[::-stride], least, most, memory_bytes - sum(map(self._size, self._steps))}
        found: list[set[str]] = []
        for bound in sorted(bounds):
            forced = self._forced(bound) if bound >= least else None
            if forced is None or bound + sum(map(self._size, forced)) > memory_bytes:
                continue
            for order in (self._by_worth, self._by_size):
                found.append(self._extended(forced, order, memory_bytes - bound))
        if not found:
            return None
        chosen = min(found, key=self.streamed_s)
        return self._grown(chosen, memory_bytes)

    def _size(self, name: str) -> int:
        return self._sizes[name]

    def _loads(self, resident: set[str]) -> list[int]:
        streamed = [
            sum(self._sizes[n] for n in names if n not in resident) for names in self._reads
        ]
        ahead = [*streamed[1:], 0] if self._prefetch else [0] * len(streamed)
        return [a + b + c for a, b, c in zip(self._alone, streamed, ahead, strict=True)]

    def _forced(self, bound: int) -> set[str] | None:
        """Few bytes of weights that must stay so that no step needs more than the bound."""
        chosen: set[str] = set()
        for step in range(len(self._reads)):
            near = [step, step + 1] if self._prefetch and step + 1 < len(self._reads) else [step]
            names = {name for each in near for name in self._reads[each]} - chosen
            held = sum(self._sizes[n] for k in near for n in self._reads[k] if n not in chosen)
            excess = self._alone[step] + held - bound
            for name in sorted(names, key=lambda n: (-self._sizes[n], n)):
                if excess <= 0:
                    break
                enough = [n for n in names - chosen if self._sizes[n] >= excess]
                taken = min(enough, key=lambda n: (self._sizes[n], n)) if enough else name
                chosen.add(taken)
                excess -= self._sizes[taken] * sum(taken in self._reads[each] for each in near)
            if excess > 0:
                return None
        return chosen

    def _extended(self, chosen: set[str], order: Sequence[str], memory_bytes: int) -> set[str]:
        """With everything else that fits, in that order."""
        kept = set(chosen)
        room = memory_bytes - sum(map(self._size, kept))
        for name in order:
            if name not in kept and self._sizes[name] <= room:
                kept.add(name)
                room -= self._sizes[name]
        return kept

    def _grown(self, chosen: set[str], memory_bytes: int) -> set[str]:
        """With what fits once the workspace is only as large as it has to be."""
        kept = set(chosen)
        for name in self._by_size:
            if name in kept:
                continue
            more = {*kept, name}
            if self.workspace_bytes(more) + sum(map(self._size, more)) <= memory_bytes:
                kept = more
        return kept
