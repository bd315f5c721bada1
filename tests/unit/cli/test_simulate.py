"""The commands `simulate` and `trace`, on small facts and with input of every wrong kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vaultline.cli.main import main
from vaultline.cli.simulation_picture import residences
from vaultline.core.frames import FrameLayout
from vaultline.core.serde import canonical_json
from vaultline.core.tensors import TensorSpec
from vaultline.owner.served import ServedModel
from vaultline.sched.events import Action, Event
from vaultline.sched.facts import ModelFacts
from vaultline.sched.policies import POLICIES, policy
from vaultline.sched.replay import ActionEntry, EventEntry, LogHeader, encode
from vaultline.sched.server import Server
from vaultline.sim.cluster import Simulation, Timing
from vaultline.sim.results import Happening
from vaultline.testing.serving import group, model, poisson, server

PNG = b"\x89PNG\r\n\x1a\n"
MODELS = (model("quick", group(2, run_s=0.003)), model("slow", group(9, run_s=0.04), group(9)))
CLUSTER = """\
owner: local
hosts:
  - {name: local, cores: 2, memory: 8GiB}
devices:
  - {name: box, host: local, kind: simulated, trust: attested, memory: 32MiB, count: 2}
"""
WORKLOAD = """\
duration: 5s
zipf: 1
arrivals: {kind: poisson, rate: 40}
models: [{name: quick, deadline: 100ms}, {name: slow}]
"""


class Files:
    """A folder with a workload, a cluster and facts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("w.yaml", WORKLOAD)
        self.write("c.yaml", CLUSTER)
        self.write("f.json", canonical_json(MODELS).decode())

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def run(self, *more: str, **changed: str) -> int:
        """With ``--json``; ``changed`` gives other files, an empty name none."""
        given = {"cluster": self.path("c.yaml"), "facts": self.path("f.json"), **changed}
        workload = given.pop("workload", self.path("w.yaml"))
        options = [part for name, at in given.items() if at for part in (f"--{name}", at)]
        return main(["simulate", workload, *options, "--json", *more])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_policies_are_compared_on_one_workload(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot, trace = (files.path(name) for name in ("o.json", "p.png", "t.json"))
    options = [part for name in ("vaultline", "round-robin") for part in ("--policy", name)]
    assert files.run(*options, out=out, plot=plot, trace=trace) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["policy"] for each in found["policies"]] == ["vaultline", "round-robin"]
    for each in found["policies"]:
        assert each["answered"] + each["refused"] == found["requests"] > 100
        assert each["latency"]["p50_s"] <= each["latency"]["p95_s"] <= each["latency"]["p99_s"]
        assert sum(s["answered"] for s in each["servers"]) == each["answered"]
        assert each["series"] is None  # in the file only
    whole = json.loads(Path(out).read_text())
    series = whole["policies"][0]["series"]
    assert len(series["seconds"]) == len(series["busy_cores"]) + 1
    assert Path(plot).read_bytes().startswith(PNG)
    processes = {
        event["args"]["name"]
        for event in json.loads(Path(trace).read_text())["traceEvents"]
        if event["name"] == "process_name"
    }
    assert processes == {
        f"{name}: box-{k}" for name in ("vaultline", "round-robin") for k in (0, 1)
    }


