"""Privacy policies: what can be written down, and that what is absent allows nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.cli.policy import schema_text
from vaultline.core.errors import InputError
from vaultline.core.privacy import ModelPrivacy, PrivacyPolicy, parse_privacy

ROOT = Path(__file__).parents[3]
FULL = """version: 1
input:
  metric: reconstruction
  limit: 0.30
model:
  disclose: ["12:40", "50:60"]
"""


def load(text: str) -> PrivacyPolicy:
    return parse_privacy(text, "privacy.yaml")


def test_a_full_policy_is_read() -> None:
    policy = load(FULL)
    assert policy.input is not None
    assert (policy.input.metric, policy.input.limit) == ("reconstruction", 0.3)
    assert policy.model is not None
    assert policy.model.ranges == ((12, 40), (50, 60))


def test_what_is_absent_allows_nothing() -> None:
    for policy in (load("version: 1"), PrivacyPolicy()):
        assert policy.input is None
        assert policy.undisclosed(0, 1) == 0
    assert load("version: 1\nmodel: {disclose: []}").undisclosed(3, 4) == 3


#: Ranges -> (nodes asked for, the first that is not disclosed).
DISCLOSED = {
    "within a range": (["12:40"], (12, 40), None),
    "a node before it": (["12:40"], (11, 40), 11),
    "a node behind it": (["12:40"], (12, 41), 40),
    "over ranges that touch": (["12:20", "20:40"], (12, 40), None),
    "over ranges in any order that overlap": (["18:40", "12:20"], (12, 40), None),
    "over a gap": (["12:20", "21:40"], (12, 40), 20),
    "behind a range inside another one": (["12:40", "13:15"], (12, 39), None),
    "anything of all": (["all"], (0, 10**9), None),
    "all beside a range": (["5:6", "all"], (0, 7), None),
}


@pytest.mark.parametrize("case", DISCLOSED)
def test_the_first_undisclosed_node_is_found(case: str) -> None:
    ranges, (first, last), expected = DISCLOSED[case]
    policy = PrivacyPolicy(model=ModelPrivacy(disclose=tuple(ranges)))
    assert policy.undisclosed(first, last) == expected


NODES = st.integers(0, 12)


@given(st.lists(st.tuples(NODES, NODES)), NODES, NODES)
@settings(derandomize=True, deadline=None)
def test_disclosure_is_that_of_every_node(
    ranges: list[tuple[int, int]], first: int, last: int
) -> None:
    ranges = [(a, b) for a, b in ranges if a < b]
    policy = PrivacyPolicy(model=ModelPrivacy(disclose=tuple(f"{a}:{b}" for a, b in ranges)))
    secret = [n for n in range(first, last) if not any(a <= n < b for a, b in ranges)]
    assert policy.undisclosed(first, last) == (secret[0] if secret else None)


MISTAKES = {
    "an empty file": ("", "privacy.yaml"),
    "no version": ("input: {metric: similarity, limit: 0.5}\n", "version"),
    "another version": (FULL.replace("version: 1", "version: 2"), "privacy.yaml:1:"),
    "an unknown field": (FULL + "outputs: 1\n", "privacy.yaml:7:"),
    "a misspelt field": (FULL.replace("limit", "limits"), "did you mean `limit`"),
    "an unknown metric": (FULL.replace("reconstruction", "psnr"), "privacy.yaml:3:"),
    "a limit that is missing": ("version: 1\ninput: {metric: similarity}\n", "`limit`"),
    "a negative limit": (FULL.replace("0.30", "-0.1"), "privacy.yaml:3:"),
    "a limit beyond a perfect reconstruction": (FULL.replace("0.30", "1.5"), "0 to 1"),
    "a limit that is no number": (FULL.replace("0.30", ".nan"), "not a limit"),
    "an infinite limit": (FULL.replace("0.30", ".inf"), "not a limit"),
    "pixels without an end": (
        FULL.replace("reconstruction", "resolution").replace("0.30", ".inf"), "pixels"
    ),
    "a range without quotes, which YAML reads as a time": (
        FULL.replace('"12:40"', "12:40"), "put it in quotes",
    ),
    "a range that is empty": (FULL.replace("12:40", "12:12"), "holds none"),
    "a range that runs backwards": (FULL.replace("12:40", "40:12"), "holds none"),
    "a range without an end": (FULL.replace("12:40", "12:"), "not a range"),
    "a range with a sign": (FULL.replace("12:40", "-1:40"), "not a range"),
    "a range with other digits": (FULL.replace("12:40", "\u0661:40"), "not a range"),
    "a word that is no range": (FULL.replace("12:40", "everything"), "not a range"),
    "one range that is not in a list": (
        FULL.replace('["12:40", "50:60"]', '"12:40"'), "privacy.yaml:6:"
    ),
}  # fmt: skip


@pytest.mark.parametrize("text, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_privacy_policy_is_refused_with(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(text)
    assert words in caught.value.diagnostics()
    assert caught.value.message.startswith("privacy.yaml")


def test_a_resolution_is_in_pixels() -> None:
    policy = load(FULL.replace("reconstruction", "resolution").replace("0.30", "20"))
    assert policy.input is not None
    assert policy.input.limit == 20


def test_the_published_schema_is_the_codes() -> None:
    path = ROOT / "docs/schemas/privacy.schema.json"
    assert path.read_text() == schema_text(), (
        f"run: vaultline policy schema > {path.relative_to(ROOT)}"
    )


def test_the_example_is_valid_and_names_its_schema() -> None:
    path = ROOT / "examples/privacy/enclave-and-gpu.yaml"
    text = path.read_text()
    assert parse_privacy(text, path.name).input is not None
    schema = text.splitlines()[0].partition("$schema=")[2]
    assert (path.parent / schema).resolve() == ROOT / "docs/schemas/privacy.schema.json"
