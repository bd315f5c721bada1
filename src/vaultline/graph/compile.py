"""Compiling a segment into a stage program in which no weight is a constant."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime as ort
from msgspec import structs

from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.frame_meta import hop_buffers_bytes
from vaultline.core.frames import FrameLayout
from vaultline.core.memory import StreamRates
from vaultline.core.paged import PAGE_BYTES, step_pages, tensor_bytes
from vaultline.core.program import (
    PROGRAM_VERSION,
    Isa,
    Place,
    StageProgram,
    StageSettings,
    Step,
    StepWeight,
    Weight,
)
from vaultline.core.tensors import TensorSpec
from vaultline.graph import engine, parse
from vaultline.graph.canonical import step_graph
from vaultline.graph.extract import extract
from vaultline.graph.isa import local_isa
from vaultline.graph.layout import Layout, Limits, lay_out
from vaultline.graph.order import as_run
from vaultline.graph.rewrite import rewrite
from vaultline.graph.steps import Part, regions
from vaultline.graph.structure import Array, Model, Node, raw_bytes, with_sizes
from vaultline.graph.takings import fixed_bytes, steps_bytes, unbounded
from vaultline.graph.tiles import tiled
from vaultline.graph.turn import turned

#: Where memory is short, tiles of a matrix are halved down to this.
_TILE_BYTES_MIN = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledStage:
    """A stage program and the bytes of its weights, in the program's order."""

    program: StageProgram
    weights: tuple[memoryview, ...]


def compile_segment(
    model: Model,
    first: int,
    last: int,
    *,
    settings: StageSettings,
    step_bytes: int,
    rates: StreamRates | None = None,
    prefetch: bool = False,
    portable: bool = False,
    isa: Isa | None = None,
    rewrites: bool = True,
) -> CompiledStage:
    """Compile nodes ``[first, last)`` of a model.

    Args:
        settings: sealed with the program; its mode decides how the segment is cut into steps.
        step_bytes: when weights are streamed, the largest tile of a Gemm or MatMul.
        rates: of the device; they decide what is worth keeping.
        prefetch: decrypt a step's weights while the step before runs, on another core.
        portable: standard operators only, no blocked layout: any engine version may run it.
        isa: the instruction set of the device, by default this machine's.
        rewrites: apply the rewrites of ``rewrite``.

    Raises:
        InputError: no such segment, an unusable cut, an instruction set that is not this
            machine's (the engine can prepare the blocked layout for its own only), or more memory
            needed than the settings grant.
    """
    target = _target(portable, isa)
    plain = extract(model, first, last)
    source = rewrite(plain) if rewrites else plain
    made = optimised(source, blocked=target != "portable")
    if settings.mode == "streamed" and (reason := unbounded(made)) is not None:
        raise InfeasibleError(
            "the segment's memory has no bound, so its weights can't be streamed",
            got=reason,
            expected="tensors whose sizes are known before the model runs",
            remedy="give the device more memory, so that the stage may be resident, or cut the "
            "model around that node",
        )
    tile_bytes, ahead = step_bytes, prefetch and settings.mode == "streamed"
    while True:
        try:
            made, layout, taken = _planned(
                made, settings, tile_bytes, rates or StreamRates(), prefetch=ahead
            )
            break
        except InfeasibleError:
            # Smaller tiles need less.
            if settings.mode != "streamed" or tile_bytes < 2 * _TILE_BYTES_MIN:
                raise
            tile_bytes //= 2
    stage = _assemble(made, layout, settings, target, taken, prefetch=ahead)
    if settings.mode != "paged":
        return stage
    io = io_bytes(settings, made.inputs, made.outputs)
    return _paged(stage, settings.budget_bytes - io - taken)


