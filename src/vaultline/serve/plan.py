"""What is served where, checked before anything is started: facts, memory, launches, grants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from vaultline.attest.server_grant import ServerGrant
from vaultline.channel.requests import OVERHEAD_BYTES
from vaultline.core.errors import InputError
from vaultline.core.frame_meta import tensor_bytes
from vaultline.owner.arrays import Array, check_array, write_array
from vaultline.owner.served import ServedModel
from vaultline.owner.server_release import server_grant, server_memory
from vaultline.owner.starting import Place
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.policies import policy as policy_named
from vaultline.sched.replay import LogHeader
from vaultline.sched.server import Server
from vaultline.sched.wire import HostedModel, LaunchServer
from vaultline.serve.cluster import ServerSpec
from vaultline.serve.prepared import Prepared


class ServingPlan:
    """Models and servers under a policy. Every server may get any model; each is granted all.

    Attributes:
        numbers: of the models by name, as in grants.
        facts: of the servers, in the order of ``specs``.
    """

    def __init__(
        self,
        models: Sequence[Prepared],
        specs: Sequence[ServerSpec],
        policy: str,
        placement: Mapping[str, Sequence[str]],
    ) -> None:
        """``placement``: models of each server at the start; all where nothing is said.

        Raises:
            InputError: no model or server, two of one name, an unknown policy.
            InfeasibleError: a server that can't run a model.
        """
        self.models, self.specs = tuple(models), tuple(specs)
        self.policy = policy_named(policy)
        self.numbers = {model.name: number for number, model in enumerate(self.models)}
        self._check_names(placement)
        self._check_paging()
        served = [model.served for model in self.models]
        self._memory = [
            server_memory(served, cores=spec.cores, memory_bytes=spec.memory_bytes)
            for spec in self.specs
        ]
        self.facts = tuple(
            ServerFacts(
                name=spec.name,
                cores=spec.cores,
                memory_bytes=spec.memory_bytes,
                models=tuple(placement.get(spec.name, self.numbers)),
                fixed_bytes=memory.fixed_bytes,
            )
            for spec, memory in zip(self.specs, self._memory, strict=True)
        )
        for facts in self.facts:  # refuses what could never be run
            Server(facts, self.model_facts, self.policy.local())

    def _check_names(self, placement: Mapping[str, Sequence[str]]) -> None:
        servers = {spec.name for spec in self.specs}
        if not self.models or len(self.numbers) < len(self.models):
            raise InputError("a gateway needs models, each under a name of its own")
        if not self.specs or len(servers) < len(self.specs):
            raise InputError("a gateway needs servers, each under a name of its own")
        placed = {name for names in placement.values() for name in names}
        unknown = sorted({*(placed - self.numbers.keys()), *(placement.keys() - servers)})
        if unknown:
            raise InputError("a placement of unknown models or servers", got=", ".join(unknown))

    def _check_paging(self) -> None:
        paged = {model.served.paged for model in self.models}
        if paged != {self.policy.paged}:
            how = {True: "for paged memory", False: "for bounded memory"}
            raise InputError(
                f"policy {self.policy.name} can't serve models that were prepared otherwise",
                got=" and ".join(how[each] for each in sorted(paged)),
                expected=how[self.policy.paged],
                remedy="prepare the models for this policy",
            )

    @property
    def model_facts(self) -> dict[str, ModelFacts]:
        """By name."""
        return {model.name: model.served.facts for model in self.models}

    @property
    def log_header(self) -> LogHeader:
        """Of the balancer's log."""
        models = tuple(self.model_facts.values())
        return LogHeader(policy=self.policy.name, servers=self.facts, models=models)

    def number(self, model: str) -> int:
        """A model's, as in grants.

        Raises:
            InputError: it is not served.
        """
        if model not in self.numbers:
            expected = ", ".join(sorted(self.numbers))
            raise InputError("no such model is served", got=model, expected=expected)
        return self.numbers[model]

    def launch(
        self,
        number: int,
        folder: Path,
        *,
        platform_file: Path | None,
        transport: Literal["unix", "tcp"],
        bind: str,
        report_s: float,
        log: Path | None,
    ) -> LaunchServer:
        """What a server's host is told; ``folder`` is for its sockets.

        Raises:
            InputError: nothing says how the server's worker is started.
        """
        spec = self.specs[number]
        return LaunchServer(
            facts=self.facts[number],
            models=tuple(_hosted(model, spec.place) for model in self.models),
            policy=self.policy.name,
            start=spec.start(platform_file),
            runtime_dir=str(folder),
            cpus=spec.cpus,
            transport=transport,
            bind=bind,
            worker_bind=bind if spec.place == Place() else spec.place.bind,
            report_s=report_s,
            log=None if log is None else str(log.absolute()),
        )

    def grant(self, number: int) -> ServerGrant:
        """A fresh grant for a server: it is a deployment of its own.

        Raises:
            RefusedError: a model's keys are of another sealing.
        """
        spec = self.specs[number]
        return server_grant(
            [(model.served, model.keys) for model in self.models],
            self._memory[number],
            cores=spec.cores,
            memory_bytes=spec.memory_bytes,
        )


def _hosted(model: Prepared, place: Place) -> HostedModel:
    served = model.served
    return HostedModel(
        facts=served.facts,
        vault=place.vault(model.vault),
        request_bytes=served.input_layout.message_bytes + OVERHEAD_BYTES,
        answer_bytes=served.output_layout.message_bytes + OVERHEAD_BYTES,
    )


def write_request(
    served: ServedModel, message: memoryview, tensors: Sequence[Array] | Mapping[str, Array]
) -> None:
    """Write a request's tensors, by name or in the model's order, into its message.

    Raises:
        InputError: they don't fit the model.
    """
    layout = served.input_layout
    if isinstance(tensors, Mapping):
        expected = [spec.name for spec in served.inputs]
        if set(tensors) != set(expected):
            raise InputError(
                f"not the inputs of {served.name}",
                got=", ".join(map(str, tensors)),
                expected=", ".join(expected),
            )
        tensors = [tensors[name] for name in expected]
    if len(tensors) != len(served.inputs):
        raise InputError(
            f"a wrong number of inputs for {served.name}",
            got=str(len(tensors)),
            expected=str(len(served.inputs)),
        )
    for position, (spec, tensor) in enumerate(zip(served.inputs, tensors, strict=True)):
        check_array(tensor, spec, f"a tensor does not fit input {spec.name!r} of {served.name}")
        write_array(tensor, tensor_bytes(layout, message, position))
