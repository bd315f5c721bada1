"""What an owner lets untrusted devices see: two policies, because one does not imply the other.

*Input privacy* limits what the tensors at a cut may tell about the input, by a measured leakage;
*model privacy* names the nodes whose weights may be disclosed. What is not written is not allowed.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from vaultline.core.errors import InputError
from vaultline.core.plan import LeakageMetric
from vaultline.core.serde import Struct
from vaultline.core.yaml import from_yaml

PRIVACY_VERSION = 1
#: Discloses the weights of every node.
ALL = "all"
_RANGE = re.compile(r"(0|[1-9][0-9]{0,8}):([1-9][0-9]{0,8})\Z")
#: Scores end at 1, where a reconstruction is the input itself; resolution is in pixels.
_LIMIT_MAX: dict[LeakageMetric, float] = {
    "similarity": 1.0,
    "reconstruction": 1.0,
    "resolution": float(1 << 20),
}


def _about(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class InputPrivacy(Struct, frozen=True):
    """Tensors that leak at most ``limit``, by a metric, may reach untrusted devices."""

    metric: Annotated[LeakageMetric, _about("How leakage is measured.")]
    limit: Annotated[float, _about("The most that may leak: 0 to 1, or pixels for `resolution`.")]

    def __post_init__(self) -> None:
        most = _LIMIT_MAX[self.metric]
        if not 0 <= self.limit <= most:
            raise InputError(
                f"not a limit for the metric `{self.metric}`",
                got=str(self.limit),
                expected=f"0 to {most:g}" + (" pixels" if most > 1 else ""),
            )


class ModelPrivacy(Struct, frozen=True):
    """Weights of these nodes may be disclosed: ranges such as ``12:40`` (12 to 39), or ``all``."""

    disclose: Annotated[tuple[str, ...], _about('Ranges of nodes, such as "12:40", or all.')]

    def __post_init__(self) -> None:
        for text in self.disclose:
            first, last = _bounds(text)
            if first >= last:
                raise InputError("a range of nodes holds none", got=text)

    @property
    def ranges(self) -> tuple[tuple[int, int | None], ...]:
        """[first, last) of each; None for no end."""
        return tuple(map(_bounds_or_all, self.disclose))


def _bounds(text: str) -> tuple[int, int]:
    """The two numbers; of ``all`` any that are in order."""
    if text == ALL:
        return 0, 1
    found = _RANGE.match(text)
    if found is None:
        raise InputError("not a range of nodes", got=repr(text), expected=f'"FIRST:LAST", or {ALL}')
    return int(found[1]), int(found[2])


def _bounds_or_all(text: str) -> tuple[int, int | None]:
    return (0, None) if text == ALL else _bounds(text)


class PrivacyPolicy(Struct, frozen=True):
    """An owner's privacy policy; by default nothing is released and nothing disclosed.

    Attributes:
        input: None means that no tensor may reach an untrusted device.
        model: None means that no weight may be disclosed.
    """

    version: int = PRIVACY_VERSION
    input: InputPrivacy | None = None
    model: ModelPrivacy | None = None

    def __post_init__(self) -> None:
        if self.version != PRIVACY_VERSION:
            raise InputError(
                "privacy policy of another version",
                got=str(self.version),
                expected=str(PRIVACY_VERSION),
            )

    def undisclosed(self, first: int, last: int) -> int | None:
        """The first of the nodes [first, last) whose weights may not be disclosed, if any."""
        position = first
        for start, end in sorted(self.model.ranges if self.model else ()):
            if start <= position:
                position = last if end is None else max(position, end)
        return position if position < last else None


class PrivacyFile(PrivacyPolicy, frozen=True):
    """A privacy policy as the file has it: the version is written down."""

    version: Literal[1]


def parse_privacy(text: str, path: str) -> PrivacyPolicy:
    """Read a privacy policy.

    Args:
        text: the YAML.
        path: the file's name, for messages.

    Raises:
        InputError: not YAML, an unknown field (with its line), or an impossible value.
    """
    file = from_yaml(text, PrivacyFile, what="the privacy policy", path=path)
    return PrivacyPolicy(version=file.version, input=file.input, model=file.model)


def privacy_schema() -> dict[str, Any]:
    """The JSON Schema of privacy policies, for editors and other tools."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "privacy policy",
        **msgspec.json.schema(PrivacyFile),
    }
