"""Messages between owner and enclave before frames flow, and lines between host and worker.

Control messages carry no secret in the clear: evidence is public, a grant is sealed to the key
that the evidence vouches for. Lines are what an untrusted host may tell a worker and hear from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from vaultline.core.serde import Struct

#: What protected memory is held for. ``idle``: for tiles and activations, and momentarily used by
#: neither; ``engine``: what the inference engine allocates for itself.
BufferKind = Literal["resident", "tile", "activation", "io", "engine", "idle"]
#: What makes a worker's evidence: ``gramine`` for SGX; ``tdx`` and ``snp`` in confidential VMs.
ProviderName = Literal["simulated", "gramine", "tdx", "snp", "pinned"]


class ChallengeMessage(Struct, frozen=True, tag="challenge"):
    """Owner to enclave: the encoded challenge."""

    challenge: bytes


class EvidenceMessage(Struct, frozen=True, tag="evidence"):
    """Enclave to owner: the encoded evidence for that challenge."""

    evidence: bytes


class GrantMessage(Struct, frozen=True, tag="grant"):
    """Owner to enclave: the sealed grant."""

    sealed: bytes


class GrantedMessage(Struct, frozen=True, tag="granted"):
    """Enclave to owner: the grant opened and matches the challenge."""


class LoadedMessage(Struct, frozen=True, tag="loaded"):
    """Enclave to owner: the stage is in memory and the hops are about to open."""

    seconds: float
    held_bytes: Mapping[BufferKind, int]


class RefusedMessage(Struct, frozen=True, tag="refused"):
    """Enclave to owner: why not. Unauthenticated: a hint, never proof."""

    code: str
    message: str


Exchange = ChallengeMessage | EvidenceMessage | GrantMessage | GrantedMessage
ControlMessage = Exchange | LoadedMessage | RefusedMessage


class WorkerConfig(Struct, frozen=True):
    """The first line that a worker reads. Untrusted: wrong values make it refuse or stop.

    Attributes:
        platform: ``process`` hardens itself; ``gramine`` relies on the platform where it must.
        provider: who makes evidence, chosen explicitly: never a fallback.
        platform_file: the provider's own secrets: the simulated platform, or the accelerator's key
            (``simulated`` and ``pinned`` only).
        control, data: addresses to listen on; frames come to one for each replica before.
    """

    name: str
    platform: Literal["process", "gramine"]
    provider: ProviderName
    platform_file: str | None
    vault: str
    control: str
    data: tuple[str, ...]
    runtime_dir: str
    heartbeat_s: float = 0.25


class WireLine(Struct, frozen=True, tag="wire"):
    """Host to worker: where the next hop listens for this worker, an address per replica there."""

    next: tuple[str, ...]


class HardeningStep(Struct, frozen=True):
    """One step of a worker's hardening: ``done``, ``missing`` (this machine lacks it) or
    ``skipped`` (the platform supplies its own)."""

    name: str
    state: Literal["done", "missing", "skipped"]
    detail: str = ""


class ReadyLine(Struct, frozen=True, tag="ready"):
    """Worker to host: listening."""

    control: str
    data: tuple[str, ...]
    measurement: str
    hardening: tuple[HardeningStep, ...]


class StageMetrics(Struct, frozen=True):
    """What a worker uses and has done so far: nothing that the host couldn't see anyway.

    Attributes:
        held_bytes, peak_bytes: of the ledger by kind, now and at most; together within the budget.
        streamed_bytes: weights decrypted in passes; what stays is decrypted once, before.
        swapped_pages, evicted_pages: of the simulated page cache.
    """

    budget_bytes: int = 0
    held_bytes: Mapping[BufferKind, int] = {}
    peak_bytes: Mapping[BufferKind, int] = {}
    streamed_bytes: int = 0
    passes: int = 0
    swapped_pages: int = 0
    evicted_pages: int = 0


class BeatLine(Struct, frozen=True, tag="beat"):
    """Worker to host: alive, how long the pass at hand has taken, and how many frames are done."""

    busy_s: float
    frames: int
    metrics: StageMetrics = StageMetrics()


class FailedLine(Struct, frozen=True, tag="failed"):
    """Worker to host, last line: why the worker stops; ``refused`` where a check said no."""

    code: str
    message: str
    refused: bool = False


class LinkLine(Struct, frozen=True, tag="link"):
    """Worker to host, and host to owner: a signed link of a receipt (`attest.links`); public."""

    link: str


WorkerLine = ReadyLine | BeatLine | FailedLine | LinkLine
