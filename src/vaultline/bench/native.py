"""The user's model, untouched, in a plain ONNX Runtime session: what everything is compared to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Array = npt.NDArray[Any]


class NativeModel:
    """One session with the engine's own optimisations and nothing of ours."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, tensors: Sequence[Array]) -> list[Array]:
        """One frame: tensors in the order of the model's inputs."""
        outputs: list[Array] = self._session.run(None, dict(zip(self._names, tensors, strict=True)))
        return outputs


def top_index(values: Array) -> int:
    """The index of the largest value."""
    return int(np.argmax(values))
