"""Servers of this machine for benchmarks: models prepared, enclaves trusted, a gateway in this
process, every server on a core of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaultline.bench.hops import cpu_s
from vaultline.bench.lasagna_results import Contender, PagedAs
from vaultline.bench.neighbours import neighbours
from vaultline.bench.noise import frames_of
from vaultline.bench.rig import make_trust
from vaultline.core.errors import MachineError
from vaultline.graph.model import load_model
from vaultline.graph.zoo import build
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.keyfile import Kek, load_kek
from vaultline.owner.prepare import prepare, write_served
from vaultline.owner.served import ServedModel
from vaultline.sched.events import Request
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.serve.answers import Answer
from vaultline.serve.cluster import ServerSpec
from vaultline.serve.gateway import Gateway
from vaultline.serve.load import Frame
from vaultline.serve.lone_worker import WorkerTrust
from vaultline.serve.measuring import measure
from vaultline.serve.prepared import Prepared, load_prepared
from vaultline.serve.status import GatewayStatus

#: Of each model: enough that no two requests in a row are the same.
_FRAMES = 4
#: A server reports ten times a second.
_REPORT_S_MAX = 5.0
_POLL_S = 0.02
_BOUNDED = "bounded"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RigRequest:
    """What to set up.

    Attributes:
        prepared: folder for prepared models, one within for each way to run them; what is there and
            still right is taken.
        paged: also prepare models for paged enclaves, in these ways.
        memory_bytes: protected memory of each server.
        neighbours: busy copies of a model, each on a core of its own, while it is measured.
        measure_again: also what was measured before, when the machine may have been busy.
        log_dir: for events and actions, a folder for each start.
    """

    models: tuple[str, ...]
    zoo: Path
    prepared: Path
    memory_bytes: int
    paged: tuple[PagedAs, ...] = ()
    servers: int = 2
    neighbours: int = 1
    measure_again: bool = True
    log_dir: Path | None = None


class ServingRig:
    """Starts servers for one contender after another. A context manager: models are prepared, and
    measured, when it is entered."""

    def __init__(self, request: RigRequest, progress: Progress) -> None:
        self._request, self._progress = request, progress
        self._stack = contextlib.ExitStack()
        self._models: dict[str, list[Prepared]] = {}
        self._starts = 0
        self.warnings: list[str] = []
        self._prepare_s = 0.0

    def __enter__(self) -> ServingRig:
        folder = tempfile.TemporaryDirectory(prefix="vaultline-bench-")
        trust = make_trust(Path(self._stack.enter_context(folder)))
        self._platform = trust["platform"]
        self._appraiser = Appraiser(
            policy=load_policy(trust["policy"]),
            collateral=load_collateral({"simulated": trust["collateral"]}),
            allow_simulated=True,
        )
        before_s = time.perf_counter()
        try:
            self._prepare()
        except BaseException:
            self._stack.close()
            raise
        self._prepare_s = time.perf_counter() - before_s
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _prepare(self) -> None:
        request = self._request
        ways: list[PagedAs | None] = [None, *request.paged]
        total = len(ways) * len(request.models)
        request.prepared.mkdir(parents=True, exist_ok=True)
        kek = load_kek(request.prepared / "kek.jwk", create=True)
        for number, way in enumerate(ways):
            folder = request.prepared / (way or _BOUNDED)
            for place, name in enumerate(request.models):
                done = number * len(request.models) + place
                self._progress(f"nothing: preparing {name}", done, total)
                path = build(name, request.zoo)
                served = prepare(path, folder, name=name, paged=way, kek=kek)
                # Those who serve paged models know nothing of their times.
                if way is None and (request.measure_again or not served.measured):
                    self._progress(f"runs of {name}", done, total)
                    self._measure(path, served, folder, kek)
            self._models[way or _BOUNDED] = load_prepared(folder, kek, names=request.models)
        bounded = [model.served for model in self._models[_BOUNDED]]
        self.inputs = {each.name: frames_of(each.inputs, _FRAMES) for each in bounded}

    def _measure(self, path: Path, served: ServedModel, folder: Path, kek: Kek) -> None:
        """Times of a model's runs, while the other core is busy: as it will be."""
        cores = sorted(os.sched_getaffinity(0))
        trust = WorkerTrust(platform_file=self._platform, appraise=self._appraiser.appraise_now)
        with neighbours(load_model(path), self._request.neighbours, cores[::-1]):
            measured = measure(
                served, folder, kek=kek, trust=trust, core=cores[-1], warn=self.warnings.append
            )
        write_served(folder, measured)

    @property
    def specs(self) -> list[ServerSpec]:
        """The servers, each on a core of its own as long as there are enough."""
        cores = sorted(os.sched_getaffinity(0))
        return [
            ServerSpec(
                name=f"server-{number}",
                cores=1,
                memory_bytes=self._request.memory_bytes,
                cpus=(cores[number % len(cores)],),
            )
            for number in range(self._request.servers)
        ]

    def models(self, contender: Contender) -> list[Prepared]:
        """As they were prepared for a contender."""
        return self._models[contender.paged or _BOUNDED]

    def models_facts(self, contender: Contender) -> dict[str, ModelFacts]:
        """What its scheduler knows of them."""
        return {model.name: model.served.facts for model in self.models(contender)}

    @contextmanager
    def start(self, contender: Contender, log_dir: Path | None = None) -> Iterator[LiveServing]:
        """Servers under a contender's policy, that log into a folder."""
        logs = self._request.log_dir
        logs = log_dir or (logs and logs / f"{self._starts:02d}-{contender.name}")
        self._starts += 1
        gateway = Gateway(
            self.models(contender),
            self.specs,
            contender.policy,
            platform_file=self._platform,
            appraise=self._appraiser.appraise_now,
            log_dir=logs,
        )
        with gateway:
            yield LiveServing(gateway)

    def about(self) -> dict[str, Any]:
        """What was served, for the record."""
        return {
            "servers": [str(spec) for spec in self.specs],
            "prepare_s": self._prepare_s,
            "warnings": self.warnings,
            "models": {
                way: {
                    model.name: {
                        "groups": model.served.groups,
                        "workspace_bytes": model.served.workspace_bytes,
                        "facts": model.served.facts,
                    }
                    for model in models
                }
                for way, models in self._models.items()
            },
        }


