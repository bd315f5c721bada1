"""``vaultline serve``: models on the servers of a cluster, behind a gateway, until told to stop.

The first signal to stop drains: no request is taken any more, those that are here are answered. The
second one stops at once.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live

from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.bench.rig import make_trust
from vaultline.cli.common import (
    JsonFlag,
    announce,
    messages,
    note,
    print_json,
    progress,
    results,
    table,
)
from vaultline.cli.files import load_cluster
from vaultline.cli.options import (
    CollateralOption,
    KekOption,
    MetricsOption,
    PlatformOption,
    SimulatedOption,
)
from vaultline.cli.run_metrics import serving
from vaultline.cli.running import Stopped
from vaultline.cli.serve_table import Rates, live_table
from vaultline.core.errors import InputError, PeerError
from vaultline.core.limits import MIB
from vaultline.core.plan import DeviceKind
from vaultline.core.program import PageMode
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.devroot import COLLATERAL_FILE, PLATFORM_FILE
from vaultline.owner.keyfile import Kek, load_kek
from vaultline.owner.prepare import prepare, write_served
from vaultline.owner.served import MANIFEST_SUFFIX
from vaultline.owner.starting import check_platform, transport_for
from vaultline.sched.policies import ServingPolicy
from vaultline.sched.policies import policy as policy_named
from vaultline.serve.answers import ServersLostError
from vaultline.serve.clientwire import create_credential, read_credential
from vaultline.serve.cluster import servers_of
from vaultline.serve.fleet import GatewaySettings
from vaultline.serve.front import Front
from vaultline.serve.gateway import Gateway
from vaultline.serve.lone_worker import WorkerTrust
from vaultline.serve.measuring import measure
from vaultline.serve.metrics import GatewayCollector
from vaultline.serve.prepared import Prepared, load_prepared
from vaultline.serve.status import GatewayStatus
from vaultline.serve.stock import PAGED_FOLDER
from vaultline.transport.sockets import Address

_POLL_S = 0.25
#: Grants and the installation of models, beyond what a worker may take to start.
_START_S = 120.0
#: After the last answer: for clients to take it.
_WRITE_S = 5.0
_EXAMPLE = "vaultline serve --cluster examples/clusters/one-box.yaml --models models/"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("serve", epilog=f"Example: {_EXAMPLE}")(serve)


def serve(
    cluster: Annotated[Path, typer.Option(help="The cluster file; its enclaves are the servers.")],
    models: Annotated[
        Path, typer.Option(help="Folder of prepared models, or of ONNX files to prepare first.")
    ],
    policy: Annotated[
        str, typer.Option(help="How requests are scheduled: see docs/serving.md.")
    ] = "vaultline",
    policy_file: Annotated[
        Path | None,
        typer.Option(help="Which evidence is accepted (YAML); a development root's if unset."),
    ] = None,
    collateral: CollateralOption = None,
    platform: PlatformOption = None,
    allow_simulated: SimulatedOption = False,
    kek: KekOption = None,
    listen: Annotated[
        str | None, typer.Option(help="Where clients connect: unix:PATH or tcp:HOST:PORT.")
    ] = None,
    credential: Annotated[
        Path | None, typer.Option(help="For TCP: the clients' credential; made if missing.")
    ] = None,
    metrics: MetricsOption = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder for events and actions, for `vaultline trace`.")
    ] = None,
    drain: Annotated[
        float, typer.Option(min=0.0, help="Seconds to finish what is here once told to stop.")
    ] = 120.0,
    as_json: JsonFlag = False,
) -> None:
    """Serve models on the enclaves of a cluster, each with little memory, until told to stop.

    Ctrl-C or SIGTERM: no more requests are taken, and those that are here are answered; once more,
    and it stops at once.
    """
    address = Address.parse(listen or _default_address())
    if Path(policy).suffix:
        raise InputError(
            "--policy is how requests are scheduled",
            got=policy,
            remedy="name a file that says which evidence is accepted with --policy-file",
        )
    chosen, servers = policy_named(policy), servers_of(load_cluster(cluster))
    signals = Signals()
    with ExitStack() as stack:
        stack.enter_context(signals.handled())
        secret = _credential(address, credential)
        kinds = {server.kind for server in servers}
        trust = _trust(stack, policy_file, collateral, platform, allow_simulated, kinds)
        if "simulated" in kinds:
            announce("SIMULATED: nothing protects these servers from their host")
        starts = [server.start(trust.platform_file) for server in servers]
        prepared = prepare_models(models, chosen, load_kek(kek, create=True), trust.measuring)
        gateway = Gateway(
            prepared,
            servers,
            chosen.name,
            platform_file=trust.platform_file,
            appraise=trust.appraise,
            transport=transport_for(starts, None),
            settings=GatewaySettings(start_s=_START_S + max(s.start_s_max for s in starts)),
            log_dir=log_dir,
        )
        for option in trust.unsafe:
            messages().print(f"unsafe option of the policy: {option}", style="yellow")
        note(f"starting {len(servers)} servers")
        stack.enter_context(gateway)
        if metrics is not None:
            served = stack.enter_context(serving(metrics, GatewayCollector(gateway.status)))
            announce(f"metrics: {served}")
        front = stack.enter_context(Front(gateway, address, secret))
        names = ", ".join(model.name for model in prepared)
        announce(f"serving {names} at {front.address}; Ctrl-C to drain and stop")
        status, seconds = _until_stopped(gateway, front, signals, drain)
    if as_json:
        print_json(summarize(status, seconds, trust.unsafe))
    else:
        show(status, seconds, trust.unsafe)


class Signals:
    """SIGINT and SIGTERM: an exception until ``serving`` is set, then a request to drain, then an
    exception again."""

    def __init__(self) -> None:
        self.serving = self.asked = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """While this is open."""
        before = {each: signal.signal(each, self._take) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _take(self, *_: object) -> None:
        if self.asked or not self.serving:
            raise Stopped
        self.asked = True


def _default_address() -> str:
    """In the user's own folder for such things."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(given) if Path(given).is_absolute() else Path(tempfile.gettempdir())
    folder = "vaultline" if given else f"vaultline-{os.geteuid()}"
    return f"unix:{base / folder / 'gateway'}"


