"""Real servers behind the real gateway: answers as the plain engine's, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from vaultline.core.errors import InfeasibleError, InputError, LocalProtocolError
from vaultline.graph.groups import GroupRule
from vaultline.host.driver import ServerDriver, replay
from vaultline.owner.arrays import Array
from vaultline.owner.keyfile import load_kek
from vaultline.owner.prepare import prepare
from vaultline.sched.events import Answer as Answered
from vaultline.sched.logs import read_logs
from vaultline.sched.policies import policy
from vaultline.sched.replay import (
    ActionEntry,
    EventEntry,
    LogHeader,
    RanEntry,
    SentEntry,
    decode,
)
from vaultline.sched.replicas import ReplicaSettings
from vaultline.sched.server import Server
from vaultline.sched.wire import HostedModel
from vaultline.serve import oversight
from vaultline.serve.answers import (
    Answer,
    DrainingError,
    GatewayClosedError,
    OverloadedError,
    RefusedByServerError,
    ServersLostError,
)
from vaultline.serve.client import Client
from vaultline.serve.cluster import ServerSpec
from vaultline.serve.fleet import GatewaySettings
from vaultline.serve.front import Front
from vaultline.serve.gateway import BALANCER_LOG, Gateway
from vaultline.serve.prepared import Prepared, load_prepared
from vaultline.testing.deployment import family, wait_until
from vaultline.testing.serverworker import Trust
from vaultline.transport.sockets import Address

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
MIB = 1 << 20
#: One group; several; several with many frames in a run.
RULES = {
    "whole": GroupRule(),
    "parts": GroupRule(run_s_max=2e-5, cut_s=0.0, tensor_s=0.0, frames_max=2),
    "batch": GroupRule(run_s_max=1e-4, cut_s=0.0, tensor_s=0.0, frames_max=8),
}
ANSWER_S = 60.0


@dataclass(frozen=True, slots=True)
class Kit:
    """Prepared models, what accepts their servers, and the plain engine's answers."""

    models: list[Prepared]
    trust: Trust
    inputs: list[Array]
    expected: list[Array]

    def gateway(
        self,
        *,
        mib: float = 32,
        servers: int = 2,
        cores: int = 1,
        name: str = "vaultline",
        **options: Any,
    ) -> Gateway:
        """On servers that share this machine's cores."""
        cpus = sorted(os.sched_getaffinity(0))
        specs = [
            ServerSpec(
                name=f"s{k}",
                cores=cores,
                memory_bytes=int(mib * MIB),
                cpus=(cpus[k % len(cpus)],) if cores == 1 else (),
            )
            for k in range(servers)
        ]
        return Gateway(
            self.models,
            specs,
            name,
            platform_file=self.trust.platform,
            appraise=self.trust.appraiser.appraise_now,
            **options,
        )

    def submit(self, gateway: Gateway, count: int, **options: Any) -> list[Future[Answer]]:
        """Requests for all models in turn."""
        names = list(RULES)
        return [
            gateway.submit(names[k % 3], [self.inputs[k % len(self.inputs)]], **options)
            for k in range(count)
        ]

    def check(self, futures: list[Future[Answer]]) -> Counter[str]:
        """Every answer is there, and right; how many each server gave."""
        servers: Counter[str] = Counter()
        for k, future in enumerate(futures):
            answer = future.result(ANSWER_S)
            np.testing.assert_allclose(
                answer.outputs["scores"], self.expected[k % len(self.expected)], atol=1e-4
            )
            servers[answer.server] += 1
        return servers


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("models"))


def make_kit(folder: Path) -> Kit:
    """Prepare everything in a folder."""
    kek = load_kek(folder / "kek.jwk", create=True)
    for name, rule in RULES.items():
        prepare(DIGITS, folder, name=name, rule=rule, kek=kek)
    models = load_prepared(folder, kek, names=list(RULES))
    engine = onnxruntime.InferenceSession(str(DIGITS), providers=["CPUExecutionProvider"])
    (spec,) = models[0].served.inputs
    random = np.random.default_rng(0)
    inputs = [random.random(spec.shape, dtype=np.float32) for _ in range(7)]
    return Kit(
        models=models,
        trust=Trust.make(folder / "trust"),
        inputs=inputs,
        expected=[engine.run(None, {spec.name: each})[0] for each in inputs],
    )


