"""What each node costs inside the optimised model, from the engine's own profiler.

Blocks timed alone pay for entering and leaving the blocked layout, which grows with their
activations and not with their work; inside the model they don't.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from vaultline.graph import engine
from vaultline.graph.compile import optimised
from vaultline.graph.extract import extract
from vaultline.graph.rewrite import rewrite
from vaultline.graph.structure import Array, Model, Node

_KERNEL = "_kernel_time"
#: What the engine and our rewrites append to a name: ``r2_nchwc``, ``r3/lrn/root``, ``r12_bn``.
_SUFFIX = re.compile(r"(/.*|_nchwc.*|_bn(_nchwc.*)?|_token_\d+)\Z")


class NodeClock:
    """The whole model under the engine's profiler.

    The profiler's file is open and has no name any more: nothing is left behind, and a process
    that has given up its files since can still read it.
    """

    #: Runs before those that count.
    warm_runs = 2

    def __init__(self, model: Model, feeds: Mapping[str, Array]) -> None:
        """Make the session; ``feeds`` has a value for each of the model's inputs."""
        made = optimised(rewrite(extract(model, 0, model.node_count)), blocked=True)
        self._model, self._made = model, made
        chosen = engine.options()
        chosen.enable_cpu_mem_arena = True  # or page faults would be some node's time
        chosen.enable_profiling = True
        with tempfile.TemporaryDirectory(prefix="vaultline-") as folder:
            chosen.profile_file_prefix = str(Path(folder) / "nodes")
            self._session = engine.plain_session(made, chosen)
            (path,) = Path(folder).glob("nodes*")
            self._events = path.open("rb")
        self._wanted = [spec.name for spec in engine.computed(made)]
        given = {**feeds, **engine.large_weights(made)}
        accepted = {value.name for value in self._session.get_inputs()}
        self._fed = {name: value for name, value in given.items() if name in accepted}

    def run(self) -> None:
        """Run the model once."""
        self._session.run(self._wanted, self._fed)

    def seconds(self, runs: int) -> tuple[float, ...]:
        """Median seconds of every node over the last ``runs`` runs; the clock ends with this.

        A fused node's time counts for the last of the nodes that it stands for; what the engine
        inserts (layout changes) counts for the node before.
        """
        self._session.end_profiling()
        with self._events as file:
            events = json.loads(file.read())
        seconds = [0.0] * self._model.node_count
        owners = owners_of(self._model, self._made.nodes)
        medians = _medians(events, self._made.nodes, runs)
        for owner, spent in zip(owners, medians, strict=True):
            seconds[owner] += spent
        return tuple(seconds)


def node_times(model: Model, feeds: Mapping[str, Array], repeats: int) -> tuple[float, ...]:
    """Median seconds of every node of the model while the whole of it runs: see ``NodeClock``."""
    clock = NodeClock(model, feeds)
    for _ in range(clock.warm_runs + repeats):
        clock.run()
    return clock.seconds(repeats)


def _medians(
    events: Sequence[Mapping[str, object]], nodes: Sequence[Node], repeats: int
) -> list[float]:
    durations: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if name.endswith(_KERNEL):
            spent_us = float(str(event.get("dur", 0)))
            durations.setdefault(name.removesuffix(_KERNEL), []).append(spent_us / 1e6)
    return [statistics.median(durations.get(node.name, [0.0])[-repeats:]) for node in nodes]


def owners_of(model: Model, nodes: Sequence[Node]) -> list[int]:
    """For each node of the optimised model, the node of the original that it counts for."""
    places = {name: index for index, node in enumerate(model.nodes) for name in node.writes}
    names = {node.name: index for index, node in enumerate(model.nodes) if node.name}
    owners: list[int] = []
    made_by: dict[str, int] = {}
    before = 0
    for node in nodes:
        keys = [
            *node.writes,
            node.name,
            *(_SUFFIX.sub("", key) for key in (*node.writes, node.name)),
        ]
        found = [table[key] for key in keys for table in (places, names) if key in table]
        if found:
            owner = max(found)
        else:
            owner = max((made_by[name] for name in node.reads if name in made_by), default=before)
        owners.append(owner)
        made_by.update(dict.fromkeys(node.writes, owner))
        before = owner
    return owners
