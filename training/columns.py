"""Which task a file is for, and where each of the task's fields comes from, told by the names of its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.errors import InvalidData
from adapters.validation import listed, shown
from training.records import Record, parsed

_TEXTS = ("sentence", "sentence1", "premise", "question1", "text1", "content", "review")
_TEXT_PAIRS = ("sentence2", "hypothesis", "question2", "text2")
# For each task its fields, and the names that they also go by. A column of the field's own name goes first.
KNOWN: dict[str, dict[str, tuple[str, ...]]] = {
    "text-classification": {
        "text": _TEXTS,
        "text_pair": _TEXT_PAIRS,
        "label": ("category", "class", "intent", "target"),
        "labels": (),
    },
    "regression": {
        "text": _TEXTS,
        "text_pair": _TEXT_PAIRS,
        "score": ("rating", "similarity", "similarity_score", "label", "labels", "target"),
    },
    "token-classification": {"tokens": ("words",), "tags": ("ner_tags", "ner", "labels")},
    "question-answering": {"question": (), "context": (), "answers": ("answer",)},
    "summarization": {
        "text": ("document", "dialogue", "article"),
        "summary": ("highlights", "tldr"),
    },
    "translation": {"source": ("src",), "target": ("tgt",), "translation": ()},
    "text-generation": {
        "messages": (),
        "prompt": ("instruction", "question"),
        "input": (),
        "completion": ("output", "response", "answer"),
    },
}
# What a file must have at least; any one of the sets.
_ENOUGH: dict[str, tuple[tuple[str, ...], ...]] = {
    "text-classification": (("text", "label"), ("text", "labels")),
    "regression": (("text", "score"),),
    "token-classification": (("tokens", "tags"),),
    "question-answering": (("question", "context", "answers"),),
    "summarization": (("text", "summary"),),
    "translation": (("source", "target"), ("translation",)),
    "text-generation": (("messages",), ("prompt", "completion")),
}
_LABELS = ("label", "labels", "target")  # they may hold class names as well as scores


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a task's fields come from in one file.

    Args:
        fields: our field to their column; ``a.b`` is the key ``b`` inside column ``a``.
        class_names: what the numbers of a label or tag column stand for, by our field.
        unused: columns that no field comes from.
        seen: the columns that all this was judged by.
    """

    task: str
    fields: dict[str, str]
    class_names: dict[str, list[str]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    seen: frozenset[str] = frozenset()

    def told(self) -> str:
        """Return the map in words."""
        pairs = ", ".join(f"{ours} from '{theirs}'" for ours, theirs in self.fields.items())
        return pairs + (f"; not used: {listed(self.unused)}" if self.unused else "")


def detect_task(head: Sequence[Record], given: Mapping[str, str]) -> str:
    """Return the task whose fields the first records of a file have.

    Raises:
        InvalidData: they fit no task, or several.
    """
    keys = _keys(head)
    fitting = [task for task in KNOWN if _fits(task, keys, head, given)]
    if "question-answering" in fitting:
        return "question-answering"
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InvalidData(
            f"The columns {listed(keys, 20)} fit several tasks: {listed(fitting)}. Name the one you mean.",
            param="task",
        )
    known = "; ".join(f"{task}: {' + '.join(sets[0])}" for task, sets in _ENOUGH.items())
    raise InvalidData(
        f"The columns {listed(keys, 20)} fit no task. Known: {known}. Rename them, or say which is which "
        "(--column text=COLUMN).",
        param="data.columns",
    )


def find_columns(
    task: str,
    head: Sequence[Record],
    given: Mapping[str, str],
    class_names: Mapping[str, Sequence[str]],
) -> Columns:
    """Return where a task's fields come from, judged by the first records of a file.

    Args:
        given: our field to their column, as a person said; it overrides the names.
        class_names: names of numbered classes by their column.

    Raises:
        InvalidData: a field has no column or several could be it, or ``given`` names what is not there.
    """
    keys = _keys(head)
    _check_given(task, keys, head, given)
    fields = {}
    for ours in KNOWN[task]:
        found = _candidates(task, ours, keys, given)
        if len(found) > 1:
            raise InvalidData(
                f"'{ours}' could be any of the columns {listed(found)}. Say which (--column "
                f"{ours}={found[0]}).",
                param="data.columns",
            )
        if found:
            fields[ours] = found[0]
    _check_enough(task, fields, keys)
    by_language = fields.pop("translation", None)
    if by_language and not {"source", "target"} <= set(fields):
        fields = _languages(head, by_language)
    used = {theirs if theirs in keys else theirs.split(".")[0] for theirs in fields.values()}
    names = {ours: list(class_names[t]) for ours, t in fields.items() if t in class_names}
    unused = tuple(key for key in keys if key not in used)
    return Columns(task, fields, names, unused, frozenset(keys))


def is_telling(record: Record, columns: Columns) -> bool:
    """Tell whether a record has a column that was not seen, and that a field could come from by its name."""
    if not columns.fields:
        return True
    new = record.keys() - columns.seen
    known = KNOWN[columns.task].items()
    return any(key.lower() in (ours, *names) for key in new for ours, names in known)


def pick(record: Mapping[str, Any], path: str) -> Any:
    """Return a record's value at a column, or at ``column.key``; None if it is not there.

    An object that has the key may be spelled as JSON, as in CSV.
    """
    if path in record:
        return record[path]
    first, _, rest = path.partition(".")
    inner = parsed(record.get(first)) if rest else None
    return pick(inner, rest) if isinstance(inner, Mapping) else None


def _keys(head: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(str(key) for record in head for key in record))


def _candidates(task: str, ours: str, keys: Sequence[str], given: Mapping[str, str]) -> list[str]:
    """Return the columns that a field could come from; one if a person or its own name says so."""
    if ours in given:
        return [given[ours]]
    taken = set(given.values())
    free = [key for key in keys if key not in taken]
    own = [key for key in free if key == ours] or [key for key in free if key.lower() == ours]
    return own[:1] or [key for key in free if key.lower() in KNOWN[task][ours]]


def _fits(task: str, keys: Sequence[str], head: Sequence[Record], given: Mapping[str, str]) -> bool:
    found = {ours: _candidates(task, ours, keys, given) for ours in KNOWN[task]}
    if not any(all(found[ours] for ours in enough) for enough in _ENOUGH[task]):
        return False
    if any(ours not in KNOWN[task] for ours in given):
        return False
    if task == "regression":
        column = found["score"][0]
        return column.lower() not in _LABELS or "score" in given or _holds_scores(head, column)
    if task == "text-classification":
        return not any(_holds_scores(head, c) for c in found["label"] + found["labels"])
    return True


def _holds_scores(head: Sequence[Record], column: str) -> bool:
    """Tell whether a column's values are numbers that name no class: some have a fraction."""
    values = [pick(record, column) for record in head]
    if not all(isinstance(v, str | int | float) for v in values):
        return False
    try:
        return any(not float(value).is_integer() for value in values) and bool(values)
    except (ValueError, OverflowError):
        return False


def _check_given(
    task: str, keys: Sequence[str], head: Sequence[Record], given: Mapping[str, str]
) -> None:
    for ours, theirs in given.items():
        if ours not in KNOWN[task]:
            raise InvalidData(
                f"'{task}' has no field '{ours}'. Known: {listed(list(KNOWN[task]))}.",
                param="data.columns",
            )
        if all(pick(record, theirs) is None for record in head):
            raise InvalidData(
                f"No column '{theirs}' for '{ours}'. Columns found: {listed(keys, 20)}.",
                param="data.columns",
            )


def _check_enough(task: str, fields: Mapping[str, str], keys: Sequence[str]) -> None:
    if any(all(ours in fields for ours in enough) for enough in _ENOUGH[task]):
        return
    closest = max(_ENOUGH[task], key=lambda enough: sum(ours in fields for ours in enough))
    missing = next(ours for ours in closest if ours not in fields)
    names = listed([missing, *KNOWN[task][missing]], 12)
    raise InvalidData(
        f"no field '{missing}'. Fields found: {listed(keys, 20) or 'none'}. Known names for it: {names}. "
        f"Rename one, or say which it is (--column {missing}=COLUMN).",
        param="data.columns",
    )


def _languages(head: Sequence[Record], column: str) -> dict[str, str]:
    """Return source and target of a column that holds a text by language: the first one written is the source."""
    first = next((v for r in head if isinstance(v := parsed(pick(r, column)), Mapping)), {})
    if len(first) != 2:
        raise InvalidData(
            f"'{column}' holds the languages {listed(list(first)) or shown(first)}; which is the source? Say so "
            f"(--column source={column}.en --column target={column}.fr).",
            param="data.columns",
        )
    source, target = first
    return {"source": f"{column}.{source}", "target": f"{column}.{target}"}
