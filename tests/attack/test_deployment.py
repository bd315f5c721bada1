"""Attacks on whole deployments with real workers: each is refused by name, and nothing wrong,
repeated or left out ever reaches the sink."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vaultline.attest.refusals import MeasurementRefused
from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import Rig, make_rig
from vaultline.core.errors import VaultlineError
from vaultline.core.frames import FrameLayout
from vaultline.core.plan import Plan
from vaultline.graph.engine import run_plain
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.owner.deploy import compile_stages
from vaultline.owner.devroot import draft_policy
from vaultline.owner.frames import OwnerFrame, ResultFrame
from vaultline.owner.hostlink import WorkerLostError
from vaultline.owner.seal import seal_vault
from vaultline.owner.session import ResultsStalledError, Session, SessionSettings
from vaultline.testing.deployment import Files, run_command, write_files
from vaultline.testing.middle import Attack, Middle, MiddleLink, records
from vaultline.transport.sockets import ConnectionLostError

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
FRAMES = 8
STRUCK = 3


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(DIGITS / "digits.onnx")


@pytest.fixture(scope="module")
def rig(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return make_rig(model, cut_plan(model, [23]), tmp_path_factory.mktemp("sealed"))


@pytest.fixture(scope="module")
def files(rig: Rig) -> Files:
    return write_files(rig, rig.vault.parent)


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the run's sockets lie; short, since the path of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vlt") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
        assert sorted(Path(folder).rglob("*")) == []


def run_cli(
    files: Files, sink: Path, *, simulated: bool = True, **changes: Path
) -> tuple[int, str]:
    """Exit code and standard error of ``vaultline run`` on the example video."""
    command = run_command(
        files,
        source=str(DIGITS / "digits.mp4"),
        sink=sink,
        preprocess=DIGITS / "digits.preprocess.yaml",
        **changes,
    )
    if not simulated:
        command.remove("--allow-simulated")
    done = subprocess.run([*command, "--limit", "20"], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


# --- Evidence and policies -----------------------------------------------------------------------


def other_code(files: Files, folder: Path) -> dict[str, Path]:
    """A policy for other code than the workers'."""
    policy = folder / "policy.yaml"
    trust = files.policy.parent
    policy.write_text(draft_policy(trust, [bytes(range(32))]))
    return {
        "policy": policy,
        "collateral": trust / "collateral.json",
        "platform": trust / "platform.json",
    }


def test_changed_code_is_refused_and_no_key_is_released(files: Files, tmp_path: Path) -> None:
    code, errors = run_cli(files, tmp_path / "sink.jsonl", **other_code(files, tmp_path))
    assert code == 1, errors
    assert "measurement" in errors
    assert (tmp_path / "sink.jsonl").read_bytes() == b""


