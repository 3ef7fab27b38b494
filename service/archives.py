"""A bundle in a tar or zip file: bounded, flat, plain files with known names, or refused."""

from __future__ import annotations

import io
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from adapters.bundle import ALLOWED_FILES, check_file_name
from adapters.errors import InvalidBundle, TooLarge

_ZIP_START = b"PK\x03\x04"
# The end of a zip file without a comment: signature, disks, counts, then size and offset of its directory.
_ZIP_END = struct.Struct("<4s4H2LH")
_MOST_DIRECTORY = 64 * 2**10  # bytes: zipfile reads all of it, whatever the number of files
_READ_BYTES = 2**20
_MOST_AT_ONCE = 256 * 2**10  # bytes of a tar file


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpack a bundle's tar or zip file into an empty folder.

    Raises:
        InvalidBundle: it is neither, or holds anything but a bundle's own plain files.
        TooLarge: its files are larger than ``max_bytes`` in all.
    """
    with archive.open("rb") as file:
        is_zip = file.read(len(_ZIP_START)) == _ZIP_START
    if is_zip:
        _unpack_zip(archive, folder, max_bytes)
    else:
        _unpack_tar(archive, folder, max_bytes)


class _Bounded(io.FileIO):
    """A file of which little is read at once: tarfile reads a header of any length as a whole, three times over."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MOST_AT_ONCE:
            raise tarfile.ReadError(f"a header of '{size}' bytes")
        return super().read(size)


def _unpack_tar(archive: Path, folder: Path, max_bytes: int) -> None:
    try:
        # Plain: a compressed one could be a bomb.
        with _Bounded(archive, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size = 0
            for count, member in enumerate(tar, start=1):
                if member.isdir() and PurePosixPath(member.name) == PurePosixPath("."):
                    continue
                _check_member(member.name, count, is_plain=member.isfile() and member.size >= 0)
                size += member.size
                if size > max_bytes:
                    raise _too_large(max_bytes)
                _extract(tar, member, folder)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise InvalidBundle(
            f"The body is not a whole tar file ({error}). Send one made with "
            "'tar -C BUNDLE -cf - .', or a zip file."
        ) from error


def _check_member(name: str, count: int, *, is_plain: bool) -> None:
    path = PurePosixPath(name)
    if not is_plain or len(path.parts) != 1 or count > len(ALLOWED_FILES) + 1:
        raise InvalidBundle(
            f"The archive holds '{name[:100]}'; it may hold only a bundle's plain files, "
            "without folders."
        )
    check_file_name(path.name)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    target = _target(folder, member.name)
    source = tar.extractfile(member)
    assert source is not None
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file, _MOST_AT_ONCE)


def _unpack_zip(archive: Path, folder: Path, max_bytes: int) -> None:
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as file:
            left = max_bytes
            for count, member in enumerate(file.infolist(), start=1):
                # Who writes no kind, only permissions, means a plain file.
                kind = stat.S_IFMT(member.external_attr >> 16)
                is_plain = not member.is_dir() and kind in (0, stat.S_IFREG)
                is_plain = is_plain and not member.flag_bits & 1  # 1: encrypted
                _check_member(member.filename, count, is_plain=is_plain)
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise zipfile.BadZipFile("a file is neither stored nor deflated")
                left = _extract_zipped(file, member, folder, left)
                if left < 0:
                    raise _too_large(max_bytes)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError) as error:
        raise InvalidBundle(
            f"The body is not a whole zip file ({error}). Send the bundle's files, stored or deflated, without "
            "folders; or a tar file."
        ) from error


def _check_directory(archive: Path) -> None:
    """Refuse a zip file whose directory would take much memory to read: a bundle has five files."""
    with archive.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _ZIP_END.size))
        end = file.read()
    if len(end) < _ZIP_END.size or end[:4] != b"PK\x05\x06":
        raise zipfile.BadZipFile("its end is missing, or a comment follows it")
    *_, num_files, directory_size, offset, _ = _ZIP_END.unpack(end)
    # Full fields send the reader to the 64-bit form, and a gap to whatever lies in it.
    if num_files > len(ALLOWED_FILES) or directory_size > _MOST_DIRECTORY:
        raise zipfile.BadZipFile(f"it lists '{num_files}' files; a bundle has {len(ALLOWED_FILES)}")
    if offset + directory_size + _ZIP_END.size != size:
        raise zipfile.BadZipFile("its parts do not follow one another")


def _extract_zipped(file: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, most: int) -> int:
    """Write a file, and return how many bytes of ``most`` are left: below 0 if it holds more, whatever it declares."""
    with file.open(member) as source, _target(folder, member.filename).open("xb") as target:
        while chunk := source.read(_READ_BYTES):
            most -= len(chunk)
            if most < 0:
                break
            target.write(chunk)
    return most


def _target(folder: Path, name: str) -> Path:
    target = folder / PurePosixPath(name).name
    if target.exists():
        raise InvalidBundle(f"The archive holds '{target.name}' twice. Send each file once.")
    return target


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The bundle's files are larger than '{max_bytes}' bytes in all.")
