"""The parsers that are fuzzed: everything that reads a file, or bytes of a peer.

Some stand behind a key. Their inputs are sealed here with the right one, since whoever breaks one
stage or one enclave has it: what authenticates a peer says nothing about what that peer sends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey
from evidence_targets import TARGETS as EVIDENCE_TARGETS
from harness import MIB, Target
from inputs import SCRATCH, from_file
from serving_targets import TARGETS as SERVING_TARGETS

from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.grant import SUITE, GrantKey, open_grant
from vaultline.attest.granting import read_evidence
from vaultline.attest.links import LINK_HEADER, base64url
from vaultline.attest.linkwire import ReceiptRecord, read_link
from vaultline.attest.server_grant import ServedAccess, ServerGrant
from vaultline.attest.sgx_sigstruct import read_sigstruct
from vaultline.attest.stage_grant import Grant
from vaultline.channel.keys import derive_hop_keys
from vaultline.channel.messages import MessageReader, MessageReceived, MessageWriter, StreamEnded
from vaultline.channel.records import OVERHEAD_BYTES, RecordKind, RecordSealer
from vaultline.channel.sections import walk
from vaultline.channel.vaultfile import read_front
from vaultline.core.control import (
    ControlMessage,
    EvidenceMessage,
    LoadedMessage,
    RefusedMessage,
    WireLine,
    WorkerConfig,
    WorkerLine,
)
from vaultline.core.errors import InputError, RefusedError, RemoteProtocolError, VaultlineError
from vaultline.core.frame_meta import FrameMeta, read_meta, read_times, tensor_bytes, write_meta
from vaultline.core.frames import FrameLayout
from vaultline.core.hostline import HostLine
from vaultline.core.plan import read_plan, write_plan
from vaultline.core.privacy import parse_privacy
from vaultline.core.profile import read_profile, write_profile
from vaultline.core.program import StageProgram
from vaultline.core.section import SectionAccess, SectionId
from vaultline.core.serde import canonical_json, from_json, from_msgpack, to_msgpack
from vaultline.core.serving import (
    COMMAND_BYTES_MAX,
    HostCommand,
    InstallCommand,
    RunCommand,
    WorkerReply,
)
from vaultline.core.tensors import TensorSpec
from vaultline.core.yaml import from_yaml
from vaultline.enclave.vault import VaultSection
from vaultline.owner.appraisal import Appraiser, load_policy
from vaultline.planner import PlanRequest, plan_request
from vaultline.testing import planning
from vaultline.testing.attestation import NOW_S, challenge, devroot, evidence, grant, policy
from vaultline.testing.receipts import SmallRun
from vaultline.testing.vaults import SmallVault, small_stage
from vaultline.video.preprocess import load_preprocessing
from vaultline.video.sinks import JsonLinesSink, Result, StageTimes

from vaultline.cli.files import load_cluster  # isort: skip

KEYS = derive_hop_keys(b"k" * 32, hop=0, epoch=1)
MESSAGE_BYTES, FRAGMENT_BYTES = 700, 300


def pump(wire: bytes) -> None:
    """What a hop does with the bytes of a connection that ends after them."""
    reader = MessageReader(KEYS, message_bytes=MESSAGE_BYTES, fragment_bytes=FRAGMENT_BYTES)
    target = memoryview(bytearray(MESSAGE_BYTES))
    while True:
        event = reader.next_event(target)
        if isinstance(event, MessageReceived):
            continue
        if isinstance(event, StreamEnded) or not wire:
            return
        buffer = reader.want()
        count = min(len(buffer), len(wire))
        buffer[:count], wire = wire[:count], wire[count:]
        reader.received(count)


def record_seeds() -> Sequence[bytes]:
    writer = MessageWriter(KEYS, message_bytes=MESSAGE_BYTES, fragment_bytes=FRAGMENT_BYTES)
    message = memoryview(bytes(k & 255 for k in range(MESSAGE_BYTES)))
    wire = b"".join(bytes(record) for record in writer.message(message))
    return (wire + bytes(writer.end()),)


def sealed_records(data: bytes) -> None:
    """A stage that knows the hop's keys: any records, properly sealed; two bytes say which."""
    sealer, wire = RecordSealer(KEYS), b""
    out = memoryview(bytearray((1 << 16) + OVERHEAD_BYTES))
    while len(data) >= 2:
        head, length = data[0], min(data[1] * 3, len(data) - 2)
        kind = list(RecordKind)[head % 3]
        size = sealer.seal_into(kind, data[2 : 2 + length], out, more=bool(head & 128))
        wire, data = wire + bytes(out[:size]), data[2 + length :]
        if kind is not RecordKind.DATA:
            break
    pump(wire)


