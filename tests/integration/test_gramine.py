"""A worker under Gramine itself, without SGX, where that program is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from vaultline.attest.challenge import report_data
from vaultline.attest.granting import read_evidence
from vaultline.cli import main as cli
from vaultline.core.control import ChallengeMessage, EvidenceMessage, ReadyLine, WorkerLine
from vaultline.core.serde import from_json
from vaultline.testing.attestation import challenge, devroot
from vaultline.transport.control import receive_control, send_control
from vaultline.transport.sockets import Address, connect, hang_up

GRAMINE = shutil.which("gramine-direct")


@pytest.mark.skipif(GRAMINE is None, reason="gramine-direct is not installed")
def test_a_worker_under_gramine_answers_a_challenge(tmp_path: Path) -> None:
    platform, vaults, out = tmp_path / "platform.json", tmp_path / "vaults", tmp_path / "out"
    vaults.mkdir()
    platform.write_bytes(devroot().platform)
    (vaults / "model.vault").write_bytes(b"no vault")
    arguments = ["deploy", "gramine", "--mode", "direct", "--out", str(out)]
    assert cli.main([*arguments, "--vaults", str(vaults), "--platform", str(platform)]) == 0
    config = json.loads((out / "worker.json").read_text())
    config |= {"control": "tcp:127.0.0.1:0", "data": ["tcp:127.0.0.1:0"]}
    popen = subprocess.Popen(
        [str(GRAMINE), "worker"],
        cwd=out,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert popen.stdin is not None
    assert popen.stdout is not None
    try:
        popen.stdin.write(json.dumps(config).encode() + b"\n")
        popen.stdin.flush()
        ready = None
        while not isinstance(ready, ReadyLine):
            line = popen.stdout.readline()
            assert line, popen.stderr and popen.stderr.read().decode(errors="replace")
            ready = from_json(line, WorkerLine, what="a line")  # type: ignore[arg-type]
        assert {step.state for step in ready.hardening} == {"skipped"}
        sock = connect(Address.parse(ready.control), timeout_s=30.0)
        send_control(sock, ChallengeMessage(challenge=challenge().encode()))
        answer = receive_control(sock, EvidenceMessage, timeout_s=30.0)
        evidence = read_evidence(answer.evidence)
        assert report_data(challenge(), evidence.public_key) in evidence.quote
        hang_up(sock)
        popen.stdin.close()
        assert popen.wait(timeout=60) == 0
    finally:
        popen.kill()
        popen.wait()
