"""Translation: the source behind an instruction, and the target as completion."""

import pytest
from pydantic import ValidationError
from sacrebleu.metrics.chrf import CHRF

from adapters.tasks.base import RowOutput
from adapters.tasks.catalog import get_task, task_class

CLASS = task_class("translation")
TASK = get_task("translation", {"instruction": "Translate into German."})
REQUEST = CLASS.Request(source="A good film.")


def test_the_source_stands_behind_the_instruction(decoder_tokenizer):
    encoded = TASK.encode(decoder_tokenizer, REQUEST, CLASS.Parameters(max_new_tokens=8), 99)
    assert "user\nTranslate into German.\n\nA good film." in decoder_tokenizer.decode(
        encoded.token_ids
    )


def test_the_labels_are_the_target_and_its_end(decoder_tokenizer):
    encoded = TASK.encode(decoder_tokenizer, REQUEST, CLASS.Parameters(max_new_tokens=8), 99)
    row = TASK.label(decoder_tokenizer, encoded, CLASS.Target(target="Ein guter Film."))
    assert decoder_tokenizer.decode(row.labels) == "Ein guter Film."
    assert (row.labels[-1], row.loss) == (2, "choice")


def test_the_answer_is_the_translation(decoder_tokenizer):
    encoded = TASK.encode(decoder_tokenizer, REQUEST, CLASS.Parameters(max_new_tokens=8), 99)
    ids = tuple(decoder_tokenizer.encode(" Ein Film.", add_special=False).ids)
    answer = TASK.postprocess(decoder_tokenizer, REQUEST, encoded, RowOutput(None, ids, "stop"))
    assert answer == {"translation": "Ein Film.", "finish_reason": "stop"}


def test_the_baseline_is_the_source_itself():
    target = CLASS.Target(target="Ein guter Film.")
    chrf = CHRF().corpus_score(["A good film."], [["Ein guter Film."]]).score / 100
    assert TASK.baselines([REQUEST], [target])["source"]["chrf"] == pytest.approx(chrf)
    assert TASK.score([{"translation": "Ein guter Film."}], [target])["chrf"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (CLASS.Request, {"source": ""}),
        (CLASS.Request, {"text": "a"}),
        (CLASS.Request, {"source": None}),
        (CLASS.Target, {"target": " "}),
        (CLASS.Target, {"translation": "a"}),
        (CLASS.Target, {"target": ["a"]}),
    ],
)
def test_a_wrong_field_is_refused(model, value):
    with pytest.raises(ValidationError):
        model.model_validate(value)
