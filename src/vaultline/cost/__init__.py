"""The equations of time and memory. Pure arithmetic: scalars and numpy arrays go in alike."""

from vaultline.cost.memory import resident_bytes, step_bytes, streamed_bytes
from vaultline.cost.segments import Segments
from vaultline.cost.time import bottleneck_s, chunk_s, latency_s, link_s, stage_s

__all__ = [
    "Segments",
    "bottleneck_s",
    "chunk_s",
    "latency_s",
    "link_s",
    "resident_bytes",
    "stage_s",
    "step_bytes",
    "streamed_bytes",
]
