"""Uploads: a bundle's plain files come through as they are; anything else is refused."""

import asyncio
import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import tracemalloc
import warnings
import zipfile

import pytest
from starlette.datastructures import Headers

from adapters.errors import InvalidBundle, InvalidRequest, TooLarge
from service.archives import unpack
from service.uploads import receive

FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": bytes(range(256)) * 40,
    "head.safetensors": b"",
    "manifest.json": b'{"a": 1}',
    "README.md": "# é".encode(),
}
LIMIT = 100_000


def member(name, kind=tarfile.REGTYPE, link="", pax=None):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, pax or {}
    return info


def tar(*members, form=tarfile.PAX_FORMAT):
    """Return a tar of (TarInfo, bytes) pairs or (name, bytes) pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for info, data in members:
            info = member(info) if isinstance(info, str) else info
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def unpacked(tmp_path):
    def run(data, limit=LIMIT):
        archive, folder = tmp_path / "upload" / "bundle.tar", tmp_path / "upload" / "bundle"
        folder.mkdir(parents=True)
        archive.write_bytes(data)
        try:
            unpack(archive, folder, limit)
        finally:
            assert all(path.parent == folder for path in tmp_path.rglob("*.json"))
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    return run


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_bundles_files_come_through_unchanged(unpacked, form):
    assert unpacked(tar(*FILES.items(), form=form)) == FILES


def test_a_tar_of_the_folder_itself_comes_through(unpacked):
    here = (member(".", kind=tarfile.DIRTYPE), b"")
    assert unpacked(tar(here, *[(f"./{name}", data) for name, data in FILES.items()])) == FILES


def odd(kind, link="/etc/passwd", name="manifest.json"):
    return tar((member(name, kind=kind, link=link), b""))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tar(("../manifest.json", b"x")), "without folders"),
        (tar(("../../manifest.json", b"x")), "without folders"),
        (tar(("/tmp/manifest.json", b"x")), "without folders"),
        (tar(("sub/manifest.json", b"x")), "without folders"),
        (tar(("a/../manifest.json", b"x")), "without folders"),
        (tar(("..", b"x")), "does not belong"),
        (odd(tarfile.SYMTYPE), "plain files"),
        (odd(tarfile.SYMTYPE, link="README.md"), "plain files"),
        (odd(tarfile.LNKTYPE), "plain files"),
        (odd(tarfile.LNKTYPE, link="README.md"), "plain files"),
        (odd(tarfile.CHRTYPE), "plain files"),
        (odd(tarfile.FIFOTYPE), "plain files"),
        (odd(tarfile.DIRTYPE), "plain files"),
        (tar(("model.py", b"x")), "'model.py' does not belong in a bundle; allowed are"),
        (tar(("Manifest.json", b"x")), "does not belong"),
        (tar(("manifest.json\n", b"x")), "does not belong"),
        (tar(("pytorch_model.bin", b"x")), "Pickled weights are never read"),
        (tar(("adapter_model.pt", b"x")), "Pickled weights are never read"),
        (tar(("adapter_model.pkl", b"x")), "Pickled weights are never read"),
        (tar(("manifest.json", b"x"), ("./manifest.json", b"y")), "manifest.json"),
        (tar(("README.md", b"x"), ("x" * 5000, b"")), "belong"),
        (b"", "not a whole tar file"),
        (b"PK\x03\x04 a zip file" * 100, "not a whole zip file"),
        (b"\0" * 100, "not a whole tar file"),
        (tar(("manifest.json", b"x" * 3000))[:512], "not a whole tar file"),
        (tar(("manifest.json", b"x" * 3000))[:2000], "not a whole tar file"),
    ],
)
def test_anything_but_a_bundles_plain_files_is_refused(unpacked, data, said):
    with pytest.raises(InvalidBundle, match=said):
        unpacked(data)


def test_a_member_that_comes_twice_is_refused_without_the_servers_path(unpacked, tmp_path):
    with pytest.raises(InvalidBundle, match=r"manifest\.json") as caught:
        unpacked(tar(("manifest.json", b"x"), ("manifest.json", b"y")))
    assert str(tmp_path) not in caught.value.message


def test_the_size_limit_is_for_all_files_together(unpacked):
    files = [("manifest.json", bytes(600)), ("README.md", bytes(401))]
    with pytest.raises(TooLarge, match="larger than '1000' bytes in all"):
        unpacked(tar(*files), limit=1000)


def test_files_of_just_the_limit_are_taken(unpacked):
    files = {"manifest.json": bytes(600), "README.md": bytes(400)}
    assert unpacked(tar(*files.items()), limit=1000) == files


def test_compressed_files_count_with_their_full_size(unpacked):
    with pytest.raises((TooLarge, InvalidBundle)):
        unpacked(gzip.compress(tar(("README.md", bytes(10 * LIMIT)))))


def test_a_size_below_zero_is_refused(unpacked):
    first = (member("manifest.json", pax={"size": "-1024"}), b"")
    with pytest.raises(InvalidBundle):
        unpacked(tar(first, ("README.md", b"x")))


def test_a_compressed_header_cannot_take_more_memory_than_the_limit(unpacked):
    bomb = gzip.compress(tar((member("README.md", pax={"comment": "a" * 200 * LIMIT}), b"")))
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        with pytest.raises((TooLarge, InvalidBundle)):
            unpacked(bomb)
        assert tracemalloc.get_traced_memory()[1] < 20 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "compress",
    [
        pytest.param(gzip.compress),
        bz2.compress,
        pytest.param(lzma.compress),
    ],
)
def test_a_damaged_compressed_tar_is_refused(unpacked, compress):
    letters = bytes(random.Random(0).choices(b"abcdefgh", k=90_000))
    data = bytearray(compress(tar(("README.md", letters))))
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(byte ^ 0x5A for byte in data[middle : middle + 400])
    with pytest.raises(InvalidBundle, match="not a whole tar file"):
        unpacked(bytes(data))


def zipped(*files, kind=zipfile.ZIP_DEFLATED):
    """Return a zip of (name or ZipInfo, bytes) pairs."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that comes twice
        for name, data in files:
            # Of no date: each process that collects tests names them by these bytes.
            member = zipfile.ZipInfo(name) if isinstance(name, str) else name
            archive.writestr(member, data, kind)
    return file.getvalue()


