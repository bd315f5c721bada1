"""Measurements: the same for the same code anywhere, another for any change of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vaultline
from vaultline.enclave.measurement import DISTRIBUTIONS, PACKAGES, measure

ROOT = Path(vaultline.__file__).parent


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Our measured packages at another place, with other timestamps."""
    root = tmp_path / "elsewhere" / "vaultline"
    root.mkdir(parents=True)
    shutil.copyfile(ROOT / "__init__.py", root / "__init__.py")
    for package in PACKAGES:
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, root / package, copy_function=shutil.copyfile)
    return root


def ours(root: Path | None = None) -> bytes:
    return measure(root, distributions=())


def test_a_measurement_is_32_bytes_and_repeats() -> None:
    assert ours() == ours()
    assert len(ours()) == 32


def test_place_timestamps_and_caches_do_not_count(copied: Path) -> None:
    (copied / "enclave" / "__pycache__").mkdir(exist_ok=True)
    (copied / "enclave" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"cache")
    assert ours(copied) == ours()


def test_code_outside_the_trusted_computing_base_does_not_count(copied: Path) -> None:
    (copied / "planner").mkdir()
    (copied / "planner" / "search.py").write_text("x = 1\n")
    assert ours(copied) == ours()


def add_byte(root: Path) -> None:
    with (root / "enclave" / "evidence.py").open("ab") as stream:
        stream.write(b"\n")


def swap(root: Path) -> None:
    one, other = root / "attest" / "challenge.py", root / "attest" / "grant.py"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte more": add_byte,
    "another simulated page cache": lambda root: (root / "enclave" / "simulated_epc.py").write_text(
        "x = 1\n"
    ),
    "a new module": lambda root: (root / "enclave" / "backdoor.py").write_text("x = 1\n"),
    "a new empty module": lambda root: (root / "core" / "empty.py").touch(),
    "a removed module": lambda root: (root / "core" / "units.py").unlink(),
    "a renamed module": lambda root: (root / "core" / "units.py").rename(root / "core" / "u.py"),
    "two modules swapped": swap,
    "a module moved to another package": lambda root: (root / "core" / "units.py").rename(
        root / "attest" / "units.py"
    ),
    "a line at the root of the package": lambda root: (root / "__init__.py").write_text("x = 1\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_measurement_changes_with(change: Callable[[Path], object], copied: Path) -> None:
    change(copied)
    assert ours(copied) != ours()


def test_libraries_count_with_their_versions_and_files() -> None:
    found = {measure(distributions=names) for names in ((), ("msgspec",), ("py-landlock",))}
    assert len(found) == 3
    assert measure(distributions=("no-such-library",)) not in found


def test_every_library_that_a_worker_loads_is_measured() -> None:
    """In a fresh interpreter, since this one has loaded more than a worker does."""
    program = """
import sys
from importlib import metadata, util
import onnxruntime, numpy, msgspec, py_landlock, pyseccomp
import vaultline.enclave.__main__
from vaultline.enclave import measurement
owners = metadata.packages_distributions()
names = {name.partition(".")[0] for name, module in sys.modules.items()
         if "site-packages" in (getattr(module, "__file__", None) or "")}
names -= {"_distutils_hack", "distutils-precedence", "vaultline"}
used = {owner.lower().replace("_", "-") for name in names for owner in owners.get(name, [name])}
print(" ".join(sorted(used - set(measurement.DISTRIBUTIONS))))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.split() == []
    assert "onnxruntime" in DISTRIBUTIONS


def test_a_worker_loads_no_verifier_and_nothing_of_the_owners() -> None:
    program = """
import sys
import vaultline.enclave.__main__
names = {"dcap_qvl", "yaml", "jwcrypto", "onnx"}
names |= {f"vaultline.{name}" for name in ("owner", "host", "attest.appraise", "attest.policy")}
print(" ".join(sorted(names.intersection(sys.modules))))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.split() == []
