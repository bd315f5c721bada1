"""``vaultline deploy``: what starts a worker where its hardware is: manifests, units, recipes."""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

import vaultline
from vaultline.cli.common import JsonFlag, print_json, results
from vaultline.cli.deploy_files import fill, plain, write_files
from vaultline.cli.deploy_gramine import (
    GRAMINE_LIBRARIES,
    MODULES,
    GramineOptions,
    Variant,
    WorkerName,
    configuration,
    render,
    worker_files,
)
from vaultline.core.errors import InputError

#: A confidential VM's kind, and the kernel module that makes its reports.
Confidential = Literal["tdx", "snp"]
_MODULES = {"tdx": "tdx_guest", "snp": "sev-guest"}
_RUNTIME_CLASSES = {"tdx": "kata-qemu-tdx", "snp": "kata-qemu-snp"}
_PACKAGES = "/opt/vaultline"
#: What else an image holds, and where.
_IMAGE_FILES = {
    "80-worker.network": "etc/systemd/network",
    "80-worker.conf": "etc/sysctl.d",
    "var-lib-vaultline-vaults.mount": "etc/systemd/system",
}
#: RFC 1123, as Kubernetes names things; quantities; images by digest, since tags can be moved.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[1-9]\d{0,5}(Ki|Mi|Gi)?")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._/:-]*@sha256:[0-9a-f]{64}")
_CIDR = re.compile(r"\d{1,3}(\.\d{1,3}){3}/\d{1,2}|[0-9a-f:]+/\d{1,3}")

WorkerOption = Annotated[
    WorkerName,
    typer.Option("--worker", help="`stage`: for `vaultline run`; `server`: for `serve`."),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the files; made if missing.")]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Render what starts a worker where its hardware is.",
        epilog="Example: vaultline deploy gramine --out worker",
    )
    epilog = "Example: vaultline deploy gramine --out worker --enclave-size 4G"
    group.command("gramine", epilog=epilog)(gramine)
    epilog = "Example: vaultline deploy systemd --kind tdx --out image"
    group.command("systemd", epilog=epilog)(systemd)
    epilog = "Example: vaultline deploy kubernetes --kind sgx --image REPO@sha256:... --out k8s"
    group.command("kubernetes", epilog=epilog)(kubernetes)
    app.add_typer(group, name="deploy")


def gramine(
    out: OutOption,
    worker: WorkerOption = "stage",
    mode: Annotated[Variant, typer.Option(help="`direct` has no SGX: only to try it out.")] = "sgx",
    vaults: Annotated[
        Path, typer.Option(help="Folder of sealed models on the machine that runs the worker.")
    ] = Path("/var/lib/vaultline/vaults"),
    enclave_size: Annotated[
        str, typer.Option(help="All of the enclave's memory, a power of two: 512M, 4G.")
    ] = "2G",
    threads: Annotated[int, typer.Option(help="At most at a time, Gramine's four included.")] = 32,
    edmm: Annotated[
        bool, typer.Option("--edmm", help="Add memory as needed: SGX2 and Linux 6.0 or newer.")
    ] = False,
    product_id: Annotated[int, typer.Option(help="ISV product id, for the policy's signers.")] = 0,
    svn: Annotated[int, typer.Option(help="ISV security version, for the policy's signers.")] = 0,
    platform: Annotated[
        Path | None, typer.Option(help="Simulated platform, for --mode direct.")
    ] = None,
    libraries: Annotated[
        Path, typer.Option("--gramine", help="Where Gramine's libraries are.")
    ] = GRAMINE_LIBRARIES,
    as_json: JsonFlag = False,
) -> None:
    """Render a Gramine manifest for the worker that is installed here, its files with hashes.

    Run it in the image that the worker is to run in: paths and hashes are measured.
    """
    options = GramineOptions(
        variant=mode,
        vaults=vaults,
        enclave_size=enclave_size,
        threads=threads,
        edmm=edmm,
        product_id=product_id,
        svn=svn,
        platform_file=platform,
        worker=worker,
        libraries=libraries,
    )
    if platform is not None and not platform.is_file():
        raise InputError(
            "no simulated platform's file there",
            got=str(platform),
            remedy="make one with `vaultline policy dev`",
        )
    text = render(options, worker_files())
    config = json.dumps(configuration(options), indent=2) + "\n"
    paths = write_files(out, {"worker.manifest": text, "worker.json": config})
    then = {
        "sgx": (
            "gramine-sgx-sign --manifest worker.manifest --output worker.manifest.sgx",
            "vaultline measure --gramine worker.sig",
            "gramine-sgx worker",
        ),
        "direct": ("gramine-direct worker",),
    }[mode]
    _tell(out, paths, then, as_json=as_json)


