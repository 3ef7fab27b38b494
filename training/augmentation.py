"""Changed copies of training rows: words replaced, swapped or deleted (EDA: Wei and Zou, arXiv 1901.11196), or a text
translated there and back.

A word is what `split_words` says, of Chinese and Japanese a character. EDA replaces by synonyms of WordNet, which exist
for few languages; here a word is replaced by a word of another row. Free of torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import httpx
from pydantic import BaseModel

from adapters.errors import InvalidRequest
from adapters.tasks.templates import TextRequest
from adapters.tasks.words import split_words
from training.contract import AugmentationSettings, BackTranslationSettings
from training.data import Example, plain

Translate = Callable[[str, Sequence[str]], list[str]]  # an adapter's name and texts to translations
_FIELDS = ("text", "text_pair")
_ROWS_A_CALL = 64
_SECONDS = 600.0


def augmented(
    train: Sequence[Example], settings: AugmentationSettings, returned: Sequence[str] = ()
) -> list[Example]:
    """Return the copies that the settings ask for; those that came out like their row are left out.

    A copy depends on its row, the rows it takes words from, and the seed; not on the rows' order.

    Args:
        returned: what `translated` gave for these rows.

    Raises:
        InvalidRequest: the task's answers would not survive the change.
    """
    check_changeable(train)
    copies = list(_word_copies(train, settings))
    if settings.back_translation is not None:
        copies += _close_copies(train, returned, settings.back_translation.min_chrf)
    return copies


def check_changeable(train: Sequence[Example]) -> None:
    """Raise `InvalidRequest` if the task's answers would not survive a changed text."""
    for example in train:
        if not isinstance(example.request, TextRequest):
            raise InvalidRequest(
                "data.augmentation changes texts as a whole, which only text-classification and regression stand: "
                "elsewhere the answer is made of the text's own words. Leave it unset.",
                param="data.augmentation",
            )


def _word_copies(train: Sequence[Example], settings: AugmentationSettings) -> Iterator[Example]:
    vocabulary = sorted({w for e in train for text in _texts(e) for w, _ in _pieces(text)})
    changes: dict[str, Callable[[str, random.Random], str]] = {
        "replace": lambda text, rng: replace_words(text, settings.replace, vocabulary, rng),
        "swap": lambda text, rng: swap_words(text, settings.swap, rng),
        "delete": lambda text, rng: delete_words(text, settings.delete, rng),
    }
    for name, change in changes.items():
        if not getattr(settings, name):
            continue
        for copy in range(settings.copies):
            for example in train:
                key = f"{settings.seed}/{name}/{copy}/{example.request.model_dump_json()}"
                rng = random.Random(key)
                yield from _changed(example, [change(text, rng) for text in _texts(example)])


def translated(
    train: Sequence[Example],
    settings: BackTranslationSettings,
    translate: Translate | None = None,
) -> list[str]:
    """Return all texts of the rows, one after the other, as they come back from another language.

    Args:
        translate: by the settings' server, if None.

    Raises:
        InvalidRequest: the task's answers would not survive the change, or the server does not translate.
    """
    check_changeable(train)
    translate = translate or _server(settings.url)
    texts = [text for example in train for text in _texts(example)]
    return translate(settings.back, translate(settings.there, texts))


def _close_copies(
    train: Sequence[Example], returned: Sequence[str], min_chrf: float
) -> list[Example]:
    """Return rows whose texts came back close enough, but not the same.

    Close means a chrF (Popović 2015; sacrebleu) to the text of ``min_chrf`` at least.
    """
    # Here: a run must be able to begin without it, to tell that it is missing.
    from sacrebleu.metrics import CHRF

    texts = iter(returned)
    chrf, copies = CHRF(), []
    for example in train:
        before = _texts(example)
        after = list(islice(texts, len(before)))
        scores = [
            chrf.sentence_score(new, [old]).score for new, old in zip(after, before, strict=True)
        ]
        if min(scores) >= min_chrf:
            copies += _changed(example, after)
    return copies


