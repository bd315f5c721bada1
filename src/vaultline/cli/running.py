"""Frames from a source through a session into a sink: what ``run`` and ``demo`` share."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vaultline.attest.appraise import Verdict
from vaultline.cli.common import device_names
from vaultline.cli.run_metrics import memory_rows, worker_uses
from vaultline.core.errors import InputError
from vaultline.core.plan import Plan
from vaultline.owner.accelerator import ACCELERATOR_FILE, check_accelerator_key
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.deploy import launch_workers, stage_secrets
from vaultline.owner.disclosure import Disclosure, untrusted_stages
from vaultline.owner.frames import OwnerFrame, ResultFrame
from vaultline.owner.keyfile import SealedKeys
from vaultline.owner.receipts import FRAMES_PER_LINK, Recorder
from vaultline.owner.seal import check_vault
from vaultline.owner.session import Session, SessionSettings
from vaultline.owner.starting import Place, Transport, check_platform, transport_for
from vaultline.video.frames import Source
from vaultline.video.preprocess import Preprocessor
from vaultline.video.sinks import JsonLinesSink, Result, StageTimes

#: How long the host may take after the last result: for what workers used, and for links.
_METRICS_S, _LINKS_S = 2.0, 20.0
#: Shown in every result: how the enclaves were proven.
_ATTESTED = {
    "simulated": "SIMULATED: development root, no protection from the host",
    "sgx": "SGX quote",
    "tdx": "TDX quote of the whole VM",
    "snp": "SEV-SNP report of the whole VM",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose evidence counts."""

    policy: Path
    collateral: Path | None
    platform: Path | None
    allow_simulated: bool
    accelerator_key: Path | None = None

    def appraiser(self, plan: Plan) -> Appraiser:
        """Reads the policy and the collateral; by default that beside the policy."""
        kinds = {stage.device.kind for stage in plan.stages} - {"accelerator"}
        path = self.collateral or self.policy.parent / "collateral.json"
        return Appraiser(
            policy=load_policy(self.policy),
            collateral=load_collateral(dict.fromkeys(sorted(kinds), path)),
            allow_simulated=self.allow_simulated,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One run of a sealed plan.

    Attributes:
        disclosure: what untrusted stages may see.
        transport: instead of the one of ``settings``; None for what all workers can use.
        receipts: a new folder for the links that enclaves sign, for so many frames each.
    """

    plan: Plan
    vault: Path
    keys: SealedKeys
    trust: Trust
    places: Mapping[str, Place] = field(default_factory=dict)
    disclosure: Disclosure = field(default_factory=Disclosure)
    transport: Transport | None = None
    settings: SessionSettings = field(default_factory=SessionSettings)
    receipts: Path | None = None
    frames_per_link: int = FRAMES_PER_LINK


@dataclass(slots=True, kw_only=True)
class RunSummary:
    """What a run did. Times are medians over frames, in seconds.

    Attributes:
        enclave: kinds of the enclaves, such as ``simulated``; untrusted devices are none.
        attested: how the enclaves were proven, and which stages were not.
        unsafe: unsafe options of the policy that were on for them.
        unverified: stages on untrusted devices, whose results nothing vouches for.
        untrusted_devices: those devices.
        memory: what each worker used of its budget, as the host tells it.
        receipt: the folder, if one was wanted; links: how many came, and how many that the host
            brought were not signed by this run's enclaves.
    """

    frames_in: int = 0
    frames_out: int = 0
    seconds: float = 0.0
    fps: float = 0.0
    latency_s: float = 0.0
    stages: list[dict[str, Any]] = field(default_factory=list)
    grant_ms: list[float] = field(default_factory=list)
    epoch: int = 0
    plan_digest: str = ""
    enclave: str = ""
    attested: str = ""
    unsafe: list[str] = field(default_factory=list)
    unverified: list[int] = field(default_factory=list)
    untrusted_devices: list[str] = field(default_factory=list)
    hardening: list[list[str]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    receipt: str = ""
    links: int = 0
    links_refused: int = 0


class Stopped(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C: everything is cleaned up on the way out."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that workers and files are cleaned up."""

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def opened(request: RunRequest, summary: RunSummary) -> Iterator[Session]:
    """The run's session, and its receipt if one is wanted.

    Raises:
        VaultlineError: as `open_session`, `Session` and `Recorder`.
    """
    appraiser = request.trust.appraiser(request.plan)
    if request.receipts is None:
        with open_session(request, appraiser) as session:
            yield session
        return
    recorder = Recorder(request.receipts, request.plan, request.frames_per_link)
    try:
        with open_session(request, appraiser, recorder) as session:
            recorder.record(session, appraiser)
            yield session
    finally:
        recorder.close()
        summary.receipt = str(request.receipts)
        summary.links, summary.links_refused = recorder.links, recorder.refused


def open_session(
    request: RunRequest, appraiser: Appraiser, recorder: Recorder | None = None
) -> Session:
    """Check everything that can be checked without starting a process.

    Raises:
        RefusedError: the vault is not the one that was sealed last for this plan, or the plan
            shows untrusted devices more than is allowed.
        InputError: a file is missing or wrong.
    """
    hosts = {device.host for stage in request.plan.stages for device in stage.devices}
    for host in request.places:
        if host not in hosts:
            raise InputError(
                "a place is given for a host that the plan does not use",
                got=host,
                expected="one of " + ", ".join(sorted(hosts)),
                remedy="correct --place, or plan for that host",
            )
    request.disclosure.check(request.plan)
    sealing = request.keys.sealing_for(request.plan.digest)
    check_vault(request.vault, sealing)
    platform = request.trust.platform or request.trust.policy.parent / "platform.json"
    if any(stage.device.kind == "simulated" for stage in request.plan.stages):
        check_platform(platform)
    accelerator_key = request.trust.accelerator_key or (
        request.trust.policy.parent / ACCELERATOR_FILE
    )
    if untrusted_stages(request.plan):
        check_accelerator_key(accelerator_key)
    workers = launch_workers(
        request.plan,
        request.vault,
        platform_file=platform,
        places=request.places,
        accelerator_key=accelerator_key,
    )
    secrets = request.disclosure.attach(request.plan, stage_secrets(request.plan, request.keys))
    transport = transport_for((worker.start for worker in workers), request.transport)
    settings = replace(request.settings, transport=transport)
    parts = (workers, appraiser.appraise_now, settings)
    if recorder is None:
        return Session(request.plan, secrets, *parts)
    return Session(request.plan, recorder.attach(secrets), *parts, on_link=recorder.link)


def check_image_model(plan: Plan) -> None:
    """Only models with one input can be fed from a video.

    Raises:
        InputError: the model has none or several.
    """
    inputs = plan.stages[0].inputs
    if len(inputs) != 1:
        raise InputError(
            "a video feeds a model with one input",
            got=", ".join(spec.name for spec in inputs) or "no input",
            remedy="use vaultline.owner.session from Python for models with several inputs",
        )


def run_video(
    request: RunRequest,
    source: Source,
    preprocessor: Preprocessor,
    sink: JsonLinesSink,
    on_result: Callable[[ResultFrame], None] = lambda _: None,
    on_session: Callable[[Session], None] = lambda _: None,
) -> RunSummary:
    """Run a source through the plan; each result is in the sink before the next is awaited.

    Raises:
        VaultlineError: what ended the run; the sink holds every result received before.
    """
    summary = _start_summary(request.plan)

    def frames() -> Iterator[OwnerFrame]:
        for frame in source:
            yield OwnerFrame(frame.index, frame.timestamp_s, [preprocessor(frame.image)])
            summary.frames_in += 1

    with opened(request, summary) as session:
        on_session(session)
        summary.epoch = session.epoch.number
        summary.unsafe = unsafe_options(session)
        if summary.unsafe:
            summary.attested += f"; UNSAFE policy: {', '.join(summary.unsafe)}"
        summary.grant_ms = [release.grant_s * 1e3 for release in session.releases]
        if session.endpoints is not None:
            summary.hardening = [
                [f"{step.name}: {step.state}" for step in steps]
                for steps in session.endpoints.hardening
            ]
        latencies: list[float] = []
        per_stage: list[list[StageTimes]] = [[] for _ in request.plan.stages]
        before_s = time.perf_counter()
        try:
            for result in session.stream(frames()):
                times = stage_times(result)
                for rows, row in zip(per_stage, times, strict=True):
                    rows.append(row)
                latencies.append((result.received_ns - result.sent_ns) / 1e9)
                sink.write(_line(result, times, latencies[-1], summary))
                summary.frames_out += 1
                on_result(result)
        finally:
            summary.seconds = time.perf_counter() - before_s
            _close_summary(summary, latencies, per_stage, request.plan)
        session.wait_last_metrics(_LINKS_S if request.receipts else _METRICS_S)
        summary.memory = memory_rows(worker_uses(request.plan, session))
    return summary


def unsafe_options(session: Session) -> list[str]:
    """Names of the policy's unsafe options by which workers of an opened session were accepted."""
    verdicts = [each.verdict for each in session.releases]
    return sorted({name for v in verdicts if isinstance(v, Verdict) for name in v.unsafe})


def _start_summary(plan: Plan) -> RunSummary:
    """What is known before the first frame; an untrusted stage is never said to be attested."""
    unverified = list(untrusted_stages(plan))
    kinds = sorted({stage.device.kind for stage in plan.stages if not stage.device.untrusted})
    attested = "; ".join(_ATTESTED.get(kind, kind) for kind in kinds) or "NOTHING"
    if unverified:
        attested += f"; NOT stage {', '.join(map(str, unverified))}: untrusted, UNVERIFIED"
    return RunSummary(
        plan_digest=plan.digest.hex(),
        enclave=",".join(kinds),
        attested=attested,
        unverified=unverified,
        untrusted_devices=[
            device.name for number in unverified for device in plan.stages[number].devices
        ],
    )


def stage_times(result: ResultFrame) -> tuple[StageTimes, ...]:
    """Seconds of each stage from the nanoseconds that the enclaves wrote."""
    return tuple(
        StageTimes(
            open_s=times.open_ns / 1e9,
            wait_s=max(0, times.started_ns - times.arrived_ns) / 1e9,
            compute_s=times.compute_ns / 1e9,
            seal_s=times.seal_ns / 1e9,
        )
        for times in result.times
    )


def _line(
    result: ResultFrame, times: tuple[StageTimes, ...], latency_s: float, summary: RunSummary
) -> Result:
    return Result(
        frame=result.index,
        timestamp_s=result.timestamp_s,
        outputs=result.outputs,
        stage_times=times,
        epoch=summary.epoch,
        plan_digest=summary.plan_digest,
        enclave=summary.enclave,
        attested=summary.attested,
        unverified=tuple(summary.unverified),
        latency_s=latency_s,
    )


def _close_summary(
    summary: RunSummary,
    latencies: list[float],
    per_stage: list[list[StageTimes]],
    plan: Plan,
) -> None:
    if not latencies:
        return
    summary.fps = summary.frames_out / summary.seconds
    summary.latency_s = statistics.median(latencies)
    for number, (rows, stage) in enumerate(zip(per_stage, plan.stages, strict=True)):
        summary.stages.append(
            {
                "stage": number,
                "device": device_names(stage),
                "devices": [device.name for device in stage.devices],
                "nodes": [stage.first, stage.last],
                "open_s": statistics.median(row.open_s for row in rows),
                "wait_s": statistics.median(row.wait_s for row in rows),
                "compute_s": statistics.median(row.compute_s for row in rows),
                "seal_s": statistics.median(row.seal_s for row in rows),
            }
        )
