"""What this machine does besides computing: ciphers, weights from a vault, threads, sockets."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from vaultline.bench.paging import page_costs
from vaultline.bench.stage_bench import StageBench, bench_settings
from vaultline.channel.keys import derive_hop_keys
from vaultline.channel.records import OVERHEAD_BYTES, RecordKind, RecordOpener, RecordSealer
from vaultline.core.limits import MIB, RECORD_FRAGMENT_BYTES
from vaultline.core.profile import DeviceRates, LoopbackRate
from vaultline.core.program import PROGRAM_VERSION, Place, StageProgram, Weight
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.vault import VaultSection
from vaultline.graph.compile import CompiledStage
from vaultline.graph.probe import idle_stage
from vaultline.owner.keyfile import new_keys
from vaultline.owner.seal import seal_vault

#: Large enough that the file's open and the first pages don't count.
_DECRYPTED_BYTES = 64 * MIB


def cpu_name() -> str:
    """The processor, as the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


class SealedWeight:
    """A weight in a vault file that is open and has no name any more, so nothing is left behind.

    A hardened process can still read it, and could not have made it.
    """

    def __init__(self) -> None:
        spec = TensorSpec(name="weight", dtype="uint8", shape=(_DECRYPTED_BYTES,))
        frame = TensorSpec(name="frame", dtype="uint8", shape=(1,))
        program = StageProgram(
            version=PROGRAM_VERSION,
            engine_version="none",
            isa="portable",
            settings=bench_settings(),
            tensors=(frame,),
            places=(Place(),),
            inputs=(0,),
            outputs=(0,),
            weights=(Weight(spec=spec),),
            graphs=(),
            steps=(),
        )
        stage = CompiledStage(program=program, weights=(memoryview(bytes(_DECRYPTED_BYTES)),))
        keys = new_keys()
        with tempfile.TemporaryDirectory(prefix="vaultline-") as folder:
            path = Path(folder) / "rate.vault"
            sealing = seal_vault(
                path,
                [stage],
                model_key=keys.model_key,
                plan_digest=bytes(32),
                model_digest="none",
            )
            self._file = path.open("rb")
        self._section = VaultSection(self._file.fileno(), sealing.access(keys.model_key, 0))

    def bytes_per_s(self) -> float:
        """How fast the weight is read and decrypted, from the page cache."""
        buffer = memoryview(bytearray(_DECRYPTED_BYTES))
        times = []
        for _ in range(4):
            before_s = time.perf_counter()
            self._section.read_weight_into(0, buffer)
            times.append(time.perf_counter() - before_s)
        return _DECRYPTED_BYTES / statistics.median(times[1:])

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


class EngineCalls:
    """Two stages that compute next to nothing, in one step and in many, run by the executor."""

    #: The difference between so many steps and one is what the others cost.
    _STEPS = 33

    def __init__(self) -> None:
        self._one, self._many = (
            StageBench(idle_stage(bench_settings(1), steps)) for steps in (1, self._STEPS)
        )

    def step_s(self) -> float:
        """Seconds of one more call of the engine."""
        times: list[list[float]] = [[], []]
        for _ in range(200):
            for bench, taken in zip((self._one, self._many), times, strict=True):
                taken.append(bench.pass_s(1))
        one_s, many_s = (statistics.median(taken[10:]) for taken in times)
        return max(0.0, many_s - one_s) / (self._STEPS - 1)


def device_rates(weight: SealedWeight, calls: EngineCalls) -> DeviceRates:
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
        decrypt_bytes_per_s=weight.bytes_per_s(),
        call_s=_call_s(),
        step_s=calls.step_s(),
        page_s=page_costs(),
    )


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


def loopback_rate(far_cores: Sequence[int] = ()) -> LoopbackRate:
    """A Unix socket between two threads: bytes per second, and half of a round trip.

    Args:
        far_cores: where the other thread may run, as another worker might; where this one may by
            default.
    """
    ours, theirs = socket.socketpair()
    total = 64 * MIB
    block, buffer = bytes(MIB), memoryview(bytearray(MIB))

    def drain() -> None:
        if far_cores:
            with suppress(OSError):  # cores that are gone cost accuracy, not the profile
                os.sched_setaffinity(0, far_cores)  # of this thread alone
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
