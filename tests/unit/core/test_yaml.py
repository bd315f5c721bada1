"""Files that people write: what is accepted, and where a mistake is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct
from vaultline.core.yaml import YAML_CHARS_MAX, from_yaml, line_of


class Small(Struct, frozen=True):
    name: str
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise InputError("size is negative", got=str(self.size), remedy="make it positive")


class Circle(Struct, frozen=True, tag="circle", tag_field="shape"):
    radius: float


class Square(Struct, frozen=True, tag="square", tag_field="shape"):
    side: float


class Big(Struct, frozen=True):
    items: tuple[Small, ...]
    named: dict[str, Small] | None = None
    pair: tuple[int, str] = (0, "")
    shape: Circle | Square | None = None
    maybe: Small | None = None
    mode: Literal["on", "off"] = "on"


def load(text: str) -> Big:
    return from_yaml(text, Big, what="the file", path="big.yaml")


def test_a_file_becomes_structs() -> None:
    big = load("items:\n- {name: a}\n- name: b\n  size: 3\nshape: {shape: square, side: 2}\n")
    assert big.items == (Small(name="a"), Small(name="b", size=3))
    assert big.shape == Square(side=2)


def test_a_file_may_be_a_list_at_its_top() -> None:
    assert from_yaml("[1, 2]", tuple[int, ...], what="numbers", path="n.yaml") == (1, 2)


@dataclass(frozen=True)
class Mistake:
    text: str
    line: int
    says: tuple[str, ...]


MISTAKES = {
    "a list where one of some words belongs": Mistake("items: []\nmode: [[x]]\n", 2, ("at mode",)),
    "another word than those": Mistake(
        "items: []\nmode: onn\n", 2, ("at mode", "got: 'onn'", "expected: on, off", "`on`?")
    ),
    "a field that does not exist": Mistake(
        "items:\n- name: a\n  siez: 3\n", 3, ("items[0]", "unknown field `siez`", "`size`?")
    ),
    "a field of the wrong type": Mistake(
        "items:\n- name: a\n  size: big\n", 3, ("items[0].size", "got: 'big'", "expected: int")
    ),
    "a number where text is needed": Mistake(
        "items:\n- name: 12\n", 2, ("items[0].name", "got: 12", "put it in quotes")
    ),
    "a field that is missing": Mistake(
        "items:\n- size: 1\n", 2, ("items[0]", "missing field `name`")
    ),
    "a value that its own check refuses": Mistake(
        "items: []\nnamed:\n  x:\n    name: a\n    size: -1\n",
        4,
        ("named.x", "size is negative", "got: -1", "make it positive"),
    ),
    "a value in an optional part": Mistake("items: []\nmaybe:\n  name: []\n", 3, ("maybe.name",)),
    "a value in one of several shapes": Mistake(
        "items: []\nshape:\n  shape: circle\n  radius: wide\n", 4, ("shape.radius", "'wide'")
    ),
    "a shape that does not exist": Mistake(
        "items: []\nshape:\n  shape: circel\n",
        3,
        ("at shape", "got: 'circel'", "expected: circle, square", "`circle`?"),
    ),
    "a wrong item in a pair": Mistake("items: []\npair: [1, 2]\n", 2, ("pair[1]", "got: 2")),
    "a pair of three": Mistake("items: []\npair: [1, b, 2]\n", 2, ("pair", "length 2")),
    "a list where a mapping is needed": Mistake(
        "- a\n", 1, ("a list", "a mapping of items, named")
    ),
    "a key that is given twice": Mistake("items: []\nitems: []\n", 2, ("'items' is given twice",)),
    "text that is not YAML": Mistake("items: []\n  x: [\n", 2, ("not valid YAML",)),
    "an anchor used again": Mistake("items: &a []\nnamed: *a\n", 2, ("aliases are not supported",)),
    "a tag that would run code": Mistake(
        "items: []\nx: !!python/object/apply:os.system [ls]\n", 2, ("not supported",)
    ),
    "a scalar with such a tag": Mistake(
        "items: []\nx: !!python/name:os.system ''\n", 2, ("could not determine a constructor",)
    ),
    "two documents": Mistake("items: []\n---\nitems: []\n", 2, ("another document",)),
    "a date that does not exist": Mistake("items: []\nx: 2026-13-01\n", 2, ("month",)),
    "a key that is a list": Mistake("? [a]\n: 1\n", 1, ("a key must be text",)),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_reported_with_its_line(mistake: Mistake) -> None:
    with pytest.raises(InputError) as caught:
        load(mistake.text)
    assert caught.value.message.startswith(f"big.yaml:{mistake.line}: ")
    for words in mistake.says:
        assert words in caught.value.diagnostics()


UNLOCATED = {
    "an empty file": ("", "expected: a mapping of items"),
    "a file of only comments": ("# nothing\n", "nothing"),
    "a very deep file": ("[" * 100_000, "nested too deeply"),
    "a very long file": (" " * (YAML_CHARS_MAX + 1), "too long"),
    "a control character": ("items: \x00", "not valid YAML"),
}


@pytest.mark.parametrize("text, words", UNLOCATED.values(), ids=UNLOCATED.keys())
def test_a_file_that_is_wrong_as_a_whole_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(text)
    assert words in caught.value.diagnostics()


TEXT = "a: 1\nitems:\n  - name: x\n    size: 2\n  - {name: y}\nend:\n"
PLACES = {
    "a key's value": (("a",), 1),
    "a value within an item": (("items", 0, "size"), 4),
    "an item": (("items", 1), 5),
    "a key that is left out: its mapping": (("items", 1, "size"), 5),
    "an item that is not there: its list": (("items", 7), 3),
    "a part of a scalar: the scalar": (("a", "b"), 1),
    "an empty value": (("end",), 6),
    "nothing": ((), 1),
}


@pytest.mark.parametrize("place, line", PLACES.values(), ids=PLACES.keys())
def test_a_place_has_a_line(place: tuple[str | int, ...], line: int) -> None:
    assert line_of(TEXT, place) == line


@pytest.mark.parametrize(
    "text", ["[" * 1800, "{" * 1800, "- " * 1800, "? " * 1800, "a: " + "[" * 33]
)
def test_deep_nesting_is_refused_before_it_costs_anything(text: str) -> None:
    with pytest.raises(InputError) as caught:
        from_yaml(text, dict, what="the file", path="f.yaml")
    assert "nested too deeply" in caught.value.diagnostics()


def test_nesting_that_a_file_may_have_is_read() -> None:
    text = "a: " + "[" * 31 + "1" + "]" * 31
    assert from_yaml(text, dict, what="the file", path="f.yaml")["a"][0]
