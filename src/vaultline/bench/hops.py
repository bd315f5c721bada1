"""What a frame's way costs a processor: receiving, opening, handing over, sealing, sending.

Three stages that compute next to nothing run in real workers over real sockets. Processor time is
counted, since that is what a frame takes from whatever else its core could do; time asleep is not.
The first stage passes a large tensor on, the second makes a small one of it, the third passes that
on: the fixed cost and the costs per byte follow from their differences. So does the owner's part.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from vaultline.bench.cutting import cut_plan
from vaultline.bench.live import LivePipeline
from vaultline.bench.rig import make_rig
from vaultline.core.errors import MachineError
from vaultline.core.profile import DeviceRates
from vaultline.graph.model import load_model
from vaultline.graph.probe import save_hop_probe

#: About a photo of 224 x 224 pixels, as it enters a network: 602 kB.
_ELEMENTS = 3 * 224 * 224
_FRAMES = 200
_ROUNDS = 5
#: Differences of small numbers can come out below zero on a busy machine.
_LEAST_S_PER_BYTE = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class HopRates:
    """What a frame's way costs a core, besides computing, where workers and owner share one host.

    Attributes:
        frame_s: of a stage, for each frame: threads woken, buffers handed over.
        open_bytes_per_s: a stage's input taken from the socket and opened.
        seal_bytes_per_s: its output sealed and put into the socket.
        owner_frame_s: of the owner, for each frame.
        owner_bytes_per_s: a frame laid out, sealed and sent.
    """

    frame_s: float
    open_bytes_per_s: float
    seal_bytes_per_s: float
    owner_frame_s: float
    owner_bytes_per_s: float

    def applied(self, rates: DeviceRates) -> DeviceRates:
        """The rates of a device whose stages pay for the whole way, and not for ciphers alone."""
        return replace(
            rates,
            open_bytes_per_s=min(self.open_bytes_per_s, rates.open_bytes_per_s),
            seal_bytes_per_s=min(self.seal_bytes_per_s, rates.seal_bytes_per_s),
            frame_s=self.frame_s,
        )

    def owner_s(self, frame_bytes: int) -> float:
        """What the owner of a model with frames of this size gives a core to do."""
        return self.owner_frame_s + frame_bytes / self.owner_bytes_per_s


def hop_rates(frames: int = _FRAMES, rounds: int = _ROUNDS) -> HopRates:
    """Measure what frames cost the workers and the owner on this machine.

    Raises:
        MachineError: the kernel doesn't count the processor time of threads.
        VaultlineError: workers can't be started here.
    """
    with tempfile.TemporaryDirectory(prefix="vaultline-hops-") as folder:
        path = Path(folder) / "probe.onnx"
        save_hop_probe(path, _ELEMENTS)
        model = load_model(path)
        rig = make_rig(model, cut_plan(model, [1, 2], frames_per_pass=1), Path(folder))
        with LivePipeline(rig, model.inputs) as pipeline:
            pipeline.run(frames)
            measured = [_round(pipeline, frames) for _ in range(rounds)]
    large_to_large, large_to_small, small, owner = (
        statistics.median(times) for times in zip(*measured, strict=True)
    )
    nbytes = sum(spec.nbytes for spec in model.inputs)
    open_s = (large_to_small - small) / nbytes
    seal_s = (large_to_large - large_to_small) / nbytes
    # The owner seals as a stage does; the rest of its work is copying the frame, and fixed.
    return HopRates(
        frame_s=max(small, 0.0),
        open_bytes_per_s=1.0 / max(open_s, _LEAST_S_PER_BYTE),
        seal_bytes_per_s=1.0 / max(seal_s, _LEAST_S_PER_BYTE),
        owner_frame_s=max(small, 0.0),
        owner_bytes_per_s=nbytes / max(owner - small, nbytes * _LEAST_S_PER_BYTE),
    )


def _round(pipeline: LivePipeline, frames: int) -> tuple[float, ...]:
    """Processor seconds per frame of each worker, without its computing, and of the owner."""
    processes = [*pipeline.worker_pids, os.getpid()]
    before = [cpu_s(pid) for pid in processes]
    # One at a time, so that every thread is woken for every frame, as where stages compute.
    results = [pipeline.run(1)[0] for _ in range(frames)]
    used = [cpu_s(pid) - start_s for pid, start_s in zip(processes, before, strict=True)]
    computing = [
        sum(result.times[stage].compute_ns for result in results) / 1e9
        for stage in range(len(used) - 1)
    ]
    return tuple(
        (seconds - inside) / frames for seconds, inside in zip(used, [*computing, 0.0], strict=True)
    )


def cpu_s(pid: int) -> float:
    """Processor time of a process so far: all of its living threads.

    Raises:
        MachineError: the kernel doesn't say.
    """
    try:
        tasks: Sequence[Path] = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, ValueError, IndexError) as error:
        raise MachineError(
            "the processor time of a worker can't be read",
            got=str(error),
            expected=f"/proc/{pid}/task/*/schedstat",
            remedy="use a kernel with CONFIG_SCHED_INFO, as Debian's has",
        ) from error
