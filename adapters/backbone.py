"""The frozen model that every adapter shares: what it is (`BackboneSpec`) and the loaded thing (`Backbone`).

The canonical form is the causal model for decoders, the plain encoder (no pooler) for encoders and the model for
conditional generation for encoder-decoders; weight names in bundles are those of that form.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from adapters.architectures import (
    ARCHITECTURES,
    Family,
    architecture_of,
    can_pack,
    check_weights,
    first_position,
    max_positions,
    output_width,
    read_config,
)
from adapters.dtype import DtypeName, Quantization, quantization_of, resolve_dtype
from adapters.errors import EnvironmentProblem, UnsupportedBackbone
from adapters.home import default_home
from adapters.packaged import PACKAGED, prepare_packaged
from adapters.tensors import canonical_digest, file_digest
from adapters.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from adapters.runtime.kernels import Kernels
    from adapters.runtime.linears import FusedLinear, LinearGroup
    from adapters.runtime.pack import Pack

READ_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # of a backbone's folder


class BackboneSpec(BaseModel):
    """What others must know of a backbone without loading it; kept in the registry.

    ``hidden_size`` is that of what heads read; ``modules`` maps each linear layer that adapters may target to its
    (input, output) sizes; ``fingerprint`` is a SHA-256 over the source weights and the fields of the config that decide
    an answer, ``tokenizer`` one over the tokenizer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    folder: str
    fingerprint: str
    tokenizer: str
    family: Family
    model_type: str
    hidden_size: int
    max_tokens: int
    modules: dict[str, tuple[int, int]]


def find_backbone(source: str, home: Path) -> Path:
    """Return the local folder of a backbone, preparing or fetching it once.

    Args:
        source: name of a packaged backbone, a folder, or a Hub id.
        home: where prepared backbones are kept.

    Raises:
        EnvironmentProblem: nothing by that name can be had here.
    """
    if source in PACKAGED:
        return prepare_packaged(source, home)
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    return _fetch_from_hub(source)


def backbone_name(source: str) -> str:
    """Return what a backbone is called in bundles: its packaged name or Hub id, or its folder's last part."""
    if source in PACKAGED or not (Path(source).expanduser() / "config.json").is_file():
        return source
    return Path(source).expanduser().resolve().name


def _fetch_from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(READ_FILES)))
    except (
        Exception
    ) as error:  # the Hub client has a dozen kinds, all of which mean the same to a user
        raise EnvironmentProblem(
            f"No backbone '{source}': it is no packaged backbone ({', '.join(PACKAGED)}), no folder "
            f"with a config.json, and the Hub did not give it ({type(error).__name__}). "
            "Name one of these with --backbone.",
            param="backbone",
        ) from error


def describe_backbone(folder: Path, name: str | None = None) -> BackboneSpec:
    """Return a backbone's spec from its folder, without loading its weights.

    Raises:
        UnsupportedBackbone: its architecture can't be served yet.
    """
    import torch

    from adapters.runtime.linears import input_size, output_size

    config = read_config(folder, name or folder.name)
    family = architecture_of(config, name or folder.name).family
    with torch.device("meta"):
        model = _model_class(family).from_config(config)
    return BackboneSpec(
        name=name or folder.name,
        folder=str(folder),
        fingerprint=_fingerprint(folder),
        tokenizer=load_tokenizer(folder).fingerprint(),
        family=family,
        model_type=config.model_type,
        hidden_size=output_width(config),
        max_tokens=max_positions(config) - first_position(config),
        modules={
            path: (input_size(module), output_size(module))
            for path, module in adaptable_modules(model).items()
        },
    )


def _model_class(family: Family) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    classes = {
        "decoder": AutoModelForCausalLM,
        "encoder": AutoModel,
        "encoder-decoder": AutoModelForSeq2SeqLM,
    }
    return classes[family]


