"""Measuring a model block by block, through the very executor that an enclave runs."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from msgspec.structs import replace

from vaultline.bench.noise import frames_of
from vaultline.bench.paging import page_costs
from vaultline.channel.keys import derive_hop_keys
from vaultline.channel.records import OVERHEAD_BYTES, RecordKind, RecordOpener, RecordSealer
from vaultline.core.frames import FrameLayout
from vaultline.core.limits import MIB, RECORD_FRAGMENT_BYTES
from vaultline.core.profile import (
    BlockProfile,
    DeviceRates,
    LoopbackRate,
    ModelProfile,
    RecordedOn,
)
from vaultline.core.program import PROGRAM_VERSION, StageProgram, StageSettings, Weight
from vaultline.core.serde import canonical_json
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.executor import Executor, FrameBuffer
from vaultline.enclave.ledger import Ledger
from vaultline.enclave.vault import VaultSection
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.cuts import candidates, cuts
from vaultline.graph.model import save
from vaultline.graph.node_times import node_times
from vaultline.graph.rewrite import rewrite
from vaultline.graph.structure import Model
from vaultline.owner.keyfile import new_keys
from vaultline.owner.seal import seal_vault

#: More than any block needs: profiling is not what the budget protects from.
_BUDGET_BYTES = 1 << 40
#: Large enough that the file's open and the first pages don't count.
_DECRYPTED_BYTES = 64 * MIB
_PASS_FRAMES = 4


@dataclass(slots=True)
class InMemoryWeights:
    """Weights of a compiled stage, as the executor reads them, without a vault."""

    stage: CompiledStage

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        """Copy a weight."""
        buffer[:] = self.stage.weights[index]


class StageBench:
    """A compiled stage in this process, with buffers for one pass, to be timed."""

    def __init__(self, stage: CompiledStage) -> None:
        program = stage.program
        ledger = Ledger(_BUDGET_BYTES)
        self.program = program
        self.executor = Executor(program, InMemoryWeights(stage), ledger)
        self.inputs = self._buffers(program.specs(program.inputs), ledger)
        self.outputs = self._buffers(program.specs(program.outputs), ledger)

    def _buffers(self, specs: tuple[TensorSpec, ...], ledger: Ledger) -> list[FrameBuffer]:
        layout = FrameLayout(specs, self.program.settings.stages)
        return [
            FrameBuffer(layout, ledger.take("io", layout.message_bytes, "a frame"))
            for _ in range(self.program.settings.frames_per_pass)
        ]

    def pass_s(self, frames: int) -> float:
        """Seconds of one pass."""
        before_s = time.perf_counter()
        for _ in self.executor.run_pass(self.inputs[:frames], self.outputs[:frames]):
            pass
        return time.perf_counter() - before_s


def bench_settings(frames: int = _PASS_FRAMES) -> StageSettings:
    """Settings of a stage that is only timed: all resident, one thread."""
    return StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=_BUDGET_BYTES,
        mode="resident",
        frames_per_pass=frames,
        queue_frames=frames,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """How thoroughly to measure.

    ``neighbours`` copies of the model run on other cores meanwhile: enclaves that share a host
    share its memory bandwidth, and layers with many weights feel it most.
    """

    repeats: int = 9
    neighbours: int = 0
    command: str = "vaultline profile"
    date: str = ""
    host: str = field(default_factory=lambda: os.uname().nodename)


def profile_model(
    model: Model,
    request: ProfileRequest,
    progress: Callable[[int, int], None] | None = None,
) -> ModelProfile:
    """Measure every block between candidate cuts, the whole model, and the machine's rates."""
    with _neighbours(model, request.neighbours):
        return _profile_model(model, request, progress)


