"""An open loop: every request is sent when it is due, whoever still waits for an answer.

Latencies count from when a request was *due*, so that a generator that is late can't hide it
(G. Tene's "coordinated omission"); how late it was is measured and said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy.typing as npt

from vaultline.core.errors import InputError, PeerError, RefusedError, VaultlineError
from vaultline.core.spread import Spread, spread
from vaultline.sched.events import Request

Array = npt.NDArray[Any]
#: One request's tensors, in the order of the model's inputs.
Frame = Sequence[Array]
#: Sends a request; its future ends with an answer, ``RefusedError``, or what has gone wrong.
Submit = Callable[[Request, Frame], "Future[Any]"]
#: A generator whose 99th percentile is later than this has not offered what it was asked to.
LATE_S = 0.01


class Clock(Protocol):
    """Time that a loop goes by."""

    def now_s(self) -> float:
        """Seconds since whenever."""

    def sleep(self, seconds: float) -> None:
        """Let so much of it pass."""


class WallClock:
    """This machine's."""

    def now_s(self) -> float:
        """Seconds, never going back."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Give up the processor."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request of an open loop, in seconds since its start.

    Attributes:
        ended_s: when its answer or refusal came; None if neither has.
        reason: why it was not answered.
        failed: not refused, but lost to an error.
    """

    request: Request
    sent_s: float
    ended_s: float | None = None
    reason: str = ""
    failed: bool = False

    @property
    def answered(self) -> bool:
        """Whether an answer has come."""
        return self.ended_s is not None and not self.reason

    @property
    def latency_s(self) -> float | None:
        """From when it was due to its end."""
        return None if self.ended_s is None else self.ended_s - self.request.arrived_s

    @property
    def late_s(self) -> float:
        """How long after its time the generator came to it."""
        return max(0.0, self.sent_s - self.request.arrived_s)


class OpenLoop:
    """Sends requests at their times, from one thread.

    Attributes:
        repeated: ends of requests that had ended before: there should be none.
    """

    def __init__(
        self, submit: Submit, inputs: Mapping[str, Sequence[Frame]], clock: Clock | None = None
    ) -> None:
        """``inputs``: frames of each model, made beforehand, that requests take in turn."""
        self._submit, self._inputs = submit, inputs
        self._clock = clock or WallClock()
        self._ends: SimpleQueue[tuple[int, float, BaseException | None]] = SimpleQueue()
        self.repeated = 0

    def run(
        self,
        requests: Sequence[Request],
        *,
        patience_s: float = 60.0,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sent]:
        """Send all and wait for their ends, at most ``patience_s`` after the last was sent.

        Args:
            requests: in the order of ``arrived_s``, which counts from now.
            progress: is told how many have ended.

        Raises:
            InputError: a request for a model that there are no inputs for.
        """
        unknown = {request.model for request in requests} - {*self._inputs}
        if unknown:
            raise InputError(
                "the workload asks for a model that is not served",
                got=", ".join(sorted(unknown)),
                expected="some of " + ", ".join(sorted(self._inputs)),
            )
        zero_s = self._clock.now_s()
        sent_s: list[float] = []
        ends: dict[int, tuple[float, BaseException | None]] = {}
        for position, request in enumerate(requests):
            self._wait_until(zero_s + request.arrived_s)
            frames = self._inputs[request.model]
            sent_s.append(self._clock.now_s() - zero_s)
            try:
                future = self._submit(request, frames[position % len(frames)])
            except (RefusedError, PeerError) as error:  # not even taken
                self._ends.put((position, self._clock.now_s(), error))
            else:
                future.add_done_callback(partial(self._ended, position))
            self._take(ends, zero_s, progress)
        give_up_s = self._clock.now_s() + patience_s
        while len(ends) < len(requests) and self._clock.now_s() < give_up_s:
            self._take(ends, zero_s, progress, wait_s=give_up_s - self._clock.now_s())
        return [
            _sent(request, sent_s[position], ends.get(position))
            for position, request in enumerate(requests)
        ]

    def _wait_until(self, when_s: float) -> None:
        while (left_s := when_s - self._clock.now_s()) > 0:
            self._clock.sleep(left_s)

    def _ended(self, position: int, future: Future[Any]) -> None:
        """On whichever thread has the answer: no more than is needed."""
        self._ends.put((position, self._clock.now_s(), future.exception()))

    def _take(
        self,
        ends: dict[int, tuple[float, BaseException | None]],
        zero_s: float,
        progress: Callable[[int], None] | None,
        wait_s: float = 0.0,
    ) -> None:
        """What has ended since; waits for the first."""
        before = len(ends)
        while True:
            try:
                wait = wait_s > 0 and len(ends) == before
                position, when_s, error = self._ends.get(wait, wait_s if wait else None)
            except Empty:
                break
            self.repeated += position in ends
            ends.setdefault(position, (when_s - zero_s, error))
        if progress is not None and len(ends) > before:
            progress(len(ends))


