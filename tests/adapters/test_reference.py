"""Adapter references: what parses, what is refused, and that a parsed one writes itself back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from adapters.reference import Reference, check_name, parse_reference
from adapters.validation import shown

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
references = (
    st.builds(Reference, name=names, namespace=names)
    | st.builds(Reference, name=names, alias=names, namespace=names)
    | st.builds(Reference, name=names, version=st.integers(1, 999_999_999), namespace=names)
)
seeded = settings(max_examples=200, deadline=None, derandomize=True)


@seeded
@given(references)
def test_a_reference_is_written_so_that_it_parses_back_to_itself(reference):
    assert parse_reference(str(reference)) == reference


@seeded
@given(st.text("ab0123@:/.-_ AÉ\n", max_size=8) | names | st.text())
def test_a_text_either_is_the_reference_it_parses_to_or_is_refused_by_name(text):
    try:
        outcome = str(parse_reference(text))
    except InvalidRequest as error:
        outcome = error
    if isinstance(outcome, str):
        assert outcome == text.removeprefix("default/")
    else:
        assert outcome.param == "adapter"
        assert shown(text) in outcome.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tickets", Reference("tickets")),
        ("tickets@production", Reference("tickets", alias="production")),
        ("tickets:3", Reference("tickets", version=3)),
        ("team-a/tickets:12", Reference("tickets", version=12, namespace="team-a")),
        ("team-a/tickets@next", Reference("tickets", alias="next", namespace="team-a")),
        ("default/tickets", Reference("tickets")),
        ("0.x_y-z", Reference("0.x_y-z")),
    ],
)
def test_each_form_of_reference_gives_its_parts(text, expected):
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *["", "/a", "a/", "a/b/c", "../a", "a@", "@a", "a@b@c", "a:1@b", "a@b:1"],
        *["A", "-a", ".a", "a b", "a\n", "é", "a" * 65],
        *["a:", "a:0", "a:01", "a:-1", "a:1.5", "a:x", "a:1234567890", "a:٣"],
    ],
)
def test_a_text_that_is_no_reference_is_refused(text):
    with pytest.raises(InvalidRequest):
        parse_reference(text)


def test_a_bad_version_number_is_answered_with_how_to_write_one():
    with pytest.raises(InvalidRequest, match=r"'zero' is no version number.*tickets:3"):
        parse_reference("tickets:zero")


@pytest.mark.parametrize("text", ["a" * 10**6, "a@" + "b" * 10**6, "a:" + "1" * 10**6])
def test_a_long_text_is_refused_by_its_beginning(text):
    with pytest.raises(InvalidRequest, match=f"'{text[:60]}…' is not") as caught:
        parse_reference(text)
    assert len(caught.value.message) < 400


def test_a_name_may_have_64_characters_and_no_more():
    assert check_name("a" * 64, what="alias") == "a" * 64
    with pytest.raises(InvalidRequest, match="not a valid alias: a name has 1 to 64"):
        check_name("a" * 65, what="alias")
