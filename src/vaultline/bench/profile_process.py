"""A profile measured in a worker process of its own, part by part, that can go on later."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnxruntime as ort

import vaultline
from vaultline.bench.hops import HopRates
from vaultline.bench.journal import Journal, JournalKey
from vaultline.bench.measuring import Part, Step, Wanted
from vaultline.bench.neighbours import neighbours
from vaultline.bench.profile_worker import (
    LINE_BYTES_MAX,
    Failed,
    Finished,
    Job,
    Started,
    WorkerLine,
)
from vaultline.bench.profiling import ProfileRequest, assembled
from vaultline.bench.rates import cpu_name
from vaultline.bench.stage_bench import bench_settings
from vaultline.core.errors import InputError, MachineError, RemoteProtocolError
from vaultline.core.profile import ModelProfile
from vaultline.core.serde import canonical_json, from_json
from vaultline.graph.cuts import candidates
from vaultline.graph.isa import local_isa
from vaultline.graph.structure import Model
from vaultline.host.launcher import start_module

MODULE = "vaultline.bench.profile_worker"


def open_journal(model: Model, request: ProfileRequest, target: Path) -> Journal:
    """The journal of this model's profile on this machine.

    Raises:
        InputError: another process is measuring for the same file.
        MachineError: the journal can't be kept beside the profile.
    """
    key = JournalKey(
        vaultline_version=vaultline.__version__,
        model_digest=model.digest,
        positions=candidates(model),
        engine_version=ort.__version__,
        isa=local_isa(),
        host=request.host,
        cpu=cpu_name(),
        core=worker_cores()[0],
        neighbours=request.neighbours,
        device_class=request.device_class,
        settings=canonical_json(bench_settings()).decode(),
    )
    return Journal(target, key)


def worker_cores() -> tuple[int, ...]:
    """This machine's cores, the worker's first."""
    return tuple(sorted(os.sched_getaffinity(0)))


def profile_in_worker(
    path: Path,
    model: Model,
    request: ProfileRequest,
    journal: Journal,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    tell: Callable[[Step | Started], None] = lambda line: None,
    hops: HopRates | None = None,
) -> ModelProfile:
    """Measure what the journal lacks in a worker, keep each part, and put the profile together.

    Args:
        path: the model's file, which the worker reads by itself.
        model: the same, as read here.
        input_shapes: as the model was read with.
        tell: hears how far it has come.
        hops: what a frame's way costs, measured apart.

    Raises:
        InputError: the model has changed meanwhile.
        MachineError: the worker has died, or this machine lacks what it needs.
        RemoteProtocolError: the worker's lines make no sense.
    """
    wanted = Wanted.after(journal.parts, request.repeats)
    if wanted.anything:
        cores = worker_cores()
        job = Job(
            model=str(path.absolute()),
            model_digest=model.digest,
            wanted=wanted,
            far_cores=cores,
            input_shapes=dict(input_shapes or {}),
        )
        with neighbours(model, request.neighbours, cores), _worker(job, cores[:1]) as popen:
            for line in _lines(popen):
                if isinstance(line, Step | Started):
                    tell(line)
                else:
                    journal.add(line)
    return assembled(model, request, journal.parts, hops)


@contextlib.contextmanager
def _worker(job: Job, cores: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with its job; it doesn't outlive this."""
    popen = start_module(MODULE, cores)
    try:
        if popen.stdin is not None:
            with contextlib.suppress(OSError):  # a dead worker shows in its lines
                os.write(popen.stdin.fileno(), canonical_json(job) + b"\n")
        yield popen
    finally:
        popen.kill()
        popen.__exit__(None, None, None)


def _lines(popen: subprocess.Popen[bytes]) -> Iterator[Part | Step | Started]:
    """The worker's lines up to its last.

    Raises:
        InputError, MachineError: what the worker failed with.
        RemoteProtocolError: a line too long, or not one of ours.
    """
    if popen.stdout is None:
        raise MachineError("a worker without standard output")
    while True:
        data = popen.stdout.readline(LINE_BYTES_MAX + 1)
        if not data.endswith(b"\n"):
            if len(data) > LINE_BYTES_MAX:
                raise RemoteProtocolError("a line of the profiling worker is too long")
            raise MachineError(
                "the profiling worker has died",
                got=f"exit status {popen.wait()}",
                remedy="run the same command again: it goes on where this one stopped",
            )
        try:
            line: WorkerLine = from_json(data, WorkerLine, what="a line")  # type: ignore[arg-type]
        except InputError as error:
            raise RemoteProtocolError(
                "the profiling worker says what makes no sense", got=error.got
            ) from error
        if isinstance(line, Finished):
            return
        if isinstance(line, Failed):
            raise _error(line)
        yield line


def _error(line: Failed) -> InputError | MachineError:
    kind = InputError if line.exit_code == InputError.exit_code else MachineError
    return kind(line.message, got=line.got, expected=line.expected, remedy=line.remedy)
