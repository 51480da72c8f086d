"""Options of the network kinds that come from LyCORIS, under the names of its network_args."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import setting
from core.settings.network import SIZES, KindSettings, NetworkSettings

TUCKER = "Decomposes 3x3 convolutions with a small core (use_tucker, formerly use_cp): fewer parameters at the same rank. Only with a conv rank."


class ProductSettings(KindSettings):
    """Options that LoHa, LoKr and LoCon share."""

    use_tucker: bool = setting(False, title="Tucker decomposition (CP)", help=TUCKER)
    use_scalar: bool = setting(
        False,
        title="Trainable scalar",
        help="Trains one more number for each layer, which scales its change and starts at 0; all matrices then start random.",
    )

    def problems(self, network: NetworkSettings) -> Iterator[Problem]:
        """Yield advice on a Tucker decomposition without trained 3x3 convolutions."""
        if self.use_tucker and not network.trains_conv and not network.layers:
            what = "Tucker decomposition has no effect: no 3x3 convolutions are trained"
            fix = "set network.conv_rank, or turn it off"
            yield Problem(what, f"{network.kind}.use_tucker", fix, "advice", code="network.tucker-without-convolutions")

    def summary(self) -> str:
        """Return the options that are on in one line."""
        return ", ".join(words for words, on in (("Tucker", self.use_tucker), ("scalar", self.use_scalar)) if on)


class LohaSettings(ProductSettings):
    """Options of LoHa."""


class LoconSettings(ProductSettings):
    """Options of LoCon."""

    use_tucker: bool = setting(True, title="Tucker decomposition (CP)", help=TUCKER)


class LokrSettings(ProductSettings):
    """Options of LoKr."""

    factor: int = setting(
        -1,
        ge=-1,
        le=1024,
        help="Splits each width of a layer into two numbers, the smaller at most this: the size of the small matrix. 4 to 8 make larger and stronger files; -1 splits as evenly as possible.",
    )
    decompose_both: bool = setting(
        False,
        needs="!full_matrix",
        help="Makes the small matrix low-rank too, where the rank is below half its size.",
    )
    full_matrix: bool = setting(
        False, help="Keeps the large matrix whole at any rank. Rank and alpha then have no effect."
    )
    unbalanced_factorization: bool = setting(
        False, help="Swaps the two numbers of the output width, so that the small matrix has the larger one."
    )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted path, reason) for ranks and alphas if both matrices are whole."""
        if self.full_matrix:
            for name in ("rank", "rs_lora", *sorted(SIZES - {"rank"})):
                yield f"network.{name}", "both matrices are whole (full_matrix)"

    def summary(self) -> str:
        """Return the options that are on in one line."""
        on = {"decompose_both": "both decomposed", "full_matrix": "full matrix"}
        parts = [f"factor {self.factor}"] if self.factor != -1 else []
        parts += [words for name, words in on.items() if getattr(self, name)]
        return ", ".join([*parts, *filter(None, [super().summary()])])
