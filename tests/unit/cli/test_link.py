"""``vaultline link``: both ends as a person would start them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vaultline.cli.main import main


@contextmanager
def serving() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server as a process, and where it says it listens."""
    command = [sys.executable, "-m", "vaultline", "link", "serve", "tcp:127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            yield server.stderr.readline().removeprefix("listening on ").strip(), server
        finally:
            server.kill()


def test_a_link_is_measured_from_the_other_end(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as (address, server):
        measure = ["link", "measure", address, "--source", "edge", "--target", "cloud"]
        assert main([*measure, "--seconds", "0.1", "--json"]) == 0
        assert server.wait(30) == 0
        assert server.stdout is not None
        assert "measured by one client" in server.stdout.read()
    found = json.loads(capsys.readouterr().out)
    assert found["entry"].startswith("- {source: edge, target: cloud, bandwidth: ")
    assert found["link"]["bytes_per_s"] > 1e6


BAD = {
    "an address of another kind": (["measure", "unix:/tmp/x"], "over TCP"),
    "no address": (["measure", "cloud"], "not an address"),
    "a port that is none": (["serve", "tcp:localhost:99999"], "not an address"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_address_is_bad_input(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = BAD[case]
    assert main(["link", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_nobody_who_connects_is_a_failure_of_the_peer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", "serve", "tcp:127.0.0.1:0", "--wait", "0.1"]) == 4
    assert "nobody connected" in capsys.readouterr().err
