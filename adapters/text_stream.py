"""Tokens to text while they are made: never half a character, nothing that may still turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"  # what a decoder gives for the first bytes of a character


class StreamText:
    """The text of one growing answer; what it gives out, joined, is the text up to the first stop string.

    Args:
        decode: gives the text of all tokens so far.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._token_ids: list[int] = []
        self._num_given = 0
        self._is_stopped = False

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens make certain."""
        self._token_ids.extend(token_ids)
        text = self._text().rstrip(_INCOMPLETE)
        return self._give(text if self._is_stopped else text[: len(text) - self._num_held(text)])

    def finish(self) -> str:
        """Return what was held back, now that no token follows."""
        return self._give(self._text())

    def _text(self) -> str:
        """Return the text so far, cut at the first stop string."""
        text = self._decode(self._token_ids)
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        self._is_stopped = bool(found)
        return text[: min(found)] if found else text

    def _num_held(self, text: str) -> int:
        """Return how many characters at the end begin a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _give(self, text: str) -> str:
        fresh = text[self._num_given :]
        self._num_given += len(fresh)
        return fresh
