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
    ModelAffinity,
    PowerOfTwo,
    RoundRobin,
)
from vaultline.sched.local import Fifo, Vaultline
from vaultline.sched.server import Policy


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


def _kept() -> Policy:
    return Fifo(keep_model=True)


def _batched() -> Policy:
    return Fifo(keep_model=True, batch=True)


_ALL = (
    ServingPolicy(
        name="fifo",
        local=Fifo,
        chooser=RoundRobin,
        paged=True,
        note="whole requests in turn, one per core, in paged memory",
    ),
    ServingPolicy(name="round-robin", local=_kept, chooser=RoundRobin, note="each server in turn"),
    ServingPolicy(
        name="least-loaded", local=_kept, chooser=LeastLoaded, note="the server with least work"
    ),
    ServingPolicy(
        name="power-of-two", local=_kept, chooser=PowerOfTwo, note="the less loaded of two"
    ),
    ServingPolicy(
        name="model-affinity",
        local=_kept,
        chooser=ModelAffinity,
        note="where the model's weights are; whole models stay, least recently used go first",
    ),
    ServingPolicy(
        name="lasagna",
        local=_kept,
        chooser=LeastLoaded,
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
        local=_batched,
        chooser=ModelAffinity,
        note="as model-affinity, requests of one model in batches",
    ),
    ServingPolicy(
        name="lasagna-batch",
        local=_batched,
        chooser=LeastLoaded,
        note="as lasagna, requests of one model in batches",
    ),
    ServingPolicy(
        name="vaultline",
        local=Vaultline,
        chooser=Earliest,
        note="step groups in batches, shared decryption, kept weights, earliest server",
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
