"""Parsers of servers, their clients and their schedulers: sockets, logs, workloads, manifests."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

from harness import MIB, Target
from inputs import SCRATCH, Said, from_file

from vaultline.bench import links
from vaultline.core.errors import InfeasibleError, InputError, RefusedError, RemoteProtocolError
from vaultline.core.leakage import LeakageReport, read_leakage, write_leakage
from vaultline.core.serde import canonical_json, from_json, from_msgpack, to_msgpack
from vaultline.core.serving import InstallCommand, RunCommand
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.commands import CommandLine
from vaultline.owner.keyfile import Kek, load_kek, new_keys, read_keyfile, write_keyfile
from vaultline.owner.served import ServedModel, read_served
from vaultline.sched.balancer import Balancer
from vaultline.sched.events import Arrived, Finished, Request
from vaultline.sched.facts import ModelFacts
from vaultline.sched.logs import read_logs
from vaultline.sched.policies import POLICIES, policy
from vaultline.sched.replay import (
    BalancerEntry,
    EventEntry,
    LogEntry,
    LogHeader,
    Replayer,
    Reported,
    Submitted,
    decode,
    encode,
)
from vaultline.sched.report import Report
from vaultline.sched.wire import (
    WIRE_MESSAGE_BYTES_MAX,
    AnsweredMessage,
    GatewayMessage,
    HostMessage,
    LaunchServer,
    RefusedRequestMessage,
    ReportedMessage,
    ServerLine,
    ServerLostLine,
    ServerMetrics,
    SubmitMessage,
)
from vaultline.serve import front
from vaultline.serve.clientwire import InferMessage, ReadyMessage, greet, read_credential
from vaultline.sim.recordings import parse_recording
from vaultline.sim.workload_file import parse_workload
from vaultline.testing.privacy import RECORDED, cut_leakage
from vaultline.testing.serving import group, model, server
from vaultline.transport.framing import MessageReader
from vaultline.transport.framing import encode as framed
from vaultline.transport.sockets import ConnectionLostError

PEER: tuple[type[BaseException], ...] = (RemoteProtocolError,)
WIRE: tuple[type[BaseException], ...] = (RemoteProtocolError, ConnectionLostError)
FILE: tuple[type[BaseException], ...] = (InputError,)
_LENGTH = struct.Struct("!I")
NAMES = ("one", "two")
MODELS = {name: model(name, group(1.0), group(2.0)) for name in NAMES}
SPEC = TensorSpec(name="x", dtype="float32", shape=(1, 8))
SERVED = ServedModel(
    name="one",
    vault="one.vault",
    keys="one.keys",
    model_digest="00" * 32,
    plan_digest=b"p" * 32,
    isa="portable",
    engine_version="1",
    inputs=(SPEC,),
    outputs=(SPEC,),
    groups=((0, 1), (1, 2)),
    workspace_bytes=1,
    facts=MODELS["one"],
)


# --- Sockets -------------------------------------------------------------------------------------


def client(data: bytes) -> None:
    """A client of the gateway: its greeting, then requests, up to where it hangs up."""
    channel = greet(Said(data), None, gateway=True, timeout_s=1.0)  # type: ignore[arg-type]
    with contextlib.suppress(ConnectionLostError):
        channel.receive(ReadyMessage)
        while True:
            message, tensors = channel.receive(InferMessage)
            if message.model == SERVED.name:
                front._arrays(SERVED, tensors)


def _body(message: object, tensors: bytes = b"") -> bytes:
    head = to_msgpack(message)
    body = _LENGTH.pack(len(head)) + head + tensors
    return _LENGTH.pack(len(body)) + body


def client_seeds() -> tuple[bytes, ...]:
    infer = InferMessage(number=1, model="one", deadline_s=0.5, priority=2)
    return (_body(ReadyMessage()) + 2 * _body(infer, bytes(SPEC.nbytes)),)


def stranger(data: bytes) -> None:
    """Somebody without the credential: a greeting, and what cannot be opened."""
    with contextlib.suppress(ConnectionLostError):
        channel = greet(Said(data), b"c" * 32, gateway=True, timeout_s=1.0)  # type: ignore[arg-type]
        channel.receive(ReadyMessage)


def stranger_seeds() -> tuple[bytes, ...]:
    hello = b"vaultline client v1\0" + bytes(32)
    return (hello, hello + _LENGTH.pack(60) + bytes(60))


def from_host(data: bytes) -> None:
    """What a server's host tells the gateway, and what every policy then makes of its reports."""

    def decoded(head: bytearray) -> tuple[HostMessage, tuple[int, ...]]:
        kind: Any = HostMessage
        message = from_msgpack(memoryview(head), kind, what="m", bytes_max=WIRE_MESSAGE_BYTES_MAX)
        return message, (64,) if isinstance(message, AnsweredMessage) else ()

    for message in _framed(data, decoded):
        if isinstance(message, ReportedMessage):
            for name in POLICIES:
                _balanced(name, message.report)


