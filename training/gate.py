"""The data gate: what would make a training run fail or mislead, found before any of it is run. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from adapters.errors import InvalidData
from adapters.tasks.question_answering import AnsweringRequest, AnsweringTarget
from adapters.tasks.regression import RegressionTarget
from adapters.tasks.text_classification import ClassificationTarget
from adapters.tasks.token_classification import TaggingTarget
from training.data import Example

MIN_ROWS = 8  # fewer than the smallest batch that teaches anything


def check_examples(
    train: Sequence[Example], test: Sequence[Example] = (), *, min_rows: int = MIN_ROWS
) -> list[str]:
    """Return warnings about a data set.

    Raises:
        InvalidData: training on it can't work: too few rows, one class or score only, or no entity or
            answer at all.
    """
    if len(train) < min_rows:
        raise InvalidData(
            f"The training file has '{len(train)}' rows; a run needs at least {min_rows}, one batch. "
            "Add examples.",
            param="data.train",
        )
    _check_scores(train)
    _check_answers(train)
    warnings = [
        *_label_warnings(train, test),
        *_entity_warnings(train, test),
        *_answer_warnings([*train, *test]),
    ]
    repeated = len(train) - len({_key(example) for example in train})
    if repeated:
        warnings.append(f"{repeated} training rows repeat another one's input.")
    leaked = len({_key(example) for example in train} & {_key(example) for example in test})
    if leaked:
        warnings.append(f"{leaked} test rows stand in the training file: the test is too easy.")
    return warnings


def _label_warnings(train: Sequence[Example], test: Sequence[Example]) -> list[str]:
    counts = Counter(_labels(train))
    if not counts:
        return []
    if len(counts) == 1:
        only = next(iter(counts))
        raise InvalidData(
            f"Every training row has the label '{only}'; there is nothing to tell apart. Add rows of "
            "at least one other label.",
            param="data.train",
        )
    unseen = sorted(set(_labels(test)) - set(counts))
    if unseen:
        raise InvalidData(
            f"Test label '{unseen[0]}' is in no training row. Known: {', '.join(sorted(counts)[:8])}.",
            param="data.test",
        )
    return _rare(counts)


def _rare(counts: Counter[str]) -> list[str]:
    rare = [label for label, count in counts.items() if count < 5]
    return [f"Label '{label}' has only {counts[label]} training rows." for label in rare[:10]]


def _entity_warnings(train: Sequence[Example], test: Sequence[Example]) -> list[str]:
    tagged = [e.target for e in train if isinstance(e.target, TaggingTarget)]
    if not tagged:
        return []
    counts = Counter(label for target in tagged for label in target.labels())
    if not counts:
        raise InvalidData(
            "Every tag of the training rows is 'O'; there is nothing to find. Add rows with entities.",
            param="data.train",
        )
    found = {
        name for e in test if isinstance(e.target, TaggingTarget) for name in e.target.labels()
    }
    unseen = sorted(found - set(counts))
    return [
        *_rare(counts),
        *(f"Test label '{label}' is in no training row; it can't be found." for label in unseen),
    ]


def _check_scores(train: Sequence[Example]) -> None:
    scores = {e.target.score for e in train if isinstance(e.target, RegressionTarget)}
    if len(scores) == 1:
        raise InvalidData(
            f"Every training row has the score '{scores.pop():g}'; there is nothing to learn. Add rows "
            "with other scores.",
            param="data.train",
        )


def _check_answers(train: Sequence[Example]) -> None:
    targets = [e.target for e in train if isinstance(e.target, AnsweringTarget)]
    if targets and not any(target.answers for target in targets):
        raise InvalidData(
            "Every training row's 'answers' is '[]'; there is nothing to find. Add questions with an answer.",
            param="data.train",
        )


def _answer_warnings(examples: Sequence[Example]) -> list[str]:
    wrong = [(e.line, text) for e in examples if (text := _misplaced_answer(e)) is not None]
    if not wrong:
        return []
    line, text = wrong[0]
    return [
        f"{len(wrong)} rows have an answer that does not stand at its answer_start (in code points), the "
        f"first '{text[:60]}' on line {line}."
    ]


def _misplaced_answer(example: Example) -> str | None:
    """Return an answer's text if its context does not hold it where it says."""
    request, target = example.request, example.target
    if not (isinstance(request, AnsweringRequest) and isinstance(target, AnsweringTarget)):
        return None
    stand = (
        a.text for a in target.answers if not request.context.startswith(a.text, a.answer_start)
    )
    return next(stand, None)


def _labels(examples: Sequence[Example]) -> list[str]:
    return [e.target.label for e in examples if isinstance(e.target, ClassificationTarget)]


def _key(example: Example) -> str:
    return example.request.model_dump_json()
