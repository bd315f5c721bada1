"""Lines between the owner and the untrusted host that launches its workers."""

from __future__ import annotations

from typing import Literal

from vaultline.core.control import HardeningStep
from vaultline.core.serde import Struct


class LaunchWorker(Struct, frozen=True):
    """Owner to host: one worker to start.

    Attributes:
        cores: of this machine, that the worker may use; empty for any.
        bind: address that it listens on, for TCP.
        netns: network namespace that it runs in, to stand for another machine.
        busy_s_max: how long one pass may take before the worker counts as stuck.
    """

    name: str
    cores: tuple[int, ...]
    vault: str
    provider: Literal["simulated", "gramine", "pinned"]
    platform_file: str | None
    busy_s_max: float
    bind: str = "127.0.0.1"
    netns: str | None = None


class LaunchRequest(Struct, frozen=True, tag="launch"):
    """Owner to host, first line: start these workers in this order and wire them up."""

    workers: tuple[LaunchWorker, ...]
    transport: Literal["unix", "tcp"]
    result: str


class EndpointsLine(Struct, frozen=True, tag="endpoints"):
    """Host to owner: everything listens here; workers are wired to one another."""

    control: tuple[str, ...]
    data: tuple[str, ...]
    measurements: tuple[str, ...]
    hardening: tuple[tuple[HardeningStep, ...], ...]
    pids: tuple[int, ...]


class BeatsLine(Struct, frozen=True, tag="beats"):
    """Host to owner: frames done by each worker so far."""

    frames: tuple[int, ...]


class WorkerLostLine(Struct, frozen=True, tag="lost"):
    """Host to owner: a worker died, is stuck, or refused; everything is being stopped."""

    stage: int
    name: str
    code: str
    message: str
    refused: bool = False


HostLine = EndpointsLine | BeatsLine | WorkerLostLine
