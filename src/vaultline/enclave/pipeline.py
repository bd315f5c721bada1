"""A loaded stage at work: receiving, computing and sending overlap, in a fixed set of threads."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from vaultline.channel.messages import StreamAbortedError
from vaultline.core.errors import PeerError, VaultlineError
from vaultline.core.frames import OUTPUT_FRAMES_EXTRA, FrameLayout, StageTimes, record_buffer_bytes
from vaultline.core.program import StageProgram
from vaultline.enclave.executor import Executor, FrameBuffer
from vaultline.enclave.ledger import Ledger
from vaultline.enclave.links import Links
from vaultline.transport.streams import FanIn, FanOut


@dataclass(slots=True)
class Progress:
    """What the heartbeat tells the host: nothing that the host couldn't see anyway."""

    frames: int = 0
    busy_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Ended:
    """Nothing more will come; ``error`` where the stream did not end as agreed."""

    error: VaultlineError | None = None


class StageBuffers:
    """The message buffers of both hops, taken from the ledger once. Their number is the bound of
    the queues: when none is free the receiver waits, and so does everybody before it."""

    def __init__(self, program: StageProgram, ledger: Ledger) -> None:
        settings = program.settings
        before = FrameLayout(program.specs(program.inputs), settings.stages)
        after = FrameLayout(program.specs(program.outputs), settings.stages)
        self.input_layout, self.output_layout = before, after
        frames_in = max(settings.queue_frames, settings.frames_per_pass)
        frames_out = settings.frames_per_pass + OUTPUT_FRAMES_EXTRA
        self.inputs, self.outputs = (
            [FrameBuffer(hop, ledger.take("io", hop.message_bytes, what)) for _ in range(count)]
            for hop, count, what in (
                (before, frames_in, "the input queue"),
                (after, frames_out, "the output queue"),
            )
        )
        records_bytes = sum(
            count * record_buffer_bytes(hop.message_bytes)
            for count, hop in zip(settings.connections, (before, after), strict=True)
        )
        ledger.reserve("io", records_bytes, "the record buffers")


class Pipeline:
    """Drives one stage from the first frame to the end of the stream.

    A failure on either hop or in the engine ends the stage: what was computed before it is still
    sent, then every replica after learns the reason in an authenticated abort.
    """

    def __init__(
        self,
        program: StageProgram,
        executor: Executor,
        buffers: StageBuffers,
        receiver: FanIn,
        sender: FanOut,
        progress: Progress,
        replica: int = 0,
        links: Links | None = None,
    ) -> None:
        self._stage = program.settings.stage
        several = program.settings.replicas > 1
        self._name = f"stage {self._stage}" + f" (replica {replica})" * several
        self._frames_per_pass = program.settings.frames_per_pass
        self._executor = executor
        self._layout = buffers.output_layout
        self._receiver = receiver
        self._sender = sender
        self._progress, self._links = progress, links
        self._send_error: VaultlineError | None = None
        self._sent = sender.clock  # of the last frame sent, to be told with the next one
        self._free_inputs: SimpleQueue[FrameBuffer] = SimpleQueue()
        self._free_outputs: SimpleQueue[FrameBuffer | _Ended] = SimpleQueue()
        self._arrived: SimpleQueue[FrameBuffer | _Ended] = SimpleQueue()
        self._finished: SimpleQueue[FrameBuffer | _Ended] = SimpleQueue()
        for buffer in buffers.inputs:
            self._free_inputs.put(buffer)
        for buffer in buffers.outputs:
            self._free_outputs.put(buffer)

    def run(self) -> None:
        """Compute in the calling thread until the stream ends.

        Raises:
            VaultlineError: whatever ended the stage before the end of its stream.
        """
        receiving = threading.Thread(target=self._receive, name="receive", daemon=True)
        sending = threading.Thread(target=self._send, name="send", daemon=True)
        receiving.start()
        sending.start()
        error: VaultlineError | None = None
        try:
            self._compute()
        except VaultlineError as failure:
            error = failure
        self._finished.put(_Ended(error))
        sending.join()
        self._receiver.close()
        error = error or self._send_error
        if error is not None:
            raise error

    def _receive(self) -> None:
        try:
            while True:
                buffer = self._free_inputs.get()
                if not self._receiver.receive(buffer.message):
                    self._arrived.put(_Ended())
                    return
                buffer.clock = self._receiver.clock
                self._arrived.put(buffer)
        except VaultlineError as error:
            self._arrived.put(_Ended(error))

    def _send(self) -> None:
        try:
            while True:
                item = self._finished.get()
                if isinstance(item, FrameBuffer):
                    self._sender.send(item.message)
                    self._sent = self._sender.clock
                    self._free_outputs.put(item)
                elif item.error is None:
                    self._sender.end()
                    return
                else:
                    self._sender.abort(self._reason(item.error))
                    return
        except PeerError as error:
            self._send_error = error
            self._free_outputs.put(_Ended(error))
            self._sender.abort(self._reason(error))  # replicas other than the one that is gone
        finally:
            self._sender.close()

    def _reason(self, error: VaultlineError) -> str:
        """What the next hop is told: the first failure's words, however many stages ago it was."""
        if isinstance(error, StreamAbortedError) and error.got:
            return error.got
        return f"{self._name}: {error.message}"

    def _compute(self) -> None:
        ended: _Ended | None = None
        while ended is None:
            batch, ended = self._take_waiting()
            if batch:
                self._run_pass(batch)
        if ended.error is not None:
            raise ended.error
        if self._links is not None:
            self._links.sign(last=True)

    def _take_waiting(self) -> tuple[list[FrameBuffer], _Ended | None]:
        """All frames that wait now, at least one unless the stream ended, as one pass."""
        item = self._arrived.get()
        batch: list[FrameBuffer] = []
        while True:
            if isinstance(item, _Ended):
                return batch, item
            batch.append(item)
            if len(batch) == self._frames_per_pass:
                return batch, None
            try:
                item = self._arrived.get_nowait()
            except Empty:
                return batch, None

    def _run_pass(self, batch: list[FrameBuffer]) -> None:
        outputs = [self._take_output() for _ in batch]
        self._progress.busy_since_s = time.monotonic()
        together = len(batch) if self._executor.ends_stacked else 1
        started_ns = finished_ns = time.monotonic_ns()
        for position in self._executor.run_pass(batch, outputs):
            if together == 1 or position == 0:
                started_ns, finished_ns = finished_ns, time.monotonic_ns()
            arrived, output = batch[position], outputs[position]
            self._layout.copy_meta(arrived.message, output.message)
            times = StageTimes(
                arrived_ns=arrived.clock.done_ns,
                started_ns=started_ns,
                finished_ns=finished_ns,
                compute_ns=(finished_ns - started_ns) // together,
                open_ns=arrived.clock.crypto_ns,
                seal_ns=self._sent.crypto_ns,
                send_ns=self._sent.socket_ns,
            )
            self._layout.write_times(output.message, self._stage, times)
            self._finished.put(output)  # only this thread will write to it again
            if self._links is not None:
                self._links.add(arrived, output)
            self._free_inputs.put(arrived)
            self._progress.frames += 1
        self._progress.busy_since_s = None

    def _take_output(self) -> FrameBuffer:
        item = self._free_outputs.get()
        if isinstance(item, _Ended):
            raise item.error or PeerError("the next hop is gone")
        return item
