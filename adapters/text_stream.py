"""Text out of token ids that come one by one: never half a character, never a piece of a stop string.

Free of torch: used where text leaves a server, and where the engine looks for stop strings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

BROKEN = "\ufffd"  # what decoders put for bytes that are no character, or not yet
LONGEST_WAIT = 64  # broken characters in a row that can't be the start of anything any more
NUM_CONTEXT = 8  # tokens kept as context when the window is cut
CONTEXT_CHARACTERS = 4  # that these must have: an unfinished one has fewer bytes, so it lies inside


class Detokenizer:
    """Decodes a growing row of tokens, a window of the last ones at a time.

    A window begins with tokens whose text is already given out: decoders may treat the first token of a
    text differently (a leading blank is dropped), and its bytes may finish an earlier token's character.

    Args:
        context: tokens that come before the text and are not given out.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window: list[int] = list(context)
        self._num_given = len(decode(context)) if context else 0  # characters of the window's text
        self._max_window = 3 * NUM_CONTEXT

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take tokens in, and return the text that no later token can change."""
        self._window += token_ids
        text = self._decode(self._window)
        settled = _settled(text)
        fresh = text[self._num_given : settled]
        self._num_given = max(self._num_given, settled)
        if len(self._window) > self._max_window and settled == self._num_given:
            self._cut(text)
        return fresh

    def finish(self) -> str:
        """Return the rest of the text, with U+FFFD for what never became a character."""
        return self._decode(self._window)[self._num_given :]

    def _cut(self, text: str) -> None:
        """Drop the window's first tokens, where the rest decodes to the same text without them."""
        num_open = len(text) - self._num_given
        for start in range(len(self._window) - NUM_CONTEXT, 0, -1):
            rest = self._decode(self._window[start:])
            if len(rest) - num_open >= CONTEXT_CHARACTERS and text.endswith(rest):
                self._window = self._window[start:]
                self._num_given = len(rest) - num_open
                self._max_window = 3 * NUM_CONTEXT
                return
        self._max_window = 2 * len(self._window)  # not tried again at each token


class StreamText:
    """Turns streamed token ids into pieces of text, up to the first stop string.

    All pieces together are `cut_at_stop` of the whole decoded text, however the tokens arrive.
    """

    def __init__(
        self, decode: Decode, stops: Sequence[str] = (), context: Sequence[int] = ()
    ) -> None:
        self._detokenizer = Detokenizer(decode, context)
        self._stops = stops
        self._held = ""
        self.is_stopped = False

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take tokens in, and return the text that is sure to belong to the answer; often none."""
        if self.is_stopped:
            return ""
        self._held += self._detokenizer.feed(token_ids)
        stop, maybe = _first_stop(self._held, self._stops), _first_start(self._held, self._stops)
        # A stop string that begins earlier may still be going on; if it comes true, it cuts before this one.
        self.is_stopped = stop is not None and stop <= maybe
        sure = maybe if stop is None else min(stop, maybe)
        fresh, self._held = self._held[:sure], self._held[sure:]
        return fresh

    def finish(self) -> str:
        """Return the text that was held back, when no more tokens come."""
        if self.is_stopped:
            return ""
        self.is_stopped = True
        return cut_at_stop(self._held + self._detokenizer.finish(), self._stops)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Return a text up to where the first stop string in it begins."""
    return text[: _first_stop(text, stops)]


def _settled(text: str) -> int:
    """Return how much of a text no later byte can change: all but broken characters at its end."""
    settled = len(text.rstrip(BROKEN))
    return settled if len(text) - settled < LONGEST_WAIT else len(text) - 1


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first stop string begins."""
    return min((begin for stop in stops if (begin := text.find(stop)) >= 0), default=None)


def _first_start(text: str, stops: Sequence[str]) -> int:
    """Return where a stop string may have begun that is not complete yet; the text's length if nowhere."""
    for begin in range(max(0, len(text) - max(map(len, stops), default=0) + 1), len(text)):
        if any(stop.startswith(text[begin:]) for stop in stops):
            return begin
    return len(text)
