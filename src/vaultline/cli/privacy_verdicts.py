"""What follows from a leakage report at a limit, and where a rule of thumb says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from vaultline.core.leakage import CutLeakage, LeakageReport
from vaultline.privacy import RESOLUTION_RULE_PX


@dataclass(frozen=True)
class Verdicts:
    """A report read at a limit of ``reconstruction``."""

    report: LeakageReport
    limit: float

    def attack_succeeds(self, cut: CutLeakage) -> bool:
        """Whether the reconstruction goes beyond the limit."""
        return cut.reconstruction > self.limit

    @staticmethod
    def rule_passes(cut: CutLeakage) -> bool:
        """Whether the 20-pixel rule would release the cut's tensors."""
        return cut.resolution_px <= RESOLUTION_RULE_PX

    def verdict(self, cut: CutLeakage) -> str:
        """A word or two for a table."""
        word = "shows" if self.attack_succeeds(cut) else "below the limit"
        if self.attack_succeeds(cut) == self.rule_passes(cut):
            word += ", rule: passes" if self.rule_passes(cut) else ", rule: fails"
        return word

    @cached_property
    def missed(self) -> tuple[int, ...]:
        """Positions that the rule would release although the attack succeeds."""
        return tuple(
            cut.position
            for cut in self.report.cuts
            if self.rule_passes(cut) and self.attack_succeeds(cut)
        )

    @cached_property
    def overcautious(self) -> tuple[int, ...]:
        """Positions that the rule would keep although the attack gets nowhere."""
        return tuple(
            cut.position
            for cut in self.report.cuts
            if not self.rule_passes(cut) and not self.attack_succeeds(cut)
        )

    @cached_property
    def safe_from(self) -> int | None:
        """The first position from which on no measured cut is beyond the limit.

        Who holds a tensor and knows the weights can compute every later one, so a cut is no better
        than the worst after it.
        """
        first = None
        for cut in reversed(self.report.cuts):
            if self.attack_succeeds(cut):
                break
            first = cut.position
        return first

    def later_is_worse(self, cut: CutLeakage) -> CutLeakage | None:
        """The later cut, if any, that is beyond the limit where this one is not."""
        if self.attack_succeeds(cut):
            return None
        later = [
            other
            for other in self.report.cuts
            if other.position > cut.position and self.attack_succeeds(other)
        ]
        return max(later, key=lambda other: other.reconstruction, default=None)

    @property
    def sentence(self) -> str:
        """The whole in a sentence."""
        if self.safe_from is None:
            return f"the attack gets beyond {self.limit:g} even at the last cut measured"
        if self.safe_from == self.report.positions[0]:
            return f"the attack gets beyond {self.limit:g} at none of the cuts measured"
        return (
            f"from position {self.safe_from} on, the attack gets back at most {self.limit:g} "
            "at every cut measured (0 is a guess, 1 a copy)"
        )