def test_changed_code_gets_no_grant(
    rig: Rig, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the worker ever hears is a challenge."""
    middle = Middle()
    monkeypatch.setattr(
        "vaultline.owner.deployment.HostLink", lambda request: MiddleLink(request, middle)
    )
    trust = rig.trust | {"policy": other_code(files, tmp_path)["policy"]}
    other = Rig(plan=rig.plan, vault=rig.vault, keys=rig.keys, trust=trust)
    with pytest.raises(MeasurementRefused), other.session():
        pass
    heard = bytes(middle.controls[0].there)
    assert int.from_bytes(heard[:4], "big") == len(heard) - 4, "one message"
    assert b"challenge" in heard
    assert b"grant" not in heard
    assert bytes(middle.controls[1].there) == b""


def test_simulated_enclaves_are_refused_unless_allowed(files: Files, tmp_path: Path) -> None:
    code, errors = run_cli(files, tmp_path / "sink.jsonl", simulated=False)
    assert code == 1, errors
    assert "simulated" in errors
    assert (tmp_path / "sink.jsonl").read_bytes() == b""


# --- Vaults that the host has touched between seal and run ---------------------------------------


def resealed(rig: Rig, model: Model, plan: Plan, folder: Path) -> bytes:
    """A sealing under the same model key."""
    seal_vault(
        folder / "other.vault",
        compile_stages(model, plan),
        model_key=rig.keys.model_key,
        plan_digest=plan.digest,
        model_digest=plan.model_digest,
    )
    return (folder / "other.vault").read_bytes()


def of_another_plan(rig: Rig, model: Model, folder: Path) -> bytes:
    return resealed(rig, model, cut_plan(model, [30]), folder)


def older(rig: Rig, model: Model, folder: Path) -> bytes:
    return resealed(rig, model, rig.plan, folder)


def under_another_key(rig: Rig, model: Model, folder: Path) -> bytes:
    return make_rig(model, rig.plan, folder, rig.trust).vault.read_bytes()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


#: Case -> (what the host puts in the vault's place, words of the refusal).
VAULTS: dict[str, tuple[Callable[[Rig, Model, Path], bytes], str]] = {
    "of another plan": (of_another_plan, "plan"),
    "of an older sealing": (older, "sealed at another time"),
    "of another model": (under_another_key, "another model's key"),
    "truncated by a byte": (lambda rig, *_: rig.vault.read_bytes()[:-1], "vault"),
    "truncated to half": (
        lambda rig, *_: rig.vault.read_bytes()[: rig.vault.stat().st_size // 2],
        "vault",
    ),
    "empty": (lambda *_: b"", "vault"),
    "with a bit flipped in its header": (lambda rig, *_: flipped(rig.vault.read_bytes(), 40), ""),
    "with a bit flipped in its last tag": (
        lambda rig, *_: flipped(rig.vault.read_bytes(), rig.vault.stat().st_size - 1),
        "altered",
    ),
    "with more at its end": (lambda rig, *_: rig.vault.read_bytes() + b"\0", "after its end"),
}


@pytest.mark.parametrize("case", VAULTS)
def test_a_vault_that_was_touched_is_refused(
    case: str, rig: Rig, files: Files, model: Model, tmp_path: Path
) -> None:
    make, words = VAULTS[case]
    (tmp_path / "vaults").mkdir()
    vault = tmp_path / "host.vault"
    vault.write_bytes(make(rig, model, tmp_path / "vaults"))
    code, errors = run_cli(files, tmp_path / "sink.jsonl", vault=vault)
    assert code == 1, errors
    assert words in errors
    assert "bug" not in errors
    assert (tmp_path / "sink.jsonl").read_bytes() == b""


def test_an_altered_weight_is_found_by_the_enclave(rig: Rig, files: Files, tmp_path: Path) -> None:
    """The owner reads headers and tags; ciphertext is the enclave's to check, at load."""
    vault = tmp_path / "host.vault"
    shutil.copy(rig.vault, vault)
    vault.write_bytes(flipped(vault.read_bytes(), vault.stat().st_size - 1000))
    code, errors = run_cli(files, tmp_path / "sink.jsonl", vault=vault)
    assert code == 1, errors
    assert "VaultTamperedError" in errors
    assert (tmp_path / "sink.jsonl").read_bytes() == b""


# --- A man in the middle of a hop ----------------------------------------------------------------


def frames(model: Model) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal(model.inputs[0].shape, np.float32) for _ in range(FRAMES)]


def at_struck(change: Callable[[bytes], list[bytes]]) -> Attack:
    """An attack on one record, the others pass."""

    def attack(wire: Iterator[bytes]) -> Iterator[bytes]:
        for number, record in enumerate(wire):
            yield from change(record) if number == STRUCK else [record]

    return attack


