"""Cores of every process that a host has: they hold no frame, result, weight or key.

The processes are stopped with work in their hands, so that nothing is gone by the time they are
looked at. Each search is shown to find what there is: what was planted in the host on purpose, the
ciphertext that waits there, and the same canaries in the worker's memory and in the owner's.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from canary_models import canary_file, canary_model

from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import Rig, make_rig
from vaultline.channel.requests import RequestSealer
from vaultline.core.errors import VaultlineError
from vaultline.graph.structure import Model
from vaultline.owner.frames import OwnerFrame
from vaultline.owner.keyfile import load_kek
from vaultline.owner.prepare import prepare
from vaultline.owner.session import Session
from vaultline.serve import server_link
from vaultline.serve.cluster import ServerSpec
from vaultline.serve.fleet import GatewaySettings
from vaultline.serve.gateway import Gateway
from vaultline.serve.prepared import Prepared, load_prepared
from vaultline.serve.server_link import ServerLink
from vaultline.testing.canaries import (
    NEEDLE_BYTES,
    WIDTH,
    Needles,
    abort,
    files_under,
    found_in,
    freeze,
    hidden_in,
    memory,
    open_files,
    pattern,
    shared_memory,
    texts,
    why_no_cores,
    windows,
)
from vaultline.testing.deployment import family
from vaultline.testing.servermodels import Trust

REQUESTS = 400
ANSWERED = 20
FRAMES = 2 * ANSWERED
SILENCE_S = 60.0
VARIABLE = "VAULTLINE_PLANTED"
#: No zero byte, so that it can stand in an environment; the host never looks at it.
PLANTED = bytes(1 + byte % 255 for byte in np.random.default_rng(5).bytes(NEEDLE_BYTES))

pytestmark = pytest.mark.skipif(why_no_cores() is not None, reason=str(why_no_cores()))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where all processes run, and so leave their cores; with something planted in each host."""
    monkeypatch.setitem(os.environb, VARIABLE.encode(), PLANTED)
    (cores := tmp_path / "cores").mkdir()
    monkeypatch.chdir(cores)
    with tempfile.TemporaryDirectory(prefix="vlt") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        monkeypatch.setenv("TMPDIR", short)
        yield cores


def image(number: int) -> np.ndarray:
    return pattern(1000 + number, 1, WIDTH)


def frames(count: int) -> Needles:
    return {f"frame {n}": image(n).tobytes()[:NEEDLE_BYTES] for n in range(count)}


def weights() -> Needles:
    return windows("w0", pattern(0, WIDTH, WIDTH)) | windows("w1", pattern(1, WIDTH, WIDTH))


def kinds(found: set[str]) -> set[str]:
    return {name.split()[0] for name in found}


def check_host(core: Path, host_pid: int, needles: Needles, known: Needles) -> None:
    """Of the core and, before, of all that is mapped."""
    places = (("memory", memory(host_pid)), ("core", None))
    for place, pieces in places:
        if pieces is None:
            (made,) = abort(host_pid, core)
            pieces = iter([made.read_bytes()])
            made.unlink()
        found = found_in(pieces, needles | known)
        assert found - known.keys() == set(), place
        assert kinds(found) == kinds(set(known)), place


# --- A run's host --------------------------------------------------------------------------------


def run_needles(rig: Rig, session: Session) -> Needles:
    needles = frames(FRAMES) | weights() | texts("model key", rig.keys.model_key)
    for stage, secrets in enumerate(session._deployment._secrets):
        needles |= texts(f"key of stage {stage}", secrets.access.stage_key)
        needles |= texts(f"secret of hop {stage}", secrets.hop_in_secret)
        needles |= texts(f"secret of hop {stage + 1}", secrets.hop_out_secret)
    return needles


def held_frames(looked: threading.Event) -> Iterator[OwnerFrame]:
    """Two more than are answered, the last ones once everybody was looked at."""
    for number in range(FRAMES):
        if number == ANSWERED + 2:
            looked.wait(SILENCE_S)
        yield OwnerFrame(number, float(number), [image(number)])


def look_at_run(
    host: int, workers: tuple[int, ...], needles: Needles, known: Needles, folder: Path
) -> None:
    if os.geteuid() == 0:
        in_workers = [kinds(found_in(memory(pid), needles)) for pid in workers]
        assert {"frame", "w0", "key", "secret"} <= in_workers[0]
        assert {"result", "w1", "key", "secret"} <= in_workers[1]
    for pid in workers:
        assert abort(pid, folder) == [], "a worker left a core"
    check_host(folder, host, needles, known)


