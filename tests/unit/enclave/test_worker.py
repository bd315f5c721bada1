"""What a worker says of its failures: the host hears all of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from msgspec.structs import replace

from vaultline.core.control import FailedLine, WorkerConfig
from vaultline.core.program import Step, Weight
from vaultline.core.serde import canonical_json, from_json
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.executor import Executor
from vaultline.enclave.ledger import BudgetExceededError, Ledger
from vaultline.testing.vaults import small_stage

#: The worker's own ``main``, with a bug in one of its threads while the others wait for it.
BUGGY = """
import threading
from vaultline.enclave import __main__ as worker

def run(self):
    threading.Thread(target=int, args=("a frame's pixels",), daemon=True).start()
    threading.Event().wait(30)

worker.Worker.run = run
worker.main()
"""
CONFIG = WorkerConfig(
    name="w",
    platform="process",
    provider="simulated",
    platform_file=None,
    vault="v",
    control="unix:/c",
    data=("unix:/d",),
    runtime_dir="/",
)


def test_a_bug_in_any_thread_ends_the_worker_without_a_traceback() -> None:
    result = subprocess.run(
        [sys.executable, "-c", BUGGY],
        input=canonical_json(CONFIG) + b"\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"pixels" not in result.stdout + result.stderr
    failed = from_json(result.stdout, FailedLine, what="the last line")
    assert (result.returncode, failed.code) == (70, "bug")
    assert failed.message == "ValueError in the worker"


class Zeros:
    """Weights that nobody looks at."""

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        buffer[:] = bytes(len(buffer))


@pytest.mark.parametrize("budget_bytes", [0, 8])
def test_too_little_memory_names_no_tensor(budget_bytes: int) -> None:
    """Neither the frame between two steps, for which nothing is left, nor then the weight."""
    names = [TensorSpec(name=f"conv{k}/sealed", dtype="uint8", shape=(1, 8)) for k in range(3)]
    steps = tuple(
        Step(graph=0, feeds=(("in", k),), weights=(("w", 0),), fetches=(("out", k + 1),))
        for k in range(2)
    )
    program = small_stage(()).program
    program = replace(
        program,
        settings=replace(program.settings, mode="resident"),
        tensors=tuple(names),
        outputs=(2,),
        weights=(Weight(spec=names[0]),),
        graphs=(b"",),
        steps=steps,
    )
    with pytest.raises(BudgetExceededError) as caught:
        Executor(program, Zeros(), Ledger(budget_bytes))
    assert "sealed" not in caught.value.message