def _sent(request: Request, sent_s: float, end: tuple[float, BaseException | None] | None) -> Sent:
    if end is None:
        return Sent(request=request, sent_s=sent_s)
    ended_s, error = end
    if error is None:
        return Sent(request=request, sent_s=sent_s, ended_s=ended_s)
    said = str(error)
    if isinstance(error, VaultlineError):  # the message is the same for all of one model
        said = error.got if isinstance(error, RefusedError) and error.got else error.message
    return Sent(
        request=request,
        sent_s=sent_s,
        ended_s=ended_s,
        reason=said or type(error).__name__,
        failed=not isinstance(error, RefusedError),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSummary:
    """What a load came to.

    Attributes:
        seconds: from the first request's time to the last end.
        offered_per_s, achieved_per_s: requests that were due, and answers, over the time in which
            requests were due and over all of it.
        unanswered: nothing has come when the wait was over; failed: lost to an error.
        missed: answered, but after their deadlines.
        late: of the generator; lagging: so much that it offered less than asked.
        models: latencies of answers; ``all`` of all.
    """

    seconds: float
    offered_per_s: float
    achieved_per_s: float
    sent: int
    answered: int
    refused: int
    failed: int
    unanswered: int
    missed: int
    reasons: Mapping[str, int]
    late: Spread | None
    lagging: bool
    all: Spread | None
    models: Mapping[str, Spread | None]


def summarize(sent: Sequence[Sent]) -> LoadSummary:
    """Of at least one request."""
    first_s = sent[0].request.arrived_s
    due_s = sent[-1].request.arrived_s - first_s
    last_s = max((each.ended_s for each in sent if each.ended_s is not None), default=first_s)
    answered = [each for each in sent if each.answered]
    reasons: dict[str, int] = {}
    for each in sent:
        if each.reason:
            reasons[each.reason] = reasons.get(each.reason, 0) + 1
    late = spread(each.late_s for each in sent)
    by_model: dict[str, list[float]] = {
        name: [] for name in sorted({e.request.model for e in sent})
    }
    for each in answered:
        by_model[each.request.model].append(each.latency_s or 0.0)
    seconds = last_s - first_s
    return LoadSummary(
        seconds=seconds,
        offered_per_s=(len(sent) - 1) / due_s if due_s > 0 else 0.0,
        achieved_per_s=len(answered) / seconds if seconds > 0 else 0.0,
        sent=len(sent),
        answered=len(answered),
        refused=sum(bool(each.reason) and not each.failed for each in sent),
        failed=sum(each.failed for each in sent),
        unanswered=sum(each.ended_s is None for each in sent),
        missed=sum(_missed(each) for each in answered),
        reasons=reasons,
        late=late,
        lagging=due_s > 0 and late is not None and late.p99_s > LATE_S,
        all=spread(each.latency_s or 0.0 for each in answered),
        models={name: spread(seconds) for name, seconds in by_model.items()},
    )


def _missed(each: Sent) -> bool:
    deadline_s, ended_s = each.request.deadline_s, each.ended_s
    return deadline_s is not None and ended_s is not None and ended_s > deadline_s
