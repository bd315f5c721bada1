"""Fuzz parsers for a while each: ``make fuzz``, ``make fuzz SECONDS=600 TARGETS="quote vault"``.

Seconds are the processor's, so that a busy machine does not shorten the search. What ends somewhere
new joins the corpus; a finding is shrunk, kept as ``crash-*`` and reported.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness import Finding, Target, keep, mutations, run_one
from hypothesis import HealthCheck, Phase, given, seed, settings
from targets import TARGETS

_BATCH = 400
#: A parser that waits for something is as stuck as one that counts for ever.
_STUCK_S = 1800
#: A backstop for memory that Python does not see: libraries of other languages.
_ADDRESS_SPACE_BYTES = 8 << 30


def fuzz(target: Target, seconds: float, first_seed: int) -> tuple[int, int, bool]:
    """Inputs tried, ends seen, and whether there was no finding."""
    ends = {run_one(target, data) for data in (*target.seeds, *target.corpus())}
    count, last, running = 0, b"", target.folder / "crash-running"
    running.parent.mkdir(parents=True, exist_ok=True)

    def attempt(data: bytes) -> None:
        nonlocal count, last
        count, last = count + 1, data
        running.write_bytes(data)  # stays there if this process is ended for a hang
        signal.alarm(_STUCK_S)  # no thread: one that starts while tracemalloc does may crash
        end = run_one(target, data)
        if end not in ends:
            ends.add(end)
            keep(target, data)

    until_s, batch = time.process_time() + seconds, first_seed
    while time.process_time() < until_s:
        batch += 1
        try:
            seed(batch)(
                settings(
                    max_examples=_BATCH,
                    database=None,
                    deadline=None,
                    phases=(Phase.generate, Phase.shrink),
                    report_multiple_bugs=False,  # several would come as a group, not as a Finding
                    suppress_health_check=list(HealthCheck),
                )(given(mutations(target))(attempt))
            )()
        except Finding as finding:
            path = target.folder / f"crash-{batch}"
            path.write_bytes(last)
            running.unlink(missing_ok=True)
            print(f"FINDING in {target.name}: {finding}\n  input: {path}", flush=True)
            return count, len(ends), False
    signal.alarm(0)
    running.unlink(missing_ok=True)
    return count, len(ends), True


def main() -> int:
    """Exits 1 after a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of: {', '.join(TARGETS)}; by default all")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the processor, for each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    faulthandler.register(signal.SIGALRM, chain=True)  # tells where, and ends
    right = True
    for name in arguments.targets or TARGETS:
        count, ends, clean = fuzz(TARGETS[name], arguments.seconds, arguments.seed)
        right &= clean
        print(f"{name}: {count} inputs, {ends} ends", flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