def test_the_same_command_gives_the_same_result(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [capsys.readouterr().out for _ in range(2) if files.run() == 0]
    assert texts[0] == texts[1]


def test_every_policy_can_be_simulated(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    options = [part for name in POLICIES for part in ("--policy", name)]
    assert files.run(*options) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["policy"] for each in found["policies"]] == list(POLICIES)


def test_a_faster_workload_loads_the_servers_more(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = []
    for faster in ("0.5", "1"):
        assert files.run("--policy", "vaultline", "--faster", faster, "--hop", "2ms") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["hop_s"] == 0.002
        shares.append(found["policies"][0]["servers"][0]["busy_share"])
    assert shares[0] < shares[1]


def test_a_lost_server_answers_no_more_and_no_request_is_lost(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = files.path("t.json")
    assert files.run("--policy", "vaultline", "--lose", "box-1@1s", trace=trace) == 0
    found = json.loads(capsys.readouterr().out)
    servers = {each["name"]: each for each in found["policies"][0]["servers"]}
    assert servers["box-1"]["answered"] < servers["box-0"]["answered"]
    assert found["policies"][0]["answered"] == found["requests"]
    events = json.loads(Path(trace).read_text())["traceEvents"]
    assert not any(e["ph"] == "X" and e["pid"] == 2 and e["ts"] + e["dur"] > 1e6 for e in events)
    assert [(e["ts"], e["pid"]) for e in events if e["name"] == "lost box-1"] == [(1e6, 2)]


def test_models_may_begin_on_some_servers_only(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.run("--policy", "vaultline", "--replicas", "1") == 0
    found = json.loads(capsys.readouterr().out)["policies"][0]
    assert found["answered"] > 100
    assert {each["runs"] > 0 for each in found["servers"]} == {True}


def test_people_get_a_table(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--cluster", files.path("c.yaml"), "--facts", files.path("f.json")]
    assert main(["simulate", files.path("w.yaml"), *given, "--policy", "vaultline"]) == 0
    text = capsys.readouterr().out
    assert "vaultline" in text
    assert "by model" in text


def prepared(facts: ModelFacts, workspace_bytes: int) -> bytes:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8))
    served = ServedModel(
        name=facts.name,
        vault=f"{facts.name}.vault",
        keys=f"{facts.name}.keys",
        model_digest="0" * 64,
        plan_digest=b"\0" * 32,
        isa="x86-64-avx512",
        engine_version="1",
        inputs=(spec,),
        outputs=(spec,),
        groups=tuple((k, k + 1) for k in range(len(facts.groups))),
        workspace_bytes=workspace_bytes,
        facts=facts,
    )
    assert isinstance(served.input_layout, FrameLayout)
    return canonical_json(served)


def test_prepared_models_bring_their_facts_and_workspaces(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = files.folder / "prepared"
    folder.mkdir()
    for each, mib in zip(MODELS, (3, 7), strict=True):
        (folder / f"{each.name}.served.json").write_bytes(prepared(each, mib << 20))
    out = files.path("o.json")
    assert files.run("--policy", "vaultline", facts="", models=str(folder), out=out) == 0
    capsys.readouterr()
    held = json.loads(Path(out).read_text())["policies"][0]["servers"][0]["series"]["held_bytes"]
    sessions = sum(each.fixed_bytes for each in MODELS)
    assert len(set(held["fixed"])) == 1
    assert (7 << 20) < held["fixed"][0] - sessions < (8 << 20)  # a workspace, and messages


NO_GPU = CLUSTER.replace("simulated, trust: attested", "accelerator, trust: none")
WRONG: dict[str, tuple[Callable[[Files], int], int, str]] = {
    "no workload file": (lambda f: f.run(workload=f.path("none.yaml")), 2, "cannot read the work"),
    "a mistake in the workload": (
        lambda f: f.run(workload=f.write("bad.yaml", WORKLOAD.replace("40", "-4"))),
        2,
        "bad.yaml:3:",
    ),
    "a workload without requests": (
        lambda f: f.run(workload=f.write("bad.yaml", WORKLOAD.replace("5s", "1us"))),
        2,
        "the workload has no requests",
    ),
    "a model without facts": (
        lambda f: f.run(workload=f.write("bad.yaml", WORKLOAD.replace("slow", "vgg19"))),
        2,
        "needs facts of every model",
    ),
    "no models": (lambda f: f.run(facts=""), 2, "models come from one place"),
    "models from two places": (lambda f: f.run(models=f.path("")), 2, "models come from one place"),
    "a folder without models": (lambda f: f.run(facts="", models=f.path("")), 2, "no prepared"),
    "no folder": (lambda f: f.run(facts="", models=f.path("none")), 2, "no prepared models"),
    "facts that are none": (lambda f: f.run(facts=f.write("bad.json", "[{}]")), 2, "not valid"),
    "facts of a model twice": (
        lambda f: f.run(facts=f.write("bad.json", canonical_json(MODELS * 2).decode())),
        2,
        "two models have one name",
    ),
    "nothing that is attested": (
        lambda f: f.run(cluster=f.write("bad.yaml", NO_GPU)),
        2,
        "no attested device",
    ),
    "a server that is too small": (
        lambda f: f.run(cluster=f.write("bad.yaml", CLUSTER.replace("32MiB", "4MiB"))),
        3,
        "server box-0 can't run",
    ),
    "an unknown policy": (lambda f: f.run("--policy", "luck"), 2, "no policy is called 'luck'"),
    "no speed": (lambda f: f.run("--faster", "0"), 2, "can't be so much faster"),
    "a hop without a unit of time": (lambda f: f.run("--hop", "2 hops"), 2, "not a duration"),
    "reports without a pause": (lambda f: f.run("--report", "0s"), 2, "--report is too short"),
    "a server that there is not": (
        lambda f: f.run("--lose", "box@1s"),
        2,
        "no server of this name",
    ),
    "a loss at no time": (lambda f: f.run("--lose", "box-1"), 2, "not a server that is lost"),
    "a picture of no known kind": (lambda f: f.run(plot=f.path("p.bmp")), 2, "PNG or SVG"),
    "a picture in no folder": (lambda f: f.run(plot=f.path("no/p.png")), 2, "cannot write the pic"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused(
    case: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    run, code, message = WRONG[case]
    assert run(files) == code
    error = json.loads(capsys.readouterr().out)["error"]
    assert message in error["message"]
    assert error["exit_code"] == code


def logged(folder: Path) -> list[str]:
    """Logs of two servers, as their hosts would write them."""
    names = [each.name for each in MODELS]
    servers = [server(f"s{k}", names) for k in range(2)]
    paths = {each.name: folder / f"{each.name}.jsonl" for each in servers}
    for each in servers:
        header = LogHeader(policy="vaultline", servers=(each,), models=MODELS)
        paths[each.name].write_bytes(encode(header))

    def observe(one: Server, event: Event, actions: list[Action]) -> None:
        name = one.facts.name
        entries = [EventEntry(server=name, event=event)]
        with paths[name].open("ab") as log:
            for entry in (*entries, *(ActionEntry(server=name, action=a) for a in actions)):
                log.write(encode(entry))

    chosen = policy("vaultline")
    facts = {each.name: each for each in MODELS}
    simulation = Simulation(servers, facts, chosen.chooser(), chosen.local, Timing(), observe)
    simulation.run(poisson(names, rate=40.0, count=60))
    return [str(path) for path in paths.values()]


def test_logs_become_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, out = logged(tmp_path), tmp_path / "t.json"
    with Path(paths[0]).open("ab") as log:
        log.write(b'{"type":"event","server":"s0","ev')  # its host was killed here
    assert main(["trace", *paths, "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(each["answered"] for each in found["servers"]) == 60
    document: dict[str, Any] = json.loads(out.read_text())
    runs = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert len(runs) == sum(each["runs"] for each in found["servers"])
    assert main(["trace", *paths, "-o", str(out)]) == 0
    assert "s1" in capsys.readouterr().out


def test_a_wrong_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = logged(tmp_path)[0], str(tmp_path / "t.json")
    lines = Path(path).read_bytes().splitlines(keepends=True)
    cases = {
        "is not valid": [b"{}\n"],
        "an event before the log's header": lines[1:],
        "leaves out what was decided": [line for line in lines if b'"answer"' not in line],
        "an empty event log": [],
    }
    for message, kept in cases.items():
        Path(path).write_bytes(b"".join(kept))
        assert main(["trace", path, "-o", out, "--json"]) == 2, message
        assert message in json.loads(capsys.readouterr().out)["error"]["message"]


def test_weights_stay_until_they_or_their_model_or_their_server_go_or_to_the_end() -> None:
    def stayed(*times: tuple[str, str, float]) -> list[tuple[str, float, float]]:
        happened = [Happening(now_s=now_s, what=what, of=of) for what, of, now_s in times]  # type: ignore[arg-type]
        return residences(happened, 5.0)

    first = ("load", "a/0", 1.0), ("evict", "a/0", 2.0), ("load", "b/1", 2.0), ("load", "a/0", 3.0)
    assert stayed(*first) == [("a/0", 1.0, 2.0), ("b/1", 2.0, 5.0), ("a/0", 3.0, 5.0)]
    removed = stayed(*first, ("remove", "a", 4.0))
    assert removed == [("a/0", 1.0, 2.0), ("a/0", 3.0, 4.0), ("b/1", 2.0, 5.0)]
    assert stayed(*first, ("lost", "box", 4.0))[1:] == [("b/1", 2.0, 4.0), ("a/0", 3.0, 4.0)]
