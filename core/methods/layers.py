"""Extended inversion (XTI): each cross-attention of the U-Net reads its own text. Voynov et al. 2023, arXiv:2303.09522."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from core.formats.embedding_file import LAYERS


def readers(unet: Any) -> list[nn.Module]:
    """The 16 transformers of an SD 1 or 2 U-Net in the order of LAYERS."""
    found = [attention for block in unet.down_blocks for attention in getattr(block, "attentions", ())]
    found += list(unet.mid_block.attentions)
    found += [attention for block in unet.up_blocks for attention in getattr(block, "attentions", ())]
    assert len(found) == len(LAYERS), f"{len(found)} transformers"
    return found


class OneTextEach:
    """Hands each transformer its own of 16 texts: context [B, 16, T, C] instead of [B, T, C]."""

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