@pytest.fixture(scope="module")
def gateway(kit: Kit) -> Iterator[Gateway]:
    """Two servers with room, for tests that leave them as they are."""
    with kit.gateway() as gateway:
        yield gateway


def test_the_models_are_divided_differently(kit: Kit) -> None:
    groups = [len(model.served.groups) for model in kit.models]
    assert groups[0] == 1
    assert min(groups[1:]) > 1
    assert max(group.frames_max for group in kit.models[2].served.facts.groups) > 2


def test_many_requests_over_two_servers_give_the_plain_engine_s_outputs(
    kit: Kit, gateway: Gateway
) -> None:
    servers = kit.check(kit.submit(gateway, 120))
    assert set(servers) == {"s0", "s1"}
    counters = gateway.status().counters
    assert (counters.open, counters.open_bytes, counters.late) == (0, 0, 0)


def test_an_answer_tells_how_it_came_about(kit: Kit, gateway: Gateway) -> None:
    (future,) = kit.submit(gateway, 1)
    answer = future.result(ANSWER_S)
    assert (answer.model, answer.attempts, len(answer.times)) == ("whole", 1, 1)
    assert 0 < answer.times[0].compute_ns * 1e-9 < answer.latency_s < ANSWER_S


def test_a_deadline_that_can_t_be_met_is_refused_with_the_reason(
    kit: Kit, gateway: Gateway
) -> None:
    (future,) = kit.submit(gateway, 1, deadline_s=0.0)
    with pytest.raises(RefusedByServerError, match="refused a request for whole") as caught:
        future.result(ANSWER_S)
    assert "deadline" in caught.value.reason
    kit.check(kit.submit(gateway, 3, deadline_s=ANSWER_S))


@pytest.mark.parametrize(
    ("case", "name", "change"),
    [
        ("an unknown model", "nobody", lambda x: [x]),
        ("another shape", "whole", lambda x: [x.reshape(-1)]),
        ("another type", "whole", lambda x: [x.astype(np.float64)]),
        ("too many tensors", "whole", lambda x: [x, x]),
        ("another input's name", "whole", lambda x: {"other": x}),
    ],
)
def test_what_does_not_fit_is_refused_at_once(
    case: str, name: str, change: Callable[[Array], Any], kit: Kit, gateway: Gateway
) -> None:
    with pytest.raises(InputError):
        gateway.submit(name, change(kit.inputs[0]))


def test_clients_of_other_processes_get_the_same(kit: Kit, gateway: Gateway) -> None:
    (spec,) = kit.models[0].served.inputs
    with (
        tempfile.TemporaryDirectory(prefix="vlt") as folder,
        Front(gateway, Address("unix", f"{folder}/clients")) as front,
        Client(str(front.address)) as one,
        Client(str(front.address)) as two,
    ):
        assert {model.name for model in one.models()} == set(RULES)
        futures = [
            (one, two)[k % 2].submit("parts", {spec.name: kit.inputs[k % 7]}) for k in range(20)
        ]
        kit.check(futures)
        with pytest.raises(RefusedByServerError) as caught:
            one.infer("whole", {spec.name: kit.inputs[0]}, deadline_s=0.0, timeout_s=ANSWER_S)
        assert "deadline" in caught.value.reason


def test_the_metrics_of_all_servers_are_there(kit: Kit, gateway: Gateway) -> None:
    kit.check(kit.submit(gateway, 3))
    servers = gateway.status().servers
    assert {each.name: each.alive for each in servers} == {"s0": True, "s1": True}
    for each in servers:
        assert 0 < sum(each.metrics.held_bytes.values()) <= 32 * MIB


def test_a_gateway_serves_once(gateway: Gateway) -> None:
    with pytest.raises(LocalProtocolError):
        gateway.__enter__()


@dataclass(frozen=True, slots=True)
class Tight:
    """A run in little memory, drained at its end, and its logs."""

    gateway: Gateway
    logs: Path


