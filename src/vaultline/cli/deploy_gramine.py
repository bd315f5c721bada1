"""A Gramine manifest for the installed worker: which files it may open, and their hashes.

The files are known in three ways that have to agree: the interpreter's library, our packages and
the wheels' own lists (what `enclave.measurement` reads), and a worker started to see what it loads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

import vaultline
from vaultline.cli.deploy_files import fill, plain, quoted
from vaultline.core.errors import InputError, MachineError
from vaultline.enclave.measurement import DISTRIBUTIONS, PACKAGES

Variant = Literal["sgx", "direct"]
#: What a worker is for, and what starts it.
WorkerName = Literal["stage", "server"]
MODULES = {"stage": "vaultline.enclave", "server": "vaultline.enclave.server"}
GRAMINE_LIBRARIES = Path("/usr/lib/x86_64-linux-gnu/gramine")
#: The main thread, three of a stage, one for each neighbour, heartbeat, host; four of Gramine's.
THREADS_MIN = 16
_SIZE = re.compile(r"(\d{1,6})([MG])")
#: Comes with Gramine, patched to call it instead of the kernel.
GLIBC = re.compile(r"(ld-linux.*|lib(c|m|dl|pthread|rt|util|resolv|mvec|anl|nss_\w+))\.so[.\d]*")
#: Parts of the interpreter's library that no worker opens.
_UNUSED = {
    "__pycache__",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
}
_PROBE = """
import json, sys
import vaultline.enclave.__main__, vaultline.enclave.server, vaultline.enclave.gramine_quotes
import vaultline.enclave.simulated_quotes
from vaultline.enclave.executor import warm_up
warm_up()
modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
mapped = [line.split(maxsplit=5)[5:] for line in open("/proc/self/maps")]
paths = [path[0].strip() for path in mapped if path and path[0].startswith("/")]
print(json.dumps([sorted({m for m in modules if m}), sorted(set(paths))]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GramineOptions:
    """What a manifest is made for.

    Attributes:
        variant: ``direct`` runs without SGX and proves nothing: for trying out.
        enclave_size: such as ``2G``; a power of two, with EDMM too: the processor takes no other.
        threads: at most at a time, Gramine's own included.
        vaults: folder of sealed models.
        platform_file: of a simulated platform, for ``direct`` only.
        worker: of a pipeline's stage, or a server's.
        libraries: Gramine's folder, with ``libsysdb.so`` and ``runtime/glibc``.
    """

    variant: Variant
    vaults: Path
    enclave_size: str = "2G"
    threads: int = 32
    edmm: bool = False
    product_id: int = 0
    svn: int = 0
    platform_file: Path | None = None
    worker: WorkerName = "stage"
    libraries: Path = GRAMINE_LIBRARIES

    def __post_init__(self) -> None:
        match = _SIZE.fullmatch(self.enclave_size)
        number = int(match[1]) if match else 0
        if number < 1 or number & (number - 1):
            raise InputError(
                "not an enclave's size",
                got=self.enclave_size,
                expected="a power of two with M or G, such as 2G",
            )
        if self.threads < THREADS_MIN:
            expected = f"at least {THREADS_MIN}"
            raise InputError("too few threads", got=str(self.threads), expected=expected)
        if not (0 <= self.product_id < 1 << 16 and 0 <= self.svn < 1 << 16):
            raise InputError("product id and SVN are 16-bit numbers")
        if (self.platform_file is not None) != (self.variant == "direct"):
            raise InputError(
                "a simulated platform's file goes with --mode direct, and with that alone",
                remedy="SGX makes evidence itself; `vaultline policy dev` makes a platform's file",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFiles:
    """What the worker that is installed here consists of.

    Attributes:
        python: the interpreter itself, behind all links.
        python_path: folders to import from; ``libraries``: folders of shared objects.
        trusted: all files, sorted.
    """

    python: Path
    python_path: tuple[Path, ...]
    libraries: tuple[Path, ...]
    trusted: tuple[Path, ...]


@cache
def worker_files() -> WorkerFiles:
    """Find every file that a worker may open, and check that against one that is started.

    Raises:
        MachineError: a worker can't be started, or loads what is not on the list.
    """
    python = Path(sys.executable).resolve()
    source = Path(vaultline.__file__).resolve().parents[1]
    packages = Path(sysconfig.get_path("purelib"))
    python_path = tuple(dict.fromkeys((source, packages, Path(sysconfig.get_path("platlib")))))
    modules, mapped = _probe(python, python_path)
    files = {python, *_standard_library(), *_ours(source), *_wheels()}
    known = {path.resolve() for path in files}
    system = {path for path in mapped if path.resolve() not in known and ".so" in path.name}
    system = {path for path in system if not GLIBC.fullmatch(path.name)}
    files |= {name for path in system for name in _names(path)}
    missing = [path for path in modules if path.resolve() not in known]
    if missing:
        raise MachineError(
            "a worker loads files that the manifest would not name",
            got=", ".join(map(str, missing[:5])),
            remedy="install vaultline and its libraries from wheels, with pip",
        )
    return WorkerFiles(
        python=python,
        python_path=python_path,
        libraries=tuple(sorted({path.parent for path in system})),
        trusted=tuple(sorted(files)),
    )


def _probe(python: Path, python_path: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Modules and mapped files of a worker that has started, as the manifest would start it."""
    environment = {
        "PYTHONPATH": ":".join(map(str, python_path)),
        "ORT_DISABLE_TELEMETRY": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [str(python), "-S", "-P", "-B", "-c", _PROBE]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        raise MachineError(
            "a worker does not start with this interpreter alone",
            got=said.decode(errors="replace").strip().rpartition("\n")[2] or str(error),
            remedy="install vaultline and its libraries from wheels, with pip",
        ) from error
    modules, mapped = json.loads(done.stdout)
    return [Path(name) for name in modules], [Path(name) for name in mapped]


def _standard_library() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*"):
        if path.suffix in {".py", ".so"} and not _UNUSED.intersection(path.relative_to(root).parts):
            yield path


def _ours(source: Path) -> Iterator[Path]:
    yield source / "vaultline" / "__init__.py"
    for package in PACKAGES:
        yield from (source / "vaultline" / package).rglob("*.py")


def _wheels() -> Iterator[Path]:
    for name in DISTRIBUTIONS:
        try:
            files = metadata.distribution(name).files or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            path = Path(str(file.locate()))
            if file.suffix != ".pyc" and ".." not in file.parts and path.is_file():
                yield path


def _names(library: Path) -> Iterator[Path]:
    """A shared object under each of its names in its folder: loaders ask for links."""
    real = library.resolve()
    stem = library.name.partition(".so")[0]
    for path in library.parent.glob(f"{stem}.so*"):
        if path.resolve() == real:
            yield path


def render(options: GramineOptions, files: WorkerFiles) -> str:
    """The manifest's text.

    Raises:
        InputError: Gramine is not where it was said to be, a path can't be written, or vaults lie
            where code is looked for.
    """
    libraries = _whole(options.libraries)
    libos, runtime = libraries / "libsysdb.so", libraries / "runtime" / "glibc"
    if not (libos.is_file() and runtime.is_dir()):
        raise InputError(
            "Gramine's libraries are not there",
            got=str(libraries),
            expected="a folder with libsysdb.so and runtime/glibc",
            remedy="install Gramine 1.9 in the image where the worker is, or name its --gramine",
        )
    trusted = [libos, *sorted(path for path in runtime.rglob("*") if path.is_file())]
    trusted += files.trusted
    _check_apart(_whole(options.vaults), files, libraries)
    allowed = [f"{_whole(options.vaults)}/"]
    if options.platform_file is not None:
        allowed.append(str(_whole(options.platform_file)))
    library_path = [Path("/lib"), *files.libraries]
    sgx = options.variant == "sgx"
    return fill(
        "gramine/worker.manifest",
        {
            "variant": "SGX" if sgx else "direct: without SGX, which protects and proves nothing",
            "module": MODULES[options.worker],
            "libos": quoted(f"file:{libos}"),
            "python": quoted(str(files.python)),
            "library_path": quoted(":".join(map(str, library_path))),
            "python_path": quoted(":".join(map(str, files.python_path))),
            "python_home": quoted(str(Path(sysconfig.get_path("stdlib")).parents[1])),
            "mounts": _lines(_mounts(options, runtime, [*files.trusted, *map(Path, allowed)])),
            "attestation": "dcap" if sgx else "none",
            "enclave_size": options.enclave_size,
            "threads": str(options.threads),
            "edmm": "true" if options.edmm else "false",
            "product_id": str(options.product_id),
            "svn": str(options.svn),
            "allowed": _lines(quoted(f"file:{path}") for path in allowed),
            "trusted": _lines(
                f"{{ uri = {quoted(f'file:{path}')}, sha256 = {quoted(_sha256(path))} }}"
                for path in trusted
            ),
        },
    )


def _whole(path: Path) -> Path:
    """From the root, without ``..``: Gramine starts in the manifest's folder, wherever that is."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - links stay as they are


def _check_apart(vaults: Path, files: WorkerFiles, gramine: Path) -> None:
    """Whatever is put into the vaults' folder may be opened: no code may be looked for there.

    Raises:
        InputError: the folder is in one that the interpreter or the loader searches, or around it.
    """
    searched = {
        files.python.parent,
        *files.python_path,
        *files.libraries,
        Path(sysconfig.get_path("stdlib")),
        gramine,
    }
    here = {vaults, vaults.resolve()}
    for folder in sorted(searched | {folder.resolve() for folder in searched}):
        if any(each.is_relative_to(folder) or folder.is_relative_to(each) for each in here):
            raise InputError(
                "vaults lie where the worker looks for code: the host could add some, unmeasured",
                got=f"vaults in {vaults}, code in {folder}",
                expected="a folder of their own",
                remedy="name another one with --vaults, such as /var/lib/vaultline/vaults",
            )


def _mounts(options: GramineOptions, runtime: Path, paths: Iterable[Path]) -> Iterator[str]:
    """Gramine's libc at /lib, and the top folder of every file that may be opened, as it is."""
    yield f'{{ path = "/lib", uri = {quoted(f"file:{runtime}")} }}'
    tops = sorted({Path(*path.parts[:2]) for path in paths})
    for top in tops:
        if top in {Path("/lib"), Path("/dev"), Path("/proc"), Path("/sys")}:
            raise InputError("a worker's file can't lie there under Gramine", got=str(top))
        yield f"{{ path = {quoted(str(top))}, uri = {quoted(f'file:{top}')} }}"


def _lines(values: Iterable[str]) -> str:
    return ",\n".join(f"  {value}" for value in values)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def configuration(options: GramineOptions, name: str = "worker") -> dict[str, object]:
    """The first line for this worker's standard input, but for addresses and the vault's name."""
    platform = options.platform_file
    vault, commands = f"{_whole(options.vaults)}/model.vault", "tcp:0.0.0.0:7002"
    stage: dict[str, object] = {"vault": vault, "data": [commands]}
    server: dict[str, object] = {"vaults": [vault], "commands": commands}
    return {
        "name": plain(name, "a worker's name"),
        "platform": "gramine",
        "provider": "gramine" if options.variant == "sgx" else "simulated",
        "platform_file": None if platform is None else str(_whole(platform)),
        "control": "tcp:0.0.0.0:7001",
        "runtime_dir": "/",
        **(stage if options.worker == "stage" else server),
    }
