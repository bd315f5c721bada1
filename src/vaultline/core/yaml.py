"""YAML written by people, into Structs, with the line of whatever is wrong.

A smaller language than YAML: one document, no anchors, no tags, no repeated keys. Repeated keys
silently lose a value and anchors can be nested into gigabytes; neither helps in a file of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import yaml  # type: ignore[import-untyped, unused-ignore]

from vaultline.core.errors import InputError

T = TypeVar("T")

#: A file that a person writes; the largest (a cluster of a thousand devices) stays under this.
YAML_CHARS_MAX = 1 << 20
#: Lists and mappings within one another; a cluster file has five. The scanner's time grows with
#: the third power of them, and recursion with the first.
_NESTED_MAX = 32

_EXPECTED = re.compile(r"Expected (.*), got (.*?)(?: - at .*)?\Z", re.DOTALL)
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(.*?)`")
_ENUM = re.compile(r"Invalid (enum )?value ")
_FIELD_PROBLEMS = {"contains unknown": "unknown", "missing required": "missing"}
_SEQUENCES = (list, tuple, set, frozenset)
_PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """A node, its value, the type it was to become, its path in the file, and why it did not."""

    node: yaml.Node | None
    value: Any
    kind: Any
    place: str
    error: Exception


class _Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
    """Composes nodes (which carry line numbers); refuses aliases and deep nesting."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= _NESTED_MAX:
            raise yaml.MarkedYAMLError(None, None, "it is nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token)

    def add_indent(self, column: int) -> bool:
        if len(self.indents) >= _NESTED_MAX:
            raise yaml.MarkedYAMLError(None, None, "it is nested too deeply", self.get_mark())
        return bool(super().add_indent(column))

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(None, None, "aliases are not supported", mark)
        return super().compose_node(parent, index)


def from_yaml(text: str, kind: type[T], *, what: str, path: str) -> T:
    """Decode a YAML file into a ``kind``.

    Args:
        text: the file's contents.
        kind: a Struct, or a container of them.
        what: what the file is, for messages (``"the policy"``).
        path: where the text came from, for messages.

    Raises:
        InputError: not YAML, or not a valid ``kind``; the message starts with ``path:line:`` of
            the offending key or value, and names the field.
    """
    if len(text) > YAML_CHARS_MAX:
        raise InputError(
            f"{path}: {what} is too long",
            got=f"{len(text)} characters",
            expected=f"at most {YAML_CHARS_MAX}",
        )
    root, value = _parse(text, what=what, path=path)
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.ValidationError, InputError):
        problem = _locate(root, value, kind, "")
        raise _explain(problem, what=what, path=path) from problem.error


