"""Generating rows: sampled, stopped, streamed, scored, cut off in time; and nobody waits behind a flood."""

import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.backbone import load_backbone
from adapters.errors import DeadlineExceeded, InvalidRequest
from adapters.runtime.engine import Engine
from adapters.runtime.limits import EngineLimits
from adapters.runtime.rows import Row, RowPart, RowResult
from adapters.tasks.base import Generation, Sampling
from tests.rows import TEXTS, rows_of


@pytest.fixture
def writer(decoder_spec, decoder_tokenizer, bundles):
    backbone = load_backbone(decoder_spec, "float32", fuse=True)
    return Engine(backbone, lambda name: bundles / name, decode=decoder_tokenizer.decode)


def row(tokenizer, name, text="A wonderful film.", adapter=None, num_new=12, **how):
    generation = Generation(num_new, how.pop("end_ids", ()), **how)
    return Row(name, tokenizer.encode(text).ids, adapter, generation)


def test_a_sampled_row_draws_the_same_in_any_company(writer, decoder_tokenizer):
    hot = Sampling(temperature=1.0, top_p=0.9, top_k=50, seed=7)
    rows = [
        row(decoder_tokenizer, f"{i}", text, ["summary", None][i % 2], sampling=hot)
        for i, text in enumerate(TEXTS)
    ]
    together = writer.run(rows)
    for each, result in zip(rows, together, strict=True):
        assert writer.run([each])[0].output.token_ids == result.output.token_ids
    other = row(decoder_tokenizer, "x", TEXTS[0], "summary", sampling=Sampling(1.0, seed=8))
    assert writer.run([other])[0].output.token_ids != together[0].output.token_ids


def test_a_stop_string_ends_a_row_though_it_spans_tokens(writer, decoder_tokenizer):
    free = writer.run([row(decoder_tokenizer, "a")])[0].output
    text = decoder_tokenizer.decode(free.token_ids)
    stop = text[3:6]
    output = writer.run([row(decoder_tokenizer, "a", stop=(stop,))])[0].output
    assert output.finish_reason == "stop"
    assert free.token_ids[: len(output.token_ids)] == output.token_ids
    assert stop in decoder_tokenizer.decode(output.token_ids)
    assert stop not in decoder_tokenizer.decode(output.token_ids[:-1])


def test_a_stop_string_is_found_in_the_text_as_it_is_read_behind_its_context(
    decoder_spec, decoder_tokenizer, bundles
):
    backbone = load_backbone(decoder_spec, "float32", fuse=True)

    def decode(token_ids):  # of the tokens' numbers, the first one's blank dropped
        return "".join(f" {token_id}" for token_id in token_ids).removeprefix(" ")

    engine = Engine(backbone, lambda name: bundles / name, decode=decode)
    first = engine.run([row(decoder_tokenizer, "a")])[0].output.token_ids[0]
    stop = f" {first}"
    context = tuple(decoder_tokenizer.context)
    output = engine.run([row(decoder_tokenizer, "a", stop=(stop,), context=context)])[0].output
    assert output.token_ids == (first,)


def test_stop_strings_need_a_tokenizer(engine, decoder_tokenizer):
    with pytest.raises(InvalidRequest, match="stop"):
        engine.submit(row(decoder_tokenizer, "a", stop=("x",)))


def test_a_streamed_row_gives_its_tokens_one_by_one_and_then_itself(writer, decoder_tokenizer):
    streamed = row(decoder_tokenizer, "s", stream=True, num_logprobs=2)
    for each in (streamed, row(decoder_tokenizer, "quiet")):
        writer.submit(each)
    events = []
    while writer.num_rows:
        events += writer.step()
    mine = [event for event in events if event.row_id == "s"]
    assert [type(event) for event in mine] == [RowPart] * 12 + [RowResult]
    assert tuple(t for part in mine[:-1] for t in part.token_ids) == mine[-1].output.token_ids
    assert tuple(p for part in mine[:-1] for p in part.logprobs) == mine[-1].output.logprobs
    assert [type(e) for e in events if e.row_id == "quiet"] == [RowResult]


