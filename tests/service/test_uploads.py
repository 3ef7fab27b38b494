"""Uploads: a bundle's plain files come through as they are; anything else is refused."""

import asyncio
import bz2
import gzip
import io
import lzma
import random
import tarfile
import tracemalloc

import pytest

from adapters.errors import InvalidBundle, TooLarge
from service.uploads import receive, unpack

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
        (b"PK\x03\x04 a zip file" * 100, "not a whole tar file"),
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


async def stream(*chunks):
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize("chunks", [[], [b"abc"], [b"ab", b"", b"cdef", b"ghij"]])
def test_a_body_is_written_as_it_came(tmp_path, chunks):
    asyncio.run(receive(stream(*chunks), tmp_path / "body", 10))
    assert (tmp_path / "body").read_bytes() == b"".join(chunks)


def test_a_body_beyond_the_limit_is_refused_before_it_is_written(tmp_path):
    async def endless():
        while True:
            yield bytes(1000)

    with pytest.raises(TooLarge, match=r"larger than '2500' bytes.*HEADSTOCK_MAX_BUNDLE_BYTES"):
        asyncio.run(receive(endless(), tmp_path / "body", 2500))
    assert (tmp_path / "body").stat().st_size <= 2500
