"""Equations of time: of a stage, a link, a frame, a pipeline, a chunk of video.

    stage(i,j,d) = open(in) + seal(out) + frame_s(d)
                   + (compute(i,j,d) + stream(i,j,d) + calls(i,j) * step_s(d) + call_s(d)) / frames
                   + owner_share(d)
    link(a,b,n)  = latency_s(a,b) + n / bytes_per_s(a,b)
    latency      = sum(stage) + sum(link)
    bottleneck   = max(max(stage), max(link))
    chunk(n)     = latency + (n - 1) * bottleneck

``owner_share`` is what devices on the owner's host give up for its work where that host has no core
to spare. The term for paging is absent: a stage that would page is not a candidate, since it can
stream its weights instead. With prefetching the longer of ``compute`` and ``stream`` counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vaultline.core.profile import DeviceRates

#: A number, or a table of them over all segments.
Number = TypeVar("Number", float, NDArray[np.float64])


def stage_s(
    *,
    in_bytes: Number,
    out_bytes: Number,
    pass_compute_s: Number,
    stream_bytes: Number,
    calls: Number,
    frames: int,
    rates: DeviceRates,
    prefetch: bool = False,
) -> Number:
    """Seconds per frame of a stage that takes ``frames`` frames a pass.

    The frame's way in and out is paid per frame; streaming weights and starting a pass once a pass.

    Args:
        pass_compute_s: of the whole pass.
        stream_bytes: weights decrypted on every pass; zero where they stay resident.
        calls: of the engine, in one pass, that were not measured with the blocks.
        prefetch: weights are decrypted on another core, while steps run.
    """
    stream_s = stream_bytes / rates.decrypt_bytes_per_s
    worked_s = np.maximum(pass_compute_s, stream_s) if prefetch else pass_compute_s + stream_s
    per_pass = worked_s + calls * rates.step_s + rates.call_s
    hops = in_bytes / rates.open_bytes_per_s + out_bytes / rates.seal_bytes_per_s
    return hops + rates.frame_s + per_pass / frames


def owner_share_s(owner_s: float, *, host_cores: int, device_cores: int) -> float:
    """Seconds that each device on the owner's host loses to the owner for each frame.

    Nothing while the host has a core that no device uses; else the owner's work spreads over all.

    Args:
        device_cores: of all devices on that host.
    """
    return 0.0 if device_cores < host_cores else owner_s / host_cores


def link_s(nbytes: Number, *, bytes_per_s: float, latency_s: float) -> Number:
    """Seconds until ``nbytes`` have gone over a link."""
    return latency_s + nbytes / bytes_per_s


def latency_s(stages_s: Sequence[float], hops_s: Sequence[float]) -> float:
    """Seconds of one frame that travels alone."""
    return fsum((*stages_s, *hops_s))


def bottleneck_s(stages_s: Sequence[float], hops_s: Sequence[float]) -> float:
    """Seconds between frames of a full pipeline: the slowest stage or link."""
    return max(*stages_s, *hops_s)


def chunk_s(latency_s: float, bottleneck_s: float, frames: int) -> float:
    """Seconds of ``frames`` frames of video, the first one's latency included."""
    return latency_s + (frames - 1) * bottleneck_s
