"""Measuring what each cut of a model leaks: the model run on the owner's pictures, and attacked.

The pictures move through the model segment by segment, from one cut to the next, so that every
layer is computed once for each and only one cut's tensors are in memory. What was found at a cut is
kept in a small file; an interrupted measurement goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from vaultline.bench.conv_decoder import fit_conv
from vaultline.bench.leakage_data import (
    check_count,
    images_digest,
    seen_picture,
    spatial_shapes,
    split,
    views_each,
    views_of,
)
from vaultline.bench.profiling import cpu_name
from vaultline.bench.thumbnails import thumbnail
from vaultline.core.errors import InputError, MachineError
from vaultline.core.leakage import CutLeakage, LeakageReport
from vaultline.core.profile import RecordedOn
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.core.tensors import TensorSpec
from vaultline.graph import engine
from vaultline.graph.cuts import Cut, candidates, cuts
from vaultline.graph.extract import segment
from vaultline.graph.structure import Array, Model
from vaultline.privacy import (
    Fit,
    Measured,
    Planes,
    Sample,
    fit_ridge,
    luma,
    measure_cut,
    normalised,
    planes_of,
    ssim,
)
from vaultline.video.pixels import Pixels
from vaultline.video.preprocess import Preprocessing, Preprocessor

DecoderName = Literal["ridge", "conv"]
FITS: Mapping[DecoderName, Fit] = {"ridge": fit_ridge, "conv": fit_conv}
#: Raised whenever the same settings would give other scores than before.
_CACHE_VERSION = 1
#: Held-out pictures whose reconstructions are kept to be shown.
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakageRequest:
    """What to measure.

    Attributes:
        pictures: HxWx3 each, all different.
        preprocessing: how a picture becomes the model's input.
        cache: an existing folder for what was found so far.
        positions: the cuts to measure; all candidates if None.
    """

    pictures: Sequence[Pixels]
    preprocessing: Preprocessing
    cache: Path
    decoder: DecoderName = "ridge"
    positions: Sequence[int] | None = None
    command: str = "vaultline privacy"
    date: str = ""
    host: str = field(default_factory=lambda: os.uname().nodename)


class Shown(Struct, frozen=True):
    """What an attack makes of one held-out picture: PNG files and the SSIM of the second."""

    channel: bytes
    reconstruction: bytes
    ssim: float


class CutRecord(Struct, frozen=True):
    """What was found at a cut, as it is cached.

    Attributes:
        key: digest of all that the result depends on.
        shapes: of the crossing tensors.
        shown: of the first held-out pictures, in order.
        elapsed_s: what the attack took, without running the model.
    """

    key: str
    leakage: CutLeakage
    blind_ssim: float
    shapes: tuple[tuple[int, ...], ...]
    shown: tuple[Shown, ...]
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakageFindings:
    """The report, and what a page needs beside it.

    Attributes:
        inputs: PNGs of the held-out pictures that are shown.
        records: one for each cut of the report.
    """

    report: LeakageReport
    inputs: tuple[bytes, ...]
    records: tuple[CutRecord, ...]
    training: int
    held_out: int


def measure_leakage(
    model: Model,
    request: LeakageRequest,
    progress: Callable[[int, int], None] | None = None,
    fit: Fit | None = None,
) -> LeakageFindings:
    """Attack every cut that was asked for.

    Args:
        progress: told how many cuts are done, of how many.
        fit: another attack in the place of the request's decoder.

    Raises:
        InputError: the model takes no picture, no such cut, or too few pictures.
    """
    check_count(len(request.pictures), "the request")
    preprocessor = Preprocessor(request.preprocessing, _picture_input(model))
    positions = _positions(model, request.positions)
    digest = images_digest(request.pictures, request.preprocessing)
    key = _key(model, digest, request.decoder)
    found: dict[int, CutRecord] = {}
    for position in positions:
        record = _cached(request.cache, key, position)
        if record is not None:
            found[position] = record
    tell = progress or (lambda done, total: None)
    tell(len(found), len(positions))
    views = _Views(model, request, preprocessor)
    for position in positions:
        if position not in found:
            views.advance(position)
            found[position] = _measured(views, key, fit or FITS[request.decoder])
            _keep(request.cache, found[position])
            tell(len(found), len(positions))
    records = tuple(found[position] for position in positions)
    return LeakageFindings(
        report=_report(model, request, digest, records),
        inputs=tuple(thumbnail(picture) for picture in views.held_out_pictures[:SHOWN]),
        records=records,
        training=len(views.training),
        held_out=len(views.held_out),
    )


def _picture_input(model: Model) -> TensorSpec:
    if len(model.inputs) != 1:
        raise InputError(
            "leakage is measured on pictures, which feed a model with one input",
            got=", ".join(spec.name for spec in model.inputs),
            expected="one input",
        )
    return model.inputs[0]


def _positions(model: Model, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The candidate cuts that were asked for.

    Raises:
        InputError: one that is no candidate.
    """
    known = candidates(model)
    if wanted is None:
        return known
    lost = sorted(set(wanted) - set(known))
    if lost or not wanted:
        raise InputError(
            "no such candidate cut",
            got=", ".join(map(str, lost)) or "no positions at all",
            expected="among " + ", ".join(map(str, known)),
        )
    return tuple(sorted(set(wanted)))


def _report(
    model: Model, request: LeakageRequest, digest: str, records: Sequence[CutRecord]
) -> LeakageReport:
    return LeakageReport(
        model_name=model.name,
        model_digest=model.digest,
        images_digest=digest,
        images=len(request.pictures),
        decoder=request.decoder,
        recorded_on=RecordedOn(
            host=request.host, cpu=cpu_name(), date=request.date, command=request.command
        ),
        positions=tuple(record.leakage.position for record in records),
        cuts=tuple(record.leakage for record in records),
        blind_ssim=records[0].blind_ssim,
    )


