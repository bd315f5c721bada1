"""``docs/errors.md``: every refusal, made from the classes that raise them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import vaultline
from vaultline.attest.refusals import EvidenceRefused
from vaultline.cli.explanations import explanation
from vaultline.core.errors import RefusedError

#: Parts of the package that are not the product, or start something when imported.
_SKIPPED = ("vaultline.testing", "vaultline.bench", "vaultline.enclave.__main__")
_HEAD = """# Refusals

Made by `vaultline doctor --errors` from the code; do not edit.

A refusal is a check that said no: nothing is released, and the command ends with exit code 1. It
shows what was found, what was expected, why that matters and what to do. With `--json` the name
below is its `code`; where an enclave refused, that is `RefusedByPeerError` or `WorkerRefusedError`,
and the name is in `got`. These names stay.

"""
_TABLE = ("| refusal | what was found | why it matters | what to do |", "|---|---|---|---|")


def refusal_classes() -> list[type[RefusedError]]:
    """All refusals of the package, by module and then in the order of the source."""
    for module in pkgutil.walk_packages(vaultline.__path__, "vaultline."):
        if not module.name.startswith(_SKIPPED) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = {c for c in _subclasses(RefusedError) if not c.__module__.startswith(_SKIPPED)}
    return sorted(found, key=lambda c: (c.__module__, inspect.getsourcelines(c)[1]))


def errors_page() -> str:
    """The page (Markdown)."""
    classes = refusal_classes()
    evidence = [c for c in classes if issubclass(c, EvidenceRefused)]
    others = [c for c in classes if not issubclass(c, EvidenceRefused)]
    lines = [_HEAD.rstrip()]
    for title, kinds in (("Evidence", evidence), ("Everything else", others)):
        lines += ["", f"## {title}", "", *_TABLE]
        for kind in kinds:
            why, fix = explanation(kind)
            lines.append(f"| `{kind.__name__}` | {_said(kind)} | {why} | {_capital(fix)} |")
    return "\n".join(lines) + "\n"


def _subclasses(kind: type[RefusedError]) -> Iterator[type[RefusedError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def _said(kind: type[RefusedError]) -> str:
    first = inspect.getdoc(kind) or ""
    return " ".join(first.split("\n\n")[0].split()).replace("|", "\\|")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
