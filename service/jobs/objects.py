"""Bytes of jobs, such as files and checkpoints, under keys in any fsspec store."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path, PurePosixPath

import fsspec

from adapters.errors import EnvironmentProblem, Unavailable
from adapters.storage import is_refusal, telling_store, with_zone


class ObjectStore:
    """Puts and gets whole files; `StorageFull` or `Unavailable` if the store can't be used.

    Args:
        url: an fsspec URL or a plain folder.
    """

    def __init__(self, url: str) -> None:
        try:
            # Without a cache of listings: others store things too.
            self._fs, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise EnvironmentProblem(
                f"The store '{url}' can't be opened: {error}. Set HEADSTOCK_BLOB_URL to one that fsspec knows."
            ) from error
        self._is_local = "file" in self._fs.protocol

    def check(self, *, writes: bool) -> None:
        """Look for an object that is not there or, if whoever asks also writes, store one and remove it.

        Raises:
            EnvironmentProblem: the store refuses us, and will until somebody puts it right.
            StorageFull, Unavailable: it can't be used now.
        """
        place = self._place("check.part")
        try:
            with telling_store(self._root):
                self._look(place)
                if writes:
                    self._fs.makedirs(self._root, exist_ok=True)
                    self._fs.pipe_file(place, b"x")
                    with suppress(FileNotFoundError):  # another process has looked as well
                        self._fs.rm_file(place)
        except FileNotFoundError as error:
            raise self._refused(error) from error
        except Unavailable as error:
            cause = error.__cause__ or error
            if not self._is_local and not is_refusal(cause):
                raise
            raise self._refused(cause) from error

    def _look(self, place: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.info(place)

    def _refused(self, error: BaseException) -> EnvironmentProblem:
        reason = f"{type(error).__name__}: {str(error)[:300].rstrip('.')}"
        return EnvironmentProblem(
            f"The store '{self._root}' can't be used: {reason}. Look at HEADSTOCK_BLOB_URL, and at the credentials "
            "and rights that the store wants."
        )

    def put(self, source: Path, key: str) -> None:
        """Store a file; a reader sees all of it or none."""
        target = self._place(key)
        with telling_store(self._root):
            self._put(source, target)

    def _put(self, source: Path, target: str) -> None:
        if not self._is_local:
            self._fs.put_file(str(source), target)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        beside = f"{target}.{uuid.uuid4().hex}.part"
        try:
            self._fs.put_file(str(source), beside)
            os.replace(beside, target)
        finally:
            Path(beside).unlink(missing_ok=True)

    def get(self, key: str, target: Path) -> bool:
        """Copy a file here; returns whether there is one."""
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
        try:
            with telling_store(self._root):
                self._fs.get_file(self._place(key), str(beside))
        except FileNotFoundError:
            return False
        else:
            os.replace(beside, target)
            return True
        finally:
            beside.unlink(missing_ok=True)

    def list_keys(self) -> Iterator[str]:
        """Yield the keys of all objects, bundles' files among them, but none that is still being written."""
        for path in self._fs.find(self._root):
            key = path.removeprefix(f"{self._root}/")
            parts = PurePosixPath(key).parts
            if not key.endswith(".part") and not any(part.startswith(".") for part in parts):
                yield key

    def url(self, key: str) -> str:
        """Return where a key's bytes are, for whoever reads fsspec URLs."""
        place = self._place(key)
        return place if self._is_local else self._fs.unstrip_protocol(place)

    def remove(self, key: str) -> None:
        """Remove a key, or all keys under it; nothing happens if there are none."""
        place = self._place(key)
        with telling_store(self._root):
            while self._fs.exists(place):
                with suppress(FileNotFoundError):  # somebody else removes it, too
                    self._fs.rm(place, recursive=True)

    def remove_older(self, key: str, moment: datetime) -> None:
        """Remove the objects under a key that were written before a moment."""
        with telling_store(self._root):
            for path in self._fs.find(self._place(key)):
                with suppress(FileNotFoundError):  # another worker has removed it
                    if with_zone(self._fs.modified(path)) < moment:
                        self._fs.rm_file(path)

    def _place(self, key: str) -> str:
        assert ".." not in key.split("/"), key  # keys are ours: ids and fixed names
        return f"{self._root}/{key}"
