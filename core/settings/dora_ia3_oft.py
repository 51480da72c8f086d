"""Options of DoRA, (IA)^3, OFT, Diag-OFT and BOFT, under the names of LyCORIS' and sd-scripts' network_args."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.record.units import number_text
from core.settings.base import Settings, setting
from core.settings.lycoris import LohaSettings, LokrSettings, ProductSettings
from core.settings.network import KindSettings, NetworkSettings


class Decomposed(Settings):
    """DoRA's options, added to those of the network kind that it decomposes."""

    wd_on_output: bool = setting(
        False,
        title="Magnitude per output",
        source="Liu et al. 2024, arXiv:2402.09353",
        help="One trained length for each output channel, as in diffusers and PEFT; A1111, Forge and ComfyUI read such files wrongly. Off: for each input channel, as in the paper, which they read right.",
    )

    def summary(self) -> str:
        """Return the options that are on in one line."""
        parts = [super().summary(), "magnitude per output" if self.wd_on_output else ""]
        return ", ".join(filter(None, parts))


class DoraSettings(Decomposed, ProductSettings):
    """Options of DoRA based on LoRA and LoCon."""


class DoraLohaSettings(Decomposed, LohaSettings):
    """Options of DoRA based on LoHa."""


class DoraLokrSettings(Decomposed, LokrSettings):
    """Options of DoRA based on LoKr."""


class Ia3Settings(KindSettings):
    """The layers that (IA)^3 scales, and whether it scales their inputs or outputs."""

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
        """Return the options that are on in one line."""
        return "all layers" + (", inputs" if self.train_on_input else "") if self.all_layers else ""

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted path, reason) for `train_on_input` and the conv rank without `all_layers`."""
        if not self.all_layers:
            yield "ia3.train_on_input", "the paper's layers are scaled, each on its side"
            yield "network.conv_rank", "the paper's layers are no 3x3 convolutions"


class OftSettings(KindSettings):
    """The layers that OFT rotates in addition to the attention of the U-Net."""

    enable_all_linear: bool = setting(
        False,
        title="All transformer layers",
        help="Rotates every layer of the transformers, also projections and feed-forward layers, not only the attention.",
    )
    enable_conv: bool = setting(
        False,
        title="Convolutions",
        help="Rotates the residual and resampling blocks too, with their 3x3 convolutions.",
    )

    @property
    def conv_has_rank(self) -> bool:
        """Whether 3x3 convolutions train, with the network's rank and alpha."""
        return self.enable_conv

    def summary(self) -> str:
        """Return the options that are on in one line."""
        on = {"all transformer layers": self.enable_all_linear, "convolutions": self.enable_conv}
        return ", ".join(words for words, is_on in on.items() if is_on)

    def problems(self, network: NetworkSettings) -> Iterator[Problem]:
        """Yield an error for text encoder training, which OFT lacks, and advice on an alpha that limits nothing."""
        if network.train_text_encoder:
            what = "OFT has no layers in the text encoder, so that would not be trained"
            fix = "turn text encoder training off, or use Diag-OFT"
            yield Problem(what, "network.train_text_encoder", fix, code="network.oft-text-encoder")
        if network.alpha >= 1:
            what = f"An alpha of {number_text(network.alpha)} does not limit OFT's angles at all"
            yield Problem(what, "network.alpha", "use 0.0001 to 0.01", "advice", code="network.oft-alpha")

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted path, reason) for the network's conv rank and rsLoRA, which OFT does not use."""
        yield "network.conv_rank", "convolutions have the network rank (oft.enable_conv)"
        yield "network.rs_lora", "OFT's alpha is a limit, not a scale"


class RotationSettings(Settings):
    """Options of Diag-OFT and BOFT."""

    constraint: float = setting(
        0.0,
        ge=0,
        le=10,
        help="Limits how far a layer is rotated (COFT): the norm of its angles is at most this times the output width. 0.0001 to 0.01 are usual; 0 is no limit.",
    )
    rescaled: bool = setting(
        False, title="Trainable rescale", help="Trains a factor for each output channel, in addition to the rotation."
    )

    def summary(self) -> str:
        """Return the options that are on in one line."""
        parts = [f"constraint {number_text(self.constraint)}"] if self.constraint else []
        return ", ".join([*parts, *(["rescaled"] if self.rescaled else [])])
