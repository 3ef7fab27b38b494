"""Bundle folders, kept by digest in any fsspec store."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import fsspec

from adapters.bundle import MANIFEST_FILE
from adapters.errors import NotFound


class BlobStore:
    """Pushes and fetches bundles. A digest's bytes never change, so whatever is there is right.

    Args:
        url: an fsspec URL or a plain folder.
        cache: folder for bundles of a remote store; not used for a local one.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self._fs, self._root = fsspec.url_to_fs(url)
        self._cache = cache
        self._is_local = "file" in self._fs.protocol

    def push(self, folder: Path, digest: str) -> None:
        """Store a bundle's files; the manifest goes last, so a half-pushed bundle is never taken for whole."""
        target = self._folder(digest)
        if self._fs.exists(f"{target}/{MANIFEST_FILE}"):
            return
        self._fs.makedirs(target, exist_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST_FILE):
            self._put(path, f"{target}/{path.name}")

    def fetch(self, digest: str) -> Path:
        """Return a local folder with the bundle of a digest.

        Raises:
            NotFound: the store has no such bundle.
        """
        source = self._folder(digest)
        if self._is_local:
            if not (Path(source) / MANIFEST_FILE).is_file():
                raise _lost(digest)
            return Path(source)
        return self._download(source, digest)

    def _folder(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"

    def _put(self, path: Path, target: str) -> None:
        if not self._is_local:
            self._fs.put_file(str(path), target)
            return
        # Written beside and renamed, so that a reader never sees half a file.
        part = Path(f"{target}.part")
        shutil.copyfile(path, part)
        part.replace(target)

    def _download(self, source: str, digest: str) -> Path:
        target = self._cache / digest
        if target.is_dir():
            return target
        if not self._fs.exists(f"{source}/{MANIFEST_FILE}"):
            raise _lost(digest)
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache) as scratch:
            made = Path(scratch) / digest
            made.mkdir()
            for remote in self._fs.ls(source, detail=False):
                self._fs.get_file(remote, str(made / Path(remote).name))
            try:
                made.rename(target)
            except OSError:
                if not target.is_dir():  # another loader was faster; its folder is whole
                    raise
        return target


def _lost(digest: str) -> NotFound:
    return NotFound(
        f"The blob store has no bundle '{digest[:12]}…'. Create the version again from its folder."
    )