@pytest.fixture(scope="module")
def tight(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Tight:
    logs = tmp_path_factory.mktemp("logs")
    with kit.gateway(mib=5.5, log_dir=logs) as gateway:
        futures = kit.submit(gateway, 150)
        gateway.begin_drain()
        with pytest.raises(DrainingError):
            kit.submit(gateway, 1)
        assert gateway.wait_drained(ANSWER_S)
        kit.check(futures)
    return Tight(gateway, logs)


def test_evictions_and_reloads_drop_nothing(tight: Tight) -> None:
    metrics = [each.metrics for each in tight.gateway.status().servers]
    assert sum(each.evictions + each.worker.streamed_bytes for each in metrics) > 0
    assert sum(each.answered for each in metrics) == 150
    assert tight.gateway.status().counters.answered == 150


def test_replays_of_the_logs_decide_the_same(kit: Kit, tight: Tight) -> None:
    ended = 0
    for path in sorted(tight.logs.glob("server-*.jsonl")):
        entries = list(decode(path.read_bytes().splitlines()))
        header = entries[0]
        assert isinstance(header, LogHeader)
        models = {each.name: each for each in header.models}
        server = Server(header.servers[0], models, policy(header.policy).local())
        hosted = [
            HostedModel(facts=each, vault="", request_bytes=0, answer_bytes=0)
            for each in header.models
        ]
        driver = ServerDriver(server, hosted, lambda *_: None, lambda *_: None)
        events = [each.event for each in entries if isinstance(each, EventEntry)]
        actions = [action for some in replay(driver, server, events) for action in some]
        logged = [each.action for each in entries if isinstance(each, ActionEntry)]
        assert actions == logged
        ended += sum(isinstance(action, Answered) for action in logged)
        runs = [each for each in entries if isinstance(each, RanEntry)]
        assert all(each.started_s + each.load_s <= each.ended_s for each in runs)
    assert ended == 150
    log = list(decode((tight.logs / BALANCER_LOG).read_bytes().splitlines()))
    assert [each.number for each in log if isinstance(each, SentEntry)] == list(range(150))
    read_logs([(BALANCER_LOG, log)])


@pytest.mark.parametrize(
    ("worker", "how", "code"),
    [
        pytest.param(True, signal.SIGKILL, "WorkerKilled", id="the worker is killed"),
        pytest.param(False, signal.SIGKILL, "ConnectionLostError", id="the host is killed"),
        pytest.param(True, signal.SIGSTOP, "WorkerStuck", id="the worker is stopped"),
        pytest.param(False, signal.SIGSTOP, "ServerLostError", id="the host is stopped"),
    ],
)
def test_others_finish_what_a_lost_server_held(
    worker: bool, how: signal.Signals, code: str, kit: Kit
) -> None:
    settings = GatewaySettings(silence_s=1.0 if code == "ServerLostError" else 10.0)
    with kit.gateway(settings=settings) as gateway:
        processes = [family(pid) for name in ("s0", "s1") for pid in gateway.server_pids(name)]
        futures = kit.submit(gateway, 150)
        futures[20].result(ANSWER_S)
        os.kill(gateway.server_pids("s0")[worker], how)
        servers = kit.check(futures)
        assert servers["s1"] > 75
        counters = gateway.status().counters
        assert (counters.answered, counters.late, counters.lost_servers) == (150, 0, 1)
        kit.check(kit.submit(gateway, 6))
        assert {each.name: each.alive for each in gateway.status().servers} == {
            "s0": False,
            "s1": True,
        }
    (loss,) = gateway.status().losses
    assert (loss.server, loss.code) == ("s0", code)
    assert loss.moved == counters.moved > 0
    assert loss.recovery_s is not None
    assert loss.recovery_s < ANSWER_S
    known = [process for some in processes for process in some]
    wait_until(
        lambda: not any(process.alive for process in known),
        timeout_s=10,
        what="the end of all processes",
    )


def test_a_model_that_grows_hot_is_installed_on_another_server(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oversight, "_CONTROL_S", 0.1)
    eager = ReplicaSettings(grow_at=1e-6, shrink_at=1e-7, hold_s=0.1)
    placement = {"s0": list(RULES), "s1": ["whole"]}
    with kit.gateway(placement=placement, replicas=eager) as serving:
        servers: set[str] = set()

        def elsewhere() -> bool:
            answers = [serving.submit("batch", [kit.inputs[0]]) for _ in range(4)]
            servers.update(each.result(ANSWER_S).server for each in answers)
            return servers == {"s0", "s1"}

        wait_until(elsewhere, timeout_s=30, what="a replica")
        counters = serving.status().counters
    assert (counters.answered, counters.refused) == (counters.submitted, 0)


def test_two_cores_of_a_server_share_its_models_over_tcp(kit: Kit) -> None:
    with kit.gateway(servers=1, cores=2, mib=24, transport="tcp") as serving:
        kit.check(kit.submit(serving, 40))
        (server,) = serving.status().servers
        assert sum(server.metrics.held_bytes.values()) <= 24 * MIB


def test_the_paged_baseline_runs_behind_the_same_gateway(kit: Kit, tmp_path: Path) -> None:
    kek = load_kek(tmp_path / "kek.jwk", create=True)
    for name in ("one", "two"):
        prepare(DIGITS, tmp_path, name=name, paged="crypto", kek=kek)
    paged = replace(kit, models=load_prepared(tmp_path, kek))
    with paged.gateway(servers=1, mib=3.5, name="fifo") as serving:
        names = ("one", "two")
        kit.check([serving.submit(names[k % 2], [kit.inputs[k % 7]]) for k in range(20)])
        serving.begin_drain()
        assert serving.wait_drained(ANSWER_S)
        (server,) = serving.status().servers
    assert server.metrics.worker.swapped_pages > 0


def test_without_any_server_requests_end_with_an_error(kit: Kit) -> None:
    with kit.gateway(servers=1) as gateway:
        futures = kit.submit(gateway, 60)
        futures[0].result(ANSWER_S)
        os.kill(gateway.server_pids("s0")[1], signal.SIGKILL)
        ends = [future.exception(ANSWER_S) for future in futures]
        assert {type(end) for end in ends} == {type(None), ServersLostError}
        with pytest.raises(ServersLostError):
            kit.submit(gateway, 1)
        gateway.begin_drain()
        assert gateway.wait_drained(ANSWER_S)


OWNER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_serving import make_kit
kit = make_kit(Path(sys.argv[2]))
with kit.gateway() as gateway:
    futures = kit.submit(gateway, 100)
    futures[0].result(60)
    print(*gateway.server_pids("s0"), *gateway.server_pids("s1"), flush=True)
    sys.stdin.read()
"""


def test_nothing_is_left_of_a_gateway_that_is_killed(kit: Kit, tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    with tempfile.TemporaryDirectory(prefix="vlt") as temporary:
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, here, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": temporary},
        )
        assert owner.stdout is not None
        try:
            pids = [int(word) for word in owner.stdout.readline().split()]
            known = [process for pid in pids for process in family(pid)]
            assert len(pids) == 4
        finally:
            owner.kill()
            owner.communicate()
        wait_until(
            lambda: not any(process.alive for process in known),
            timeout_s=10,
            what="the end of all servers",
        )
        wait_until(
            lambda: not list(Path(temporary).rglob("requests")),
            timeout_s=10,
            what="the end of all sockets",
        )


def test_a_signal_drains_and_closing_ends_what_is_left(kit: Kit) -> None:
    settings = GatewaySettings(held_bytes_max=4 << 20)
    with kit.gateway(servers=1, settings=settings) as gateway:
        before = signal.signal(signal.SIGTERM, lambda *_: gateway.begin_drain())
        try:
            futures = kit.submit(gateway, 30)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(DrainingError):
                kit.submit(gateway, 1)
            assert gateway.wait_drained(ANSWER_S)
            kit.check(futures)
        finally:
            signal.signal(signal.SIGTERM, before)
    with pytest.raises(DrainingError):
        kit.submit(gateway, 1)


def test_a_gateway_holds_so_much_and_its_end_is_told_to_all_who_wait(kit: Kit) -> None:
    one = kit.models[0].served.input_layout.message_bytes
    with kit.gateway(servers=1, settings=GatewaySettings(held_bytes_max=20 * one)) as gateway:
        futures = []
        with pytest.raises(OverloadedError):
            for _ in range(1000):
                futures += kit.submit(gateway, 1)
        kit.check(futures[:1])
        gateway.close()
        ends = {type(future.exception(ANSWER_S)) for future in futures}
        assert ends <= {type(None), GatewayClosedError}


def test_what_can_t_be_served_is_refused_before_anything_starts(kit: Kit) -> None:
    with pytest.raises(InfeasibleError):
        kit.gateway(mib=2)
    with pytest.raises(InputError):
        kit.gateway(name="nonsense")
    with pytest.raises(InputError, match="prepared otherwise"):
        kit.gateway(name="fifo")
    with pytest.raises(InputError):
        kit.gateway(servers=0)
