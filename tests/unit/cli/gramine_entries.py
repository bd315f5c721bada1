"""The part of Gramine's manifest that ours uses, as strict types: an unknown entry is refused.

From the manifest syntax of Gramine 1.9, whose own check (`gramine-manifest-check`) has these names.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Uri = Annotated[str, Meta(pattern=r"^file:/")]
Size = Annotated[str, Meta(pattern=r"^[1-9][0-9]*[KMG]$")]
Sixteen = Annotated[int, Meta(ge=0, lt=1 << 16)]


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every table below."""


class Entrypoint(Strict, frozen=True):
    uri: Uri


class Loader(Strict, frozen=True):
    entrypoint: Entrypoint
    argv: list[str]
    log_level: Literal["none", "error", "warning", "debug", "trace", "all"]
    env: dict[str, str]


class LibOs(Strict, frozen=True):
    entrypoint: Annotated[str, Meta(pattern=r"^/")]


class Stack(Strict, frozen=True):
    size: Size


class Sys(Strict, frozen=True):
    disallow_subprocesses: bool
    stack: Stack


class Root(Strict, frozen=True):
    type: Literal["tmpfs"]


class Mount(Strict, frozen=True):
    path: Annotated[str, Meta(pattern=r"^/")]
    uri: Uri


class Files(Strict, frozen=True):
    root: Root
    mounts: list[Mount]


class Trusted(Strict, frozen=True):
    uri: Uri
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Sgx(Strict, frozen=True):
    debug: bool
    remote_attestation: Literal["none", "dcap"]
    enclave_size: Size
    max_threads: int
    edmm_enable: bool
    isvprodid: Sixteen
    isvsvn: Sixteen
    file_check_policy: Literal["strict", "allow_all_but_log"]
    allowed_files: list[Uri]
    trusted_files: list[Trusted]


class Manifest(Strict, frozen=True):
    loader: Loader
    libos: LibOs
    sys: Sys
    fs: Files
    sgx: Sgx
