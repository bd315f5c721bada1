"""The list of refusals is current, and says something of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaultline.attest.refusals import EvidenceRefused
from vaultline.cli.errors_page import errors_page, refusal_classes
from vaultline.cli.main import main

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == errors_page(), "vaultline doctor --errors > docs/errors.md"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--errors"]) == 0
    assert capsys.readouterr().out == errors_page()


def test_every_refusal_of_evidence_says_what_why_and_what_to_do() -> None:
    for kind in refusal_classes():
        assert kind.__doc__
        if issubclass(kind, EvidenceRefused):
            assert kind.why.endswith(".")
            assert kind("a message").remedy == kind.fix
            assert kind("a message", remedy="this").remedy == "this"