def line_of(text: str, place: Sequence[str | int]) -> int:
    """The line, from 1, of a part of a text that has been read before.

    Args:
        place: keys and indices from the top, such as ``("devices", 1, "host")``. Of a place that
            the text leaves out, the line of what it would be in.
    """
    node, _ = _parse(text, what="the file", path="")
    for step in place:
        inner: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            inner = next((item for key, item in node.value if key.value == str(step)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            inner = node.value[step] if step < len(node.value) else None
        if inner is None:
            break
        node = inner
    return node.start_mark.line + 1 if node else 1


def _parse(text: str, *, what: str, path: str) -> tuple[yaml.Node | None, Any]:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return root, None if root is None else _build(loader, root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{mark.line + 1}:" if mark else ""
        message = f"{path}:{line} {what} is not valid YAML"
        raise InputError(message, got=error.problem or error.context) from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: {what} is not valid YAML", got=str(error)) from error
    except RecursionError as error:
        raise InputError(f"{path}: {what} is nested too deeply") from error


def _build(loader: _Loader, node: yaml.Node) -> Any:
    """The node as dicts, lists and scalars; a repeated key is an error, not a silent loss."""
    if isinstance(node, yaml.ScalarNode):
        try:
            return loader.construct_object(node)  # type: ignore[no-untyped-call, unused-ignore]
        except ValueError as error:  # such as the date 2026-13-01
            raise yaml.MarkedYAMLError(None, None, str(error), node.start_mark) from error
    if node.tag not in _PLAIN_TAGS:
        problem = f"the tag {node.tag} is not supported"
        raise yaml.MarkedYAMLError(None, None, problem, node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item) for item in node.value]
    value: dict[Any, Any] = {}
    for key_node, item in node.value:
        key = _build(loader, key_node)
        problem = ""
        if not isinstance(key, str | int):
            problem = f"a key must be text or a whole number, not {type(key).__name__}"
        elif key in value:
            problem = f"the key {key!r} is given twice"
        if problem:
            raise yaml.MarkedYAMLError(None, None, problem, key_node.start_mark)
        value[key] = _build(loader, item)
    return value


def _locate(node: yaml.Node | None, value: Any, kind: Any, place: str) -> _Problem:
    """The deepest node that cannot be converted by itself, and why."""
    for child, item, item_kind, name in _children(node, value, kind):
        try:
            msgspec.convert(item, type=item_kind)
        except (msgspec.ValidationError, InputError):
            path = name if not place or name.startswith("[") else f".{name}"
            return _locate(child, item, item_kind, place + path)
    try:
        msgspec.convert(value, type=kind)
    except (msgspec.ValidationError, InputError) as error:
        return _Problem(node=node, value=value, kind=kind, place=place, error=error)
    raise AssertionError("the whole failed to convert, and every part of it converts")


def _children(
    node: yaml.Node | None, value: Any, kind: Any
) -> Iterator[tuple[yaml.Node, Any, Any, str]]:
    """(node, value, type, name) of the parts of a value whose types are known."""
    kind = _member(kind, value)
    arguments = get_args(kind)
    if isinstance(node, yaml.SequenceNode) and get_origin(kind) in _SEQUENCES:
        repeated = get_origin(kind) is not tuple or arguments[-1] is Ellipsis
        for index, item in enumerate(node.value):
            if repeated or index < len(arguments):
                item_kind = arguments[0 if repeated else index]
                yield item, value[index], item_kind, f"[{index}]"
    elif isinstance(node, yaml.MappingNode):
        kinds: dict[Any, Any] = {}
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            kinds = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        elif get_origin(kind) is dict:
            kinds = dict.fromkeys(value, arguments[1])
        for (_, child), (key, item) in zip(node.value, value.items(), strict=True):
            if key in kinds:
                yield child, item, kinds[key], str(key)


def _member(kind: Any, value: Any) -> Any:
    """The one type of a union (or behind Annotated) that this value is meant to be."""
    if get_origin(kind) is Annotated:
        return _member(get_args(kind)[0], value)
    if get_origin(kind) not in (Union, UnionType):
        return kind
    containers: tuple[type, ...] = _SEQUENCES if isinstance(value, list) else ()
    containers = (dict,) if isinstance(value, dict) else containers
    members = [_member(member, value) for member in get_args(kind)]
    for member in members:
        config = getattr(member, "__struct_config__", None)
        if isinstance(value, dict) and config is not None:
            if config.tag_field is None or value.get(config.tag_field) == config.tag:
                return member
        elif get_origin(member) in containers:
            return member
    return kind


def _explain(problem: _Problem, *, what: str, path: str) -> InputError:
    """The error for a person: file, line, field, what was got and what would be right."""
    node, error = problem.node, problem.error
    where = f"{what}, at {problem.place}" if problem.place else what
    if isinstance(error, InputError):
        got, expected, remedy, message = error.got, error.expected, error.remedy, error.message
    else:
        got, expected, remedy, message = str(error), None, None, "not valid"
        if field := _FIELD.match(str(error)):
            message = f"{_FIELD_PROBLEMS[field[1]]} field `{field[2]}`"
            names = _field_names(problem)
            got, expected = ", ".join(map(str, problem.value)) or "no fields", ", ".join(names)
            if field[1] == "contains unknown":
                node = _key_node(node, field[2])
                close = get_close_matches(field[2], names, 1)
                remedy = f"did you mean `{close[0]}`?" if close else "remove it"
        elif _ENUM.match(str(error)) and (choices := _choices(problem.kind)):
            said = problem.value
            if isinstance(said, dict):  # a union, told apart by one field
                said = next((said[name] for name in _field_names(problem) if name in said), said)
            got, expected = repr(said), ", ".join(choices)
            close = get_close_matches(str(said), choices, 1)
            remedy = f"did you mean `{close[0]}`?" if close else None
        elif types := _EXPECTED.match(str(error)):
            expected, got = types[1].replace("`", ""), _show(problem.value, types[2])
            if expected == "object" and (names := _field_names(problem)):
                expected = f"a mapping of {', '.join(names)}"
            if expected == "str" and not isinstance(problem.value, dict | list):
                remedy = "put it in quotes"
    line = f"{node.start_mark.line + 1}:" if node else ""
    return InputError(
        f"{path}:{line} {where}: {message}", got=got, expected=expected, remedy=remedy
    )


def _field_names(problem: _Problem) -> list[str]:
    member = _member(problem.kind, problem.value)
    config = getattr(member, "__struct_config__", None)
    if config is None:  # a union: without its tag nobody knows which member is meant
        configs = (getattr(each, "__struct_config__", None) for each in get_args(member))
        return sorted({each.tag_field for each in configs if each is not None and each.tag_field})
    tag = [config.tag_field] if config.tag_field else []
    return tag + [field.encode_name for field in msgspec.structs.fields(member)]


def _choices(kind: Any) -> list[str]:
    """The values that a type lists, also behind a union or Annotated."""
    if get_origin(kind) is Literal:
        return [str(each) for each in get_args(kind)]
    config = getattr(kind, "__struct_config__", None)
    if config is not None:
        return [config.tag] if isinstance(config.tag, str) else []
    if get_origin(kind) not in (Union, UnionType, Annotated):
        return []
    return [choice for member in get_args(kind) for choice in _choices(member)]


def _key_node(node: yaml.Node | None, name: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((key for key, _ in pairs if key.value == name), node)


def _show(value: Any, kind: str) -> str:
    if isinstance(value, dict | list) or value is None:
        return {"array": "a list", "object": "a mapping"}.get(kind.strip("`"), "nothing")
    return f"{value!r}"
