"""Bundles of a remote store on this machine's disk: whole folders, as many as a bound allows, the latest asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SAFE_SECONDS = 60.0  # after which whoever asked for a bundle has read it
_LEFTOVER_SECONDS = 3600.0  # after which nobody downloads it any more
_SLACK = 16  # a look at the whole folder each time that a sixteenth of the bound is new, to make as much room


class BundleCache:
    """Folders by digest, shared by this machine's processes. A folder's time is when it was asked for last."""

    def __init__(self, root: Path, max_bytes: int | None) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._new_bytes = 0

    def folder(self, digest: str) -> Path:
        return self._root / digest

    def find(self, digest: str) -> Path | None:
        """Return a bundle's folder, None if it is not here."""
        folder = self.folder(digest)
        try:
            os.utime(folder)
        except FileNotFoundError:
            return None
        return folder

    @contextmanager
    def adding(self, digest: str) -> Iterator[Path]:
        """Give a folder to write a bundle's files to, which is here as a whole at the end, or not at all."""
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".") as scratch:
            made = Path(scratch) / digest
            made.mkdir()
            yield made
            self._new_bytes += _size(made)
            rename_whole(made, self.folder(digest))
        if self._max_bytes is not None and self._new_bytes * _SLACK > self._max_bytes:
            self._new_bytes = 0
            self._make_room(self._max_bytes - self._max_bytes // _SLACK)

    def remove(self, digest: str) -> None:
        """Remove a bundle; nothing happens if it is not here."""
        if self._root.is_dir():
            # Gone at once: a folder that is removed file by file would be taken for a whole one meanwhile.
            with tempfile.TemporaryDirectory(dir=self._root, prefix=".") as scratch:
                try:
                    self.folder(digest).rename(Path(scratch) / digest)
                except FileNotFoundError:
                    return

    def make_room(self) -> None:
        """Remove half of what is here, for a disk that is full before the bound is reached."""
        self._make_room(sum(size for _, size, _ in self._held()) // 2)

    def _make_room(self, max_bytes: int) -> None:
        self._remove_leftovers()
        found = self._held()
        left = sum(size for _, size, _ in found)
        for _, size, digest in found:
            if left <= max_bytes:
                return
            with suppress(FileNotFoundError):
                if time.time() - self.folder(digest).stat().st_mtime < _SAFE_SECONDS:
                    continue
            self.remove(digest)
            left -= size

    def _held(self) -> list[tuple[float, int, str]]:
        """Return each bundle's time, bytes and digest, those not asked for the longest first."""
        found = []
        for folder in self._root.iterdir():
            if not folder.name.startswith("."):
                with suppress(FileNotFoundError):  # another process or thread has removed it
                    found.append((folder.stat().st_mtime, _size(folder), folder.name))
        return sorted(found)

    def _remove_leftovers(self) -> None:
        """Remove what a process that was killed left half downloaded."""
        for folder in self._root.glob(".*"):
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > _LEFTOVER_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)


def rename_whole(made: Path, target: Path) -> None:
    """Put a folder into its place, unless another process was faster: its folder is whole, too."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
