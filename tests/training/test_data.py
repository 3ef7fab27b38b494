"""Files of examples: what is read, and what is said of a line, a field or a file that is wrong."""

import csv
import io
import json

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import InvalidData
from training.data import MAX_PROBLEMS, fingerprint, load_examples, read_examples

TASK = "text-classification"
ANSWERING = "question-answering"
GOOD = {"text": "A good film.", "label": "pos"}
ANSWER = {"question": "Who?", "context": "Ada.", "answers": [{"text": "Ada", "answer_start": 0}]}


@pytest.fixture
def write(tmp_path):
    def to(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return to


def json_lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def as_csv(rows):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


visible = st.text("ab ,;\"'\n\ré北🙂\u2028", min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=st.lists(st.fixed_dictionaries({"text": visible, "label": visible}), min_size=1))
def test_json_lines_and_csv_of_the_same_rows_give_the_same_examples(rows):
    files = fsspec.filesystem("memory")
    files.pipe("/rows.jsonl", json_lines(*rows).encode())
    files.pipe("/rows.csv", as_csv(rows).encode())
    lines, table = (load_examples(f"memory://rows.{end}", TASK) for end in ("jsonl", "csv"))
    assert [(e.request.text, e.target.label) for e in lines] == [
        (r["text"], r["label"]) for r in rows
    ]
    assert fingerprint(table) == fingerprint(lines)


def test_a_csv_cell_may_hold_a_list_of_answers(write):
    rows = [{**ANSWER, "answers": json.dumps(ANSWER["answers"])}]
    (example,) = load_examples(write("a.csv", as_csv(rows)), ANSWERING)
    assert example.target.answers[0].answer_start == 0


def test_fields_the_task_does_not_know_and_empty_lines_are_passed_over(write):
    path = write("a.jsonl", json_lines({**GOOD, "id": 7}, "", "  ", GOOD))
    first, second = load_examples(path, TASK)
    assert (first.line, second.line) == (1, 4)
    assert fingerprint([first]) == fingerprint([second])


def test_the_fingerprint_changes_with_content_and_order(write):
    other = {**GOOD, "label": "neg"}
    files = [(GOOD,), (other,), (GOOD, other), (other, GOOD)]
    prints = {
        fingerprint(load_examples(write("a.jsonl", json_lines(*rows)), TASK)) for rows in files
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "lable": "b"}, r"no field 'label'. Fields found: 'text', 'lable'\."),
        ({"txt": "a", "label": "b"}, r"no field 'text'. Fields found: 'txt', 'label'\."),
        ({"text_pair": "a", "label": "b"}, "no field 'text'. Fields found: 'text_pair', 'label'"),
        ({}, r"no field 'text'. Fields found: none\."),
        ({"text": "", "label": "b"}, "field 'text' is empty. Give it some text"),
        ({"text": "  ", "label": "b"}, "field 'text' is empty"),
        ({"text": "a", "label": ""}, "field 'label' is empty"),
        ({"text": 5, "label": "b"}, "field 'text' is '5': Input should be a valid string"),
        ({"text": "a", "label": 1}, "field 'label' is '1': Input should be a valid string"),
        ({"text": None, "label": "b"}, "field 'text' is 'None'"),
        ({"text": ["x" * 200], "label": "b"}, r"field 'text' is '\['x{50,60}…'"),
        ('{"text": "a"', r"""'\{"text": "a"' is not JSON"""),
        ("not json", "'not json' is not JSON"),
        ('["a", "b"]', r"""'\["a", "b"\]' is no object"""),
        ("null", "'null' is no object"),
        (r'{"text": "\ud800", "label": "b"}', "field 'text' is .*unicode"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_fault(write, row, said):
    path = write("rows.jsonl", json_lines(GOOD, row, GOOD))
    with pytest.raises(InvalidData, match=rf"^Line 2 of 'rows.jsonl': .*{said}"):
        load_examples(path, TASK)


@pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}])
@pytest.mark.parametrize("is_csv", [False, True])
def test_a_question_may_have_no_answer(write, answers, is_csv):
    row = {**ANSWER, "answers": json.dumps(answers) if is_csv else answers}
    name, content = ("a.csv", as_csv([row])) if is_csv else ("a.jsonl", json_lines(row))
    (example,) = load_examples(write(name, content), ANSWERING)
    assert example.target.answers == []


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("Ada", "field 'answers' is 'Ada': Input should be a valid list"),
        ([{"text": "Ada"}], r"no field 'answers.0.answer_start'. Fields found: 'text'\."),
        ([{"text": "Ada", "answer_start": -1}], "field 'answers.0.answer_start' is '-1'"),
        ([{"text": "Ada", "answer_start": 0, "id": 1}], "unknown field 'answers.0.id'"),
    ],
)
def test_a_fault_inside_a_field_is_named_by_its_path(write, answers, said):
    row = {**ANSWER, "answers": answers}
    with pytest.raises(InvalidData, match=said):
        load_examples(write("rows.jsonl", json_lines(row)), ANSWERING)


