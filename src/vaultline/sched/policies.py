"""Every serving policy by name: what a server's core does next, and which server gets a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vaultline.core.errors import InputError
from vaultline.sched.balancer import (
    Chooser,
    Earliest,
    LeastLoaded,
    LeastPressed,
    ModelAffinity,
    PowerOfTwo,
    RoundRobin,
)
from vaultline.sched.baselines import Fifo, Lasagna
from vaultline.sched.local import Vaultline
from vaultline.sched.state import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPolicy:
    """A pair of policies.

    Attributes:
        local, chooser: factories: each server and each balancer needs one of its own.
        paged: models run whole in paged memory; else in bounded memory, group by group.
        note: one line for tables.
    """

    name: str
    local: Callable[[], Policy]
    chooser: Callable[[], Chooser]
    paged: bool = False
    note: str = ""


def _whole() -> Policy:
    return Fifo(keep="groups")


def _batched() -> Policy:
    return Fifo(keep="groups", batch=True)


_ALL = (
    ServingPolicy(
        name="fifo",
        local=Fifo,
        chooser=RoundRobin,
        paged=True,
        note="whole requests in turn, one per core, in paged memory; servers in turn",
    ),
    ServingPolicy(
        name="round-robin",
        local=_whole,
        chooser=RoundRobin,
        note="whole requests, bounded memory, kept weights; servers in turn",
    ),
    ServingPolicy(
        name="least-loaded",
        local=_whole,
        chooser=LeastLoaded,
        note="as round-robin, to the server with the least work",
    ),
    ServingPolicy(
        name="power-of-two",
        local=_whole,
        chooser=PowerOfTwo,
        note="as round-robin, to the less loaded of two servers",
    ),
    ServingPolicy(
        name="model-affinity",
        local=lambda: Fifo(keep="models"),
        chooser=ModelAffinity,
        note="whole models stay, the least recently used goes first; to where the model is",
    ),
    ServingPolicy(
        name="lasagna",
        local=Lasagna,
        chooser=LeastPressed,
        note="tasks of layers, run together where memory allows; memory and compute balanced",
    ),
    ServingPolicy(
        name="least-loaded-batch",
        local=_batched,
        chooser=LeastLoaded,
        note="as least-loaded, requests of one model in batches",
    ),
    ServingPolicy(
        name="model-affinity-batch",
        local=lambda: Fifo(keep="models", batch=True),
        chooser=ModelAffinity,
        note="as model-affinity, requests of one model in batches",
    ),
    ServingPolicy(
        name="lasagna-batch",
        local=lambda: Lasagna(batch=True),
        chooser=LeastPressed,
        note="as lasagna, requests that wait for one group in batches",
    ),
    ServingPolicy(
        name="vaultline",
        local=Vaultline,
        chooser=Earliest,
        note="step groups in batches, shared decryption, kept weights; to the earliest server",
    ),
)

POLICIES: Mapping[str, ServingPolicy] = MappingProxyType({each.name: each for each in _ALL})


def policy(name: str) -> ServingPolicy:
    """A policy by its name.

    Raises:
        InputError: there is none of this name.
    """
    found = POLICIES.get(name)
    if found is None:
        raise InputError(f"no policy is called {name!r}", expected=", ".join(POLICIES))
    return found
