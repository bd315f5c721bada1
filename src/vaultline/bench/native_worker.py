"""``python -m vaultline.bench.native_worker MODEL CORE``: native sessions to measure against.

A process of its own, pinned to one core, as a user would run the plain engine. It reads a number
of frames per line and answers with the seconds that they took. It ends with whoever started it.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

from vaultline.bench.native import NativeModel
from vaultline.bench.noise import frames_of
from vaultline.core.serde import from_json
from vaultline.core.tensors import TensorSpec


def main() -> None:
    """Serve until standard input closes."""
    path, core, specs = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    os.sched_setaffinity(0, {core})
    inputs = from_json(specs.encode(), tuple[TensorSpec, ...], what="the input specs")
    frames = frames_of(inputs, 4)
    model = NativeModel(path)
    model.run(frames[0])
    print("ready", flush=True)
    hung_up = select.poll()
    hung_up.register(0, 0)  # nothing but the end of whoever is at the other end
    for line in sys.stdin:
        before_s = time.perf_counter()
        for number in range(int(line)):
            model.run(frames[number % len(frames)])
            if hung_up.poll(0):
                return
        print(time.perf_counter() - before_s, flush=True)


if __name__ == "__main__":
    main()