def adaptable_modules(model: nn.Module) -> dict[str, Any]:
    """Return the linear layers that adapters may target, by path: all but the language head and the pooler."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and "pooler" not in path.split(".")
    }


def _fingerprint(folder: Path) -> str:
    import json

    config = json.loads((folder / "config.json").read_text())
    volatile = (
        "transformers_version",
        "_name_or_path",
        "_model_name_or_path",
        "dtype",
        "torch_dtype",
    )
    weights = {path.name: file_digest(path) for path in sorted(folder.glob("*.safetensors"))}
    if not weights:
        raise UnsupportedBackbone(
            f"Backbone folder '{folder.name}' holds no .safetensors file; pickled weights are not "
            "read. Convert it with transformers' save_pretrained.",
            param="backbone",
        )
    return canonical_digest([{k: v for k, v in config.items() if k not in volatile}, weights])


class Backbone:
    """A loaded, frozen backbone that runs packs of rows.

    Attributes:
        model: the canonical form, in eval mode; its linear layers are what adapters target.
        base: the model without its language head.
        dtype: what activations are in, whatever its weights are kept in.
        quantization: how the layers that adapters target keep their weights; None for as they are.
        groups: its linear layers, fused for serving; empty for a backbone that is as the library made it.
        first_position: position id of a row's first token.
        start_ids: what an encoder-decoder's decoder begins with; empty for other families.
    """

    def __init__(
        self, spec: BackboneSpec, model: nn.Module, quantization: Quantization | None = None
    ) -> None:
        self.spec = spec
        self.model = model
        self.base: Any = model.base_model
        self.quantization = quantization
        first = next(model.parameters())
        self.dtype: torch.dtype = first.dtype
        self.device: torch.device = first.device
        self.groups: list[LinearGroup] = []
        self.first_position = first_position(model.config)
        self.start_ids = _start_ids(model) if spec.family == "encoder-decoder" else ()
        self._language_head: Any = model.get_output_embeddings()  # type: ignore[operator]
        self._logit_bias_V = _logit_bias(model)

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def is_packed(self) -> bool:
        """Tell whether it was loaded for packed rows; else it runs padded."""
        from adapters.runtime.attention import PACKED

        return bool(self.config._attn_implementation == PACKED)

    @property
    def is_transposed(self) -> bool:
        """Tell whether its linear layers keep their weights as ``[I, O]``, which peft must be told."""
        from transformers.pytorch_utils import Conv1D

        return any(isinstance(module, Conv1D) for module in self.model.modules())

    def hidden_states(self, token_ids_T: Tensor, pack: Pack) -> Tensor:
        """Return the last layer's hidden states ``[T, hidden_size]`` of a pack, in the backbone's dtype."""
        extra = {"use_cache": False} if self.spec.family == "decoder" else {}
        position_ids = pack.positions_T[None] + self.first_position
        out = self.base(input_ids=token_ids_T[None], position_ids=position_ids, pack=pack, **extra)
        hidden: Tensor = out.last_hidden_state.squeeze(0)
        return hidden

    def next_token_logits(self, hidden_ND: Tensor) -> Tensor:
        """Return fp32 logits ``[N, vocabulary]`` of the backbone's own language head."""
        if getattr(self.config, "scale_decoder_outputs", False):  # T5 with tied weights
            hidden_ND = hidden_ND * self.config.d_model**-0.5
        logits: Tensor = self._language_head(hidden_ND).float()
        return logits if self._logit_bias_V is None else logits + self._logit_bias_V

    def fuse(self) -> None:
        """Compute linear layers that read the same input in one product, and on a CPU norms and gates by kernel.

        For serving only, for there is no way back.
        """
        from adapters.runtime.kernels import fits, load_kernels
        from adapters.runtime.linears import wrap_linears
        from adapters.runtime.parts import put_in_kernels

        kernels = load_kernels() if fits(self.dtype, self.device) else None
        layers = adaptable_modules(self.model)
        self.groups = wrap_linears(self.model, layers, fuse=True, kernels=kernels)
        if self._language_head is not None:
            self._language_head = self._fuse_language_head(kernels)
        if kernels is not None:
            put_in_kernels(self.model, kernels, is_packed=self.is_packed)
        _unmap(self.model)

    def _fuse_language_head(self, kernels: Kernels | None) -> FusedLinear:
        """Return the language head as one product; where the embedding is tied to it, it is read from there too."""
        import torch

        from adapters.runtime.linears import FusedLinear, PanelEmbedding

        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        embedding: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        fused = FusedLinear([head], kernels)
        is_tied = type(embedding) is torch.nn.Embedding and embedding.weight is head.weight
        if fused.panels is not None and is_tied and self.spec.family == "decoder":
            self.model.set_input_embeddings(PanelEmbedding(fused.panels))  # type: ignore[operator]
            head.weight = None
        return fused


