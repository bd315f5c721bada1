"""``python -m vaultline.bench.neighbour_worker MODEL CORE``: a busy neighbour for measurements.

It runs the whole model as an enclave beside the measured one would: through the executor, in passes
of several frames, so that it takes as much of the shared memory's bandwidth, and no more.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from vaultline.bench.stage_bench import PASS_FRAMES, segment_bench
from vaultline.graph.model import load_model


def main() -> None:
    """Be busy until standard input closes."""
    path, core = Path(sys.argv[1]), int(sys.argv[2])
    os.sched_setaffinity(0, {core})
    model = load_model(path)
    bench = segment_bench(model, 0, model.node_count)
    bench.pass_s(PASS_FRAMES)
    print("ready", flush=True)
    hung_up = select.poll()
    hung_up.register(0, 0)  # nothing but the end of whoever is at the other end
    while not hung_up.poll(0):
        bench.pass_s(PASS_FRAMES)


if __name__ == "__main__":
    main()
