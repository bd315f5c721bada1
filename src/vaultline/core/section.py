"""A stage's section of a vault: where it lies and what it must be, from the owner's records."""

from __future__ import annotations

from vaultline.core.errors import InputError
from vaultline.core.limits import PROGRAM_BYTES_MAX, STAGES_MAX
from vaultline.core.serde import Struct


class SectionId(Struct, frozen=True):
    """What every chunk of a section says of itself: ids of 16 bytes, a SHA-256 and the stage."""

    vault_id: bytes
    model_id: bytes
    plan_digest: bytes
    stage: int

    def __post_init__(self) -> None:
        lengths = (len(self.vault_id), len(self.model_id), len(self.plan_digest))
        if lengths != (16, 16, 32) or not 0 <= self.stage < STAGES_MAX:
            raise InputError(f"ids have 16 bytes, a plan digest 32; stages end at {STAGES_MAX - 1}")


class SectionAccess(SectionId, frozen=True):
    """What opens a section, so that nothing in the file has to be believed to find or read it.

    Attributes:
        stage_key: 32 bytes, of this section alone.
        section_digest: SHA-256 over headers and tags; a rolled back file differs.
        section_offset, section_bytes: place in the file.
        program_bytes: size of its first tensor, the stage program; that one lists the others.
    """

    stage_key: bytes
    section_digest: bytes
    section_offset: int
    section_bytes: int
    program_bytes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stage_key) != 32 or len(self.section_digest) != 32:
            raise InputError("a stage key and a section digest have 32 bytes")
        sizes = (self.section_offset, self.section_bytes, self.program_bytes)
        if min(sizes) < 0 or sum(sizes) >= 1 << 63 or self.program_bytes > PROGRAM_BYTES_MAX:
            raise InputError("a section's place or its program's size is impossible")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(stage={self.stage}, secrets hidden)"
