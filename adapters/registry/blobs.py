"""Bundle folders, kept by digest in any fsspec store."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import fsspec

from adapters.bundle import MANIFEST_FILE
from adapters.errors import EnvironmentProblem, NotFound
from adapters.registry.cache import BundleCache, rename_whole
from adapters.storage import is_full, telling_store, with_zone

_DIGEST = re.compile("[0-9a-f]{64}")
_SCRATCH = ".push-"


class BlobStore:
    """Pushes and fetches bundles. A digest's bytes never change, so whatever is there is right.

    Args:
        url: an fsspec URL or a plain folder.
        cache: folder for bundles of a remote store; not used for a local one.
        cache_bytes: how much it holds, about; bundles that were not asked for the longest go first. No bound if None.

    Raises:
        EnvironmentProblem: there is no such store.
    """

    def __init__(self, url: str, cache: Path, cache_bytes: int | None = None) -> None:
        try:
            # Without a cache of listings: others store bundles too.
            self._fs, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise EnvironmentProblem(
                f"The blob store '{url}' can't be opened: {error}. Install 'headstock[cluster]' for s3://, or set "
                "HEADSTOCK_BLOB_URL to a store that fsspec knows."
            ) from error
        self._cache = BundleCache(cache, cache_bytes)
        self._is_local = "file" in self._fs.protocol

    def push(self, folder: Path, digest: str) -> None:
        """Store a bundle's files, all or none as far as a reader can see.

        Raises:
            StorageFull, Unavailable: the store can't be used.
        """
        target = self._folder(digest)
        with telling_store(self._root):
            if self._fs.exists(f"{target}/{MANIFEST_FILE}"):
                return
            if self._is_local:
                _copy_folder(folder, Path(target))
                return
            self._fs.makedirs(target, exist_ok=True)
            # The manifest goes last: without it, a half-pushed bundle is not taken for a whole one.
            for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST_FILE):
                self._fs.put_file(str(path), f"{target}/{path.name}")

    def fetch(self, digest: str) -> Path:
        """Return a local folder with the bundle of a digest.

        Raises:
            NotFound: the store has no such bundle.
            StorageFull, Unavailable: the store, or the cache, can't be used.
        """
        source = self._folder(digest)
        if self._is_local:
            if not (Path(source) / MANIFEST_FILE).is_file():
                raise _lost(digest)
            return Path(source)
        with telling_store(self._root):
            return self._download(source, digest)

    def stored_before(self, moment: datetime) -> list[str]:
        """Return the digests whose bytes, whole or not, were stored before a moment."""
        newest: dict[str, datetime] = {}
        # Of a folder, too: one that was emptied and not removed is found by itself.
        for path in self._fs.find(self._root, withdirs=self._is_local):
            found = [part for part in PurePosixPath(path).parts[-2:] if _DIGEST.fullmatch(part)]
            with suppress(FileNotFoundError):  # somebody else has removed it
                for digest in found:
                    when = with_zone(self._fs.modified(path))
                    newest[digest] = max(when, newest.get(digest, when))
        return sorted(digest for digest, when in newest.items() if when < moment)

    def remove_leftovers(self, moment: datetime) -> None:
        """Remove what pushes that were killed before a moment left half copied."""
        if self._is_local:
            for folder in Path(self._root).glob(f"??/{_SCRATCH}*"):
                with suppress(FileNotFoundError):  # its push has ended
                    if datetime.fromtimestamp(folder.stat().st_mtime, UTC) < moment:
                        shutil.rmtree(folder, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """Remove a digest's bytes, from here and from the cache; nothing happens if they are not there."""
        folder = self._folder(digest)
        # The manifest goes first: without it, what is left is not taken for a whole bundle.
        for path in (f"{folder}/{MANIFEST_FILE}", folder):
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)
        self._cache.remove(digest)

    def _folder(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"

    def _download(self, source: str, digest: str) -> Path:
        cached = self._cache.find(digest)
        if cached is not None:
            return cached
        if not self._fs.exists(f"{source}/{MANIFEST_FILE}"):
            raise _lost(digest)
        try:
            self._copy_here(source, digest)
        except Exception as error:
            if not is_full(error):
                raise
            self._cache.make_room()
            self._copy_here(source, digest)
        return self._cache.folder(digest)

    def _copy_here(self, source: str, digest: str) -> None:
        with self._cache.adding(digest) as made:
            for remote in self._fs.ls(source, detail=False):
                self._fs.get_file(remote, str(made / Path(remote).name))


def _copy_folder(folder: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_SCRATCH) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for path in folder.iterdir():
            shutil.copyfile(path, made / path.name)
        rename_whole(made, target)
        if not (target / MANIFEST_FILE).is_file():  # it is what a removal left that was killed
            with suppress(FileNotFoundError):
                target.rename(Path(scratch) / "left")
            rename_whole(made, target)


def _lost(digest: str) -> NotFound:
    return NotFound(
        f"The blob store has no bundle '{digest[:12]}…'. Create the version again from its folder."
    )
