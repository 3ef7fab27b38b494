"""What is fitted: LoRA weights and a head on a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from adapters.architectures import ARCHITECTURES
from adapters.backbone import Backbone
from adapters.errors import InvalidRequest, UnsupportedBackbone
from adapters.runtime.gradient_kernels import GradientKernels
from adapters.runtime.kernels import fits, load_kernels
from adapters.runtime.pack import pack_rows
from adapters.tasks.base import HeadSpec, Labelled
from adapters.tasks.heads import Head, build_head, row_loss
from training.attention import KernelAttention
from training.contract import LoraSettings
from training.frozen import FrozenLayers, frozen_layers
from training.lora_layers import replace_forwards
from training.parts import replace_parts
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
        device = self.backbone.device
        lengths = [len(row.token_ids) for row in rows]
        pack = pack_rows(lengths, device=device)
        if self.kernels is not None:
            attend = KernelAttention(self.kernels, pack.bounds, lengths[-1])
            pack = replace(pack, attend=attend)
        token_ids = torch.tensor([t for row in rows for t in row.token_ids], device=device)
        return self.backbone.hidden_states(token_ids, pack), pack.bounds

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
        InvalidRequest: the settings name no module of this backbone.
        UnsupportedBackbone: it runs padded, which is for serving only.
    """
    if not backbone.is_packed:
        raise UnsupportedBackbone(
            f"Backbone '{backbone.spec.name}' of type '{backbone.spec.model_type}' can be served, but not yet "
            f"trained on. Types that can: {', '.join(t for t, a in ARCHITECTURES.items() if a.is_packed)} "
            "(decoders without sliding windows).",
            param="backbone",
        )
    torch.manual_seed(seed)
    rank, alpha = lora.rank, lora.alpha
    if lora.init == "pissa":
        _check_not_quantised(backbone)
        rank, alpha = doubled(rank, alpha, lora.use_rslora)
    adapted = target_modules(backbone, lora)
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
    frozen = FrozenLayers(lower, frozen_bytes) if lower else None
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


def target_modules(backbone: Backbone, lora: LoraSettings) -> list[str]:
    """Return full paths of the modules to adapt; full, for peft matches short names in surprising places."""
    names = list(backbone.spec.modules)
    if lora.last_layers is not None:
        first = backbone.config.num_hidden_layers - lora.last_layers
        names = [name for name in names if _layer_of(name) >= first]
    if lora.target_modules != "all-linear":
        wanted = tuple(lora.target_modules)
        names = [n for n in names if n in wanted or n.endswith(tuple(f".{w}" for w in wanted))]
    if not names:
        ends = sorted({name.rpartition(".")[2] for name in backbone.spec.modules})
        raise InvalidRequest(
            f"target_modules '{lora.target_modules}' match no module of '{backbone.spec.name}'. "
            f"Its modules end in: {', '.join(ends)}.",
            param="lora.target_modules",
        )
    return names


def _layer_of(path: str) -> int:
    return next((int(part) for part in path.split(".") if part.isdigit()), -1)
