"""Known frames, weights and keys are nowhere that the host can look: not in its memory, in no
file, in no byte on a socket.

Each search is shown to find what there is to be found: the same function finds the frames in the
owner's own memory, the weights in the workers', and the host's own configuration in the host's.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from canary_models import canary_model, chain_model, saved_model
from onnx import helper

from vaultline.bench.cutting import cut_plan
from vaultline.bench.namespaces import Network, why_no_namespaces
from vaultline.bench.rig import Rig, make_rig
from vaultline.channel.keys import derive_hop_keys
from vaultline.channel.records import HEADER
from vaultline.core.frames import FrameLayout
from vaultline.core.hostline import HostLine, LaunchRequest
from vaultline.core.serde import canonical_json
from vaultline.graph.engine import run_plain
from vaultline.graph.structure import Model
from vaultline.owner.frames import OwnerFrame, ResultFrame
from vaultline.owner.hostlink import HostLink
from vaultline.owner.session import Session, SessionSettings
from vaultline.owner.starting import Place
from vaultline.testing.canaries import (
    NEEDLE_BYTES,
    WIDTH,
    Needles,
    files_under,
    found_in,
    hidden_in,
    memory,
    open_files,
    pattern,
    shared_memory,
    texts,
    windows,
)
from vaultline.testing.middle import Middle, MiddleLink, records
from vaultline.testing.network import Tap
from vaultline.testing.privacy import disclosure, on_accelerators

FRAMES = 12
LOOK_AT = 4


# --- What to look for ----------------------------------------------------------------------------


def images() -> list[np.ndarray]:
    return [pattern(100 + number, 1, WIDTH) for number in range(FRAMES)]


def weight_needles(stage: int) -> Needles:
    return windows(f"w{stage}", pattern(stage, WIDTH, WIDTH))


def frame_needles() -> Needles:
    needles: Needles = {}
    for number, image in enumerate(images()):
        data = image.tobytes()
        needles[f"frame {number}"] = data[:NEEDLE_BYTES]
        needles[f"end of frame {number}"] = data[-NEEDLE_BYTES:]
    return needles


def key_needles(rig: Rig, session: Session) -> Needles:
    needles = texts("model key", rig.keys.model_key)
    for stage, secrets in enumerate(session._deployment._secrets):
        needles |= texts(f"key of stage {stage}", secrets.access.stage_key)
        hops = {stage: secrets.hop_in_secret, stage + 1: secrets.hop_out_secret}
        for hop, secret in hops.items():
            needles |= texts(f"secret of hop {hop}", secret)
            keys = derive_hop_keys(secret, hop=hop, epoch=session.epoch.number)
            needles[f"key of hop {hop}"] = keys.key
    return needles


# --- Where to look -------------------------------------------------------------------------------


def test_the_search_finds_every_needle_wherever_it_lies() -> None:
    needles = frame_needles() | texts("key", bytes(range(224, 256)))
    rng = np.random.default_rng(3)
    for name, needle in needles.items():
        noise = rng.bytes(int(rng.integers(0, 99)))
        data = noise + needle + rng.bytes(50)
        cut = int(rng.integers(0, len(data)))
        assert found_in([data], needles) == {name}
        assert found_in([data[:cut], b"", data[cut:]], needles) == {name}
        assert found_in([noise + needle[1:]], needles) == set()
    assert found_in([b"", b"a"], needles) == set()


# --- Runs ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Look:
    """What was seen of a run while frames were in it."""

    needles: Needles = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)
    in_owner: set[str] = field(default_factory=set)
    in_host: set[str] = field(default_factory=set)
    host_knows: set[str] = field(default_factory=set)
    in_workers: list[set[str]] = field(default_factory=list)
    in_files: set[str] = field(default_factory=set)
    files: set[Path] = field(default_factory=set)
    results: list[ResultFrame] = field(default_factory=list)


class ListeningLink(HostLink):
    """The real host, with every line from and to it written down."""

    heard: list[bytes]

    def __init__(self, request: LaunchRequest) -> None:
        self.heard.append(canonical_json(request))
        super().__init__(request)

    def poll(self, timeout_s: float) -> HostLine | None:
        line = super().poll(timeout_s)
        if line is not None:
            self.heard.append(canonical_json(line))
        return line


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vlt") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def look_around(look: Look, rig: Rig, session: Session, folders: list[Path]) -> None:
    """Search the host, the workers and all files at this moment."""
    assert session.endpoints is not None
    pids = session.endpoints.pids
    known = {"the vault's path": str(rig.vault).encode()}
    found = found_in(memory(session.host_pid), look.needles | known)
    look.in_host |= found - known.keys()
    look.host_knows |= found & known.keys()
    look.in_workers = [found_in(memory(pid), look.needles) for pid in pids]
    opened = {path for pid in (session.host_pid, *pids) for path in open_files(pid)}
    look.files |= files_under(*folders) | shared_memory()
    look.in_files |= hidden_in(look.files | opened, look.needles)


def watched_run(
    rig: Rig, folders: list[Path], settings: SessionSettings, places: dict[str, Place]
) -> Look:
    """Send frames; when some results are back and others on their way, look everywhere."""
    look = Look()
    go_on = threading.Event()

    def frames() -> Iterator[OwnerFrame]:
        for number, image in enumerate(images()):
            if number == LOOK_AT + 2:
                go_on.wait()
            yield OwnerFrame(number, float(number), [image])

    with rig.session(settings, places) as session:
        look.needles = frame_needles() | key_needles(rig, session)
        for stage in range(len(rig.plan.stages)):
            look.needles |= weight_needles(stage)
        look_around(look, rig, session, folders)
        for result in session.stream(frames()):
            look.results.append(result)
            if result.index == LOOK_AT:
                look.needles |= {
                    f"result {seen.index}": seen.outputs["y"].tobytes()[:NEEDLE_BYTES]
                    for seen in look.results
                }
                try:
                    look_around(look, rig, session, folders)
                finally:
                    go_on.set()
    look.in_owner = found_in(memory(os.getpid()), look.needles)
    look.in_files |= hidden_in(files_under(*folders) | shared_memory(), look.needles)
    return look


def check_results(model: Model, results: list[ResultFrame]) -> None:
    assert len(results) == FRAMES
    for image, result in zip(images(), results, strict=True):
        expected = run_plain(model, {"x": image})["y"]
        np.testing.assert_allclose(result.outputs["y"], expected, rtol=1e-4, atol=1e-5)


def check_look(look: Look, model: Model) -> None:
    """Nothing anywhere, and everything where it belongs."""
    check_results(model, look.results)
    assert look.in_host == set()
    assert look.in_files == set()
    assert found_in(look.lines, look.needles) == set()
    # The searches do find: the owner has all frames and results, the host what it was told, and
    # every worker its own weights, but none of the other's.
    assert {name for name in look.needles if name.startswith(("frame", "result"))} <= look.in_owner
    assert look.host_knows == {"the vault's path"}
    assert any(path.suffix == ".vault" for path in look.files)
    assert any(b"endpoints" in line for line in look.lines)
    for stage, here in enumerate(look.in_workers):
        assert any(name.startswith(f"w{stage} ") for name in here), here
        assert not any(name.startswith(f"w{1 - stage} ") for name in here), here
        assert f"key of stage {1 - stage}" not in here
        assert "model key" not in here


@pytest.fixture
def canary(tmp_path: Path) -> tuple[Model, Rig]:
    model = canary_model(tmp_path)
    return model, make_rig(model, cut_plan(model, [2], hosts=("box0", "box1")), tmp_path)


def check_wire(streams: Iterable[bytes], rig: Rig, needles: Needles) -> None:
    """Nothing in clear; and every hop's records are there, each of a whole message, in order."""
    streams = list(streams)
    for data in streams:
        assert found_in([data], needles) == set()
    for hop in range(3):
        stages = rig.plan.stages
        specs = stages[hop].inputs if hop < 2 else stages[-1].outputs
        size = FrameLayout(specs, 2).message_bytes
        carried = [
            [HEADER.unpack_from(record) for record in records([data])]
            for data in streams
            if len(data) >= HEADER.size and HEADER.unpack_from(data)[0::3][:2] == (1, hop)
        ]
        assert len(carried) == 1, f"hop {hop}"
        assert [fields[5] for fields in carried[0]] == list(range(FRAMES + 1))
        assert {fields[6] for fields in carried[0][:-1]} == {size}


