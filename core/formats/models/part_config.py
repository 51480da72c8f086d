"""Checks the config of a model part before modules are built from it: types and plausible values."""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from core.formats.models.part_kinds import PartKind
from core.record.problems import ProblemsError

FIX = "download the model folder again"
MOST_BLOCKS = 8


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    """Return a check for integers from `low` to `high`."""
    return lambda value: type(value) is int and low <= value <= high


def _or_list(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check that accepts one value for all blocks, or a list with a value or a list of values for each block.
    accepts: the check of a single value"""

    def check(value: Any) -> bool:
        """Return whether `value` is such a value or list."""
        if not isinstance(value, list):
            return accepts(value)
        inner = [each for item in value for each in (item if isinstance(item, list) else [item])]
        return 1 <= len(value) <= MOST_BLOCKS and len(inner) <= 64 and all(map(accepts, inner))

    return check


def _or_none(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check that accepts None and what `accepts` does."""
    return lambda value: value is None or accepts(value)


def _list(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check for a list of 1 to MOST_BLOCKS values that `accepts` does."""
    return lambda value: isinstance(value, list) and 1 <= len(value) <= MOST_BLOCKS and all(map(accepts, value))


def _factor(value: Any) -> bool:
    """Return whether the value is a number from 0.001 to 1000."""
    return type(value) in (int, float) and isfinite(value) and 1e-3 <= value <= 1e3


def _name(value: Any) -> bool:
    """Return whether the value is a text of at most 100 characters."""
    return isinstance(value, str) and len(value) <= 100


_SIZE, _LAYERS, _SWITCH = _integer(1, 65_536), _integer(1, 128), lambda value: isinstance(value, bool)
RULES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "in_channels", "out_channels", "latent_channels"), _SIZE),
    **dict.fromkeys(("norm_num_groups", "max_position_embeddings", "projection_dim"), _SIZE),
    **dict.fromkeys(("addition_time_embed_dim", "projection_class_embeddings_input_dim"), _or_none(_SIZE)),
    **dict.fromkeys(("cross_attention_dim", "attention_head_dim", "num_attention_heads"), _or_none(_or_list(_SIZE))),
    **dict.fromkeys(("layers_per_block", "num_hidden_layers"), _or_list(_LAYERS)),
    **dict.fromkeys(
        ("transformer_layers_per_block", "reverse_transformer_layers_per_block"), _or_none(_or_list(_LAYERS))
    ),
    **dict.fromkeys(("down_block_types", "up_block_types"), _list(_name)),
    **dict.fromkeys(("hidden_act", "act_fn"), _name),
    **dict.fromkeys(("upcast_attention", "use_linear_projection", "force_upcast"), _or_none(_SWITCH)),
    "block_out_channels": _list(_SIZE),
    "num_hidden_layers": _LAYERS,
    "vocab_size": _integer(1, 1_000_000),
    "scaling_factor": _factor,
    "sample_size": _or_none(_or_list(_SIZE)),
}


def check_config(kind: PartKind, config: Mapping[str, Any], where: str, *, complete: bool = True) -> None:
    """Raise ProblemsError for a config value that is invalid for this kind of part.

    where     the file named in the problem
    complete  also require all values that the kind needs
    """
    for name in kind.needed if complete else ():
        if config.get(name) is None:
            raise ProblemsError.one(f"The config has no {name}", where, FIX, code="model.bad-config")
    for name, value in config.items():
        accepts = kind.checks.get(name) or RULES.get(name)
        if accepts is not None and not accepts(value):
            raise ProblemsError.one(
                f"The config's {name} is invalid: {_abbreviated(value)}", where, FIX, code="model.bad-config"
            )


def _abbreviated(value: Any) -> str:
    """Return the value's repr, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + " ..."
