"""Small profiles and clusters whose best plans can be worked out by hand."""

from __future__ import annotations

from vaultline.core.cluster import Cluster, Device, Host, Link
from vaultline.core.profile import (
    TILE_BYTES,
    BlockProfile,
    DeviceRates,
    LoopbackRate,
    ModelProfile,
    RecordedOn,
    held_between,
)
from vaultline.core.tensors import TensorSpec

#: So fast that only computing counts.
FREE = 1e18
MIB = 1 << 20


def profile(
    compute_s: list[float],
    *,
    crossing_bytes: list[int] | None = None,
    weight_bytes: int = 0,
    activation_bytes: int = 0,
    passes: tuple[tuple[int, float], ...] = (),
    scale: dict[str, float] | None = None,
    decrypt_bytes_per_s: float = FREE,
    call_s: float = 0.0,
) -> ModelProfile:
    """A chain of blocks, one node each. ``passes`` are (frames, factor on the one-frame time)."""
    crossing = tuple(
        (TensorSpec(name=f"t{cut}", dtype="uint8", shape=(nbytes,)),)
        for cut, nbytes in enumerate(crossing_bytes or [1] * (len(compute_s) + 1))
    )
    return ModelProfile(
        model_name="chain",
        model_digest="ab" * 32,
        engine_version="1.0",
        isa="x86-64-avx2",
        recorded_on=RecordedOn(host="h", cpu="c", date="2026-01-01", command="none"),
        positions=tuple(range(len(compute_s) + 1)),
        blocks=tuple(
            BlockProfile(
                compute_s=((1, seconds), *((n, seconds * factor) for n, factor in passes)),
                weight_bytes=weight_bytes,
                activation_bytes=activation_bytes,
                cut_bytes=activation_bytes + min(weight_bytes, TILE_BYTES),
                cut_steps=max(1, -(-weight_bytes // TILE_BYTES)),
                largest_weight_bytes=min(weight_bytes, TILE_BYTES),
            )
            for seconds in compute_s
        ),
        crossing=crossing,
        held=held_between(crossing),
        rates=DeviceRates(
            seal_bytes_per_s=FREE,
            open_bytes_per_s=FREE,
            decrypt_bytes_per_s=decrypt_bytes_per_s,
            call_s=call_s,
        ),
        loopback=LoopbackRate(bytes_per_s=FREE, latency_s=0.0),
        class_scale=scale or {},
    )


def device(name: str, host: str = "box", **changes: object) -> Device:
    fields: dict[str, object] = {
        "name": name,
        "host": host,
        "kind": "simulated",
        "trust": "attested",
        "memory_bytes": 100 * MIB,
        "cores": 1,
    }
    return Device(**{**fields, **changes})  # type: ignore[arg-type]


def cluster(*devices: Device, links: tuple[Link, ...] = (), owner: str = "box") -> Cluster:
    names = sorted({owner, *(each.host for each in devices)})
    return Cluster(
        owner=owner,
        hosts=tuple(Host(name=name, cores=8, memory_bytes=1 << 40) for name in names),
        devices=devices,
        links=links,
    )


def both_ways(a: str, b: str, bytes_per_s: float, latency_s: float = 0.0) -> tuple[Link, Link]:
    return (
        Link(source=a, target=b, bytes_per_s=bytes_per_s, latency_s=latency_s),
        Link(source=b, target=a, bytes_per_s=bytes_per_s, latency_s=latency_s),
    )