def _paged(stage: CompiledStage, memory_bytes: int) -> CompiledStage:
    """What a step touches is there at once, in whole pages; tensors of other steps need not be.

    Raises:
        InfeasibleError: the page cache has too few.
    """
    program = stage.program
    most, capacity = max(step_pages(program), default=0), memory_bytes // PAGE_BYTES
    if most > capacity:
        raise InfeasibleError(
            "the segment can't be paged in so little protected memory",
            got=f"{capacity:,} pages of {PAGE_BYTES:,} bytes",
            expected=f"at least {most:,} for the largest step",
            remedy="give the device more memory, take fewer frames a pass, or cut the model",
        )
    steps = tuple(
        structs.replace(step, activation_bytes=tensor_bytes(program, step))
        for step in program.steps
    )
    return replace(stage, program=structs.replace(program, steps=steps))


def io_bytes(
    settings: StageSettings, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> int:
    """The message buffers of both hops."""
    before, after = (FrameLayout(specs, settings.stages) for specs in (inputs, outputs))
    return hop_buffers_bytes(
        queue_frames=max(settings.queue_frames, settings.frames_per_pass),
        frames_per_pass=settings.frames_per_pass,
        input_bytes=before.message_bytes,
        output_bytes=after.message_bytes,
        connections=settings.connections,
    )


def _planned(
    model: Model, settings: StageSettings, tile_bytes: int, rates: StreamRates, *, prefetch: bool
) -> tuple[Model, Layout, int]:
    """The model as it is run, its layout, and what the engine takes."""
    alone: frozenset[str] = frozenset()
    if settings.mode != "resident":
        model, alone = tiled(model, tile_bytes)
    parts = regions(model)
    if settings.mode == "resident":
        # A streamed tile is in cache when it is multiplied: packing it costs little.
        model, parts = turned(model, parts)
    layout, taken = _laid_out(model, parts, alone, settings, rates, tile_bytes * prefetch)
    return model, layout, taken


def _laid_out(
    model: Model,
    parts: Sequence[Part],
    alone: frozenset[str],
    settings: StageSettings,
    rates: StreamRates,
    ahead_bytes: int,
) -> tuple[Layout, int]:
    """The layout, and what the engine takes: the more steps there are, the more."""
    frames = settings.frames_per_pass
    io = io_bytes(settings, model.inputs, model.outputs)
    fixed = fixed_bytes(model, parts, alone, frames, settings.threads)
    taken = fixed + steps_bytes(model, parts, frames)
    while True:
        limits = Limits(
            mode=settings.mode,
            memory_bytes=settings.budget_bytes - io - taken,
            frames=frames,
            prefetch=ahead_bytes > 0,
            rates=rates,
            ahead_bytes=ahead_bytes,
        )
        layout = lay_out(model, parts, alone, limits)
        needed = fixed + steps_bytes(model, layout.parts, frames)
        if needed <= taken:
            return layout, needed
        taken = needed + needed // 64


def _target(portable: bool, isa: Isa | None) -> Isa:
    target = "portable" if portable else isa or local_isa()
    if target not in ("portable", local_isa()):
        raise InputError(
            "the stage cannot be compiled for that instruction set on this machine",
            got=target,
            expected=local_isa(),
            remedy="compile on a machine of that kind, or compile the portable variant",
        )
    return target


def optimised(model: Model, *, blocked: bool) -> Model:
    """The segment after the engine's offline optimisation, with the shape of every tensor."""
    levels = ort.GraphOptimizationLevel
    level = levels.ORT_ENABLE_ALL if blocked else levels.ORT_ENABLE_BASIC
    if not engine.computed(model):
        return replace(model, nodes=(), weights={})
    with tempfile.TemporaryDirectory(prefix="vaultline-") as folder:
        proto = engine.optimise(model, level, Path(folder))
        # Maps of the files outlive the folder: the kernel keeps what is mapped.
        weights = parse.read_weights(proto.graph, Path(folder))
        protos = parse.take_constants(proto.graph, weights, Path(folder))
    protos = parse.returned(protos, proto.graph, weights)
    known = [*weights, *(spec.name for spec in model.inputs)]
    nodes = _live(parse.in_order(protos, known), {spec.name for spec in model.outputs})
    nodes = as_run(nodes)
    read = {name for node in nodes for name in node.reads}
    result = replace(
        model,
        opsets=_opsets(nodes, {item.domain: item.version for item in proto.opset_import}),
        nodes=tuple(nodes),
        weights={name: array for name, array in weights.items() if name in read},
        origin=None,
    )
    specs = {spec.name: spec for spec in (*model.inputs, *model.outputs)}
    made = [name for node in nodes for name in node.writes]
    scalars = [model.specs[name] for name in made if name in model.specs]
    specs.update({spec.name: spec for spec in scalars if not spec.shape})
    found = engine.engine_specs(result, [name for name in made if name not in specs])
    specs.update({name: spec for name, spec in found.items() if isinstance(spec, TensorSpec)})
    return replace(result, specs=specs, nodes=with_sizes(nodes, result.weights, specs))


def _live(nodes: list[Node], wanted: set[str]) -> list[Node]:
    """Without the nodes that no output depends on: a step must fetch something."""
    kept: list[Node] = []
    for node in reversed(nodes):
        if wanted.intersection(node.writes):
            kept.append(node)
            wanted.update(node.reads)
    return kept[::-1]


def _opsets(nodes: list[Node], listed: dict[str, int]) -> dict[str, int]:
    """The operator sets in use: the engine lists every one it knows."""
    used = {"", *(inner for node in nodes for inner in parse.domains(node.proto))}
    return {domain: version for domain, version in listed.items() if domain in used}


def _assemble(
    model: Model,
    layout: Layout,
    settings: StageSettings,
    target: Isa,
    engine_bytes: int,
    *,
    prefetch: bool,
) -> CompiledStage:
    """Number tensors, weights and graphs, and put the program together."""
    needed = _needed(model, layout.parts)
    graphs: dict[bytes, int] = {}
    weights: dict[str, int] = {}
    tensors = {spec.name: index for index, spec in enumerate(model.inputs)}
    steps = []
    for number, (part, kept) in enumerate(zip(layout.parts, needed, strict=True)):
        nodes = model.nodes[part.first : part.last]
        # What only the step itself reads is bound too, so that the engine allocates nothing.
        made = step_graph(model, nodes, kept | layout.places.keys(), part.stackable)
        for _, name in made.weights:
            weights.setdefault(name, len(weights))
        for _, name in made.fetches:
            tensors.setdefault(name, len(tensors))
        streamed = layout.streamed[number]
        steps.append(
            Step(
                graph=graphs.setdefault(made.graph, len(graphs)),
                feeds=tuple((alias, tensors[name]) for alias, name in made.feeds),
                weights=tuple(
                    StepWeight(input=alias, weight=weights[name], offset=streamed.get(name, 0))
                    for alias, name in made.weights
                ),
                fetches=tuple((alias, tensors[name]) for alias, name in made.fetches),
                stackable=part.stackable,
                activation_bytes=layout.activation_bytes[number],
            )
        )
    program = StageProgram(
        version=PROGRAM_VERSION,
        engine_version=ort.__version__,
        isa=target,
        settings=settings,
        tensors=tuple(model.specs[name] for name in tensors),
        places=tuple(layout.places.get(name, Place()) for name in tensors),
        inputs=tuple(tensors[spec.name] for spec in model.inputs),
        outputs=tuple(tensors[spec.name] for spec in model.outputs),
        weights=tuple(
            Weight(
                spec=_weight_spec(name, model.weights[name]), resident_at=layout.resident.get(name)
            )
            for name in weights
        ),
        graphs=tuple(graphs),
        steps=tuple(steps),
        resident_bytes=layout.resident_bytes,
        workspace_bytes=layout.workspace_bytes,
        engine_bytes=engine_bytes,
        prefetch=prefetch,
    )
    return CompiledStage(
        program=program, weights=tuple(raw_bytes(model.weights[name]) for name in weights)
    )


def _weight_spec(name: str, array: Array) -> TensorSpec:
    return TensorSpec(name=name, dtype=str(array.dtype), shape=tuple(array.shape))


def _needed(model: Model, parts: Sequence[Part]) -> list[set[str]]:
    """Per step, what must outlive it: read by a later step, or an output of the stage."""
    later = {spec.name for spec in model.outputs}
    needed: list[set[str]] = []
    for part in reversed(parts):
        needed.append(set(later))
        for node in model.nodes[part.first : part.last]:
            later.update(node.reads)
    return needed[::-1]
