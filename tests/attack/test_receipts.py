"""Receipts against a host that loses, edits, repeats or invents the links that it carries."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vaultline.attest.receipts import ReceiptRequest, verify_receipt
from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import Rig, make_rig
from vaultline.cli.running import RunRequest, RunSummary, Trust, run_video
from vaultline.core.control import LinkLine
from vaultline.core.hostline import HostLine
from vaultline.graph.model import load_model
from vaultline.owner import deployment
from vaultline.owner.appraisal import load_policy
from vaultline.owner.hostlink import HostLink
from vaultline.owner.receipts import load_receipt
from vaultline.video.preprocess import Preprocessor, load_preprocessing
from vaultline.video.sinks import JsonLinesSink
from vaultline.video.sources import open_source

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
FRAMES = 10
Deed = Callable[[int, str], Iterable[str]]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    model = load_model(DIGITS / "digits.onnx")
    return make_rig(model, cut_plan(model, [23]), tmp_path_factory.mktemp("sealed"))


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="vlt") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


def hostile(deed: Deed) -> type[HostLink]:
    """The line to a host that does this to its n-th link."""

    class Link(HostLink):
        count = 0
        waiting: tuple[HostLine, ...] = ()

        def poll(self, timeout_s: float) -> HostLine | None:
            if not self.waiting:
                line = super().poll(timeout_s)
                if not isinstance(line, LinkLine):
                    return line
                self.waiting = tuple(LinkLine(link=t) for t in deed(self.count, line.link))
                self.count += 1
            first, self.waiting = next(iter(self.waiting), None), self.waiting[1:]
            return first

    return Link


def altered(text: str) -> str:
    middle = len(text) // 2
    return text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]


def run(rig: Rig, folder: Path, policy: Path | None = None) -> RunSummary:
    accepted = policy or rig.trust["policy"]
    trust = Trust(policy=accepted, collateral=None, platform=None, allow_simulated=True)
    request = RunRequest(
        plan=rig.plan,
        vault=rig.vault,
        keys=rig.keys,
        trust=trust,
        receipts=folder / "receipt",
        frames_per_link=3,
    )
    how = load_preprocessing(DIGITS / "digits.preprocess.yaml")
    preprocessor = Preprocessor(how, rig.plan.stages[0].inputs[0])
    with (
        open_source(str(DIGITS / "digits.mp4"), limit=FRAMES) as source,
        JsonLinesSink(folder / "lines") as sink,
    ):
        return run_video(request, source, preprocessor, sink)


def verdict(rig: Rig, folder: Path, **changes: Any) -> list[str]:
    receipt = load_receipt(folder / "receipt")
    fields: dict[str, Any] = {
        "plan": receipt.plan,
        "record": receipt.record,
        "links": receipt.links,
        "policies": (load_policy(rig.trust["policy"]),),
        "allow_simulated": True,
        "secret": receipt.secret,
    }
    return [each.code for each in verify_receipt(ReceiptRequest(**fields | changes)).refusals]


UNSAFE = "  - kind: simulated\n    unsafe_any_advisory: true\n"
#: Case -> (what the host does to its n-th link, links refused on arrival, refusals).
DEEDS: dict[str, tuple[Deed, int, set[str]]] = {
    "is honest": (lambda n, text: [text], 0, set()),
    "loses one": (lambda n, text: [] if n == 2 else [text], 0, {"LinkMissing"}),
    "loses all": (lambda n, text: [], 0, {"StreamUnfinished"}),
    "edits one": (lambda n, text: [altered(text) if n == 2 else text], 1, {"LinkMissing"}),
    "repeats each, and adds its own": (lambda n, text: [text, text, "eyJh.e30.AA", "x"], 16, set()),
}


@pytest.mark.parametrize("case", DEEDS)
def test_the_host(case: str, rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results come whatever it does: links are beside the frames. The receipt says what lacks."""
    deed, refused, codes = DEEDS[case]
    monkeypatch.setattr(deployment, "HostLink", hostile(deed))
    summary = run(rig, tmp_path)
    assert summary.frames_out == FRAMES
    assert summary.links_refused == refused
    # Ten frames in links of three: four of each stage, of which the third to come is no last one.
    assert set(verdict(rig, tmp_path)) == codes


def test_each_line_of_an_unsafe_policy_says_so(rig: Rig, tmp_path: Path) -> None:
    policy = rig.trust["policy"].with_name("unsafe.yaml")
    text = rig.trust["policy"].read_text()
    policy.write_text(text.replace("  - kind: simulated\n", UNSAFE, 1))
    summary = run(rig, tmp_path, policy)
    assert summary.unsafe == ["unsafe_any_advisory"]
    lines = (tmp_path / "lines").read_text().splitlines()
    assert len(lines) == FRAMES
    assert all("UNSAFE policy: unsafe_any_advisory" in json.loads(x)["attested"] for x in lines)


def test_links_of_two_runs_do_not_make_one_receipt(rig: Rig, tmp_path: Path) -> None:
    """Every run has new keys, so that a host cannot put an older run's links in their place."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(rig, tmp_path / name)
    older = load_receipt(tmp_path / "one" / "receipt")
    assert verdict(rig, tmp_path / "two") == []
    assert set(verdict(rig, tmp_path / "two", links=older.links)) == {"LinkAltered"}


def test_no_secret_of_a_receipt_is_in_what_the_host_carries(rig: Rig, tmp_path: Path) -> None:
    run(rig, tmp_path)
    folder = tmp_path / "receipt"
    assert (folder / "secret.json").stat().st_mode & 0o777 == 0o600
    secret = load_receipt(folder).secret or b""
    assert len(secret) == 32
    public = b"".join((folder / n).read_bytes() for n in ("links.jws", "receipt.json", "plan.json"))
    assert base64.b64encode(secret).rstrip(b"=") not in public
    assert secret.hex().encode() not in public
