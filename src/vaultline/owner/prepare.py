"""Preparing a model for serving: divided into step groups, compiled, sealed once for a cluster.

What comes of it lies in one folder: ``NAME.vault`` for any host to store, ``NAME.keys`` for the
owner alone, ``NAME.served.json`` for who schedules. Any server of the instruction set can run any
of the groups, with its weights decrypted for every run or kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vaultline import __version__
from vaultline.core.errors import InputError, MachineError, VaultlineError
from vaultline.core.frames import FrameLayout
from vaultline.core.limits import MIB
from vaultline.core.paged import PAGE_BYTES, SGX1_PAGE_S, step_pages
from vaultline.core.program import PROGRAM_VERSION, Isa, PageMode, StageProgram
from vaultline.core.serde import Struct, canonical_json
from vaultline.core.tensors import align
from vaultline.graph.compile import CompiledStage
from vaultline.graph.engine import VERSION as ENGINE_VERSION
from vaultline.graph.group_stages import GroupTarget, compile_group, compile_paged
from vaultline.graph.groups import GroupRule, StepGroup, step_groups, whole
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.owner.keyfile import Kek, load_kek, new_keys, read_keyfile, write_keyfile
from vaultline.owner.seal import check_vault, replaced_atomically, seal_vault
from vaultline.owner.served import MANIFEST_SUFFIX, ServedModel, read_served
from vaultline.sched.facts import GroupFacts, ModelFacts

#: Room for vgg19's first convolutions in bands of rows, and for tiles of 8 MiB: with 12 MiB none of
#: ten networks is slower than with 32, and what is not workspace keeps weights.
WORKSPACE_BYTES = 12 * MIB
#: What is left for pages on a server of 93 MiB once sessions and messages have theirs.
PAGE_CACHE_BYTES = 64 * MIB
#: Part of what a division's digest is over: another one, and every model is prepared again.
_DIVISION_VERSION = 1
#: Names become file names, labels of metrics and words of log lines.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: By estimate, to make one node's part of its session on one core.
_INSTALL_NODE_S = 1e-3

#: Called with what is being done, how much of it is done, and of how much.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What a model is prepared for."""

    target: GroupTarget
    rule: GroupRule
    paged: PageMode | None


class _Division(Struct, frozen=True):
    """What decides how a model is sealed. Two that are equal give the same programs."""

    version: int
    vaultline: str
    program_version: int
    engine_version: str
    model_digest: str
    isa: Isa
    groups: tuple[tuple[int, int, int], ...]
    workspace_bytes: int
    paged: PageMode | None

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(canonical_json(self)).digest()


def prepare(
    model_path: Path,
    out_dir: Path,
    *,
    name: str | None = None,
    workspace_bytes: int | None = None,
    portable: bool = False,
    isa: Isa | None = None,
    paged: PageMode | None = None,
    rule: GroupRule | None = None,
    kek: Kek | None = None,
    progress: Progress | None = None,
) -> ServedModel:
    """Divide, compile and seal a model, unless that has been done for the same request.

    Args:
        out_dir: made if it does not exist.
        name: by default the file's, without its ending.
        workspace_bytes: the most that a group may take on a core besides messages, sessions and
            kept weights, by default ``WORKSPACE_BYTES``; of a paged model, what its page cache
            has, by default ``PAGE_CACHE_BYTES``.
        portable, isa: as for ``compile_segment``.
        paged: for servers without bounded execution: the whole model as one group, under a page
            cache of this kind.
        rule: how the model is divided.
        kek: wraps the key file; by default the user's own, made if there is none.

    Returns:
        The manifest, which has been written. Its times are estimates until they are measured.

    Raises:
        InputError: not a model, or a name or folder that can't be.
        InfeasibleError: a group does not fit into the workspace.
        RefusedError: an older key file of that name is under another key-encryption key.
        MachineError: something can't be written; each file is the old or the new one.
    """
    if workspace_bytes is None:
        workspace_bytes = PAGE_CACHE_BYTES if paged else WORKSPACE_BYTES
    asked = _Request(
        target=GroupTarget(workspace_bytes=workspace_bytes, portable=portable, isa=isa),
        rule=rule or GroupRule(),
        paged=paged,
    )
    files = PreparedFiles(folder=out_dir, name=model_name(model_path, name))
    tell = progress or _silent
    tell(f"{files.name}: loading", 0, 1)
    model = load_model(model_path)
    groups = (whole(model),) if asked.paged else step_groups(model, asked.rule)
    division = _division(model, groups, asked)
    _make_folder(out_dir)
    # First the keys: a wrong key-encryption key must not cost a good vault.
    wrapping = kek or load_kek(create=True)
    keys = read_keyfile(files.keys, wrapping) if files.keys.exists() else new_keys()
    found = _found(files, division.digest)
    if found is not None and _is_sealed(files, wrapping, division.digest):
        return found
    stages = _compiled(files.name, model, groups, asked, tell)
    sealing = seal_vault(
        files.vault,
        stages,
        model_key=keys.model_key,
        plan_digest=division.digest,
        model_digest=model.digest,
        progress=lambda done, total: tell(f"{files.name}: sealing", done, total),
    )
    write_keyfile(files.keys, keys.with_sealing(sealing), wrapping)
    served = _served(files, model, division, [stage.program for stage in stages], groups)
    write_served(out_dir, served)
    return served


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFiles:
    """The files of a prepared model."""

    folder: Path
    name: str

    @property
    def vault(self) -> Path:
        """Any host may store it."""
        return self.folder / f"{self.name}.vault"

    @property
    def keys(self) -> Path:
        """The owner's."""
        return self.folder / f"{self.name}.keys"

    @property
    def manifest(self) -> Path:
        """Public."""
        return self.folder / f"{self.name}{MANIFEST_SUFFIX}"


