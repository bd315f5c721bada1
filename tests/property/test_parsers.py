"""Whatever a file holds, reading it gives a value or an error of ours: never another exception."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.attest.pinned import AcceleratorKey
from vaultline.bench.journal import Journal, JournalKey
from vaultline.bench.measuring import Blocks, Inside, Rates, Round
from vaultline.cli.files import load_cluster
from vaultline.core.errors import VaultlineError
from vaultline.core.leakage import LeakageReport, write_leakage
from vaultline.core.plan import read_plan, write_plan
from vaultline.core.privacy import PrivacyPolicy, parse_privacy
from vaultline.core.profile import read_profile, write_profile
from vaultline.core.serde import canonical_json
from vaultline.owner.accelerator import check_accelerator_key
from vaultline.owner.appraisal import load_policy
from vaultline.owner.disclosure import Disclosure, load_disclosure
from vaultline.owner.keyfile import load_kek, new_keys, read_keyfile, write_keyfile
from vaultline.planner import PlanRequest, plan_request
from vaultline.planner.explain import explain
from vaultline.planner.release import release_of
from vaultline.testing import planning
from vaultline.testing.privacy import RECORDED, cut_leakage
from vaultline.video.preprocess import load_preprocessing

_KEK_TEXT = '{"k":"' + "A" * 43 + '","kid":"k","kty":"oct"}'
_PROFILE = planning.profile(
    [0.1, 0.2, 0.3], crossing_bytes=[64, 128, 64, 8], weight_bytes=4096, passes=((4, 2.0),)
)
_CLUSTER = """\
owner: box
hosts:
  - {name: box, cores: 2, memory: 8GiB}
  - {name: far, cores: 4, memory: 8GiB}
devices:
  - {name: a, host: box, kind: simulated, trust: attested, memory: 93MiB, cores: 1, count: 2}
  - {name: b, host: far, kind: accelerator, trust: none, memory: unlimited, cores: 2}
links:
  - {source: box, target: far, bandwidth: 30Mbit/s, latency: 5ms}
"""
_SITES = """\
owner: door
sites:
  - {name: street}
  - {name: rack, bandwidth: 10Gbit/s, latency: 100us}
hosts:
  - {name: door, site: street, cores: 4, memory: 8GiB}
  - {name: r1, site: rack, cores: 4, memory: 8GiB}
  - {name: r2, site: rack, cores: 4, memory: 8GiB}
devices:
  - {name: a, host: r1, kind: simulated, trust: attested, memory: 93MiB, count: 2}
  - {name: b, host: r2, kind: simulated, trust: attested, memory: 93MiB}
links:
  - {source: street, target: rack, bandwidth: 30Mbit/s, back: 100Mbit/s, latency: 5ms}
  - {source: door, target: rack, bandwidth: 1000000, latency: 0.01, one_way: true}
"""
_POLICY = f"""\
version: 1
accept:
  - kind: simulated
    roots: ["{"ab" * 48}"]
    measurements: ["{"cd" * 32}"]
    tcb_statuses: [UpToDate]
"""
_PRIVACY = """\
version: 1
input: {metric: reconstruction, limit: 0.30}
model: {disclose: ["0:1", "1:3"]}
"""
_PREPROCESSING = """\
input: image
width: 64
height: 48
resize: crop
resize_shorter: 80
color: rgb
scale: 0.0039
mean: [0.5, 0.5, 0.5]
std: [0.25, 0.25, 0.25]
layout: NCHW
dtype: float32
"""


def _private(path: Path) -> Path:
    path.chmod(0o600)
    return path


def _plan_with(profile: Any, cluster: Any) -> None:
    """What reads a profile or cluster is the planner, so values are tried on it too."""
    plan = plan_request(profile, cluster, PlanRequest())
    explain(plan, profile, cluster, PlanRequest())
    read_plan(write_plan(plan))


def _good_cluster(folder: Path) -> Any:
    path = folder / "good.yaml"
    path.write_text(_CLUSTER)
    return load_cluster(path)


def _read_plan(path: Path) -> None:
    """The text as it stands; and, as somebody would who knows the form, once made canonical."""
    data = path.read_bytes()
    with suppress(ValueError, RecursionError):
        data = canonical_json(json.loads(data))
    read_plan(data)


def _read_profile(path: Path) -> None:
    _plan_with(read_profile(path.read_bytes()), _good_cluster(path.parent))


def _read_key(path: Path) -> None:
    kek = path.parent / "kek.jwk"
    kek.write_text(_KEK_TEXT)
    read_keyfile(_private(path), load_kek(_private(kek)))


_REPORT = LeakageReport(
    model_name="chain",
    model_digest=_PROFILE.model_digest,
    images_digest="cd" * 32,
    images=4,
    decoder="ridge",
    recorded_on=RECORDED,
    positions=(0, 1, 2, 3),
    cuts=tuple(cut_leakage(at, [f"t{at}"], 0.4 - at / 10) for at in range(4)),
)


def _plan_released(policy: PrivacyPolicy, report: LeakageReport, folder: Path) -> None:
    """What reads a policy and a report is the planner, and then the owner's own check."""
    release = release_of(_PROFILE, policy, report)
    plan = plan_request(_PROFILE, _good_cluster(folder), PlanRequest(release=release))
    Disclosure(policy=policy, report=report).check(plan)


