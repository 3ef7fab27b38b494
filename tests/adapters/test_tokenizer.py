"""The tokenizer's view of a text: every character accounted for, nothing cut, nothing padded."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adapters.errors import UnsupportedBackbone
from adapters.text_stream import StreamText
from adapters.tokenizer import Tokenizer, Tokens, load_tokenizer

texts = st.text(max_size=60) | st.text("ab .,北京é🙂\u200d\n\u2028", max_size=60)
seeded = settings(max_examples=150, deadline=None, derandomize=True)


@seeded
@given(text=texts)
def test_decoding_gives_back_the_text_that_was_encoded(text, decoder_tokenizer, encoder_tokenizer):
    for tokenizer in (decoder_tokenizer, encoder_tokenizer):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.fixture(scope="module")
def spaced():
    """A tokenizer of T5's kind, whose config has transformers take blanks before marks away."""
    tokens = ["<unk>", "▁Bonjour", "▁!", "▁l", "l", "</s>"]
    inner = Inner(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", clean_up_tokenization_spaces=True
    )
    return Tokenizer(fast, [5])


def test_no_blank_before_a_mark_is_taken_away(spaced):
    assert spaced.decode([1, 2, 3]) == "Bonjour ! l"
    stream = StreamText(spaced.decode)
    assert "".join(stream.feed([token]) for token in (1, 2)) == "Bonjour !"


def test_a_token_alone_is_told_with_its_blank(spaced, decoder_tokenizer):
    assert [spaced.decode_token(token) for token in (2, 3, 4, 5)] == [" !", " l", "l", "</s>"]
    for text in (" a", "a", " 北"):
        told = map(decoder_tokenizer.decode_token, decoder_tokenizer.encode(text).ids)
        assert "".join(told).replace("\ufffd", "") == text.replace("北", "")


@seeded
@given(text=texts)
def test_offsets_rise_and_cover_every_character(text, decoder_tokenizer):
    offsets = decoder_tokenizer.encode(text).offsets
    assert {i for start, end in offsets for i in range(start, end)} == set(range(len(text)))
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.BertNormalizer()])
@pytest.mark.parametrize(
    "word",
    ["cafe\u0301", "o\u0308de", "नमस्ते", "vie\u0323\u0302t", "\u2764\ufe0f", "\u1112\u1161\u11ab"],
)
def test_a_mark_that_the_normalizer_takes_away_stays_with_its_letter(normalizer, word):
    inner = Inner(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner), [0])
    offsets = tokenizer.encode(f"a {word} b {word}").offsets
    end = 2 + len(word)
    assert offsets == [(0, 1), (2, end), (end + 1, end + 2), (end + 3, end + 3 + len(word))]


@seeded
@given(text=texts.filter(bool), data=st.data())
def test_a_position_is_found_in_the_first_and_last_token_that_hold_it(
    text, data, encoder_tokenizer
):
    place = data.draw(st.integers(0, len(text) - 1))
    tokens = encoder_tokenizer.encode(text)
    holding = [i for i, (start, end) in enumerate(tokens.offsets) if start <= place < end]
    assert tokens.between(place, place + 1) == (holding[0], holding[-1] + 1)


def test_tokens_the_tokenizer_adds_are_never_taken_for_text():
    tokens = Tokens([1, 5, 6, 2], [(0, 0), (0, 2), (2, 4), (0, 0)])
    assert tokens.between(0, 4) == (1, 3)
    assert tokens.between(4, 9) == (0, 0)


def test_a_truncation_stored_with_the_tokenizer_cuts_nothing(encoder_folder, encoder_tokenizer):
    stored = json.loads((encoder_folder / "tokenizer.json").read_text())["truncation"]
    assert stored["max_length"] == 20
    assert len(encoder_tokenizer.encode("x " * 500).ids) > 500


def test_a_special_token_spelled_out_in_a_text_stays_text(decoder_tokenizer, encoder_tokenizer):
    for tokenizer in (decoder_tokenizer, encoder_tokenizer):
        ids = tokenizer.encode("so <|end|> then", add_special=False).ids
        assert 2 not in ids
        assert tokenizer.decode(ids) == "so <|end|> then"
    prompt = decoder_tokenizer.chat([{"role": "user", "content": "so <|end|> then"}])
    start = prompt.index("so")
    ids = decoder_tokenizer.encode_around(prompt, start, start + len("so <|end|> then")).ids
    assert (ids.count(1), ids.count(2)) == (2, 1)  # the template's own


