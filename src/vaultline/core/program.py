"""A stage program: what one enclave executes, with every weight as an input.

Made by ``graph`` on the owner's side, sealed into the vault, read by ``enclave``. The graphs
hold no weights: those are listed separately and bound to buffers that the enclave's ledger owns.
"""

from __future__ import annotations

from typing import Literal

from vaultline.core.errors import InputError
from vaultline.core.limits import (
    FRAMES_PER_PASS_MAX,
    QUEUE_FRAMES_MAX,
    REPLICAS_MAX,
    STAGES_MAX,
    TENSORS_PER_STAGE_MAX,
)
from vaultline.core.replicas import neighbours
from vaultline.core.serde import Struct
from vaultline.core.tensors import TensorSpec, align

PROGRAM_VERSION = 2
#: Instruction sets by the width of the engine's blocked convolution layout; ``portable`` has none.
Isa = Literal["portable", "x86-64-avx2", "x86-64-avx512", "aarch64"]


#: How a stage keeps its weights: all of them; as many as fit, the others decrypted on every pass;
#: or all of them in more memory than is protected, with a page cache underneath.
Mode = Literal["resident", "streamed", "paged"]
#: What a swapped page of a paged stage costs: the cipher's work only, or as much as on SGX1.
PageMode = Literal["crypto", "sgx1"]


class Weight(Struct, frozen=True):
    """A weight of the stage; its bytes are the vault's tensor of the same index plus one.

    Attributes:
        resident_at: its offset among the weights that are kept, or None if it is streamed.
    """

    spec: TensorSpec
    resident_at: int | None = None


class StepWeight(Struct, frozen=True):
    """A weight as a step reads it.

    Attributes:
        input: the graph's name for it.
        weight: its index in the program.
        offset: where in the workspace it is decrypted to, if it is streamed.
    """

    input: str
    weight: int
    offset: int = 0


class Place(Struct, frozen=True):
    """Where a tensor is kept: ``frames`` of them side by side in the workspace, from ``offset``.

    A tensor inside a step has room for one frame, which all frames use in turn; one between steps
    for every frame of a pass; one that lives in messages for none, unless a step stacks it.
    """

    offset: int = 0
    frames: int = 0


class Step(Struct, frozen=True):
    """One call of the engine.

    Attributes:
        graph: index into the program's graphs (tiles of one shape share a graph and a session).
        feeds: (graph input name, tensor index) of each per-frame input.
        weights: each weight that it reads, once for every name.
        fetches: (graph output name, tensor index) of each per-frame output, those that only the
            step itself reads included: so the engine allocates none of them.
        stackable: frames may be stacked along axis 0 and run in one call: every feed and fetch
            has 1 as its first side and rows don't influence each other.
        activation_bytes: most that tensors in the workspace take at once while it runs.
    """

    graph: int
    feeds: tuple[tuple[str, int], ...]
    weights: tuple[StepWeight, ...]
    fetches: tuple[tuple[str, int], ...]
    stackable: bool = False
    activation_bytes: int = 0


class StageSettings(Struct, frozen=True):
    """How the stage is to be run, fixed by the plan and sealed with the program.

    Attributes:
        stage, stages: this stage's index and how many there are.
        threads: intra-op threads of the engine.
        budget_bytes: protected memory that the ledger may hand out.
        mode: how weights are kept: see ``Mode``.
        frames_per_pass: the most waiting frames that one pass takes.
        queue_frames: buffers of the input queue; when all are full the sender blocks.
        sources, replicas, targets: replicas of the stage before, of this one and of the one
            after; the owner counts as one. Which replica an enclave is, its grant says.
        next_untrusted: nothing vouches for the next stage: it gets only what the grant releases.
        page_mode: what a page costs, of a paged stage.
    """

    stage: int
    stages: int
    threads: int
    budget_bytes: int
    mode: Mode
    frames_per_pass: int
    queue_frames: int
    sources: int = 1
    replicas: int = 1
    targets: int = 1
    next_untrusted: bool = False
    page_mode: PageMode = "crypto"

    def __post_init__(self) -> None:
        checks = (
            (1 <= self.stages <= STAGES_MAX, "stages"),
            (0 <= self.stage < self.stages, "stage"),
            (1 <= self.threads <= 1024, "threads"),
            (self.budget_bytes > 0, "budget_bytes"),
            (1 <= self.frames_per_pass <= FRAMES_PER_PASS_MAX, "frames_per_pass"),
            (1 <= self.queue_frames <= QUEUE_FRAMES_MAX, "queue_frames"),
            (1 <= self.sources <= REPLICAS_MAX, "sources"),
            (1 <= self.replicas <= REPLICAS_MAX, "replicas"),
            (1 <= self.targets <= REPLICAS_MAX, "targets"),
        )
        for holds, name in checks:
            if not holds:
                raise InputError(f"stage settings: {name} is out of range", got=str(self))

    @property
    def connections(self) -> tuple[int, int]:
        """How many a replica has to the stages before and after."""
        before = neighbours(0, self.replicas, self.sources)
        return len(before), len(neighbours(0, self.replicas, self.targets))