LAYOUT = FrameLayout((TensorSpec(name="scores", dtype="float32", shape=(1, 10)),), 2)


def result(data: bytes) -> None:
    """A last stage that sends what it likes as a result: read, and written as a line."""
    message = memoryview(bytearray(data[: LAYOUT.message_bytes].ljust(LAYOUT.message_bytes)))
    meta = read_meta(message)
    scores = np.frombuffer(tensor_bytes(LAYOUT, message, 0), np.float32).reshape(1, 10)
    times = tuple(StageTimes(*map(float, each[:4])) for each in read_times(LAYOUT, message))
    found = Result(
        frame=0,
        timestamp_s=meta.timestamp_s,
        outputs={"scores": scores},
        stage_times=times,
        epoch=meta.index,
        plan_digest="",
        enclave="simulated",
        attested="",
        latency_s=0.0,
    )
    with closing(JsonLinesSink(SCRATCH / "lines", topk=3)) as sink:
        sink.write(found)


def result_seeds() -> Sequence[bytes]:
    message = memoryview(bytearray(LAYOUT.message_bytes))
    write_meta(LAYOUT, message, FrameMeta(index=3, timestamp_s=0.1, sent_ns=5))
    return (bytes(message), b"\xff" * LAYOUT.message_bytes)


#: The same in every process, so that what joins the corpus stays what it was.
GRANT_KEY = GrantKey(
    MLKEM768PrivateKey.from_seed_bytes(bytes(64)),
    X25519PrivateKey.from_private_bytes(bytes(32)),
    Ed25519PrivateKey.from_private_bytes(bytes(32)),
)


def sealed_grant(kind: Any) -> Callable[[bytes], None]:
    """Whoever asks an enclave can seal it any grant."""

    def parse(data: bytes) -> None:
        public = MLKEM768X25519PublicKey(
            GRANT_KEY.mlkem.public_key(), GRANT_KEY.x25519.public_key()
        )
        sealed = SUITE.encrypt(data, public, info=b"transcript")
        open_grant(sealed, GRANT_KEY, b"transcript", kind, challenge=challenge())

    return parse


def server_grant_seeds() -> Sequence[bytes]:
    given = grant()
    names = SectionAccess.__struct_fields__
    access = SectionAccess(**{name: getattr(given, name) for name in names})
    made = ServerGrant(
        epoch=given.epoch,
        deployment=given.deployment,
        plan_digest=given.plan_digest,
        stage=given.stage,
        secret=b"s" * 32,
        memory_bytes=MIB,
        cores=1,
        workspace_bytes=MIB,
        message_bytes=4096,
        models=(ServedAccess(sections=(access,)),),
    )
    return (to_msgpack(made),)


def appraised(data: bytes) -> None:
    appraiser = Appraiser(
        policy=policy(), collateral={"simulated": devroot().collateral}, allow_simulated=True
    )
    appraiser.appraise(
        Evidence(kind="simulated", public_key=EVIDENCE.public_key, quote=data or b"\0"),
        challenge(),
        NOW_S,
    )


def collateral(data: bytes) -> None:
    appraiser = Appraiser(policy=policy(), collateral={"simulated": data}, allow_simulated=True)
    appraiser.appraise(EVIDENCE, challenge(), NOW_S)


EVIDENCE = evidence(key=GRANT_KEY)


@cache
def vault() -> SmallVault:
    stages = [small_stage([100, 0], stage=0, stages=2), small_stage([5], stage=1, stages=2)]
    path = SCRATCH / "good.vault"
    return SmallVault.seal(path, stages, model_key=b"k" * 32, plan_digest=b"p" * 32)


