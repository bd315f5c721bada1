"""What a gateway decides about its servers as time passes: which are lost, when all is drained,
and when models come and go.

No I/O, no clock and no threads: the gateway calls this every so often, under the lock that its
dispatcher is under, and does what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vaultline.sched.replicas import Change, ReplicaControl
from vaultline.serve.answers import ServerLostError

#: Between decisions about replicas.
_CONTROL_S = 1.0
#: A gateway that looks so late was stopped itself, and has not heard what was said meanwhile.
_STOPPED_S = 1.0


class Watched(Protocol):
    """What is looked at of a server."""

    @property
    def name(self) -> str:
        """As in the balancer's facts."""

    heard_s: float
    drained: bool

    def silent_s(self, now_s: float) -> float:
        """Since it was heard of."""

    def stalled_s(self, now_s: float) -> float:
        """Since one of its requests ended; 0 while it has none."""


@dataclass(frozen=True, slots=True)
class TellDrain:
    """Nothing is on its way to any server, and nothing will be: they are to say when they have
    ended."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Every server has said so."""


Order = TellDrain | Drained | Change


class Oversight:
    """Looks at servers again and again.

    Attributes:
        draining: no more requests are taken. Set it at any time, also in a signal handler.
    """

    def __init__(
        self, *, silence_s: float, stall_s: float, control: ReplicaControl | None = None
    ) -> None:
        """As in the gateway's settings; without ``control`` models stay where they are."""
        self._silence_s, self._stall_s, self._control = silence_s, stall_s, control
        self._looked_s: float | None = None
        self._decided_s = 0.0
        self._told_drain = False
        self.draining = False

    def arrived(self, model: str, now_s: float) -> None:
        """A request for a model: it says where models are to be."""
        if self._control is not None:
            self._control.arrived(model, now_s)

    def unfit(self, alive: Sequence[Watched], now_s: float) -> dict[str, ServerLostError]:
        """Servers that are silent or don't get on, by name, and which of the two it is."""
        if self._looked_s is None:
            self._decided_s = now_s
        elif now_s - self._looked_s > _STOPPED_S:  # it was us who slept
            for server in alive:
                server.heard_s = now_s
        self._looked_s = now_s
        found = {}
        for server in alive:
            silent_s, stalled_s = server.silent_s(now_s), server.stalled_s(now_s)
            if silent_s > self._silence_s and not server.drained:
                text = f"server {server.name} has been silent for {silent_s:.1f} s"
            elif stalled_s > self._stall_s:
                text = f"server {server.name} has ended no request for {stalled_s:.1f} s"
            else:
                continue
            found[server.name] = ServerLostError(text)
        return found

    def orders(self, alive: Sequence[Watched], *, idle: bool, now_s: float) -> list[Order]:
        """What comes next, once what is unfit has been given up.

        Servers are drained once nothing is on its way: what one of them loses till then can still
        go to another.

        Args:
            idle: no request is without an end.
        """
        if not self.draining:
            return self._changes(now_s)
        found: list[Order] = []
        if idle and not self._told_drain:
            self._told_drain = True
            found.append(TellDrain())
        if self._told_drain and all(server.drained for server in alive):
            found.append(Drained())
        return found

    def _changes(self, now_s: float) -> list[Order]:
        if self._control is None or now_s - self._decided_s < _CONTROL_S:
            return []
        self._decided_s = now_s
        return list(self._control.decide(now_s))
