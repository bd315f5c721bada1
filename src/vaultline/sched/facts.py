"""What a scheduler knows of models and servers before the first request."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct

#: Far beyond what runs: times are kept for each number of frames, and cores are looked at in turn.
FRAMES_MAX = 1 << 16
CORES_MAX = 1 << 12


class GroupFacts(Struct, frozen=True, dict=True):
    """A step group: consecutive layers of a model, the unit of scheduling on one server.

    Attributes:
        weight_bytes: held if the group is resident, decrypted on every run if not.
        workspace_bytes: a run's tensors, besides what requests carry.
        tile_bytes: what a run takes besides for weights that it decrypts and does not keep.
        output_bytes: what a request carries from this group to the next; held until that has run.
        run_s: (frames, seconds of a run of so many), ascending from 1, weights resident.
        load_s: decrypting all weights before a run, to keep them.
        streamed_s: as ``run_s``, of runs that decrypt weights as they go and keep none; where it is
            not measured, ``load_s`` more than ``run_s``.
    """

    weight_bytes: int
    workspace_bytes: int
    tile_bytes: int
    output_bytes: int
    run_s: tuple[tuple[int, float], ...]
    load_s: float
    streamed_s: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        counts = [frames for frames, _ in self.run_s]
        rising = counts[:1] == [1] and all(a < b for a, b in pairwise(counts))
        rising = rising and counts[-1] <= FRAMES_MAX
        rising = rising and counts == [frames for frames, _ in self.streamed_s or self.run_s]
        sizes = (self.weight_bytes, self.workspace_bytes, self.tile_bytes, self.output_bytes)
        times = (self.load_s, *(seconds for _, seconds in (*self.run_s, *self.streamed_s)))
        if not rising or min(sizes) < 0 or not all(0 <= seconds < 1e9 for seconds in times):
            raise InputError("a step group has an impossible size or time", got=str(self))

    @cached_property
    def frames_max(self) -> int:
        """The most frames of one run."""
        return self.run_s[-1][0]

    @cached_property
    def by_frames(self) -> tuple[float, ...]:
        """Seconds with weights resident of 0, 1, 2.. frames."""
        return _interpolated(self.run_s)

    @cached_property
    def streamed_by_frames(self) -> tuple[float, ...]:
        """The same of runs that keep no weights."""
        if not self.streamed_s:
            return (0.0, *(seconds + self.load_s for seconds in self.by_frames[1:]))
        # A run that has nothing to decrypt is not slower, whatever the clock said.
        pairs = zip(_interpolated(self.streamed_s), self.by_frames, strict=True)
        return tuple(max(streamed_s, run_s) for streamed_s, run_s in pairs)

    @cached_property
    def decrypt_s(self) -> float:
        """What decrypting the weights adds to a run of one frame."""
        return self.streamed_by_frames[1] - self.by_frames[1]

    def seconds(self, frames: int, *, resident: bool, keep: bool = False) -> float:
        """Seconds of a run; ``keep``: weights that are not here are decrypted first, to stay."""
        if not 1 <= frames <= self.frames_max:
            raise InputError("no run has so many frames", got=str(frames))
        if resident:
            return self.by_frames[frames]
        if keep:
            return self.load_s + self.by_frames[frames]
        return self.streamed_by_frames[frames]

    def worked_s(self, frames: int, *, resident: bool) -> float:
        """Seconds of any number of frames, in runs as large as may be."""
        runs, rest = divmod(frames, self.frames_max)
        by_frames = self.by_frames if resident else self.streamed_by_frames
        return runs * by_frames[-1] + by_frames[rest]


def _interpolated(times: tuple[tuple[int, float], ...]) -> tuple[float, ...]:
    """By 0, 1, 2.. frames, between measurements on a straight line."""
    found = [0.0, times[0][1]]
    for (few, few_s), (many, many_s) in pairwise(times):
        slope = (many_s - few_s) / (many - few)
        found += [few_s + slope * (frames - few) for frames in range(few + 1, many)]
        found.append(many_s)
    return tuple(found)


class ModelFacts(Struct, frozen=True, dict=True):
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

    @cached_property
    def weight_bytes(self) -> int:
        """Of all step groups."""
        return sum(group.weight_bytes for group in self.groups)

    @cached_property
    def carried_bytes(self) -> int:
        """The most that a request takes while it waits for one of its next groups."""
        return max(group.output_bytes for group in self.groups)

    @cached_property
    def least_bytes(self) -> int:
        """The least with which a request gets through, beside what is installed."""
        return max(
            self.input_of(number) + group.workspace_bytes + group.tile_bytes + group.output_bytes
            for number, group in enumerate(self.groups)
        )

    @cached_property
    def frames_max(self) -> int:
        """The most frames of one run of any group."""
        return max(group.frames_max for group in self.groups)

    @cached_property
    def decrypt_s(self) -> float:
        """What decrypting all weights adds to one request."""
        return sum(group.decrypt_s for group in self.groups)

    @cached_property
    def alone_s(self) -> float:
        """Seconds of one request on an idle server that has nothing resident."""
        return sum(group.seconds(1, resident=False) for group in self.groups)

    @cached_property
    def full_s(self) -> float:
        """Seconds of one run of each group with as many frames as it takes, nothing resident,
        whether its weights are kept or not."""
        return sum(
            max(
                group.seconds(group.frames_max, resident=False, keep=keep) for keep in (False, True)
            )
            for group in self.groups
        )

    @cached_property
    def batched_s(self) -> float:
        """Seconds of one request among many: full runs, nothing resident."""
        return sum(
            group.seconds(group.frames_max, resident=False) / group.frames_max
            for group in self.groups
        )

    def marginal_s(self, waiting: int) -> float:
        """Seconds that one more request adds where so many wait already, weights apart."""
        return self._marginal[waiting % self.frames_max]

    @cached_property
    def _marginal(self) -> tuple[float, ...]:
        return tuple(
            sum(
                group.by_frames[count % group.frames_max + 1]
                - group.by_frames[count % group.frames_max]
                for group in self.groups
            )
            for count in range(self.frames_max)
        )


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
        right = 1 <= self.cores <= CORES_MAX and self.memory_bytes >= 1
        if not right or len(set(self.models)) < len(self.models):
            raise InputError(
                f"server {self.name!r} has no core or too many, no memory, or a model twice"
            )
