"""A toy family: three linear layers per latent, 8 channels, no U-Net, trained by flow matching. Declared without torch."""

from core.diffusion.objectives import ObjectiveKind
from core.diffusion.objectives import register as register_objective
from core.families import register
from core.formats.detect import ModelKind, read_json
from core.settings.model import FamilyTraits


def _recognizes(tensors, metadata):
    if not any(name.startswith("linear.") for name in tensors):
        return None
    return ModelKind("checkpoint", "linear", "single_file", "epsilon", "its keys begin with linear.")


def _recognizes_folder(path):
    config = read_json(path / "mlp" / "config.json")
    if config is None or config.get("_class_name") != "Denoiser":
        return None
    return ModelKind("checkpoint", "linear", "diffusers", "epsilon", "mlp/config.json names Denoiser")


def _flow(job, prediction, device):
    from tests.seams.toys.linear_family import Flow

    return Flow()


register_objective(ObjectiveKind("flow", "Flow matching", _flow), choice=False)
traits = FamilyTraits("flow", unused=(("model.clip_skip", "ignored: one layer"),))
register("linear", "Linear toy", "tests.seams.toys.linear_family", _recognizes, traits, _recognizes_folder)
