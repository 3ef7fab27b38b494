"""Windows cover every token, leave nothing short parted, and are no more than needed."""

from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import TextTooLong
from adapters.tasks.base import MAX_PARTS
from adapters.tasks.windows import cut_windows, fit_windows

seeded = settings(max_examples=500, deadline=None, derandomize=True)


@seeded
@given(st.integers(1, 500), st.integers(1, 80), st.integers(0, 100))
def test_windows_cover_all_share_enough_and_are_the_fewest(num_tokens, room, shared):
    windows = cut_windows(num_tokens, room, shared)
    shared = min(shared, room // 2)
    assert windows[0][0] == 0
    assert windows[-1][1] == num_tokens
    assert all(0 < end - first <= room for first, end in windows)
    for (_, end), (first, _) in pairwise(windows):
        assert end - first >= shared
    if num_tokens > room:
        assert len(windows) == ceil((num_tokens - shared) / (room - shared))
    for start in range(num_tokens - shared):
        assert any(first <= start and start + shared < end for first, end in windows)


@seeded
@given(st.integers(1, 9000), st.integers(1, 80), st.integers(0, 100))
def test_a_cut_leaves_as_many_windows_as_are_read(num_tokens, room, shared):
    windows, is_cut = fit_windows(num_tokens, room, shared, truncate=True, param="text")
    whole = cut_windows(num_tokens, room, shared)
    assert is_cut == (len(whole) > MAX_PARTS)
    assert len(windows) == min(len(whole), MAX_PARTS)
    assert windows[-1][1] <= num_tokens


def test_too_many_windows_and_no_room_are_refused():
    with pytest.raises(TextTooLong, match="'text' of '999' tokens takes 100 windows; at most 64"):
        fit_windows(999, 10, 0, truncate=False, param="text")
    with pytest.raises(TextTooLong, match="leaves no room"):
        fit_windows(9, 0, 0, truncate=True, param="text")