def _profile_model(
    model: Model, request: ProfileRequest, progress: Callable[[int, int], None] | None
) -> ModelProfile:
    positions = candidates(model)
    all_cuts = cuts(model)
    crossing = tuple(all_cuts[position].tensors for position in positions)
    whole = StageBench(_compiled(model, 0, model.node_count))
    whole.pass_s(1)
    benches = _benches(model, positions, progress)
    whole_s, *one_s = _rounds([whole, *benches], 1, request.repeats)
    stacked = [k for k, bench in enumerate(benches) if _stacks(bench)]
    many_s = _rounds([benches[k] for k in stacked], _PASS_FRAMES, request.repeats)
    many = dict(zip(stacked, many_s, strict=True))
    alone = [
        _block(model, positions[k], positions[k + 1], bench, one_s[k], many.get(k))
        for k, bench in enumerate(benches)
    ]
    feeds = {
        spec.name: tensor
        for spec, tensor in zip(model.inputs, frames_of(model.inputs, 1)[0], strict=True)
    }
    nodes_s = node_times(model, feeds, request.repeats)
    inside_s = [sum(nodes_s[first:last]) for first, last in pairwise(positions)]
    rates = device_rates()
    crossing_bytes = [sum(spec.nbytes for spec in tensors) for tensors in crossing]
    return ModelProfile(
        model_name=model.name,
        model_digest=model.digest,
        engine_version=whole.program.engine_version,
        isa=whole.program.isa,
        recorded_on=RecordedOn(
            host=request.host, cpu=cpu_name(), date=request.date, command=request.command
        ),
        positions=positions,
        blocks=tuple(settled(alone, inside_s, statistics.median(whole_s))),
        crossing=crossing,
        rates=replace(
            rates,
            open_bytes_per_s=opening_rate(rates, alone, inside_s, crossing_bytes),
        ),
        loopback=loopback_rate(),
    )


def settled(
    alone: Sequence[BlockProfile], inside_s: Sequence[float], whole_s: float
) -> Iterator[BlockProfile]:
    """Blocks with the times that they take inside the model, adding up to the whole's.

    Timed alone, a block also pays for entering and leaving the engine's blocked layout. Blocks
    that stack frames keep their own times: they hold few activations, and stacking shows only
    there.
    """
    if not sum(inside_s):  # too small for the engine's clock
        inside_s = [block.compute_s[0][1] for block in alone]
    stacked_s = sum(block.compute_s[0][1] for block in alone if len(block.compute_s) > 1)
    inner_s = sum(s for s, block in zip(inside_s, alone, strict=True) if len(block.compute_s) == 1)
    scale = max(whole_s - stacked_s, 0.1 * whole_s) / inner_s if inner_s else 1.0
    for block, seconds in zip(alone, inside_s, strict=True):
        if len(block.compute_s) > 1:
            yield block
        else:
            yield replace(block, compute_s=((1, seconds * scale),))


def opening_rate(
    rates: DeviceRates,
    alone: Sequence[BlockProfile],
    inside_s: Sequence[float],
    crossing_bytes: Sequence[int],
) -> float:
    """Bytes per second of taking a stage's input in: deciphering it, and the engine's change of
    layout on both sides of a cut, which is what blocks cost more alone than inside the model."""
    extra_s = converted = 0.0
    for k, (block, seconds) in enumerate(zip(alone, inside_s, strict=True)):
        if len(block.compute_s) == 1:
            extra_s += block.compute_s[0][1] - seconds
            converted += (crossing_bytes[k] + crossing_bytes[k + 1]) / 2
    layout_s_per_byte = max(extra_s, 0.0) / converted if converted else 0.0
    return 1.0 / (1.0 / rates.open_bytes_per_s + layout_s_per_byte)


