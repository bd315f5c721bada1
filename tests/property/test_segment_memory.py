"""The tables of what segments need, against the slow way of writing the same down."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import random_case
from segment_memory import SegmentMemory, StepMemory

from vaultline.cost.segments import Segments


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 5))
def test_tables_say_what_the_equations_say(seed: int, frames: int) -> None:
    profile = random_case(seed).profile
    tables, steps_slowly = Segments(profile), StepMemory(profile, frames)
    workspace, steps = tables.streamed(frames)
    for start in range(len(profile.blocks)):
        for end in range(start + 1, len(profile.blocks) + 1):
            at, slow = (end - start - 1, end), SegmentMemory(steps_slowly, start, end)
            assert tables.weight_bytes[at] == slow.weights
            resident, streamed = (
                tables.engine_bytes(frames, streamed=way)[at] for way in (False, True)
            )
            assert resident == slow.engine(slow.resident_steps())
            assert streamed == slow.engine(slow.streamed()[1])
            assert tables.resident(frames)[at] == slow.resident()
            assert (workspace[at], steps[at]) == slow.streamed()
            assert tables.ahead_bytes[at] == slow.ahead()
