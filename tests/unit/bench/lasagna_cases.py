"""Made-up results of `bench lasagna`, for tests of its figures and pictures."""

from __future__ import annotations

from vaultline.bench.lasagna_results import (
    Contender,
    Killed,
    LasagnaResult,
    Offered,
    PagedAs,
    Saturated,
    Use,
)
from vaultline.core.spread import spread
from vaultline.sched.events import Request
from vaultline.serve.load import Sent, summarize

CONTENDERS = {
    "fifo.sgx1": (2.5, 0.9),
    "fifo.crypto": (6.0, 0.8),
    "round-robin": (18.0, 0.30),
    "least-loaded": (19.0, 0.28),
    "power-of-two": (18.5, 0.29),
    "model-affinity": (21.0, 0.26),
    "lasagna": (24.0, 0.25),
    "vaultline": (32.0, 0.12),
}


def use(seconds: float, busy: float = 0.9) -> Use:
    return Use(
        seconds=seconds,
        cores=2,
        busy_s={"server-0": busy * seconds, "server-1": busy * seconds},
        served_s={"vgg19": busy * seconds, "alexnet": busy * seconds},
        runs=100,
        loads=10,
        evictions=8,
        streamed_bytes=1 << 30,
        swapped_pages=0,
        gateway_cpu_s=0.02 * seconds,
        hosts_cpu_s=0.02 * seconds,
        workers_cpu_s=1.8 * seconds,
    )


def contender(name: str) -> Contender:
    policy, _, paged = name.partition(".")
    modes: dict[str, PagedAs | None] = {"": None, "sgx1": "sgx1", "crypto": "crypto"}
    return Contender(policy=policy, paged=modes[paged])


def saturated(name: str, rate: float, turn: int = 0) -> Saturated:
    seconds = 240 / rate
    return Saturated(
        contender=contender(name),
        turn=turn,
        requests=240,
        answered=240,
        seconds=seconds,
        use=use(seconds),
    )


def offered(name: str, rate_of: str, rate: float, mean_s: float, drain_s: float = 0.3) -> Offered:
    arrivals = [number / rate for number in range(200)]
    ends = [arrived_s + mean_s * (0.5 + number / 199) for number, arrived_s in enumerate(arrivals)]
    ends[-1] = arrivals[-1] + drain_s
    sent = [
        Sent(
            request=Request(number=number, model="vgg19", arrived_s=arrived_s),
            sent_s=arrived_s,
            ended_s=end_s,
        )
        for number, (arrived_s, end_s) in enumerate(zip(arrivals, ends, strict=True))
    ]
    summary = summarize(sent)
    latency = spread(each.latency_s or 0.0 for each in sent)
    if latency is None:
        raise ValueError("no requests")
    return Offered(
        contender=contender(name),
        turn=0,
        rate_of=rate_of,
        rate_per_s=rate,
        window_s=arrivals[-1],
        summary=summary,
        latency=latency,
        use=use(arrivals[-1]),
    )


def killed() -> Killed:
    answers = [0.05 * number for number in range(200)] + [
        10 + 0.08 * number for number in range(120)
    ]
    calm = spread([0.05, 0.1, 0.1, 0.2])
    return Killed(
        policy="vaultline",
        requests=320,
        answered=320,
        lost=0,
        doubled=0,
        held=7,
        killed_s=9.0,
        noticed_s=0.02,
        recovery_s=0.6,
        answers_s=tuple(answers),
        rate_per_s=20.0,
        before=calm,
        after=calm,
    )


def result() -> LasagnaResult:
    found = LasagnaResult(batched=("lasagna",))
    for turn, factor in enumerate((0.9, 1.0, 1.05)):
        for name, (rate, _) in CONTENDERS.items():
            found.saturated.append(saturated(name, rate * factor, turn))
    for rate_of, rate in (("vaultline", 22.4), ("baseline", 16.8)):
        for name, (capacity, mean_s) in CONTENDERS.items():
            drain_s = 0.3 if capacity > rate else 200 / capacity - 200 / rate
            found.offered.append(offered(name, rate_of, rate, mean_s, drain_s))
    found.killed = killed()
    return found
