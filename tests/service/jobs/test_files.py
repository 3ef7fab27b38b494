"""A file's name is one that a folder can hold, or refused."""

import pytest

from adapters.errors import InvalidRequest
from service.jobs.files import plain_name


@pytest.mark.parametrize("given", ["é" * 150 + ".csv", "\U0001f600" * 60 + ".jsonl", "a\0b.csv"])
def test_a_name_that_no_folder_can_hold_is_refused(given):
    with pytest.raises(InvalidRequest, match="is no file of examples") as caught:
        plain_name(given)
    assert caught.value.param == "file"


@pytest.mark.parametrize(
    "given", ["C:\\data\\a.csv", "a" * 196 + ".csv", "é" * 98 + ".csv", "a b.JSONL"]
)
def test_a_name_that_is_taken_is_one_that_a_folder_can_hold(given, tmp_path):
    (tmp_path / plain_name(given)).touch()
