"""Which address goes to which worker: pure, and believed by nobody who holds a key."""

from __future__ import annotations

from itertools import islice
from typing import Literal

from vaultline.core.control import ReadyLine
from vaultline.core.errors import RemoteProtocolError
from vaultline.core.hostline import LaunchRequest, LaunchWorker
from vaultline.core.replicas import neighbours


def data_addresses(request: LaunchRequest, worker: LaunchWorker) -> int:
    """How many addresses a worker listens on for frames: one per replica that sends it any."""
    counts = request.replicas
    before = counts[worker.stage - 1] if worker.stage else 1
    return len(neighbours(worker.replica, counts[worker.stage], before))


def listens_as_asked(line: ReadyLine, transport: Literal["unix", "tcp"]) -> bool:
    """Whether a worker listens on sockets of the kind that it was asked to.

    Others connect where it says: to no Unix socket of their own machine, because of another's word.
    """
    return all(address.startswith(f"{transport}:") for address in (line.control, *line.data))


def next_addresses(request: LaunchRequest, ready: tuple[ReadyLine, ...]) -> list[tuple[str, ...]]:
    """Where each worker sends its frames, in the order of the replicas that get them.

    Raises:
        RemoteProtocolError: a worker listens on another number of addresses than it was told.
    """
    for worker, line in zip(request.workers, ready, strict=True):
        if len(line.data) != data_addresses(request, worker):
            raise RemoteProtocolError(
                f"worker {worker.name} listens on another number of addresses",
                got=str(len(line.data)),
                expected=str(data_addresses(request, worker)),
            )
    lines = iter(ready)
    listening = [[line.data for line in islice(lines, count)] for count in request.replicas]
    listening.append([request.results])
    counts = [len(stage) for stage in listening]
    found = []
    for worker in request.workers:
        own, others = counts[worker.stage], counts[worker.stage + 1]
        found.append(
            tuple(
                listening[worker.stage + 1][target][
                    neighbours(target, others, own).index(worker.replica)
                ]
                for target in neighbours(worker.replica, own, others)
            )
        )
    return found
