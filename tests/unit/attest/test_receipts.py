"""Receipts: what holds, what is refused and by which name, and that gaps are said."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from jwcrypto import jwk, jws
from msgspec.structs import replace

from vaultline.attest.links import Link, frame_digest, sign_link
from vaultline.attest.linkwire import check_signature, read_link
from vaultline.attest.pinned import AcceleratorKey
from vaultline.attest.policy import Accepted, Policy
from vaultline.attest.receipts import verify_receipt
from vaultline.attest.refusals import LinkAltered
from vaultline.bench.cutting import cut_plan
from vaultline.core.errors import InputError
from vaultline.core.plan import Plan
from vaultline.core.serde import canonical_json
from vaultline.graph.model import load_model
from vaultline.testing.attestation import policy
from vaultline.testing.privacy import on_accelerators
from vaultline.testing.receipts import SmallRun

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
FRAMES = 11
ACCELERATOR = AcceleratorKey(version=1, private_key=bytes(range(32)))


@cache
def plan(replicas: tuple[int, ...] = (1, 2, 3)) -> Plan:
    return cut_plan(load_model(DIGITS), [20, 34][: len(replicas) - 1], replicas=replicas)


@cache
def run(**settings: Any) -> SmallRun:
    return SmallRun(plan(), FRAMES, **settings)


def codes(request: Any) -> list[str]:
    return [refusal.code for refusal in verify_receipt(request).refusals]


@pytest.mark.parametrize("replicas", [(1,), (2,), (1, 2, 3), (3, 2, 1), (2, 2)])
@pytest.mark.parametrize("frames", [0, 1, 7, 12])
def test_a_receipt_holds_whatever_the_replicas(replicas: tuple[int, ...], frames: int) -> None:
    made = SmallRun(plan(replicas), frames, frames_per_link=2)
    request = made.request(inputs=made.digests(0), outputs=made.digests(len(replicas)))
    outcome = verify_receipt(request)
    assert (outcome.refusals, outcome.frames, outcome.gaps) == ((), frames, {})
    assert {"frames", "results"} <= {check.name for check in outcome.checks}


def test_the_order_of_links_does_not_matter() -> None:
    links = [text for lines in run().links.values() for text in lines]
    assert codes(run().request(links=links[::-1])) == []


def test_without_the_secret_the_chain_is_still_verified() -> None:
    assert codes(run().request(secret=None)) == []


def relabelled(change: dict[str, Any], place: tuple[int, int] = (1, 0)) -> dict[str, Any]:
    """A link of a worker that says something else, signed by its own key: a lying enclave."""
    made = run()
    links = {key: list(lines) for key, lines in made.links.items()}
    link = replace(read_link(links[place][0]).link, **change)
    links[place][0] = sign_link(link, made.keys[place].ed25519)
    return {"links": [text for lines in links.values() for text in lines]}


def all_links(made: SmallRun) -> list[str]:
    return [text for lines in made.links.values() for text in lines]


def edited(edit: Callable[[list[str]], None]) -> dict[str, Any]:
    links = all_links(run())
    edit(links)
    return {"links": links}


def flip(text: str, part: int) -> str:
    parts = text.split(".")
    data = bytearray(base64.urlsafe_b64decode(parts[part] + "=" * (-len(parts[part]) % 4)))
    data[len(data) // 2] ^= 1
    parts[part] = base64.urlsafe_b64encode(bytes(data)).rstrip(b"=").decode()
    return ".".join(parts)


def swapped_evidence() -> dict[str, Any]:
    """Stage 0's evidence where stage 1's belongs, and the other way round."""
    workers = list(run().record().workers)
    one, two = workers[0], workers[1]
    workers[0] = replace(two, stage=one.stage, replica=one.replica)
    workers[1] = replace(one, stage=two.stage, replica=two.replica)
    return {"record": run().record(workers=tuple(workers))}


def evidence_of(other: SmallRun, *, with_challenge: bool) -> dict[str, Any]:
    """One worker's evidence from another run, with or without the challenge that it answered."""
    workers = list(run().record().workers)
    theirs = other.record().workers[0]
    kept = theirs.challenge if with_challenge else workers[0].challenge
    workers[0] = replace(workers[0], challenge=kept, evidence=theirs.evidence)
    return {"record": run().record(workers=tuple(workers))}


@cache
def other_run(**settings: Any) -> SmallRun:
    return SmallRun(plan(), FRAMES, **settings)


def other_plan_record() -> dict[str, Any]:
    return {"plan": plan((1, 2, 2))}


