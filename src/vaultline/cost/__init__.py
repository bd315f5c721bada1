"""The equations of time and memory. Pure arithmetic: scalars and numpy arrays go in alike."""

from vaultline.cost.memory import engine_bytes, io_bytes, streamed_bytes
from vaultline.cost.segments import Segments
from vaultline.cost.time import bottleneck_s, chunk_s, latency_s, link_s, stage_s

__all__ = [
    "Segments",
    "bottleneck_s",
    "chunk_s",
    "engine_bytes",
    "io_bytes",
    "latency_s",
    "link_s",
    "stage_s",
    "streamed_bytes",
]
