"""Results out: one JSON line per frame, raw tensors beside it if wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vaultline.core.errors import InputError, LocalProtocolError, MachineError
from vaultline.core.serde import Struct, canonical_json


class StageTimes(Struct, frozen=True):
    """Seconds of one stage for one frame: opening its record, waiting, computing, sealing."""

    open_s: float
    wait_s: float
    compute_s: float
    seal_s: float


class Result(Struct, frozen=True):
    """What came back for one frame.

    Attributes:
        frame: the frame's index; results are written in its order.
        timestamp_s: the frame's time on the source's clock.
        outputs: the model's outputs by name.
        stage_times: one for every stage, in order.
        epoch: which deployment of the plan computed it.
        plan_digest: SHA-256 of the plan, hex.
        enclave: kinds of the stages' enclaves, such as ``simulated``.
        attested: how the enclaves were proven, in the words of the policy's verdict.
        unverified: stages that ran on untrusted devices: nothing vouches for this result.
        latency_s: from the frame's sealing to the result's opening.
    """

    frame: int
    timestamp_s: float
    outputs: dict[str, NDArray[Any]]
    stage_times: tuple[StageTimes, ...]
    epoch: int
    plan_digest: str
    enclave: str
    attested: str
    latency_s: float
    unverified: tuple[int, ...] = ()


class JsonLinesSink:
    """Writes results as JSON lines; what has been written is in the file even if the run dies."""

    def __init__(
        self,
        path: Path,
        *,
        topk: int = 5,
        raw_dir: Path | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        """Open the file, replacing an old one.

        Args:
            path: where the lines go; ``/dev/stdout`` works too.
            topk: how many of an output's largest values to write; 0 for none.
            raw_dir: if given, every output goes there as ``.npy``, without pickle.
            labels: names of an output's values, by index.

        Raises:
            InputError: the file or the folder cannot be written, or ``topk`` is negative.
        """
        if topk < 0:
            raise InputError("`topk` is negative", got=str(topk), expected="0 or more")
        self._topk = topk
        self._raw_dir = raw_dir
        self._labels = labels
        self._next: int | None = 0
        try:
            if raw_dir is not None:
                raw_dir.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise InputError(
                f"{path}: results can't be written there",
                got=error.strerror,
                remedy="name a file in an existing folder that you may write to",
            ) from error
        self._path = path

    def write(self, result: Result) -> None:
        """Write one line.

        Raises:
            LocalProtocolError: not the next frame, or after ``close``: each frame is written once.
            MachineError: the disk is full or gone.
        """
        if result.frame != self._next:
            expected = "no more" if self._next is None else f"frame {self._next}"
            raise LocalProtocolError(
                "results are out of order", got=f"frame {result.frame}", expected=expected
            )
        try:
            line = canonical_json(self._record(result)) + b"\n"
            if self._file.write(line) != len(line):
                raise MachineError(f"{self._path}: a result was written only in part")
        except OSError as error:
            raise MachineError(
                f"{self._path}: a result can't be written", got=error.strerror
            ) from error
        self._next = result.frame + 1

    def close(self) -> None:
        """Close the file. May be repeated."""
        self._next = None
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _record(self, result: Result) -> dict[str, Any]:
        outputs = {
            name: self._output(result.frame, position, name, value)
            for position, (name, value) in enumerate(result.outputs.items())
        }
        fields = {name: getattr(result, name) for name in result.__struct_fields__}
        return {**fields, "outputs": outputs}

    def _output(
        self, frame: int, position: int, name: str, value: NDArray[Any]
    ) -> Mapping[str, Any]:
        record: dict[str, Any] = {"dtype": value.dtype.name, "shape": value.shape}
        if self._topk and value.size:
            record["top"] = top(value, self._topk, self._labels)
        if self._raw_dir is not None:
            file = self._raw_dir / f"{frame:08d}-{position}-{_safe(name)}.npy"
            np.save(file, value, allow_pickle=False)
            record["file"] = file.name
        return record


def top(
    value: NDArray[Any], count: int, labels: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The ``count`` largest values with their flat index and, where known, label.

    Ties go to the lower index, and not-a-number counts as the smallest of all. The values are the
    model's own, without a softmax. What JSON lacks (infinities, NaN) is written as text.
    """
    flat = value.reshape(-1)
    if flat.dtype.kind not in "biuf":
        return []
    ranked = np.where(np.isnan(flat), -np.inf, flat) if flat.dtype.kind == "f" else flat
    best = _largest(ranked, min(count, flat.size))
    entries = []
    for index in best:
        number = flat[index].item()
        fine = not isinstance(number, float) or isfinite(number)
        entry: dict[str, Any] = {"index": int(index), "value": number if fine else str(number)}
        if labels is not None and index < len(labels):
            entry["label"] = labels[index]
        entries.append(entry)
    return entries


def _largest(values: NDArray[Any], count: int) -> list[int]:
    """Flat indices of the largest values, largest first, lower index first among equals."""
    if count == values.size:
        candidates = np.arange(values.size)
    else:
        # Everything not below the count-th largest: a raw tensor of millions isn't sorted.
        threshold = np.partition(values, values.size - count)[values.size - count]
        candidates = np.flatnonzero(values >= threshold)
    wide = values[candidates].astype(np.float64 if values.dtype.kind == "f" else np.int64)
    order = np.lexsort((candidates, -wide))
    return [int(index) for index in candidates[order[:count]]]


def _safe(name: str) -> str:
    """An output's name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:64]
