"""Safetensors without torch, held against safetensors' own torch writer and torch's own values."""

import json
import math
import struct
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import InvalidBundle
from adapters.tensors import (
    RawTensor,
    canonical_digest,
    file_digest,
    read_tensors,
    tensor_digests,
)

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FINITE_EXTREMES = [0.0, -0.0, "smallest_normal", "tiny", "max", "min", "eps"]


def saved(folder, **tensors):
    path = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def as_torch(raw: RawTensor) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(raw.data + b"\0" * 4), dtype=DTYPES[raw.dtype])
    return flat[: math.prod(raw.shape)].reshape(raw.shape)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 1, 3)])
def test_a_tensor_is_read_as_torch_wrote_it(tmp_path, name, shape):
    torch.manual_seed(0)
    tensor = torch.randn(shape).to(DTYPES[name])
    raw = read_tensors(saved(tmp_path, x=tensor))["x"]
    assert (raw.dtype, raw.shape) == (name, tuple(shape))
    torch.testing.assert_close(as_torch(raw), tensor, rtol=0, atol=0)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_no_number_makes_a_tensor_not_finite(tmp_path, name, bad):
    tensor = torch.ones(1000, dtype=DTYPES[name])
    tensor[777] = bad
    assert not read_tensors(saved(tmp_path, x=tensor))["x"].is_finite()


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("value", FINITE_EXTREMES)
def test_the_extremes_of_each_format_are_finite(tmp_path, name, value):
    number = getattr(torch.finfo(DTYPES[name]), value) if isinstance(value, str) else value
    tensor = torch.full((3,), number, dtype=DTYPES[name])
    assert read_tensors(saved(tmp_path, x=tensor))["x"].is_finite()


@pytest.mark.parametrize(
    ("name", "low"), [("F32", b"\0\0"), ("F32", b"\1\0"), ("F16", b""), ("BF16", b"")]
)
def test_finite_is_what_torch_calls_finite_for_every_upper_half(name, low):
    values = [low + struct.pack("<H", bits) for bits in range(2**16)]
    expected = torch.isfinite(as_torch(RawTensor(name, (2**16,), b"".join(values)))).tolist()
    assert [RawTensor(name, (1,), value).is_finite() for value in values] == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.int8, torch.bool])
def test_a_tensor_that_is_no_16_or_32_bit_float_is_refused_by_name(tmp_path, dtype):
    path = saved(tmp_path, counts=torch.ones(2).to(dtype))
    with pytest.raises(InvalidBundle, match=r"'counts' of 'weights.safetensors' has dtype"):
        read_tensors(path)


def damaged():
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    good = struct.pack("<Q", len(header)) + header + bytes(16)
    return {
        "empty": b"",
        "cut": good[:-1],
        "too much": good + b"\0",
        "pickle": b"\x80\x04\x95cos\nsystem\n",
        "zip": b"PK\x03\x04" + bytes(60),
        "huge header": struct.pack("<Q", 2**63) + b"{}",
        "no json": struct.pack("<Q", 4) + b"nope",
        "wrong shape": good.replace(b"[4]", b"[5]"),
    }


@pytest.mark.parametrize("kind", damaged())
def test_a_damaged_file_is_refused_with_the_way_to_save_it(tmp_path, kind):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(damaged()[kind])
    with pytest.raises(InvalidBundle, match="is not a safetensors file"):
        read_tensors(path)


def test_a_digest_changes_with_value_shape_and_dtype_but_not_with_name():
    data = torch.arange(4, dtype=torch.float32).numpy().tobytes()
    same = [RawTensor("F32", (4,), data), RawTensor("F32", (4,), bytes(data))]
    others = [
        RawTensor("F32", (2, 2), data),
        RawTensor("F32", (4,), data[::-1]),
        RawTensor("F16", (8,), data),
        RawTensor("BF16", (8,), data),
    ]
    assert same[0].digest() == same[1].digest()
    assert len({tensor.digest() for tensor in [same[0], *others]}) == 5
    assert [name for name, _ in tensor_digests({"b": same[0], "a": same[1]})] == ["a", "b"]


def test_digests_are_plain_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    number = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert (file_digest(tmp_path / "f"), canonical_digest(1)) == (abc, number)
    assert canonical_digest({"b": 1, "a": "é"}) == canonical_digest({"a": "é", "b": 1})


def test_a_file_of_very_many_tensors_is_refused_before_they_are_listed(tmp_path):
    path = tmp_path / "weights.safetensors"
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(entry % i for i in range(150_000)) + b"}"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidBundle, match="list of tensors"):
            read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(header)
    finally:
        tracemalloc.stop()
    path.write_bytes(struct.pack("<Q", 2**60) + header)
    with pytest.raises(InvalidBundle, match="not a safetensors file"):
        read_tensors(path)


def test_a_file_is_never_in_memory_more_than_twice(tmp_path):
    path = saved(tmp_path, x=torch.zeros(2**20), y=torch.ones(2**20))
    tracemalloc.start()
    try:
        tensors = read_tensors(path)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {name: len(raw.data) for name, raw in tensors.items()} == {"x": 2**22, "y": 2**22}
    assert kept < 1.1 * 2**23
    assert most < 2.1 * 2**23
