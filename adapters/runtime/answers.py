"""What comes out of a pass: each scoring row through its own head, each generating row its next token.

Shape letters: T tokens, D hidden size, G generating rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.errors import HeadstockError, InvalidRequest, Overloaded, PredictionFailed, RunPaused
from adapters.runtime.active import Active
from adapters.runtime.bank import Bank
from adapters.runtime.forward import Pass
from adapters.runtime.rows import Row, RowPart
from adapters.runtime.sampling import Choice, Chosen, choose
from adapters.runtime.stops import StopFinder
from adapters.tasks.base import Generation, Pooling, RowOutput

Outcome = RowPart | RowOutput | Exception
Decode = Callable[[Sequence[int]], str]


class Answers:
    """Reads a pass.

    Args:
        decode: text of token ids; needed for stop strings only.
    """

    def __init__(self, backbone: Backbone, bank: Bank, decode: Decode | None) -> None:
        self._backbone = backbone
        self._bank = bank
        self._decode = decode
        self._stops: dict[str, StopFinder] = {}

    def check(self, row: Row) -> None:
        """Raise `InvalidRequest` if a row asks for what can't be given."""
        if row.generation is not None and row.generation.stop and self._decode is None:
            raise InvalidRequest(
                "This engine has no tokenizer to find stop strings with. Leave 'stop' out.",
                param="stop",
            )

    def forget(self, active: Active) -> None:
        self._stops.pop(active.row.row_id, None)

    def read(self, done: Pass) -> Iterator[tuple[Active, Outcome]]:
        """Yield what each row of a pass gives: an output, an error, or a part that is to be streamed."""
        complete = [i for i, part in enumerate(done.parts) if part.active.num_pending == 0]
        actives = [done.parts[i].active for i in complete]
        generating = [i for i, a in zip(complete, actives, strict=True) if a.row.generation]
        yield from self._generate(done, generating)
        scoring = [i for i, a in zip(complete, actives, strict=True) if not a.row.generation]
        for i, part in enumerate(done.parts):  # kept until the row's last part is there
            if part.active.num_pending and not part.active.row.generation:
                part.active.hidden.append(done.hidden_of(i).clone())  # a view would keep the pass
        yield from self._score(done, scoring)

    def _generate(self, done: Pass, rows: list[int]) -> Iterator[tuple[Active, Outcome]]:
        if not rows:
            return
        actives = [done.parts[i].active for i in rows]
        try:
            choices = self._choose(done, rows)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(rows) == 1:
                yield actives[0], out_of_memory()
                return
            middle = len(rows) // 2
            yield from self._generate(done, rows[:middle])
            yield from self._generate(done, rows[middle:])
            return
        for active, chosen in zip(actives, choices, strict=True):
            try:
                yield from list(self._append(active, chosen))
            except RunPaused:
                raise
            except Exception as error:  # a text that can't be searched for stop strings fails alone
                yield active, error

    def _choose(self, done: Pass, rows: list[int]) -> list[Chosen]:
        last_G = torch.tensor([done.bounds[i + 1] - 1 for i in rows], device=done.hidden_TD.device)
        logits_GV = self._backbone.next_token_logits(done.hidden_TD[last_G])
        return choose(logits_GV, [_choice(done.parts[i].active) for i in rows])

    def _append(self, active: Active, chosen: Chosen) -> Iterator[tuple[Active, Outcome]]:
        """Add a token to a row, and yield what comes of it."""
        generation = active.row.generation
        assert generation is not None
        if not chosen.is_finite:
            yield active, _not_finite()
            return
        if chosen.token_id in generation.end_ids:
            yield active, _output(active, "stop")
            return
        active.generated.append(chosen.token_id)
        logprobs = () if chosen.logprob is None else (chosen.logprob,)
        active.logprobs.extend(logprobs)
        if generation.stream:
            yield active, RowPart(active.row.row_id, (chosen.token_id,), logprobs)
        if generation.stop and self._finds_stop(active, generation):
            yield active, _output(active, "stop")
        elif len(active.generated) >= generation.max_new_tokens:
            yield active, _output(active, "length")

    def _finds_stop(self, active: Active, generation: Generation) -> bool:
        assert self._decode is not None
        finder = self._stops.get(active.row.row_id)
        if finder is None:
            finder = StopFinder(generation.stop, self._decode, generation.context)
            self._stops[active.row.row_id] = finder
        return finder.feed(active.generated[-1:])

    def _score(self, done: Pass, rows: list[int]) -> Iterator[tuple[Active, Outcome]]:
        """Put each scoring row through its adapter's head; what goes wrong there is that row's alone."""
        for i in rows:
            active = done.parts[i].active
            try:
                outcome = self._outcome(active, done.hidden_of(i))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                outcome = out_of_memory()
            except (torch.AcceleratorError, RunPaused):  # the device is lost, or a signal came
                raise
            except Exception as error:
                outcome = error
            yield active, outcome

    def _outcome(self, active: Active, last_TD: Tensor) -> Outcome:
        hidden_TD = torch.cat([*active.hidden, last_TD]) if active.hidden else last_TD
        if active.row.embed is not None:
            return _embedding(hidden_TD, active.row.embed)
        assert active.row.adapter is not None
        return _scores(self._bank.apply_head(active.row.adapter, hidden_TD))


def _choice(active: Active) -> Choice:
    generation = active.row.generation
    assert generation is not None
    return Choice(generation.sampling, len(active.generated), generation.num_logprobs)


def _output(active: Active, reason: str) -> RowOutput:
    return RowOutput(
        token_ids=tuple(active.generated),
        finish_reason="stop" if reason == "stop" else "length",
        logprobs=tuple(active.logprobs),
    )


def _scores(logits: Tensor | None) -> RowOutput | HeadstockError:
    if logits is None:
        return InvalidRequest("The adapter has no head; it can only generate text.")
    if not bool(logits.isfinite().all()):
        return _not_finite()
    return RowOutput(logits=logits.cpu().numpy())


def _embedding(hidden_TD: Tensor, pooling: Pooling) -> RowOutput | HeadstockError:
    hidden_TD = hidden_TD.float()
    pooled = {"first": hidden_TD[0], "last": hidden_TD[-1], "mean": hidden_TD.mean(0)}[pooling]
    if not bool(pooled.isfinite().all()):
        return _not_finite()
    return RowOutput(embedding=pooled.cpu().numpy())


def out_of_memory() -> Overloaded:
    """Return the error of a row that does not fit the device's memory even alone."""
    return Overloaded(
        "The device ran out of memory on this row alone. Try again later, send a shorter text, or lower "
        "HEADSTOCK_CACHE_BYTES and HEADSTOCK_BANK_BYTES on the server."
    )


def _not_finite() -> PredictionFailed:
    return PredictionFailed(
        "The model's numbers for this row are not finite. Check the adapter on its own data, or train it "
        "again with a lower learning rate."
    )
