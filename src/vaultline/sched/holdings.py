"""What a server's memory is held for, counted as it comes and goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Holdings:
    """Bytes by what they are held for: ``held + free == memory`` at every instant.

    Attributes:
        fixed: workspaces for good, and what is installed.
        resident: weights that stay.
        workspace: of runs.
        carried: by requests from one group to the next.
        promised: the most that those who have begun may come to carry: a promise, not held.
        pledged: for models that will be installed as soon as there is room; not held either.
    """

    memory: int
    fixed: int
    resident: int = 0
    workspace: int = 0
    carried: int = 0
    promised: int = 0
    pledged: int = 0

    @property
    def free(self) -> int:
        """Memory that nothing holds."""
        return self.memory - self.fixed - self.resident - self.workspace - self.carried

    def by_kind(self) -> dict[str, int]:
        """What is held."""
        return {
            "fixed": self.fixed,
            "resident": self.resident,
            "workspace": self.workspace,
            "carried": self.carried,
        }
