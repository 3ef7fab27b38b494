"""The data gate's single checks: each takes splits and returns what it finds. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, groupby

from adapters.tasks.base import NO_LABEL, Labelled, TaskOptions
from adapters.tasks.question_answering import AnsweringRequest, AnsweringTarget
from adapters.tasks.regression import RegressionTarget
from adapters.tasks.text_classification import ClassificationOptions, ClassificationTarget
from adapters.tasks.token_classification import TaggingOptions, TaggingTarget
from adapters.tasks.words import read_spans
from adapters.validation import listed, shown
from training.data import Example, content_key
from training.findings import Finding

_RARE = 5  # a class of fewer rows is hardly learned
_MAX_NAMED = 10
_OF = {"train": "training"}

SplitRows = Mapping[str, Sequence[Example]]


def count_labels(rows: Sequence[Example]) -> Counter[str]:
    """Return how often each label occurs: a row's class, or the kinds of its entities."""
    counts: Counter[str] = Counter()
    for example in rows:
        if isinstance(example.target, ClassificationTarget):
            counts.update(example.target.names())
        elif isinstance(example.target, TaggingTarget):
            counts.update(span.label for span in read_spans(example.target.tags))
    return counts


def size_findings(splits: SplitRows, min_rows: int) -> Iterator[Finding]:
    num_rows = len(splits["train"])
    if num_rows < min_rows:
        yield _error(
            "too_few_rows",
            f"The training file has '{num_rows}' rows; a run needs at least {min_rows}, one batch. Add examples.",
        )


def class_findings(splits: SplitRows) -> Iterator[Finding]:
    """Find a single class, rare classes, and classes that are tested and never trained."""
    counts = Counter(_classes(splits["train"]))
    if not counts:
        return
    if len(counts) == 1:
        yield _error(
            "one_class",
            f"Every training row has the label '{next(iter(counts))}'; there is nothing to tell apart. Add rows "
            "of at least one other label.",
        )
    for name in ("validation", "test"):
        unseen = sorted(set(_classes(splits.get(name, ()))) - set(counts))
        if unseen:
            yield _error(
                "unseen_label",
                f"{name.capitalize()} label '{unseen[0]}' is in no training row. Known: "
                f"{', '.join(sorted(counts)[:8])}.",
                f"data.{name}",
            )
        yield from _mixed_forms(name, splits.get(name, ()), splits["train"])
    yield from _rare(counts)


def adapter_findings(rows: Sequence[Example], options: TaskOptions) -> Iterator[Finding]:
    """Find test rows with labels that an adapter does not know, or with several where it gives one.

    Args:
        options: of the adapter's task.
    """
    if isinstance(options, ClassificationOptions):
        unseen = sorted(set(_classes(rows)) - set(options.labels))
        if unseen:
            yield _error(
                "unseen_label",
                f"Test label {shown(unseen[0])} is none of the adapter's. Known: {listed(options.labels)}. "
                "Leave such rows out, or write the labels as it has them.",
                "data.test",
            )
        if not options.multi_label and "labels" in _forms(rows):
            yield _error(
                "mixed_labels",
                "The test rows have 'labels', and the adapter gives one label. Give them a 'label'.",
                "data.test",
            )
    elif isinstance(options, TaggingOptions):
        for label in sorted(set(_entities(rows)) - set(options.labels)):
            message = f"Test label '{label}' is none of the adapter's; it can't be found."
            yield Finding(level="warning", code="unseen_label", message=message)


def entity_findings(splits: SplitRows) -> Iterator[Finding]:
    """Find tags that mark nothing, rare entities, and entities that are tested and never trained."""
    if not any(isinstance(example.target, TaggingTarget) for example in splits["train"]):
        return
    counts = Counter(_entities(splits["train"]))
    if not counts:
        yield _error(
            "no_entities",
            "Every tag of the training rows is 'O'; there is nothing to find. Add rows with entities.",
        )
    yield from _rare(counts)
    for name in ("validation", "test"):
        for label in sorted(set(_entities(splits.get(name, ()))) - set(counts)):
            message = (
                f"{name.capitalize()} label '{label}' is in no training row; it can't be found."
            )
            yield Finding(level="warning", code="unseen_label", message=message)


def score_findings(splits: SplitRows) -> Iterator[Finding]:
    scores = {e.target.score for e in splits["train"] if isinstance(e.target, RegressionTarget)}
    if len(scores) == 1:
        yield _error(
            "one_score",
            f"Every training row has the score '{scores.pop():g}'; there is nothing to learn. Add rows "
            "with other scores.",
        )


def answer_findings(splits: SplitRows) -> Iterator[Finding]:
    """Find answers that do not stand where they say, and questions none of which has one."""
    targets = [e.target for e in splits["train"] if isinstance(e.target, AnsweringTarget)]
    if targets and not any(target.answers for target in targets):
        yield _error(
            "no_answers",
            "Every training row's 'answers' is '[]'; there is nothing to find. Add questions with an answer.",
        )
    for name, rows in splits.items():
        wrong = [(e.line, text) for e in rows if (text := _misplaced_answer(e)) is not None]
        if wrong:
            line, text = wrong[0]
            yield Finding(
                level="warning",
                code="misplaced_answer",
                message=f"{len(wrong)} {_OF.get(name, name)} rows have an answer that does not stand at its "
                f"answer_start (in code points), the first {shown(text)} on line {line}.",
            )


