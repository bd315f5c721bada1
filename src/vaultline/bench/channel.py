"""Records through a socket, both ends counted, and the way from a challenge to a grant."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vaultline.bench.channel_worker import bench_keys
from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.bench.rig import Rig, local_cluster, make_rig
from vaultline.channel.messages import MessageWriter
from vaultline.core.errors import MachineError
from vaultline.graph.model import load_model
from vaultline.graph.zoo import build
from vaultline.planner.plan import make_plan
from vaultline.transport.framing import WatchedListener
from vaultline.transport.sockets import Address

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRequest:
    """How much to send per size and round, and how many sessions to grant."""

    zoo: Path
    rounds: int = 5
    bytes_per_round: int = 1 << 30
    sessions: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelResult:
    """GB/s (10^9 bytes of plaintext) by record size and transport, and milliseconds to a grant."""

    gbps: dict[str, dict[int, float]]
    grant_ms: list[float]

    @property
    def figures(self) -> dict[str, float]:
        """By name; ``gbps_1mib`` is over a Unix socket."""
        names = {4 << 10: "4kib", 16 << 10: "16kib", 64 << 10: "64kib", 256 << 10: "256kib"}
        names |= {1 << 20: "1mib", 4 << 20: "4mib", 16 << 20: "16mib"}
        made = {f"gbps_{names[size]}": rate for size, rate in self.gbps["unix"].items()}
        made |= {f"gbps_tcp_{names[size]}": rate for size, rate in self.gbps["tcp"].items()}
        made["grant_ms"] = statistics.median(self.grant_ms)
        made["grant_ms_max"] = max(self.grant_ms)
        return made


def bench_channel(
    request: ChannelRequest, progress: Callable[[str, int, int], None]
) -> ChannelResult:
    """Measure all sizes over both transports in interleaved rounds, then grants."""
    rates: dict[str, dict[int, list[float]]] = {
        kind: {size: [] for size in SIZES} for kind in ("unix", "tcp")
    }
    total = request.rounds * len(SIZES) * 2 + request.sessions
    done = 0
    with tempfile.TemporaryDirectory(prefix="vaultline-bench-") as folder:
        for _ in range(request.rounds):
            for kind, of_kind in rates.items():
                for size, found in of_kind.items():
                    found.append(_rate_gbps(kind, size, request.bytes_per_round, Path(folder)))
                    done += 1
                    progress("records", done, total)
        rig = _small_rig(request.zoo, Path(folder))
        grants: list[float] = []
        for _ in range(request.sessions):
            with rig.session() as session:
                grants += [release.grant_s * 1e3 for release in session.releases]
            done += 1
            progress("grants", done, total)
    medians = {
        kind: {size: statistics.median(found) for size, found in of_kind.items()}
        for kind, of_kind in rates.items()
    }
    return ChannelResult(gbps=medians, grant_ms=grants)


def _rate_gbps(kind: str, size: int, total_bytes: int, folder: Path) -> float:
    """Seal here, open in another process; small records are fewer bytes, or it takes too long."""
    count = max(8, min(total_bytes // size, 60_000))
    text = f"unix:{folder}/channel" if kind == "unix" else "tcp:127.0.0.1:0"
    listener = WatchedListener(Address.parse(text))
    command = [sys.executable, "-m", "vaultline.bench.channel_worker", str(listener.address)]
    with subprocess.Popen([*command, str(size)], stdout=subprocess.PIPE, text=True) as opener:
        sock = listener.accept_within(10.0)
        _line(opener)
        writer = MessageWriter(bench_keys(), message_bytes=size, fragment_bytes=size)
        plain = memoryview(bytearray(size))
        for _ in range(count + 1):
            for wire in writer.message(plain):
                sock.sendall(wire)
        sock.sendall(writer.end())
        seconds = float(_line(opener))
        sock.close()
    listener.close()
    return count * size / seconds / 1e9


def _line(process: subprocess.Popen[str]) -> str:
    line = "" if process.stdout is None else process.stdout.readline()
    if not line:
        raise MachineError("the other end of the channel benchmark has died")
    return line


def _small_rig(zoo: Path, folder: Path) -> Rig:
    model = load_model(build("squeezenet", zoo))
    profile = profile_model(model, ProfileRequest(repeats=3))
    plan = make_plan(profile, local_cluster(2), objective="throughput", stages=2)
    return make_rig(model, plan, folder)