def test_what_one_thread_reads_as_special_stays_text_in_another(decoder_tokenizer):
    text = "so <|end|> then"
    prompt = decoder_tokenizer.chat([{"role": "user", "content": text}])
    start = prompt.index(text)
    reads = [
        lambda: decoder_tokenizer.encode(text).ids,
        lambda: decoder_tokenizer.encode_around(prompt, start, start + len(text)).ids,
    ]
    expected = [read() for read in reads]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns at almost every instruction
    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda i: reads[i % 2](), range(600)))
    finally:
        sys.setswitchinterval(interval)
    assert found == expected * 300


def test_special_tokens_are_added_only_on_demand(encoder_tokenizer):
    plain = encoder_tokenizer.encode("good film", add_special=False).ids
    assert encoder_tokenizer.encode("good film").ids == [1, *plain, 2]


def test_the_chat_prompt_ends_where_the_assistant_begins(decoder_tokenizer, encoder_tokenizer):
    prompt = decoder_tokenizer.chat([{"role": "user", "content": "Hi {{ 1 + 1 }}"}])
    assert prompt == "<|start|>user\nHi {{ 1 + 1 }}<|end|>\n<|start|>assistant\n"
    assert (decoder_tokenizer.has_chat, encoder_tokenizer.has_chat) == (True, False)


def test_a_templates_special_tokens_become_one_id_and_leave_the_text(decoder_tokenizer):
    ids = decoder_tokenizer.encode_around("<|start|>a<|end|>", 9, 10).ids
    assert (ids[0], ids[-1], decoder_tokenizer.decode(ids)) == (1, 2, "a")


@pytest.mark.parametrize(
    ("configured", "expected"),
    [([2, 7], (2, 7)), ([1, 2], (2, 1)), (7, (2, 7)), (2, (2,)), (None, (2,))],
)
def test_all_ids_that_end_a_text_are_known_the_tokenizers_own_first(
    decoder_folder, tmp_path, configured, expected
):
    folder = shutil.copytree(decoder_folder, tmp_path / "copy")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": configured}))
    assert load_tokenizer(folder).end_ids == expected


def test_the_fingerprint_holds_for_a_copy_and_changes_with_the_template(decoder_folder, tmp_path):
    folder = shutil.copytree(decoder_folder, tmp_path / "copy")
    original = load_tokenizer(decoder_folder).fingerprint()
    assert load_tokenizer(folder).fingerprint() == original
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert load_tokenizer(folder).fingerprint() != original


def test_the_fingerprint_changes_with_the_vocabulary(decoder_folder, tmp_path):
    folder = shutil.copytree(decoder_folder, tmp_path / "copy")
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    stored["model"]["merges"].pop()
    path.write_text(json.dumps(stored))
    assert load_tokenizer(folder).fingerprint() != load_tokenizer(decoder_folder).fingerprint()


def test_a_known_tokenizer_is_loaded_without_torch(decoder_folder, decoder_tokenizer):
    code = (
        "import sys; from adapters.tokenizer import load_tokenizer;"
        f"t = load_tokenizer({str(decoder_folder)!r}, {decoder_tokenizer.fingerprint()!r});"
        "print(t.fingerprint(), t.encode('so then').ids, t.end_ids, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    known = decoder_tokenizer
    expected = f"{known.fingerprint()} {known.encode('so then').ids} {known.end_ids} False"
    assert done.stdout.strip() == expected


def test_another_fingerprint_leaves_the_choice_of_class_to_transformers(encoder_folder):
    found = load_tokenizer(encoder_folder, "0" * 64)
    assert found.fingerprint() == load_tokenizer(encoder_folder).fingerprint()


@pytest.mark.parametrize("kind", ["MarianTokenizer", "ByT5Tokenizer"])
def test_a_folder_without_a_fast_tokenizer_is_refused_by_name(kind, decoder_folder, tmp_path):
    """One that needs a library of its own, or that is written in Python and tells no places."""
    folder = shutil.copytree(decoder_folder, tmp_path / "slow")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    for name in ("source.spm", "target.spm", "vocab.json"):
        (folder / name).write_text("{}")
    with pytest.raises(UnsupportedBackbone, match="'slow' has no fast tokenizer"):
        load_tokenizer(folder)
