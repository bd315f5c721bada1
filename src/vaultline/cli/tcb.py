"""Which code has to be trusted: everything that a worker's main module can bring in.

There are two workers, of a pipeline's stage and of a server, and a base for each. The closure is
computed from the sources, without running them, so that it holds for imports inside functions as
well. It is an upper bound: a module counts in full once a single name of it is used.

Code that no enclave loads but simulated ones, for evidence and for paged stages, and code that only
accelerators load, which nobody trusts, is counted apart: what nothing else than the modules in
``SIMULATED`` brings in. It counts as trusted again as soon as one of them is imported when another
module is, instead of within a function. It is measured like all the rest. Of the providers of real
evidence (``PROVIDERS``) a worker loads the one that it was started for: the largest counts.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

#: What one person can read in an afternoon: lines of code, to which blank lines, comments and
#: docstrings are no burden. A larger base is refused, so that growing it is a decision and not an
#: accident. All lines together are reported beside it.
TCB_LINES_MAX = 2500
#: Main modules of workers, each the start of a base of its own.
WORKERS = ("vaultline.enclave.__main__", "vaultline.enclave.server")
#: Loaded only where no hardware vouches for a worker (simulated enclaves, accelerators), within
#: functions that look at what provides the evidence.
SIMULATED = (
    "vaultline.enclave.pinned_quotes",
    "vaultline.enclave.simulated_epc",
    "vaultline.enclave.simulated_executor",
    "vaultline.enclave.simulated_groups",
    "vaultline.enclave.simulated_quotes",
)
#: Evidence of each kind of hardware. A worker loads the one that it was started for.
PROVIDERS = ("vaultline.enclave.gramine_quotes", "vaultline.enclave.tsm_quotes")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedModule:
    """A module of ours: all of its lines, and those that are code.

    Code is what is neither blank nor comment nor docstring.
    """

    name: str
    lines: int
    code_lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """A third-party package. Indirect ones are required by others, whether imported or not."""

    name: str
    version: str
    direct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedBase:
    """The trusted computing base in numbers.

    Attributes:
        simulated: modules that only simulated enclaves and accelerators load.
        dynamic: places (``module:line``) that import by a computed name, which this count
            cannot follow; there must be none.
    """

    modules: tuple[TrustedModule, ...]
    dependencies: tuple[Dependency, ...]
    dynamic: tuple[str, ...]
    lines_max: int = TCB_LINES_MAX
    simulated: tuple[TrustedModule, ...] = ()

    @property
    def lines(self) -> int:
        """All lines of all modules."""
        return sum(module.lines for module in self.modules)

    @property
    def code_lines(self) -> int:
        """Lines of code of the worker that has most: neither blank nor comment nor docstring."""
        providers = [module.code_lines for module in self.modules if module.name in PROVIDERS]
        unused = sum(providers) - max(providers, default=0)
        return sum(module.code_lines for module in self.modules) - unused

    @property
    def simulated_code_lines(self) -> int:
        """Lines of code of ``simulated``, not in ``code_lines``."""
        return sum(module.code_lines for module in self.simulated)

    @property
    def within_limit(self) -> bool:
        """The code is small enough, and counted completely."""
        return self.code_lines <= self.lines_max and not self.dynamic


def trusted_base(
    source: Path, package: str = WORKERS[0], simulated: tuple[str, ...] = SIMULATED
) -> TrustedBase:
    """Count the modules that ``package`` (with all of its submodules, if it has any) can import.

    Args:
        source: the folder that holds the ``vaultline`` package.
        package: where the closure starts: a package or a module.
        simulated: modules that imports within functions may bring in without being trusted.
    """
    starts = list(_modules_under(source, package))
    trusted = _closure(source, [name for name in starts if name not in simulated], simulated)
    everything = _closure(source, starts, ())
    beyond = everything.modules.keys() - trusted.modules.keys()
    return TrustedBase(
        modules=tuple(trusted.modules[name] for name in sorted(trusted.modules)),
        dependencies=tuple(_dependencies(everything.external)),
        dynamic=tuple(sorted(everything.dynamic)),
        simulated=tuple(everything.modules[name] for name in sorted(beyond)),
    )


@dataclass(slots=True)
class _Closure:
    """Modules of ours by name, the names of others, and imports that can't be followed."""

    modules: dict[str, TrustedModule]
    external: set[str]
    dynamic: list[str]


