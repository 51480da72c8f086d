"""Extended inversion (XTI): each cross-attention of the U-Net reads a different text. Voynov et al. 2023,
arXiv:2303.09522."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from core.formats.embedding_file import LAYERS


def readers(unet: Any) -> list[nn.Module]:
    """The 16 cross-attending transformers of an SD 1.x or 2.x U-Net, in the order of LAYERS."""
    transformers = [attention for block in unet.down_blocks for attention in getattr(block, "attentions", ())]
    transformers += list(unet.mid_block.attentions)
    transformers += [attention for block in unet.up_blocks for attention in getattr(block, "attentions", ())]
    assert len(transformers) == len(LAYERS), f"{len(transformers)} transformers"
    return transformers


class OneTextEach:
    """Hooks that pass one of 16 texts to each transformer: [B, T, C] out of context [B, 16, T, C]."""

    def __init__(self, unet: Any):
        self._hooks = [
            module.register_forward_pre_hook(self._pick(number), with_kwargs=True)
            for number, module in enumerate(readers(unet))
        ]

    @staticmethod
    def _pick(number: int) -> Any:
        def pick(module: nn.Module, args: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            text = named.get("encoder_hidden_states")
            if isinstance(text, Tensor) and text.ndim == 4:
                named = {**named, "encoder_hidden_states": text[:, number]}
            return args, named

        return pick

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