class _Views:
    """All views of all pictures, at one cut of the model at a time."""

    def __init__(self, model: Model, request: LeakageRequest, preprocessor: Preprocessor) -> None:
        self._model, self._cuts = model, cuts(model)
        self._shapes = spatial_shapes(model)
        self.training, self.held_out = split(len(request.pictures))
        name = preprocessor.spec.name
        largest = max(self._cuts[position].nbytes for position in candidates(model))
        each = views_each(len(self.training), largest)
        self._owners, self._values = list[int](), list[dict[str, Array]]()
        for numbers, count in ((self.training, each), (self.held_out, 1)):
            for number in numbers:
                for view in views_of(request.pictures[number], count):
                    self._owners.append(number)
                    self._values.append({name: preprocessor(view)})
        how = request.preprocessing
        self._pictures = [seen_picture(values[name], how) for values in self._values]
        self._aspect = self._pictures[0].shape[0] / self._pictures[0].shape[1]
        self.position = 0

    @property
    def held_out_pictures(self) -> list[Array]:
        """The pictures that are attacked, as the model gets them."""
        return [picture for _, picture in self._part(self.held_out)]

    @property
    def cut(self) -> Cut:
        """Where the views are."""
        return self._cuts[self.position]

    def advance(self, position: int) -> None:
        """Run the model from the present cut to a later one."""
        if position == self.position:
            return
        part = segment(self._model, self._cuts, self.position, position)
        chosen = engine.options(ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
        running = engine.plain_session(part, chosen)
        for index, values in enumerate(self._values):
            self._values[index] = engine.run_plain(part, values, running)
        self.position = position

    def samples(self, numbers: Sequence[int]) -> list[Sample]:
        """The views of some pictures, with what crosses the present cut for them."""
        return [
            Sample(
                picture=picture, stacks=self._stacks(self._values[index]), owner=self._owners[index]
            )
            for index, picture in self._part(numbers)
        ]

    def names(self) -> list[str]:
        """Which tensor each stack of planes is of."""
        values = self._values[0]
        return [spec.name for spec in self.cut.tensors for _ in self._planes(spec.name, values)]

    def _part(self, numbers: Sequence[int]) -> list[tuple[int, Array]]:
        wanted = set(numbers)
        return [(i, self._pictures[i]) for i, owner in enumerate(self._owners) if owner in wanted]

    def _stacks(self, values: Mapping[str, Array]) -> tuple[Planes, ...]:
        found = [self._planes(spec.name, values) for spec in self.cut.tensors]
        return tuple(stack for stacks in found for stack in stacks)

    def _planes(self, name: str, values: Mapping[str, Array]) -> tuple[Planes, ...]:
        array = values[name]
        return planes_of(array.reshape(self._shapes.get(name, array.shape)), self._aspect)


def _measured(views: _Views, key: str, fit: Fit) -> CutRecord:
    """Attack the cut that the views are at."""
    started_s = time.perf_counter()
    held_out = views.samples(views.held_out)
    try:
        measured = measure_cut(views.samples(views.training), held_out, fit)
    except MemoryError as error:
        raise MachineError(
            f"not enough memory to attack the cut at position {views.position}",
            remedy="give fewer pictures, or name smaller cuts",
        ) from error
    best = measured.revealing
    names = views.names()
    revealing = f"{names[best.stack]}[{best.channel}]" if best.stack >= 0 else ""
    return CutRecord(
        key=key,
        leakage=CutLeakage(
            position=views.position,
            tensors=tuple(spec.name for spec in views.cut.tensors),
            resolution_px=measured.resolution_px,
            similarity=min(1.0, best.score),
            reconstruction=measured.reconstruction,
            psnr_db=max(0.0, measured.psnr_db),
            revealing=revealing + " (negative)" * best.negative,
            ssim=min(1.0, measured.ssim),
        ),
        blind_ssim=measured.blind,
        shapes=tuple(spec.shape for spec in views.cut.tensors),
        shown=_shown(held_out, measured),
        elapsed_s=time.perf_counter() - started_s,
    )


def _shown(held_out: Sequence[Sample], measured: Measured) -> tuple[Shown, ...]:
    best = measured.revealing
    made = []
    for sample, reconstruction in zip(held_out[:SHOWN], measured.reconstructions, strict=False):
        channel = b""
        if best.stack >= 0:
            plane = normalised(sample.stacks[best.stack][best.channel])
            channel = thumbnail(1 - plane if best.negative else plane)
        score = ssim(luma(sample.picture), luma(reconstruction))
        made.append(
            Shown(channel=channel, reconstruction=thumbnail(reconstruction), ssim=min(1.0, score))
        )
    return tuple(made)


def _key(model: Model, images: str, decoder: DecoderName) -> str:
    parts = [_CACHE_VERSION, model.digest, images, decoder, ort.__version__, np.__version__]
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def _file(cache: Path, key: str, position: int) -> Path:
    return cache / f"{key[:16]}-{position}.json"


def _cached(cache: Path, key: str, position: int) -> CutRecord | None:
    """What was found before; a file that is damaged or of something else counts for nothing."""
    try:
        record = from_json(_file(cache, key, position).read_bytes(), CutRecord, what="the cache")
    except (OSError, InputError):
        return None
    return record if (record.key, record.leakage.position) == (key, position) else None


def _keep(cache: Path, record: CutRecord) -> None:
    """Write beside the final name first: an interruption leaves no half file."""
    path = _file(cache, record.key, record.leakage.position)
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(canonical_json(record))
        partial.replace(path)
    except OSError as error:
        raise MachineError(f"cannot write to {cache}", got=str(error.strerror)) from error
