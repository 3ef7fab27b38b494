"""From references and inputs to engine rows, and from the engine's outputs to answers; all text work is here."""

from __future__ import annotations

import functools
import itertools
import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from adapters.backbone import BackboneSpec
from adapters.errors import BackboneMismatch, HeadstockError, InvalidRequest, PredictionFailed
from adapters.registry.records import Version
from adapters.registry.registry import Registry
from adapters.runtime.rows import Row, RowResult
from adapters.tasks.base import Encoded
from adapters.tasks.catalog import AnyTask, get_task
from adapters.tasks.room import row_room
from adapters.text_stream import StreamText
from adapters.tokenizer import Tokenizer
from adapters.validation import first_problem, shown
from service.access.callers import Caller
from service.generations import Generation, Generations
from service.protocols.native import PredictItem

logger = logging.getLogger(__name__)
_ANYONE = Caller()
_MAX_TASKS = 4096
# The fields that a request may be made of alone, and so be written as a bare string.
_TEXT_FIELDS = ("text", "source", "prompt")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request pinned to a version and turned into the rows that answer it together, a part each."""

    version: Version
    task: AnyTask
    request: BaseModel
    parameters: BaseModel
    parts: list[Encoded]
    rows: list[Row]


class Predictor:
    """Prepares rows for the engine and reads its outputs; safe to call from several threads.

    Args:
        max_row_tokens: bound on prompt plus answer, beside the backbone's own.
    """

    def __init__(
        self, registry: Registry, tokenizer: Tokenizer, backbone: BackboneSpec, max_row_tokens: int
    ) -> None:
        self._registry = registry
        self._generations = Generations(registry)
        self._tokenizer = tokenizer
        self._backbone = backbone
        self._max_row_tokens = max_row_tokens
        # Versions are immutable and aliases move only with the generation: both may be remembered.
        self._resolve = functools.lru_cache(4096)(self._resolve_at)
        self._tasks: dict[str, AnyTask] = {}

    def prepare(
        self,
        items: Sequence[PredictItem],
        deadline: float | None = None,
        caller: Caller = _ANYONE,
    ) -> Iterator[Prepared | HeadstockError]:
        """Yield each item's rows, or what is wrong with it; nobody else's fault touches an item.

        Args:
            deadline: `Row.deadline` of all rows.
            caller: whose adapters bare names mean.
        """
        generation = self._generations.current()
        for item in items:
            try:
                yield self._prepare(item, generation, deadline, caller)
            except HeadstockError as error:
                yield error

    def finish(
        self, prepared: Sequence[Prepared | HeadstockError], results: Sequence[RowResult]
    ) -> list[dict[str, Any] | HeadstockError]:
        """Return each item's answer or error; ``results`` are those of `rows_of` the items, in order."""
        remaining = iter(results)
        return [
            item
            if isinstance(item, HeadstockError)
            else self._answer(item, list(itertools.islice(remaining, len(item.rows))))
            for item in prepared
        ]

    def follow_ups(
        self,
        prepared: Sequence[Prepared | HeadstockError],
        answers: Sequence[dict[str, Any] | HeadstockError],
    ) -> dict[int, Prepared | HeadstockError]:
        """Return what has to be asked next, by the place of the item whose answer is not its last one."""
        again: dict[int, Prepared | HeadstockError] = {}
        for i, (item, answer) in enumerate(zip(prepared, answers, strict=True)):
            if isinstance(item, HeadstockError) or isinstance(answer, HeadstockError):
                continue
            request = item.task.follow_up(
                self._tokenizer, item.request, item.parameters, item.parts, answer
            )
            if request is None:
                continue
            try:
                again[i] = self._with_rows(
                    item.version, item.task, request, item.parameters, item.rows[0].deadline
                )
            except HeadstockError as error:
                again[i] = error
        return again

    def prepare_stream(
        self, item: PredictItem, deadline: float | None = None, caller: Caller = _ANYONE
    ) -> Prepared:
        """Return an item of one row, to be handed over token by token.

        Raises:
            HeadstockError: what is wrong with it, such as a task that does not generate, or a text read in parts.
        """
        (prepared,) = self.prepare([item], deadline, caller)
        if isinstance(prepared, HeadstockError):
            raise prepared
        generation = prepared.rows[0].generation
        if generation is None:
            raise InvalidRequest(
                f"Adapter '{item.adapter}' does '{prepared.task.name}', which answers at once; only tasks that "
                "generate text can stream. Leave 'stream' out.",
                param="stream",
            )
        if len(prepared.rows) > 1:
            raise InvalidRequest(
                f"The text is answered in '{len(prepared.rows)}' parts at once, and a stream carries one. Leave "
                "'stream' out, or send the parts one by one.",
                param="stream",
            )
        row = replace(prepared.rows[0], generation=replace(generation, stream=True))
        return replace(prepared, rows=[row])

    def stream_text(self, prepared: Prepared) -> StreamText:
        """Return what turns the tokens of a streaming row into text."""
        generation = prepared.rows[0].generation
        assert generation is not None
        return StreamText(self._tokenizer.decode, generation.stop, generation.context)

    def _prepare(
        self, item: PredictItem, generation: Generation, deadline: float | None, caller: Caller
    ) -> Prepared:
        version = self._resolve(item.adapter, caller, generation)
        task = self._task_of(version)
        request = _validate(task, "Request", _as_object(task, item.input), "input")
        parameters = _validate(task, "Parameters", item.parameters, "parameters")
        return self._with_rows(version, task, request, parameters, deadline)

    def _with_rows(
        self,
        version: Version,
        task: AnyTask,
        request: BaseModel,
        parameters: BaseModel,
        deadline: float | None,
    ) -> Prepared:
        room = row_room(task, self._backbone, parameters, self._max_row_tokens)
        parts = task.encode_parts(self._tokenizer, request, parameters, room)
        how = task.generation(self._tokenizer, parameters)
        if how is not None:
            how = replace(how, context=parts[0].context)
        rows = [
            Row(uuid.uuid4().hex, part.token_ids, version.digest, how, deadline=deadline)
            for part in parts
        ]
        return Prepared(version, task, request, parameters, parts, rows)

    def _resolve_at(self, reference: str, caller: Caller, generation: Generation) -> Version:
        version = self._registry.resolve(caller.reference(reference))
        check_backbone(version, self._backbone)
        return version

    def _task_of(self, version: Version) -> AnyTask:
        """Return a version's task; remembered, for one with many labels takes a while to check."""
        if version.digest not in self._tasks:
            if len(self._tasks) >= _MAX_TASKS:
                self._tasks.clear()
            self._tasks[version.digest] = get_task(version.manifest.task, version.manifest.options)
        return self._tasks[version.digest]

    def _answer(
        self, item: Prepared, results: Sequence[RowResult]
    ) -> dict[str, Any] | HeadstockError:
        if error := next((result.error for result in results if result.error is not None), None):
            return error
        outputs = [result.output for result in results if result.output is not None]
        try:
            answer = item.task.postprocess_parts(self._tokenizer, item.request, item.parts, outputs)
        except Exception as error:  # one item's fault stays with that item
            logger.exception("Could not read the answer of %s", item.version.name)
            return PredictionFailed(
                f"The answer could not be read: {type(error).__name__}: {error}"
            )
        return {
            **answer,
            "adapter": item.version.name,
            "version": item.version.number,
            "truncated": any(part.truncated for part in item.parts),
            "usage": {
                "prompt_tokens": sum(len(part.token_ids) for part in item.parts),
                "completion_tokens": sum(len(output.token_ids) for output in outputs),
            },
        }


