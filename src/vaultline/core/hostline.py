"""Lines between the owner and the untrusted host that launches its workers."""

from __future__ import annotations

from typing import Literal

from vaultline.core.control import HardeningStep, LinkLine, ProviderName, StageMetrics
from vaultline.core.errors import InputError
from vaultline.core.serde import Struct

#: Importing the engine and measuring the code takes about a second on a busy machine; a cold disk
#: takes longer. An SGX enclave is built page by page first, and Python compiles inside.
START_S_MAX = 60.0
START_ELSEWHERE_S_MAX = 300.0


class Start(Struct, frozen=True, kw_only=True):
    """How a worker comes to be, and who makes its evidence: one way each, and no other is tried.

    Attributes:
        provider, platform_file: as in ``WorkerConfig``.
        gramine: folder with the manifest that it runs under, on the host's machine;
            ``gramine-sgx`` for the provider ``gramine``, ``gramine-direct`` for any other.
        at: where a connection starts a worker and is its line: ``tcp:HOST:PORT`` or
            ``vsock:CID:PORT``. The machine there has ``platform_file`` and vaults of its own.
    """

    provider: ProviderName
    platform_file: str | None = None
    gramine: str | None = None
    at: str | None = None

    def __post_init__(self) -> None:
        if self.gramine is not None and self.at is not None:
            raise InputError(
                "a worker is started under Gramine here, or by a connection, and not both",
                got=f"gramine: {self.gramine}, launch: {self.at}",
                remedy="the machine that is connected to runs its own Gramine: leave one out",
            )
        if self.provider == "gramine" and self.gramine is None and self.at is None:
            raise InputError("an SGX worker without a manifest", expected="gramine or at")

    @property
    def platform(self) -> Literal["process", "gramine"]:
        """What the worker is told that it runs on."""
        under_gramine = self.provider == "gramine" or self.gramine is not None
        return "gramine" if under_gramine else "process"

    @property
    def needs_tcp(self) -> bool:
        """Unix sockets leave neither a Gramine instance nor another machine."""
        return self.platform == "gramine" or self.at is not None

    @property
    def start_s_max(self) -> float:
        """How long it may take until the worker listens."""
        return START_ELSEWHERE_S_MAX if self.needs_tcp else START_S_MAX


class LaunchWorker(Struct, frozen=True, kw_only=True):
    """Owner to host: one worker to start.

    Attributes:
        stage, replica: what it runs, so that the host connects the right ones; an enclave
            believes its vault and its grant instead.
        cores: of this machine, that the worker may use; empty for any.
        vault: the file, where the worker runs.
        bind: address that it listens on, for TCP.
        netns: network namespace that it runs in, to stand for another machine.
        busy_s_max: how long one pass may take before the worker counts as stuck.
    """

    name: str
    stage: int
    replica: int = 0
    cores: tuple[int, ...]
    vault: str
    start: Start
    busy_s_max: float
    bind: str = "127.0.0.1"
    netns: str | None = None


class LaunchRequest(Struct, frozen=True, tag="launch"):
    """Owner to host, first line: start these workers in this order and wire them up.

    Attributes:
        workers: by stage, then by replica.
        results: where the owner listens, an address per replica of the last stage.
    """

    workers: tuple[LaunchWorker, ...]
    transport: Literal["unix", "tcp"]
    results: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = self.replicas
        order = [(stage, k) for stage, count in enumerate(counts) for k in range(count)]
        given = [(worker.stage, worker.replica) for worker in self.workers]
        if not order or given != order or len(self.results) != counts[-1]:
            raise InputError(
                "not the workers of a pipeline",
                got=f"stages and replicas {given}, {len(self.results)} places for results",
                expected="workers by stage and replica, a place for each one's of the last stage",
            )

    @property
    def replicas(self) -> tuple[int, ...]:
        """How many each stage has."""
        stages = [worker.stage for worker in self.workers]
        return tuple(stages.count(stage) for stage in range(len(set(stages))))


class EndpointsLine(Struct, frozen=True, tag="endpoints"):
    """Host to owner: everything listens here; workers, in their order, are wired to one another."""

    control: tuple[str, ...]
    data: tuple[tuple[str, ...], ...]
    measurements: tuple[str, ...]
    hardening: tuple[tuple[HardeningStep, ...], ...]
    pids: tuple[int, ...]


class BeatsLine(Struct, frozen=True, tag="beats"):
    """Host to owner: frames done by each worker so far, and what it uses; nobody vouches for it.

    Attributes:
        last: every worker has ended after the end of its stream.
    """

    frames: tuple[int, ...]
    metrics: tuple[StageMetrics, ...] = ()
    last: bool = False


class WorkerLostLine(Struct, frozen=True, kw_only=True, tag="lost"):
    """Host to owner: a worker died, is stuck, or refused; everything is being stopped.

    Attributes:
        replica: None where the stage has only one.
        remedy: what the host's operator can do, if anything.
    """

    stage: int
    replica: int | None = None
    name: str
    code: str
    message: str
    refused: bool = False
    remedy: str | None = None


HostLine = EndpointsLine | BeatsLine | WorkerLostLine | LinkLine