def duplicate_findings(splits: SplitRows) -> Iterator[Finding]:
    """Find inputs that stand twice, in one split or in two; case and spaces do not make them differ."""
    keys = {name: [content_key(example) for example in rows] for name, rows in splits.items()}
    for name, found in keys.items():
        repeated = len(found) - len(set(found))
        if repeated:
            yield Finding(
                level="warning",
                code="duplicates",
                message=f"{repeated} {_OF.get(name, name)} rows repeat another one's input.",
            )
    yield from _contradictions(splits["train"], keys["train"])
    for first, second in combinations(keys, 2):
        seen = set(keys[first])
        leaked = sum(key in seen for key in keys[second])
        if leaked:
            yield Finding(
                level="warning",
                code="leakage",
                message=f"{leaked} {second} rows stand among the {_OF.get(first, first)} rows: "
                f"{'the ' + second + ' split is too easy' if first == 'train' else 'they are no second opinion'}.",
            )


def length_findings(name: str, num_long: int, num_rows: int, max_tokens: int) -> Iterator[Finding]:
    """Find rows that do not fit: training leaves them out, elsewhere they are cut."""
    if num_long:
        is_train = name == "train"
        yield Finding(
            level="error" if is_train and num_long == num_rows else "warning",
            code="truncation",
            message=f"{num_long} of {num_rows} {_OF.get(name, name)} rows ({num_long / num_rows:.1%}) have more than "
            f"{max_tokens} tokens and are {'left out' if is_train else 'cut'}.",
            param=f"data.{name}",
        )


def masked_findings(lines: Sequence[int], num_rows: int) -> Iterator[Finding]:
    """Find training rows, given by line, no token of which has a label: they teach nothing."""
    if lines:
        yield Finding(
            level="error" if len(lines) == num_rows else "warning",
            code="all_masked",
            message=f"Training rows with no token with a label, which teach nothing: {len(lines)}, the first on line "
            f"{lines[0]}.",
            param="data.train",
        )


def is_masked(row: Labelled) -> bool:
    """Tell whether no token of a row has a label."""
    return all(label == NO_LABEL for label in row.labels)


def _contradictions(rows: Sequence[Example], keys: Sequence[str]) -> Iterator[Finding]:
    labelled = sorted(
        (key, tuple(sorted(example.target.names())))
        for key, example in zip(keys, rows, strict=True)
        if isinstance(example.target, ClassificationTarget)
    )
    by_input = groupby(labelled, key=lambda pair: pair[0])
    count = sum(len({label for _, label in pairs}) > 1 for _, pairs in by_input)
    if count:
        message = f"{count} inputs stand among the training rows with different labels."
        yield Finding(level="warning", code="contradictions", message=message)


def _rare(counts: Counter[str]) -> Iterator[Finding]:
    rare = [(label, count) for label, count in counts.items() if count < _RARE]
    for label, count in rare[:_MAX_NAMED]:
        message = f"Label '{label}' has only {count} training rows."
        yield Finding(level="warning", code="rare_label", message=message)
    if rare[_MAX_NAMED:]:
        message = f"{len(rare) - _MAX_NAMED} more labels have fewer than {_RARE} training rows."
        yield Finding(level="warning", code="rare_label", message=message)


def _misplaced_answer(example: Example) -> str | None:
    """Return an answer's text if its context does not hold it where it says."""
    request, target = example.request, example.target
    if not (isinstance(request, AnsweringRequest) and isinstance(target, AnsweringTarget)):
        return None
    stand = (
        a.text for a in target.answers if not request.context.startswith(a.text, a.answer_start)
    )
    return next(stand, None)


def _mixed_forms(name: str, rows: Sequence[Example], train: Sequence[Example]) -> Iterator[Finding]:
    other = _forms(rows) - _forms(train)
    if other:
        yield _error(
            "mixed_labels",
            f"{name.capitalize()} rows have '{other.pop()}' where the training rows have "
            f"'{_forms(train).pop()}'. Give all splits the same field.",
            f"data.{name}",
        )


def _forms(rows: Sequence[Example]) -> set[str]:
    """Return which of its two fields rows have their labels in."""
    targets = [e.target for e in rows if isinstance(e.target, ClassificationTarget)]
    return {"label" if target.labels is None else "labels" for target in targets}


def _classes(rows: Sequence[Example]) -> list[str]:
    return [n for e in rows if isinstance(e.target, ClassificationTarget) for n in e.target.names()]


def _entities(rows: Sequence[Example]) -> list[str]:
    """Return the kinds of entity in each row, once a row."""
    return [
        label for e in rows if isinstance(e.target, TaggingTarget) for label in e.target.labels()
    ]


def _error(code: str, message: str, param: str = "data.train") -> Finding:
    return Finding(level="error", code=code, message=message, param=param)
