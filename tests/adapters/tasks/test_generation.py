"""What writes text, by the example of summarization: the instruction around the text, room for the answer,
how tokens are drawn, where the answer ends, and the completion as labels."""

import shutil

import pytest
from pydantic import ValidationError
from rouge_score.rouge_scorer import RougeScorer

from adapters.errors import TextTooLong
from adapters.tasks.base import Encoded, RowOutput, Sampling, TokenLogprob
from adapters.tasks.catalog import get_task, task_class
from adapters.tasks.generation import GenerationParameters
from adapters.tasks.prompts import instruction_prompt
from adapters.tasks.summarization import first_sentences
from adapters.tokenizer import load_tokenizer
from tests.tiny import CORPUS

CLASS = task_class("summarization")
TASK = get_task("summarization", {"instruction": "Sum up.", "max_new_tokens": 12})
TEXT = " ".join(CORPUS)


def encode(tokenizer, limit, **parameters):
    request = CLASS.Request(text=TEXT)
    return TASK.encode(tokenizer, request, CLASS.Parameters(**parameters), limit)


def test_a_backbone_that_chats_is_asked_in_its_own_form(decoder_tokenizer):
    prompt = instruction_prompt(decoder_tokenizer, "Sum up.", "Some text.")
    assert prompt.text == "<|start|>user\nSum up.\n\nSome text.<|end|>\n<|start|>assistant\n"
    assert prompt.text[prompt.start : prompt.stop] == "Some text."
    ids = TASK.encode(decoder_tokenizer, CLASS.Request(text="a"), CLASS.Parameters(), 99).token_ids
    assert ids.count(1) == 2  # the two of the template, none added


def test_a_backbone_that_does_not_chat_gets_the_instruction_as_plain_text(decoder_folder, tmp_path):
    folder = shutil.copytree(decoder_folder, tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    prompt = instruction_prompt(load_tokenizer(folder), "Sum up.", "Some text.")
    assert prompt.text == "Sum up.\n\nSome text.\n\n"
    assert prompt.text[prompt.start : prompt.stop] == "Some text."


def test_a_tokenizer_that_closes_texts_needs_no_mark_at_the_end(encoder_tokenizer):
    prompt = instruction_prompt(encoder_tokenizer, "Sum up.", "Some text.")
    assert prompt.text == "Sum up.\n\nSome text."
    encoded = TASK.encode(encoder_tokenizer, CLASS.Request(text="a"), CLASS.Parameters(), 99)
    assert (encoded.token_ids[0], encoded.token_ids[-1]) == (1, 2)


def test_without_an_instruction_the_text_stands_alone(decoder_tokenizer, encoder_tokenizer):
    assert instruction_prompt(encoder_tokenizer, "", "Some text.").text == "Some text."
    prompt = instruction_prompt(decoder_tokenizer, "", "Some text.")
    assert prompt.text == "<|start|>user\nSome text.<|end|>\n<|start|>assistant\n"


def test_the_longest_answer_always_has_room_behind_the_prompt(decoder_tokenizer):
    size = len(encode(decoder_tokenizer, 10_000).token_ids)
    assert len(encode(decoder_tokenizer, size + 12).token_ids) == size
    assert not encode(decoder_tokenizer, size + 3, max_new_tokens=3).truncated
    with pytest.raises(TextTooLong, match=f"prompt of {size} tokens; at most {size - 1} fit"):
        encode(decoder_tokenizer, size + 11)
    cut = encode(decoder_tokenizer, size + 11, truncate=True)
    assert cut.truncated
    assert len(cut.token_ids) < size
    assert decoder_tokenizer.decode(cut.token_ids).endswith("assistant\n")


def test_an_answer_longer_than_all_room_is_refused_as_the_fault_of_its_parameter(decoder_tokenizer):
    with pytest.raises(TextTooLong) as caught:
        encode(decoder_tokenizer, 100, max_new_tokens=1000)
    assert "max_new_tokens" in caught.value.message


def test_the_labels_are_the_summary_and_the_token_that_ends_it(decoder_tokenizer):
    encoded = encode(decoder_tokenizer, 10_000)
    labelled = TASK.label(decoder_tokenizer, encoded, CLASS.Target(summary="A fox jumps."))
    assert labelled.labels[-1] == decoder_tokenizer.end_ids[0]
    assert decoder_tokenizer.decode(labelled.labels) == "A fox jumps."
    assert labelled.token_ids == encoded.token_ids + labelled.labels


@pytest.mark.parametrize(("asked", "limit"), [({}, 12), ({"max_new_tokens": 40}, 40)])
def test_a_request_may_change_the_length_of_its_answer(decoder_tokenizer, asked, limit):
    generation = TASK.generation(decoder_tokenizer, CLASS.Parameters(**asked))
    assert (generation.max_new_tokens, generation.end_ids) == (limit, decoder_tokenizer.end_ids)


def test_the_answer_is_the_decoded_text_without_edges_or_special_tokens(decoder_tokenizer):
    ids = (*decoder_tokenizer.encode(" A fox.\n").ids, 2)
    output = RowOutput(token_ids=ids, finish_reason="stop")
    answer = TASK.postprocess(decoder_tokenizer, CLASS.Request(text="x"), Encoded([1]), output)
    assert answer == {"summary": "A fox.", "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ([], "One. Two.\nThree.", "length"),
        (["\n"], "One. Two.", "stop"),
        (["Three", "Two"], "One.", "stop"),
        (["Four"], "One. Two.\nThree.", "length"),
        (["One"], "", "stop"),
        ("\n", "One. Two.", "stop"),
    ],
)
def test_the_answer_ends_before_the_first_stop_string(decoder_tokenizer, stop, text, reason):
    request, parameters = CLASS.Request(text="x"), CLASS.Parameters(stop=stop)
    encoded = TASK.encode(decoder_tokenizer, request, parameters, 99)
    ids = tuple(decoder_tokenizer.encode("One. Two.\nThree.", add_special=False).ids)
    output = RowOutput(token_ids=ids, finish_reason="length")
    answer = TASK.postprocess(decoder_tokenizer, request, encoded, output)
    assert answer == {"summary": text, "finish_reason": reason}
    assert TASK.generation(decoder_tokenizer, parameters).stop == encoded.stop