def swap(wire: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for number, record in enumerate(wire):
        if number == STRUCK:
            held = record
        else:
            yield record
            if held:
                yield held
                held = b""


def cut(wire: Iterator[bytes]) -> Iterator[bytes]:
    for _ in range(STRUCK):
        yield next(wire)


def cut_before_the_end(wire: Iterator[bytes]) -> Iterator[bytes]:
    for _ in range(FRAMES):
        yield next(wire)


def first_as_struck(wire: Iterator[bytes]) -> Iterator[bytes]:
    first = b""
    for number, record in enumerate(wire):
        first = first or record
        yield first if number == STRUCK else record


#: Case -> (what the host does to a hop, names of which one must be the cause).
ATTACKS: dict[str, tuple[Attack, str]] = {
    "a byte of a frame is flipped": (
        at_struck(lambda record: [flipped(record, len(record) // 2)]),
        "RecordTamperedError",
    ),
    "a tag is flipped": (
        at_struck(lambda record: [flipped(record, len(record) - 1)]),
        "RecordTamperedError",
    ),
    "a sequence number is flipped": (
        at_struck(lambda record: [flipped(record, 23)]),
        "RecordSequenceError",
    ),
    "a record is dropped": (at_struck(lambda record: []), "RecordSequenceError"),
    "a record comes twice": (at_struck(lambda record: [record, record]), "RecordSequenceError"),
    "an old record takes a new one's place": (first_as_struck, "RecordSequenceError"),
    "two records change places": (swap, "RecordSequenceError"),
    "the stream is cut": (cut, "ConnectionLostError"),
    "the stream is cut before its end": (cut_before_the_end, "ConnectionLostError"),
}


def stream(session: Session, images: list[np.ndarray]) -> Iterator[ResultFrame]:
    return session.stream([OwnerFrame(n, float(n), [image]) for n, image in enumerate(images)])


def check_results(model: Model, images: list[np.ndarray], results: list[ResultFrame]) -> None:
    """A beginning of the right results, each right."""
    assert [result.index for result in results] == list(range(len(results)))
    for image, result in zip(images, results, strict=False):
        expected = run_plain(model, {model.inputs[0].name: image})
        for name, reference in expected.items():
            np.testing.assert_allclose(result.outputs[name], reference, rtol=1e-4, atol=1e-4)


def all_names(error: BaseException | None) -> str:
    """Names of an error and its causes, and what workers said theirs were."""
    names = []
    while error is not None:
        names.append(f"{type(error).__name__} {getattr(error, 'got', '')} {error}")
        error = error.__cause__
    return "; ".join(names)


HOPS = [(case, hop) for case in ATTACKS for hop in range(3)]


@pytest.mark.full
@pytest.mark.parametrize(("case", "hop"), HOPS)
def test_every_attack_on_every_hop(
    case: str, hop: int, rig: Rig, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_a_man_in_the_middle_ends_the_run_and_changes_no_result(case, hop, rig, model, monkeypatch)


@pytest.mark.parametrize(("case", "hop"), [(case, n % 3) for n, case in enumerate(ATTACKS)])
def test_a_man_in_the_middle_ends_the_run_and_changes_no_result(
    case: str, hop: int, rig: Rig, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, name = ATTACKS[case]
    middle = Middle({hop: attack})
    monkeypatch.setattr(
        "vaultline.owner.deployment.HostLink", lambda request: MiddleLink(request, middle)
    )
    images, results = frames(model), []
    with pytest.raises(VaultlineError) as caught, rig.session() as session:
        for result in stream(session, images):
            results.append(result)
    assert name in all_names(caught.value)
    assert isinstance(caught.value, WorkerLostError) or hop == 2
    check_results(model, images, results)
    most = {"the stream is cut before its end": FRAMES, "a record comes twice": STRUCK + 1}
    assert len(results) <= most.get(case, STRUCK)


def test_an_honest_middle_changes_nothing(
    rig: Rig, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacks above fail because of what they do, not because somebody is in the middle; and
    a stream recorded in one epoch is worth nothing in the next, to a fresh worker."""
    images = frames(model)
    heard = b""
    for epoch in range(2):
        middle = Middle(prologue=heard)
        monkeypatch.setattr(
            "vaultline.owner.deployment.HostLink",
            lambda request, middle=middle: MiddleLink(request, middle),
        )
        with rig.session() as session:
            results = list(stream(session, images))
        assert len(results) == FRAMES
        check_results(model, images, results)
        assert middle.hops[0].hung_up_on == epoch
        heard = bytes(middle.hops[0].there)
        layout = FrameLayout(rig.plan.stages[0].inputs, 2)
        sizes = [len(record) for record in records([heard])]
        assert len(sizes) == FRAMES + 1
        assert all(size >= layout.message_bytes for size in sizes[:-1])


def test_a_recorded_stream_in_place_of_the_owners_is_refused(
    rig: Rig, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = frames(model)
    first = Middle()
    monkeypatch.setattr(
        "vaultline.owner.deployment.HostLink", lambda request: MiddleLink(request, first)
    )
    with rig.session() as session:
        assert len(list(stream(session, images))) == FRAMES
    old = list(records([bytes(first.hops[0].there)]))

    def replay(wire: Iterator[bytes]) -> Iterator[bytes]:
        for number, _ in enumerate(wire):
            yield old[number]

    second = Middle({0: replay})
    monkeypatch.setattr(
        "vaultline.owner.deployment.HostLink", lambda request: MiddleLink(request, second)
    )
    results = []
    # The enclave waits for one who knows the key; the owner, who has sent all, for a result.
    with (
        pytest.raises(ResultsStalledError),
        rig.session(SessionSettings(stall_s=1.0)) as session,
    ):
        results.extend(stream(session, images))
    assert results == []


def test_an_owner_taken_for_a_stranger_learns_of_it(
    rig: Rig, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very first record is altered: nobody has proven the key, so the enclave hangs up and
    listens on. The owner's broken hop ends the run, long before the wait for a result does."""

    def spoil_first(wire: Iterator[bytes]) -> Iterator[bytes]:
        yield flipped(next(wire), 100)
        yield from wire

    middle = Middle({0: spoil_first})
    monkeypatch.setattr(
        "vaultline.owner.deployment.HostLink", lambda request: MiddleLink(request, middle)
    )
    image = frames(model)[0]
    endless = (OwnerFrame(n, float(n), [image]) for n in itertools.count())
    with (
        pytest.raises(ConnectionLostError, match="hung up"),
        rig.session(SessionSettings(stall_s=600.0)) as session,
    ):
        next(session.stream(endless))
