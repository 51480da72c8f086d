"""A toy family that is a real one in small: diffusers' SD3 transformer, three text encoders, 16 latent channels, flow matching.
It comes as a diffusers folder. Declared without torch."""

from core.diffusion.objectives import ObjectiveKind
from core.diffusion.objectives import register as register_objective
from core.diffusion.samplers import register as register_sampler
from core.families import register
from core.formats.detect import ModelKind, read_json
from core.formats.models.part_kinds import PartKind
from core.formats.models.part_kinds import register as register_part
from core.settings.model import FamilyTraits

register_part(
    PartKind(
        "SD3Transformer2DModel",
        "diffusers.models.transformers.transformer_sd3",
        needed=("num_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim"),
        wide=("pos_embed.pos_embed",),
        checks={"num_layers": lambda value: type(value) is int and 1 <= value <= 100},
    )
)
register_part(
    PartKind(
        "T5EncoderModel",
        "transformers.models.t5.modeling_t5",
        needed=("d_model", "num_layers", "num_heads", "d_ff"),
        config=("transformers.models.t5.configuration_t5", "T5Config"),
        overflows=True,
        tied={"encoder.embed_tokens.weight": "shared.weight"},
        stem="model",
    )
)


def _recognizes(tensors, metadata):
    return None  # it comes as a folder only


def _recognizes_folder(path):
    config = read_json(path / "transformer" / "config.json")
    if config is None or config.get("_class_name") != "SD3Transformer2DModel":
        return None
    return ModelKind("checkpoint", "dit", "diffusers", "flow", "transformer/config.json names SD3Transformer2DModel")


def _flow(job, prediction, device):
    from tests.seams.toys.dit_family import Flow

    return Flow()


def _euler(prediction, zero_terminal_snr):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


register_objective(ObjectiveKind("dit_flow", "Flow matching", _flow), choice=False)
register_sampler("flow_euler", "Euler (flow)", _euler, frozenset({"dit_flow"}))
register(
    "dit",
    "DiT toy",
    "tests.seams.toys.dit_family",
    _recognizes,
    FamilyTraits(
        "dit_flow",
        unused=(
            ("model.prediction", "ignored: it predicts the way from image to noise"),
            ("network.conv_rank", "ignored: none of its layers is a convolution"),
        ),
        size_step=16,
        single_file=False,
        unet=False,
        clip=False,
    ),
    _recognizes_folder,
    lora_names="lora_unet_transformer_blocks_",
)