@pytest.mark.parametrize("row", ["a,b,c", "a"])
def test_a_csv_row_of_another_width_is_named_by_its_line(write, row):
    path = write("rows.csv", f"text,label\nx,y\n{row}\n")
    with pytest.raises(InvalidData, match=r"^Line 3 .* not have the header's 2 columns\.$"):
        load_examples(path, TASK)


def test_good_rows_are_kept_beside_the_problems_and_the_problems_are_counted(write):
    path = write("rows.jsonl", json_lines("x", GOOD, "y", GOOD, {}))
    file = read_examples(path, TASK)
    assert [e.line for e in file.examples] == [2, 4]
    assert [p.line for p in file.problems] == [1, 3, 5]
    with pytest.raises(InvalidData, match=r"^Line 1 .*\(3 bad lines in all\)$"):
        load_examples(path, TASK)


def test_the_first_problems_are_shown_and_all_are_counted_by_kind(write):
    rows = [
        *["x"] * 60,
        GOOD,
        {"text": "a"},
        *[{**GOOD, "text": " "}] * 3,
        [],
        {**GOOD, "label": 1},
    ]
    file = read_examples(write("rows.jsonl", json_lines(*rows[:65], "[]", rows[-1])), TASK)
    assert [problem.line for problem in file.problems] == list(range(1, MAX_PROBLEMS + 1))
    assert file.problem_counts == {
        "not JSON": 60,
        "missing 'label'": 1,
        "empty 'text'": 3,
        "no object": 1,
        "wrong 'label'": 1,
    }
    with pytest.raises(InvalidData, match=r"^Line 1 .*\(66 bad lines in all\)$"):
        file.validate()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "'a.jsonl' holds no rows"),
        ("a.jsonl", "\n \n", "'a.jsonl' holds no rows"),
        ("a.csv", "", "'a.csv' holds no rows"),
        ("a.csv", "text,label\n", "'a.csv' holds no rows"),
        ("a.json", "[]", "ends in '.json'; examples come as .jsonl, .csv or .parquet"),
        ("a", "", "ends in ''"),
        (
            "a.jsonl",
            b'{"text": "\xff"}',
            "^Line 1 of 'a.jsonl' is not UTF-8: byte '0xff' at place 11",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_as_a_whole(write, name, content, said):
    with pytest.raises(InvalidData, match=said) as caught:
        load_examples(write(name, content), TASK)
    assert caught.value.param == "data"


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidData, match=r"No file '.*gone.jsonl'. Check the path"):
        load_examples(str(tmp_path / "gone.jsonl"), TASK)


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", json_lines(GOOD)), ("a.csv", as_csv([GOOD]))]
)
def test_a_byte_order_mark_is_no_part_of_the_data(write, name, content):
    assert (
        load_examples(write(name, b"\xef\xbb\xbf" + content.encode()), TASK)[0].target.label
        == "pos"
    )


def test_a_csv_cell_may_be_as_long_as_a_json_string(write):
    row = {"text": "long " * 30_000, "label": "pos"}
    assert len(load_examples(write("a.csv", as_csv([row])), TASK)) == 1


def test_a_csv_cell_may_hold_a_list_of_words(write):
    row = {"tokens": json.dumps(["Ada", "saw"]), "tags": json.dumps(["B-a", "O"])}
    (example,) = load_examples(write("a.csv", as_csv([row])), "token-classification")
    assert (example.request.tokens, example.target.tags) == (["Ada", "saw"], ["B-a", "O"])