def zip_member(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def lying_zip(declared):
    """Return a zip whose one file is larger than it says, in both places that say it."""
    data = zipped(("README.md", bytes(10 * LIMIT)))
    return data.replace(struct.pack("<L", 10 * LIMIT), struct.pack("<L", declared))


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_comes_through_unchanged(unpacked, kind):
    assert unpacked(zipped(*FILES.items(), kind=kind)) == FILES


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped(("../manifest.json", b"x")), "without folders"),
        (zipped(("/tmp/manifest.json", b"x")), "without folders"),
        (zipped(("a/manifest.json", b"x")), "without folders"),
        (zipped(("manifest.json/", b"")), "plain files"),
        (zipped((zip_member("manifest.json", 0o120777), b"/etc/passwd")), "plain files"),
        (zipped((zip_member("manifest.json", 0o010644), b"")), "plain files"),
        (zipped(("adapter_model.bin", b"x")), "Pickled weights are never read"),
        (zipped(("manifest.json", b"x"), ("manifest.json", b"y")), "twice"),
        (zipped(*[(f"{i}.json", b"") for i in range(10_000)]), "lists '10000' files"),
        (zipped(*[(f"{i}.json", b"") for i in range(70_000)]), "not a whole zip file"),
        (zipped(("README.md", b"x" * 500), kind=zipfile.ZIP_LZMA), "neither stored nor deflated"),
        (zipped(("README.md", b"abc"))[:40], "not a whole zip file"),
        (
            zipped(("README.md", b"abc"), kind=zipfile.ZIP_STORED).replace(b"abc", b"abd"),
            "not a whole zip file",
        ),
        (zipped(("README.md", b"abc"))[:-22] + b"x" * 22, "not a whole zip file"),
        (lying_zip(10), "not a whole zip file"),
    ],
)
def test_anything_but_a_bundles_plain_files_is_refused_in_a_zip(unpacked, data, said):
    with pytest.raises(InvalidBundle, match=said):
        unpacked(data)


