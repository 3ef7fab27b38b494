"""Backbones in int8 and nf4: equal to stock peft on their dequantised weights, and the same answer in any company."""

import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from adapters.backbone import adaptable_modules, load_backbone
from adapters.errors import EnvironmentProblem, UnsupportedBackbone
from adapters.runtime.engine import Engine
from adapters.runtime.linears import FusedLinear, weight_of
from adapters.runtime.pack import pack_rows
from adapters.runtime.quantized import QuantizedLinear, load_bitsandbytes, quantized_linear
from tests.bundles import answerer, classifier, save_bundle, summarizer
from tests.rows import assert_same, rows_of

pytest.importorskip("bitsandbytes", reason="bitsandbytes can't be imported here")
KINDS = ["int8", "nf4"]
# QLoRA (arXiv 2305.14314), appendix E.
NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0]
)  # fmt: skip


def dequantize(layer: QuantizedLinear) -> torch.Tensor:
    """Read a layer's stored integers by hand, without bitsandbytes and without the layer's own code."""
    if layer.qweight.dim() == 2 and layer.qweight.shape[1] == layer.in_features:
        return layer.qweight.double() * layer.scale.double()[:, None]
    packed = layer.qweight.flatten().to(torch.int64) % 256
    values = NF4.double()[torch.stack([packed // 16, packed % 16], dim=1).flatten()]
    scales = layer.scale.double().repeat_interleave(64)[: len(values)]
    return (values * scales).reshape(layer.out_features, layer.in_features)


def stock_on(spec, quantized):
    """Return transformers' own model with a quantised backbone's weights, in fp32."""
    kind = AutoModelForCausalLM if spec.family == "decoder" else AutoModel
    stock = kind.from_pretrained(spec.folder, dtype=torch.float32)
    for path, layer in adaptable_modules(quantized.model).items():
        stock.get_submodule(path).weight.data.copy_(dequantize(layer))
    return stock.eval()


@pytest.fixture(autouse=True)
def computes_in_fp32(monkeypatch):
    """What ``auto`` finds faster differs between machines; the tolerance rule is about fp32."""
    monkeypatch.setattr("adapters.dtype._measure", lambda device: "float32")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, decoder_spec, encoder_spec):
    """Bundles trained on the unquantised backbones."""
    root = tmp_path_factory.mktemp("quantized")
    made = {
        "two": (classifier(2), {"rank": 4}),
        "many": (classifier(77), {"rank": 8, "target_modules": ["q_proj", "v_proj"]}),
        "spans": (answerer(), {"rank": 16, "last_layers": 1}),
        "summary": (summarizer(), {"rank": 3}),
    }
    for seed, (name, (task, lora)) in enumerate(made.items()):
        save_bundle(root / name, decoder_spec, task, seed=seed, **lora)
    save_bundle(root / "encoded", encoder_spec, classifier(3), seed=9, rank=5)
    return root


@pytest.fixture(params=["torch", "kernels", "fused"])
def runs(request, bundles):
    """How an engine can be run; called with a spec and a quantisation."""
    engines = []

    def start(spec, kind):
        backbone = load_backbone(spec, kind, fuse=request.param == "fused")
        engines.append(
            Engine(backbone, lambda name: bundles / name, use_kernels=request.param != "torch")
        )
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_decoder_equal_stock_peft_on_the_dequantised_weights(
    runs, bundles, decoder_spec, decoder_tokenizer, kind
):
    engine = runs(decoder_spec, kind)
    results = engine.run(rows := rows_of(decoder_tokenizer, ["two", "many", None, "two", "spans"]))
    stock = stock_on(decoder_spec, load_backbone(decoder_spec, kind))
    model = PeftModel.from_pretrained(stock, bundles / "two").eval()
    head = load_file(bundles / "two" / "head.safetensors")
    for row, result in zip(rows, results, strict=True):
        if row.adapter == "two":
            with torch.no_grad():
                out = model(torch.tensor([list(row.token_ids)]), output_hidden_states=True)
            expected = out.hidden_states[-1][0, -1] @ head["weight"].T + head["bias"]
            actual = torch.from_numpy(result.output.logits)
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_an_encoder_equal_stock_peft_on_the_dequantised_weights(
    runs, bundles, encoder_spec, encoder_tokenizer, kind
):
    rows = rows_of(encoder_tokenizer, ["encoded"] * 4)
    results = runs(encoder_spec, kind).run(rows)
    stock = stock_on(encoder_spec, load_backbone(encoder_spec, kind))
    model = PeftModel.from_pretrained(stock, bundles / "encoded").eval()
    head = load_file(bundles / "encoded" / "head.safetensors")
    for row, result in zip(rows, results, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([list(row.token_ids)])).last_hidden_state[0]
        expected = hidden.mean(0) @ head["weight"].T + head["bias"]
        actual = torch.from_numpy(result.output.logits)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_an_adapter_generate_what_stock_transformers_does_on_the_dequantised_weights(
    runs, decoder_spec, decoder_tokenizer, kind
):
    rows = rows_of(decoder_tokenizer, [None, "two", None, "summary"])
    results = runs(decoder_spec, kind).run(rows)
    stock = stock_on(decoder_spec, load_backbone(decoder_spec, kind))
    for row, result in zip(rows, results, strict=True):
        if row.adapter is None:
            ids = list(row.token_ids)
            for token in result.output.token_ids:
                with torch.no_grad():
                    assert int(stock(torch.tensor([ids])).logits[0, -1].argmax()) == token
                ids.append(token)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_equals_each_row_alone(runs, decoder_spec, decoder_tokenizer, kind):
    engine = runs(decoder_spec, kind)
    rows = rows_of(decoder_tokenizer, ["two", None, "many", "summary", "spans", "two", None])
    engine.run(rows)
    for row, result in zip(rows, engine.run(rows), strict=True):
        assert_same(result, engine.run([row])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_outlier_in_one_row_changes_no_other_row(kind):
    """LLM.int8() sets aside the columns in which any row of the batch has one."""
    torch.manual_seed(0)
    layer = quantized_linear(torch.randn(64, 128) / 10, None, kind)
    x = torch.randn(8, 128)
    alone = layer(x[:1])
    x[5, ::3] = 60.0
    torch.testing.assert_close(layer(x)[:1], alone, atol=1e-6, rtol=1e-6)


def test_bitsandbytes_own_layer_with_outlier_columns_depends_on_the_batch():
    """Why it is not used; if this fails one day, think again."""
    bitsandbytes = load_bitsandbytes()
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bitsandbytes.nn.Int8Params(torch.randn(64, 128) / 10, requires_grad=False).to(
        "cpu"
    )
    layer.eval()
    x = torch.randn(8, 128)
    alone = layer(x[:1]).clone()
    x[5, ::3] = 60.0
    assert (layer(x)[:1] - alone).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.01), ("nf4", 0.12)])
