"""An enclave's links of a receipt: frames counted, digested, signed; only if its grant asks."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vaultline.attest.links import Link, frame_digest, sign_link
from vaultline.attest.stage_grant import Grant
from vaultline.core.control import LinkLine
from vaultline.enclave.executor import FrameBuffer


class Links:
    """Of one stage's replica, whose frames are every ``step``-th of the stream."""

    def __init__(
        self, grant: Grant, key: Ed25519PrivateKey, step: int, say: Callable[[LinkLine], None]
    ) -> None:
        self._grant, self._key, self._step, self._say = grant, key, step, say
        self._first = grant.replica
        self._frames: list[tuple[bytes, bytes]] = []

    def add(self, before: FrameBuffer, after: FrameBuffer) -> None:
        """The next frame, as it came and as it goes."""
        secret, hop = self._grant.receipt_secret, self._grant.stage
        frame = self._first + self._step * len(self._frames)
        arrived = frame_digest(secret, hop, frame, before.parts)
        self._frames.append((arrived, frame_digest(secret, hop + 1, frame, after.parts)))
        if len(self._frames) >= self._grant.frames_per_link:
            self.sign(last=False)

    def sign(self, *, last: bool) -> None:
        """Tell of all frames since the link before; ``last``: the stream has ended."""
        granted = set(Link.__struct_fields__) & set(Grant.__struct_fields__)
        link = Link(
            **{name: getattr(self._grant, name) for name in granted},
            secret_check=frame_digest(self._grant.receipt_secret, 0, 0, ()),
            first=self._first,
            frames=tuple(self._frames),
            last=last,
        )
        self._say(LinkLine(link=sign_link(link, self._key)))
        self._first += self._step * len(self._frames)
        self._frames.clear()