def _closure(source: Path, starts: list[str], lazily_not: tuple[str, ...]) -> _Closure:
    """All that ``starts`` can bring in, but for imports of ``lazily_not`` within functions."""
    waiting = list(starts)
    found = _Closure({}, set(), [])
    while waiting:
        name = waiting.pop()
        path = _module_path(source, name)
        if name in found.modules or path is None:
            continue
        text = path.read_text(encoding="utf-8")
        found.modules[name] = _measure(name, text)
        imports = _Imports(name, lazily_not, is_package=path.name == "__init__.py")
        imports.visit(ast.parse(text, filename=str(path)))
        found.dynamic += [f"{name}:{line}" for line in imports.dynamic_lines]
        root = starts[0].partition(".")[0] if starts else ""
        for imported in imports.names:
            if imported.partition(".")[0] == root:
                waiting += _with_parents(imported)
            else:
                found.external.add(imported.partition(".")[0])
    return found


def _modules_under(source: Path, package: str) -> Iterator[str]:
    yield from _with_parents(package)
    for path in (source / package.replace(".", "/")).rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _with_parents(name: str) -> list[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``: importing the last runs them all."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _module_path(source: Path, name: str) -> Path | None:
    base = source / name.replace(".", "/")
    candidates = (base.with_name(base.name + ".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _measure(name: str, text: str) -> TrustedModule:
    lines = [line.strip() for line in text.splitlines()]
    prose = {
        number for number, line in enumerate(lines, start=1) if not line or line.startswith("#")
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            prose.update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return TrustedModule(name=name, lines=len(lines), code_lines=len(lines) - len(prose))


class _Imports(ast.NodeVisitor):
    """Collects what a module may import when it runs."""

    def __init__(self, module: str, lazily_not: tuple[str, ...] = (), *, is_package: bool) -> None:
        self.names: set[str] = set()
        self._lazily_not, self._functions = lazily_not, 0
        self.dynamic_lines: list[int] = []
        self._package = module if is_package else module.rpartition(".")[0]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """What is imported within runs when the function does."""
        self._functions += 1
        self.generic_visit(node)
        self._functions -= 1

    def visit_If(self, node: ast.If) -> None:
        """Skip ``if TYPE_CHECKING:``; its other branch runs."""
        test = node.test
        name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
        for child in node.orelse if name == "TYPE_CHECKING" else ast.iter_child_nodes(node):
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        """``import a.b``."""
        self.names.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """``from a.b import c``, where ``c`` may be a module as well."""
        base = node.module or ""
        if node.level:
            parents = self._package.split(".")
            above = parents[: len(parents) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        if self._functions and base in self._lazily_not:
            return
        self.names.add(base)
        self.names.update(f"{base}.{alias.name}" for alias in node.names)

    def visit_Call(self, node: ast.Call) -> None:
        """Follow ``import_module("a.b")``; note imports by a computed name."""
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in {"import_module", "__import__", "run_module", "run_path"}:
            match node.args:
                case [ast.Constant(value=str(imported))] if not imported.startswith("."):
                    self.names.add(imported)
                case _:
                    self.dynamic_lines.append(node.lineno)
        self.generic_visit(node)


def _dependencies(imported: Iterable[str]) -> Iterator[Dependency]:
    """The distributions behind imported names, and what they require in turn.

    Requirements of extras, and those that are not installed here, don't count.
    """
    owners = metadata.packages_distributions()
    outside = sorted(set(imported) - sys.stdlib_module_names)
    direct = {_canonical(owner) for name in outside for owner in owners.get(name, [name])}
    waiting, seen = sorted(direct), set[str]()
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in direct:
                yield Dependency(name=name, version="not installed", direct=True)
            continue
        yield Dependency(name=name, version=distribution.version, direct=name in direct)
        for line in distribution.requires or ():
            match = _REQUIREMENT.match(line)
            if match and "extra ==" not in line:
                waiting.append(_canonical(match.group()))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