def test_logprobs_are_those_of_the_stock_model(writer, decoder_spec, decoder_tokenizer):
    asked = row(decoder_tokenizer, "a", num_logprobs=3)
    output = writer.run([asked, *rows_of(decoder_tokenizer, ["two", "summary"])])[0].output
    stock = AutoModelForCausalLM.from_pretrained(decoder_spec.folder, dtype=torch.float32)
    ids = [*asked.token_ids, *output.token_ids]
    with torch.no_grad():
        expected = (
            stock(torch.tensor([ids])).logits[0, len(asked.token_ids) - 1 : -1].log_softmax(-1)
        )
    assert len(output.logprobs) == 12
    for position, logprob in enumerate(output.logprobs):
        assert logprob.logprob == pytest.approx(
            float(expected[position, logprob.token_id]), abs=1e-4
        )
        top = expected[position].topk(3)
        assert [token for token, _ in logprob.top] == top.indices.tolist()
        assert [p for _, p in logprob.top] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_a_prompt_in_parts_gives_what_it_gives_at_once(decoder_spec, decoder_tokenizer, bundles):
    ids = decoder_tokenizer.encode(" ".join(TEXTS * 2)).ids[:150]
    rows = [
        Row("write", ids, "summary", Generation(8, ())),
        Row("bare", ids[:99], None, Generation(8, ())),
        Row("label", ids, "two"),
        Row("spans", ids[:130], "spans"),
        Row("vector", ids[:140], None, embed="mean"),
    ]
    for use_kernels in (False, True):
        whole, parts = (
            Engine(
                load_backbone(decoder_spec, "float32"),
                lambda name: bundles / name,
                EngineLimits(step_tokens=step, chunk_tokens=step, prefix_bytes=0),
                use_kernels=use_kernels,
            )
            for step in (2048, 20)
        )
        for left, right in zip(whole.run(rows), parts.run(rows), strict=True):
            assert left.output.token_ids == right.output.token_ids
            for a, b in (
                (left.output.logits, right.output.logits),
                (left.output.embedding, right.output.embedding),
            ):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(
                        torch.from_numpy(a), torch.from_numpy(b), atol=1e-4, rtol=1e-4
                    )
        assert parts.stats.steps > 20 > whole.stats.steps


def test_an_embedding_is_the_pooled_last_hidden_state(writer, decoder_spec, decoder_tokenizer):
    ids = decoder_tokenizer.encode(TEXTS[1]).ids
    rows = [Row(kind, ids, None, embed=kind) for kind in ("first", "last", "mean")]
    stock = AutoModelForCausalLM.from_pretrained(decoder_spec.folder, dtype=torch.float32)
    with torch.no_grad():
        hidden = stock.model(torch.tensor([ids])).last_hidden_state[0]
    expected = {"first": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}
    for result in writer.run(rows):
        actual = torch.from_numpy(result.output.embedding)
        torch.testing.assert_close(actual, expected[result.row_id], atol=1e-4, rtol=1e-4)


def test_rows_past_their_deadline_end_and_free_what_they_hold(writer, decoder_tokenizer):
    free = writer._cache.num_free_blocks
    soon = time.monotonic() + 3600
    running, waiting = (
        Row(name, [5, 6, 7], None, Generation(50, ()), deadline=soon) for name in ("run", "wait")
    )
    writer.submit(running)
    writer.step()
    writer.submit(waiting)
    object.__setattr__(running, "deadline", 0.0)
    object.__setattr__(waiting, "deadline", 0.0)
    results = writer.step()
    assert {r.row_id for r in results} == {"run", "wait"}
    assert all(isinstance(r.error, DeadlineExceeded) for r in results)
    assert writer.num_rows == 0
    writer._places.prefix.shrink_to(0)
    assert writer._cache.num_free_blocks == free


def test_a_flood_on_one_adapter_does_not_hold_another_up(decoder_spec, decoder_tokenizer, bundles):
    """Counted in tokens computed until the late row is finished, which time follows; `bench serving` measures time."""
    limits = EngineLimits(max_running=16, chunk_tokens=32, fair_tokens=16, prefix_bytes=0)
    engine = Engine(load_backbone(decoder_spec, "float32"), lambda name: bundles / name, limits)
    late = row(decoder_tokenizer, "late", TEXTS[1], None, num_new=40)
    engine.run(rows_of(decoder_tokenizer, ["summary"]))
    steps = engine.stats.steps
    engine.run([late])
    solo = engine.stats.steps - steps
    for i in range(200):
        engine.submit(row(decoder_tokenizer, f"f{i}", TEXTS[i % 4], "summary", num_new=40))
    for _ in range(5):
        engine.step()
    engine.submit(late)
    steps, tokens, done = engine.stats.steps, engine.stats.tokens, []
    while "late" not in done:
        done += [result.row_id for result in engine.step()]
    assert engine.stats.steps - steps <= solo + 5
    assert (engine.stats.tokens - tokens) / (engine.stats.steps - steps) <= 20
