"""What a scheduler knows of models and servers before the first request."""

from __future__ import annotations

from itertools import pairwise

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct


class GroupFacts(Struct, frozen=True):
    """A step group: consecutive layers of a model, the unit of scheduling on one server.

    Attributes:
        weight_bytes: held if the group is resident, decrypted on every run if not.
        workspace_bytes: a run's tensors, besides what requests carry.
        tile_bytes: what a run takes besides for weights that it decrypts and does not keep.
        output_bytes: what a request carries from this group to the next; held until that has run.
        run_s: (frames, seconds of a run of so many), ascending from 1, weights resident.
        load_s: what decrypting the weights adds to a run, or costs once to keep them.
    """

    weight_bytes: int
    workspace_bytes: int
    tile_bytes: int
    output_bytes: int
    run_s: tuple[tuple[int, float], ...]
    load_s: float

    def __post_init__(self) -> None:
        counts = [frames for frames, _ in self.run_s]
        rising = counts[:1] == [1] and all(a < b for a, b in pairwise(counts))
        sizes = (self.weight_bytes, self.workspace_bytes, self.tile_bytes, self.output_bytes)
        times = (self.load_s, *(seconds for _, seconds in self.run_s))
        if not rising or min(sizes) < 0 or not all(0 <= seconds < 1e9 for seconds in times):
            raise InputError("a step group has an impossible size or time", got=str(self))

    @property
    def frames_max(self) -> int:
        """The most frames of one run."""
        return self.run_s[-1][0]

    def seconds(self, frames: int, *, resident: bool) -> float:
        """Seconds of a run; between measured numbers of frames interpolated."""
        if not 1 <= frames <= self.frames_max:
            raise InputError("no run has so many frames", got=str(frames))
        run_s = self.run_s[0][1]
        for (few, few_s), (many, many_s) in pairwise(self.run_s):
            if few <= frames <= many:
                run_s = few_s + (many_s - few_s) * (frames - few) / (many - few)
        return run_s if resident else run_s + self.load_s


class ModelFacts(Struct, frozen=True):
    """A model that a cluster serves.

    Attributes:
        fixed_bytes: held for every core of a server where the model is installed: sessions.
        input_bytes: of one request's message, held while the first group runs.
        install_s: that a core needs to install it.
    """

    name: str
    groups: tuple[GroupFacts, ...]
    fixed_bytes: int
    input_bytes: int
    install_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.groups or min(self.fixed_bytes, self.input_bytes, self.install_s) < 0:
            raise InputError(f"model {self.name!r} has no step group or a negative size")

    def input_of(self, group: int) -> int:
        """Bytes of a request's message before a group."""
        return self.groups[group - 1].output_bytes if group else self.input_bytes

    @property
    def load_s(self) -> float:
        """Decrypting all weights once."""
        return sum(group.load_s for group in self.groups)

    @property
    def alone_s(self) -> float:
        """Seconds of one request on an idle server that has nothing resident."""
        return sum(group.seconds(1, resident=False) for group in self.groups)

    def marginal_s(self, waiting: int) -> float:
        """Seconds that one more request adds where so many wait already, weights apart."""
        total = 0.0
        for group in self.groups:
            most = group.frames_max
            many = waiting % most + 1
            few = group.seconds(many - 1, resident=True) if many > 1 else 0.0
            total += group.seconds(many, resident=True) - few
        return total


class ServerFacts(Struct, frozen=True):
    """A server: one worker process with a budget of protected memory, and some cores.

    Attributes:
        models: installed from the start.
        fixed_bytes: held from the start to the end: workspaces that runs share, one for each core.
    """

    name: str
    cores: int
    memory_bytes: int
    models: tuple[str, ...]
    fixed_bytes: int = 0

    def __post_init__(self) -> None:
        if self.cores < 1 or self.memory_bytes < 1 or len(set(self.models)) < len(self.models):
            raise InputError(f"server {self.name!r} has no core, no memory, or a model twice")