def replace_words(text: str, share: float, vocabulary: Sequence[str], rng: random.Random) -> str:
    """Return a text with a share of its words, one at least, replaced by words of the vocabulary."""
    pieces = _pieces(text)
    for place in rng.sample(range(len(pieces)), _count(share, pieces)):
        pieces[place] = (rng.choice(vocabulary), pieces[place][1])
    return _joined(pieces)


def swap_words(text: str, share: float, rng: random.Random) -> str:
    """Return a text in which pairs of words, as many as a share of the words and one at least, change places."""
    pieces = _pieces(text)
    for _ in range(_count(share, pieces)):
        if len(pieces) > 1:
            i, j = rng.sample(range(len(pieces)), 2)
            (first, gap), (second, other_gap) = pieces[i], pieces[j]
            pieces[i], pieces[j] = (second, gap), (first, other_gap)
    return _joined(pieces)


def delete_words(text: str, share: float, rng: random.Random) -> str:
    """Return a text without each of its words by a chance; one is always kept."""
    pieces = _pieces(text)
    kept = [piece for piece in pieces if rng.random() >= share]
    return _joined(kept or [rng.choice(pieces)])


def _pieces(text: str) -> list[tuple[str, str]]:
    """Return a text's words, each with what stands between it and the next."""
    places = split_words(text)
    starts = [start for start, _ in places[1:]] + [len(text)]
    return [
        (text[start:end], text[end:following])
        for (start, end), following in zip(places, starts, strict=True)
    ]


def _joined(pieces: Sequence[tuple[str, str]]) -> str:
    return "".join(word + gap for word, gap in pieces).strip()


def _count(share: float, pieces: Sequence[object]) -> int:
    return min(len(pieces), max(1, round(share * len(pieces))))


def _texts(example: Example) -> list[str]:
    given = (getattr(example.request, name) for name in _FIELDS)
    return [text for text in given if text]


def _changed(example: Example, texts: Sequence[str]) -> list[Example]:
    """Return the example with other texts; none if they are empty, or the same but for case and spaces."""
    before = _texts(example)
    is_same = all(plain(new) == plain(old) for new, old in zip(texts, before, strict=True))
    if is_same or not all(text.strip() for text in texts):
        return []
    request: BaseModel = example.request.model_copy(update=dict(zip(_FIELDS, texts, strict=False)))
    return [Example(request, example.target, example.line, example.weight)]


def _server(url: str) -> Translate:
    def translate(adapter: str, texts: Sequence[str]) -> list[str]:
        found: list[str] = []
        with httpx.Client(base_url=url, timeout=_SECONDS) as client:
            for start in range(0, len(texts), _ROWS_A_CALL):
                inputs = [{"source": text} for text in texts[start : start + _ROWS_A_CALL]]
                body = {
                    "adapter": adapter,
                    "inputs": inputs,
                    "parameters": {"truncate": True},
                }
                found += _translations(client, body)
        return found

    return translate


def _translations(client: httpx.Client, body: Mapping[str, object]) -> list[str]:
    try:
        answer = client.post("/v1/predict", json=body)
        predictions = answer.json().get("predictions") or []
    except (httpx.HTTPError, ValueError) as error:
        raise InvalidRequest(
            f"Back-translation: no Headstock server answers at '{client.base_url}' ({error}). Start one with the "
            "translation adapters, or set data.augmentation.back_translation.url.",
            param="data.augmentation.back_translation",
        ) from error
    if answer.is_error or not all("translation" in each for each in predictions):
        raise InvalidRequest(
            f"Back-translation by adapter '{body['adapter']}' failed: {answer.text[:300]}. Name translation adapters.",
            param="data.augmentation.back_translation",
        )
    return [each["translation"] for each in predictions]
