"""Settings of LoRA and other networks, and facts about the network kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal

from core.record.problems import Problem
from core.record.units import number_text
from core.settings.base import (
    SAME,
    FloatOrOff,
    IntOrOff,
    NumberList,
    Settings,
    follows_compatibility,
    kohya_setting,
    setting,
)
from core.settings.readers import READ_BY_NONE, Misread

# Settings of the group that a kind's own product may have a use for; all others are the network's, and hold for every kind.
SIZES = frozenset({"rank", "alpha", "conv_alpha", "block_alphas", "conv_block_alphas"})
OWN = SIZES | {"network_dropout", "rank_dropout"}


@dataclass(frozen=True, kw_only=True)
class KindTraits:
    """Facts about a network kind for rules, the page and file detection, without torch.

    name, title       in presets; on the page
    forms             sets of tensor keys; each layer in a file has exactly one of these sets
    optional          further keys that a layer in a file can have
    module_name       sd-scripts' network_module (ss_network_module)
    input_keys        keys of tensors that read the layer's input; their second dimensions multiply to the layer's input width,
                      which identifies the file's model family
    rank_keys         keys of tensors whose first dimension is the rank
    telling_keys      keys that no other model file has: a single one identifies the file, whatever its layers are called
    prefix            start of layer names in its files instead of "lora_unet_"
    looks             (tensors of a layer) -> whether their shapes are of this kind, if several kinds have the same keys
    uses              settings that the kind uses, of OWN (sizes, dropouts) and `initialization`; others are reported as ineffective
    needs_base_weight whether adapters read the layer's weight (`base_weight`, possibly fp8), so that rules refuse ZeRO-3
    by_chance         whether each forward pass draws which weights train: no torch.compile, and processes synchronize the draw
    loraplus          whether LoRA+'s ratio applies to some of its weights
    rates             factor from a LoRA's usual learning rates to its own, for advice
    misread           how other programs misread its files; by default none of them reads these
    """

    name: str
    title: str
    forms: tuple[tuple[str, ...], ...]
    module_name: str
    optional: tuple[str, ...] = ()
    input_keys: tuple[str, ...] = ()
    rank_keys: tuple[str, ...] = ()
    telling_keys: tuple[str, ...] = ()
    prefix: str = ""
    looks: Callable[[Mapping[str, Any]], bool] | None = None
    uses: frozenset[str] = OWN
    needs_base_weight: bool = False
    by_chance: bool = False
    loraplus: bool = False
    rates: float = 1.0
    misread: tuple[Misread, ...] = (READ_BY_NONE,)

    @cached_property
    def keys(self) -> frozenset[str]:
        """All keys in `forms`."""
        return frozenset(key for form in self.forms for key in form)

    @cached_property
    def all_keys(self) -> frozenset[str]:
        """All keys in `forms`, and the optional ones."""
        return self.keys | set(self.optional)

    @property
    def ranked(self) -> bool:
        """Whether layers of this kind have a rank, an alpha or another size of SIZES."""
        return bool(self.uses & SIZES)


NETWORK_KINDS: dict[str, KindTraits] = {}  # the table of all registered kinds, by name
UNKNOWN = KindTraits(name="", title="", forms=(), module_name="", misread=())


class KindSettings(Settings):
    """Base model of a group of settings for a single network kind, with the rules on them."""

    @property
    def conv_has_rank(self) -> bool:
        """Whether 3x3 convolutions train with the rank and alpha of the network instead of those of convolutions."""
        return False

    def problems(self, network: NetworkSettings) -> Iterator[Problem]:
        """Yield errors and advice on the settings of this kind in combination with those of the network."""
        yield from ()

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted path, reason) for settings that have no effect with this kind's settings."""
        yield from ()