def test_weights_are_near_those_they_were_made_from(decoder_spec, kind, bound):
    sources = adaptable_modules(load_backbone(decoder_spec, "float32").model)
    for path, layer in adaptable_modules(load_backbone(decoder_spec, kind).model).items():
        source, found = weight_of(sources[path]), dequantize(layer).float()
        assert (found - source).norm() < bound * source.norm()
        torch.testing.assert_close(layer.dequantized(torch.float32), found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fuse", [False, True])
def test_only_layers_that_adapters_target_are_quantised(
    decoder_spec, encoder_spec, decoder_tokenizer, kind, fuse
):
    for spec, num in ((decoder_spec, 14), (encoder_spec, 12)):
        backbone = load_backbone(spec, kind, fuse=fuse)
        layers = [m for m in backbone.model.modules() if isinstance(m, QuantizedLinear)]
        assert len(layers) == len(spec.modules) == num
        assert backbone.quantization == kind
        assert backbone.dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in backbone.model.parameters())
    head = load_backbone(decoder_spec, kind, fuse=fuse)._language_head
    assert isinstance(head, FusedLinear if fuse else torch.nn.Linear)


@pytest.mark.parametrize("measured", ["float32", "bfloat16"])
def test_the_rest_is_in_the_dtype_that_auto_chooses(decoder_spec, monkeypatch, measured):
    monkeypatch.setattr("adapters.dtype._measure", lambda device: measured)
    backbone = load_backbone(decoder_spec, "nf4", fuse=True)
    assert backbone.dtype == getattr(torch, measured)
    hidden = backbone.hidden_states(torch.arange(5, 9), pack_rows([4]))
    assert hidden.dtype == backbone.dtype
    assert backbone.next_token_logits(hidden).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_low_rank_weights_of_a_resident_adapter_are_floats(
    runs, decoder_spec, decoder_tokenizer, kind
):
    engine = runs(decoder_spec, kind)
    engine.run(rows_of(decoder_tokenizer, ["two"]))
    weights = engine._bank._residents["two"].weights
    tensors = [*weights.head.parameters(), *(x for pair in weights.modules.values() for x in pair)]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.parametrize(("kind", "most"), [("int8", 1.15), ("nf4", 0.6)])
def test_the_layers_take_the_bytes_that_their_bits_say(decoder_spec, kind, most):
    backbone = load_backbone(decoder_spec, kind)
    layers = adaptable_modules(backbone.model).values()
    taken = sum(b.numel() * b.element_size() for layer in layers for b in layer.buffers())
    assert taken <= most * sum(i * o for i, o in decoder_spec.modules.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [48, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_the_dequantised_weights(kind, dtype, inputs):
    """Of 4-bit blocks, which have 64 weights, some straddle two rows, or none does."""
    torch.manual_seed(0)
    bias = torch.nn.Parameter(torch.randn(48).to(dtype), requires_grad=False)
    layer = quantized_linear(torch.randn(48, inputs), bias, kind)
    x = torch.randn(5, inputs).to(dtype).requires_grad_()
    expected = torch.nn.functional.linear(x, dequantize(layer).to(dtype), bias)
    tolerance = (
        {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.5, "rtol": 0.05}
    )
    torch.testing.assert_close(layer(x), expected, **tolerance)
    weights = torch.randn(5, 48).to(dtype)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), x)
    (found,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    torch.testing.assert_close(found, wanted, **tolerance)


def test_in_8_bits_a_row_of_zeros_stays_zero_and_fp16_does_not_overflow():
    weight = torch.randn(4, 512) * 5
    weight[2] = 0
    layer = quantized_linear(weight, None, "int8")
    out = layer(torch.full((1, 512), 3.0, dtype=torch.float16))
    assert out[0, 2] == 0
    torch.testing.assert_close(
        out[0].float(), 3 * layer.dequantized(torch.float32).sum(1), atol=2, rtol=0.02
    )


def test_weights_that_are_integers_already_are_refused():
    with pytest.raises(UnsupportedBackbone, match="uint8"):
        quantized_linear(torch.zeros(4, 4, dtype=torch.uint8), None, "nf4")


def test_without_bitsandbytes_the_error_says_how_to_get_it(decoder_spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    load_bitsandbytes.cache_clear()
    with pytest.raises(EnvironmentProblem, match="pip install bitsandbytes"):
        load_backbone(decoder_spec, "nf4")
