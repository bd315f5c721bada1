"""Copies of a model that keep other cores, and the memory that all cores share, busy."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vaultline.core.errors import MachineError
from vaultline.core.serde import canonical_json
from vaultline.graph.model import save
from vaultline.graph.rewrite import rewrite
from vaultline.graph.structure import Model

_FOR_EVER = 1 << 40


@contextmanager
def neighbours(model: Model, count: int, cores: Sequence[int]) -> Iterator[None]:
    """Run that many plain sessions of the model, one per core, taking cores after the first.

    They end with this context, and with this process however it ends.

    Raises:
        MachineError: one of them did not start.
    """
    with ExitStack() as stack:
        if count:
            # Nothing of the folder is needed once they run, so nothing can be left behind.
            with tempfile.TemporaryDirectory(prefix="vaultline-") as folder:
                path = Path(folder) / "model.onnx"
                save(rewrite(model), path)
                specs = canonical_json(model.inputs).decode()
                for turn in range(count):
                    core = cores[(turn + 1) % len(cores)]
                    busy = _start([str(path), str(core), specs])
                    stack.enter_context(busy)
                    stack.callback(busy.kill)
                    _set_going(busy)
        yield


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vaultline.bench.native_worker", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _set_going(busy: subprocess.Popen[str]) -> None:
    if busy.stdin is None or busy.stdout is None or not busy.stdout.readline():
        raise MachineError("a neighbour did not start", remedy="profile with --neighbours 0")
    busy.stdin.write(f"{_FOR_EVER}\n")
    busy.stdin.flush()
