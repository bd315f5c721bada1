"""A worker's measurement of itself: what a simulated enclave reports as MRENCLAVE.

Covers every Python file of the packages that the trusted computing base is made of, the Python
files and shared objects of the libraries that it runs, and the version of Python. Does not cover
the interpreter and its standard library, libc and other system libraries, start-up hooks
(``sitecustomize``, ``.pth`` files), compiled caches (``__pycache__``) or the kernel. Code that
measures itself can lie: in a simulation this guards against mistakes (other versions, changed
code), while hardware measures from outside.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from vaultline.core.errors import MachineError

#: Ours: the enclave and all that it imports, whole packages so that no module is forgotten.
PACKAGES = ("attest", "channel", "core", "enclave", "sched", "transport")
#: Others' that run in the worker's process.
DISTRIBUTIONS = (
    "cffi",
    "cryptography",
    "msgspec",
    "numpy",
    "onnxruntime",
    "py-landlock",
    "pyseccomp",
    "typing-extensions",
)


def measure(
    package_root: Path | None = None, distributions: Iterable[str] = DISTRIBUTIONS
) -> bytes:
    """SHA-256 over names, versions and contents of the code that the worker runs.

    Independent of where things are installed, of timestamps and of compiled caches.

    Args:
        package_root: the folder of the package ``vaultline``; this one's by default.
        distributions: names of installed libraries.

    Raises:
        MachineError: a library was installed without a list of its files.
    """
    root = package_root or Path(__file__).resolve().parents[1]
    files = list(_our_files(root))
    lines = [f"python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"]
    for name in sorted(distributions):
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            lines.append(f"distribution {name} absent")
            continue
        lines.append(f"distribution {name} {distribution.version}")
        files.extend(_their_files(name, distribution))
    files.sort()
    lines += [f"{_file_digest(path)} {name}" for name, path in files]
    return hashlib.sha256("\n".join(lines).encode()).digest()


def _our_files(root: Path) -> Iterator[tuple[str, Path]]:
    paths = [root / "__init__.py"]
    for package in PACKAGES:
        paths += (root / package).rglob("*.py")
    for path in paths:
        yield f"vaultline/{path.relative_to(root).as_posix()}", path


def _their_files(name: str, distribution: metadata.Distribution) -> Iterator[tuple[str, Path]]:
    """Code that a library's wheel installed: Python and shared objects, no caches or records."""
    files = distribution.files
    if files is None:
        raise MachineError(
            f"{name} cannot be measured: it has no list of its files",
            remedy="install it from a wheel, with pip",
        )
    for file in files:
        if (file.suffix == ".py" or ".so" in file.suffixes) and ".." not in file.parts:
            yield f"{name}/{file.as_posix()}", Path(str(file.locate()))


def _file_digest(path: Path) -> str:
    """SHA-256 of a file; one that is gone counts as absent, so its loss changes the measurement."""
    try:
        with path.open("rb", buffering=0) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return "absent"
