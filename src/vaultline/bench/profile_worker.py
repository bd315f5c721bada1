"""``python -m vaultline.bench.profile_worker``: measures a model where a device's worker would run.

One line comes in, a :class:`Job`; lines go out: how far it is, every part as it is done, and why
it ends if it fails. Started, pinned and hardened as an enclave's worker is, with its executor. It
ends with whoever started it: a line that nobody takes is its last.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec

from vaultline.bench.measuring import Part, Step, Wanted, measure
from vaultline.core.control import HardeningStep
from vaultline.core.errors import InputError, VaultlineError
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.enclave.hardening import harden
from vaultline.graph.model import load_model

#: Shapes of inputs and a path, or the parts of a model with thousands of blocks: both fit easily.
LINE_BYTES_MAX = 16 << 20
EXIT_BUG = 70


class Job(Struct, frozen=True):
    """What to measure.

    Attributes:
        model: path of the ONNX model.
        model_digest: of the model as whoever asks has read it.
        far_cores: where a neighbouring worker might run.
    """

    model: str
    model_digest: str
    wanted: Wanted
    far_cores: tuple[int, ...] = ()
    input_shapes: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)


class Started(Struct, frozen=True, tag="started"):
    """The clock runs from now on: how the process is locked down, and where it runs."""

    pid: int
    cores: tuple[int, ...]
    hardening: tuple[HardeningStep, ...]


class Failed(Struct, frozen=True, tag="failed"):
    """The last line, if measuring fails."""

    message: str
    exit_code: int
    got: str | None = None
    expected: str | None = None
    remedy: str | None = None


class Finished(Struct, frozen=True, tag="finished"):
    """The last line otherwise."""


WorkerLine = Part | Step | Started | Failed | Finished


def work(job: Job, fd: int) -> None:
    """Measure and write lines to a descriptor.

    Raises:
        InputError: the model can't be used, or has changed since the job was given.
        OSError: nobody reads the lines any more.
    """
    model = load_model(Path(job.model), input_shapes=job.input_shapes)
    if model.digest != job.model_digest:
        raise InputError(
            f"the model {job.model} has changed while it was being profiled",
            remedy="run `vaultline profile` again",
        )

    def ready() -> None:
        steps = harden(read_paths=[Path(job.model)])
        cores = tuple(sorted(os.sched_getaffinity(0)))
        say(fd, Started(pid=os.getpid(), cores=cores, hardening=tuple(steps)))

    for line in measure(model, job.wanted, ready, job.far_cores):
        say(fd, line)
    say(fd, Finished())


def say(fd: int, line: WorkerLine) -> None:
    """Write one line, whole."""
    data = canonical_json(line) + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def main() -> None:
    """Do the one job on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the command's to handle
    fd = os.dup(1)
    os.dup2(2, 1)  # lines are ours alone: whatever else prints is a message
    try:
        line = sys.stdin.buffer.readline(LINE_BYTES_MAX + 1)
        work(from_json(line, Job, what="the job"), fd)
    except BrokenPipeError:
        os._exit(0)
    except VaultlineError as error:
        _fail(fd, error.exit_code, error.message, error.got, error.expected, error.remedy)
    except Exception as error:
        message = f"{type(error).__name__} in the profiling worker"
        _fail(fd, EXIT_BUG, message, str(error)[:1000], None, None)


def _fail(
    fd: int,
    exit_code: int,
    message: str,
    got: str | None,
    expected: str | None,
    remedy: str | None,
) -> None:
    line = Failed(message=message, exit_code=exit_code, got=got, expected=expected, remedy=remedy)
    try:
        say(fd, line)
    finally:
        os._exit(exit_code)


if __name__ == "__main__":
    main()