@contextmanager
def _neighbours(model: Model, count: int) -> Iterator[None]:
    """Keep other cores busy with the same model, and this process on the first core."""
    if count == 0:
        yield
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    specs = canonical_json(model.inputs).decode()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vaultline-"))
        path = Path(folder) / "model.onnx"
        save(rewrite(model), path)
        for turn in range(count):
            core = cores[(turn + 1) % len(cores)]
            command = [sys.executable, "-m", "vaultline.bench.native_worker", str(path)]
            busy = subprocess.Popen(
                [*command, str(core), specs],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(busy)
            stack.callback(busy.kill)
            if busy.stdin is not None and busy.stdout is not None:
                busy.stdout.readline()
                busy.stdin.write(f"{1 << 40}\n")
                busy.stdin.flush()
        os.sched_setaffinity(0, cores[:1])
        stack.callback(os.sched_setaffinity, 0, before)
        yield


def _compiled(model: Model, first: int, last: int) -> CompiledStage:
    return compile_segment(model, first, last, settings=bench_settings(), step_bytes=8 * MIB)


def _benches(
    model: Model, positions: Sequence[int], progress: Callable[[int, int], None] | None
) -> list[StageBench]:
    """Every block, fed with what the block before it makes of seeded noise."""
    benches: list[StageBench] = []
    carried = [tensor.tobytes() for tensor in frames_of(model.inputs, 1)[0]]
    for first, last in pairwise(positions):
        bench = StageBench(_compiled(model, first, last))
        for buffer in bench.inputs:
            for part, data in zip(buffer.parts, carried, strict=True):
                part[:] = np.frombuffer(data, np.uint8)
        bench.pass_s(bench.program.settings.frames_per_pass)
        carried = [part.tobytes() for part in bench.outputs[0].parts]
        benches.append(bench)
        if progress is not None:
            progress(len(benches), len(positions) - 1)
    return benches


def _stacks(bench: StageBench) -> bool:
    return any(step.stackable for step in bench.program.steps)


def _rounds(benches: Sequence[StageBench], frames: int, repeats: int) -> list[list[float]]:
    """Times of each block, sorted; a noisy moment of the machine hits one round of all blocks
    rather than all rounds of one."""
    rounds = [[bench.pass_s(frames) for bench in benches] for _ in range(repeats)]
    return [sorted(times) for times in zip(*rounds, strict=True)]


def _block(
    model: Model,
    first: int,
    last: int,
    bench: StageBench,
    one_s: list[float],
    many_s: list[float] | None,
) -> BlockProfile:
    program = bench.program
    times = [(1, statistics.median(one_s))]
    if many_s is not None:
        times.append((_PASS_FRAMES, statistics.median(many_s)))
    quarter = len(one_s) // 4
    edge = {*program.inputs, *program.outputs}
    specs = [weight.spec for weight in program.weights]
    tiled = {k for step in program.steps if step.stackable for _, k in step.weights}
    whole = [spec.nbytes for k, spec in enumerate(specs) if k not in tiled]
    # A convolution reads its kernel and its bias in one step.
    biases = [spec.nbytes for k, spec in enumerate(specs) if len(spec.shape) == 1]
    return BlockProfile(
        compute_s=tuple(times),
        weight_bytes=sum(spec.nbytes for spec in specs),
        activation_bytes=sum(
            spec.nbytes for k, spec in enumerate(program.tensors) if k not in edge
        ),
        spread_s=one_s[-1 - quarter] - one_s[quarter],
        scratch_bytes=max((step.scratch_bytes for step in program.steps), default=0),
        inner_bytes=_inner_bytes(model, first, last) + sum(program.tensors[k].nbytes for k in edge),
        largest_weight_bytes=min(sum(whole), max(whole, default=0) + max(biases, default=0)),
        ops=dict(Counter(node.op for node in model.nodes[first:last])),
    )


def _inner_bytes(model: Model, first: int, last: int) -> int:
    """Everything that the nodes write."""
    written = (name for node in model.nodes[first:last] for name in node.writes)
    return sum(model.specs[name].nbytes for name in written if name in model.specs)


def cpu_name() -> str:
    """The processor, as the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def device_rates() -> DeviceRates:
    """Records and weights per second, and the fixed cost of a pass."""
    keys = derive_hop_keys(bytes(32), hop=0, epoch=0)
    sealer = RecordSealer(keys)
    opener = RecordOpener(keys, plaintext_bytes_max=RECORD_FRAGMENT_BYTES)
    plain = bytearray(RECORD_FRAGMENT_BYTES)
    wire = memoryview(bytearray(RECORD_FRAGMENT_BYTES + OVERHEAD_BYTES))
    seal_s, open_s = [], []
    for _ in range(60):
        before_s = time.perf_counter()
        sealer.seal_into(RecordKind.DATA, plain, wire)
        between_s = time.perf_counter()
        opener.open_into(opener.check_header(wire[:32]), wire[32:], memoryview(plain))
        seal_s.append(between_s - before_s)
        open_s.append(time.perf_counter() - between_s)
    return DeviceRates(
        seal_bytes_per_s=RECORD_FRAGMENT_BYTES / statistics.median(seal_s),
        open_bytes_per_s=RECORD_FRAGMENT_BYTES / statistics.median(open_s),
        decrypt_bytes_per_s=_decrypt_rate(),
        call_s=_call_s(),
        page_s=page_costs(),
    )


def _decrypt_rate() -> float:
    """Bytes per second of a sealed weight, from a vault file in the page cache."""
    spec = TensorSpec(name="weight", dtype="uint8", shape=(_DECRYPTED_BYTES,))
    frame = TensorSpec(name="frame", dtype="uint8", shape=(1,))
    program = StageProgram(
        version=PROGRAM_VERSION,
        engine_version="none",
        isa="portable",
        settings=bench_settings(),
        tensors=(frame,),
        inputs=(0,),
        outputs=(0,),
        weights=(Weight(spec=spec),),
        graphs=(),
        steps=(),
    )
    stage = CompiledStage(program=program, weights=(memoryview(bytes(_DECRYPTED_BYTES)),))
    keys = new_keys()
    plan_digest = bytes(32)
    with tempfile.TemporaryDirectory(prefix="vaultline-") as folder:
        path = Path(folder) / "rate.vault"
        sealing = seal_vault(
            path, [stage], model_key=keys.model_key, plan_digest=plan_digest, model_digest="none"
        )
        with path.open("rb") as file:
            section = VaultSection(file.fileno(), sealing.access(keys.model_key, 0))
            buffer = memoryview(bytearray(_DECRYPTED_BYTES))
            times = []
            for _ in range(4):
                before_s = time.perf_counter()
                section.read_weight_into(0, buffer)
                times.append(time.perf_counter() - before_s)
    return _DECRYPTED_BYTES / statistics.median(times[1:])


def _call_s() -> float:
    """Handing a frame from the receiving thread to the computing one and on to the sending one."""
    there: SimpleQueue[int] = SimpleQueue()
    back: SimpleQueue[int] = SimpleQueue()
    count = 200

    def echo() -> None:
        for _ in range(count):
            back.put(there.get())

    thread = threading.Thread(target=echo)
    thread.start()
    before_s = time.perf_counter()
    for turn in range(count):
        there.put(turn)
        back.get()
    seconds = time.perf_counter() - before_s
    thread.join()
    return seconds / count


def loopback_rate() -> LoopbackRate:
    """A Unix socket between two threads: bytes per second, and half of a round trip."""
    ours, theirs = socket.socketpair()
    total = 64 * MIB
    block, buffer = bytes(MIB), memoryview(bytearray(MIB))

    def drain() -> None:
        left = total
        while left:
            left -= theirs.recv_into(buffer[:left])
        for _ in range(50):
            theirs.sendall(theirs.recv(1))

    thread = threading.Thread(target=drain)
    thread.start()
    with ours, theirs:
        before_s = time.perf_counter()
        for _ in range(total // MIB):
            ours.sendall(block)
        between_s = time.perf_counter()
        for _ in range(50):
            ours.sendall(b"x")
            ours.recv(1)
        end_s = time.perf_counter()
        thread.join()
    return LoopbackRate(
        bytes_per_s=total / (between_s - before_s), latency_s=(end_s - between_s) / 100
    )
