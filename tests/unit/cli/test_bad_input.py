# ruff: noqa: E501 - one case a line reads better
"""Bad input of every kind: the right exit code, a message that helps, one JSON document, no bug.

Everything here runs the real commands on real files; what is wrong is in the files.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaultline.cli.main import main
from vaultline.core.serde import canonical_json

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
CLUSTER = """\
owner: local
hosts:
  - {name: local, cores: 2, memory: 8GiB}
devices:
  - {name: enclave, host: local, kind: simulated, trust: attested, memory: 93MiB, count: 2}
"""


@dataclass(frozen=True, slots=True)
class Good:
    """A folder of files that fit together, and a folder for what a case breaks."""

    good: Path
    bad: Path

    def file(self, name: str, data: bytes | str, mode: int = 0o644) -> Path:
        """A file of the case's own."""
        path = self.bad / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        path.chmod(mode)
        return path

    def altered(self, name: str, old: str, new: str) -> Path:
        """A good text file with one thing replaced."""
        text = (self.good / name).read_text()
        assert old in text
        return self.file(Path(name).name, text.replace(old, new, 1))

    def json(self, name: str, change: Callable[[Any], object]) -> Path:
        """A good JSON file in canonical form after a change of its contents."""
        value = json.loads((self.good / name).read_text())
        change(value)
        return self.file(name, canonical_json(value))

    def profile(self, model: Path, *more: str) -> list[str]:
        return ["profile", str(model), "-o", str(self.bad / "out.json"), "--repeats", "3", *more]

    def plan(
        self, *more: str, profile: Path | None = None, cluster: Path | None = None
    ) -> list[str]:
        files = [profile or self.good / "p.json", "--cluster", cluster or self.good / "c.yaml"]
        return ["plan", *map(str, files), "-o", str(self.bad / "out.json"), *more]

    def seal(self, *more: str, model: Path | None = None, plan: Path | None = None) -> list[str]:
        fixed = {"--plan": plan or self.good / "plan.json", "-o": self.bad / "out.vault"}
        given = {"--key": self.bad / "new.key", "--kek": self.good / "kek.jwk"}
        options = [str(part) for pair in {**fixed, **given}.items() for part in pair]
        return ["seal", str(model or DIGITS / "digits.onnx"), *options, *more]

    def run(self, *more: str, **changes: Path | str) -> list[str]:
        options: dict[str, Path | str] = {
            "plan": self.good / "plan.json",
            "vault": self.good / "m.vault",
            "key": self.good / "owner.key",
            "kek": self.good / "kek.jwk",
            "policy": self.good / "trust" / "policy.yaml",
            "source": DIGITS / "digits.mp4",
            "sink": self.bad / "results.jsonl",
            "preprocess": DIGITS / "digits.preprocess.yaml",
            **changes,
        }
        given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return ["run", *given, "--allow-simulated", "--limit", "1", *more]


