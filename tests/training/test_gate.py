"""The data gate: what stops a run before it begins, and what it only warns of."""

import json

import pytest

from adapters.errors import InvalidData
from adapters.tasks.base import NO_LABEL, Labelled
from adapters.tasks.catalog import get_task, task_class
from training.checks import adapter_findings, is_masked, masked_findings
from training.contract import DataSettings
from training.data import Example
from training.gate import MIN_ROWS, check_data, check_examples, check_tokens, find_all

CLASSES = task_class("text-classification")
ANSWERS = task_class("question-answering")
SCORES = task_class("regression")
TAGS = task_class("token-classification")


def labelled(labels, prefix="row"):
    return [
        Example(CLASSES.Request(text=f"{prefix} {i}"), CLASSES.Target(label=label), i + 1)
        for i, label in enumerate(labels)
    ]


def answered(count, *, answer="Ada", start=0):
    target = ANSWERS.Target(answers=[{"text": answer, "answer_start": start}])
    return [
        Example(ANSWERS.Request(question=f"Who {i}?", context="Ada Lovelace."), target, i + 1)
        for i in range(count)
    ]


def unanswered(count):
    return [
        Example(
            ANSWERS.Request(question=f"Why {i}?", context="Ada."), ANSWERS.Target(answers=[]), i + 1
        )
        for i in range(count)
    ]


def scored(scores):
    return [
        Example(SCORES.Request(text=f"row {i}"), SCORES.Target(score=score), i + 1)
        for i, score in enumerate(scores)
    ]


def tagged(tags, prefix="row"):
    return [
        Example(
            TAGS.Request(tokens=[prefix, str(i)]),
            TAGS.Target(tokens=[prefix, str(i)], tags=["O", tag]),
            i + 1,
        )
        for i, tag in enumerate(tags)
    ]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (scored([1.0, 2.0] * 5), scored([3.0])[:0]),
        (tagged(["B-a", "O"] * 8), tagged(["I-a"], "test")),
        (labelled("abababababab"), ()),
        (labelled("abababababab"), labelled("ab", "test")),
        (answered(MIN_ROWS), ()),
        (answered(MIN_ROWS) + unanswered(3), unanswered(1)[:0]),
    ],
)
def test_good_data_passes_without_a_warning(train, test):
    assert check_examples(train, test) == []


@pytest.mark.parametrize("count", [0, 1, MIN_ROWS - 1])
def test_too_few_rows_stop_the_run_with_their_number(count):
    with pytest.raises(InvalidData, match=f"has '{count}' rows; a run needs at least 8") as caught:
        check_examples(labelled("ab" * 8)[:count])
    assert caught.value.param == "data.train"


def test_the_least_number_of_rows_may_be_set():
    assert len(check_examples(labelled("ab"), min_rows=2)) == 2
    with pytest.raises(InvalidData, match="at least 3"):
        check_examples(labelled("ab"), min_rows=3)


def test_a_single_class_stops_the_run_by_its_name():
    with pytest.raises(InvalidData, match="Every training row has the label 'spam'") as caught:
        check_examples(labelled(["spam"] * 20))
    assert caught.value.param == "data.train"


def test_a_test_label_that_is_never_trained_stops_the_run():
    with pytest.raises(InvalidData, match=r"'c' is in no training row. Known: a, b\.") as caught:
        check_examples(labelled("ab" * 5), labelled("abc", "test"))
    assert caught.value.param == "data.test"


def several(labels, prefix="row"):
    return [
        Example(CLASSES.Request(text=f"{prefix} {i}"), CLASSES.Target(labels=list(each)), i + 1)
        for i, each in enumerate(labels)
    ]


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("train", "other", "said"),
    [
        (labelled("ab" * 8), several(["ab", "a"]), "have 'labels' where the training rows have 'l"),
        (several(["ab", "a"] * 8), labelled("ab"), "have 'label' where the training rows have 'l"),
    ],
)
def test_one_label_beside_lists_of_labels_stops_the_run(train, other, said, split):
    (finding,) = [f for f in find_all({"train": train, split: other}) if f.level == "error"]
    assert (finding.code, finding.param) == ("mixed_labels", f"data.{split}")
    assert said in finding.message
    assert not [f for f in find_all({"train": train, split: train[:2]}) if f.level == "error"]


def test_test_rows_that_an_adapter_can_not_answer_are_found():
    one = CLASSES.Options(labels=["a", "b"])
    many = CLASSES.Options(labels=["a", "b"], multi_label=True)
    tags = TAGS.Options(labels=["a"])

    def codes(rows, options):
        return [(f.level, f.code) for f in adapter_findings(rows, options)]

    assert codes(labelled("abc"), one) == [("error", "unseen_label")]
    assert codes(several(["ac"]), many) == [("error", "unseen_label")]
    assert codes(several(["ab"]), one) == [("error", "mixed_labels")]
    assert codes(tagged(["B-a", "B-c"]), tags) == [("warning", "unseen_label")]
    for rows, options in ((labelled("ab"), one), (several(["ab"]), many), (labelled("ab"), many)):
        assert codes(rows, options) == []
    assert codes(scored([1.0]), SCORES.Options()) == []


def test_rare_labels_are_warned_of_up_to_five_rows():
    warnings = check_examples(labelled("aaaaaabbbbbccccd"))
    assert warnings == [
        "Label 'c' has only 4 training rows.",
        "Label 'd' has only 1 training rows.",
    ]


def test_repeated_inputs_are_counted_even_with_another_label():
    train = labelled("ababababab")
    train += [Example(train[0].request, CLASSES.Target(label="b"), 11), train[1], train[1]]
    assert check_examples(train) == [
        "3 training rows repeat another one's input.",
        "1 inputs stand among the training rows with different labels.",
    ]