class LiveServing:
    """Servers that run, and their gateway in this process."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        servers = gateway.status().servers
        self._pids = {each.name: gateway.server_pids(each.name) for each in servers}

    @property
    def facts(self) -> Sequence[ServerFacts]:
        """What the balancer knows of the servers."""
        return self._gateway.facts

    def submit(self, request: Request, frame: Frame) -> Future[Answer]:
        """Send a request now, with what is left until its deadline."""
        deadline_s = request.deadline_s
        return self._gateway.submit(
            request.model,
            frame,
            deadline_s=None if deadline_s is None else deadline_s - request.arrived_s,
            priority=request.priority,
        )

    def status(self, *, fresh: bool = True) -> GatewayStatus:
        """By reports that every server that is there has begun after this was called.

        Args:
            fresh: if not, by the last ones, and at once.

        Raises:
            MachineError: one of them does not report.
        """
        if not fresh:
            return self._gateway.status()
        before = {server.name: server.turn for server in self._gateway.status().servers}
        give_up_s = time.monotonic() + _REPORT_S_MAX
        while time.monotonic() < give_up_s:
            status = self._gateway.status()
            # The next report may have been on its way already.
            if all(s.turn >= before[s.name] + 2 or not s.alive for s in status.servers):
                return status
            time.sleep(_POLL_S)
        raise MachineError("a server has stopped reporting", got=f"for {_REPORT_S_MAX} s")

    def cpu_s(self) -> tuple[float, float, float]:
        """Processor time so far: of this process, of all hosts, of all workers."""
        hosts, workers = zip(*self._pids.values(), strict=True)
        return time.process_time(), sum(map(cpu_s, hosts)), sum(map(cpu_s, workers))

    def kill(self, server: str) -> None:
        """End a server's host and its worker at once."""
        for pid in self._pids[server]:
            with contextlib.suppress(ProcessLookupError):  # the host may have ended it
                os.kill(pid, signal.SIGKILL)
