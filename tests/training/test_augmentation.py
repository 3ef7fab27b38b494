"""Augmentation: copies of training rows alone, seeded, with their labels; bad settings are refused."""

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_sample_weight

from adapters.errors import InvalidRequest
from adapters.tasks.catalog import task_class
from training.augmentation import augmented, delete_words, replace_words, swap_words, translated
from training.class_weights import balanced
from training.contract import AugmentationSettings, BackTranslationSettings
from training.data import Example

CLASSES = task_class("text-classification")
SUMMARIES = task_class("summarization")
TEXTS = st.lists(st.sampled_from(["one", "two,", "three!", "四", "five"]), min_size=1).map(" ".join)


def rows(*texts, labels="ab", pair=None):
    return [
        Example(
            CLASSES.Request(text=text, text_pair=pair),
            CLASSES.Target(label=labels[i % len(labels)]),
            i + 1,
        )
        for i, text in enumerate(texts)
    ]


@given(TEXTS, st.floats(0, 1), st.integers())
def test_changes_keep_what_they_should(text, share, seed):
    swapped = swap_words(text, share, random.Random(seed))
    assert sorted(swapped.replace(" ", "")) == sorted(text.replace(" ", ""))
    kept = iter(text)
    deleted = delete_words(text, share, random.Random(seed))
    assert deleted
    assert all(character in kept for character in deleted)
    replaced = replace_words(text, share, ["NEW"], random.Random(seed))
    assert "NEW" in replaced
    assert replaced.count(" ") == text.count(" ")


def test_copies_have_their_rows_label_and_another_text_whatever_the_order():
    train = rows("a good film about love", "a bad play about war", "五月的天气很好")
    settings = AugmentationSettings(replace=0.3, swap=0.3, delete=0.3, copies=2)
    copies = augmented(train, settings)
    assert 12 <= len(copies) <= 18
    assert all(copy.target == train[copy.line - 1].target for copy in copies)
    assert all(copy.request != train[copy.line - 1].request for copy in copies)
    again = augmented(train[::-1], settings)
    key = lambda copy: (copy.line, copy.request.text)  # noqa: E731
    assert sorted(copies, key=key) == sorted(again, key=key)
    other = augmented(train, settings.model_copy(update={"seed": 1}))
    assert [c.request for c in other] != [c.request for c in copies]


def test_copies_that_came_out_like_their_row_are_left_out():
    assert augmented(rows("word"), AugmentationSettings(swap=0.5)) == []


def test_what_comes_back_too_different_or_the_same_is_left_out():
    returned = {
        "a good film about old friends": "a nice film about old friends",
        "the same words": "The  same words",
        "far away": "xyz",
    }
    asked = []

    def translate(adapter, texts):
        asked.append(adapter)
        return list(texts) if adapter == "there" else [returned[text] for text in texts]

    settings = AugmentationSettings(
        back_translation=BackTranslationSettings(there="there", back="back", min_chrf=30)
    )
    texts = translated(rows(*returned), settings.back_translation, translate)
    (copy,) = augmented(rows(*returned), settings, texts)
    assert (copy.request.text, copy.target.label) == ("a nice film about old friends", "a")
    assert asked == ["there", "back"]


def test_translations_come_from_a_servers_adapters():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body["adapter"] == "nobody":
                self.send_response(400)
                answer = {"error": {"message": "No adapter named 'nobody'."}}
            else:
                self.send_response(200)
                change = str.upper if body["adapter"] == "there" else lambda t: t.lower() + " again"
                answer = {
                    "predictions": [{"translation": change(i["source"])} for i in body["inputs"]]
                }
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"

        def run(there):
            back = BackTranslationSettings(url=url, there=there, back="back")
            train = rows(*(f"a good film {i}" for i in range(70)))
            settings = AugmentationSettings(back_translation=back)
            return augmented(train, settings, translated(train, back))

        assert [copy.request.text for copy in run("there")][:2] == [
            "a good film 0 again",
            "a good film 1 again",
        ]
        with pytest.raises(InvalidRequest, match="adapter 'nobody' failed"):
            run("nobody")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(InvalidRequest, match="no Headstock server answers"):
        run("there")


def test_tasks_whose_answers_are_words_of_the_text_are_refused():
    example = Example(SUMMARIES.Request(text="long"), SUMMARIES.Target(summary="short"), 1)
    with pytest.raises(InvalidRequest, match="only text-classification and regression"):
        augmented([example], AugmentationSettings(swap=0.1))


def test_balanced_weights_are_scikit_learns():
    train = rows(*(f"t{i}" for i in range(12)), labels="aaab")
    expected = compute_sample_weight("balanced", [e.target.label for e in train])
    assert [e.weight for e in balanced(train)] == pytest.approx(expected.tolist())
    example = Example(SUMMARIES.Request(text="long"), SUMMARIES.Target(summary="short"), 1)
    with pytest.raises(InvalidRequest, match="one class a row"):
        balanced([example])
