"""Profiles from a worker: like those of this process, interrupted at will, and no orphans."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from vaultline.bench import profile_process
from vaultline.bench.measuring import Step, Wanted
from vaultline.bench.profile_process import open_journal, profile_in_worker, worker_cores
from vaultline.bench.profile_worker import LINE_BYTES_MAX, Failed, Job, Started, work
from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.core.errors import InputError, MachineError, RemoteProtocolError
from vaultline.core.serde import canonical_json
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.host import launcher

REQUEST = ProfileRequest(repeats=4, date="2026-01-01")
#: More than any process here takes to notice that it is alone.
GONE_S = 60
#: A product of more than 1 MiB of weights, which stacks frames.
_SIDE = 520


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two fully connected layers and what is between them."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.random((_SIDE, _SIDE), np.float32) / _SIDE, name)
        for name in ("v", "w")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _SIDE]) for name in "xy"]
    graph = helper.make_graph(nodes, "two-layers", ends[:1], ends[1:], initializer=weights)
    opsets = [helper.make_opsetid("", 17)]
    made = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), made)
    return made


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load_model(path)


def is_round(line: Step | Started, number: int) -> bool:
    return isinstance(line, Step) and line.what == "measuring rounds" and line.done == number


def test_a_worker_measures_what_this_process_would_and_once(
    path: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Step | Started] = []
    with open_journal(model, REQUEST, tmp_path / "p.json") as journal:
        profile = profile_in_worker(path, model, REQUEST, journal, tell=told.append)
    here = profile_model(model, ProfileRequest(repeats=1, date="2026-01-01"))
    assert profile.recorded_on == here.recorded_on
    assert profile.positions == here.positions
    assert profile.crossing == here.crossing
    for ours, theirs in zip(profile.blocks, here.blocks, strict=True):
        assert replace(ours, compute_s=((1, 0.0),), spread_s=0.0) == replace(
            theirs, compute_s=((1, 0.0),), spread_s=0.0
        )
        assert [f for f, _ in ours.compute_s] == [f for f, _ in theirs.compute_s]
    assert any(len(block.compute_s) == 2 for block in profile.blocks)
    steps = [line for line in told if isinstance(line, Step)]
    blocks = len(profile.blocks)
    assert [s.done for s in steps if s.what == "compiling blocks"] == list(range(1, blocks + 1))
    assert [s.done for s in steps if s.what == "measuring rounds"] == list(range(1, 9))
    _is_locked_down(next(line for line in told if isinstance(line, Started)))
    # A complete journal needs no worker.
    monkeypatch.setattr(profile_process, "start_module", None)
    with open_journal(model, REQUEST, tmp_path / "p.json") as journal:
        assert profile_in_worker(path, model, REQUEST, journal) == profile


def _is_locked_down(started: Started) -> None:
    """Pinned as an enclave's worker is, and with the outcome that its hardening has here."""
    assert started.cores == worker_cores()[:1]
    script = (
        "from vaultline.enclave.hardening import harden\n"
        "print(*(f'{s.name}={s.state}' for s in harden(read_paths=[])))"
    )
    environment = {**os.environ, **launcher._ENVIRONMENT}
    output = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert [f"{s.name}={s.state}" for s in started.hardening] == output.split()
    assert {s.name for s in started.hardening} >= {"landlock", "seccomp"}


def _killer(after_round: int) -> Callable[[Step | Started], None]:
    """Kills the worker, as a kernel out of memory would, once a round is done."""
    pids: list[int] = []

    def tell(line: Step | Started) -> None:
        if isinstance(line, Started):
            pids.append(line.pid)
        if is_round(line, after_round):
            os.kill(pids[0], signal.SIGKILL)

    return tell


