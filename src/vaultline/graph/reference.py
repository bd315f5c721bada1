"""Running a stage program plainly: the standard that the enclave's executor is held to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from vaultline.core.errors import InputError
from vaultline.core.program import Step
from vaultline.core.tensors import TensorSpec
from vaultline.graph import engine
from vaultline.graph.compile import CompiledStage
from vaultline.graph.structure import Array


class ReferenceRunner:
    """Sessions and weights of one compiled stage, run with numpy arrays in and out."""

    def __init__(self, stage: CompiledStage) -> None:
        self._program = stage.program
        self._sessions = [engine.session(graph) for graph in stage.program.graphs]
        self._weights = [
            _typed(data, weight.spec)
            for data, weight in zip(stage.weights, stage.program.weights, strict=True)
        ]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One frame, or several stacked on axis 0 where all steps are stackable.

        Raises:
            InputError: a tensor came out in another shape than the program states.
        """
        program = self._program
        values = {index: feeds[program.tensors[index].name] for index in program.inputs}
        for step in program.steps:
            values.update(self._step(step, values))
        return {program.tensors[index].name: values[index] for index in program.outputs}

    def _step(self, step: Step, values: Mapping[int, Array]) -> dict[int, Array]:
        fed = {name: values[index] for name, index in step.feeds}
        fed.update({each.input: self._weights[each.weight] for each in step.weights})
        results = self.session(step).run([name for name, _ in step.fetches], fed)
        made = {index: a for (_, index), a in zip(step.fetches, results, strict=True)}
        for index, array in made.items():
            self._check(self._program.tensors[index], array, step.stackable)
        return made

    def session(self, step: Step) -> ort.InferenceSession:
        """The session that runs a step."""
        return self._sessions[step.graph]

    def _check(self, spec: TensorSpec, array: Array, stackable: bool) -> None:
        shape = array.shape[1:] if stackable else array.shape
        stated = spec.shape[1:] if stackable else spec.shape
        if shape != stated or array.dtype.name != spec.dtype:
            raise InputError(
                f"tensor {spec.name!r} of the stage program came out otherwise than stated",
                got=f"{array.dtype} {array.shape}",
                expected=f"{spec.dtype} {spec.shape}",
            )


def _typed(data: memoryview, spec: TensorSpec) -> Array:
    return np.frombuffer(data, np.dtype(spec.dtype)).reshape(spec.shape)


def run_program(stage: CompiledStage, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run one frame through a compiled stage: a value per input in, a value per output back."""
    return ReferenceRunner(stage).run(feeds)