def _start_ids(model: nn.Module) -> tuple[int, ...]:
    """Return the tokens that a decoder starts with, the one that the checkpoint wants forced behind included."""
    settings: Any = getattr(model, "generation_config", None)
    start = getattr(settings, "decoder_start_token_id", None)
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise UnsupportedBackbone(
            "The backbone's generation_config.json has no 'decoder_start_token_id', so its decoder can't "
            "start. Add it there.",
            param="backbone",
        )
    forced = getattr(settings, "forced_bos_token_id", None)
    return (int(start),) if forced is None else (int(start), int(forced))


def _logit_bias(model: nn.Module) -> Tensor | None:
    """Return what is added to each token's logit: a model's own bias, and far below all for tokens it must not write.

    Marian checkpoints name their padding token in ``bad_words_ids``; it would often win otherwise.
    """
    bias: Tensor | None = getattr(model, "final_logits_bias", None)
    settings = getattr(model, "generation_config", None)
    barred = [
        words[0] for words in getattr(settings, "bad_words_ids", None) or () if len(words) == 1
    ]
    if not barred:
        return None if bias is None else bias[0].float()
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    total = head.weight.new_zeros(head.weight.shape[0]).float()
    total += 0 if bias is None else bias[0]
    total[barred] = -1e9
    return total


def load_backbone(
    spec: BackboneSpec,
    dtype: DtypeName,
    *,
    home: Path | None = None,
    device: str = "cpu",
    fuse: bool = False,
    is_packed: bool | None = None,
) -> Backbone:
    """Load a backbone's weights, frozen, for packed attention where it can be, else for the library's own.

    Args:
        dtype: with ``int8`` and ``nf4``, the linear layers that adapters target are quantised, and only those; the
            rest is in what ``auto`` chooses.
        fuse: see `Backbone.fuse`.
        home: where the choice for dtype ``auto`` is kept; needed for that only.
        is_packed: False loads for padded rows what could be packed.

    Raises:
        UnsupportedBackbone: it can't run in this dtype, or its folder doesn't hold all of its weights.
    """
    import torch
    from transformers import AutoConfig

    from adapters.runtime.attention import PACKED

    chosen = getattr(torch, resolve_dtype(dtype, device, home or default_home()))
    quantization = quantization_of(dtype)
    if is_packed is None:
        is_packed = can_pack(AutoConfig.from_pretrained(spec.folder))
    has_pooler = ARCHITECTURES[spec.model_type].has_pooler
    model, found = _model_class(spec.family).from_pretrained(
        spec.folder,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told with those that are missing
        dtype="auto" if quantization else chosen,  # quantised from the weights as they are stored
        **({"attn_implementation": PACKED} if is_packed else {}),
        **({"add_pooling_layer": False} if has_pooler else {}),
    )
    check_weights(spec.name, model, found)
    model.requires_grad_(False)
    if is_packed:
        _expect_no_padding(model)
    if quantization:
        _quantize(model, quantization, chosen)
    if any(parameter.dtype != chosen for parameter in model.parameters()):
        raise UnsupportedBackbone(
            f"Models of type '{spec.model_type}' keep some layers out of '{dtype}', which adapters can't follow. "
            "Run it in float32 or bfloat16.",
            param="dtype",
        )
    backbone = Backbone(spec, model.to(device).eval(), quantization)
    if fuse:
        backbone.fuse()
    return backbone


def _expect_no_padding(model: nn.Module) -> None:
    """Leave out the library's look for padding, which warns of what packs don't have and can't be recorded."""
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            vars(module)["warn_if_padding_and_no_attention_mask"] = lambda *_: None


def _quantize(model: nn.Module, quantization: Quantization, dtype: torch.dtype) -> None:
    from adapters.runtime.linears import quantize_linears

    quantize_linears(model, list(adaptable_modules(model)), quantization)
    for parameter in model.parameters():  # not buffers: the rotary frequencies stay in fp32
        parameter.data = parameter.data.to(dtype)
    _unmap(model)


def _unmap(model: nn.Module) -> None:
    """Copy the parameters that are left, so that their file leaves memory, and give free memory back."""
    from adapters.runtime.quantized import return_freed_memory

    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return_freed_memory()