#: Case -> (changes to the request, what it is refused for).
REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a link whose payload was altered": (
        lambda: edited(lambda links: links.insert(0, flip(links.pop(0), 1))),
        "LinkAltered",
    ),
    "a link whose signature was altered": (
        lambda: edited(lambda links: links.insert(0, flip(links.pop(0), 2))),
        "LinkAltered",
    ),
    "a link with another header": (
        lambda: edited(lambda links: links.insert(0, flip(links.pop(0), 0))),
        "LinkAltered",
    ),
    "a line that is no link": (
        lambda: edited(lambda links: links.append("something else")),
        "LinkAltered",
    ),
    "a link signed by another key": (
        lambda: edited(
            lambda links: links.insert(
                0, sign_link(read_link(links.pop(0)).link, Ed25519PrivateKey.generate())
            )
        ),
        "LinkAltered",
    ),
    "the first link is missing": (lambda: edited(lambda links: links.pop(0)), "LinkMissing"),
    "one in the middle is missing": (lambda: edited(lambda links: links.pop(1)), "LinkMissing"),
    "the last one is missing": (lambda: edited(lambda links: links.pop(2)), "StreamUnfinished"),
    "all of a replica are missing": (
        lambda: {"links": [t for key, ls in run().links.items() if key != (1, 1) for t in ls]},
        "StreamUnfinished",
    ),
    "a link twice": (lambda: edited(lambda links: links.append(links[0])), "LinkRepeated"),
    "a link after the end": (lambda: relabelled({"last": True}, (0, 0)), "LinkRepeated"),
    "evidence of two stages swapped": (swapped_evidence, "EvidenceForAnotherStage"),
    "a stage that signs as another": (
        lambda: relabelled({"stage": 0, "replica": 0}),
        "LinkAltered",
    ),
    "another plan than the receipt's": (other_plan_record, "ReceiptForAnotherPlan"),
    "a link of another plan": (
        lambda: relabelled({"plan_digest": bytes(32)}),
        "ReceiptForAnotherPlan",
    ),
    "a link of another model": (
        lambda: relabelled({"model_digest": bytes(32)}),
        "ReceiptForAnotherModel",
    ),
    "a link of another sealing": (
        lambda: relabelled({"vault_id": bytes(16)}),
        "ReceiptForAnotherModel",
    ),
    "a link of another epoch": (lambda: relabelled({"epoch": 8}), "ReceiptForAnotherRun"),
    "a link of another deployment": (
        lambda: relabelled({"deployment": bytes(16)}),
        "ReceiptForAnotherRun",
    ),
    "a record of another epoch": (
        lambda: {"record": run().record(epoch=8)},
        "ReceiptForAnotherRun",
    ),
    "links of another epoch's run": (
        lambda: {"links": all_links(other_run(epoch=8))},
        "LinkAltered",
    ),
    "evidence of another run's worker": (
        lambda: evidence_of(other_run(number=1), with_challenge=False),
        "ReportDataMismatch",
    ),
    "evidence of another run's worker with its challenge": (
        lambda: evidence_of(other_run(number=1), with_challenge=True),
        "LinkAltered",
    ),
    "evidence of another epoch with its challenge": (
        lambda: evidence_of(other_run(epoch=8), with_challenge=True),
        "ReceiptForAnotherRun",
    ),
    "another secret": (lambda: {"secret": b"x" * 32}, "ReceiptForAnotherSecret"),
    "an enclave with another secret": (
        lambda: {**relabelled({"secret_check": bytes(32)}), "secret": None},
        "ReceiptForAnotherSecret",
    ),
    "a worker without evidence": (
        lambda: {"record": run().record(workers=run().record().workers[1:])},
        "ReceiptIncomplete",
    ),
    "evidence that is none": (
        lambda: {
            "record": run().record(
                workers=(
                    replace(run().record().workers[0], evidence=b"x"),
                    *run().record().workers[1:],
                )
            )
        },
        "ReceiptIncomplete",
    ),
    "a policy for other code": (
        lambda: {"policies": (policy(measurements=("00" * 32,)),)},
        "MeasurementRefused",
    ),
    "one policy of two": (
        lambda: {"policies": (policy(), policy(measurements=("00" * 32,)))},
        "MeasurementRefused",
    ),
    "simulated enclaves without consent": (
        lambda: {"allow_simulated": False},
        "SimulatedNotAllowed",
    ),
    "a time after the collateral": (lambda: {"now_s": 1 << 40}, "CollateralExpired"),
    "an exchanged tensor between stages": (
        lambda: relabelled({"frames": ((bytes(32), bytes(32)),) * 4}),
        "ChainBroken",
    ),
    "other frames": (
        lambda: {"inputs": [*run().digests(0)[:-1], bytes(32)]},
        "FramesDiffer",
    ),
    "frames in another order": (lambda: {"inputs": run().digests(0)[::-1]}, "FramesDiffer"),
    "one frame too few": (lambda: {"inputs": run().digests(0)[:-1]}, "FramesDiffer"),
    "altered results": (
        lambda: {"outputs": [bytes(32), *run().digests(3)[1:]]},
        "ResultsDiffer",
    ),
    "one result too many": (lambda: {"outputs": [*run().digests(3), bytes(32)]}, "ResultsDiffer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    changes, code = REFUSED[case]
    found = codes(run().request(**changes()))
    assert code in found
    assert all(refusal.why and refusal.remedy for refusal in refusals(changes()))


def refusals(changes: dict[str, Any]) -> tuple[Any, ...]:
    return verify_receipt(run().request(**changes)).refusals


def test_two_workers_cannot_share_an_enclave() -> None:
    """Evidence of replica 0 of stage 1 for both replicas: it fits both challenges' places."""
    workers = {(w.stage, w.replica): w for w in run().record().workers}
    workers[1, 1] = replace(workers[1, 0], replica=1)
    request = run().request(record=run().record(workers=tuple(workers.values())))
    assert "ReceiptForAnotherRun" in codes(request)


def test_a_run_that_was_stopped_is_verified_as_far_as_all_stages_signed() -> None:
    made = SmallRun(plan(), FRAMES, frames_per_link=2, end=False)
    assert set(codes(made.request())) == {"StreamUnfinished"}
    outcome = verify_receipt(made.request(partial=True, inputs=made.digests(0)))
    # Replica 2 of three had frames 2, 5 and 8, and has signed the first two.
    assert (outcome.refusals, outcome.frames) == ((), 8)


def test_an_accelerator_is_a_gap_that_is_named() -> None:
    gapped = on_accelerators(plan((1, 1, 1)), (1,))
    made = SmallRun(gapped, FRAMES, accelerator=canonical_json(ACCELERATOR))
    pinned = Accepted(kind="accelerator", public_keys=(ACCELERATOR.public_key.hex(),))
    both = Policy(version=1, accept=(*policy().accept, pinned))
    outcome = verify_receipt(made.request(policies=(both,), inputs=made.digests(0)))
    assert (outcome.refusals, outcome.frames) == ((), FRAMES)
    assert outcome.gaps == {1: tuple(device.name for device in gapped.stages[1].devices)}
    names = [check.name for check in outcome.checks]
    assert not any(name.startswith("stage 0 to") for name in names)
    assert codes(made.request()) == ["KindRefused"]  # a policy without accelerators
    first = on_accelerators(plan((1, 1, 1)), (0,))
    made = SmallRun(first, FRAMES, accelerator=canonical_json(ACCELERATOR))
    request = made.request(policies=(both,), inputs=made.digests(0), outputs=made.digests(3))
    assert codes(request) == ["NotShown"]


def test_a_link_is_a_jws_as_others_read_it() -> None:
    made = run()
    text = made.links[0, 0][0]
    key = made.keys[0, 0].ed25519.public_key().public_bytes_raw()
    x = base64.urlsafe_b64encode(key).rstrip(b"=").decode()
    token = jws.JWS()
    token.deserialize(text)
    token.verify(jwk.JWK(kty="OKP", crv="Ed25519", x=x))
    payload = json.loads(token.payload)
    assert canonical_json(payload) == token.payload
    assert base64.b64decode(payload["plan_digest"]) == made.plan.digest
    assert (payload["stage"], payload["first"], len(payload["frames"])) == (0, 0, 4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(position=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=6))
def test_no_altered_character_of_a_link_verifies(position: int, bit: int) -> None:
    text = run().links[0, 0][0]
    position %= len(text)
    altered = text[:position] + chr(ord(text[position]) ^ 1 << bit) + text[position + 1 :]
    key = run().keys[0, 0].ed25519.public_key().public_bytes_raw()
    with pytest.raises(LinkAltered):
        check_signature(read_link(altered), key)


def test_digests_are_of_the_place_too() -> None:
    one = frame_digest(b"s" * 32, 1, 2, [b"tensor"])
    assert one == frame_digest(b"s" * 32, 1, 2, [b"ten", b"sor"])
    for other in ((b"t" * 32, 1, 2), (b"s" * 32, 2, 2), (b"s" * 32, 1, 3)):
        assert frame_digest(*other, [b"tensor"]) != one


def test_a_link_reads_back() -> None:
    link = read_link(run().links[1, 1][0]).link
    assert isinstance(link, Link)
    assert (link.stage, link.replica, link.first, len(link.frames)) == (1, 1, 1, 4)


def test_unsafe_options_of_every_policy_are_told() -> None:
    policies = (policy(unsafe_any_advisory=True), policy())
    for order in (policies, policies[::-1]):
        outcome = verify_receipt(run().request(policies=order))
        assert not outcome.refusals
        assert {verdict.unsafe for verdict in outcome.verdicts.values()} == {
            ("unsafe_any_advisory",)
        }


def test_a_stopped_run_shows_something_or_is_refused() -> None:
    """Whoever carries links could lose them all, and nothing would be left to fail."""
    assert codes(run().request(links=[], partial=True)) == ["NotShown"]
    one = run().links[0, 0] + run().links[1, 0]
    assert codes(run().request(links=one, partial=True)) == ["NotShown"]


@pytest.mark.parametrize("at_s", [-1, 1 << 40, 1 << 64])
def test_a_receipt_of_no_time_is_none(at_s: int) -> None:
    with pytest.raises(InputError, match="no time"):
        run().record(at_s=at_s)
