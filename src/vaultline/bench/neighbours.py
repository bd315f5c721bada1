"""Copies of a model that keep other cores, and the memory that all cores share, busy."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vaultline.core.errors import MachineError
from vaultline.graph.model import save
from vaultline.graph.structure import Model


@contextmanager
def neighbours(model: Model, count: int, cores: Sequence[int]) -> Iterator[None]:
    """Run the model that many times as an enclave would, one per core after the first.

    They end with this context, and with this process however it ends.

    Raises:
        MachineError: one of them did not start.
    """
    with ExitStack() as stack:
        if count:
            # Nothing of the folder is needed once they run, so nothing can be left behind.
            with tempfile.TemporaryDirectory(prefix="vaultline-") as folder:
                path = Path(folder) / "model.onnx"
                save(model, path)
                for turn in range(count):
                    busy = _start([str(path), str(cores[(turn + 1) % len(cores)])])
                    stack.enter_context(busy)
                    stack.callback(busy.kill)
                    if busy.stdout is None or not busy.stdout.readline():
                        raise MachineError(
                            "a neighbour did not start", remedy="profile with --neighbours 0"
                        )
        yield


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vaultline.bench.neighbour_worker", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