def read_vault(data: bytes) -> None:
    """The owner's walk, and an enclave's section with the grant for the good vault."""

    def read(offset: int, count: int) -> bytes:
        if offset + count > len(data):
            raise RefusedError("the file ends")
        return data[offset : offset + count]

    descriptor = os.memfd_create("vault")
    try:
        os.write(descriptor, data)
        with closing(_Section(descriptor)):
            pass
    except RefusedError:
        pass
    finally:
        os.close(descriptor)
    front = read_front(read)
    header = front.header
    for stage in range(len(header.sections)):
        start, _ = front.bounds(stage)
        section = SectionId(
            vault_id=header.vault_id,
            model_id=header.model_id,
            plan_digest=header.plan_digest,
            stage=stage,
        )
        walk(lambda offset, count, start=start: read(start + offset, count), section)


class _Section:
    """An opened section, and its weights read."""

    def __init__(self, descriptor: int) -> None:
        good = vault()
        access = good.sealing.access(good.model_key, 0)
        section = VaultSection(descriptor, access, mapped=False)
        for index, weight in enumerate(section.program.weights):
            section.read_weight_into(index, memoryview(bytearray(weight.spec.nbytes)))

    def close(self) -> None:
        """Nothing is held."""


def program(data: bytes) -> None:
    """A program that was sealed with the right key, and is not what an owner would seal."""
    from_msgpack(data, StageProgram, what="the program", bytes_max=64 * MIB)


PROFILE = planning.profile([0.1, 0.2, 0.3], crossing_bytes=[64, 128, 64, 8], weight_bytes=4096)
CLUSTER = b"""\
owner: box
hosts:
  - {name: box, cores: 2, memory: 8GiB}
devices:
  - {name: a, host: box, kind: simulated, trust: attested, memory: 93MiB, cores: 1, count: 2}
"""
POLICY = (
    f'version: 1\naccept:\n  - kind: simulated\n    roots: ["{"ab" * 48}"]\n'
    f'    measurements: ["{"cd" * 32}"]\n'
).encode()
PRIVACY = b"version: 1\ninput: {metric: reconstruction, limit: 0.30}\nmodel: {disclose: ['0:1']}\n"
PREPROCESSING = b"input: image\nwidth: 64\nheight: 48\nlayout: NCHW\ndtype: float32\n"
CONFIG = WorkerConfig(
    name="w",
    platform="process",
    provider="simulated",
    platform_file=None,
    vault="v",
    control="unix:/c",
    data=("unix:/d",),
    runtime_dir="/",
)


def plan_seeds() -> Sequence[bytes]:
    (SCRATCH / "cluster.yaml").write_bytes(CLUSTER)
    cluster = load_cluster(SCRATCH / "cluster.yaml")
    return (write_plan(plan_request(PROFILE, cluster, PlanRequest(stages=2))),)


def sigstruct_seeds() -> Sequence[bytes]:
    head = bytes.fromhex("06000000e10000000000010000000000") + bytes(8)
    return ((head + bytes.fromhex("01010000600000006000000001000000")).ljust(1808, b"\1"),)


def yaml(data: bytes) -> None:
    """Any file that is YAML, before it is anything else."""
    from_yaml(data.decode("utf-8", errors="replace"), dict, what="a file", path="f")


def privacy(data: bytes) -> None:
    parse_privacy(data.decode("utf-8", errors="replace"), "p.yaml")


def control(data: bytes) -> None:
    """Messages between owner and enclave; each end then checks which kind it got."""
    kind: Any = ControlMessage
    from_msgpack(data, kind, what="control", bytes_max=MIB)


def control_seeds() -> Sequence[bytes]:
    return (
        to_msgpack(RefusedMessage(code="c", message="m")),
        to_msgpack(LoadedMessage(seconds=0.1, held_bytes={"io": 4})),
        to_msgpack(EvidenceMessage(evidence=EVIDENCE.encode())),
    )


