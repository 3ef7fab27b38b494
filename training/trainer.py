"""What is fitted: LoRA weights and a head on a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.errors import InvalidRequest
from adapters.runtime.gradient_kernels import GradientKernels
from adapters.runtime.kernels import fits, load_kernels
from adapters.tasks.base import HeadSpec, Labelled
from adapters.tasks.heads import Head, build_head, row_loss
from training.contract import LoraSettings
from training.frozen import FrozenLayers, dropouts_below, frozen_layers
from training.lora_layers import replace_forwards
from training.parts import replace_parts
from training.passes import run_encoder, run_packed, run_padded, run_sequences
from training.pissa import doubled, start_principal


@dataclass(slots=True)
class Trainee:
    """A backbone with LoRA layers put in by peft, and a head of our own beside them.

    Both are trained in fp32 whatever the backbone's dtype: AdamW in bf16 loses small updates.
    """

    backbone: Backbone
    peft_model: PeftModel
    head: Head | None
    undo: Callable[[], None]
    kernels: GradientKernels | None = None
    smoothing: float = 0.0  # of labels, in fitting
    frozen: FrozenLayers | None = None  # keeps their outputs, in fitting

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name."""
        named = {n: p for n, p in self.peft_model.named_parameters() if p.requires_grad}
        if self.head is not None:
            named.update({f"head.{n}": p for n, p in self.head.named_parameters()})
        return named

    def loss(self, rows: Sequence[Labelled]) -> tuple[Tensor, int]:
        """Return a batch's summed loss and its number of labels; rows shortest first."""
        if self.frozen is None:
            hidden_TD, bounds = self.hidden_states(rows)
        else:
            hidden_TD, bounds = self.frozen.run(rows, lambda: self.hidden_states(rows))
        return self.loss_of(hidden_TD, bounds, rows, self.smoothing)

    def hidden_states(self, rows: Sequence[Labelled]) -> tuple[Tensor, Tensor]:
        """Return a batch's hidden states ``[T, D]`` and its rows' B + 1 token borders."""
        backbone = self.backbone
        if backbone.is_packed:
            return run_packed(backbone, rows, self.kernels, fills=self.frozen is None)
        if backbone.spec.family != "encoder-decoder":
            return run_padded(backbone, rows)
        return run_sequences(backbone, rows) if self.head is None else run_encoder(backbone, rows)

    def loss_of(
        self, hidden_TD: Tensor, bounds: Tensor, rows: Sequence[Labelled], smoothing: float = 0.0
    ) -> tuple[Tensor, int]:
        """Return what `loss` does, from hidden states."""
        language_head: Callable[[Tensor], Tensor] = self.backbone.next_token_logits
        return row_loss(self.head, language_head, hidden_TD, bounds, rows, smoothing)

    def lora_state(self) -> dict[str, Tensor]:
        """Return the LoRA weights under the names that stock peft loads."""
        return {k: v.detach().cpu() for k, v in get_peft_model_state_dict(self.peft_model).items()}

    def release(self) -> None:
        """Take the LoRA layers out again, so that the backbone is bare."""
        self.undo()
        model: Any = self.backbone.model
        model.gradient_checkpointing_disable()
        self.peft_model.unload()
        self.backbone.model.eval()


def build_trainee(
    backbone: Backbone,
    lora: LoraSettings,
    head: HeadSpec | None,
    seed: int,
    *,
    recompute: bool = False,
    frozen_bytes: int = 0,
) -> Trainee:
    """Put fresh LoRA layers (B is zero: no change yet) into a backbone and make a fresh head.

    Args:
        recompute: compute activations again in the backward pass instead of keeping them (gradient checkpointing:
            Chen et al., arXiv 1604.06174).
        frozen_bytes: how much of the layers below the first adapted one may be kept, row by row.

    Raises:
        InvalidRequest: the settings name no module of this backbone, or can't be had on it.
    """
    if frozen_bytes and not backbone.is_packed:
        raise InvalidRequest(
            f"fit.frozen_cache_bytes '{frozen_bytes}' keeps rows of packs, and '{backbone.spec.name}' of type "
            f"'{backbone.spec.model_type}' runs padded. Leave it at 0.",
            param="fit.frozen_cache_bytes",
        )
    torch.manual_seed(seed)
    rank, alpha = lora.rank, lora.alpha
    if lora.init == "pissa":
        _check_not_quantised(backbone)
        rank, alpha = doubled(rank, alpha, lora.use_rslora)
    adapted = target_modules(backbone, lora, has_head=head is not None)
    config = LoraConfig(
        r=rank,
        # peft wants whole numbers in its annotations only; fractions work.
        lora_alpha=alpha,
        use_rslora=lora.use_rslora,
        lora_dropout=lora.dropout,
        target_modules=adapted,
        fan_in_fan_out=backbone.is_transposed,
    )
    peft_model = get_peft_model(backbone.model, config)
    if lora.init == "pissa":
        start_principal(peft_model, lora.rank)
    if recompute:
        model: Any = backbone.model
        model.gradient_checkpointing_enable({"use_reentrant": False})
    module = build_head(head, backbone.spec.hidden_size) if head else None
    head_module = module.to(backbone.device) if module else None
    lower = frozen_layers(backbone.model, adapted) if frozen_bytes else []
    frozen = None
    if lower:
        frozen = FrozenLayers(lower, frozen_bytes, dropouts_below(backbone.model, lower))
    kernels = _kernels(backbone)
    undo = _speed_up(backbone, kernels)
    return Trainee(backbone, peft_model, head_module, undo, kernels, frozen=frozen)