def _read_privacy(path: Path) -> None:
    _plan_released(load_disclosure(path, None).policy, _REPORT, path.parent)


def _read_leakage(path: Path) -> None:
    report = load_disclosure(None, path).report
    assert report is not None
    _plan_released(parse_privacy(_PRIVACY, "privacy.yaml"), report, path.parent)


def _accelerator_text(_: Path) -> bytes:
    return canonical_json(AcceleratorKey(version=1, private_key=bytes(range(32))))


def _plan_text(folder: Path) -> bytes:
    cluster = _good_cluster(folder)
    return write_plan(plan_request(_PROFILE, cluster, PlanRequest(stages=2)))


def _key_text(_: Path) -> bytes:
    """One for all examples: every key file is another."""
    return _key_text_once()


@cache
def _key_text_once() -> bytes:
    with TemporaryDirectory() as name:
        kek, key = Path(name) / "kek.jwk", Path(name) / "key"
        kek.write_text(_KEK_TEXT)
        write_keyfile(key, new_keys(), load_kek(_private(kek)))
        return key.read_bytes()


_KEY = JournalKey(
    vaultline_version="1",
    model_digest="ab" * 32,
    positions=(0, 3, 7),
    engine_version="1",
    isa="portable",
    host="h",
    cpu="c",
    core=0,
    neighbours=0,
    device_class="simulated",
    settings="{}",
)


def _read_journal(path: Path) -> None:
    target = path.parent / "p.json"
    path.rename(path.parent / "p.json.partial")
    with Journal(target, _KEY) as journal:
        for part in (*journal.parts.rounds[1], *journal.parts.rounds[4]):
            assert all(0 <= seconds < 1e10 for seconds in part)


def _journal(_: Path) -> bytes:
    block = _PROFILE.blocks[0]
    blocks = Blocks(engine_version="1", isa="portable", blocks=(block, block), stacked=(1,))
    parts = (
        blocks,
        Round(frames=1, seconds=(0.3, 0.1, 0.2)),
        Round(frames=4, seconds=(0.25,)),
        Inside(seconds=(0.1, 0.15)),
        Rates(device=_PROFILE.rates, loopback=_PROFILE.loopback),
    )
    return b"".join(canonical_json(line) + b"\n" for line in (_KEY, *parts))


#: File -> (a good one's text, the reader).
PARSERS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], object]]] = {
    "plan": (_plan_text, _read_plan),
    "profile": (lambda _: write_profile(_PROFILE), _read_profile),
    "cluster": (
        lambda _: _CLUSTER.encode(),
        lambda path: _plan_with(_PROFILE, load_cluster(path)),
    ),
    "cluster with sites": (
        lambda _: _SITES.encode(),
        lambda path: _plan_with(_PROFILE, load_cluster(path)),
    ),
    "journal of a profile": (_journal, _read_journal),
    "policy": (lambda _: _POLICY.encode(), load_policy),
    "privacy policy": (lambda _: _PRIVACY.encode(), _read_privacy),
    "leakage report": (lambda _: write_leakage(_REPORT), _read_leakage),
    "accelerator's key": (_accelerator_text, lambda path: check_accelerator_key(_private(path))),
    "preprocessing": (lambda _: _PREPROCESSING.encode(), load_preprocessing),
    "key file": (_key_text, _read_key),
    "key-encryption key": (
        lambda _: _KEK_TEXT.encode(),
        lambda path: load_kek(_private(path)),
    ),
}
_NUMBER = re.compile(rb'(?<![\w".])-?\d+(\.\d+)?([eE]-?\d+)?(?![\w.])')
_VALUES = st.sampled_from(
    [
        "-1",
        "0",
        "1e400",
        "1e308",
        "5e-324",
        "99999999999999999999999",
        "9223372036854775807",
        "-0.0",
        "null",
        "NaN",
        ".nan",
        ".inf",
        "true",
        '""',
        "[]",
        "{}",
        "0.5",
        "[[1]]",
        "4096",
    ]
).map(str.encode)


def test_the_good_files_are_read(tmp_path: Path) -> None:
    for make, read in PARSERS.values():
        path = tmp_path / "file"
        path.write_bytes(make(tmp_path))
        read(path)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data())
def test_only_errors_of_ours_come_out_of(name: str, data: st.DataObject) -> None:
    make, read = PARSERS[name]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(_mutated(make(Path(folder)), data))
        try:
            read(path)
        except VaultlineError as error:
            assert error.exit_code in (1, 2, 3)


def _mutated(text: bytes, data: st.DataObject) -> bytes:
    """Noise, a cut, flipped bits, a removed part, or a number replaced by one that is unusual."""
    kind = data.draw(st.sampled_from(["noise", "cut", "flip", "gap", "number", "number"]))
    place = data.draw(st.integers(0, len(text) - 1))
    if kind == "noise":
        return data.draw(st.binary(max_size=200))
    if kind == "cut":
        return text[:place]
    if kind == "gap":
        return text[:place] + text[place + data.draw(st.integers(1, 40)) :]
    if kind == "flip":
        flipped = bytearray(text)
        flipped[place] ^= 1 << data.draw(st.integers(0, 7))
        return bytes(flipped)
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return text[::-1]
    match = data.draw(st.sampled_from(matches))
    return text[: match.start()] + data.draw(_VALUES) + text[match.end() :]
