"""The list of refusals is current, and says something of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vaultline.attest.refusals import EvidenceRefused
from vaultline.channel.chunks import VaultTamperedError
from vaultline.cli.common import show_error
from vaultline.cli.errors_page import errors_page, refusal_classes
from vaultline.cli.explanations import EXPLANATIONS, explained, explanation
from vaultline.cli.main import main
from vaultline.owner.hostlink import WorkerRefusedError

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == errors_page(), "vaultline doctor --errors > docs/errors.md"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--errors"]) == 0
    assert capsys.readouterr().out == errors_page()


def test_every_refusal_says_what_why_and_what_to_do() -> None:
    for kind in refusal_classes():
        assert kind.__doc__
        why, fix = explanation(kind)
        assert why.endswith(".")
        assert fix[0].islower()
        assert not fix.endswith(".")
        if issubclass(kind, EvidenceRefused):
            assert kind("a message").remedy == fix
            assert kind("a message", remedy="this").remedy == "this"


def test_nothing_is_explained_that_does_not_exist() -> None:
    assert set(EXPLANATIONS) <= {kind.__name__ for kind in refusal_classes()}


def test_what_an_enclave_refused_is_explained_as_if_it_had_been_refused_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    relayed = WorkerRefusedError("stage 1 was lost: altered", got="VaultTamperedError", remedy="x")
    show_error(relayed, as_json=True)
    said = capsys.readouterr()
    why, fix = explanation(VaultTamperedError)
    assert f"  why: {why}\n" in said.err
    assert f"  to fix: {fix}; x\n" in said.err
    error = json.loads(said.out)["error"]
    assert (error["got"], error["why"]) == ("VaultTamperedError", why)


@pytest.mark.parametrize("got", [None, "", "no such name", "__class__"])
def test_a_name_that_a_host_made_up_explains_nothing(got: str | None) -> None:
    assert explained(WorkerRefusedError("it was lost", got=got)) is None