def test_a_killed_worker_is_a_named_error_and_the_next_goes_on_after_its_rounds(
    path: Path, model: Model, tmp_path: Path
) -> None:
    request = ProfileRequest(repeats=10_000)
    with open_journal(model, request, tmp_path / "p.json") as journal:
        with pytest.raises(MachineError, match="worker has died") as caught:
            profile_in_worker(path, model, request, journal, tell=_killer(2))
        assert "-9" in str(caught.value.got)
    with open_journal(model, request, tmp_path / "p.json") as journal:
        done = journal.parts.round_count
        assert 2 <= done < 10_000
        request = ProfileRequest(repeats=done + 1)
        steps: list[Step] = []
        profile = profile_in_worker(
            path,
            model,
            request,
            journal,
            tell=lambda line: steps.append(line) if isinstance(line, Step) else None,
        )
    # One round is missing, and all those in which frames are stacked.
    rounds = [step for step in steps if step.what == "measuring rounds"]
    assert rounds[-1].total == 1 + (done + 1)
    assert len(profile.blocks) == len(profile.positions) - 1


SCRIPT = """
import os, signal, sys
from pathlib import Path
from vaultline.bench.measuring import Step
from vaultline.bench.profile_process import open_journal, profile_in_worker
from vaultline.bench.profiling import ProfileRequest
from vaultline.graph.model import load_model

path, out = Path(sys.argv[1]), Path(sys.argv[2])
model, request = load_model(path), ProfileRequest(repeats=10_000, neighbours=1)

def tell(line):
    if isinstance(line, Step) and line.what == "measuring rounds" and line.done == 2:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        print(children, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

with open_journal(model, request, out) as journal:
    profile_in_worker(path, model, request, journal, tell=tell)
"""


def test_nothing_is_left_running_when_the_command_is_killed(
    path: Path, model: Model, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "p.json")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    children = [int(pid) for pid in killed.stdout.split()]
    assert len(children) == 2
    for pid in children:
        assert _ends(pid), f"process {pid} outlives the command"
    # Nothing else is left either, and no finished round is lost.
    assert [left.name for left in tmp_path.iterdir()] == ["p.json.partial"]
    request = ProfileRequest(neighbours=1)
    with open_journal(model, request, tmp_path / "p.json") as journal:
        assert journal.parts.round_count == 2


def _ends(pid: int) -> bool:
    with suppress(ProcessLookupError):
        watched = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        ended = bool(poll.poll(GONE_S * 1000))
        os.close(watched)
        return ended
    return True


def test_a_model_that_has_changed_is_refused(path: Path) -> None:
    wanted = Wanted(single_rounds=1, stacked_rounds=1, node_runs=1)
    job = Job(model=str(path), model_digest="cd" * 32, wanted=wanted)
    with pytest.raises(InputError, match="has changed"):
        work(job, fd=-1)


FAILURES = {
    "bad input": (InputError.exit_code, InputError),
    "a machine that lacks something": (4, MachineError),
    "a bug": (70, MachineError),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_workers_failure_is_told_as_its_own(case: str) -> None:
    exit_code, kind = FAILURES[case]
    line = Failed(message="no", exit_code=exit_code, got="a", expected="b", remedy="c")
    with pytest.raises(kind) as caught:
        list(profile_process._lines(saying(canonical_json(line) + b"\n")))
    error = caught.value
    assert (error.message, error.got, error.expected, error.remedy) == ("no", "a", "b", "c")


NONSENSE = {
    "no JSON": b"hello\n",
    "JSON of something else": b'{"type":"wire","next":"x"}\n',
    "a part with a wrong field": b'{"type":"round","frames":"1","seconds":[]}\n',
    "an endless line": b"x" * (LINE_BYTES_MAX + 2),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_a_worker_that_says_nonsense_is_a_named_error(case: str) -> None:
    with pytest.raises(RemoteProtocolError):
        list(profile_process._lines(saying(NONSENSE[case])))


@dataclass
class Saying:
    """A worker that has said this and is gone."""

    stdout: io.BytesIO

    def wait(self) -> int:
        return 0


def saying(data: bytes) -> subprocess.Popen[bytes]:
    return Saying(io.BytesIO(data))  # type: ignore[return-value]