class StageProgram(Struct, frozen=True):
    """Everything an enclave needs to run a stage, except the bytes of its weights.

    Attributes:
        engine_version: onnxruntime's version that compiled the graphs; must match exactly
            unless ``isa`` is ``portable``.
        tensors: every tensor that steps read or write; places: where each is kept.
        inputs, outputs: indices into ``tensors`` of the hop's tensors, in the hop's order. A
            tensor in both is passed through.
        graphs: serialised ONNX models whose weights are graph inputs.
        resident_bytes: of the buffer of weights that are kept.
        workspace_bytes: of the buffer that tensors and streamed weights share, each for as long as
            it is needed: the owner's side has laid out what lives at the same time apart.
        engine_bytes: what the engine takes for itself: sessions, and tensors that it allocates.
        prefetch: a step's weights are decrypted while the step before runs.
    """

    version: int
    engine_version: str
    isa: Isa
    settings: StageSettings
    tensors: tuple[TensorSpec, ...]
    places: tuple[Place, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[Weight, ...]
    graphs: tuple[bytes, ...]
    steps: tuple[Step, ...]
    resident_bytes: int = 0
    workspace_bytes: int = 0
    engine_bytes: int = 0
    prefetch: bool = False

    def __post_init__(self) -> None:
        if self.version != PROGRAM_VERSION:
            raise InputError(
                "stage program of another version",
                got=str(self.version),
                expected=str(PROGRAM_VERSION),
                remedy="seal the model again with this version of vaultline",
            )
        if len(self.tensors) > TENSORS_PER_STAGE_MAX:
            raise InputError("stage program has too many tensors", got=str(len(self.tensors)))
        self._check_references()
        self._check_places()

    def _check_places(self) -> None:
        """Nothing reaches beyond the buffer that it is in."""
        if len(self.places) != len(self.tensors) or not 0 <= self.engine_bytes <= 1 << 62:
            raise InputError("stage program does not say where each tensor is kept")
        ends = [
            (place.offset, place.frames * spec.nbytes, self.workspace_bytes)
            for place, spec in zip(self.places, self.tensors, strict=True)
            if place.frames
        ]
        for weight in self.weights:
            if weight.resident_at is not None:
                ends.append((weight.resident_at, weight.spec.nbytes, self.resident_bytes))
        for step in self.steps:
            for each in step.weights:
                weight = self.weights[each.weight]
                if weight.resident_at is None:
                    ends.append((each.offset, weight.spec.nbytes, self.workspace_bytes))
        counts = {1, self.settings.frames_per_pass}
        fine = all(place.frames in {0, *counts} for place in self.places)
        if not fine or any(start < 0 or start + size > most for start, size, most in ends):
            raise InputError("stage program places a tensor outside of its buffer")

    def _check_references(self) -> None:
        """Every index is in range, and every tensor is written before it is read, once."""
        ready = set(self.inputs)
        if len(ready) < len(self.inputs) or len(set(self.outputs)) < len(self.outputs):
            raise InputError("stage program has a tensor twice in one hop")
        if not all(0 <= index < len(self.tensors) for index in (*self.inputs, *self.outputs)):
            raise InputError("stage program names a tensor that it does not have")
        for number, step in enumerate(self.steps):
            reads = {index for _, index in step.feeds}
            writes = [index for _, index in step.fetches]
            fine = (
                0 <= step.graph < len(self.graphs)
                and all(0 <= each.weight < len(self.weights) for each in step.weights)
                and all(0 <= index < len(self.tensors) for index in writes)
                and reads <= ready
                and not ready.intersection(writes)
                and len(set(writes)) == len(writes)
                and step.activation_bytes >= 0
            )
            if not fine:
                raise InputError(f"step {number} of the stage program is inconsistent")
            ready.update(writes)
        if not ready.issuperset(self.outputs):
            raise InputError("stage program does not compute all of its outputs")

    def specs(self, indices: tuple[int, ...]) -> tuple[TensorSpec, ...]:
        """The specs of tensors by index."""
        return tuple(self.tensors[index] for index in indices)


def streamed_bytes(program: StageProgram, step: Step) -> int:
    """Bytes of the workspace that a step's streamed weights take."""
    streamed = {each.weight for each in step.weights}
    specs = [program.weights[index] for index in streamed]
    return sum(align(weight.spec.nbytes) for weight in specs if weight.resident_at is None)
