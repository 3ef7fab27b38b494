"""Compiled kernels are kept in a folder: what is broken in it ends no process, what is another user's is not loaded."""

import os
import shutil

import pytest

from adapters.runtime import compiling
from adapters.runtime.kernels import load_kernels

OTHER_USER = 54321

pytestmark = pytest.mark.skipif(
    not compiling.find_compiler(), reason="no C compiler on this machine"
)


@pytest.fixture
def load(monkeypatch):
    """Kernels that are as slow as they are soon made, by their home."""
    flags = tuple("-O0" if flag == "-O3" else flag for flag in compiling._FLAGS)
    monkeypatch.setattr(compiling, "_FLAGS", flags)
    return load_kernels.__wrapped__


@pytest.fixture
def give_away(monkeypatch):
    """Make a path another user's; where only root may do so, this process takes itself for another user."""

    def give(path):
        if os.geteuid() == 0:
            os.chown(path, OTHER_USER, -1)
        else:
            monkeypatch.setattr(compiling.os, "geteuid", lambda: OTHER_USER)

    return give


def test_a_folder_of_another_user_is_not_loaded_from(tmp_path, load, give_away, caplog):
    planted = load(tmp_path).library._name
    give_away(tmp_path / "kernels")
    assert load(tmp_path).library._name != planted
    assert "another user" in caplog.text


def test_a_folder_that_all_may_write_to_is_not_loaded_from(tmp_path, load, caplog):
    planted = load(tmp_path).library._name
    (tmp_path / "kernels").chmod(0o777)
    assert load(tmp_path).library._name != planted
    assert "another user" in caplog.text


def test_a_file_of_another_user_is_made_anew(tmp_path, load, give_away):
    load(tmp_path)
    (made,) = (tmp_path / "kernels").glob("*.so")
    planted = tmp_path / "planted"
    shutil.copyfile(made, planted)
    planted.replace(made)
    give_away(made)
    before = made.stat().st_ino
    loaded = load(tmp_path).library._name
    assert loaded != str(made) or made.stat().st_ino != before


def test_what_is_made_is_written_by_its_owner_alone(tmp_path, load):
    before = os.umask(0)
    try:
        load(tmp_path)
    finally:
        os.umask(before)
    (made,) = (tmp_path / "kernels").glob("*.so")
    assert [path.stat().st_mode & 0o022 for path in (made, made.parent)] == [0, 0]


def test_a_folder_that_cannot_be_written_to_costs_a_compilation(tmp_path, load, caplog):
    (tmp_path / "kernels").write_text("No folder.")
    assert load(tmp_path) is not None
    assert "can't be kept" in caplog.text


def test_a_damaged_sum_is_no_error(tmp_path, load):
    load(tmp_path)
    (made,) = (tmp_path / "kernels").glob("*.sha256")
    made.write_bytes(b"\xff\xfe")
    assert load(tmp_path) is not None
    assert len(made.read_text()) == 64


def test_a_compiler_may_speak_in_any_encoding(tmp_path, load, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nprintf 'f\\374r'\nexec cc \"$@\"\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert load(tmp_path) is not None


def test_a_command_that_cannot_be_read_is_no_error(tmp_path, load, monkeypatch, caplog):
    monkeypatch.setenv("CC", "cc -DX='")
    assert load(tmp_path) is None
    assert "can't be used" in caplog.text
