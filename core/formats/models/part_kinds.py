"""The kinds of model parts, by the class that a part's config.json names.

Reading, checking, building and writing a part all follow from its kind; a family registers further ones with `register`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from core.formats.detect import class_of
from core.formats.models import sd_keys, text_keys

State = Mapping[str, Any]  # of lazy tensors: core.formats.tensors.lazy.LazyTensor
Accepts = Callable[[Any], bool]
# Fields passed to a text encoder's class; it would accept any other name of a config too.
TEXT_FIELDS = frozenset(
    (
        *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers"),
        *("num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout"),
        *("initializer_range", "initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id"),
    )
)
VAE_ATTENTION = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
PROJECTIONS = (".proj_in.weight", ".proj_out.weight")


def _unchanged(part: Any, state: Any) -> Any:
    """Return `state`."""
    return state


@dataclass(frozen=True, eq=False)
class PartKind:
    """A kind of model part.

    name      the class in config.json: `_class_name` of diffusers, `architectures` of transformers
    module    the Python module of that class
    needed    config keys without which the class would use its defaults
    config    (module, class) of transformers' config; None: diffusers builds the part from the dict
    fields    config keys passed to that config class; None: all
    checks    {config key: value -> is it valid}, in addition to the checks of all kinds (core/formats/models/part_config.py)
    rename    a tensor's name in a diffusers folder -> its name in `Part.locations`
    tied      {second name of a tensor that files store once: its first name}
    named     (module, state dict) -> the state dict with the module's names in the installed library version
    unused    names of tensors that are not read
    wide      prefixes of names that stay in float32 whatever the part's dtype
    overflows True if activations exceed fp16's range, so that it is loaded in bf16 or fp32
    in_folder (config, tensors by `Part.locations` names) -> tensors with the names and shapes of a diffusers folder
    stem      of the weight file's name in a diffusers folder
    """

    name: str
    module: str
    needed: tuple[str, ...]
    config: tuple[str, str] | None = None
    fields: frozenset[str] | None = None
    checks: Mapping[str, Accepts] = field(default_factory=dict)
    rename: Callable[[str], str] = str
    tied: Mapping[str, str] = field(default_factory=dict)
    named: Callable[[Any, Mapping[str, Any]], dict[str, Any]] = _unchanged
    in_folder: Callable[[Mapping[str, Any], State], State] = _unchanged
    unused: frozenset[str] = frozenset()
    wide: tuple[str, ...] = ()
    overflows: bool = False
    stem: str = "diffusion_pytorch_model"

    def module_builder(self) -> Callable[[Mapping[str, Any]], Any]:
        """Import the class and return a function that builds the module from a config."""
        part_class = getattr(import_module(self.module), self.name)
        if self.config is None:
            return lambda config: part_class.from_config(dict(config))
        module, name = self.config
        config_class = getattr(import_module(module), name)
        return lambda config: part_class(config_class(**self._arguments(config)))

    def _arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config's values that the config class takes (`fields`)."""
        return {key: value for key, value in config.items() if self.fields is None or key in self.fields}


def _unet_in_folder(config: Mapping[str, Any], state: State) -> State:
    """Reshape proj_in and proj_out to matrices with `use_linear_projection`, else to 1x1 convolutions."""
    ones = () if config.get("use_linear_projection") else (1, 1)
    return {
        name: tensor.in_shape(*tensor.shape[:2], *ones) if name.endswith(PROJECTIONS) else tensor
        for name, tensor in state.items()
    }


def _vae_in_folder(config: Mapping[str, Any], state: State) -> State:
    """Reshape the attention's weights to matrices."""
    return {
        name: tensor.in_shape(*tensor.shape[:2]) if ".attentions." in name and name.endswith(VAE_ATTENTION) else tensor
        for name, tensor in state.items()
    }


def _text_in_folder(config: Mapping[str, Any], state: State) -> State:
    """Add the prefix "text_model." to the names, which every version of transformers reads."""
    return {text_keys.full_name(name): tensor for name, tensor in state.items()}


def _clip(name: str, unused: frozenset[str] = frozenset()) -> PartKind:
    """Return the kind of transformers' CLIP class `name`. `unused`: names of tensors that are not read."""
    return PartKind(
        name,
        "transformers.models.clip.modeling_clip",
        needed=("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        config=("transformers.models.clip.configuration_clip", "CLIPTextConfig"),
        fields=TEXT_FIELDS,
        rename=text_keys.bare_name,
        named=text_keys.state_for,
        in_folder=_text_in_folder,
        unused=unused,
        stem="model",
    )


PART_KINDS: dict[str, PartKind] = {}


def register(kind: PartKind) -> None:
    """Register a kind, which is then used for every config.json that names its class."""
    PART_KINDS[kind.name] = kind


register(
    PartKind(
        "UNet2DConditionModel",
        "diffusers.models.unets.unet_2d_condition",
        needed=("block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim"),
        in_folder=_unet_in_folder,
    )
)
register(
    PartKind(
        "AutoencoderKL",
        "diffusers.models.autoencoders.autoencoder_kl",
        needed=("block_out_channels", "down_block_types", "up_block_types"),
        rename=sd_keys.vae_to_diffusers,
        in_folder=_vae_in_folder,
    )
)
register(_clip("CLIPTextModel", frozenset({"text_projection.weight"})))  # without a pooled output
register(_clip("CLIPTextModelWithProjection"))

# The kinds of SD's parts in single files, and in folders whose config names no class.
USUAL = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
TITLES = {"unet": "U-Net", "vae": "VAE", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}


def part_title(name: str) -> str:
    """Return a part's name for messages: "U-Net", "second text encoder", "transformer"."""
    return TITLES.get(name, name.replace("_", " "))


def kind_of(name: str, config: Mapping[str, Any]) -> PartKind | None:
    """Return the kind of a part by the class in its config, else by its folder's name.

    None for parts that are not used, such as a safety checker.
    """
    kind = PART_KINDS.get(class_of(config))
    return kind or (PART_KINDS[USUAL[name]] if name in USUAL else None)
