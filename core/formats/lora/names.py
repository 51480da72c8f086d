"""kohya's layer names <-> module paths. Underscores replace dots there, so the names of modules must be known."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TypeVar

from core.formats.models import sd_keys
from core.formats.models.text_keys import full_name

T = TypeVar("T")
PREFIXES = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
# Module names that contain an underscore; every other underscore is a dot.
JOINED = {
    *(
        "down_blocks",
        "up_blocks",
        "mid_block",
        "transformer_blocks",
        "time_emb_proj",
        "conv_shortcut",
        "conv_in",
        "conv_out",
    ),
    *(
        "proj_in",
        "proj_out",
        "to_q",
        "to_k",
        "to_v",
        "to_out",
        "time_embedding",
        "add_embedding",
        "linear_1",
        "linear_2",
    ),
    *("input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers", "skip_connection"),
    *("time_embed", "label_emb"),
    *("text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection", "token_embedding"),
}
LONGEST = max(name.count("_") + 1 for name in JOINED)


@cache
def module_path(name: str) -> tuple[str, str] | None:
    """`lora_unet_mid_block_attentions_0_proj_in` -> ("unet", "mid_block.attentions.0.proj_in"); None for another name.

    SDXL's original block names become diffusers'. Paths of text encoders start with `text_model.`.
    """
    head, words = _split(name)
    if head is None:
        return None
    parts, place = [], 0
    while place < len(words):
        for count in range(LONGEST, 0, -1):
            joined = "_".join(words[place : place + count])
            if count == 1 or (joined in JOINED and place + count <= len(words)):
                parts.append(joined)
                place += count
                break
    path = ".".join(parts)
    part = PREFIXES[head]
    if part == "unet" and parts[0] in ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb"):
        path = sd_keys.unet_to_diffusers(path, "sdxl")
    return part, path


def _split(name: str) -> tuple[str | None, list[str]]:
    for head in sorted(PREFIXES, key=len, reverse=True):
        if name.startswith(head + "_") and len(name) > len(head) + 1:
            return head, name[len(head) + 1 :].split("_")
    return None, []


def kohya_name(part: str, path: str, family: str | None = None) -> str | None:
    """The inverse: ("unet", "conv_in") -> `lora_unet_conv_in`, SDXL's with the original block names; None for another part."""
    if part == "unet":
        own = sd_keys.unet_to_ldm(path, "sdxl") if family == "sdxl" else path
        return "lora_unet_" + own.replace(".", "_")
    prefix = {"text_encoder": "lora_te1" if family == "sdxl" else "lora_te", "text_encoder_2": "lora_te2"}.get(part)
    return None if prefix is None else f"{prefix}_{full_name(path)}".replace(".", "_")


def group_by_module(tensors: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """{"name.alpha": tensor} -> {"name": {"alpha": tensor}}. Module names contain no dots."""
    grouped: dict[str, dict[str, T]] = {}
    for key, tensor in tensors.items():
        name, _, rest = key.partition(".")
        grouped.setdefault(name, {})[rest] = tensor
    return grouped
