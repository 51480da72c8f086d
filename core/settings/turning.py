"""Options of the network kinds that scale, turn or decompose the weight, under the names of LyCORIS' and sd-scripts' network_args."""

from __future__ import annotations

from collections.abc import Iterator

from core.settings.base import Settings, setting
from core.settings.lycoris import LohaSettings, LokrSettings, ProductSettings
from core.settings.network import KindSettings


class Decomposed(Settings):
    """What DoRA adds to the options of the kind that it decomposes."""

    wd_on_output: bool = setting(
        True,
        title="Magnitude per output",
        source="Liu et al. 2024, arXiv:2402.09353",
        help="One trained length for each output channel, as in diffusers and PEFT. Off: for each input channel, as in the paper and in old LyCORIS files.",
    )

    def summary(self) -> str:
        words = [super().summary(), "" if self.wd_on_output else "magnitude per input"]
        return ", ".join(filter(None, words))


class DoraSettings(Decomposed, ProductSettings):
    """Options of DoRA over LoRA and LoCon."""


class DoraLohaSettings(Decomposed, LohaSettings):
    """Options of DoRA over LoHa."""


class DoraLokrSettings(Decomposed, LokrSettings):
    """Options of DoRA over LoKr."""


class Ia3Settings(KindSettings):
    """Which layers (IA)^3 scales, and on which side."""

    all_layers: bool = setting(
        False,
        help="Scales every layer that a LoRA would have, instead of the paper's (LyCORIS' preset ia3): keys, values and the second feed-forward layer.",
    )
    train_on_input: bool = setting(
        False,
        title="Scale inputs",
        help="With all layers: scales each layer's input instead of its output. The paper's layers have their own side.",
    )

    def summary(self) -> str:
        return "all layers" + (", inputs" if self.train_on_input else "") if self.all_layers else ""

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if not self.all_layers:
            yield "train_on_input", "the paper's layers are scaled"
