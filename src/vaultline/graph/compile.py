"""Compiling a segment into a stage program in which no weight is a constant."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime as ort
from msgspec import structs

from vaultline.core.errors import InfeasibleError, InputError
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
from vaultline.cost.footprint import io_bytes
from vaultline.graph import engine, parse
from vaultline.graph.arrange import Arranger
from vaultline.graph.canonical import step_graph
from vaultline.graph.extract import extract
from vaultline.graph.fit import Arranged
from vaultline.graph.isa import local_isa
from vaultline.graph.order import as_run
from vaultline.graph.placing import Limits
from vaultline.graph.rewrite import rewrite
from vaultline.graph.steps import Part
from vaultline.graph.structure import Array, Model, Node, raw_bytes, with_sizes
from vaultline.graph.takings import unbounded


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
    keep: bool = True,
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
        keep: False for a segment whose weights the enclave may keep or forget as it runs: none has
            a place of its own, and the budget is for the workspace and messages alone.

    What does not fit is split: runs of nodes into bands of rows, convolutions into tiles of output
    channels (``fit``).

    Raises:
        InputError: no such segment, an unusable cut, or an instruction set that is not this
            machine's (the engine can prepare the blocked layout for its own only).
        InfeasibleError: more memory needed than the settings grant; says for which tensors.
    """
    target = target_of(portable, isa)
    made = prepared(model, first, last, target, rewrites=rewrites)
    if settings.mode == "streamed":
        check_bounded(made)
    memory = settings.budget_bytes - io_bytes(settings, made.inputs, made.outputs)
    limits = replace(limits_of(settings, rates, prefetch=prefetch), keep=keep)
    arranged = Arranger(made, limits, step_bytes, target).found(memory)
    ahead = prefetch and settings.mode == "streamed"
    stage = assemble(arranged, settings, target, prefetch=ahead)
    if settings.mode == "paged":
        return _paged(stage, memory - arranged.engine_bytes)
    return stage


def prepared(model: Model, first: int, last: int, target: Isa, *, rewrites: bool = True) -> Model:
    """A segment rewritten and optimised, before it is cut into steps."""
    plain = extract(model, first, last)
    return optimised(rewrite(plain) if rewrites else plain, blocked=target != "portable")


def check_bounded(made: Model) -> None:
    """Refuse to stream the weights of a segment whose tensors may take any amount of memory.

    Raises:
        InfeasibleError: names a tensor.
    """
    reason = unbounded(made)
    if reason is not None:
        raise InfeasibleError(
            "the segment's memory has no bound, so its weights can't be streamed",
            got=reason,
            expected="tensors whose sizes are known before the model runs",
            remedy="give the device more memory, so that the stage may be resident, or cut the "
            "model around that node",
        )


def limits_of(settings: StageSettings, rates: StreamRates | None, *, prefetch: bool) -> Limits:
    """What the settings ask of a layout, but for the memory."""
    return Limits(
        mode=settings.mode,
        memory_bytes=None,
        frames=settings.frames_per_pass,
        prefetch=prefetch,
        rates=rates or StreamRates(),
        threads=settings.threads,
    )


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


def target_of(portable: bool, isa: Isa | None) -> Isa:
    """The instruction set that is compiled for: this machine's, or none in particular."""
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


def assemble(
    made: Arranged,
    settings: StageSettings,
    target: Isa,
    *,
    prefetch: bool = False,
) -> CompiledStage:
    """Number tensors, weights and graphs, and put the program together."""
    model, layout = made.model, made.layout
    needed = _needed(model, layout.parts)
    graphs: dict[bytes, int] = {}
    weights: dict[str, int] = {}
    tensors = {spec.name: index for index, spec in enumerate(model.inputs)}
    steps = []
    for number, (part, kept) in enumerate(zip(layout.parts, needed, strict=True)):
        nodes = model.nodes[part.first : part.last]
        # What only the step itself reads is bound too, so that the engine allocates nothing.
        step = step_graph(model, nodes, kept | layout.places.keys(), part.stackable)
        for _, name in step.weights:
            weights.setdefault(name, len(weights))
        for _, name in step.fetches:
            tensors.setdefault(name, len(tensors))
        streamed = layout.streamed[number]
        steps.append(
            Step(
                graph=graphs.setdefault(step.graph, len(graphs)),
                feeds=tuple((alias, tensors[name]) for alias, name in step.feeds),
                weights=tuple(
                    StepWeight(input=alias, weight=weights[name], offset=streamed.get(name, 0))
                    for alias, name in step.weights
                ),
                fetches=tuple((alias, tensors[name]) for alias, name in step.fetches),
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
        engine_bytes=made.engine_bytes,
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