def _main(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a profile, a plan, a vault and its keys, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("good")
    model = DIGITS / "digits.onnx"
    (folder / "c.yaml").write_text(CLUSTER)
    _main("policy", "dev", "--out", folder / "trust")
    _main("profile", model, "-o", folder / "p.json", "--repeats", "3")
    cluster = ("--cluster", folder / "c.yaml")
    _main("plan", folder / "p.json", *cluster, "-o", folder / "plan.json", "--stages", "2")
    _main("plan", folder / "p.json", *cluster, "-o", folder / "one.json", "--stages", "1")
    keys = ("--key", folder / "owner.key", "--kek", folder / "kek.jwk")
    _main("seal", model, "--plan", folder / "plan.json", "-o", folder / "m.vault", *keys)
    return folder


@pytest.fixture
def ready(good_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Good]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("VAULTLINE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    yield Good(good_files, tmp_path)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[int | str] | None]],
    outputs: list[tuple[str, int, list[int | str] | None]],
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(*entry) for entry in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


FLOAT, STRING = int(TensorProto.FLOAT), int(TensorProto.STRING)
_IMAGE: list[int | str] = [1, 3, 8, 8]


def _unary(op: str, shape: list[int | str] | None = None, kind: int = FLOAT, **more: Any) -> bytes:
    shape = _IMAGE if shape is None else shape
    node = helper.make_node(op, ["x"], ["y"], name="it", **more)
    return _model([node], [("x", kind, shape)], [("y", kind, None)])


def _two_inputs() -> bytes:
    node = helper.make_node("Add", ["a", "b"], ["y"])
    entries = [(name, FLOAT, _IMAGE) for name in ("a", "b")]
    return _model([node], entries, [("y", FLOAT, None)])


def _no_inputs() -> bytes:
    node = helper.make_node("Relu", ["w"], ["y"])
    return _model([node], [], [("y", FLOAT, [3])], {"w": np.ones(3, np.float32)})


def _nonzero() -> bytes:
    node = helper.make_node("NonZero", ["x"], ["y"])
    return _model([node], [("x", FLOAT, _IMAGE)], [("y", int(TensorProto.INT64), None)])


def _missing_data(ready: Good) -> Path:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="elsewhere.bin")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    proto = onnx.load_from_string(_model([node], [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])]))
    proto.graph.initializer.append(tensor)
    return ready.file("m.onnx", proto.SerializeToString())


def _planned(ready: Good, model: bytes) -> Path:
    """A plan for another model than the digits'."""
    path = ready.file("m.onnx", model)
    _main(*ready.profile(path))
    plan = ready.bad / "other.json"
    _main("plan", ready.bad / "out.json", "--cluster", ready.good / "c.yaml", "-o", plan)
    return plan


def _sealed(ready: Good, model: bytes) -> dict[str, Path | str]:
    """A model other than the digits', planned and sealed."""
    plan = _planned(ready, model)
    vault = ready.bad / "other.vault"
    keys = ("--key", ready.bad / "other.key", "--kek", ready.good / "kek.jwk")
    _main("seal", ready.bad / "m.onnx", "--plan", plan, "-o", vault, *keys)
    return {"plan": plan, "vault": vault, "key": ready.bad / "other.key"}


def _cut_video(ready: Good) -> Path:
    return ready.file("cut.mp4", (DIGITS / "digits.mp4").read_bytes()[:2000])


def _sound(ready: Good) -> Path:
    """A playable file without a single picture: one second of silence."""
    samples = bytes(8000)
    sizes = (36 + len(samples)).to_bytes(4, "little"), len(samples).to_bytes(4, "little")
    form = b"fmt \x10\0\0\0\1\0\1\0" + (8000).to_bytes(4, "little") * 2 + b"\1\0\x08\0"
    return ready.file("s.wav", b"RIFF" + sizes[0] + b"WAVE" + form + b"data" + sizes[1] + samples)


def _folder(ready: Good, name: str = "folder") -> Path:
    path = ready.bad / name
    path.mkdir()
    return path


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _vault(ready: Good, change: Callable[[bytearray], object]) -> Path:
    data = bytearray((ready.good / "m.vault").read_bytes())
    change(data)
    return ready.file("bad.vault", bytes(data))


def _flip(data: bytearray, place: int) -> None:
    data[place] ^= 1


def _policy(ready: Good, text: str) -> dict[str, Path]:
    """A policy of the case's own, beside the good collateral and platform."""
    return {
        "policy": ready.file("policy.yaml", text),
        "collateral": ready.good / "trust" / "collateral.json",
        "platform": ready.good / "trust" / "platform.json",
    }


def _stage(number: int, **changes: Any) -> Callable[[Any], object]:
    return lambda plan: plan["stages"][number].update(changes)


Build = Callable[[Good], list[str]]

