"""``POST /v1/predict``: references and inputs in, predictions in the same order out, an error per row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi.responses import Response
from pydantic import Field, model_validator

from adapters.errors import HeadstockError, InvalidRequest
from adapters.tasks.base import Strict
from service.bodies import MOST_ROWS
from service.errors import error_body, error_response

# No task has as many; each row gets a copy, and a list of all that is wrong with them.
MOST_PARAMETERS = 64
_AS_STARLETTE: dict[str, Any] = {
    "ensure_ascii": False,
    "allow_nan": False,
    "separators": (",", ":"),
}
Parameters = Annotated[dict[str, Any], Field(max_length=MOST_PARAMETERS)]


class PredictItem(Strict):
    """One input for one adapter."""

    adapter: str = Field(description="name, name@alias or name:version")
    input: Any = Field(description="the task's request object, or its text as a string")
    parameters: Parameters = Field(default_factory=dict)


class PredictBody(Strict):
    """Either one adapter with one or many inputs, or a list of requests for many adapters."""

    adapter: str | None = None
    inputs: Any = None
    parameters: Parameters = Field(default_factory=dict)
    requests: list[PredictItem] | None = Field(None, max_length=MOST_ROWS, fail_fast=True)
    timeout_seconds: float | None = Field(
        None,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="time for the whole call; rows that are not finished then end with an error",
    )
    stream: bool = Field(False, description="send the text of one generated answer as it is made")

    @model_validator(mode="after")
    def _one_form(self) -> PredictBody:
        single = self.adapter is not None and self.inputs is not None
        if single == (self.requests is not None):
            raise ValueError("give either 'adapter' and 'inputs', or 'requests'")
        beside = self.model_fields_set - {"requests", "timeout_seconds", "stream"}
        if self.requests is not None and beside:
            raise ValueError(f"'{min(beside)}' stands beside 'requests'; put it into each request")
        return self


def items_of(body: PredictBody, max_rows: int) -> list[PredictItem]:
    """Return a body's inputs one by one.

    Raises:
        InvalidRequest: there are none, more than ``max_rows``, or more than a stream carries.
    """
    inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    count = len(inputs if body.requests is None else body.requests)
    if not 1 <= count <= max_rows:
        how = "Split it." if count else "Send some text."
        raise InvalidRequest(
            f"The call has '{count}' inputs; 1 to {max_rows} go into one call. {how}",
            param="inputs",
        )
    if body.stream and count > 1:
        raise InvalidRequest(
            f"The call has '{count}' inputs and asks for a stream, which carries one. Send a call for each, "
            "or leave 'stream' out.",
            param="stream",
        )
    if body.requests is not None:
        return body.requests
    return [
        PredictItem(adapter=str(body.adapter), input=each, parameters=body.parameters)
        for each in inputs
    ]


def check_rows(num_rows: int, num_items: int, max_rows: int) -> None:
    """Raise if a call's inputs, some of them read in parts, make more than ``max_rows`` rows."""
    if num_rows > max_rows:
        raise InvalidRequest(
            f"The call's inputs, {num_items} in number, are read in '{num_rows}' parts; at most {max_rows} go into "
            "one call. Split it.",
            param="inputs",
        )


def answer(results: Sequence[dict[str, Any] | HeadstockError]) -> Response:
    """Return the predictions in order; with an error's status only if all rows failed.

    To be called in a thread: log-probabilities of many rows come to tens of megabytes.
    """
    predictions = [
        {"error": error_body(result)} if isinstance(result, HeadstockError) else result
        for result in results
    ]
    errors = [result for result in results if isinstance(result, HeadstockError)]
    if len(errors) == len(results):
        return error_response(errors[0], predictions=predictions)
    # Each by itself, for nothing else runs while one is written out.
    written = [json.dumps(each, **_AS_STARLETTE) for each in predictions]
    return Response(f'{{"predictions":[{",".join(written)}]}}', media_type="application/json")
