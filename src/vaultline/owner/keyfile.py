"""The owner's key file: a model's key and the record of every vault sealed under it.

One JWE (RFC 7516, flattened JSON, A256KW + A256GCM) under a key-encryption key (KEK), which is a
JWK (RFC 7517) in a file of its own and may as well come from a key broker: key ids have the form
``kbs:///<repository>/<type>/<tag>``. Both files are readable by nobody else.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jwcrypto.common import JWException, base64url_decode, base64url_encode
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK

from vaultline.channel.chunks import VaultOtherPlanError
from vaultline.channel.sections import KEY_BYTES
from vaultline.core.errors import InputError, MachineError, RefusedError
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.owner.seal import Sealing, derive_model_id, replaced_atomically

KEYFILE_VERSION: Final = 1
PRIVATE_MODE: Final = 0o600
#: 256 sealings of 64 stages are about 1 MiB.
SEALINGS_MAX: Final = 256
KEYFILE_BYTES_MAX: Final = 4 << 20
KID_PREFIX: Final = "kbs:///default/model-key/"
_ALGORITHMS: Final = {"alg": "A256KW", "enc": "A256GCM"}


class KeyFileModeError(RefusedError):
    """Others than its owner can read or write the file."""


class KeyFileDamagedError(RefusedError):
    """Not a key file, or one that was altered."""


class WrongKekError(RefusedError):
    """The key file is wrapped under another key-encryption key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kek:
    """A key-encryption key and its id."""

    kid: str
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES or not self.kid:
            raise InputError(
                "a key-encryption key has 256 bits and an id", got=f"{8 * len(self.key)} bits"
            )

    def jwk(self) -> JWK:
        """As a JWK of type ``oct``."""
        return JWK(kty="oct", k=base64url_encode(self.key), kid=self.kid, alg="A256KW")


class SealedKeys(Struct, frozen=True):
    """A model's key and its sealings, oldest first, at most one for each plan.

    Only the newest sealing for a plan is kept: an older vault that the host puts back has no
    record any more, and neither the owner nor an enclave takes it.
    """

    version: int
    model_key: bytes
    sealings: tuple[Sealing, ...]

    def __post_init__(self) -> None:
        ids = {sealing.model_id for sealing in self.sealings}
        plans = {sealing.plan_digest for sealing in self.sealings}
        if self.version != KEYFILE_VERSION:
            raise InputError("key file of another version", got=str(self.version))
        if len(self.model_key) != KEY_BYTES or not ids <= {self.model_id}:
            raise InputError("the key file's sealings don't belong to its model key")
        if len(plans) != len(self.sealings) or len(plans) > SEALINGS_MAX:
            raise InputError("the key file has two sealings for a plan, or too many")

    def __repr__(self) -> str:
        return f"SealedKeys(model_id={self.model_id.hex()}, {len(self.sealings)} sealings)"

    @property
    def model_id(self) -> bytes:
        """The public name of the model key."""
        return derive_model_id(self.model_key)

    def with_sealing(self, sealing: Sealing) -> SealedKeys:
        """Remember a new vault; forgets the same plan's older one, or the oldest of too many."""
        rest = [old for old in self.sealings if old.plan_digest != sealing.plan_digest]
        sealings = (*rest[-(SEALINGS_MAX - 1) :], sealing)
        return SealedKeys(version=self.version, model_key=self.model_key, sealings=sealings)

    def sealing_for(self, plan_digest: bytes) -> Sealing:
        """The record of the vault for a plan.

        Raises:
            VaultOtherPlanError: the model was not sealed for this plan.
        """
        for sealing in self.sealings:
            if sealing.plan_digest == plan_digest:
                return sealing
        raise VaultOtherPlanError(
            "the key file has no vault for this plan",
            got=", ".join(old.plan_digest.hex() for old in self.sealings) or "no vault at all",
            expected=plan_digest.hex(),
            remedy="run `vaultline seal` with this plan, or name the plan of an earlier sealing",
        )


def new_keys() -> SealedKeys:
    """A fresh model key without sealings."""
    model_key = secrets.token_bytes(KEY_BYTES)
    return SealedKeys(version=KEYFILE_VERSION, model_key=model_key, sealings=())


