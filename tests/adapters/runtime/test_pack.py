"""Packed passes equal the stock model run on each row by itself, for every model type that is let in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from adapters.architectures import ARCHITECTURES
from adapters.backbone import describe_backbone, load_backbone
from adapters.runtime.pack import pack_rows
from tests.tiny import save_backbone


@pytest.mark.parametrize("model_type", [t for t, a in ARCHITECTURES.items() if a.is_packed])
def test_packed_rows_equal_the_stock_model_row_by_row(tmp_path, model_type):
    spec = describe_backbone(save_backbone(tmp_path / model_type, model_type, seed=1))
    backbone = load_backbone(spec, "float32")
    stock = AutoModel.from_pretrained(spec.folder, dtype=torch.float32).eval()
    lengths = [1, 2, 2, 3, 17, 18, 40, 41, 200]
    rows = [
        torch.randint(3, 300, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths
    ]
    with torch.no_grad():
        packed = backbone.hidden_states(torch.cat(rows), pack_rows(lengths))
        for row, hidden in zip(rows, packed.split(lengths), strict=True):
            expected = stock(row[None]).last_hidden_state[0]
            torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)


def test_a_row_does_not_see_its_neighbours(decoder_spec):
    backbone = load_backbone(decoder_spec, "float32")
    row = torch.arange(10, 22)
    with torch.no_grad():
        left, right = (
            backbone.hidden_states(torch.cat([torch.full((12,), token), row]), pack_rows([12, 12]))
            for token in (5, 200)
        )
    torch.testing.assert_close(left[12:], right[12:], atol=0, rtol=0)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=30).map(sorted))
@settings(max_examples=50, deadline=None)
def test_groups_cover_the_rows_in_order_and_pad_little(lengths):
    pack = pack_rows(lengths)
    assert [g.start for g in pack.groups] == [0, *[g.stop for g in pack.groups[:-1]]]
    assert pack.groups[-1].stop == pack.num_tokens == sum(lengths)
    assert sum(g.num_rows for g in pack.groups) == len(lengths)
    for group in pack.groups:
        if group.gather_BL is not None:
            real = group.stop - group.start
            assert len(group.keep_N) == real
            kept = group.gather_BL.flatten()[group.keep_N]
            assert torch.equal(kept, torch.arange(real))
            assert group.gather_BL.numel() <= max(16 * group.num_rows, 1.5 * real)


def test_rows_out_of_order_are_our_own_mistake():
    with pytest.raises(AssertionError):
        pack_rows([3, 2])