def model_name(model_path: Path, name: str | None) -> str:
    """The name that a model is served under.

    Raises:
        InputError: it would be no good file name.
    """
    chosen = name if name is not None else model_path.stem
    if not _NAME.fullmatch(chosen):
        raise InputError(
            "a model can't be served under that name",
            got=repr(chosen),
            expected="at most 64 letters, digits, dots, underscores and hyphens, "
            "the first a letter or digit",
            remedy="name it with --name",
        )
    return chosen


def write_served(folder: Path, served: ServedModel) -> None:
    """Write a manifest, replacing an older one at once.

    Raises:
        MachineError: it can't be written; the old one is untouched.
    """
    files = PreparedFiles(folder=folder, name=served.name)
    with replaced_atomically(files.manifest) as file:
        file.write(canonical_json(served) + b"\n")


def _division(model: Model, groups: Sequence[StepGroup], asked: _Request) -> _Division:
    return _Division(
        version=_DIVISION_VERSION,
        vaultline=__version__,
        program_version=PROGRAM_VERSION,
        engine_version=ENGINE_VERSION,
        model_digest=model.digest,
        isa=asked.target.target,
        groups=tuple((group.first, group.last, group.frames) for group in groups),
        workspace_bytes=asked.target.workspace_bytes,
        paged=asked.paged,
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            "prepared models need a folder", got=f"{folder}: a file is in the way"
        ) from error
    except OSError as error:
        raise MachineError(f"cannot make the folder {folder}", got=str(error.strerror)) from error


def _found(files: PreparedFiles, digest: bytes) -> ServedModel | None:
    """The manifest of the same division, if there is one."""
    try:
        served = read_served(files.manifest)
    except InputError:
        return None
    same = (served.name, served.vault, served.keys) == (
        files.name,
        files.vault.name,
        files.keys.name,
    )
    return served if same and served.plan_digest == digest else None


def _is_sealed(files: PreparedFiles, kek: Kek, digest: bytes) -> bool:
    """Whether vault and keys belong together and to the division."""
    try:
        check_vault(files.vault, read_keyfile(files.keys, kek).sealing_for(digest))
    except VaultlineError:
        return False
    return True


def _compiled(
    name: str,
    model: Model,
    groups: Sequence[StepGroup],
    asked: _Request,
    tell: Progress,
) -> list[CompiledStage]:
    if asked.paged:
        return [compile_paged(model, asked.target, asked.paged)]
    stages = []
    for number, group in enumerate(groups):
        tell(f"{name}: compiling", number, len(groups))
        stages.append(compile_group(model, group, asked.target, number=number, groups=len(groups)))
    return stages


def _served(
    files: PreparedFiles,
    model: Model,
    division: _Division,
    programs: Sequence[StageProgram],
    groups: Sequence[StepGroup],
) -> ServedModel:
    first, last = programs[0], programs[-1]
    paged = division.paged is not None
    workspaces = [
        PAGE_BYTES * max(step_pages(program), default=0) if paged else program.workspace_bytes
        for program in programs
    ]
    return ServedModel(
        name=files.name,
        vault=files.vault.name,
        keys=files.keys.name,
        model_digest=model.digest,
        plan_digest=division.digest,
        isa=division.isa,
        engine_version=division.engine_version,
        inputs=first.specs(first.inputs),
        outputs=last.specs(last.outputs),
        groups=tuple((group.first, group.last) for group in groups),
        workspace_bytes=max(workspaces),
        facts=estimated_facts(files.name, programs, groups),
        paged=paged,
    )


def estimated_facts(
    name: str, programs: Sequence[StageProgram], groups: Sequence[StepGroup]
) -> ModelFacts:
    """Sizes as the ledger will hold them, times by estimate."""
    first = programs[0]
    nodes = sum(group.last - group.first for group in groups)
    return ModelFacts(
        name=name,
        groups=tuple(
            _group_facts(program, group) for program, group in zip(programs, groups, strict=True)
        ),
        fixed_bytes=sum(program.engine_bytes for program in programs),
        input_bytes=FrameLayout(first.specs(first.inputs), len(programs)).message_bytes,
        install_s=nodes * _INSTALL_NODE_S,
    )


def _group_facts(program: StageProgram, group: StepGroup) -> GroupFacts:
    """Of one group; a paged one has no weights to load: its pages come and go."""
    paged = program.settings.mode == "paged"
    outputs = FrameLayout(program.specs(program.outputs), program.settings.stages)
    weights = sum(align(weight.spec.nbytes) for weight in program.weights)
    swapped_s = weights / PAGE_BYTES * SGX1_PAGE_S if paged else 0.0
    return GroupFacts(
        weight_bytes=0 if paged else weights,
        workspace_bytes=0,
        tile_bytes=0,
        output_bytes=outputs.message_bytes,
        run_s=tuple(
            (count, group.run_s(count) + swapped_s)
            for count in counts(program.settings.frames_per_pass)
        ),
        load_s=0.0 if paged else group.load_s,
    )


def counts(frames_max: int) -> tuple[int, ...]:
    """The numbers of frames at which a group's runs are timed: powers of two, and the most."""
    powers = [1 << power for power in range(frames_max.bit_length())]
    return tuple(sorted({*powers, frames_max}))


def _silent(what: str, done: int, total: int) -> None:
    """No progress."""
