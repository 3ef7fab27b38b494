"""Records of Parquet files, and files that can't be read: each fault in one line that says what to do."""

import json

import pytest

from adapters.errors import InvalidData
from training.data import load_examples, read_examples

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path, rows, features=None):
    table = pyarrow.Table.from_pylist(rows)
    if features:
        stored = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": stored})
    parquet.write_table(table, path)
    return str(path)


def test_parquet_and_json_lines_of_the_same_rows_give_the_same_examples(tmp_path):
    answers = {"text": ["Zürich", "北京"], "answer_start": [0, 8]}
    rows = [
        {"id": i, "question": f"Q {i}?", "context": "Zürich, 北京", "answers": answers}
        for i in range(2000)
    ]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load_examples(write(tmp_path / "rows.parquet", rows), None)
    assert table == load_examples(str(lines), None)
    assert (len(table), table[-1].line) == (2000, 2000)


def test_class_names_that_a_parquet_file_stores_are_used(tmp_path):
    label = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    path = write(tmp_path / "a.parquet", [{"sentence": "a", "label": 1}], {"label": label})
    assert load_examples(path, None)[0].target.label == "pos"
    tags = {"feature": {"names": ["O", "B-p"], "_type": "ClassLabel"}, "_type": "Sequence"}
    rows = [{"tokens": ["Ada", "saw"], "ner_tags": [1, 0]}]
    path = write(tmp_path / "b.parquet", rows, {"ner_tags": tags})
    assert load_examples(path, None)[0].target.tags == ["B-p", "O"]


def test_an_empty_cell_of_parquet_is_a_missing_field_of_its_row(tmp_path):
    rows = [{"text": "a", "label": "b"}, {"text": None, "label": "b"}]
    (problem,) = read_examples(write(tmp_path / "a.parquet", rows), None).problems
    assert (problem.line, problem.kind) == (2, "missing 'text'")


def test_an_empty_key_of_an_object_in_parquet_is_a_missing_one(tmp_path):
    user, answer = ({"role": r, "content": r, "name": None} for r in ("user", "assistant"))
    path = write(
        tmp_path / "a.parquet",
        [{"messages": [user, answer]}, {"messages": [{**user, "name": "A"}]}],
    )
    file = read_examples(path, None)
    assert [message.content for message in file.examples[0].request.messages] == ["user"]
    assert [(p.line, "messages.0.name" in p.message) for p in file.problems] == [(2, True)]


def test_what_is_no_parquet_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.parquet").write_text("text,label\n")
    with pytest.raises(InvalidData, match=r"^Can't read 'a.parquet': .*\.$") as caught:
        load_examples(str(tmp_path / "a.parquet"), None)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_of_another_encoding_is_refused_with_line_and_place(tmp_path, name):
    good = '{"text": "a", "label": "b"}\n' if name == "a.jsonl" else "text,label\na,b\n"
    bad = good.replace("a", "é").encode("latin-1") if name == "a.jsonl" else b"\xe9,b\n"
    (tmp_path / name).write_bytes(good.encode() * 5000 + bad)
    line = 5000 * good.count("\n") + 1
    with pytest.raises(InvalidData, match=f"^Line {line} of '{name}' is not UTF-8: byte '0xe9'"):
        load_examples(str(tmp_path / name), None)


def test_a_data_set_id_of_the_hub_is_refused_with_the_command_that_downloads_it():
    with pytest.raises(InvalidData) as caught:
        load_examples("stanfordnlp/imdb", "text-classification")
    assert "hf download --repo-type dataset stanfordnlp/imdb" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_of_the_hub_without_a_network_is_refused_in_one_line():
    with pytest.raises(InvalidData, match=r"^Can't read 'x.parquet': .*[^.]\.$") as caught:
        load_examples("hf://datasets/stanfordnlp/imdb/x.parquet", "text-classification")
    assert "\n" not in caught.value.message
