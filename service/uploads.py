"""A bundle sent as a tar stream: bounded, flat, plain files with known names, or refused."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

from adapters.bundle import ALLOWED_FILES, check_file_name
from adapters.errors import InvalidBundle, TooLarge


async def receive(chunks: AsyncIterator[bytes], target: Path, max_bytes: int) -> None:
    """Write a request's body to a file.

    Raises:
        TooLarge: the body goes beyond ``max_bytes``; what was written is the caller's to remove.
    """
    size = 0
    with target.open("wb") as file:
        async for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                raise TooLarge(
                    f"The bundle is larger than '{max_bytes}' bytes, the most that is taken. Lower the "
                    "rank, or raise HEADSTOCK_MAX_BUNDLE_BYTES on the server."
                )
            file.write(chunk)


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpack a bundle's tar file into an empty folder.

    Raises:
        InvalidBundle: it is no tar file, or holds anything but a bundle's own plain files.
        TooLarge: its files are larger than ``max_bytes`` in all.
    """
    try:
        with tarfile.open(archive, "r:") as tar:  # plain: a compressed one could be a bomb
            size = 0
            for count, member in enumerate(tar, start=1):
                if member.isdir() and PurePosixPath(member.name) == PurePosixPath("."):
                    continue
                _check_member(member, count)
                size += member.size
                if size > max_bytes:
                    raise TooLarge(
                        f"The bundle's files are larger than '{max_bytes}' bytes in all."
                    )
                _extract(tar, member, folder)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise InvalidBundle(
            f"The body is not a whole tar file ({error}). Send one made with "
            "'tar -C BUNDLE -cf - .', as application/x-tar."
        ) from error


def _check_member(member: tarfile.TarInfo, count: int) -> None:
    path = PurePosixPath(member.name)
    is_plain = member.isfile() and member.size >= 0
    if not is_plain or len(path.parts) != 1 or count > len(ALLOWED_FILES) + 1:
        raise InvalidBundle(
            f"The tar file holds '{member.name[:100]}'; it may hold only a bundle's plain files, "
            "without folders."
        )
    check_file_name(path.name)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    target = folder / PurePosixPath(member.name).name
    if target.exists():
        raise InvalidBundle(f"The tar file holds '{target.name}' twice. Send each file once.")
    source = tar.extractfile(member)
    assert source is not None
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file)
