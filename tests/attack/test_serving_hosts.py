"""A server's host that turns against its owner: nothing wrong is believed, and nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from vaultline.owner.keyfile import load_kek
from vaultline.owner.prepare import prepare
from vaultline.serve import server_link
from vaultline.serve.answers import RefusedByServerError
from vaultline.serve.cluster import ServerSpec
from vaultline.serve.fleet import GatewaySettings
from vaultline.serve.gateway import Gateway
from vaultline.serve.prepared import Prepared, load_prepared
from vaultline.testing.deployment import wait_until
from vaultline.testing.hostile_host import VARIABLE
from vaultline.testing.serverworker import Trust

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
ANSWER_S = 60.0
REQUESTS = 60


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Prepared]:
    folder = tmp_path_factory.mktemp("models")
    kek = load_kek(folder / "kek.jwk", create=True)
    prepare(DIGITS, folder, kek=kek)
    return load_prepared(folder, kek)


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust") / "trust")


@pytest.fixture(scope="module")
def cases(models: list[Prepared]) -> list[tuple[np.ndarray, np.ndarray]]:
    engine = onnxruntime.InferenceSession(str(DIGITS), providers=["CPUExecutionProvider"])
    (spec,) = models[0].served.inputs
    random = np.random.default_rng(1)
    inputs = [random.random(spec.shape, dtype=np.float32) for _ in range(5)]
    return [(each, engine.run(None, {spec.name: each})[0]) for each in inputs]


def gateway(models: list[Prepared], trust: Trust, **settings: float) -> Gateway:
    cpus = sorted(os.sched_getaffinity(0))
    specs = [
        ServerSpec(name=f"s{k}", cores=1, memory_bytes=32 << 20, cpus=(cpus[k % len(cpus)],))
        for k in range(2)
    ]
    return Gateway(
        models,
        specs,
        "least-loaded-batch",
        platform_file=trust.platform,
        appraise=trust.appraiser.appraise_now,
        settings=GatewaySettings(**settings),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("deed", "code"),
    [
        ("alters an answer", "RequestTamperedError"),
        ("swaps answers", "RequestTamperedError"),
        ("answers twice", "RemoteProtocolError"),
        ("answers what it was not asked", "RemoteProtocolError"),
        pytest.param("claims to be drained", "RemoteProtocolError", marks=pytest.mark.full),
        pytest.param("refuses twice", "RemoteProtocolError", marks=pytest.mark.full),
        pytest.param("reports of another", "RemoteProtocolError", marks=pytest.mark.full),
        pytest.param("drops answers", "ServerLostError", marks=pytest.mark.full),
        pytest.param("is silent", "ServerLostError", marks=pytest.mark.full),
    ],
)
def test_a_host_that_cheats_is_left_and_its_requests_are_answered_elsewhere(
    deed: str,
    code: str,
    models: list[Prepared],
    trust: Trust,
    cases: list[tuple[np.ndarray, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_link, "HOST_MODULE", "vaultline.testing.hostile_host")
    monkeypatch.setenv(VARIABLE, f"s0:{deed}")
    refused = 0
    with gateway(models, trust, stall_s=1.0, silence_s=1.0) as serving:
        futures = [serving.submit("digits", [cases[k % 5][0]]) for k in range(REQUESTS)]
        for k, future in enumerate(futures):
            error = future.exception(ANSWER_S)
            if error is not None:  # a host may refuse: it can withhold service, and no more
                assert isinstance(error, RefusedByServerError)
                refused += 1
                continue
            outputs = future.result().outputs["scores"]
            np.testing.assert_allclose(outputs, cases[k % 5][1], atol=1e-4)
        assert refused == (deed == "refuses twice")
        counters = serving.status().counters
        assert counters.answered + counters.refused == REQUESTS

        def alive() -> set[str]:
            return {each.name for each in serving.status().servers if each.alive}

        wait_until(lambda: alive() == {"s1"}, timeout_s=10, what="the loss")
    (loss,) = serving.status().losses
    assert (loss.server, loss.code) == ("s0", code)
    assert loss.moved > 0 or deed == "reports of another"  # seen when all may have ended


@pytest.mark.parametrize("deed", ["alters a request", "swaps requests"])
def test_an_enclave_does_not_run_what_was_not_sealed_for_that_request(
    deed: str,
    models: list[Prepared],
    trust: Trust,
    cases: list[tuple[np.ndarray, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_link, "HOST_MODULE", "vaultline.testing.hostile_host")
    monkeypatch.setenv(VARIABLE, f"s0:{deed}")
    reasons = set()
    with gateway(models, trust) as serving:
        futures = [serving.submit("digits", [cases[k % 5][0]]) for k in range(REQUESTS)]
        for k, future in enumerate(futures):
            error = future.exception(ANSWER_S)
            if isinstance(error, RefusedByServerError):
                reasons.add((error.server, error.reason.partition(":")[0]))
            else:
                outputs = future.result().outputs["scores"]
                np.testing.assert_allclose(outputs, cases[k % 5][1], atol=1e-4)
    assert reasons == {("s0", "RequestTamperedError")}
