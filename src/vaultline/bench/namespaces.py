"""Machines of their own on this one: network namespaces joined by a switch, with shaped wires.

They need root and iproute2. Only a wire's bandwidth can be set: the kernel's token bucket shapes
it, and the other qdisc, which would delay, is not in every kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_SUBNET = "10.77.0"
#: What a shaped wire may send at once, and how long a packet may wait in its queue: enough for TCP
#: to keep the wire busy, little enough that what is measured is the wire and not its queue.
_BURST, _QUEUE = "32kbit", "50ms"
_counter = itertools.count()


def why_no_namespaces() -> str | None:
    """Why network namespaces can't be made here, or None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2"
    try:
        with Network(("probe",)):
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces can't be made here: {error.stderr.strip()}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """Places of their own, each with an address on one switch. A context manager.

    Attributes:
        netns: name of each place's namespace.
        address: each place's address.
    """

    def __init__(self, places: Sequence[str]) -> None:
        prefix = f"vlt{os.getpid():x}-{next(_counter)}"
        self.switch = f"{prefix}-switch"
        self.netns = {place: f"{prefix}-{place}" for place in places}
        self.address = {place: f"{_SUBNET}.{n}" for n, place in enumerate(places, start=1)}

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _make(self) -> None:
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "br0", "up")
        for number, (place, name) in enumerate(self.netns.items()):
            _ip("netns", "add", name)
            port = f"port{number}"
            veth = ("type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self.switch, "link", "add", port, *veth)
            _ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{self.address[place]}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        """A namespace takes its end of every wire with it."""
        for name in (*self.netns.values(), self.switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)

    def shape(self, place: str, bits_per_s: float) -> None:
        """Limit what leaves a place to a rate: the sending half of a slow link."""
        rate = f"{round(bits_per_s)}bit"
        inside = ("ip", "netns", "exec", self.netns[place])
        tbf = ("tbf", "rate", rate, "burst", _BURST, "latency", _QUEUE)
        command = [*inside, "tc", "qdisc", "add", "dev", "eth0", "root", *tbf]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def call(self, place: str, function: Callable[[], T]) -> T:
        """Run a function in a place: its sockets, threads and processes belong there."""
        return in_namespace(self.netns[place], function)


def in_namespace(name: str, function: Callable[[], T]) -> T:
    """Run a function in a thread of its own that has entered a network namespace.

    Namespaces belong to threads; threads and processes that the function starts inherit its own.

    Raises:
        OSError: no such namespace, or no right to enter it.
        BaseException: whatever the function raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with Path(f"/run/netns/{name}").open() as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"cannot enter namespace {name}")
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"in {name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
