"""Records in the forms that published data sets have, brought into the form of a task's own fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapters.errors import InvalidData
from adapters.validation import shown
from training.columns import Columns, pick
from training.records import Record, parsed

_LISTS = ("answers", "labels", "tokens", "tags", "messages")
_TEXTS_OR_MESSAGES = ("prompt", "completion")
_PYTHON_MESSAGES = re.compile(r"\[\{'(role|content)': ")  # as pandas puts them into CSV


def shape(record: Record, columns: Columns) -> Record:
    """Return a record's values under the task's own field names; what is not there is left out.

    Values that fit no known form stay as they are, so that the task says what is wrong with them.

    Raises:
        InvalidData: a text holds messages as Python shows them.
    """
    shaped = {
        ours: value
        for ours, theirs in columns.fields.items()
        if (value := pick(record, theirs)) is not None or theirs in record
    }
    shaped = {ours: _listed(ours, value) for ours, value in shaped.items()}
    for ours, names in columns.class_names.items():
        if ours in shaped:
            shaped[ours] = _named(shaped[ours], names)
    finish = _FINISH.get(columns.task)
    return finish(shaped) if finish else shaped


def _listed(ours: str, value: Any) -> Any:
    """Return what a table's cell spells as JSON where a field is no text; a text may look like JSON, too."""
    if ours in _LISTS:
        return parsed(value)
    if ours in _TEXTS_OR_MESSAGES and isinstance(value, str):
        found = parsed(value)
        if _are_messages(found):
            return found
        if _PYTHON_MESSAGES.match(value):
            raise InvalidData(
                f"field '{ours}' is {shown(value)}: messages, but no JSON.", param=ours
            )
    return value


def _are_messages(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(v, Mapping) and {"role", "content"} <= set(v) for v in value)


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the class name that a number stands for, also inside a list; anything else unchanged."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return names[value] if is_number and 0 <= value < len(names) else value


def _one_label(shaped: Record) -> Record:
    """Take ``labels`` that hold no list for the one label; what may be a list in no JSON stays, and is refused."""
    given = shaped.get("labels", [])
    is_list = isinstance(given, list) or (isinstance(given, str) and given.startswith("["))
    if "label" not in shaped and not is_list:
        shaped["label"] = shaped.pop("labels")
    return shaped


def _answers(shaped: Record) -> Record:
    """Return answers as a list of objects; the Hub's SQuAD has an object of lists."""
    given = shaped.get("answers")
    if isinstance(given, Mapping):
        texts, starts = given.get("text"), given.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            pairs = zip(texts, starts, strict=True)
            shaped["answers"] = [{"text": t, "answer_start": s} for t, s in pairs]
        elif isinstance(texts, str):
            shaped["answers"] = [dict(given)]
    return shaped


def _conversation(shaped: Record) -> Record:
    """Return prompt or messages, and the completion: what the assistant says last, where messages hold it."""
    context = shaped.pop("input", None)
    if isinstance(context, str) and context.strip() and isinstance(shaped.get("prompt"), str):
        shaped["prompt"] = f"{shaped['prompt']}\n\n{context}"
    if isinstance(shaped.get("prompt"), list):
        shaped["messages"] = shaped.pop("prompt")
    completion = shaped.get("completion")
    if isinstance(completion, list) and len(completion) == 1 and _is_answer(completion[0]):
        shaped["completion"] = completion[0].get("content")
    return _last_answer(shaped) if "messages" in shaped else shaped


def _last_answer(shaped: Record) -> Record:
    shaped.pop("prompt", None)
    messages = shaped["messages"]
    is_open = "completion" not in shaped and isinstance(messages, list) and len(messages) > 1
    if is_open and _is_answer(messages[-1]):
        shaped["messages"] = messages[:-1]
        shaped["completion"] = messages[-1].get("content")
    return shaped


def _is_answer(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


_FINISH: dict[str, Callable[[Record], Record]] = {
    "text-classification": _one_label,
    "question-answering": _answers,
    "text-generation": _conversation,
}
