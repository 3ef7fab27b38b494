"""Bundles that a server fetches by itself, from under the URLs it was told to trust."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from adapters.bundle import ALLOWED_FILES
from adapters.errors import EnvironmentProblem, InvalidRequest, NotFound, TooLarge
from adapters.storage import telling_store

_READ_BYTES = 2**20
_LOGIN = re.compile(r"://.*@")


def fetch_source(url: str, trusted: Sequence[str], folder: Path, max_bytes: int) -> None:
    """Copy the files of a bundle, or of a stock PEFT folder, from a URL into an empty folder.

    Files that do not belong in a bundle are left where they are: such folders often hold a tokenizer too.

    Args:
        url: a folder, as an fsspec URL or a path.
        trusted: URLs under which it must lie.

    Raises:
        InvalidRequest: it does not lie under a trusted one, links included.
        NotFound: nothing is there.
        TooLarge: the files are larger than ``max_bytes`` in all.
        Unavailable: what is to be asked there does not answer, or refuses.
        EnvironmentProblem: what such a URL needs is not installed.
    """
    with telling_store(url):
        fs, root = _open_trusted(url, trusted)
        sizes = _sizes(fs, root, url)
    names = sorted(ALLOWED_FILES & set(sizes))
    if not names:
        raise NotFound(
            f"Folder '{url}' holds none of a bundle's files. Name the folder that holds "
            "adapter_config.json.",
            param="url",
        )
    left = max_bytes
    for name in names:
        with telling_store(url):
            source = fs.open(f"{root}/{name}", "rb")
        with source, (folder / name).open("xb") as target:
            left = _copy(source, target, left, max_bytes, url)


def _sizes(fs: Any, root: str, url: str) -> dict[str, int]:
    """Return the bytes of a folder's plain files, by name; 0 if it does not tell."""
    try:
        return {
            PurePosixPath(entry["name"]).name: entry["size"] or 0
            for entry in fs.ls(root, detail=True)
            if entry["type"] == "file" and not entry.get("islink")
        }
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"There is no folder '{url}'. Check the path.", param="url") from error


def _file_system(url: str) -> tuple[Any, str]:
    try:
        return fsspec.url_to_fs(url)
    except ImportError as error:
        raise EnvironmentProblem(
            f"'{url[:200]}' can't be fetched by this server: {error}. Install 'headstock[cluster]' there, which has "
            "what https:// and s3:// need."
        ) from error


def _open_trusted(url: str, trusted: Sequence[str]) -> tuple[Any, str]:
    """Return the file system and path of a URL that lies under a trusted one."""
    if not trusted:
        raise InvalidRequest(
            f"'{url[:200]}' is not fetched: this server trusts no URLs. Send the bundle in the body, or name "
            "what to trust in HEADSTOCK_BUNDLE_URLS.",
            param="url",
        )
    for prefix in trusted:
        if _is_under(url, prefix):
            fs, root = _file_system(url)
            if "file" not in fs.protocol or _lies_in(Path(root), Path(_path_of(prefix))):
                return fs, str(root).rstrip("/")
    told = ", ".join(_LOGIN.sub("://", each) for each in trusted)
    raise InvalidRequest(
        f"'{url[:200]}' does not lie under a URL that this server trusts: {told}.",
        param="url",
    )


def _is_under(url: str, prefix: str) -> bool:
    rest = url.removeprefix(prefix.rstrip("/") + "/")
    parts = rest.split("/")
    # "::" chains file systems in fsspec; a query or an escape may mean another path than it seems to.
    # And what can't be seen is left out by clients of HTTP, which may leave two dots side by side.
    is_plain = rest.isprintable() and not any(
        mark in rest for mark in ("::", "?", "#", "%", "\\", "\0")
    )
    return rest != url and is_plain and not any(part in ("..", ".") for part in parts)


def _path_of(prefix: str) -> str:
    return str(fsspec.url_to_fs(prefix)[1])


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _copy(source: Any, target: Any, left: int, max_bytes: int, url: str) -> int:
    """Copy a file, and return how many bytes may still come."""
    while True:
        with telling_store(url):
            chunk = source.read(_READ_BYTES)
        if not chunk:
            return left
        left -= len(chunk)
        if left < 0:
            raise TooLarge(f"The bundle's files are larger than '{max_bytes}' bytes in all.")
        target.write(chunk)
