"""Choose the layers to train: named presets, regular expressions, and ranks by expression. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from core.record.patterns import Pattern
from core.record.problems import Problem, ProblemsError, raise_any

if TYPE_CHECKING:
    from core.settings.network import NetworkSettings

CHOICE = ("layers", "exclude_layers", "layer_dims")  # the settings
LONGEST = 500  # characters of an expression
SECONDS = 0.5  # for all matches of all expressions with the layers of a model
LEAST_SECONDS = 0.1  # and of each
PLAIN = re.compile(r"\w+")  # texts that are compared as they are, without an expression's cost
LARGEST_RANK = 1024
# LyCORIS' preset full has them by name
OUTER = ("conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "conv_out")


class Layer(NamedTuple):
    """A layer of a model.

    name          its name in LoRA files, such as "lora_unet_down_blocks_0_attentions_0_proj_in"
    path          path of its module in diffusers or transformers
    unet          whether it is in the denoiser, not in a text encoder
    large_kernel  whether it is a convolution other than 1x1
    residual      whether only C3Lier trains it: in a residual or resampling block, or with a large kernel
    outer         whether it is outside of the U-Net's blocks (OUTER): trained only if the settings choose it
    """

    name: str
    path: str
    unet: bool
    large_kernel: bool
    residual: bool = False
    outer: bool = False


@dataclass(frozen=True)
class LayerPreset:
    """A layer preset of LyCORIS (lycoris/config.py).

    unet, text  regular expression searched in module paths of the U-Net and of text encoders; None: no layers of that part
    conv        whether 3x3 convolutions are included
    """

    unet: str | None
    text: str | None
    conv: bool = False


PRESETS = {
    "full": LayerPreset("", "", conv=True),
    "full-lin": LayerPreset("", ""),
    "attn-mlp": LayerPreset(r"(^|\.)attentions\.", ""),
    # LyCORIS looks for classes that the U-Net of diffusers does not have, and so trains the text encoder alone
    "attn-only": LayerPreset(r"\.attn\d?\.", r"(^|\.)self_attn\."),
    "unet-only": LayerPreset("", None, conv=True),
    "unet-transformer-only": LayerPreset(r"(^|\.)attentions\.", None),
    "unet-convblock-only": LayerPreset(r"(^|\.)(resnets|downsamplers|upsamplers)\.|^conv_(in|out)$", None, conv=True),
    "ia3": LayerPreset(r"\.(to_k|to_v|ff\.net\.2)$", r"\.(k_proj|v_proj|fc2)$"),
}


class Entry:
    """An item of the layer settings: a preset's name, or a regular expression searched in a layer's name and path.

    Raises ProblemsError for an invalid expression, and in `matches` for one that takes longer than `seconds`.
    """

    def __init__(self, text: str, where: str, seconds: float = SECONDS):
        self.text, self._preset = text, PRESETS.get(text)
        if len(text) > LONGEST:
            what = f"The expression '{text[:60]}' is longer than {LONGEST} characters"
            raise ProblemsError.one(what, where, "divide it into several", "network.bad-pattern")
        expressions = (text,) if self._preset is None else (self._preset.unet, self._preset.text)
        self._patterns = [None if text is None else Pattern(text, where, "network", seconds) for text in expressions]

    def matches(self, layer: Layer) -> bool:
        """Return whether this entry matches a layer: plain text or an expression by name or path, a preset's expression by path only."""
        if self._preset is None:
            (pattern,) = self._patterns
            if PLAIN.fullmatch(self.text):
                return self.text in layer.name or self.text in layer.path
            return pattern is not None and any(pattern.first(text) for text in (layer.name, layer.path))
        pattern = self._patterns[0 if layer.unet else 1]
        if pattern is None or (layer.large_kernel and not self._preset.conv):
            return False
        return pattern.first(layer.path) is not None


class LayerChoice:
    """The layers that network settings choose to train, and their ranks by expression. Raises ProblemsError with all invalid items."""

    def __init__(self, settings: NetworkSettings):
        raise_any(layer_problems(settings))
        chosen, excluded = settings.layers, settings.exclude_layers
        ranked = [rank_of_line(line) for line in settings.layer_dims]
        seconds = max(SECONDS / max(len(chosen) + len(excluded) + len(ranked), 1), LEAST_SECONDS)
        self.chosen = [Entry(text, "network.layers", seconds) for text in chosen]
        self.excluded = [Entry(text, "network.exclude_layers", seconds) for text in excluded]
        self.ranked = [(Entry(text, "network.layer_dims", seconds), rank) for text, rank in ranked]

    def trains(self, layer: Layer, by_default: bool) -> bool:
        """Return whether a layer trains: chosen by an expression (`by_default` without expressions), and not excluded."""
        chosen = any(entry.matches(layer) for entry in self.chosen) if self.chosen else by_default
        return chosen and not any(entry.matches(layer) for entry in self.excluded)

    def rank(self, layer: Layer) -> int | None:
        """Return the rank of the first expression that matches the layer, as in sd-scripts' network_reg_dims; None if none matches."""
        return next((rank for entry, rank in self.ranked if entry.matches(layer)), None)


def choice_of(settings: NetworkSettings) -> LayerChoice | None:
    """Return the layer choice of network settings; None if they train the default layers."""
    return LayerChoice(settings) if settings.chooses_layers else None


def rank_of_line(line: str) -> tuple[str, int]:
    """Split an item of `layer_dims` into expression and rank: "attn2=8" -> ("attn2", 8). Raises ValueError unless rank is 0 to 1024."""
    text, equals, number = line.rpartition("=")
    rank = int(number)
    if not equals or not text or not 0 <= rank <= LARGEST_RANK:
        raise ValueError(line)
    return text, rank


def layer_problems(settings: NetworkSettings) -> Iterator[Problem]:
    """Yield the problems of layer expressions and ranks that can be found without a model."""
    patterns = [("layers", text) for text in settings.layers]
    patterns += [("exclude_layers", text) for text in settings.exclude_layers]
    for line in settings.layer_dims:
        try:
            patterns.append(("layer_dims", rank_of_line(line)[0]))
        except ValueError:
            what = f"'{line[:60]}' is not an expression and a rank"
            fix = f"write for example attn2=8, with a rank from 0 to {LARGEST_RANK}"
            yield Problem(what, "network.layer_dims", fix, code="network.bad-layer-rank")
    for name, text in patterns:
        try:
            Entry(text, f"network.{name}")
        except ProblemsError as error:
            yield from error.problems
