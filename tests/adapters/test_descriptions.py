"""A backbone's spec is remembered while its folder is as it was."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from adapters.backbone import describe_backbone
from adapters.descriptions import describe_source
from adapters.errors import EnvironmentProblem


@pytest.fixture
def folder(tmp_path, decoder_folder):
    return shutil.copytree(decoder_folder, tmp_path / "backbone")


@pytest.fixture
def describe():
    def count(folder, name):
        count.calls += 1
        return describe_backbone(folder, name)

    count.calls = 0
    return count


def test_a_spec_is_found_out_once_and_the_same_afterwards(folder, tmp_path, describe):
    home = tmp_path / "specs-home"
    first = describe_source(str(folder), home, describe)
    assert first == describe_backbone(folder)
    assert describe_source(str(folder), home, describe) == first
    assert describe.calls == 1


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_changed_file_is_seen(folder, tmp_path, describe, name):
    home = tmp_path / "specs-home"
    describe_source(str(folder), home, describe)
    with (folder / name).open(
        "r+b"
    ) as file:  # one byte: JSON may end with a space, weights with any
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(0 if name.endswith(".json") else -1, os.SEEK_END)
        file.write(b" " if name.endswith(".json") else bytes([last[0] ^ 1]))
    describe_source(str(folder), home, describe)
    assert describe.calls == 2


def test_a_damaged_note_is_made_anew(folder, tmp_path, describe):
    home = tmp_path / "specs-home"
    first = describe_source(str(folder), home, describe)
    (path,) = (home / "specs").iterdir()
    path.write_text("{")
    assert describe_source(str(folder), home, describe) == first
    assert describe.calls == 2


def test_a_home_that_can_not_be_written_costs_time_only(folder, tmp_path, describe):
    home = tmp_path / "file"
    home.write_text("")
    assert describe_source(str(folder), home, describe).folder == str(folder)


def test_a_file_that_can_not_be_read_is_named(folder, tmp_path, monkeypatch):
    real_open = Path.open

    def refuse(
        path, *args, **kwargs
    ):  # root, who may run these tests, reads whatever a mode forbids
        if path.name == "tokenizer.json":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EnvironmentProblem, match=r"tokenizer.json' of backbone 'backbone': Perm"):
        describe_source(str(folder), tmp_path / "specs-home")