class NetworkSettings(Settings):
    """Rank, alpha, layers and initial weights of a LoRA."""

    kind: Literal["lora"] = setting(
        "lora",
        title="Network type",
        level="shown",
        labels={"lora": "LoRA"},
        help="The kind of adapter that trains next to the frozen model. LoRA suits most trainings; LoKr makes the smallest files; DoRA and the full difference come closer to fine-tuning. docs/lora.md compares them and says which programs read which.",
    )
    rank: int = setting(
        16,
        within=(1, 1024),
        title="Network rank (dim)",
        first="step",
        brief="Capacity of the LoRA.",
        only="lora",
        level="shown",
        kohya="network_dim",
        source="Hu et al. 2021, arXiv:2106.09685",
        help="Capacity of the LoRA. 4 to 16 for a subject, 16 to 64 for a style.",
        costs="File size and optimizer memory grow with it; speed hardly changes.",
    )
    alpha: float = setting(
        16.0,
        within=(0, 4096),
        title="Network alpha",
        section="Size and layers",
        kohya="network_alpha",
        help="The LoRA is scaled by alpha / rank. Equal to the rank is neutral; lower needs a higher learning rate. 0 uses the rank (of the block, if ranks differ).",
    )
    rs_lora: bool = setting(
        False,
        title="Rank-stabilized alpha",
        source="Kalajdzievski 2023, arXiv:2312.03732",
        help="Scales by alpha / sqrt(rank) instead of alpha / rank, so that high ranks train as fast as low ones. The file stores alpha * sqrt(rank), which gives the same strength in every program.",
    )
    initialization: Literal["kaiming", "gaussian", "orthogonal", "pissa"] = setting(
        "kaiming",
        source="Meng et al. 2024, arXiv:2404.02948 (PiSSA)",
        labels={
            "kaiming": "Kaiming (usual)",
            "gaussian": "Gaussian",
            "orthogonal": "Orthogonal",
            "pissa": "PiSSA",
        },
        help="Initial weights of a LoRA, as in PEFT. Orthogonal and PiSSA start with both matrices away from zero and often converge faster. PiSSA trains the principal components of the model's weights; its file holds the difference to the unchanged model at twice the rank.",
    )
    conv_rank: IntOrOff = setting(
        None,
        within=(1, 1024),
        title="Conv rank (dim)",
        hint="off",
        kohya="conv_dim",
        help="Also trains 3x3 convolutions (LoRA-C3Lier / LoCon), which helps with textures and styles. Empty or 0 trains Linear and 1x1 conv layers only (LoRA-LierLa).",
        costs="Steps take about half again as long.",
    )
    conv_alpha: FloatOrOff = kohya_setting(
        None,
        gt=0,
        le=4096,
        hint="as conv rank",
        help="3x3 convolutions are scaled by conv alpha / conv rank. Empty or 0 uses the conv rank.",
    )
    train_unet: bool = setting(
        True,
        title="Train U-Net",
        kohya="network_train_text_encoder_only",
        help="Trains LoRA layers in the U-Net, which generates the image. Nearly always on.",
    )
    train_text_encoder: bool = setting(
        False,
        level="shown",
        kohya="network_train_unet_only",
        help="Trains LoRA layers in the text encoder. Helps with new trigger words; off is safer, faster and lets captions be encoded once.",
        costs="More memory and time: captions are encoded at every step.",
    )
    train_norm: bool = setting(
        False,
        needs="train_unet",
        title="Train norm layers",
        help="Also trains weight and bias of the norm layers in the U-Net's blocks, where other layers are trained (LyCORIS' train_norm). A1111, Forge and ComfyUI use such files; diffusers and sd-scripts do not.",
    )
    network_dropout: float = kohya_setting(
        0.0,
        within=(0, 1),
        section="Regularization",
        source="Srivastava et al. 2014, JMLR 15",
        help="Dropout on the LoRA's hidden activations. 0.1 to 0.3 reduces overfitting.",
    )
    rank_dropout: float = kohya_setting(
        0.0,
        within=(0, 1),
        help="Drops ranks of the LoRA with this probability, separately for each image. 0.1 to 0.3 reduces overfitting.",
    )
    rank_dropout_scale: bool = setting(
        True,
        needs="rank_dropout",
        help="Scales up what rank dropout keeps, so that the strength stays the same on average, as sd-scripts does. Off is LyCORIS' default.",
    )
    module_dropout: float = kohya_setting(
        0.0,
        within=(0, 1),
        help="Skips LoRA modules with this probability at each step. 0.1 to 0.3 reduces overfitting.",
    )
    scale_weight_norms: FloatOrOff = kohya_setting(
        None,
        gt=0,
        le=1000,
        title="Max weight norm",
        hint="off",
        help="After each step, scales down a layer's weight change if its norm exceeds this value. 1 is usual; empty or 0 is off.",
        recorded=SAME,
    )
    block_dims: NumberList = kohya_setting(
        None,
        title="Block ranks (dims)",
        section="Blocks",
        widget="blocks",
        empty_as="rank",
        help="A rank for each U-Net block: 25 whole numbers for SD 1.x and 2.x, 23 for SDXL; 0 skips a block. Empty uses the network rank everywhere.",
    )
    block_alphas: NumberList = kohya_setting(
        None,
        widget="blocks",
        empty_as="alpha, rank",
        help="An alpha for each block, as many numbers as block ranks. Empty uses the network alpha everywhere.",
    )
    conv_block_dims: NumberList = kohya_setting(
        None,
        title="Conv block ranks (dims)",
        widget="blocks",
        empty_as="conv_rank",
        help="A rank for the 3x3 convolutions of each block; 0 skips those of a block. Empty uses the conv rank everywhere.",
    )
    conv_block_alphas: NumberList = kohya_setting(
        None,
        widget="blocks",
        empty_as="conv_alpha, conv_rank",
        help="An alpha for the 3x3 convolutions of each block. Empty uses the conv alpha, or their rank.",
    )
    down_lr_weight: NumberList = kohya_setting(
        None,
        title="Down block LR weights",
        section="Learning rate by block",
        widget="block rates",
        help="Multipliers of the U-Net learning rate, from the image inwards: 12 numbers (SDXL: 9), one number for all, or sine, cosine, linear, reverse_linear, zeros, optionally with an offset such as +0.25. 0 skips a block.",
    )
    mid_lr_weight: NumberList = kohya_setting(
        None,
        title="Mid block LR weights",
        widget="block rates",
        help="Multiplier of the U-Net learning rate in the middle block: one number (SDXL: 3). 0 skips it.",
    )
    up_lr_weight: NumberList = kohya_setting(
        None,
        title="Up block LR weights",
        widget="block rates",
        help="As for the down blocks, from the middle out to the image.",
    )
    block_lr_zero_threshold: float = kohya_setting(
        0.0,
        within=(0, 100),
        title="Block LR zero threshold",
        help="LR weights up to this value count as 0: the block gets no LoRA.",
    )
    layers: list[str] = setting(
        default_factory=list,
        section="Layers",
        widget="layers",
        help="Trains only these layers, one name or regular expression per line: attn-mlp, attn-only, full, full-lin, unet-only, unet-transformer-only, unet-convblock-only (LyCORIS' presets), or what a layer's name or module path contains, such as attn2 or down_blocks.1. 3x3 convolutions among them use the network rank unless conv rank is set. Empty trains the usual layers.",
    )
    exclude_layers: list[str] = setting(
        default_factory=list,
        title="Excluded layers",
        widget="lines",
        kohya="exclude_patterns",
        help="Layers that get no network, by the same names and regular expressions, one per line.",
    )
    layer_dims: list[str] = setting(
        default_factory=list,
        title="Layer ranks (dims)",
        widget="lines",
        kohya="network_reg_dims",
        help="A rank for the layers that an expression finds, one EXPRESSION=RANK per line, such as attn2=32; the first that fits is used, and 0 skips a layer.",
    )
    network_weights: str | None = kohya_setting(
        None,
        title="Initial LoRA weights",
        section="Initial weights",
        widget="lora",
        help="Continues training the weights of this LoRA with a new optimizer. Its ranks must match the settings, unless 'Rank from weights' is on.",
        names="path or name",
        holds="lora",
    )
    dim_from_weights: bool = kohya_setting(
        False,
        needs="network_weights",
        title="Rank from weights",
        help="Takes layers, ranks and alphas from the initial LoRA; those set here are ignored.",
    )
    weights_scale: Literal["file", "kohya"] = follows_compatibility("file", "kohya")
    base_weights: list[str] = kohya_setting(
        default_factory=list,
        title="LoRAs to merge first",
        widget="lines",
        help="LoRA files merged into the base model before training, one per line. The trained LoRA must then be used together with them.",
        names="path or name",
        holds="lora",
    )
    base_weights_multiplier: NumberList = kohya_setting(
        None,
        needs="base_weights",
        title="Merge multipliers",
        widget="numbers",
        help="Strength of each merged LoRA, in order. Missing numbers are 1.",
    )
    base_weights_layers: Literal["own", "kohya"] = follows_compatibility("own", "kohya")

    @property
    def traits(self) -> KindTraits:
        """Traits of the network kind; UNKNOWN if it is not registered."""
        return NETWORK_KINDS.get(self.kind, UNKNOWN)

    @property
    def starts_by_pissa(self) -> bool:
        """Whether layers are initialized with the principal components of the model's weights (PiSSA)."""
        return self.initialization == "pissa" and "initialization" in self.traits.uses and not self.network_weights

    @property
    def has_dropout(self) -> bool:
        """Whether any dropout is on."""
        return self.network_dropout > 0 or self.rank_dropout > 0 or self.module_dropout > 0

    @property
    def chooses_layers(self) -> bool:
        """Whether layers or their ranks are chosen by expression."""
        return bool(self.layers or self.exclude_layers or self.layer_dims)

    @property
    def may_train_norms(self) -> bool:
        """Whether norm layers can train: by the setting, or because the layers of an initial file are used."""
        return self.train_norm or self.dim_from_weights

    @property
    def has_block_rates(self) -> bool:
        """Whether learning rate factors for U-Net blocks are set."""
        return bool(self.down_lr_weight or self.mid_lr_weight or self.up_lr_weight)

    @property
    def trains_conv(self) -> bool:
        """Whether 3x3 convolutions, in residual and resampling blocks, are trained too."""
        return self.conv_rank is not None or bool(self.conv_block_dims)

    @property
    def sized_by_blocks(self) -> bool:
        """Whether every trained layer is in a block of the U-Net, so that block ranks and alphas apply to all of them."""
        return self.train_unet and not self.train_text_encoder

    @property
    def hooks_residual(self) -> bool:
        """Whether layers of residual and resampling blocks can get an adapter, with or without their 3x3 convolutions."""
        return (
            self.trains_conv or bool(self.layers) or (bool(self.base_weights) and self.base_weights_layers == "kohya")
        )

    def summary(self) -> str:
        """Return network type, sizes, layers and trained parts in one line."""
        uses, parts = self.traits.uses, [self.label("kind")]
        parts[0] += f" rank {self.rank}" if "rank" in uses else ""
        parts += [f"alpha {number_text(self.alpha)}"] if "alpha" in uses else []
        parts += [f"conv rank {self.conv_rank}"] if self.conv_rank and "rank" in uses else []
        parts += ["by block"] if self.block_dims or self.conv_block_dims or self.has_block_rates else []
        parts += ["chosen layers"] if self.layers or self.exclude_layers else []
        parts += ["dropout"] if self.has_dropout else []
        parts += [f"from {PurePath(self.network_weights).stem}"] if self.network_weights else []
        trains = [name for name, on in (("U-Net", self.train_unet), ("text encoder", self.train_text_encoder)) if on]
        return ", ".join([*parts, " and ".join(trains) or "nothing trained"])