def _credential(address: Address, path: Path | None) -> bytes | None:
    if address.kind != "tcp":
        return None
    if path is None:
        raise InputError(
            "clients over TCP need a credential", remedy="name a file for it with --credential"
        )
    return read_credential(path) if path.exists() else create_credential(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingTrust:
    """Whose evidence counts.

    Attributes:
        platform_file: of simulated servers, if there are any.
        measuring: for the simulated worker in which models are measured before they are served.
        unsafe: unsafe options of the policy, by name.
    """

    platform_file: Path | None
    appraise: Callable[[Evidence, Challenge], object]
    measuring: WorkerTrust
    unsafe: tuple[str, ...] = ()


def _trust(
    stack: ExitStack,
    policy: Path | None,
    collateral: Path | None,
    platform: Path | None,
    allow_simulated: bool,
    kinds: Collection[DeviceKind],
) -> ServingTrust:
    """Of a policy; simulated servers may do with a development root that is made for this run.

    Raises:
        InputError: a file is missing, or hardware would be judged by no policy.
    """
    if policy is None:
        if platform is not None or collateral is not None:
            raise InputError(
                "a platform or collateral without its policy",
                remedy="name the policy with --policy-file; `vaultline policy dev` makes all three",
            )
        if hardware := sorted(set(kinds) - {"simulated"}):
            raise InputError(
                "nothing says which evidence of hardware is accepted",
                got=f"servers of kind {', '.join(hardware)}, and no policy",
                remedy="name a policy with --policy-file; `vaultline policy from` drafts one",
            )
        trust = _development(stack)
        return ServingTrust(
            platform_file=trust.platform_file, appraise=trust.appraise, measuring=trust
        )
    platform = platform or policy.parent / PLATFORM_FILE
    if "simulated" in kinds:
        check_platform(platform)
    path = collateral or policy.parent / COLLATERAL_FILE
    appraiser = Appraiser(
        policy=load_policy(policy),
        collateral=load_collateral(dict.fromkeys(sorted(kinds), path)),
        allow_simulated=allow_simulated,
    )
    if "simulated" not in kinds:
        return ServingTrust(
            platform_file=None,
            appraise=appraiser.appraise_now,
            measuring=_development(stack),
            unsafe=appraiser.policy.unsafe,
        )
    trust = WorkerTrust(platform_file=platform, appraise=appraiser.appraise_now)
    return ServingTrust(
        platform_file=platform,
        appraise=trust.appraise,
        measuring=trust,
        unsafe=appraiser.policy.unsafe,
    )


def _development(stack: ExitStack) -> WorkerTrust:
    """A development root for this process, whose enclaves are accepted."""
    folder = tempfile.TemporaryDirectory(prefix="vaultline-trust-")
    files = make_trust(Path(stack.enter_context(folder)))
    appraiser = Appraiser(
        policy=load_policy(files["policy"]),
        collateral=load_collateral({"simulated": files["collateral"]}),
        allow_simulated=True,
    )
    return WorkerTrust(platform_file=files["platform"], appraise=appraiser.appraise_now)


def prepare_models(
    folder: Path, policy: ServingPolicy, kek: Kek, trust: WorkerTrust
) -> list[Prepared]:
    """The models of a folder; ONNX files are prepared and measured first, unless that has been
    done. Policies for paged memory don't ask for times.

    Raises:
        InputError: there is none, or one can't be served.
    """
    files = sorted(folder.glob("*.onnx"))
    target = folder / PAGED_FOLDER if policy.paged and files else folder
    if files:
        with progress(unit="steps/s") as bar:
            task = bar.add_task("preparing", total=None)

            def told(what: str, done: int, total: int) -> None:
                bar.update(task, description=what, completed=done, total=total)

            for path in files:
                mode: PageMode | None = "crypto" if policy.paged else None
                served = prepare(path, target, paged=mode, kek=kek, progress=told)
                if not (served.measured or policy.paged):
                    write_served(
                        target, measure(served, target, kek=kek, trust=trust, progress=told)
                    )
    if not folder.is_dir() or not any(target.glob(f"*{MANIFEST_SUFFIX}")):
        raise InputError(
            "there is nothing to serve",
            got=str(folder) if folder.is_dir() else f"no folder {folder}",
            expected=f"files *{MANIFEST_SUFFIX} or *.onnx",
            remedy="prepare models with `vaultline prepare`",
        )
    return load_prepared(target, kek)


def _until_stopped(
    gateway: Gateway, front: Front, signals: Signals, drain_s: float
) -> tuple[GatewayStatus, float]:
    """Serve; how it was just before everything ended, and how long it took.

    Raises:
        ServersLostError: all servers are.
        PeerError: the drain took too long.
    """
    signals.serving = True
    started_s, console = time.monotonic(), messages()
    rates = Rates()
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def show_now() -> None:
            if console.is_terminal:
                live.update(live_table(gateway.status(), rates, draining=signals.asked))

        while not signals.asked:
            _check_alive(gateway.status())
            show_now()
            time.sleep(_POLL_S)
        gateway.begin_drain()
        done = _waited(lambda: gateway.wait_drained(0.0), drain_s, show_now)
        status = gateway.status()
        if done:
            _waited(lambda: not front.unwritten, _WRITE_S, show_now)
    if not done:
        raise PeerError(
            "requests were not finished in time",
            got=f"{status.counters.open} without an answer after {drain_s:g} s",
            remedy="give them longer with --drain",
        )
    return status, time.monotonic() - started_s


def _waited(done: Callable[[], bool], seconds: float, meanwhile: Callable[[], None]) -> bool:
    give_up_s = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= give_up_s:
            return False
        meanwhile()
        time.sleep(_POLL_S / 5)
    return True


def _check_alive(status: GatewayStatus) -> None:
    if any(server.alive for server in status.servers):
        return
    raise ServersLostError(
        "every server is lost",
        got="; ".join(f"{loss.server}: {loss.message}" for loss in status.losses),
        remedy="look at what they wrote above, and start again",
    )


def summarize(status: GatewayStatus, seconds: float, unsafe: Sequence[str] = ()) -> dict[str, Any]:
    """For ``--json``; ``unsafe``: unsafe options of the policy."""
    return {
        "unsafe": list(unsafe),
        "seconds": seconds,
        "requests": asdict(status.counters),
        "decisions": status.decisions,
        "decision_s": status.decision_s,
        "losses": [{**asdict(loss), "recovery_s": loss.recovery_s} for loss in status.losses],
        "servers": [asdict(server) for server in status.servers],
    }


def show(status: GatewayStatus, seconds: float, unsafe: Sequence[str] = ()) -> None:
    """What was served, in tables."""
    console = results()
    for option in unsafe:
        console.print(f"unsafe option of the policy: {option}", style="yellow")
    counters = status.counters
    console.print(
        f"{counters.answered} answered, {counters.refused} refused, {counters.failed} failed in "
        f"{seconds:.0f} s; {counters.moved} moved from lost servers"
    )
    rows = []
    for server in status.servers:
        use = server.metrics
        busy_s = sum(use.busy_s.values())
        rows.append(
            (
                server.name,
                "" if server.alive else "lost",
                str(use.answered),
                str(use.runs),
                f"{busy_s / (seconds * server.cores):.0%}" if seconds else "",
                str(use.loads),
                str(use.evictions),
                f"{use.worker.streamed_bytes / MIB:.0f}",
                f"{sum(use.worker.peak_bytes.values()) / MIB:.1f}",
                f"{server.memory_bytes / MIB:.1f}",
            )
        )
    columns = (
        "server",
        "",
        "answered",
        "runs",
        "busy",
        "loads",
        "evictions",
        "MiB streamed",
        "MiB, kinds' peaks",
        "of",
    )
    console.print(table("servers", columns, rows))