def default_kek_path() -> Path:
    """``vaultline/kek.jwk`` in ``$XDG_CONFIG_HOME``, or else in ``~/.config``."""
    base = os.environ.get("XDG_CONFIG_HOME", "")  # the specification ignores relative paths
    home = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    return home / "vaultline" / "kek.jwk"


def load_kek(path: Path | None = None, *, create: bool = False) -> Kek:
    """Read a KEK, by default the user's own.

    Args:
        path: a JWK file; None for ``default_kek_path()``.
        create: make a new one where there is none.

    Raises:
        InputError: there is no such file, or it holds no 256-bit symmetric JWK.
        KeyFileModeError: others can read it.
        KeyFileDamagedError: it is not text.
        MachineError: it can't be read or created.
    """
    path = path or default_kek_path()
    if create and not path.exists():
        _create_kek(path)
    text = _read_private(path, what="key-encryption key")
    try:
        jwk = JWK.from_json(text)
        if jwk["kty"] != "oct":
            raise InputError(f"{path} holds no symmetric key", got=jwk["kty"], expected="oct")
        key = base64url_decode(jwk.get_op_key("wrapKey"))
        return Kek(kid=jwk.get("kid") or KID_PREFIX + jwk.thumbprint(), key=key)
    except (JWException, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a key-encryption key",
            got=type(error).__name__,
            expected="a JWK of type oct with 256 bits",
            remedy="name the right file with --kek",
        ) from error


def _create_kek(path: Path) -> None:
    kek = Kek(kid=KID_PREFIX + secrets.token_hex(8), key=secrets.token_bytes(KEY_BYTES))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, PRIVATE_MODE), "w") as file:
            file.write(kek.jwk().export(private_key=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return  # another process was first: use its key
    except OSError as error:
        raise MachineError(f"cannot create {path}", got=str(error)) from error


def write_keyfile(path: Path, keys: SealedKeys, kek: Kek) -> None:
    """Wrap the keys under the KEK and replace the key file atomically.

    Raises:
        MachineError: it can't be written; the old file is untouched.
    """
    jwe = JWE(canonical_json(keys), protected=_ALGORITHMS | {"typ": "JWE", "kid": kek.kid})
    jwe.add_recipient(kek.jwk())
    with replaced_atomically(path, mode=PRIVATE_MODE) as file:
        file.write(jwe.serialize().encode() + b"\n")


def read_keyfile(path: Path, kek: Kek) -> SealedKeys:
    """Unwrap a key file.

    Raises:
        InputError: there is no such file.
        KeyFileModeError: others can read it.
        WrongKekError: it is wrapped under a KEK of another id, which the error names.
        KeyFileDamagedError: it was altered, or the KEK changed under its id.
    """
    text = _read_private(path, what="key file")
    jwe = JWE(algs=list(_ALGORITHMS.values()))
    try:
        jwe.deserialize(text)
        kid = jwe.jose_header.get("kid")
    except (JWException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path) from error
    if kid != kek.kid:
        raise WrongKekError(
            f"{path} is wrapped under another key-encryption key",
            got=kek.kid,
            expected=str(kid),
            remedy="name the file of the expected key with --kek",
        )
    try:
        jwe.decrypt(kek.jwk())
        return from_json(jwe.payload, SealedKeys, what="the key file")
    except (JWException, ValueError, InputError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> KeyFileDamagedError:
    return KeyFileDamagedError(
        f"{path} does not open: it was altered, or the key-encryption key changed under its id",
        remedy="restore the key file or its key-encryption key, or seal the model again",
    )


def _read_private(path: Path, *, what: str) -> str:
    """A secret's text, refused unless its file is its owner's alone."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(KEYFILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        remedy = f"name the right {what}, or make one with `vaultline seal`"
        raise InputError(f"there is no {what} at {path}", remedy=remedy) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{path} is no {what}", got=error.strerror, expected="a file") from error
    except OSError as error:
        raise MachineError(f"{path} can't be read", got=str(error)) from error
    if mode & 0o077:
        raise KeyFileModeError(
            f"others than its owner have rights on the {what} {path}",
            got=f"mode {mode:04o}",
            expected=f"mode {PRIVATE_MODE:04o}",
            remedy=f"chmod 600 {path}",
        )
    if len(data) > KEYFILE_BYTES_MAX:
        raise KeyFileDamagedError(f"{path} is too long for a {what}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise KeyFileDamagedError(f"{path} is no {what}: not text") from error