def served(data: bytes) -> None:
    """Commands of a server's host, and replies of its worker: each end reads its own."""
    kinds: tuple[Any, ...] = (HostCommand, WorkerReply)
    errors = []
    for kind in kinds:
        try:
            from_msgpack(data, kind, what="a message", bytes_max=COMMAND_BYTES_MAX)
        except RemoteProtocolError as error:
            errors.append(error)
    if len(errors) == len(kinds):
        raise errors[0]


def served_seeds() -> Sequence[bytes]:
    run = RunCommand(core=0, model=0, group=1, requests=(1, 2))
    return (to_msgpack(run), to_msgpack(InstallCommand(core=0, model=3)))


def lines(data: bytes) -> None:
    """Lines between owner, host and worker: each end reads its own kinds, and fails alone."""
    errors = []
    for kind in (WorkerConfig, WireLine, WorkerLine, HostLine):
        try:
            from_json(data, kind, what="a line")  # type: ignore[arg-type]
        except InputError as error:
            errors.append(error)
    if len(errors) == 4:
        raise errors[0]


def link(data: bytes) -> None:
    """A link of a receipt as the host brings it; or a payload, signed by who may say anything."""
    text = data.decode("latin-1")
    if not text.count("."):
        key = Ed25519PrivateKey.from_private_bytes(bytes(32))
        signed = base64url(LINK_HEADER) + b"." + base64url(data)
        text = (signed + b"." + base64url(key.sign(signed))).decode()
    read_link(text)


def link_seeds() -> Sequence[bytes]:
    text = SmallRun(read_plan(plan_seeds()[0]), 3).links[0, 0][0]
    return (text.encode(), canonical_json(read_link(text).link))


def receipt(data: bytes) -> None:
    """The record of a receipt's folder."""
    from_json(data, ReceiptRecord, what="the receipt")


def receipt_seeds() -> Sequence[bytes]:
    return (canonical_json(SmallRun(read_plan(plan_seeds()[0]), 1).record()),)


PEER: tuple[type[BaseException], ...] = (RemoteProtocolError,)
FILE: tuple[type[BaseException], ...] = (InputError,)
TARGETS = {
    target.name: target
    for target in (
        Target("record", pump, record_seeds, PEER),
        Target("sealed-record", sealed_records, lambda: (b"\x80\x64" + bytes(300),), PEER),
        Target("result", result, result_seeds, (VaultlineError,)),
        Target("challenge", Challenge.decode, lambda: (challenge().encode(),), PEER),
        Target("evidence", read_evidence, lambda: (EVIDENCE.encode(),), PEER),
        Target("receipt-link", link, link_seeds, (RefusedError,)),
        Target("receipt", receipt, receipt_seeds, FILE),
        Target("control", control, control_seeds, PEER),
        Target("grant", sealed_grant(Grant), lambda: (to_msgpack(grant()),), PEER),
        Target("server-grant", sealed_grant(ServerGrant), server_grant_seeds, PEER),
        Target("quote", appraised, lambda: (EVIDENCE.quote,), (RefusedError, InputError)),
        Target(
            "collateral", collateral, lambda: (devroot().collateral,), (RefusedError, InputError)
        ),
        Target("vault", read_vault, lambda: (vault().sealed,), (RefusedError, InputError)),
        Target("program", program, lambda: (to_msgpack(small_stage([100, 0]).program),), PEER),
        Target("plan", read_plan, plan_seeds, FILE),
        Target("profile", read_profile, lambda: (write_profile(PROFILE),), FILE),
        Target("policy", from_file(load_policy), lambda: (POLICY,), FILE),
        Target("cluster", from_file(load_cluster), lambda: (CLUSTER,), FILE),
        Target("privacy", privacy, lambda: (PRIVACY,), FILE),
        Target("preprocessing", from_file(load_preprocessing), lambda: (PREPROCESSING,), FILE),
        Target("yaml", yaml, lambda: (CLUSTER, POLICY), FILE),
        Target("sigstruct", read_sigstruct, sigstruct_seeds, FILE),
        Target("served", served, served_seeds, PEER),
        Target("line", lines, lambda: (canonical_json(CONFIG),), FILE),
        *EVIDENCE_TARGETS,
        *SERVING_TARGETS,
    )
}
