"""Stages in a row over real hops: the first failure's reason reaches the owner."""

from __future__ import annotations

import socket

import pytest

from vaultline.channel.keys import derive_hop_keys
from vaultline.channel.messages import StreamAbortedError
from vaultline.channel.records import RecordHeaderError
from vaultline.core.errors import VaultlineError
from vaultline.enclave.executor import Executor
from vaultline.enclave.ledger import Ledger
from vaultline.enclave.pipeline import Pipeline, Progress, StageBuffers
from vaultline.testing.vaults import small_stage
from vaultline.transport.streams import HopReceiver, HopSender

STAGES = 3


class NoWeights:
    """A stage without steps asks for none."""

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        raise IndexError(index)


def test_the_owner_learns_why_the_first_stage_gave_up() -> None:
    """Through every stage between, after the frames that had been sent before."""

    sockets = [socket.socketpair() for _ in range(STAGES + 1)]
    keys = [derive_hop_keys(b"s" * 32, hop=hop, epoch=1) for hop in range(STAGES + 1)]
    pipelines = []
    for stage in range(STAGES):
        program = small_stage((), stage=stage, stages=STAGES).program
        ledger = Ledger(1 << 20)
        buffers = StageBuffers(program, ledger)
        size = buffers.input_layout.message_bytes
        before, after = sockets[stage][1], sockets[stage + 1][0]
        pipelines.append(
            Pipeline(
                program,
                Executor(program, NoWeights(), ledger),
                buffers,
                HopReceiver(lambda sock=before: sock, keys[stage], message_bytes=size),  # type: ignore[misc]
                HopSender(after, keys[stage + 1], message_bytes=size),
                Progress(),
            )
        )
    owner = HopSender(sockets[0][0], keys[0], message_bytes=size)
    owner.send(memoryview(bytes(size)))
    sockets[0][0].sendall(bytes(100))  # not a record
    for pipeline in pipelines:
        with pytest.raises(VaultlineError):
            pipeline.run()
    results = HopReceiver(lambda: sockets[STAGES][1], keys[STAGES], message_bytes=size)
    assert results.receive(memoryview(bytearray(size)))
    with pytest.raises(StreamAbortedError) as caught:
        results.receive(memoryview(bytearray(size)))
    assert caught.value.got == "stage 0: " + str(RecordHeaderError.__doc__)