def _balanced(name: str, report: Report) -> None:
    servers = [server(each, NAMES) for each in (report.server, "s1", "s2")]
    if report.server in ("s1", "s2"):
        return
    balancer = Balancer(servers, MODELS, policy(name).chooser())
    for number in range(3):
        balancer.submit(Request(number=number, model="one", arrived_s=0.0), 0.0)
    balancer.reported(report, 0.1)
    for number in range(3, 7):
        model_name = NAMES[number % 2]
        balancer.submit(Request(number=number, model=model_name, arrived_s=0.2), 0.2)
    balancer.returned(4, 0.3)
    balancer.done(0)
    balancer.lost(report.server, 0.4)


def reported(data: bytes) -> None:
    """A report alone."""
    said = from_msgpack(data, Report, what="a report", bytes_max=WIRE_MESSAGE_BYTES_MAX)
    for name in POLICIES:
        _balanced(name, said)


def to_host(data: bytes) -> None:
    """What the gateway tells a server's host."""

    def decoded(head: bytearray) -> tuple[GatewayMessage, tuple[int, ...]]:
        kind: Any = GatewayMessage
        message = from_msgpack(memoryview(head), kind, what="m", bytes_max=WIRE_MESSAGE_BYTES_MAX)
        return message, (64,) if isinstance(message, SubmitMessage) else ()

    for _ in _framed(data, decoded):
        pass


def _framed(data: bytes, decoded: Any) -> list[Any]:
    reader: MessageReader[Any] = MessageReader(decoded, bytes_max=WIRE_MESSAGE_BYTES_MAX)
    found = []
    while data:
        buffer = reader.want()
        count = min(len(buffer), len(data))
        buffer[:count], data = data[:count], data[count:]
        received = reader.received(count)
        if received is not None:
            found.append(received[0])
    return found


REPORT = Report(
    server="s0",
    turn=1,
    taken=2,
    backlog_s=0.5,
    waiting={"one": 1, "two": 3},
    resident_s={"one": 0.01},
    models=NAMES,
)


def from_host_seeds() -> tuple[bytes, ...]:
    told = ReportedMessage(report=REPORT, metrics=ServerMetrics(queued={"one": 1}))
    refused = RefusedRequestMessage(number=2, reason="no")
    answered = framed(AnsweredMessage(number=1)) + bytes(64)
    return (framed(told), framed(told) + answered + framed(refused))


def to_host_seeds() -> tuple[bytes, ...]:
    submit = SubmitMessage(number=1, model="one", deadline_in_s=1.0)
    return (framed(submit) + bytes(64) + framed(submit) + bytes(64),)


def commands(data: bytes) -> None:
    """What a serving worker is told by its host, up to where that hangs up."""
    line = CommandLine(Said(data), None)  # type: ignore[arg-type]
    while line.receive() is not None:
        pass


def command_seeds() -> tuple[bytes, ...]:
    run = RunCommand(core=0, model=0, group=1, requests=(1, 2))
    return (framed(InstallCommand(core=0, model=3)) + framed(run),)


def measured(data: bytes) -> None:
    """A client of ``vaultline link serve``."""
    links._serve(links._Wire(Said(data), 10.0))  # type: ignore[arg-type]


def measured_seeds() -> tuple[bytes, ...]:
    ping, there = links._REQUEST.pack(links._PING, 0), links._REQUEST.pack(links._THERE, 3000)
    end = links._REQUEST.pack(links._END, 0)
    return (links._GREETING + ping + there + bytes(3000) + end,)


# --- Lines and files -----------------------------------------------------------------------------


def server_lines(data: bytes) -> None:
    """Lines between a gateway and a server's host: each end reads its own."""
    errors = []
    for kind in (ServerLine, LaunchServer):
        try:
            from_json(data, kind, what="a line")  # type: ignore[arg-type]
        except InputError as error:
            errors.append(error)
    if len(errors) == 2:
        raise errors[0]


def server_line_seeds() -> tuple[bytes, ...]:
    return (canonical_json(ServerLostLine(code="c", message="m")),)


def event_log(data: bytes) -> None:
    """A log of decisions: replayed and compared, for a timeline."""
    read_logs([("a log", decode(data.split(b"\n")))])


def log_seeds() -> tuple[bytes, ...]:
    """A server that serves two requests, and a balancer that sends two."""
    request = Request(number=0, model="one", arrived_s=0.0)
    second = Request(number=1, model="two", arrived_s=0.1, deadline_s=9.0, priority=1)
    told: list[LogEntry] = [
        EventEntry(server="s0", event=Arrived(now_s=0.0, request=request)),
        EventEntry(server="s0", event=Arrived(now_s=0.1, request=second)),
        *(EventEntry(server="s0", event=Finished(now_s=n, core=0)) for n in (1.0, 2.0, 3.0)),
    ]
    sent: list[LogEntry] = [
        BalancerEntry(event=Submitted(now_s=0.0, request=request)),
        BalancerEntry(event=Reported(now_s=0.1, report=REPORT)),
        BalancerEntry(event=Submitted(now_s=0.2, request=second)),
    ]
    return tuple(_logged(name, entries) for name, entries in (("vaultline", told), ("fifo", sent)))


