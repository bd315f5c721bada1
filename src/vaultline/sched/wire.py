"""What a gateway and the untrusted host of a server tell each other.

Over one connection: a length of four bytes, a message, then for some a sealed request or answer of
the size that the model's entry states. Nothing here is secret or authenticated: what a host says of
itself decides where requests go, never what is believed of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from vaultline.core.control import HardeningStep, StageMetrics
from vaultline.core.hostline import Start
from vaultline.core.serde import Struct
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.report import Report

#: A report names every model of a server.
WIRE_MESSAGE_BYTES_MAX = 1 << 20


class HostedModel(Struct, frozen=True):
    """A model as a host knows it.

    Attributes:
        request_bytes, answer_bytes: of one, sealed.
    """

    facts: ModelFacts
    vault: str
    request_bytes: int
    answer_bytes: int


class LaunchServer(Struct, frozen=True, kw_only=True, tag="server"):
    """Gateway to host, first line on its standard input: one server to run.

    Attributes:
        policy: a name of ``sched.policies``.
        report_s: between reports.
        cpus: of this machine, that the worker may use; empty for any.
        transport: how the gateway reaches host and worker; for TCP, ``bind`` is the host's
            address and ``worker_bind`` the worker's, which may be another machine's.
        runtime_dir: for Unix sockets.
        log: file for events and actions, a JSON line each, or None.
    """

    facts: ServerFacts
    models: tuple[HostedModel, ...]
    policy: str
    start: Start
    runtime_dir: str
    cpus: tuple[int, ...] = ()
    transport: Literal["unix", "tcp"] = "unix"
    bind: str = "127.0.0.1"
    worker_bind: str = "127.0.0.1"
    report_s: float = 0.1
    log: str | None = None


class ServerReadyLine(Struct, frozen=True, tag="ready"):
    """Host to gateway, on standard output: worker and host listen."""

    control: str
    requests: str
    measurement: str
    hardening: tuple[HardeningStep, ...]
    pids: tuple[int, ...]


class ServerLostLine(Struct, frozen=True, tag="lost"):
    """Host to gateway, on standard output, last line: the worker died, is stuck or refused."""

    code: str
    message: str
    refused: bool = False
    remedy: str | None = None


ServerLine = ServerReadyLine | ServerLostLine


class SubmitMessage(Struct, frozen=True, tag="submit"):
    """Gateway to host: a request, whose sealed input follows.

    Attributes:
        deadline_in_s: from now, or None: clocks of two machines differ.
    """

    number: int
    model: str
    priority: int = 0
    deadline_in_s: float | None = None


class InstallMessage(Struct, frozen=True, tag="install"):
    """Gateway to host: this server is to serve a model from now on."""

    model: str


class RemoveMessage(Struct, frozen=True, tag="remove"):
    """Gateway to host: no request for this model will come again; forget it when none is left."""

    model: str


class DrainMessage(Struct, frozen=True, tag="drain"):
    """Gateway to host: finish what is here and say so."""


GatewayMessage = SubmitMessage | InstallMessage | RemoveMessage | DrainMessage


class AnsweredMessage(Struct, frozen=True, tag="answered"):
    """Host to gateway: a request's sealed answer follows."""

    number: int


class RefusedRequestMessage(Struct, frozen=True, tag="refused"):
    """Host to gateway: a request will not be answered here, and why.

    Attributes:
        elsewhere: another server may well answer it.
    """

    number: int
    reason: str
    elsewhere: bool = False


class ServerMetrics(Struct, frozen=True):
    """Of a server since it started; queue lengths now. ``worker``: the enclave's own account."""

    queued: Mapping[str, int] = {}
    held_bytes: Mapping[str, int] = {}
    runs: int = 0
    loads: int = 0
    evictions: int = 0
    answered: int = 0
    refused: int = 0
    missed_deadlines: int = 0
    busy_s: Mapping[str, float] = {}
    worker: StageMetrics = StageMetrics()


class ReportedMessage(Struct, frozen=True, tag="reported"):
    """Host to gateway, every ``report_s``."""

    report: Report
    metrics: ServerMetrics


class DrainedMessage(Struct, frozen=True, tag="drained"):
    """Host to gateway, last message: nothing is left."""


HostMessage = AnsweredMessage | RefusedRequestMessage | ReportedMessage | DrainedMessage
