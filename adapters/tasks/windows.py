"""Windows over the tokens of a text that is longer than a row; neighbours share some."""

from __future__ import annotations

from adapters.errors import TextTooLong
from adapters.tasks.base import CHARACTERS_PER_TOKEN, MAX_PARTS

Window = tuple[int, int]


def cut_windows(num_tokens: int, room: int, shared: int) -> list[Window]:
    """Return the fewest windows, [first, end), of at most ``room`` tokens that cover all; neighbours share some.

    Whatever is at most as long as what neighbours share, and one token more, lies whole in one of them.

    Args:
        shared: tokens that neighbours share at least; half a window if that is fewer.
    """
    if num_tokens <= room:
        return [(0, num_tokens)]
    shared = min(shared, room // 2)
    count = -(-(num_tokens - shared) // (room - shared))
    # Of equal length: the last one would otherwise be short, with little context around what is in it.
    size = -(-(num_tokens + (count - 1) * shared) // count)
    starts = [min(i * (size - shared), num_tokens - size) for i in range(count)]
    return [(start, start + size) for start in starts]


def fit_windows(
    num_tokens: int, room: int, shared: int, *, truncate: bool, param: str
) -> tuple[list[Window], bool]:
    """Return windows as `cut_windows`, and whether the end was cut because they would be more than `MAX_PARTS`.

    Args:
        room: tokens that a row has for the text, beside what stands in every window.

    Raises:
        TextTooLong: there is no room at all, or there would be too many windows and ``truncate`` is off.
    """
    if room < 1:
        raise TextTooLong(
            f"What stands beside '{param}' in every row leaves no room for it. Shorten that.",
            param=param,
        )
    windows = cut_windows(num_tokens, room, shared)
    if len(windows) <= MAX_PARTS:
        return windows, False
    if not truncate:
        raise TextTooLong(
            f"'{param}' of '{num_tokens}' tokens takes {len(windows)} windows; at most {MAX_PARTS} are read. "
            "Shorten it, or set parameters.truncate to true.",
            param=param,
        )
    shared = min(shared, room // 2)
    return cut_windows(MAX_PARTS * (room - shared) + shared, room, shared), True


def readable(text: str, max_tokens: int, *, truncate: bool, param: str) -> tuple[str, bool]:
    """Return what of a text may be tokenized at all, and whether its end was cut.

    Raises:
        TextTooLong: it has far more characters than the windows hold tokens, and ``truncate`` is off.
    """
    most = MAX_PARTS * max_tokens * CHARACTERS_PER_TOKEN
    if len(text) <= most:
        return text, False
    if not truncate:
        raise TextTooLong(
            f"'{param}' has '{len(text)}' characters, far more than {MAX_PARTS} windows of {max_tokens} tokens "
            "hold. Shorten it, or set parameters.truncate to true.",
            param=param,
        )
    return text[:most], True
