"""``python -m vaultline.bench.channel_worker ADDRESS SIZE COUNT``: the opening end of the channel
benchmark, in a process of its own. Prints ``ready``, then the seconds from first to last message.
"""

from __future__ import annotations

import sys
import time

from vaultline.channel.keys import HopKeys, derive_hop_keys
from vaultline.channel.messages import MessageReader, MessageReceived, StreamEnded
from vaultline.transport.sockets import Address, connect

#: Not a secret: both ends of a benchmark.
_SECRET = bytes(range(32))


def bench_keys() -> HopKeys:
    """The keys of both ends."""
    return derive_hop_keys(_SECRET, hop=0, epoch=0)


def main() -> None:
    """Open messages until the end of the stream."""
    address, size = Address.parse(sys.argv[1]), int(sys.argv[2])
    reader = MessageReader(bench_keys(), message_bytes=size, fragment_bytes=size)
    target = memoryview(bytearray(size))
    sock = connect(address, timeout_s=10.0)
    print("ready", flush=True)
    first_s = None
    while True:
        event = reader.next_event(target)
        if isinstance(event, StreamEnded):
            break
        if isinstance(event, MessageReceived):
            first_s = first_s or time.perf_counter()
            continue
        reader.received(sock.recv_into(reader.want()))
    print(time.perf_counter() - (first_s or 0.0), flush=True)


if __name__ == "__main__":
    main()