@pytest.mark.parametrize(
    ("asked", "num"),
    [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)],
)
def test_logprobs_are_made_on_demand_only(decoder_tokenizer, asked, num):
    generation = TASK.generation(decoder_tokenizer, CLASS.Parameters(**asked))
    assert generation.num_logprobs == num


def test_logprobs_are_told_with_the_text_of_their_tokens(decoder_tokenizer):
    request, parameters = CLASS.Request(text="x"), CLASS.Parameters(logprobs=True, top_logprobs=2)
    encoded = TASK.encode(decoder_tokenizer, request, parameters, 99)
    (a,) = decoder_tokenizer.encode("a", add_special=False).ids
    chosen = TokenLogprob(a, -0.25, ((a, -0.25), (2, -float("inf"))))
    output = RowOutput(token_ids=(a,), finish_reason="stop", logprobs=(chosen,))
    told = TASK.postprocess(decoder_tokenizer, request, encoded, output)["logprobs"]
    top = [{"token": "a", "logprob": -0.25}, {"token": "<|end|>", "logprob": -9999.0}]
    assert told == [{"token": "a", "logprob": -0.25, "top": top}]


def test_tokens_are_the_likeliest_ones_unless_a_temperature_is_given(decoder_tokenizer):
    greedy = TASK.generation(decoder_tokenizer, CLASS.Parameters(top_p=0.5, seed=3))
    assert greedy.sampling == Sampling()
    asked = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 11}
    drawn = TASK.generation(decoder_tokenizer, CLASS.Parameters(**asked))
    assert drawn.sampling == Sampling(0.7, 0.9, 40, 11)


def test_each_drawn_answer_has_a_seed_of_its_own_unless_one_is_given(decoder_tokenizer):
    parameters = CLASS.Parameters(temperature=1)
    seeds = {TASK.generation(decoder_tokenizer, parameters).sampling.seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("name", ["summarization", "translation", "text-generation"])
def test_what_writes_needs_a_language_head_and_no_other(name):
    task = get_task(name, {})
    assert task.families == ("decoder", "encoder-decoder")
    assert [task.head(family) for family in task.families] == [None, None]
    assert issubclass(task.Parameters, GenerationParameters)


def test_the_baselines_are_the_texts_first_sentences():
    summary = "The fox jumps over a dog."
    baseline = TASK.baselines([CLASS.Request(text=TEXT)], [CLASS.Target(summary=summary)])
    score = RougeScorer(["rougeL"], use_stemmer=True).score(summary, CORPUS[0])["rougeL"]
    assert baseline["lead_1"]["rouge_l"] == pytest.approx(score.fmeasure)
    first = "One fox. Two dogs. Three cats."
    asked = [CLASS.Request(text=f"{first} Four.")]
    assert TASK.baselines(asked, [CLASS.Target(summary=first)])["lead_3"]["rouge_l"] == 1


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two.", "One."),
        ("  One? Two.", "One?"),
        ("One!\nTwo.", "One!"),
        ("Version 1.5 is out. Get it.", "Version 1.5 is out."),
        ("No end", "No end"),
        ("北京很大。上海也是。", "北京很大。"),
    ],
)
def test_a_sentence_ends_at_its_mark_before_a_space(text, first):
    assert first_sentences(text, 1) == first


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (CLASS.Request, {"text": " "}),
        (CLASS.Request, {"text": 1}),
        (CLASS.Request, {"document": "a"}),
        (CLASS.Target, {"summary": ""}),
        (CLASS.Target, {"summary": None}),
        (CLASS.Parameters, {"max_new_tokens": 0}),
        (CLASS.Parameters, {"max_new_tokens": 4097}),
        (CLASS.Parameters, {"temperature": -0.1}),
        (CLASS.Parameters, {"temperature": 2.1}),
        (CLASS.Parameters, {"temperature": float("nan")}),
        (CLASS.Parameters, {"temperature": "hot"}),
        (CLASS.Parameters, {"top_p": 0}),
        (CLASS.Parameters, {"top_p": 1.1}),
        (CLASS.Parameters, {"top_k": -1}),
        (CLASS.Parameters, {"top_k": 1.5}),
        (CLASS.Parameters, {"seed": -1}),
        (CLASS.Parameters, {"seed": 2**63}),
        (CLASS.Parameters, {"stop": ["a", "b", "c", "d", "e"]}),
        (CLASS.Parameters, {"stop": [""]}),
        (CLASS.Parameters, {"stop": ""}),
        (CLASS.Parameters, {"stop": ["x" * 257]}),
        (CLASS.Parameters, {"stop": [1]}),
        (CLASS.Parameters, {"stop": {"a": 1}}),
        (CLASS.Parameters, {"top_logprobs": 1}),
        (CLASS.Parameters, {"logprobs": False, "top_logprobs": 1}),
        (CLASS.Parameters, {"logprobs": True, "top_logprobs": 21}),
        (CLASS.Parameters, {"logprobs": 5}),
        (CLASS.Parameters, {"stream": True}),
        (CLASS.Options, {"instruction": "  "}),
        (CLASS.Options, {"max_new_tokens": 0}),
    ],
)
def test_a_wrong_field_is_refused(model, value):
    with pytest.raises(ValidationError):
        model.model_validate(value)