def test_test_rows_that_stand_in_the_training_file_are_counted():
    train = labelled("ababababab")
    test = [*train[:3], *labelled("ab", "other")]
    assert check_examples(train, test) == [
        "3 test rows stand among the training rows: the test split is too easy."
    ]


@pytest.mark.parametrize(("answer", "start"), [("Ada", 4), ("Grace", 0)])
def test_an_answer_that_does_not_stand_in_its_context_is_found(answer, start):
    try:
        found = check_examples(answered(MIN_ROWS, answer=answer, start=start))
    except InvalidData as error:
        found = [error.message]
    assert any(answer in message for message in found)


def test_scores_that_are_all_the_same_stop_the_run():
    with pytest.raises(InvalidData, match=r"Every training row has the score '2\.5'") as caught:
        check_examples(scored([2.5] * 9))
    assert caught.value.param == "data.train"


def test_rows_without_any_entity_stop_the_run():
    with pytest.raises(InvalidData, match="Every tag of the training rows is 'O'") as caught:
        check_examples(tagged(["O"] * 9))
    assert caught.value.param == "data.train"


def test_rare_and_unseen_entities_are_told():
    told = check_examples(tagged(["B-a"] * 8 + ["B-b"]), tagged(["B-c"], "test"))
    assert told == [
        "Label 'b' has only 1 training rows.",
        "Test label 'c' is in no training row; it can't be found.",
    ]


def test_a_file_in_which_no_question_has_an_answer_is_refused():
    with pytest.raises(InvalidData, match="Add questions with an answer") as caught:
        check_examples(unanswered(MIN_ROWS), answered(1))
    assert caught.value.param == "data.train"
    assert check_examples([*unanswered(MIN_ROWS), *answered(1)]) == []


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def test_a_report_holds_each_files_bad_lines_and_each_splits_numbers(tmp_path):
    rows = [{"review": f"word {'more ' * i}{i}", "stars": "ab"[i % 2]} for i in range(20)]
    bad = ["{", {"review": "no label"}] * 40
    test = [{"review": "Word  more 1", "stars": "a"}, {"review": "一 二", "stars": "b"}]
    settings = DataSettings(
        train=write(tmp_path / "train.jsonl", rows + bad),
        test=write(tmp_path / "test.jsonl", test),
        columns={"text": "review", "label": "stars"},
    )
    report = check_data(settings, None).report
    file = report.files["train"]
    assert report.task == "text-classification"
    assert (file.columns, file.unused) == ({"text": "review", "label": "stars"}, [])
    assert len(file.problems) == 50
    assert sum(file.problem_counts.values()) == 80
    assert file.problems[0].line == 21
    (error,) = report.errors()
    assert (error.code, error.param) == ("bad_lines", "data.train")
    assert "80 bad lines" in error.message
    assert report.splits["train"].labels == {"a": 10, "b": 10}
    lengths = report.splits["train"].lengths
    assert (lengths["words"].p50, lengths["words"].longest) == (12, 21)
    assert report.splits["test"].lengths["words"].longest == 3
    with pytest.raises(InvalidData, match=r"Line 21 of 'train\.jsonl'"):
        report.validate_data()


def test_shares_divide_the_training_file(tmp_path):
    rows = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(40)]
    settings = DataSettings(
        train=write(tmp_path / "train.jsonl", rows), validation_share=0.25, test_share=0.1
    )
    report = check_data(settings, "text-classification").report
    assert {name: split.num_rows for name, split in report.splits.items()} == {
        "train": 26,
        "validation": 10,
        "test": 4,
    }
    assert len({split.fingerprint for split in report.splits.values()}) == 3
    assert report.findings == []


def test_tokens_tell_what_is_cut(tmp_path, decoder_tokenizer):
    rows = [
        {"text": f"row {'and more ' * (40 * (i > 7))}{i}", "label": "ab"[i % 2]} for i in range(10)
    ]
    checked = check_data(
        DataSettings(train=write(tmp_path / "train.jsonl", rows)), "text-classification"
    )
    task = get_task("text-classification", {"labels": ["a", "b"]})
    (finding,) = check_tokens(checked.report, checked.splits, task, decoder_tokenizer, 30)
    assert (finding.code, finding.level) == ("truncation", "warning")
    assert (
        "2 of 10 training rows (20.0%) have more than 30 tokens and are left out" in finding.message
    )
    lengths = checked.report.splits["train"].lengths["tokens"]
    assert lengths.longest <= 30  # of those that fit
    (error,) = check_tokens(checked.report, checked.splits, task, decoder_tokenizer, 1)
    assert error.level == "error"


@pytest.mark.parametrize(("lines", "level"), [([3, 4], "warning"), ([1, 2, 3, 4], "error")])
def test_rows_without_any_labelled_token_are_found(lines, level):
    (finding,) = masked_findings(lines, 4)
    assert (finding.level, finding.code) == (level, "all_masked")
    assert f"first on line {lines[0]}" in finding.message
    assert list(masked_findings([], 4)) == []
    assert is_masked(Labelled([1, 2], [NO_LABEL, NO_LABEL], loss="tags"))
    assert not is_masked(Labelled([1, 2], [NO_LABEL, 0], loss="tags"))


def test_entities_are_counted_however_their_tags_begin(tmp_path):
    rows = [
        {"tokens": [f"Ada{i}", "Lovelace", "saw", "Rome"], "tags": ["I-PER", "I-PER", "O", "I-LOC"]}
        for i in range(8)
    ]
    report = check_data(DataSettings(train=write(tmp_path / "a.jsonl", rows)), None).report
    assert report.splits["train"].labels == {"PER": 8, "LOC": 8}
