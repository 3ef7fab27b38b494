"""The frozen model that every adapter shares: what it is (`BackboneSpec`) and the loaded thing (`Backbone`).

The canonical form is the causal model for decoders and the plain encoder (no pooler) for encoders; weight
names in bundles are those of that form.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from adapters.dtype import DtypeName, Quantization, quantization_of, resolve_dtype
from adapters.errors import EnvironmentProblem, UnsupportedBackbone
from adapters.home import default_home
from adapters.packaged import PACKAGED, prepare_packaged
from adapters.tensors import canonical_digest, file_digest
from adapters.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from adapters.runtime.linears import LinearGroup
    from adapters.runtime.pack import Pack

Family = Literal["decoder", "encoder"]

# Models whose code passes extra keyword arguments down to the attention function, tested packed.
PACKED_FAMILIES: dict[str, Family] = {
    "llama": "decoder",
    "qwen2": "decoder",
    "qwen3": "decoder",
    "bert": "encoder",
}
_NOT_ADAPTABLE = ("lm_head", "pooler")


class BackboneSpec(BaseModel):
    """What others must know of a backbone without loading it; kept in the registry.

    ``modules`` maps each linear layer that adapters may target to its (input, output) sizes;
    ``fingerprint`` is a SHA-256 over the source weights and the fields of the config that decide an answer,
    ``tokenizer`` one over the tokenizer.
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

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
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
        UnsupportedBackbone: its architecture can't run packed yet.
    """
    import torch
    from transformers import AutoConfig

    from adapters.runtime.linears import input_size, output_size

    config = AutoConfig.from_pretrained(folder)
    family = _family(config, name or folder.name)
    with torch.device("meta"):
        model = _model_class(family).from_config(config)
    return BackboneSpec(
        name=name or folder.name,
        folder=str(folder),
        fingerprint=_fingerprint(folder),
        tokenizer=load_tokenizer(folder).fingerprint(),
        family=family,
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        max_tokens=config.max_position_embeddings,
        modules={
            path: (input_size(module), output_size(module))
            for path, module in adaptable_modules(model).items()
        },
    )


def _family(config: Any, name: str) -> Family:
    if config.model_type not in PACKED_FAMILIES or getattr(config, "use_sliding_window", False):
        raise UnsupportedBackbone(
            f"Backbone '{name}' is of type '{config.model_type}', which can't be served yet. "
            f"Types that can: {', '.join(PACKED_FAMILIES)} (without sliding windows).",
            param="backbone",
        )
    return PACKED_FAMILIES[config.model_type]


def _model_class(family: Family) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModelForCausalLM if family == "decoder" else AutoModel


def adaptable_modules(model: nn.Module) -> dict[str, Any]:
    """Return the linear layers that adapters may target, by path: all but the language head and the pooler."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not set(path.split(".")) & set(_NOT_ADAPTABLE)
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
        dtype: what activations are in, whatever its weights are kept in.
        quantization: how the layers that adapters target keep their weights; None for as they are.
        groups: its linear layers, fused for serving; empty for a backbone that is as the library made it.
    """

    def __init__(
        self, spec: BackboneSpec, model: nn.Module, quantization: Quantization | None = None
    ) -> None:
        self.spec = spec
        self.model = model
        self.quantization = quantization
        self._base: Any = model.model if spec.family == "decoder" else model
        first = next(model.parameters())
        self.dtype: torch.dtype = first.dtype
        self.device: torch.device = first.device
        self.groups: list[LinearGroup] = []
        self._language_head: Any = getattr(model, "lm_head", None)

    @property
    def config(self) -> Any:
        return self.model.config

    def hidden_states(self, token_ids_T: Tensor, pack: Pack) -> Tensor:
        """Return the last layer's hidden states ``[T, hidden_size]`` of a pack, in the backbone's dtype."""
        extra = {"use_cache": False} if self.spec.family == "decoder" else {}
        out = self._base(
            input_ids=token_ids_T[None], position_ids=pack.positions_T[None], pack=pack, **extra
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def next_token_logits(self, hidden_ND: Tensor) -> Tensor:
        """Return fp32 logits ``[N, vocabulary]`` of the backbone's own language head."""
        logits: Tensor = self._language_head(hidden_ND)
        return logits.float()

    def fuse(self) -> None:
        """Compute linear layers that read the same input in one product; for serving only, for there is no way back."""
        from adapters.runtime.linears import FusedLinear, wrap_linears

        self.groups = wrap_linears(self.model, adaptable_modules(self.model), fuse=True)
        if self._language_head is not None:
            self._language_head = FusedLinear([self._language_head])


def load_backbone(
    spec: BackboneSpec,
    dtype: DtypeName,
    *,
    home: Path | None = None,
    device: str = "cpu",
    fuse: bool = False,
) -> Backbone:
    """Load a backbone's weights, frozen, for packed attention.

    Args:
        dtype: with ``int8`` and ``nf4``, the linear layers that adapters target are quantised, and only those; the
            rest is in what ``auto`` chooses.
        fuse: see `Backbone.fuse`.
        home: where the choice for dtype ``auto`` is kept; needed for that only.
    """
    import torch

    from adapters.runtime.attention import PACKED

    chosen = getattr(torch, resolve_dtype(dtype, device, home or default_home()))
    quantization = quantization_of(dtype)
    extra = {"add_pooling_layer": False} if spec.model_type == "bert" else {}
    model = _model_class(spec.family).from_pretrained(
        spec.folder,
        dtype="auto" if quantization else chosen,  # quantised from the weights as they are stored
        attn_implementation=PACKED,
        **extra,
    )
    model.requires_grad_(False)
    if quantization:
        _quantize(model, quantization, chosen)
    backbone = Backbone(spec, model.to(device).eval(), quantization)
    if fuse:
        backbone.fuse()
    return backbone


def _quantize(model: nn.Module, quantization: Quantization, dtype: torch.dtype) -> None:
    from adapters.runtime.linears import quantize_linears
    from adapters.runtime.quantized import return_freed_memory

    quantize_linears(model, list(adaptable_modules(model)), quantization)
    for parameter in model.parameters():  # not buffers: the rotary frequencies stay in fp32
        # A copy in any case, so that the file that they lie in is no longer mapped.
        parameter.data = parameter.data.to(dtype, copy=True)
    return_freed_memory()
