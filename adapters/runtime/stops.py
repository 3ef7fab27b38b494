"""Whether a generating row has written one of its stop strings, told token by token."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.text_stream import Decode, Detokenizer


class StopFinder:
    """Looks for stop strings in one row's text; what a step costs does not grow with the text.

    Args:
        stops: none of them empty.
        decode: gives the text of token ids, as the answer's reader will decode them.
        context: tokens that it will read them behind.
    """

    def __init__(self, stops: Sequence[str], decode: Decode, context: Sequence[int] = ()) -> None:
        self._stops = stops
        self._detokenizer = Detokenizer(decode, context)
        self._num_kept = max(map(len, stops), default=1) - 1
        self._tail = ""

    def feed(self, token_ids: Sequence[int]) -> bool:
        """Take new tokens in, and tell whether the text holds a stop string that ends in them."""
        text = self._tail + self._detokenizer.feed(token_ids)
        self._tail = text[len(text) - self._num_kept :] if self._num_kept < len(text) else text
        return any(stop in text for stop in self._stops)
