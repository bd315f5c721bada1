"""The ``vaultline`` command: its verbs, and the one place where errors become exit codes.

A verb is a module ``vaultline.cli.<verb>`` with a function ``register(app)``, which adds a command
(or a group of them) of the verb's name to a Typer application, and a line in ``VERBS``. The module
is imported only when its verb is called, so that ``vaultline --help`` is quick.

Exit codes: 0 done, 1 refused or failed verification, 2 usage or bad input, 3 infeasible, 4 peer or
machine failed, 70 a bug of ours, 130 stopped by the user.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from inspect import cleandoc
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

import vaultline
from vaultline.cli.common import error_document, messages, print_json, show_error
from vaultline.core.errors import MachineError, VaultlineError

#: Verb -> what ``vaultline --help`` says of it. Those without a text are hidden: for programs.
VERBS = {
    "profile": "Measure a model on this machine, block by block.",
    "plan": "Find the best partition of a model over a cluster's devices.",
    "cluster": "Check a cluster file, or print its schema.",
    "link": "Measure the link between two hosts, for the cluster file.",
    "privacy": "See what each cut of a model shows of its input.",
    "seal": "Compile and encrypt the stages of a plan.",
    "policy": "Make policies: which evidence is accepted.",
    "prepare": "Divide, seal and measure models for servers.",
    "verify": "Verify evidence against a policy, offline.",
    "collateral": "Pack what verification needs besides the evidence.",
    "run": "Send a video through the enclaves of a plan.",
    "receipt": "Verify what the enclaves of a run signed.",
    "serve": "Serve many models on the enclaves of a cluster.",
    "load": "Send a workload's requests to what `serve` serves.",
    "simulate": "Serve a workload in virtual time, under several policies.",
    "trace": "Make a trace for Perfetto of what servers have logged.",
    "demo": "See all of it on a small example.",
    "bench": "Measure what the project claims.",
    "measure": "Reference values of the installed worker, for policies.",
    "deploy": "Render what starts a worker where its hardware is.",
    "doctor": "What this machine offers, and how large the trusted code is.",
}
EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_STOPPED = 130
#: Of files, standard output among them: no bugs of ours.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_ROOM = "make room where the output goes, and run it again"
#: Set to 1 to see the traceback of an error.
DEBUG_VARIABLE = "VAULTLINE_DEBUG"


class VerbGroup(TyperGroup):
    """Lists all verbs from the table; imports only the one that is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for verb, text in VERBS.items():
            self.add_command(TyperCommand(verb, callback=None, help=text, hidden=not text))

    def resolve_command(
        self, ctx: Any, args: list[str]
    ) -> tuple[str | None, TyperCommand | TyperGroup | None, list[str]]:
        """Replace the listed verb by its real command."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load_verb(name) if name and listed else None, rest


def load_verb(verb: str) -> TyperCommand | TyperGroup:
    """Import a verb's module and make its command."""
    app = typer.Typer(pretty_exceptions_enable=False)
    import_module(f"vaultline.cli.{verb}").register(app)
    command = get_group(app).commands[verb]
    if not isinstance(command, TyperCommand | TyperGroup):
        raise TypeError(f"vaultline.cli.{verb} registered {command!r}")
    for each in (command, *getattr(command, "commands", {}).values()):
        each.help = _flowing(each.help or "")
    return command


def _flowing(text: str) -> str:
    """A docstring's paragraphs on one line each: the terminal's width breaks them, not ours."""
    return "\n\n".join(" ".join(each.split()) for each in cleandoc(text).split("\n\n"))


def make_app() -> typer.Typer:
    """The application, without its verbs."""
    app = typer.Typer(
        cls=VerbGroup,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Example: vaultline doctor --json",
    )
    app.callback()(_root)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"vaultline {vaultline.__version__}\n")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run a deep neural network over a line of attested enclaves, as an encrypted pipeline."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        code = _run(arguments, as_json=as_json)
        sys.stdout.flush()
    except SystemExit:  # what typer and rich do when the reader of standard output has gone
        return MachineError.exit_code
    except OSError as error:
        return _unwritten(error)
    return code


def _run(arguments: list[str], *, as_json: bool) -> int:
    try:
        code = get_command(make_app()).main(arguments, "vaultline", standalone_mode=False)
    except VaultlineError as error:
        _maybe_traceback()
        show_error(error, as_json=as_json)
        return error.exit_code
    except typer.TyperException as error:
        return _usage_error(error, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_STOPPED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        return _bug(error, as_json=as_json)
    # Verbs return nothing; an explicit typer.Exit(code) arrives here as its code.
    code = code if isinstance(code, int) else 0
    if code == EXIT_STOPPED:
        messages().print("stopped")
    return code


def _unwritten(error: OSError) -> int:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())  # what is left would be tried once more at the end
    os.close(null)
    if not isinstance(error, BrokenPipeError):
        lost = MachineError("what was to be written can't be", got=str(error), remedy=_ROOM)
        show_error(lost, as_json=False)
    return MachineError.exit_code


def _usage_error(error: typer.TyperException, *, as_json: bool) -> int:
    # Imported late: it takes tens of milliseconds.
    from typer.rich_utils import rich_format_error

    if as_json:
        print_json(error_document("UsageError", error.format_message(), EXIT_USAGE))
    rich_format_error(error)  # type: ignore[arg-type]
    return EXIT_USAGE


def _maybe_traceback() -> bool:
    """Print the traceback if the user has asked for it. It never shows variables."""
    if os.environ.get(DEBUG_VARIABLE) != "1":
        return False
    traceback.print_exc()
    return True


def _bug(error: Exception, *, as_json: bool) -> int:
    message = f"{type(error).__name__}: {error}"
    remedy = f"set {DEBUG_VARIABLE}=1 to see where it happened, and report that"
    if as_json:
        print_json(error_document("Bug", message, EXIT_BUG, remedy=remedy))
    if not _maybe_traceback():
        console = messages()
        console.print(f"[bold red]this is a bug in vaultline:[/] {escape(message)}")
        console.print(f"  to help: {remedy}")
    return EXIT_BUG
