"""A model that was prepared for serving: its step groups, what they take, and its sealed file."""

from __future__ import annotations

from pathlib import Path

from vaultline.core.errors import InputError
from vaultline.core.frames import FrameLayout
from vaultline.core.program import Isa
from vaultline.core.serde import Struct, from_json
from vaultline.core.tensors import TensorSpec
from vaultline.sched.facts import ModelFacts

SERVED_VERSION = 1
#: The ending of a prepared model's manifest, beside ``NAME.vault`` and ``NAME.keys``.
MANIFEST_SUFFIX = ".served.json"


class ServedModel(Struct, frozen=True, kw_only=True):
    """The manifest of a prepared model. Public: it holds no key and no weight.

    Attributes:
        vault, keys: names of the files beside the manifest.
        model_digest: of the ONNX file; plan_digest: of its division, under which it is sealed.
        groups: first and last node of each step group, the last one excluded.
        workspace_bytes: that the neediest group takes, on each core that runs it.
        paged: for the page cache of a server without bounded execution.
        facts: on this instruction set; the times are estimates unless they were ``measured``.
    """

    version: int = SERVED_VERSION
    name: str
    vault: str
    keys: str
    model_digest: str
    plan_digest: bytes
    isa: Isa
    engine_version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    groups: tuple[tuple[int, int], ...]
    workspace_bytes: int
    facts: ModelFacts
    paged: bool = False
    measured: bool = False

    def __post_init__(self) -> None:
        if self.version != SERVED_VERSION or len(self.groups) != len(self.facts.groups):
            raise InputError(
                f"not a prepared model of this version: {self.name!r}",
                got=f"version {self.version}, {len(self.groups)} step groups",
                expected=f"version {SERVED_VERSION}, {len(self.facts.groups)} step groups",
                remedy="prepare the model again",
            )

    @property
    def input_layout(self) -> FrameLayout:
        """Of a request's message."""
        return FrameLayout(self.inputs, len(self.groups))

    @property
    def output_layout(self) -> FrameLayout:
        """Of an answer's message."""
        return FrameLayout(self.outputs, len(self.groups))


def read_served(path: Path) -> ServedModel:
    """Read a manifest.

    Raises:
        InputError: no such file, or not a manifest of this version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError("cannot read a prepared model", got=f"{path}: {error.strerror}") from error
    return from_json(data, ServedModel, what=f"the prepared model {path.name}")
