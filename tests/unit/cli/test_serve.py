"""`vaultline serve` and `vaultline load` before and around what they serve: signals, tables, and
bad input."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from rich.console import Console

from vaultline.cli.load import show as show_load
from vaultline.cli.main import main
from vaultline.cli.running import Stopped
from vaultline.cli.serve import Signals, show, summarize
from vaultline.cli.serve_table import COLUMNS, Rates, live_table, server_rows
from vaultline.core.control import StageMetrics
from vaultline.core.limits import MIB
from vaultline.sched.events import Request
from vaultline.sched.wire import ServerMetrics
from vaultline.serve import load
from vaultline.serve.answers import Counters, Loss
from vaultline.serve.load import Sent
from vaultline.serve.status import GatewayStatus, ServerStatus

CLUSTER = """\
owner: local
hosts: [{name: local, cores: 2, memory: 8GiB}]
devices:
  - {name: enclave, host: local, kind: simulated, trust: attested, memory: 93MiB, count: 2}
"""
WORKLOAD = "arrivals: {kind: poisson, rate: 10}\nduration: 1s\nmodels: [{name: digits}]\n"


def server(name: str, answered: int, busy_s: float, *, alive: bool = True) -> ServerStatus:
    metrics = ServerMetrics(
        queued={"vgg19": 7, "alexnet": 2, "idle": 0},
        held_bytes={"fixed": 20 * MIB, "resident": 40 * MIB},
        runs=9,
        loads=3,
        evictions=2,
        answered=answered,
        busy_s={"vgg19": busy_s},
        worker=StageMetrics(streamed_bytes=5 * MIB, peak_bytes={"resident": 50 * MIB}),
    )
    return ServerStatus(
        name=name, cores=1, memory_bytes=93 * MIB, alive=alive, in_flight=9, metrics=metrics
    )


def status(answered: int = 10, busy_s: float = 1.0, *, alive: bool = True) -> GatewayStatus:
    loss = Loss(
        server="b", code="x", message="gone", heard_s=1.0, lost_s=2.0, moved=4, recovered_s=3.0
    )
    return GatewayStatus(
        servers=(server("a", answered, busy_s), server("b", 5, 1.0, alive=alive)),
        counters=Counters(submitted=20, answered=15, refused=1, open=4, moved=4),
        losses=() if alive else (loss,),
        decisions=20,
    )


class TestSignals:
    def test_before_anything_is_served_a_signal_stops_at_once(self) -> None:
        signals = Signals()
        with signals.handled(), pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_first_asks_to_drain_and_the_second_stops(self, number: signal.Signals) -> None:
        signals = Signals()
        before = signal.getsignal(number)
        with signals.handled():
            signals.serving = True
            signal.raise_signal(number)
            assert signals.asked
            with pytest.raises(Stopped):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(number) is before


class TestTable:
    def test_rates_are_of_the_last_seconds(self) -> None:
        now_s = [100.0]
        rates = Rates(lambda: now_s[0])
        assert rates.take(server("a", 10, 1.0)) == (0.0, 0.0)
        now_s[0] = 101.0
        assert rates.take(server("a", 30, 1.5)) == pytest.approx((20.0, 0.5))
        now_s[0] = 110.0
        rates.take(server("a", 30, 1.5))
        now_s[0] = 112.0
        assert rates.take(server("a", 32, 1.5)) == pytest.approx((1.0, 0.0))

    def test_a_row_says_what_waits_and_what_is_held(self) -> None:
        rows = server_rows(status(alive=False), Rates())
        row = dict(zip(COLUMNS, rows[0], strict=True))
        assert (row["waiting"], row["for"]) == ("9", "vgg19 7 alexnet 2")
        assert (row["fixed"], row["resident"], row["MiB of"]) == ("20.0", "40.0", "93")
        assert rows[1][:2] == ("b", "LOST")

    def test_a_drain_is_visible(self) -> None:
        console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
        console.print(live_table(status(), Rates(), draining=True))
        assert "DRAINING: 4 under way, 15 answered" in console.export_text()


def test_the_summary_says_what_was_lost_and_recovered(capsys: pytest.CaptureFixture[str]) -> None:
    found = summarize(status(alive=False), 10.0, ("unsafe_any_advisory",))
    assert found["unsafe"] == ["unsafe_any_advisory"]
    assert found["requests"]["answered"] == 15
    assert found["losses"][0]["recovery_s"] == 2.0
    show(status(alive=False), 10.0)
    out = capsys.readouterr().out
    assert "15 answered, 1 refused" in out
    assert "4 moved from lost servers" in out


def test_a_generator_that_lags_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    sent = [
        Sent(
            request=Request(number=n, model="m", arrived_s=0.1 * n),
            sent_s=0.1 * n + 0.05,
            ended_s=0.1 * n + 0.2,
            reason="full" if n == 3 else "",
        )
        for n in range(5)
    ]
    show_load(load.summarize(sent))
    out = capsys.readouterr().out
    assert "LAGGING" in out
    assert "4 of 5 answered" in out
    assert "1 x full" in out


BAD = {
    "clients over TCP without a credential": (["--listen", "tcp:127.0.0.1:0"], 2, "credential"),
    "an address that is none": (["--listen", "somewhere"], 2, "not an address"),
    "an unknown policy": (["--policy", "best"], 2, "no policy is called"),
    "a policy for evidence": (["--policy", "trust/policy.yaml"], 2, "how requests are scheduled"),
    "a platform without its policy": (["--platform", "platform.json"], 2, "without its policy"),
    "a policy that is not there": (["--policy-file", "none.yaml"], 2, "simulated platform"),
    "a folder without models": ([], 2, "nothing to serve"),
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_input_to_serve(
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, code, said = BAD[sentence]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "models").mkdir()
    words = ["serve", "--cluster", "cluster.yaml", "--models", "models", "--kek", "kek.jwk"]
    assert main([*words, "--json", *arguments]) == code
    out = capsys.readouterr().out
    assert said in json.loads(out)["error"]["message"]


BAD_LOAD = {
    "no such workload": ("none.yaml", ["--to", "unix:/nowhere"], 2, "cannot read the workload"),
    "no gateway there": (
        "workload.yaml",
        ["--to", "unix:/nowhere/at/all", "--connect", "0.05"],
        4,
        "nobody answers",
    ),
    "an address that is none": ("workload.yaml", ["--to", "there"], 2, "not an address"),
    "a recording that can't be written": (
        "workload.yaml",
        ["--to", "unix:/nowhere", "--record", "/nowhere/at/all.csv"],
        2,
        "cannot write the recording",
    ),
    "a speed of nothing": (
        "workload.yaml",
        ["--to", "unix:/nowhere", "--faster", "0"],
        2,
        "can't be so much faster",
    ),
}


@pytest.mark.parametrize("sentence", BAD_LOAD)
def test_bad_input_to_load(
    sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, arguments, code, said = BAD_LOAD[sentence]
    (tmp_path / "workload.yaml").write_text(WORKLOAD)
    assert main(["load", str(tmp_path / name), "--json", *arguments]) == code
    assert said in json.loads(capsys.readouterr().out)["error"]["message"]