@pytest.mark.full  # `test_canary` reads the same host's memory by default
def test_cores_of_a_run_s_host_hold_nothing_and_its_workers_leave_none(
    folder: Path, tmp_path: Path
) -> None:
    model: Model = canary_model(tmp_path)
    rig = make_rig(model, cut_plan(model, [2]), tmp_path)
    results: list[bytes] = []
    looked = threading.Event()
    with pytest.raises(VaultlineError), rig.session() as session:
        assert session.endpoints is not None
        host, workers = session.host_pid, session.endpoints.pids
        assert {each.pid for each in family(host)} == {host, *workers}
        needles = run_needles(rig, session)
        for result in session.stream(held_frames(looked)):
            results.append(result.outputs["y"].tobytes()[:NEEDLE_BYTES])
            if len(results) == ANSWERED:
                needles |= {f"result {n}": data for n, data in enumerate(results)}
                freeze(host)
                known = {"planted": PLANTED, "vault": str(rig.vault).encode()}
                try:
                    look_at_run(host, workers, needles, known, folder)
                finally:
                    looked.set()
    assert {"frame", "result"} <= kinds(found_in(memory(os.getpid()), needles))
    assert hidden_in(files_under(tmp_path), needles) == set()


# --- A server's host -----------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Prepared:
    (models := tmp_path / "models").mkdir()
    path = canary_file(tmp_path)
    kek = load_kek(tmp_path / "kek.jwk", create=True)
    prepare(path, models, kek=kek)
    path.unlink()
    (prepared,) = load_prepared(models, kek)
    return prepared


class NotingSealer(RequestSealer):
    """Writes down what a host gets to see of each request."""

    sealed: dict[int, bytes]

    def seal_into(self, model: int, number: int, message: memoryview, sealed: memoryview) -> None:
        super().seal_into(model, number, message, sealed)
        self.sealed[number] = bytes(sealed[8 : 8 + NEEDLE_BYTES])


def server_needles(served: Prepared, link: ServerLink) -> Needles:
    sealing = served.keys.sealing_for(served.served.plan_digest)
    needles = frames(REQUESTS) | weights() | texts("model key", served.keys.model_key)
    for group in range(len(served.served.groups)):
        key = sealing.access(served.keys.model_key, group).stage_key
        needles |= texts(f"key of group {group}", key)
    return needles | texts("secret of the server", link._grant.secret)


def test_cores_of_a_server_s_host_hold_ciphertext_alone_and_its_worker_leaves_none(
    served: Prepared, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_link, "RequestSealer", NotingSealer)
    monkeypatch.setattr(NotingSealer, "sealed", {}, raising=False)
    trust = Trust.make(tmp_path / "trust")
    cpus = tuple(sorted(os.sched_getaffinity(0)))[:1]
    gateway = Gateway(
        [served],
        [ServerSpec(name="s0", cores=1, memory_bytes=32 << 20, cpus=cpus)],
        "vaultline",
        platform_file=trust.platform,
        appraise=trust.appraiser.appraise_now,
        settings=GatewaySettings(stall_s=SILENCE_S, silence_s=SILENCE_S),
    )
    with gateway:
        link = gateway._fleet["s0"]
        host, worker = link.pids
        assert {each.pid for each in family(host)} == {host, worker}
        needles = server_needles(served, link)
        futures = [gateway.submit("canary", [image(n)]) for n in range(REQUESTS)]
        answers = [each.result(SILENCE_S).outputs["y"].tobytes() for each in futures[:ANSWERED]]
        needles |= {f"answer {n}": data[:NEEDLE_BYTES] for n, data in enumerate(answers)}
        freeze(host)
        opened = open_files(host)
        if os.geteuid() == 0:  # nobody else looks into a hardened worker
            in_worker = kinds(found_in(memory(worker), needles))
            assert {"w0", "w1", "key", "secret"} <= in_worker
            opened |= open_files(worker)
        places = files_under(Path(tempfile.gettempdir()), tmp_path) | shared_memory() | opened
        assert hidden_in(places, needles) == set()
        assert abort(worker, folder) == [], "a worker left a core"
        sealed = {f"sealed {n}": data for n, data in NotingSealer.sealed.items()}
        check_host(folder, host, needles, {"planted": PLANTED} | sealed)
    assert {"frame", "answer", "model"} <= kinds(found_in(memory(os.getpid()), needles))
