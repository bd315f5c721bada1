"""The order in which the engine runs nodes: what a memory plan may count on.

With ``ExecutionOrder.PRIORITY_BASED`` the engine runs, of all nodes whose operands are there, the
first one of the graph; but ``Shape`` and ``Size`` as soon as they can be run, before all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from vaultline.graph.structure import Node

_AT_ONCE = frozenset({"Shape", "Size"})


def as_run(nodes: Sequence[Node]) -> list[Node]:
    """The nodes in the order in which the engine would run them, which is then a graph's own.

    Any range of nodes of the result is run in the order of the result too.
    """
    maker = {name: index for index, node in enumerate(nodes) for name in node.writes}
    readers: list[list[int]] = [[] for _ in nodes]
    missing = []
    for index, node in enumerate(nodes):
        made_by = {maker[name] for name in node.reads if name in maker}
        missing.append(len(made_by))
        for other in made_by:
            readers[other].append(index)
    rank = [(node.proto.op_type not in _AT_ONCE, index) for index, node in enumerate(nodes)]
    ready = [rank[index] for index, count in enumerate(missing) if not count]
    heapify(ready)
    ordered: list[Node] = []
    while ready:
        index = heappop(ready)[1]
        ordered.append(nodes[index])
        for reader in readers[index]:
            missing[reader] -= 1
            if not missing[reader]:
                heappush(ready, rank[reader])
    return ordered
