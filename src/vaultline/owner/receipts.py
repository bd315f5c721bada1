"""The folder of a receipt: written while a run is on, read by whoever verifies it.

``plan.json``, ``receipt.json`` (evidence of every worker, and the collateral) and ``links.jws`` are
public. ``secret.json`` is the key of the digests: it is for whoever is to check frames and results,
and lets him recognise a frame that he can guess.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vaultline.attest.links import frame_digest
from vaultline.attest.linkwire import (
    FRAMES_PER_LINK_MAX,
    LINK_CHARS_MAX,
    RECEIPT_VERSION,
    ReceiptRecord,
    RecordedWorker,
    check_signature,
    read_link,
)
from vaultline.attest.refusals import LinkAltered
from vaultline.core.errors import InputError, MachineError
from vaultline.core.plan import Plan, read_plan, write_plan
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.core.tensors import TensorSpec
from vaultline.owner.appraisal import Appraiser
from vaultline.owner.keyfile import PRIVATE_MODE
from vaultline.owner.release import ReceiptTerms, StageSecrets
from vaultline.owner.session import Session

PLAN_FILE, RECORD_FILE, LINKS_FILE = "plan.json", "receipt.json", "links.jws"
SECRET_FILE = "secret.json"
FRAMES_PER_LINK = 64
#: Evidence and keys of 256 workers, 16 MiB at most; collateral besides.
_FILE_BYTES_MAX = 32 << 20
#: A link of 64 frames takes 9 KiB: 100,000 links are six million frames of one worker.
_LINKS_BYTES_MAX = 1 << 30
_REMEDY = "name a folder that `vaultline run --receipts` wrote"

Array = npt.NDArray[Any]


class _SecretFile(Struct, frozen=True):
    version: int
    secret: bytes

    def __post_init__(self) -> None:
        if self.version != RECEIPT_VERSION or len(self.secret) != 32:
            raise InputError("not a receipt's secret of this version")


class Recorder:
    """Keeps a run's receipt; ``link`` may be called in another thread.

    The host brings links, and may bring anything: kept is what an enclave of this run signed, once.
    """

    def __init__(self, folder: Path, plan: Plan, frames_per_link: int = FRAMES_PER_LINK) -> None:
        """Make the folder, with a fresh secret.

        Raises:
            InputError: it holds something, or can't be written to.
        """
        if not 1 <= frames_per_link <= FRAMES_PER_LINK_MAX:
            limits = f"1 to {FRAMES_PER_LINK_MAX}"
            raise InputError("frames per link", got=str(frames_per_link), expected=limits)
        self._folder, self._plan = folder, plan
        self.terms = ReceiptTerms(
            secret=os.urandom(32),
            model_digest=bytes.fromhex(plan.model_digest),
            frames_per_link=frames_per_link,
        )
        self._keys: dict[tuple[int, int], bytes] = {}
        self._waiting: list[str] = []
        self._seen: set[tuple[int, int, int, bool]] = set()
        self._lock = threading.Lock()
        self._error: OSError | None = None
        self.links = self.refused = 0
        secret = canonical_json(_SecretFile(version=RECEIPT_VERSION, secret=self.terms.secret))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise InputError(
                    "the folder for the receipt is not empty",
                    got=str(folder),
                    remedy="name a new folder for each run: a receipt is of one",
                )
            (folder / PLAN_FILE).write_bytes(write_plan(plan))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(folder / SECRET_FILE, flags, PRIVATE_MODE), "wb") as stream:
                stream.write(secret)
            self._file = (folder / LINKS_FILE).open("wb", buffering=0)
        except OSError as error:
            raise InputError(
                "cannot write the receipt", got=f"{folder}: {error.strerror}", remedy="name another"
            ) from error

    def attach(self, secrets: Sequence[StageSecrets]) -> tuple[StageSecrets, ...]:
        """Ask the enclaves for links. Accelerators aren't asked: nothing vouches for theirs."""
        return tuple(
            each if stage.device.untrusted else replace(each, receipt=self.terms)
            for each, stage in zip(secrets, self._plan.stages, strict=True)
        )

    def record(self, session: Session, appraiser: Appraiser) -> None:
        """Keep the evidence that an opened session's workers gave, and what it was held against.

        Raises:
            MachineError: it can't be written.
        """
        counts = (len(stage.devices) for stage in self._plan.stages)
        places = [(stage, k) for stage, count in enumerate(counts) for k in range(count)]
        record = ReceiptRecord(
            version=RECEIPT_VERSION,
            at_s=int(datetime.datetime.now(datetime.UTC).timestamp()),
            deployment=session.epoch.deployment,
            epoch=session.epoch.number,
            plan_digest=session.epoch.plan_digest,
            workers=tuple(
                RecordedWorker(
                    stage=stage,
                    replica=replica,
                    challenge=each.challenge.encode(),
                    evidence=each.evidence.encode(),
                )
                for (stage, replica), each in zip(places, session.releases, strict=True)
            ),
            collateral=dict(appraiser.collateral),
        )
        try:
            (self._folder / RECORD_FILE).write_bytes(canonical_json(record))
        except OSError as error:
            raise MachineError("cannot write the receipt", got=str(error)) from error
        with self._lock:
            for place, each in zip(places, session.releases, strict=True):
                self._keys[place] = each.evidence.signing_key
            waiting, self._waiting = self._waiting, []
        for text in waiting:
            self.link(text)

    def link(self, text: str) -> None:
        """Keep a link, if it is one; never fails: what is missing shows when it is verified."""
        with self._lock:
            if not self._keys:  # a very short stream; the evidence is not recorded yet
                self._waiting.append(text[: LINK_CHARS_MAX + 1])
                self._waiting = self._waiting[-1024:]
                return
            try:
                signed = read_link(text)
                link = signed.link
                place = (link.stage, link.replica)
                check_signature(signed, self._keys.get(place, b""))
            except LinkAltered:
                self.refused += 1
                return
            name = (*place, link.first, link.last)
            if name in self._seen:
                return
            self._seen.add(name)
            try:
                self._file.write(text.encode() + b"\n")
                self.links += 1
            except OSError as error:
                self._error = error

    def close(self) -> None:
        """No more links; nothing is left of a run whose enclaves were never granted anything.

        Raises:
            MachineError: some could not be written.
        """
        with self._lock:
            self._file.close()
            if not self._keys:
                with contextlib.suppress(OSError):
                    for name in (PLAN_FILE, SECRET_FILE, LINKS_FILE):
                        (self._folder / name).unlink(missing_ok=True)
            if self._error is not None:
                raise MachineError("links of the receipt are lost", got=str(self._error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A receipt as it was read; ``secret`` is None where its holder did not get it."""

    plan: Plan
    record: ReceiptRecord
    links: tuple[str, ...]
    secret: bytes | None


def load_receipt(folder: Path) -> Receipt:
    """Read a receipt's folder; nothing of it has been verified then.

    Raises:
        InputError: a file is missing, too long, or not what it must be.
    """
    record = from_json(_read(folder / RECORD_FILE), ReceiptRecord, what="the receipt")
    links = _read(folder / LINKS_FILE, _LINKS_BYTES_MAX)
    secret = None
    if (folder / SECRET_FILE).exists():
        data = _read(folder / SECRET_FILE)
        secret = from_json(data, _SecretFile, what="the receipt's secret").secret
    return Receipt(
        plan=read_plan(_read(folder / PLAN_FILE)),
        record=record,
        links=tuple(line.decode("ascii", errors="replace") for line in links.splitlines()),
        secret=secret,
    )


def _read(path: Path, bytes_max: int = _FILE_BYTES_MAX) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(bytes_max + 1)
    except OSError as error:
        raise InputError(
            "cannot read the receipt", got=f"{path}: {error.strerror}", remedy=_REMEDY
        ) from error
    if len(data) > bytes_max:
        raise InputError("the receipt is too long", got=str(path), expected=f"{bytes_max} bytes")
    return data


def input_digests(secret: bytes, frames: Iterable[Sequence[Array]]) -> Iterator[bytes]:
    """Digests of frames as they enter the first stage: each one's tensors, in order."""
    for number, tensors in enumerate(frames):
        yield frame_digest(secret, 0, number, [tensor.tobytes() for tensor in tensors])


def output_digests(
    secret: bytes, plan: Plan, results: Iterable[Sequence[Array]]
) -> Iterator[bytes]:
    """Digests of results as they leave the last stage: each one's tensors in the plan's order."""
    for number, tensors in enumerate(results):
        parts = [tensor.tobytes() for tensor in tensors]
        yield frame_digest(secret, len(plan.stages), number, parts)


def read_array(path: Path, spec: TensorSpec) -> Array:
    """A raw output of ``vaultline run --raw``, if it is what the plan says.

    Raises:
        InputError: missing, or of another type or shape.
    """
    try:
        with path.open("rb") as stream:
            value: Array = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError, MemoryError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            "cannot read a raw result",
            got=f"{path}: {why}",
            remedy="name the folder that `vaultline run --raw` filled in that run",
        ) from error
    dtype = "uint16" if spec.dtype == "bfloat16" else spec.dtype
    if (value.dtype.name, value.shape) != (dtype, spec.shape):
        raise InputError(
            f"{path}: not the output {spec.name!r}",
            got=f"{value.dtype.name} {value.shape}",
            expected=f"{dtype} {spec.shape}",
        )
    return value


def results_of(
    lines: Iterable[dict[str, Any]],
    raw: Path,
    plan: Plan,
    check: Callable[[int, dict[str, Any], Array], None],
) -> Iterator[list[Array]]:
    """The raw outputs that a run's result lines name, each line held against them.

    Args:
        check: of a frame, an output's part of the line, and its array.

    Raises:
        InputError: a line is not of that form, or names no raw output.
    """
    for number, line in enumerate(lines):
        outputs = line.get("outputs")
        arrays = []
        for spec in plan.stages[-1].outputs:
            part = outputs.get(spec.name) if isinstance(outputs, dict) else None
            name = part.get("file") if isinstance(part, dict) else None
            if part is None or not isinstance(name, str) or Path(name).name != name:
                raise InputError(
                    f"line {number + 1} of the results names no raw output {spec.name!r}",
                    remedy="run with --raw FOLDER, and give the same folder here",
                )
            array = read_array(raw / name, spec)
            check(number, part, array)
            arrays.append(array)
        yield arrays
