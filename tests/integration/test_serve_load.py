"""`vaultline serve` and `vaultline load`: both commands, on a small model, to the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaultline.serve.client import Client

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
CLUSTER = """\
owner: local
hosts: [{name: local, cores: 2, memory: 2GiB}]
devices:
  - {name: enclave, host: local, kind: simulated, trust: attested, memory: 32MiB, count: 2}
"""
WORKLOAD = """\
arrivals: {kind: poisson, rate: 100}
count: 120
models: [{name: one}, {name: two, deadline: 60s}]
zipf: 1.0
"""


class Served:
    """A serving command, and where clients find it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix:{folder}/clients/gateway"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.metrics = f"127.0.0.1:{free.getsockname()[1]}"
        self.popen = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["serve", "--cluster", "cluster.yaml", "--models", "models", "--kek", "kek.jwk"]
        words += ["--listen", self.address, "--log-dir", "logs", "--json"]
        words += ["--metrics", self.metrics]
        return subprocess.Popen(
            [sys.executable, "-m", "vaultline", *words],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def load(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run the workload against it."""
        words = ["load", "workload.yaml", "--to", self.address, "--connect", "60", "--json"]
        found = subprocess.run(
            [sys.executable, "-m", "vaultline", *words, *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            timeout=120,
            check=False,
        )
        return found.returncode, json.loads(found.stdout)

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Wait for it to end."""
        out, err = self.popen.communicate(timeout=60)
        return self.popen.returncode, json.loads(out) if out else {}, err.decode()


@pytest.fixture
def served() -> Iterator[Served]:
    # Names of Unix sockets are short: not the test's own folder.
    with tempfile.TemporaryDirectory(prefix="vl-") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        for model in ("one", "two"):
            shutil.copy(DIGITS, folder / "models" / f"{model}.onnx")
        (folder / "cluster.yaml").write_text(CLUSTER)
        (folder / "workload.yaml").write_text(WORKLOAD)
        found = Served(folder)
        try:
            yield found
        finally:
            if found.popen.poll() is None:
                found.popen.kill()
                found.popen.communicate()


def test_a_workload_is_answered_and_the_drain_says_what_was_served(served: Served) -> None:
    code, load = served.load("--record", "sent.csv")
    assert code == 0, load
    assert (load["sent"], load["answered"], load["refused"], load["failed"]) == (120, 120, 0, 0)
    assert load["models"]["one"]["count"] + load["models"]["two"]["count"] == 120
    assert load["models"]["one"]["count"] > load["models"]["two"]["count"], "Zipf"
    with urllib.request.urlopen(f"http://{served.metrics}/metrics", timeout=10) as page:
        text = page.read().decode()
    assert "vaultline_gateway_answered_total 120.0" in text
    assert 'vaultline_server_up{server="enclave-1"} 1.0' in text
    assert 0 < load["all"]["p50_s"] <= load["all"]["p95_s"] < 60
    again = WORKLOAD.replace("{kind: poisson, rate: 100}", "{kind: recorded, file: sent.csv}")
    again = "".join(line for line in again.splitlines(True) if not line.startswith("zipf"))
    (served.folder / "workload.yaml").write_text(again)
    code, repeated = served.load()
    assert code == 0, repeated
    for name in ("one", "two"):
        assert repeated["models"][name]["count"] == load["models"][name]["count"]
    served.popen.send_signal(signal.SIGTERM)
    code, summary, err = served.end()
    assert code == 0, err
    # Without a terminal as well: whoever started it looks for the address in its log.
    assert f"serving one, two at {served.address}" in err
    assert "SIMULATED" in err
    assert summary["requests"]["answered"] == 240
    assert summary["requests"]["open"] == 0
    assert sum(server["metrics"]["answered"] for server in summary["servers"]) == 240
    assert [path.name for path in sorted((served.folder / "logs").glob("server-*"))] == [
        "server-enclave-0.jsonl",
        "server-enclave-1.jsonl",
    ]


def test_a_model_that_is_not_served_is_named_with_those_that_are(served: Served) -> None:
    (served.folder / "workload.yaml").write_text(WORKLOAD.replace("one", "three"))
    code, said = served.load()
    error = said["error"]
    assert (code, error["got"], error["expected"]) == (2, "three", "some of one, two")
    served.popen.send_signal(signal.SIGTERM)
    assert served.end()[0] == 0


def test_what_was_taken_before_the_signal_is_answered_and_nothing_after(served: Served) -> None:
    with Client(served.address, timeout_s=60) as client:
        model = client.models()[0]
        (spec,) = model.inputs
        tensors = {spec.name: np.zeros(spec.shape, spec.dtype)}
        futures = [client.submit(model.name, tensors) for _ in range(200)]
        assert futures[0].result(60).model == model.name
        served.popen.send_signal(signal.SIGTERM)
        ends = [future.exception(60) for future in futures]
    code, summary, err = served.end()
    assert code == 0, err
    assert summary["requests"]["answered"] == sum(error is None for error in ends)
    refused = {type(error).__name__ for error in ends if error is not None}
    assert refused <= {"DrainingError"}
    assert summary["requests"]["failed"] == 0


@pytest.mark.full
def test_a_second_signal_stops_at_once(served: Served) -> None:
    with Client(served.address, timeout_s=60):
        served.popen.send_signal(signal.SIGINT)
        served.popen.send_signal(signal.SIGTERM)
        code, _, err = served.end()
    assert code in (0, 130), err  # an idle server may have drained in between
