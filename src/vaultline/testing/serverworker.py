"""A real serving worker under test: sealed models, the process, its owner and a host to drive it.

The host's side does as it is told, also what a real host never would.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaultline.attest.server_grant import ServedAccess, ServerGrant
from vaultline.bench.rig import make_trust
from vaultline.channel.keys import SECRET_BYTES, Direction
from vaultline.channel.requests import OVERHEAD_BYTES, RequestOpener, RequestSealer
from vaultline.core.control import (
    BeatLine,
    BufferKind,
    FailedLine,
    ReadyLine,
    StageMetrics,
    WorkerLine,
)
from vaultline.core.errors import MachineError
from vaultline.core.frame_meta import FrameMeta, read_meta, read_times, write_meta
from vaultline.core.frames import FrameLayout, StageTimes
from vaultline.core.profile import TILE_BYTES
from vaultline.core.program import Mode, PageMode, StageSettings, kept_bytes
from vaultline.core.serde import canonical_json, from_json, from_msgpack, to_msgpack
from vaultline.core.serving import (
    DoneReply,
    EvictCommand,
    FailedReply,
    HostCommand,
    InstallCommand,
    RemoveCommand,
    RunCommand,
    ServerWorkerConfig,
    WorkerReply,
    fixed_bytes,
)
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.structure import Model
from vaultline.host.launcher import start_module
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.keyfile import SealedKeys, new_keys
from vaultline.owner.seal import seal_vault
from vaultline.owner.server_release import release_server
from vaultline.transport.sockets import Address, connect, hang_up

MODULE = "vaultline.enclave.server"
_WAIT_S = 60.0
_LENGTH = struct.Struct("!I")
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedModel:
    """A model in step groups, sealed.

    Attributes:
        plan_digest: under which it is sealed.
    """

    model: Model
    stages: tuple[CompiledStage, ...] = field(repr=False)
    vault: Path
    keys: SealedKeys
    plan_digest: bytes

    @property
    def access(self) -> ServedAccess:
        """What opens it."""
        sealing = self.keys.sealing_for(self.plan_digest)
        parts = [sealing.access(self.keys.model_key, g) for g in range(len(self.stages))]
        return ServedAccess(sections=tuple(parts))

    @property
    def input_layout(self) -> FrameLayout:
        """Of a request."""
        return self.layout(0)

    @property
    def output_layout(self) -> FrameLayout:
        """Of an answer."""
        return self.layout(len(self.stages))

    def layout(self, group: int) -> FrameLayout:
        """Of a request's message before a group."""
        program = self.stages[max(group - 1, 0)].program
        ends = program.outputs if group else program.inputs
        return FrameLayout(program.specs(ends), len(self.stages))

    @property
    def workspace_bytes(self) -> int:
        """Of the neediest group; paged ones have theirs in the page cache."""
        programs = [stage.program for stage in self.stages]
        sizes = [each.workspace_bytes for each in programs if each.settings.mode != "paged"]
        return max(sizes, default=0)

    @property
    def message_bytes(self) -> int:
        """The larger of a sealed request and a sealed answer."""
        layouts = (self.input_layout, self.output_layout)
        return max(layout.message_bytes for layout in layouts) + OVERHEAD_BYTES

    @property
    def engine_bytes(self) -> int:
        """Sessions of all groups, on one core."""
        return sum(stage.program.engine_bytes for stage in self.stages)

    def kept_bytes(self, group: int) -> int:
        """Weights of a group, kept."""
        return kept_bytes(self.stages[group].program)


def seal_groups(
    model: Model,
    groups: Sequence[tuple[int, int]],
    folder: Path,
    *,
    name: str,
    frames: Sequence[int] | int = 1,
    budget_bytes: int = 1 << 30,
    mode: Mode = "streamed",
    page_mode: PageMode = "crypto",
) -> SealedModel:
    """Compile step groups and seal them to ``folder/NAME.vault``.

    Args:
        frames: the most frames of one run, of each group or of all.
    """
    counts = [frames] * len(groups) if isinstance(frames, int) else frames
    stages = []
    for number, ((first, last), count) in enumerate(zip(groups, counts, strict=True)):
        settings = StageSettings(
            stage=number,
            stages=len(groups),
            threads=1,
            budget_bytes=budget_bytes,
            mode=mode,
            frames_per_pass=count,
            queue_frames=count,
            page_mode=page_mode,
        )
        stages.append(
            compile_segment(
                model, first, last, settings=settings, step_bytes=TILE_BYTES, keep=False
            )
        )
    keys, digest = new_keys(), os.urandom(32)
    vault = folder / f"{name}.vault"
    sealing = seal_vault(
        vault, stages, model_key=keys.model_key, plan_digest=digest, model_digest="00" * 32
    )
    return SealedModel(
        model=model,
        stages=tuple(stages),
        vault=vault,
        keys=keys.with_sealing(sealing),
        plan_digest=digest,
    )