def systemd(
    out: OutOption,
    kind: Annotated[Confidential, typer.Option(help="What the VM proves itself with.")],
    listen: Annotated[
        str, typer.Option(help="Where the launcher connects: a vsock port, or ADDRESS:PORT.")
    ] = "vsock::7000",
    workers: Annotated[int, typer.Option(help="At most at a time.", min=1, max=256)] = 8,
    worker: WorkerOption = "stage",
    here: Annotated[
        bool, typer.Option("--here", help="For the vaultline that is installed here, no image.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write systemd units and an image recipe (mkosi) for a confidential VM that runs workers."""
    python, packages = "/usr/bin/python3", _PACKAGES
    if here:
        python = str(Path(sys.executable).resolve())
        source = Path(vaultline.__file__).resolve().parents[1]
        places = dict.fromkeys((str(source), sysconfig.get_path("purelib")))
        packages = ":".join(places)
    home = any(place.startswith(("/home", "/root")) for place in (python, *packages.split(":")))
    values = {
        "kind": kind,
        "python": plain(python, "the interpreter's path"),
        "python_path": plain(packages, "the path of the packages"),
        "protect_home": "read-only" if home else "yes",
        "listen": plain(listen, "where to listen"),
        "workers": str(workers),
        "keep_alive": "no" if listen.startswith("vsock:") else "yes",
        "driver": _MODULES[kind],
        "module": MODULES[worker],
        "packages": _PACKAGES,
        "version": vaultline.__version__,
    }
    units = ("vaultline-worker.socket", "vaultline-worker@.service")
    folder = "" if here else "mkosi.extra/etc/systemd/system/"
    files = {f"{folder}{unit}": fill(f"systemd/{unit}", values) for unit in units}
    then: tuple[str, ...] = ("systemctl enable --now vaultline-worker.socket",)
    if not here:
        for name in ("mkosi.conf", "mkosi.postinst.chroot"):
            files[name] = fill(f"image/{name}", values)
        for name, place in _IMAGE_FILES.items():
            files[f"mkosi.extra/{place}/{name}"] = fill(f"image/{name}", values)
        then = (
            "put requirements.txt and wheels for Python 3.13 into mkosi.extra/srv/wheels",
            "mkosi build",
        )
    paths = write_files(out, files)
    for path in paths:
        if path.name == "mkosi.postinst.chroot":
            path.chmod(0o755)
    _tell(out, paths, then, as_json=as_json)


def kubernetes(
    out: OutOption,
    kind: Annotated[
        Literal["sgx", "tdx", "snp"], typer.Option(help="Enclave (sgx), or VM (tdx, snp).")
    ],
    image: Annotated[str, typer.Option(help="The worker's image, by digest: REPO@sha256:...")],
    owner: Annotated[str, typer.Option(help="Addresses of the owner, such as 10.1.2.0/24.")],
    name: Annotated[str, typer.Option(help="Of the worker.")] = "vaultline-worker",
    namespace: Annotated[str, typer.Option(help="Kubernetes namespace.")] = "vaultline",
    vaults: Annotated[str, typer.Option(help="Volume claim with the sealed models.")] = "vaults",
    cpu: Annotated[str, typer.Option(help="Cores.")] = "1",
    memory: Annotated[str, typer.Option(help="Memory, such as 2Gi.")] = "2Gi",
    worker: WorkerOption = "stage",
    epc: Annotated[str, typer.Option(help="Protected memory, for sgx.")] = "2Gi",
    as_json: JsonFlag = False,
) -> None:
    """Write Kubernetes manifests of a worker: deployment, service, network policy."""
    values = {
        "kind": kind,
        "module": MODULES[worker],
        "runtime_class": _RUNTIME_CLASSES.get(kind, ""),
        "image": _matching(_IMAGE, image, "an image by its digest", "REPO@sha256:..."),
        "owner": _matching(_CIDR, owner, "the owner's addresses", "such as 10.1.2.0/24"),
        "name": _matching(_NAME, name, "a name", "small letters, digits and -, at most 63"),
        "namespace": _matching(_NAME, namespace, "a namespace", "small letters, digits and -"),
        "vaults": _matching(_NAME, vaults, "a volume claim", "small letters, digits and -"),
        "cpu": _matching(re.compile(r"[1-9]\d?\d?"), cpu, "a number of cores", "1 to 999"),
        "memory": _matching(_QUANTITY, memory, "an amount of memory", "such as 512Mi or 2Gi"),
        "epc": _matching(_QUANTITY, epc, "an amount of protected memory", "such as 2Gi"),
    }
    template = "sgx" if kind == "sgx" else "kata"
    files = {
        "worker.yaml": fill(f"kubernetes/{template}.yaml", values),
        "service.yaml": fill("kubernetes/service.yaml", values),
        "networkpolicy.yaml": fill("kubernetes/networkpolicy.yaml", values),
    }
    _tell(out, write_files(out, files), (f"kubectl apply -f {out}",), as_json=as_json)


def _matching(pattern: re.Pattern[str], text: str, what: str, expected: str) -> str:
    if not pattern.fullmatch(text):
        raise InputError(f"not {what}", got=repr(text), expected=expected)
    return text


def _tell(out: Path, paths: list[Path], then: tuple[str, ...], *, as_json: bool) -> None:
    names = [path.relative_to(out).as_posix() for path in paths]
    if as_json:
        document: Mapping[str, object] = {"folder": str(out), "files": names, "then": then}
        print_json(document)
        return
    console = results()
    console.print(f"wrote {', '.join(names)} to {out}; then:", markup=False)
    for line in then:
        console.print(f"  {line}", highlight=False, markup=False)
