"""The backbone's tokenizer, cut down to what tasks need: ids with offsets, chat prompts, text from ids."""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from adapters.errors import InvalidRequest, UnsupportedBackbone
from adapters.tensors import canonical_digest
from adapters.text_stream import BROKEN

MOST_OPEN_BYTES = 3  # of a character that is not finished


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids and, for each, where in the text it comes from: [start, end) in code points.

    Tokens that the tokenizer adds by itself, such as ``[CLS]``, have the empty offset (0, 0).
    """

    ids: list[int]
    offsets: list[tuple[int, int]]

    def between(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of tokens, [first, end), that reach into [start, stop) of the text; empty if none does."""
        inside = [i for i, (s, e) in enumerate(self.offsets) if e > start and s < stop]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)


class Tokenizer:
    """A fast Hugging Face tokenizer that never pads or cuts on its own."""

    def __init__(self, inner: Any, end_ids: Sequence[int]) -> None:
        # MiniLM's tokenizer.json carries a truncation to 128 tokens that would cut texts silently.
        inner.backend_tokenizer.no_truncation()
        inner.backend_tokenizer.no_padding()
        inner.model_max_length = int(
            1e9
        )  # lengths are checked by the tasks; no warnings beside that
        self._inner = inner
        self.end_ids = tuple(end_ids)

    def encode(self, text: str, *, add_special: bool = True) -> Tokens:
        """Return a text's tokens. A special token spelled out in it, such as ``<|im_end|>``, stays plain text."""
        out = self._inner(
            text,
            add_special_tokens=add_special,
            return_offsets_mapping=True,
            split_special_tokens=True,
        )
        return Tokens(list(out["input_ids"]), _with_marks(text, out["offset_mapping"]))

    def encode_around(self, text: str, start: int, stop: int) -> Tokens:
        """Return a prompt's tokens: special ones outside [start, stop), where the template wrote them, only."""
        return self.encode_chat(text, [(start, stop)])

    def encode_chat(self, text: str, messages: Sequence[tuple[int, int]]) -> Tokens:
        """Return a prompt's tokens, of several messages: special ones outside these only.

        They are those of the prompt as a whole, which the backbone has learned to read. Only where a message spells a
        special token out, it is read apart from the template.

        Args:
            messages: their places, [start, stop) in code points, in order.
        """
        whole = self._encode_template(text)
        if not self._are_special_within(whole, messages):
            return whole
        borders = [0, *(border for message in messages for border in message), len(text)]
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for i, (start, stop) in enumerate(pairwise(borders)):
            piece = text[start:stop]
            part = self.encode(piece, add_special=False) if i % 2 else self._encode_template(piece)
            ids += part.ids
            offsets += [(begin + start, end + start) for begin, end in part.offsets]
        return Tokens(ids, offsets)

    def _encode_template(self, text: str) -> Tokens:
        """Return the tokens of what a template wrote, special ones read as such."""
        out = self._of_templates.encode(text, add_special_tokens=False)
        return Tokens(out.ids, _with_marks(text, out.offsets))

    def _are_special_within(self, tokens: Tokens, places: Sequence[tuple[int, int]]) -> bool:
        found = [
            place
            for token_id, place in zip(tokens.ids, tokens.offsets, strict=True)
            if token_id in self._special_ids
        ]
        return any(s < stop and e > start for s, e in found for start, stop in places)

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._of_templates.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @functools.cached_property
    def _of_templates(self) -> Any:
        # A second one, for whether special tokens are read is a setting that all threads would share.
        backend = self._inner.backend_tokenizer
        return type(backend).from_str(backend.to_str())

    def encode_behind(self, context: Sequence[int], text: str) -> list[int]:
        """Return the ids that `decode` reads as a text behind a context.

        Read for itself, a text gets a blank of its own from tokenizers of SentencePiece's kind, so that it is read
        behind some mark or letter, one that stays a token apart.
        """
        num_given = len(self.decode(context))
        for lead in ("", "\n", "a", "."):
            before = self.encode(lead, add_special=False).ids if lead else []
            ids = self.encode(lead + text, add_special=False).ids
            begin, rest = ids[: len(before)], ids[len(before) :]
            if begin == before and self.decode([*context, *rest])[num_given:] == text:
                return rest
        return self.encode(text, add_special=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out, as it was written: not a blank is taken away.

        Bytes at the end that are no character, or not yet, are U+FFFD.
        """
        text = self._decode(token_ids)
        if not text.endswith(BROKEN):
            return text
        # Decoders of SentencePiece's kind give up the finished characters of a run of bytes as well.
        apart = [
            self._decode(token_ids[:-num_open]) + self._decode(token_ids[-num_open:])
            for num_open in range(1, MOST_OPEN_BYTES + 1)
        ]
        return min([text, *apart], key=lambda each: each.count(BROKEN))

    def _decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        text: str = self._inner.decode(
            list(token_ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
        return text

    def decode_token(self, token_id: int) -> str:
        """Return one token's text as it stands within a text: with its blank, a special token spelled out.

        A part of a character is U+FFFD.
        """
        text = self._decode([*self.context, token_id], skip_special=False)
        return text.removeprefix(self._context_text)

    @functools.cached_property
    def _context_text(self) -> str:
        return self._decode(self.context, skip_special=False)

    @functools.cached_property
    def context(self) -> tuple[int, ...]:
        """The tokens of some text: a text's first token may lose its blank, one that is read behind these does not."""
        return tuple(self.encode("a", add_special=False).ids)

    @property
    def closes_texts(self) -> bool:
        """Whether a special token ends each text by itself, as with T5, BART and BERT."""
        ids = self.encode("a").ids
        return ids[-1] in self._inner.all_special_ids

    @property
    def has_chat(self) -> bool:
        return bool(self._inner.chat_template)

    def chat(self, messages: list[dict[str, str]]) -> str:
        """Return the prompt for an assistant's next turn, special tokens spelled out.

        Raises:
            InvalidRequest: the backbone's template does not take these roles, or not in this order.
        """
        from jinja2 import TemplateError

        try:
            text: str = self._inner.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InvalidRequest(
                f"The backbone's chat template does not take messages of '{roles}': {error}. "
                "Send other roles, or the same in another order.",
                param="messages",
            ) from error
        return text

    def fingerprint(self) -> str:
        """Return a SHA-256 of everything that decides how text becomes ids."""
        return canonical_digest([self._inner.backend_tokenizer.to_str(), self._inner.chat_template])


def _with_marks(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return tokens' places with the marks that stand behind them and are no token's.

    Normalizers drop such a mark, or make one character of it and the letter before; either is then placed at the
    letter alone.
    """
    if text.isascii():
        return [(start, end) for start, end in offsets]
    starts = {start for start, end in offsets if end > start}

    def behind(end: int) -> int:
        while end < len(text) and end not in starts and _is_mark(text[end]):
            end += 1
        return end

    return [(start, behind(end) if end > start else end) for start, end in offsets]


def _is_mark(character: str) -> bool:
    """Tell whether a character belongs to the one before it: an accent, a vowel sign, a later part of Hangul."""
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"


def load_tokenizer(folder: Path | str, fingerprint: str | None = None) -> Tokenizer:
    """Load a backbone's tokenizer, with the ids that end a generated text.

    Args:
        fingerprint: the tokenizer's, where it is known. Then the general class is tried before transformers looks for
            the model's own, which takes torch and 200 MB of memory; it is used if it has this very fingerprint.
    """
    general = None if fingerprint is None else _general_tokenizer(folder)
    if general is not None and general.fingerprint() == fingerprint:
        return general
    from transformers import AutoTokenizer

    try:
        inner = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ImportError, OSError, ValueError) as error:
        raise _no_tokenizer(folder) from error
    if not inner.is_fast:  # without places of tokens, and without what ours is made of
        raise _no_tokenizer(folder)
    return Tokenizer(inner, _end_ids(inner, Path(folder)))


def _no_tokenizer(folder: Path | str) -> UnsupportedBackbone:
    return UnsupportedBackbone(
        f"Backbone folder '{Path(folder).name}' has no fast tokenizer that can be loaded. Save one, a tokenizer.json, "
        "beside the weights with transformers' save_pretrained.",
        param="backbone",
    )


def _general_tokenizer(folder: Path | str) -> Tokenizer | None:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

    try:
        inner = PreTrainedTokenizerFast.from_pretrained(folder)
        return Tokenizer(inner, _end_ids(inner, Path(folder)))
    except Exception:  # no tokenizer.json, or one that only the model's own class can read
        return None


def _end_ids(inner: Any, folder: Path) -> list[int]:
    """Return the ids that end a text, first the one to teach: the tokenizer's own, which chats end with."""
    ends = [inner.eos_token_id]
    file = folder / "generation_config.json"
    if file.is_file():
        configured = json.loads(file.read_text()).get("eos_token_id")
        ends += configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(end for end in ends if end is not None))