def make_grant(
    models: Sequence[SealedModel], *, memory_bytes: int, cores: int = 1, cache_bytes: int = 0
) -> ServerGrant:
    """A grant for one server that may get all of these models."""
    return ServerGrant(
        epoch=0,
        deployment=os.urandom(16),
        plan_digest=os.urandom(32),
        stage=0,
        secret=os.urandom(SECRET_BYTES),
        memory_bytes=memory_bytes,
        cores=cores,
        workspace_bytes=max(each.workspace_bytes for each in models),
        message_bytes=max(each.message_bytes for each in models),
        cache_bytes=cache_bytes,
        models=tuple(each.access for each in models),
    )


def granted_bytes(grant: ServerGrant) -> int:
    """What the worker holds before anything is installed."""
    return fixed_bytes(
        cores=grant.cores,
        workspace_bytes=grant.workspace_bytes,
        message_bytes=grant.message_bytes,
        cache_bytes=grant.cache_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Where a simulated platform and what accepts it are."""

    platform: Path
    appraiser: Appraiser

    @classmethod
    def make(cls, folder: Path) -> Trust:
        """A development root in a folder that does not exist yet."""
        folder.mkdir()
        files = make_trust(folder)
        appraiser = Appraiser(
            policy=load_policy(files["policy"]),
            collateral=load_collateral({"simulated": files["collateral"]}),
            allow_simulated=True,
        )
        return cls(platform=files["platform"], appraiser=appraiser)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An opened answer: the model's outputs by name, and the times of each group."""

    outputs: Mapping[str, Array]
    times: tuple[StageTimes, ...]


class ServerWorker:
    """A granted worker, and the host's end of its line.

    Attributes:
        held: by kind, as the worker said when it was loaded.
        metrics: of the last reply.
    """

    def __init__(
        self,
        models: Sequence[SealedModel],
        grant: ServerGrant,
        trust: Trust,
        folder: Path,
        *,
        cpus: Sequence[int] = (),
    ) -> None:
        """Start, appraise and grant it; ``folder``: for its sockets, with a short path."""
        self.models, self.grant = models, grant
        self.metrics = StageMetrics()
        config = ServerWorkerConfig(
            name="server",
            platform="process",
            provider="simulated",
            platform_file=str(trust.platform),
            vaults=tuple(str(each.vault) for each in models),
            control=f"unix:{folder}/control",
            commands=f"unix:{folder}/commands",
            runtime_dir=str(folder),
        )
        self.popen = start_module(MODULE, cpus)
        try:
            self._write(canonical_json(config) + b"\n")
            self.ready = self._ready()
            release = release_server(
                Address.parse(self.ready.control), grant, trust.appraiser.appraise_now
            )
            self.held: Mapping[BufferKind, int] = release.wait_loaded().held_bytes
            self.sock = connect(Address.parse(self.ready.data[0]), timeout_s=_WAIT_S)
            self.sock.settimeout(_WAIT_S)
        except BaseException:
            self.popen.kill()
            self.close()
            raise
        self.sealer = RequestSealer(grant.secret, epoch=grant.epoch, direction=Direction.FORWARD)
        self.opener = RequestOpener(grant.secret, epoch=grant.epoch, direction=Direction.BACKWARD)

    # As a well-behaved host.

    def install(self, model: int, core: int = 0) -> DoneReply:
        """Install a model.

        Raises:
            MachineError: the worker could not.
        """
        self.tell(InstallCommand(core=core, model=model))
        return self.done()

    def run(
        self,
        core: int,
        model: int,
        group: int,
        requests: Sequence[int],
        *,
        keep: bool = False,
        inputs: Sequence[Mapping[str, Array]] = (),
    ) -> tuple[DoneReply, list[Answer]]:
        """Run a group, and open the answers if it is the last.

        Raises:
            MachineError: the worker could not.
        """
        self.begin(core, model, group, requests, keep=keep, inputs=inputs)
        done = self.done()
        last = group == len(self.models[model].stages) - 1
        return done, [self.answer(model, number) for number in requests] if last else []

    def begin(
        self,
        core: int,
        model: int,
        group: int,
        requests: Sequence[int],
        *,
        keep: bool = False,
        inputs: Sequence[Mapping[str, Array]] = (),
    ) -> None:
        """Tell it to run a group; the reply is to be read later."""
        command = RunCommand(
            core=core, model=model, group=group, requests=tuple(requests), keep=keep
        )
        sealed = [
            self.seal(model, number, feeds)
            for number, feeds in zip(requests, inputs, strict=bool(inputs))
        ]
        self.tell(command, *sealed)

    def evict(self, model: int, group: int) -> None:
        """Forget a group's weights."""
        self.tell(EvictCommand(model=model, group=group))

    def remove(self, model: int) -> None:
        """Forget a model."""
        self.tell(RemoveCommand(model=model))

    def done(self) -> DoneReply:
        """The next reply, which must be that a core has done something.

        Raises:
            MachineError: it failed.
        """
        reply = self.reply()
        if isinstance(reply, FailedReply):
            raise MachineError(reply.message, got=reply.code)
        return reply

    # As any host.

    def seal(self, model: int, number: int, feeds: Mapping[str, Array]) -> bytearray:
        """A sealed request."""
        layout = self.models[model].input_layout
        message = memoryview(bytearray(layout.message_bytes))
        write_meta(layout, message, FrameMeta(index=number, timestamp_s=0.0, sent_ns=0))
        for spec, offset in zip(layout.specs, layout.offsets, strict=True):
            array = np.ascontiguousarray(feeds[spec.name], spec.dtype)
            message[offset : offset + spec.nbytes] = array.tobytes()
        sealed = bytearray(layout.message_bytes + OVERHEAD_BYTES)
        self.sealer.seal_into(model, number, message, memoryview(sealed))
        return sealed

    def answer(self, model: int, number: int) -> Answer:
        """Receive and open the sealed answer that must come next."""
        layout = self.models[model].output_layout
        sealed = self.receive(layout.message_bytes + OVERHEAD_BYTES)
        message = memoryview(bytearray(layout.message_bytes))
        self.opener.open_into(model, number, memoryview(sealed), message)
        if read_meta(message).index != number:
            raise MachineError("an answer carries another request's head")
        outputs = {
            spec.name: np.frombuffer(message[offset : offset + spec.nbytes], spec.dtype).reshape(
                spec.shape
            )
            for spec, offset in zip(layout.specs, layout.offsets, strict=True)
        }
        return Answer(outputs=outputs, times=read_times(layout, message))

    def tell(self, command: HostCommand, *sealed: bytes | bytearray) -> None:
        """Send a command and what follows it."""
        data = to_msgpack(command)
        self.send(_LENGTH.pack(len(data)) + data + b"".join(sealed))

    def reply(self) -> WorkerReply:
        """The next reply."""
        (length,) = _LENGTH.unpack(self.receive(_LENGTH.size))
        union: Any = WorkerReply
        data = bytes(self.receive(length))
        reply: WorkerReply = from_msgpack(data, union, what="a reply", bytes_max=1 << 20)
        if isinstance(reply, DoneReply):
            self.metrics = reply.metrics
        return reply

    def send(self, data: bytes) -> None:
        """Send any bytes."""
        self.sock.sendall(data)

    def receive(self, size_bytes: int) -> bytearray:
        """Receive so many bytes.

        Raises:
            ConnectionError: the worker has hung up.
        """
        data = bytearray(size_bytes)
        view = memoryview(data)
        while view:
            count = self.sock.recv_into(view)
            if not count:
                raise ConnectionError("the worker has hung up")
            view = view[count:]
        return data

    def last_line(self) -> FailedLine | None:
        """Wait until the process has ended; what it said then, if anything failed."""
        failed = None
        while (line := self._line()) is not None:
            failed = line if isinstance(line, FailedLine) else failed
        self.popen.wait(_WAIT_S)
        return failed

    def close(self) -> int:
        """End it by closing its standard input; the exit code."""
        if hasattr(self, "sock"):
            hang_up(self.sock)
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()
        return self.popen.wait(_WAIT_S)

    def __enter__(self) -> ServerWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, data: bytes) -> None:
        if self.popen.stdin is not None:
            self.popen.stdin.write(data)
            self.popen.stdin.flush()

    def _ready(self) -> ReadyLine:
        while (line := self._line()) is not None:
            if isinstance(line, ReadyLine):
                return line
            if isinstance(line, FailedLine):
                raise MachineError(line.message, got=line.code)
        raise MachineError("the worker ended without a word")

    def _line(self) -> BeatLine | ReadyLine | FailedLine | None:
        data = b"" if self.popen.stdout is None else self.popen.stdout.readline()
        union: Any = WorkerLine
        line: BeatLine | ReadyLine | FailedLine | None = (
            from_json(data, union, what="a worker's line") if data else None
        )
        return line