#: What is wrong -> (exit code, words that the message holds, the command).
CASES: dict[str, tuple[int, tuple[str, ...], Build]] = {
    # Models
    "the model is not there": (
        2, ("nowhere.onnx", "No such file", "to fix"), lambda r: r.profile(r.bad / "nowhere.onnx")),
    "the model is a folder": (
        2, ("directory", "to fix"), lambda r: r.profile(_folder(r))),
    "the model is text": (
        2, ("not an ONNX model", "got", "expected", "to fix"),
        lambda r: r.profile(r.file("m.onnx", "hello, this is no model\n" * 9))),
    "the model is empty": (
        2, ("not an ONNX model",), lambda r: r.profile(r.file("m.onnx", b""))),
    "the model is a video": (
        2, ("not an ONNX model",), lambda r: r.profile(DIGITS / "digits.mp4")),
    "the model is cut short": (
        2, ("not an ONNX model",),
        lambda r: r.profile(r.file("m.onnx", (DIGITS / "digits.onnx").read_bytes()[:90_000]))),
    "the model has an unknown operator": (
        2, ("Frobnicate", "expected", "to fix"),
        lambda r: r.profile(r.file("m.onnx", _unary("Frobnicate")))),
    "the model has an operator of an unknown domain": (
        2, ("acme", "expected"),
        lambda r: r.profile(r.file("m.onnx", _unary("Relu", domain="com.acme")))),
    "the output's shape depends on the data": (
        2, ("'y'", "not known before it runs", "expected", "to fix"),
        lambda r: r.profile(r.file("m.onnx", _nonzero()))),
    "an input has open sides": (
        2, ("'x'", "open", "--input-shape x=1,3,224,224"),
        lambda r: r.profile(r.file("m.onnx", _unary("Relu", [1, 3, "h", "w"])))),
    "an input shape for an input that is not there": (
        2, ("not have", "z", "x"),
        lambda r: r.profile(r.file("m.onnx", _unary("Relu")), "--input-shape", "z=1,3")),
    "an input shape of other rank": (
        2, ("does not fit", "got", "expected"),
        lambda r: r.profile(r.file("m.onnx", _unary("Relu")), "--input-shape", "x=1,3")),
    "an input shape that is no shape": (
        2, ("not an input shape", "x=1,three", "NAME=1,3,224,224"),
        lambda r: r.profile(DIGITS / "digits.onnx", "--input-shape", "x=1,three")),
    "an input shape with a negative side": (
        2, ("not an input shape",),
        lambda r: r.profile(DIGITS / "digits.onnx", "--input-shape", "x=1,-3")),
    "an input shape with a side of nothing": (
        2, ("does not fit",),
        lambda r: r.profile(
            r.file("m.onnx", _unary("Relu", [1, 3, "h", "w"])), "--input-shape", "x=1,3,0,8")),
    "an input shape beyond all memory": (
        2, ("impossible shape",),
        lambda r: r.profile(
            r.file("m.onnx", _unary("Relu", [1, 3, "h", "w"])),
            "--input-shape", "x=1,3,9999999999,9999999999")),
    "the model takes text": (
        2, ("'x'", "element type", "expected"),
        lambda r: r.profile(r.file("m.onnx", _unary("Identity", kind=STRING)))),
    "the model takes nothing": (
        2, ("no input", "to fix"), lambda r: r.profile(r.file("m.onnx", _no_inputs()))),
    "the model's graph has a hole": (
        2, ("'lost'", "nothing makes"),
        lambda r: r.profile(r.file("m.onnx", _model(
            [helper.make_node("Add", ["x", "lost"], ["y"])],
            [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])])))),
    "the model computes nothing": (
        2, ("expected",),
        lambda r: r.profile(r.file("m.onnx", _model(
            [], [("x", FLOAT, [1, 3])], [("x", FLOAT, [1, 3])])))),
    "the model's data file is missing": (
        2, ("'w'", "elsewhere.bin", "to fix"), lambda r: r.profile(_missing_data(r))),
    "too few repeats": (2, ("repeats",), lambda r: r.profile(DIGITS / "digits.onnx", "--repeats", "0")),
    "the profile cannot be written": (
        2, ("cannot write", "missing", "to fix"),
        lambda r: ["profile", str(DIGITS / "digits.onnx"), "-o", str(r.bad / "missing" / "p.json")]),
    "the profile would replace a folder": (
        2, ("cannot write", "directory"),
        lambda r: ["profile", str(DIGITS / "digits.onnx"), "-o", str(_folder(r))]),
    # Profiles and clusters
    "the profile is not there": (
        2, ("cannot read the profile", "vaultline profile"),
        lambda r: r.plan(profile=r.bad / "nowhere.json")),
    "the profile is a folder": (
        2, ("cannot read the profile", "directory"), lambda r: r.plan(profile=_folder(r))),
    "the profile is empty": (
        2, ("the profile is not valid", "to fix"), lambda r: r.plan(profile=r.file("p.json", b""))),
    "the profile is a plan": (
        2, ("the profile is not valid", "unknown field"),
        lambda r: r.plan(profile=r.good / "plan.json")),
    "the profile is of another version": (
        2, ("another version", "9", "to fix"),
        lambda r: r.plan(profile=r.json("p.json", lambda p: p.update(version=9)))),
    "the profile's times are negative": (
        2, ("negative",),
        lambda r: r.plan(profile=r.json(
            "p.json", lambda p: p["blocks"][0].update(compute_s=[[1, -1.0]])))),
    "the profile lacks a block": (
        2, ("blocks", "expected"),
        lambda r: r.plan(profile=r.json("p.json", lambda p: p["blocks"].pop()))),
    "the cluster file is not there": (
        2, ("cannot read the cluster file", "to fix"),
        lambda r: r.plan(cluster=r.bad / "nowhere.yaml")),
    "the cluster file is a folder": (
        2, ("cannot read the cluster file", "directory"), lambda r: r.plan(cluster=_folder(r))),
    "the cluster file is empty": (
        2, ("the cluster file", "expected"), lambda r: r.plan(cluster=r.file("c.yaml", b""))),
    "the cluster file is no YAML": (
        2, ("c.yaml:1:", "not valid YAML"), lambda r: r.plan(cluster=r.file("c.yaml", "{owner: ["))),
    "the cluster file is not text": (
        2, ("cluster file",), lambda r: r.plan(cluster=r.file("c.yaml", bytes(range(256))))),
    "the cluster file has an unknown field": (
        2, ("c.yaml:5:", "unknown field `memroy`", "expected", "did you mean `memory`?"),
        lambda r: r.plan(cluster=r.altered("c.yaml", "memory: 93MiB", "memroy: 93MiB"))),
    "the cluster file lacks a field": (
        2, ("missing field `trust`",),
        lambda r: r.plan(cluster=r.altered("c.yaml", ", trust: attested", ""))),
    "a device has a memory of no known unit": (
        2, ("93MiBs", "expected"),
        lambda r: r.plan(cluster=r.altered("c.yaml", "93MiB", "93MiBs"))),
    "a device has negative memory": (
        2, ("-93MiB",), lambda r: r.plan(cluster=r.altered("c.yaml", "93MiB", "-93MiB"))),
    "a device has more cores than its host": (
        2, ("cores", "expected"),
        lambda r: r.plan(cluster=r.altered("c.yaml", "count: 2", "cores: 3"))),
    "a device is of an unknown kind": (
        2, ("kind", "quantum"), lambda r: r.plan(cluster=r.altered("c.yaml", "simulated", "quantum"))),
    "a device is on an unknown host": (
        2, ("unknown host", "mars", "expected", "to fix"),
        lambda r: r.plan(cluster=r.altered("c.yaml", "host: local", "host: mars"))),
    "a device is given a billion times": (
        2, ("impossible count", "expected"),
        lambda r: r.plan(cluster=r.altered("c.yaml", "count: 2", "count: 1000000000"))),
    "a device is given no times": (
        2, ("impossible count",), lambda r: r.plan(cluster=r.altered("c.yaml", "count: 2", "count: 0"))),
    "no memory fits": (
        3, ("needs", "more on device enclave", "memory", "got", "expected", "to fix"),
        lambda r: r.plan(cluster=r.altered("c.yaml", "93MiB", "100KiB"))),
    "more stages than devices": (
        3, ("number of devices", "2 more", "got", "to fix"), lambda r: r.plan("--stages", "4")),
    "nobody may be trusted": (
        3, ("trust", "got", "expected", "to fix"),
        lambda r: r.plan(cluster=r.altered("c.yaml", "kind: simulated, trust: attested", "kind: accelerator, trust: none"))),
    "zero stages": (2, ("stages",), lambda r: r.plan("--stages", "0")),
    "more stages than a plan may have": (
        2, ("stages", "64"), lambda r: r.plan("--stages", "65")),
    "an unknown device": (
        2, ("no such device", "cloud", "enclave-0"), lambda r: r.plan("--device", "cloud")),
    "an unknown objective": (2, ("objective",), lambda r: r.plan("--objective", "beauty")),
    "a partition of no known form": (
        2, ("not a partition", "FIRST:LAST@DEVICE"), lambda r: r.plan("--partition", "0-23")),
    "a partition with a gap": (
        2, ("follow one another", "starts at 23"),
        lambda r: r.plan("--partition", "0:23@enclave,24:56@enclave")),
    "a partition on an unknown device": (
        2, ("no such device", "cloud"),
        lambda r: r.plan("--partition", "0:23@enclave,23:56@cloud")),
    "a partition that ends early": (
        2, ("does not cover", "expected"), lambda r: r.plan("--partition", "0:23@enclave")),
    "a partition that ends too late": (
        2, ("cannot be cut there", "expected"), lambda r: r.plan("--partition", "0:23@enclave,23:9999@enclave")),
    "a partition on a device with too little memory": (
        3, ("does not fit", "memory", "more"),
        lambda r: r.plan("--partition", "0:23@enclave,23:56@enclave",
                         cluster=r.altered("c.yaml", "93MiB", "100KiB"))),
    "the plan cannot be written": (
        2, ("cannot write", "to fix"),
        lambda r: [*r.plan(), "-o", str(r.bad / "missing" / "plan.json")]),
    "the plot cannot be written": (
        2, ("cannot write", "to fix"), lambda r: r.plan("--plot", str(r.bad / "missing" / "p.png"))),
    "the plot is of an unknown kind": (
        2, ("p.xyz", "expected"), lambda r: r.plan("--plot", str(r.bad / "p.xyz"))),
    # Plans, keys, sealing
    "the plan is not there": (
        2, ("cannot read the plan", "vaultline plan"), lambda r: r.seal(plan=r.bad / "no.json")),
    "the plan is a folder": (2, ("cannot read the plan",), lambda r: r.seal(plan=_folder(r))),
    "the plan is empty": (2, ("plan.json", "not valid", "an empty file", "to fix"), lambda r: r.seal(plan=r.file("plan.json", ""))),
    "the plan is cut short": (
        2, ("not valid",),
        lambda r: r.seal(plan=r.file("plan.json", (r.good / "plan.json").read_bytes()[:300]))),
    "the plan was edited by hand": (
        2, ("canonical", "expected", "to fix"),
        lambda r: r.seal(plan=r.altered("plan.json", '"objective":', '"objective": '))),
    "the plan's stages have a gap": (
        2, ("contiguous", "got", "expected"),
        lambda r: r.seal(plan=r.json("plan.json", _stage(1, first=30)))),
    "the plan has no stages": (
        2, ("1 to 64 stages",),
        lambda r: r.seal(plan=r.json("plan.json", lambda plan: plan.update(stages=[])))),
    "the plan ends beyond the model": (
        2, ("got", "expected"), lambda r: r.seal(plan=r.json("plan.json", _stage(1, last=9999)))),
    "the plan ends before the model": (
        2, ("end of the model", "got", "expected"),
        lambda r: r.seal(plan=r.json("one.json", _stage(0, last=23)))),
    "the plan's frames per pass are negative": (
        2, ("frames_per_pass",),
        lambda r: r.seal(plan=r.json("plan.json", _stage(0, frames_per_pass=-1)))),
    "the plan's step is negative": (
        2, ("step_bytes",),
        lambda r: r.seal(plan=r.json("plan.json", _stage(0, step_bytes=-1, mode="streamed")))),
    "the plan's threads are none": (
        2, ("threads",), lambda r: r.seal(plan=r.json("plan.json", _stage(0, threads=0)))),
    "the plan's prediction is negative": (
        2, ("predict",), lambda r: r.run(plan=r.json("plan.json", _stage(0, predicted_s=-1.0)))),
    "the plan is for another model": (
        2, ("another model", "got", "expected", "to fix"),
        lambda r: r.seal(model=r.file("m.onnx", _unary("Relu")))),
    "the key-encryption key is empty": (
        2, ("not a key-encryption key", "expected", "to fix"),
        lambda r: r.seal("--kek", str(r.file("kek.jwk", "", 0o600)))),
    "the key-encryption key is for all to read": (
        1, ("rights", "mode 0644", "chmod 600"),
        lambda r: r.seal("--kek", str(r.file("kek.jwk", (r.good / "kek.jwk").read_bytes())))),
    "the vault cannot be written": (
        2, ("cannot write", "to fix"), lambda r: r.seal("-o", str(r.bad / "missing" / "m.vault"))),
    "the key file cannot be written": (
        2, ("cannot write", "to fix"), lambda r: r.seal("--key", str(r.bad / "missing" / "o.key"))),
    "the vault would replace a folder": (
        2, ("cannot write", "directory"), lambda r: r.seal("-o", str(_folder(r)))),
    # Running
    "no key file": (
        2, ("there is no key file", "to fix"), lambda r: r.run(key=r.bad / "no.key")),
    "the key file is a folder": (2, ("key file", "directory"), lambda r: r.run(key=_folder(r))),
    "the key file is for all to read": (
        1, ("rights", "mode 0644", "mode 0600", "chmod 600"),
        lambda r: r.run(key=r.file("owner.key", (r.good / "owner.key").read_bytes()))),
    "the key file is damaged": (
        1, ("does not open", "to fix"), lambda r: r.run(key=r.file("owner.key", "{}", 0o600))),
    "the wrong key-encryption key": (
        1, ("another key-encryption key", "got", "expected", "to fix"),
        lambda r: [*r.run(), "--kek", str(_other_kek(r))]),
    "no key-encryption key": (
        2, ("there is no key-encryption key", "to fix"), lambda r: r.run(kek=r.bad / "no.jwk")),
    "the vault is of another plan": (
        1, ("no vault for this plan", "got", "expected", "vaultline seal"),
        lambda r: r.run(plan=r.good / "one.json")),
    "no vault": (2, ("vault", "no.vault", "to fix"), lambda r: r.run(vault=r.bad / "no.vault")),
    "the vault is a folder": (2, ("vault", "directory"), lambda r: r.run(vault=_folder(r))),
    "the vault is empty": (
        1, ("to fix",), lambda r: r.run(vault=_vault(r, lambda data: data.clear()))),
    "the vault is text": (1, ("vault", "to fix"), lambda r: r.run(vault=r.good / "c.yaml")),
    "the vault is cut short": (
        1, ("to fix",), lambda r: r.run(vault=_vault(r, lambda data: data.__delitem__(slice(-99, None))))),
    "the vault's header was altered": (
        1, ("to fix",), lambda r: r.run(vault=_vault(r, lambda data: _flip(data, 60)))),
    "the vault was lengthened": (
        1, ("bytes after its end", "to fix"),
        lambda r: r.run(vault=_vault(r, lambda data: data.extend(b"x")))),
    "no policy": (2, ("cannot read the policy", "to fix"), lambda r: r.run(policy=r.bad / "no.yaml")),
    "the policy is empty": (2, ("the policy",), lambda r: r.run(**_policy(r, ""))),
    "the policy accepts nothing": (
        2, ("accepts nothing", "to fix"), lambda r: r.run(**_policy(r, "version: 1\naccept: []\n"))),
    "the policy has an unknown kind": (
        2, ("policy.yaml:3:", "kind"),
        lambda r: r.run(**_policy(r, "version: 1\naccept:\n  - {kind: magic, roots: [intel]}\n"))),
    "the policy accepts other measurements": (
        1, ("measurement", "got", "expected"),
        lambda r: r.run(**_policy(r, _other_measurement(r)))),
    "the policy has no collateral beside it": (
        2, ("collateral", "to fix"),
        lambda r: r.run(policy=r.file("policy.yaml", (r.good / "trust/policy.yaml").read_bytes()))),
    "the collateral is text": (
        2, ("collateral",), lambda r: r.run("--collateral", str(r.file("c.json", "hello")))),
    "the platform's file is text": (
        2, ("platform", "to fix"), lambda r: r.run("--platform", str(r.file("p.json", "hello")))),
    "the platform's file is missing": (
        2, ("platform", "to fix"), lambda r: r.run("--platform", str(r.bad / "no.json"))),
    "simulated enclaves without consent": (
        1, ("--allow-simulated",),
        lambda r: [part for part in r.run() if part != "--allow-simulated"]),
    "the source is not there": (
        2, ("no.mp4", "got", "expected", "to fix"), lambda r: r.run(source=r.bad / "no.mp4")),
    "the source is text": (
        2, ("not a video", "got", "expected", "to fix"), lambda r: r.run(source=r.good / "c.yaml")),
    "the source is empty": (2, ("not a video",), lambda r: r.run(source=r.file("v.mp4", b""))),
    "the video has no frames": (
        2, ("no frames", "got", "expected", "to fix"), lambda r: r.run(source=_sound(r))),
    "the video is cut short": (2, ("got", "to fix"), lambda r: r.run(source=_cut_video(r))),
    "the folder has no pictures": (
        2, ("holds no pictures", "got", "expected"), lambda r: r.run(source=_folder(r))),
    "a picture is text": (
        2, ("not a picture",), lambda r: r.run(source=r.file("p.png", "no picture"))),
    "the camera is not there": (
        4, ("no connection to the camera", "got", "expected", "to fix"),
        lambda r: r.run(source=f"rtsp://127.0.0.1:{_closed_port()}/camera")),
    "the source is of an unknown kind": (
        2, ("not supported", "expected"), lambda r: r.run(source="gopher://there/video")),
    "the sink is in no folder": (
        2, ("results can't be written", "to fix"), lambda r: r.run(sink=r.bad / "missing" / "r.jsonl")),
    "the sink is a folder": (
        2, ("results can't be written", "directory"), lambda r: r.run(sink=_folder(r))),
    "the folder for raw tensors is a file": (
        2, ("written",), lambda r: r.run("--raw", str(r.good / "c.yaml"))),
    "the labels are not there": (
        2, ("cannot read the labels",), lambda r: r.run("--labels", str(r.bad / "no.txt"))),
    "the labels are of another model": (
        2, ("labels", "got: 3 lines", "expected: 10"),
        lambda r: r.run("--labels", str(r.file("l.txt", "cat\ndog\nowl\n")))),
    "the labels are not text": (
        2, ("labels", "UTF-8", "to fix"),
        lambda r: r.run("--labels", str(r.file("l.txt", b"caf\xe9\n")))),
    "the preprocessing file is not there": (
        2, ("no such preprocessing file", "to fix"), lambda r: r.run(preprocess=r.bad / "no.yaml")),
    "the preprocessing file has an unknown field": (
        2, ("p.yaml:3:", "unknown field `colour`", "did you mean `color`?"),
        lambda r: r.run(preprocess=r.file("p.yaml", "width: 64\nheight: 64\ncolour: rgb\n"))),
    "the preprocessing makes another shape": (
        2, ("does not fit the model", "got", "expected", "to fix"),
        lambda r: r.run(preprocess=r.file("p.yaml", "width: 32\nheight: 64\n"))),
    "the model takes two pictures": (
        2, ("one input", "a, b", "to fix"), lambda r: r.run(**_sealed(r, _two_inputs()))),
    "the model takes no picture": (
        2, ("can't tell how pictures", "to fix"),
        lambda r: [*_without(r.run(**_sealed(r, _unary("Relu", [1, 10]))), "--preprocess")]),
    "a place of no known form": (
        2, ("not a place", "HOST=ADDRESS"), lambda r: r.run("--place", "local")),
    "a place for a host that the plan does not have": (
        2, ("mars", "local"), lambda r: r.run("--place", "mars=127.0.0.1")),
    "an address that is not this machine's": (
        4, ("cannot listen", "192.0.2.1", "got"),
        lambda r: r.run("--transport", "tcp", "--result-bind", "192.0.2.1")),
    "no time at all for results": (2, ("stall",), lambda r: r.run("--stall", "0")),
    "no limit that lets a frame through": (2, ("limit",), lambda r: r.run("--limit", "0")),
    # Policies
    "the development root's folder is a file": (
        2, ("expected", "to fix"), lambda r: ["policy", "dev", "--out", str(r.good / "c.yaml")]),
    "there is a development root already": (
        2, ("expected", "to fix"), lambda r: ["policy", "dev", "--out", str(r.good / "trust")]),
    # Usage
    "an option without its value": (2, ("--cluster",), lambda r: ["plan", "p.json", "--cluster"]),
    "a required option is missing": (2, ("--cluster",), lambda r: ["plan", "p.json", "-o", "x"]),
    "an unknown verb": (2, ("frobnicate",), lambda r: ["frobnicate"]),
}  # fmt: skip