def test_frames_weights_and_keys_are_nowhere_the_host_can_look(
    canary: tuple[Model, Rig], temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Owner, host and workers on machines of their own, and a tap on the switch between them."""
    reason = why_no_namespaces()
    if reason is not None:
        pytest.skip(reason)
    model, rig = canary
    monkeypatch.setattr("vaultline.owner.deployment.HostLink", ListeningLink)
    monkeypatch.setattr(ListeningLink, "heard", [], raising=False)
    with Network(("owner", "box0", "box1")) as network:
        places = {
            box: Place(bind=network.address[box], netns=network.netns[box])
            for box in ("box0", "box1")
        }
        settings = SessionSettings(transport="tcp", result_bind=network.address["owner"])
        with Tap(network) as tap:
            look = network.call(
                "owner", lambda: watched_run(rig, [temporary, tmp_path], settings, places)
            )
    look.lines = ListeningLink.heard
    check_look(look, model)
    assert tap.dropped == 0
    assert found_in([tap.raw], look.needles) == set()
    streams = tap.streams()
    check_wire(streams.values(), rig, look.needles)
    # Evidence goes in clear, so the tap sees what there is to see.
    assert sum(b"-----BEGIN CERTIFICATE-----" in data for data in streams.values()) == 2


def released_needles(folder: Path) -> Needles:
    """What the policy below lets the accelerator see: the first product of each frame."""
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    before = saved_model(folder, nodes, weights=1)
    needles = {}
    for number, image in enumerate(images()):
        (tensor,) = run_plain(before, {"x": image})["y"]
        start = np.flatnonzero(tensor)[0]  # memory is full of zeros
        needles[f"released {number}"] = tensor[start:].tobytes()[:NEEDLE_BYTES]
    return needles


def test_an_accelerators_memory_holds_what_is_released_and_nothing_else(tmp_path: Path) -> None:
    """Enclave, accelerator, enclave: neither frames nor results, no other stage's weights or keys,
    no secret of a hop that is not its own. The enclaves' memories show what there is to find."""
    if os.geteuid() != 0:
        pytest.skip("reading a hardened worker's memory takes root")
    model = chain_model(tmp_path)
    plan = on_accelerators(cut_plan(model, [2, 4]), [1])
    allowed = disclosure(model, {2: 0.2, 4: 0.1}, 0.3, "2:4")
    rig = make_rig(model, plan, tmp_path, disclosure=allowed)
    go_on = threading.Event()

    def frames() -> Iterator[OwnerFrame]:
        for number, image in enumerate(images()):
            if number == LOOK_AT + 2:
                go_on.wait()
            yield OwnerFrame(number, float(number), [image])

    results, here = [], []
    with rig.session() as session:
        needles = frame_needles() | key_needles(rig, session) | released_needles(tmp_path)
        for stage in range(3):
            needles |= weight_needles(stage)
        for result in session.stream(frames()):
            results.append(result)
            needles[f"result {result.index}"] = result.outputs["y"].tobytes()[:NEEDLE_BYTES]
            if result.index == LOOK_AT:
                try:
                    assert session.endpoints is not None
                    here = [found_in(memory(pid), needles) for pid in session.endpoints.pids]
                finally:
                    go_on.set()
    check_results(model, results)
    its_own = re.compile("w1 |key of stage 1|(key|secret) of hop [12]|released")
    assert {name for name in here[1] if not its_own.match(name)} == set()
    for stage, kind in enumerate(("frame", "released", "result")):
        assert any(name.startswith(kind) for name in here[stage]), here[stage]
        assert any(name.startswith(f"w{stage} ") for name in here[stage]), here[stage]


def test_the_tap_would_see_a_frame_in_clear() -> None:
    reason = why_no_namespaces()
    if reason is not None:
        pytest.skip(reason)
    import socket

    with Network(("owner", "box0")) as network, Tap(network) as tap:

        def receive() -> socket.socket:
            return socket.create_server((network.address["box0"], 0))

        with network.call("box0", receive) as server:

            def send() -> None:
                with socket.create_connection(server.getsockname()) as sock:
                    sock.sendall(b"".join(image.tobytes() for image in images()))

            network.call("owner", send)
            with server.accept()[0] as sock:
                while sock.recv(1 << 16):
                    pass
    assert found_in(tap.streams().values(), frame_needles()) == set(frame_needles())


def test_unix_sockets_carry_no_frame_weight_or_key(
    canary: tuple[Model, Rig], temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without root: the host reads along on every socket. Its memory is this test's own, which
    knows the frames, so only the bytes that it was given to carry are searched."""
    model, rig = canary
    middle = Middle()
    monkeypatch.setattr(
        "vaultline.owner.deployment.HostLink", lambda request: MiddleLink(request, middle)
    )
    with rig.session() as session:
        needles = frame_needles() | weight_needles(0) | weight_needles(1)
        needles |= key_needles(rig, session)
        sent = [OwnerFrame(n, float(n), [image]) for n, image in enumerate(images())]
        results = list(session.stream(sent))
    check_results(model, results)
    needles |= {f"result {r.index}": r.outputs["y"].tobytes()[:NEEDLE_BYTES] for r in results}
    wires = [*middle.hops, *middle.controls]
    streams = [bytes(way) for wire in wires for way in (wire.there, wire.back)]
    check_wire(streams, rig, needles)
    assert sum(b"-----BEGIN CERTIFICATE-----" in data for data in streams) == 2
    assert hidden_in(files_under(temporary, tmp_path), needles) == set()
