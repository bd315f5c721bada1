"""The command line: what goes to which stream, and which exit code follows which failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO

import pytest
import typer

from vaultline.cli import main as cli
from vaultline.cli.common import JsonFlag, print_json
from vaultline.core import errors


def _stop() -> None:
    raise KeyboardInterrupt


def _raise(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Adds a verb ``try`` that runs an action and then prints ``{"done": true}``."""

    def add(action: Callable[[], None]) -> None:
        def run(as_json: JsonFlag = False) -> None:
            action()
            if as_json:
                print_json({"done": True})

        module = ModuleType("vaultline.cli.try")
        module.register = lambda app: app.command("try")(run)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "vaultline.cli.try", module)
        monkeypatch.setitem(cli.VERBS, "try", "Tries something.")
        monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)

    return add


EXIT_CODES = {
    "nothing goes wrong": (lambda: None, 0),
    "evidence is refused": (_raise(errors.RefusedError("no")), 1),
    "the user's file is wrong": (_raise(errors.InputError("bad")), 2),
    "no plan fits": (_raise(errors.InfeasibleError("too little memory")), 3),
    "a peer vanishes": (_raise(errors.PeerError("gone")), 4),
    "the machine lacks something": (_raise(errors.MachineError("no swap")), 4),
    "a verb asks for its own code": (_raise(typer.Exit(1)), 1),
    "the user presses Ctrl-C": (_stop, 130),
    "something nobody thought of": (_raise(ZeroDivisionError("x")), 70),
}


@pytest.mark.parametrize("case", EXIT_CODES)
def test_exit_codes(case: str, verb: Callable[[Callable[[], None]], None]) -> None:
    action, expected = EXIT_CODES[case]
    verb(action)
    assert cli.main(["try"]) == expected


def test_an_error_says_what_to_do_and_stays_off_standard_output(verb, capsys) -> None:
    verb(_raise(errors.InputError("bad [size]", got="3", expected="4", remedy="make it 4")))
    assert cli.main(["try"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: bad [size]",
        "  got: 3",
        "  expected: 4",
        "  to fix: make it 4",
    ]


def test_what_an_error_quotes_cannot_steer_the_terminal(verb, capsys) -> None:
    """A host's word for why a worker was lost is shown, and the host is not trusted."""
    said = "\x1b]0;owned\x07\x1b[2Jall is well\x9b1A, caf\u00e9"
    verb(_raise(errors.PeerError(said, got="\x1b[H")))
    assert cli.main(["try"]) == 4
    shown = capsys.readouterr().err
    assert r"\x1b[2Jall is well\x9b1A, café" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_what_an_error_quotes_is_shown_as_it_is(verb, capsys) -> None:
    """`:cloud:` is a host and its port's colon, and no picture."""
    verb(_raise(errors.PeerError("nobody answers at tcp:cloud:7070")))
    assert cli.main(["try"]) == 4
    assert "tcp:cloud:7070" in capsys.readouterr().err


def test_with_json_a_failure_is_one_document(verb, capsys) -> None:
    verb(_raise(errors.RefusedError("no", remedy="ask again")))
    assert cli.main(["try", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "error": {
            "code": "RefusedError",
            "message": "no",
            "got": None,
            "expected": None,
            "why": None,
            "remedy": "ask again",
            "exit_code": 1,
        }
    }


def test_a_bug_shows_its_traceback_only_on_request(verb, capsys, monkeypatch) -> None:
    verb(_raise(ZeroDivisionError("by [zero]")))
    assert cli.main(["try"]) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError: by [zero]" in err
    assert cli.DEBUG_VARIABLE in err
    assert "Traceback" not in err
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    assert cli.main(["try"]) == 70
    assert "Traceback" in capsys.readouterr().err


USAGE_ERRORS = {
    "an unknown verb": ["dctor"],
    "an unknown option": ["doctor", "--nonsense"],
    "a stray argument": ["doctor", "now"],
}


@pytest.mark.parametrize("case", USAGE_ERRORS)
def test_wrong_usage_exits_2_and_prints_no_result(case: str, capsys) -> None:
    assert cli.main(USAGE_ERRORS[case]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err


def test_wrong_usage_with_json_is_one_document(capsys) -> None:
    assert cli.main(["doctor", "--json", "--nonsense"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "UsageError"


def test_version(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vaultline ")


@pytest.mark.parametrize("verb_name", sorted(cli.VERBS))
def test_the_help_of_every_verb_shows_an_example(verb_name: str, capsys) -> None:
    assert cli.main([verb_name, "--help"]) == 0
    assert f"vaultline {verb_name}" in capsys.readouterr().out


@pytest.mark.parametrize("verb_name", sorted(cli.VERBS))
def test_help_shows_its_example_and_its_paragraphs_whole(verb_name, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    command = cli.load_verb(verb_name)
    leaves = getattr(command, "commands", {})
    for words, leaf in [([], command), *(([name], each) for name, each in leaves.items())]:
        assert cli.main([verb_name, *words, "--help"]) == 0
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        assert leaf.epilog in lines
        assert {line for line in leaf.help.splitlines() if line} <= {*lines}
        assert all("\n" not in each for each in leaf.help.split("\n\n"))


@pytest.mark.parametrize("verb_name", sorted(cli.VERBS))
def test_every_verb_has_json(verb_name: str) -> None:
    command = cli.load_verb(verb_name)
    commands = getattr(command, "commands", {verb_name: command}).values()
    for leaf in commands:
        assert "--json" in {name for option in leaf.params for name in option.opts}


def test_help_imports_no_heavy_package() -> None:
    script = (
        "import sys; from vaultline.cli.main import main; main(['--help']);"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'matplotlib', 'av', 'cryptography'};"
        "sys.exit(', '.join(heavy & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["doctor", "--errors"], ["doctor", "--json"], ["doctor"]])
def test_a_full_disk_is_a_machine_s_failure(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_program(arguments, full)
    assert done.returncode == 4
    assert done.stderr.splitlines() == [
        "error: what was to be written can't be",
        "  got: [Errno 28] No space left on device",
        "  to fix: make room where the output goes, and run it again",
    ]


@pytest.mark.parametrize("arguments", [["doctor", "--errors"], ["doctor", "--json"], ["doctor"]])
def test_a_reader_that_has_gone_is_no_refusal(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = run_program(arguments, pipe)
    assert (done.returncode, done.stderr) == (4, "")


def run_program(arguments: list[str], stdout: IO[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vaultline", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)
