"""A development platform, an owner's policy for it, and evidence made to order."""

from __future__ import annotations

import datetime
import hashlib
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.grant import GrantKey
from vaultline.attest.policy import Accepted, Policy, root_key_id
from vaultline.attest.stage_grant import Grant
from vaultline.enclave.evidence import answer, fresh_key
from vaultline.enclave.pinned_quotes import PinnedProvider
from vaultline.enclave.simulated_quotes import SimulatedProvider
from vaultline.owner.devroot import DevRoot, make_devroot
from vaultline.testing.certificates import new_key

MEASUREMENT = hashlib.sha256(b"the worker's code").digest()
ISSUED = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
#: A day after the development root was made.
NOW_S = int(ISSUED.timestamp()) + 86_400


@cache
def devroot(name: str = "a", tcb_status: str = "UpToDate") -> DevRoot:
    """A development root; another name is another root.

    Its keys are the same in every process, so that inputs kept by fuzzers stay what they were.
    """
    keys = partial(_fixed_key, f"{name} {tcb_status}")
    return make_devroot(ISSUED, tcb_status=tcb_status, new_key=keys)


def _fixed_key(prefix: str, role: str) -> ec.EllipticCurvePrivateKey:
    key = new_key(f"{prefix} {role}")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(role)
    return key


def challenge(**changes: Any) -> Challenge:
    """A fixed challenge, with changes."""
    base = Challenge(
        nonce=bytes(range(32)),
        deployment=b"deployment------",
        epoch=7,
        stage=1,
        plan_digest=hashlib.sha256(b"the plan").digest(),
    )
    return msgspec.structs.replace(base, **changes)


def policy(root: DevRoot | None = None, **changes: Any) -> Policy:
    """Accepts simulated enclaves of `MEASUREMENT` under a root, with changes to the entry."""
    certificate = x509.load_pem_x509_certificate((root or devroot()).root_pem)
    fields = {
        "kind": "simulated",
        "roots": (root_key_id(certificate),),
        "measurements": (MEASUREMENT.hex(),),
    }
    return Policy(version=1, accept=(Accepted(**fields | changes),))


def evidence(
    asked: Challenge | None = None,
    *,
    key: GrantKey | None = None,
    root: DevRoot | None = None,
    measurement: bytes = MEASUREMENT,
) -> Evidence:
    """What a simulated enclave answers."""
    provider = SimulatedProvider((root or devroot()).platform, measurement)
    return answer(provider, asked or challenge(), key or fresh_key())


def pinned_evidence(asked: Challenge, key: GrantKey, accelerator: bytes) -> Evidence:
    """What the accelerator with this key file answers."""
    return answer(PinnedProvider(accelerator), asked, key)


def grant(asked: Challenge | None = None, **changes: Any) -> Grant:
    """A grant that answers a challenge, with changes; its secrets are not secret."""
    asked = asked or challenge()
    base = Grant(
        stage=asked.stage,
        epoch=asked.epoch,
        deployment=asked.deployment,
        plan_digest=asked.plan_digest,
        stage_key=b"k" * 32,
        section_digest=b"d" * 32,
        section_offset=0,
        section_bytes=480,
        program_bytes=400,
        vault_id=b"v" * 16,
        model_id=b"m" * 16,
        hop_in_secret=b"i" * 32,
        hop_out_secret=b"o" * 32,
    )
    return msgspec.structs.replace(base, **changes)


def recorded(name: str, start: Path) -> bytes | None:
    """Recorded evidence by file name, from ``shared/data/attestation`` beside a parent folder."""
    for folder in start.resolve().parents:
        path = folder / "shared" / "data" / "attestation" / name
        if path.is_file():
            return path.read_bytes()
    return None