def _logged(name: str, entries: list[LogEntry]) -> bytes:
    header = LogHeader(policy=name, servers=(server("s0", NAMES),), models=tuple(MODELS.values()))
    replayer, lines = Replayer(header), [encode(header)]
    for entry in entries:
        lines += [encode(each) for each in (entry, *replayer.take(entry))]
    return b"".join(lines)


def _weighed(facts: ModelFacts) -> None:
    """What schedulers derive of a model before they use it."""
    for each in facts.groups:
        each.streamed_by_frames  # noqa: B018 - computed when it is read
    facts.batched_s, facts.least_bytes, facts.marginal_s(1)


def manifest(data: bytes) -> None:
    """The manifest of a prepared model."""
    served = from_file(read_served)(data)
    if isinstance(served, ServedModel):
        _weighed(served.facts)


def facts_file(data: bytes) -> None:
    """Facts of models for the simulator."""
    for facts in from_json(data, tuple[ModelFacts, ...], what="facts"):
        _weighed(facts)


RECORDING = b"time_s,model,deadline_s,priority\n0.5,one,1.0,2\n1.5,two,,\n"
WORKLOADS = (
    b"models:\n  - {name: one, weight: 2}\n  - {name: two}\n"
    b"arrivals: {kind: poisson, rate: 20}\nduration: 10s\nseed: 3\n",
    b"models: [{name: one, deadline: 100ms}]\nzipf: 1.0\nrotate: 2s\ncount: 50\n"
    b"arrivals: {kind: bursty, burst: {rate: 50, mean: 1s}, calm: {rate: 5, mean: 4s}}\n",
    b"models: []\narrivals: {kind: recorded, file: r.csv, speed: 2}\n",
)


def workload(data: bytes) -> None:
    """A workload file, whose recording is a good one."""
    parse_workload(
        data.decode("utf-8", errors="replace"),
        "w.yaml",
        lambda _: parse_recording(RECORDING.decode(), "r.csv"),
    )


def recording(data: bytes) -> None:
    """A recording, as CSV and as lines of JSON."""
    text = data.decode("utf-8", errors="replace")
    try:
        parse_recording(text, "r.csv")
    except InputError:
        parse_recording(text, "r.jsonl")


def recording_seeds() -> tuple[bytes, ...]:
    return (RECORDING, b'{"time_s":0.5,"model":"one"}\n{"time_s":0.5,"model":"one","priority":1}\n')


LEAKAGE = LeakageReport(
    model_name="m",
    model_digest="00" * 32,
    images_digest="ab" * 32,
    images=8,
    decoder="ridge",
    recorded_on=RECORDED,
    positions=(2, 4),
    cuts=(cut_leakage(2, ["a"], 0.5), cut_leakage(4, ["b"], 0.1)),
)
KEK = Kek(kid="kbs:///a/b/c", key=b"k" * 32)


def keyfile(data: bytes) -> None:
    """A file of keys, with the right key-encryption key."""
    from_file(lambda path: read_keyfile(path, KEK))(data)


def keyfile_seeds() -> tuple[bytes, ...]:
    path = SCRATCH / "seed.key"
    write_keyfile(path, new_keys(), KEK)
    return (path.read_bytes(),)


def kek_seeds() -> tuple[bytes, ...]:
    return (KEK.jwk().export(private_key=True).encode(),)


TARGETS = (
    Target("client", client, client_seeds, (RemoteProtocolError, InputError)),
    Target("stranger", stranger, stranger_seeds, (RemoteProtocolError, RefusedError)),
    Target("from-host", from_host, from_host_seeds, PEER),
    Target("report", reported, lambda: (to_msgpack(REPORT),), PEER),
    Target("to-host", to_host, to_host_seeds, PEER),
    Target("commands", commands, command_seeds, WIRE),
    Target("link", measured, measured_seeds, WIRE),
    Target(
        "server-line",
        server_lines,
        server_line_seeds,
        FILE,
    ),
    Target("event-log", event_log, log_seeds, (InputError, InfeasibleError)),
    Target("manifest", manifest, lambda: (canonical_json(SERVED),), FILE),
    Target("facts", facts_file, lambda: (canonical_json(tuple(MODELS.values())),), FILE),
    Target("workload", workload, lambda: WORKLOADS, FILE),
    Target("recording", recording, recording_seeds, FILE),
    Target("leakage", read_leakage, lambda: (write_leakage(LEAKAGE),), FILE),
    Target("keyfile", keyfile, keyfile_seeds, (InputError, RefusedError), memory_max=8 * MIB),
    Target("kek", from_file(load_kek), kek_seeds, (InputError, RefusedError), memory_max=8 * MIB),
    Target("credential", from_file(read_credential), lambda: (b"ab" * 32 + b"\n",), FILE),
)
