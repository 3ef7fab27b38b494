"""What is found out about the store before a server or a worker starts."""

import logging
import threading

import fsspec
import pytest

from adapters.errors import EnvironmentProblem
from service.jobs.objects import ObjectStore
from service.opening import check_store

MEMORY = type(fsspec.filesystem("memory"))


def test_a_store_that_lets_us_write_has_nothing_new_in_it(tmp_path):
    objects = ObjectStore(str(tmp_path / "store"))
    check_store(objects, writes=True)
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("writes", [False, True])
def test_a_folder_that_can_t_be_made_is_refused(tmp_path, writes):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"file/store' can't be used.*HEADSTOCK_BLOB"):
        check_store(ObjectStore(str(tmp_path / "file" / "store")), writes=writes)


class NoCredentialsError(Exception):
    """As botocore has it, which need not be installed."""


@pytest.mark.parametrize("error", [PermissionError("403"), NoCredentialsError("none found")])
@pytest.mark.parametrize(("name", "writes"), [("pipe_file", True), ("info", False)])
def test_a_remote_store_that_does_not_let_us_in_is_refused(monkeypatch, error, name, writes):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(MEMORY, name, refuse)
    with pytest.raises(EnvironmentProblem, match=rf"{type(error).__name__}: {error}.*credentials"):
        check_store(ObjectStore("memory://checked"), writes=writes)


def test_who_only_reads_needs_no_right_to_write(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("403")

    monkeypatch.setattr(MEMORY, "pipe_file", refuse)
    check_store(ObjectStore("memory://checked"), writes=False)


@pytest.mark.parametrize("error", [ConnectionError("gone"), OSError("No space left on device")])
def test_a_remote_store_that_is_gone_or_full_may_come_back(monkeypatch, caplog, error):
    def pipe_file(*_, **__):
        raise error

    monkeypatch.setattr(MEMORY, "pipe_file", pipe_file)
    with caplog.at_level(logging.WARNING):
        check_store(ObjectStore("memory://checked"), writes=True)
    assert "checked" in caplog.text


def test_a_store_that_hangs_is_not_waited_for(monkeypatch, caplog):
    answer = threading.Event()
    monkeypatch.setattr(MEMORY, "pipe_file", lambda *_, **__: answer.wait(30))
    with caplog.at_level(logging.WARNING):
        check_store(ObjectStore("memory://checked"), writes=True, seconds=0.01)
    assert "has not answered" in caplog.text
    answer.set()