def check_backbone(version: Version, backbone: BackboneSpec) -> None:
    """Raise `BackboneMismatch` if a version was made for another backbone."""
    made_for = version.manifest.backbone
    if made_for.fingerprint != backbone.fingerprint:
        raise BackboneMismatch(
            f"Version {version.number} of '{version.name}' needs backbone '{made_for.name}'; this "
            f"server runs '{backbone.name}'. Start one with --backbone.",
            param="adapter",
        )


def rows_of(prepared: Sequence[Prepared | HeadstockError]) -> list[Row]:
    """Return the rows of all items that have any, in order."""
    return [row for item in prepared if isinstance(item, Prepared) for row in item.rows]


def with_earlier_usage(
    earlier: dict[str, Any] | HeadstockError, answer: dict[str, Any] | HeadstockError
) -> dict[str, Any] | HeadstockError:
    """Return an answer that took another one first, with the tokens of both."""
    if isinstance(answer, HeadstockError) or isinstance(earlier, HeadstockError):
        return answer
    usage = {name: count + earlier["usage"][name] for name, count in answer["usage"].items()}
    return {**answer, "truncated": answer["truncated"] or earlier["truncated"], "usage": usage}


def _as_object(task: AnyTask, given: Any) -> Any:
    """Return a bare string as the request of a task that takes one text."""
    field = next((name for name in _TEXT_FIELDS if name in task.Request.model_fields), None)
    return {field: given} if isinstance(given, str) and field else given


def _validate(task: AnyTask, part: str, given: Any, param: str) -> Any:
    model: type[BaseModel] = getattr(task, part)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        message, path = first_problem(error)
        if not isinstance(given, dict):
            fields = ", ".join(f"'{name}'" for name in model.model_fields)
            message = f"{shown(given)} is not an object with the fields {fields}."
        raise InvalidRequest(
            f"{param} of a '{task.name}' request: {message}",
            param=f"{param}.{path}" if path else param,
        ) from error