def test_a_csv_text_in_brackets_stays_a_text(write):
    path = write("a.csv", as_csv([{"text": "[1]", "label": "citation"}]))
    assert load_examples(path, TASK)[0].request.text == "[1]"


@pytest.mark.parametrize("text", ['{"name": "Ada"}', '[{"name": "Ada"}]', '["Ada"]'])
def test_a_csv_text_that_is_json_stays_a_text(write, text):
    path = write("a.csv", as_csv([{"prompt": text, "completion": text}]))
    (example,) = load_examples(path, "text-generation")
    assert (example.request.prompt, example.target.completion) == (text, text)


def test_a_csv_cell_may_hold_messages_languages_and_an_object_of_answers(write):
    said = [{"role": "user", "content": "hi"}]
    told = [{"role": "assistant", "content": "yo"}]
    row = {"prompt": json.dumps(said), "completion": json.dumps(told)}
    (example,) = load_examples(write("a.csv", as_csv([row])), "text-generation")
    assert (example.request.messages[0].content, example.target.completion) == ("hi", "yo")
    row = {"translation": json.dumps({"en": "hi", "fr": "salut"})}
    (example,) = load_examples(write("b.csv", as_csv([row])), "translation")
    assert (example.request.source, example.target.target) == ("hi", "salut")
    given = ANSWER["answers"][0]
    columns = {"text": [given["text"]], "answer_start": [given["answer_start"]]}
    row = {**ANSWER, "answers": json.dumps(columns)}
    (example,) = load_examples(write("c.csv", as_csv([row])), ANSWERING)
    assert example.target.answers[0].model_dump() == given


def test_a_line_nested_too_deep_is_named_by_its_number(write):
    file = read_examples(write("a.jsonl", json_lines(GOOD, "[" * 100_000)), TASK)
    assert [problem.line for problem in file.problems] == [2]


def test_a_url_of_an_unknown_kind_is_refused():
    with pytest.raises(InvalidData):
        load_examples("nosuch://bucket/a.jsonl", TASK)


@pytest.mark.parametrize("cell", ["['x', 'y']", "['x']", "['x' 'y']", "[]x]"])
def test_a_list_as_pandas_writes_it_is_no_label_but_refused_with_what_to_write(write, cell):
    rows = [{"text": "a", "labels": '["x", "y"]'}, {"text": "b", "labels": cell}]
    with pytest.raises(InvalidData) as caught:
        load_examples(write("a.csv", as_csv(rows)), TASK)
    assert caught.value.message.startswith(f"Line 3 of 'a.csv': field 'labels' is '{cell}'")
    assert """as JSON, such as ["x", "y"] (pandas: df['labels'].map(json.dumps))""" in str(
        caught.value
    )
    path = write("b.csv", as_csv([{"text": "a", "label": cell}]))  # as the message says
    assert load_examples(path, TASK)[0].target.label == cell


def test_words_and_answers_as_pandas_writes_them_are_told_how_to_be_written(write):
    row = {"tokens": "['Ada']", "tags": "['B-a']"}
    with pytest.raises(InvalidData, match=r"df\['tokens'\].map\(json.dumps\)"):
        load_examples(write("a.csv", as_csv([row])), "token-classification")
    row = {**ANSWER, "answers": "{'text': ['Ada'], 'answer_start': [0]}"}
    with pytest.raises(InvalidData, match=r"df\['answers'\].map\(json.dumps\)"):
        load_examples(write("b.csv", as_csv([row])), ANSWERING)


@pytest.mark.parametrize("field", ["prompt", "completion", "messages"])
def test_messages_as_pandas_writes_them_are_no_text_to_learn(write, field):
    row = {"prompt": "hi", "completion": "yo"}
    if field == "messages":
        row = {"completion": "yo"}
    row[field] = str([{"content": "hi", "role": "user"}])
    with pytest.raises(InvalidData, match=rf"^Line 2 .*df\['{field}'\].map\(json.dumps\)"):
        load_examples(write("a.csv", as_csv([row])), "text-generation")