def _other_kek(ready: Good) -> Path:
    path = ready.bad / "other.jwk"
    _main(*ready.seal("--kek", str(path)))
    return path


def _other_measurement(ready: Good) -> str:
    lines = (ready.good / "trust" / "policy.yaml").read_text().splitlines()
    place = next(n for n, line in enumerate(lines) if "measurements" in line) + 1
    lines[place] = f'      - "{"00" * 32}"'
    return "\n".join(lines)


def _without(arguments: list[str], option: str) -> list[str]:
    place = arguments.index(option)
    return arguments[:place] + arguments[place + 2 :]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_what_is_wrong(case: str, ready: Good, capfd) -> None:
    code, words, build = CASES[case]
    arguments = build(ready)
    capfd.readouterr()
    assert main(arguments) == code
    out, err = capfd.readouterr()
    text = " ".join(err.split())
    assert [word for word in words if word not in text] == [], err
    assert "Traceback" not in err
    assert out == ""
    # The same once more for a program: one document, whose words are those for a person.
    for path in (ready.bad / "results.jsonl", ready.bad / "out.json"):
        path.unlink(missing_ok=True)
    assert main([*arguments, "--json"]) == code
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 1
    error = json.loads(lines[0])["error"]
    assert error["exit_code"] == code
    assert error["message"]


def test_with_nothing_wrong_all_is_done(ready: Good, capfd) -> None:
    """The other cases differ from this one in the one thing that they name."""
    assert main(ready.run()) == 0
    assert main(ready.seal()) == 0
    assert main(ready.plan()) == 0
    said = capfd.readouterr()
    assert "error" not in said.err
    assert "it takes the place" not in said.out
    (ready.bad / "[final]").mkdir()
    assert main([*ready.seal(), "-o", str(ready.bad / "[final]" / "v")]) == 0
    assert main([*ready.plan(), "-o", str(ready.bad / "[final]" / "p")]) == 0
    said = capfd.readouterr()
    assert said.out.count("[final]/") == 2, "names are shown as they are"
    # The vault that was sealed for this plan before opens no more.
    assert "it takes the place of what was sealed for this plan 20" in said.out


def test_as_a_process_there_is_no_traceback_either(ready: Good) -> None:
    cases = ["the model is text", "the source is text", "the wrong key-encryption key"]
    for case in cases:
        code, _, build = CASES[case]
        command = [sys.executable, "-m", "vaultline", *build(ready), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert json.loads(done.stdout)["error"]["exit_code"] == code
