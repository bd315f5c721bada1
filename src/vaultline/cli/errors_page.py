"""``docs/errors.md``: every refusal, made from the classes that raise them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import vaultline
from vaultline.attest.refusals import EvidenceRefused
from vaultline.core.errors import RefusedError

#: Parts of the package that are not the product, or start something when imported.
_SKIPPED = ("vaultline.testing", "vaultline.bench", "vaultline.enclave.__main__")
_HEAD = """# Refusals

Made by `vaultline doctor --errors` from the code; do not edit.

A refusal is a check that said no: nothing is released, and the command ends with exit code 1. It
shows what was found, what was expected and what to do; with `--json` it has the name below as its
`code`. These names stay.

"""


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
    lines = [_HEAD.rstrip(), "", "## Evidence", ""]
    lines += ["| refusal | what was found | why it matters | what to do |", "|---|---|---|---|"]
    for kind in evidence:
        lines.append(f"| `{kind.__name__}` | {_said(kind)} | {kind.why} | {_capital(kind.fix)} |")
    others = [c for c in classes if not issubclass(c, EvidenceRefused)]
    lines += ["", "## Everything else", "", "| refusal | what was found | where |", "|---|---|---|"]
    for other in others:
        place = other.__module__.removeprefix("vaultline.")
        lines.append(f"| `{other.__name__}` | {_said(other)} | `{place}` |")
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
