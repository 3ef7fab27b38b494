"""Which task a file is for, and where its fields come from: the forms of published data sets, and what is refused."""

import json

import pytest

from adapters.errors import InvalidData
from training.data import read_examples

ADA = {"text": "Ada", "answer_start": 0}
WHO = {"question": "Who?", "context": "Ada."}
HI, YES = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


@pytest.fixture
def read(tmp_path):
    def rows(*records, task=None, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return read_examples(str(path), task, **options)

    return rows


def content(example):
    request = example.request.model_dump(exclude_none=True)
    return {**request, **example.target.model_dump(exclude_none=True)}


LABELLED = {"text": "a", "label": "b"}
CASES = [
    ({"text": "a", "label": "b"}, "text-classification", LABELLED),
    ({"sentence": "a", "label": "b", "idx": 3}, "text-classification", LABELLED),
    ({"Text": "a", "Category": "b"}, "text-classification", LABELLED),
    ({"text": "a", "labels": "b"}, "text-classification", LABELLED),
    ({"text": "a", "labels": 4}, "text-classification", {"text": "a", "label": "4"}),
    ({"text": "我很好", "label": 0}, "text-classification", {"text": "我很好", "label": "0"}),
    (
        {"premise": "a", "hypothesis": "c", "label": "b"},
        "text-classification",
        {**LABELLED, "text_pair": "c"},
    ),
    ({"text": "a", "score": 1}, "regression", {"text": "a", "score": 1.0}),
    ({"text": "a", "label": 4.5}, "regression", {"text": "a", "score": 4.5}),
    ({"text": "a", "target": "4.5"}, "regression", {"text": "a", "score": 4.5}),
    (
        {"sentence1": "a", "sentence2": "c", "similarity_score": 2},
        "regression",
        {"text": "a", "text_pair": "c", "score": 2.0},
    ),
    (
        {"tokens": ["Ada"], "ner_tags": ["B-p"], "text": "Ada"},
        "token-classification",
        {"tokens": ["Ada"], "tags": ["B-p"]},
    ),
    ({**WHO, "answers": [ADA]}, "question-answering", {**WHO, "answers": [ADA]}),
    (
        {**WHO, "answers": {"text": ["Ada"], "answer_start": [0]}, "title": "x"},
        "question-answering",
        {**WHO, "answers": [ADA]},
    ),
    ({**WHO, "answer": ADA}, "question-answering", {**WHO, "answers": [ADA]}),
    (
        {"article": "long", "highlights": "short"},
        "summarization",
        {"text": "long", "summary": "short"},
    ),
    ({"dialogue": "long", "summary": "s"}, "summarization", {"text": "long", "summary": "s"}),
    ({"source": "a", "target": "b"}, "translation", {"source": "a", "target": "b"}),
    (
        {"translation": {"en": "Hello", "fr": "Bonjour"}},
        "translation",
        {"source": "Hello", "target": "Bonjour"},
    ),
    ({"prompt": "p", "completion": "c"}, "text-generation", {"prompt": "p", "completion": "c"}),
    (
        {"instruction": "do", "input": "this", "output": "c"},
        "text-generation",
        {"prompt": "do\n\nthis", "completion": "c"},
    ),
    (
        {"instruction": "do", "input": " ", "output": "c"},
        "text-generation",
        {"prompt": "do", "completion": "c"},
    ),
    (
        {"prompt": "hi", "messages": [HI, YES]},
        "text-generation",
        {"messages": [HI], "completion": "yes"},
    ),
    (
        {"prompt": [HI], "completion": [YES]},
        "text-generation",
        {"messages": [HI], "completion": "yes"},
    ),
    (
        {"question": "p", "answer": "c"},
        "text-generation",
        {"prompt": "p", "completion": "c"},
    ),
]


@pytest.mark.parametrize(("record", "task", "expected"), CASES)
def test_a_known_form_is_told_by_its_keys_and_read(read, record, task, expected):
    file = read(record)
    assert not file.problems
    assert (file.columns.task, content(file.examples[0])) == (task, expected)


def test_the_map_is_told_with_what_is_not_used(read):
    file = read({"sentence": "a", "label": "b", "idx": 3})
    assert file.columns.told() == "text from 'sentence', label from 'label'; not used: 'idx'"


@pytest.mark.parametrize(
    ("record", "options", "said"),
    [
        ({"a": 1, "b": 2}, {}, "columns 'a', 'b' fit no task. Known: text-classification: text"),
        (
            {"text": "a", "label": "b", "summary": "c"},
            {},
            "'text', 'label', 'summary' fit several tasks: 'text-classification', 'summarization'",
        ),
        ({"a": 1}, {"task": "translation"}, "no field 'source'. Fields found: 'a'. Known names"),
        (
            {"premise": "a", "review": "b", "label": "c"},
            {},
            "'text' could be any of the columns 'premise', 'review'. Say which",
        ),
        (
            {"translation": {"en": "a", "fr": "b", "de": "c"}},
            {},
            "holds the languages 'en', 'fr', 'de'; which is the source",
        ),
        (LABELLED, {"columns": {"text": "nope"}}, "No column 'nope' for 'text'. Columns found: 't"),
        (
            LABELLED,
            {"task": "regression", "columns": {"label": "label"}},
            "'regression' has no field 'label'. Known: 'text'",
        ),
    ],
)
def test_columns_that_fit_nothing_or_several_things_are_listed(read, record, options, said):
    with pytest.raises(InvalidData) as caught:
        read(record, **options)
    assert said in caught.value.message
    assert caught.value.message.startswith("'rows.jsonl': ")


def test_a_given_column_goes_before_its_own_name_and_may_lie_inside_another(read):
    record = {"text": "no", "review": {"body": "yes"}, "label": "b", "stars": "c"}
    file = read(record, columns={"text": "review.body", "label": "stars"})
    assert content(file.examples[0]) == {"text": "yes", "label": "c"}
    file = read(
        {"translation": {"en": "a", "fr": "b", "de": "c"}},
        columns={"source": "translation.de", "target": "translation.en"},
    )
    assert content(file.examples[0]) == {"source": "c", "target": "a"}


def test_a_language_is_read_by_its_name_in_every_row(read):
    file = read({"translation": {"en": "a", "fr": "b"}}, {"translation": {"fr": "d", "en": "c"}})
    assert [content(e) for e in file.examples] == [
        {"source": "a", "target": "b"},
        {"source": "c", "target": "d"},
    ]


def test_numbers_become_the_names_that_are_given_for_them(read):
    rows = [{"tokens": ["Ada", "saw"], "ner_tags": [1, 0]}]
    (problem,) = read(*rows).problems
    assert "set data.class_names" in problem.message
    (example,) = read(*rows, class_names=["O", "B-p"]).examples
    assert example.target.tags == ["B-p", "O"]
    (example,) = read({"text": "a", "label": 1}, class_names=["no", "yes"]).examples
    assert example.target.label == "yes"


def test_a_number_among_names_stays_a_fault_of_its_line(read):
    file = read(LABELLED, {"text": "a", "label": 1})
    assert [(p.line, p.kind) for p in file.problems] == [(2, "wrong 'label'")]


def test_a_fault_tells_the_column_that_the_field_is_read_from(read):
    file = read({"sentence": "a", "label": "b"}, {"sentence": " ", "label": "b"})
    assert file.problems[0].message == (
        "field 'text' is empty. Give it some text. (It is read from 'sentence'.)"
    )


@pytest.mark.parametrize("pair", ["", "  "])
def test_a_blank_pair_is_a_fault_of_its_line(read, pair):
    file = read({**LABELLED, "text_pair": "c"}, {**LABELLED, "text_pair": pair})
    assert [(p.line, p.message) for p in file.problems] == [
        (2, "field 'text_pair' is empty. Give it some text.")
    ]


MANY = [{"instruction": f"do {i}", "output": "c"} for i in range(150)]


def test_a_column_that_first_appears_late_is_read_too(read):
    late = {"instruction": "do", "input": "this", "output": "c", "id": 1}
    file = read(*MANY, late, MANY[0], {**late, "input": "that"})
    assert [content(e)["prompt"] for e in file.examples[149:]] == [
        "do 149", "do\n\nthis", "do 0", "do\n\nthat",
    ]  # fmt: skip
    assert file.columns.fields["input"] == "input"
    pairs = read(*[LABELLED] * 150, {**LABELLED, "sentence2": "x"}, task="text-classification")
    assert [e.request.text_pair for e in pairs.examples[149:]] == [None, "x"]


def test_a_late_column_that_makes_another_doubtful_is_refused(read):
    with pytest.raises(InvalidData, match="'text' could be any of the columns 'premise', 'review'"):
        read(*[{"premise": "a", "label": "b"}] * 150, {"premise": "a", "review": "b", "label": "c"})


def test_a_file_that_begins_with_bad_lines_is_judged_by_what_follows(read):
    file = read(*["no object"] * 150, LABELLED)
    assert (file.problem_counts.total(), file.columns.task) == (150, "text-classification")
    assert content(file.examples[0]) == LABELLED
    with pytest.raises(InvalidData, match="fit no task"):
        read(*["no object"] * 150, {})