def _check_not_quantised(backbone: Backbone) -> None:
    if backbone.quantization is not None:
        raise InvalidRequest(
            f"lora.init 'pissa' needs the weights' singular values, which a backbone quantised to "
            f"'{backbone.quantization}' does not show. Choose init 'default', or dtype float32 or bfloat16.",
            param="lora.init",
        )


def _kernels(backbone: Backbone) -> GradientKernels | None:
    """Return the kernels if this machine has them and they take the backbone."""
    if not fits(backbone.dtype, backbone.device):
        return None
    kernels = load_kernels()
    return GradientKernels(kernels) if kernels else None


def _speed_up(backbone: Backbone, kernels: GradientKernels | None) -> Callable[[], None]:
    """Let a backbone with LoRA compute by forwards of ours; returns what gives it its own back."""
    restore_parts = replace_parts(backbone.model, kernels)
    groups = replace_forwards(backbone.model, list(backbone.spec.modules))

    def undo() -> None:
        restore_parts()
        for group in groups:
            group.restore()

    return undo


def target_modules(backbone: Backbone, lora: LoraSettings, *, has_head: bool) -> list[str]:
    """Return full paths of the modules to adapt; full, for peft matches short names in surprising places.

    A head reads the encoder of an encoder-decoder, so that its decoder is left as it is.
    """
    names = list(backbone.spec.modules)
    if has_head and backbone.spec.family == "encoder-decoder":
        names = [name for name in names if "decoder" not in name.split(".")]
    if lora.last_layers is not None:
        names = _in_last_layers(names, lora.last_layers, backbone.spec.name)
    if lora.target_modules == "all-linear":
        return names
    wanted = {each: _ending_in(each, names) for each in lora.target_modules}
    missing = [each for each, found in wanted.items() if not found]
    if missing or not wanted:
        ends = sorted({name.rpartition(".")[2] for name in backbone.spec.modules})
        raise InvalidRequest(
            f"target_modules '{missing}' match no module of '{backbone.spec.name}' that is to be adapted. "
            f"Its modules end in: {', '.join(ends)}.",
            param="lora.target_modules",
        )
    chosen = set().union(*wanted.values())
    return [name for name in names if name in chosen]


def _ending_in(end: str, names: Sequence[str]) -> set[str]:
    return {name for name in names if name == end or name.endswith(f".{end}")}


def _in_last_layers(names: Sequence[str], num_layers: int, backbone: str) -> list[str]:
    """Return the modules in the last layers of their stack; an encoder-decoder has two."""
    places = {name: _layer_of(name) for name in names}
    ends: dict[str, int] = {}
    for stack, layer in places.values():
        ends[stack] = max(layer + 1, ends.get(stack, 0))
    if num_layers > max(ends.values()):
        raise InvalidRequest(
            f"lora.last_layers is '{num_layers}', but '{backbone}' has {max(ends.values())}. Leave it out to "
            "adapt all.",
            param="lora.last_layers",
        )
    return [n for n, (stack, layer) in places.items() if layer >= max(0, ends[stack] - num_layers)]


def _layer_of(path: str) -> tuple[str, int]:
    """Return a module's stack of layers, and its layer in there; -1 outside of layers."""
    parts = path.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ("", -1) if place is None else (".".join(parts[:place]), int(parts[place]))