def test_a_zip_bomb_is_refused_once_it_is_larger_than_the_limit(unpacked, tmp_path):
    bomb = zipped(("README.md", bytes(100 * LIMIT)))
    assert len(bomb) < LIMIT
    with pytest.raises(TooLarge, match="larger than '100000' bytes in all"):
        unpacked(bomb)
    written = sum(path.stat().st_size for path in (tmp_path / "upload" / "bundle").iterdir())
    assert written <= LIMIT


async def stream(*chunks):
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize("chunks", [[], [b"abc"], [b"ab", b"", b"cdef", b"ghij"]])
def test_a_body_is_written_as_it_came(tmp_path, chunks):
    asyncio.run(receive(Headers(), stream(*chunks), tmp_path / "body", 10))
    assert (tmp_path / "body").read_bytes() == b"".join(chunks)


def test_a_body_beyond_the_limit_is_refused_before_it_is_written(tmp_path):
    async def endless():
        while True:
            yield bytes(1000)

    with pytest.raises(TooLarge, match=r"larger than '2500' bytes.*HEADSTOCK_MAX_BUNDLE_BYTES"):
        asyncio.run(receive(Headers(), endless(), tmp_path / "body", 2500))
    assert (tmp_path / "body").stat().st_size <= 2500


def form(*parts):
    """Return headers and body of a form; a part is (name, file name or None, bytes)."""
    body = b""
    for name, file_name, data in parts:
        file = f'; filename="{file_name}"' if file_name else ""
        body += f'--X\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += data + b"\r\n"
    return Headers({"content-type": "multipart/form-data; boundary=X"}), body + b"--X--\r\n"


def test_the_file_of_a_form_is_written_and_its_fields_are_told(tmp_path):
    headers, body = form(("name", None, b"films"), ("file", "b.zip", b"data"), ("note", None, b"n"))
    pieces = [body[i : i + 7] for i in range(0, len(body), 7)]
    fields = asyncio.run(receive(headers, stream(*pieces), tmp_path / "body", 100))
    assert (tmp_path / "body").read_bytes() == b"data"
    assert fields == {"name": "films", "note": "n"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (form(("name", None, b"films")), "The form has no file"),
        (form(("file", "a", b""), ("file", "b", b"")), "Too many files"),
        (form(*[(f"f{i}", None, b"") for i in range(20)]), "Too many fields"),
        ((Headers({"content-type": "multipart/form-data"}), b"x"), "can't be read"),
        ((Headers({"content-type": "multipart/form-data; boundary=X"}), b"nothing"), "form"),
    ],
)
def test_a_form_without_just_one_file_is_refused(tmp_path, given, said):
    headers, body = given
    with pytest.raises(InvalidRequest, match=said):
        asyncio.run(receive(headers, stream(body), tmp_path / "body", 100))


def test_a_form_beyond_the_limit_is_refused(tmp_path):
    headers, body = form(("file", "a", bytes(200_000)))
    with pytest.raises(TooLarge, match="larger than"):
        asyncio.run(receive(headers, stream(body), tmp_path / "body", 1000))


def pax_header(size):
    """Return an extended header of a tar file, with a comment of about a size."""
    record = f"{size} comment=".encode()
    info = member("a", tarfile.XHDTYPE)
    info.size = size
    body = record + b"a" * (size - len(record) - 1) + b"\n"
    return info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(-(-size // 512) * 512, b"\0")


def test_a_header_of_a_tar_takes_no_more_memory_than_one_needs(unpacked):
    archive = pax_header(30_000_000) + tar(*FILES.items())
    tracemalloc.start()
    try:
        with pytest.raises(InvalidBundle, match="a header of '30000128' bytes"):
            unpacked(archive, 10**9)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_headers_that_follow_one_another_for_ever_are_refused(unpacked):
    with pytest.raises(InvalidBundle, match="not a whole tar"):
        unpacked(pax_header(30) * 2000 + tar(*FILES.items()))
