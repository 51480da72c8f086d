"""A toy hook of a generation: a ControlNet file that sees a control image, `--c` of a prompt included."""

from core.generation.hooks import HookKind, register
from core.record.problems import Problem, ProblemsError
from core.record.workspace import resolve_path
from core.settings.base import Settings, setting


class ControlledSettings(Settings):
    """A ControlNet and what it sees."""

    weights: str | None = setting(None, title="ControlNet", hint="none", help="Its file.", names="path or name")
    image: str | None = setting(None, title="Control image", hint="none", help="What it follows.", names="path")
    strength: float = setting(1.0, within=(0, 2), title="Control strength", help="Multiplies what it adds.")


def _file(job, workspace):
    from core.families.locate import model_path

    return model_path(job.controlled.weights, workspace, "controlled.weights")


def _file_problems(job, sources, workspace):
    from core.formats.detect import identify
    from core.generation.initial import opened

    if not job.controlled.weights:
        return
    if not job.controlled.image:
        yield Problem("The ControlNet sees no image", "controlled.image", "choose one", code="controlled.no-image")
        return
    try:
        opened(resolve_path(job.controlled.image), "controlled.image")
        found = identify(_file(job, workspace))
    except ProblemsError as error:
        yield from error.problems
        return
    if found.kind != "controlnet":
        yield Problem("This file is no ControlNet", "controlled.weights", "choose one", code="controlled.other-file")


def _make(making):
    from dataclasses import replace

    from safetensors.torch import load_file

    from core.generation.initial import fitted, opened, pixels_of
    from core.generation.loop import Hook
    from tests.seams.toys.control import _beside

    asked = making.job.controlled
    if not asked.weights or not asked.strength:
        return None
    unet = making.components.denoiser
    side = _beside(unet)
    side.net.load_state_dict(load_file(resolve_path(asked.weights)))
    side.to(unet.device, unet.dtype).eval()
    side.scale = asked.strength
    image = fitted(opened(resolve_path(asked.image), "controlled.image"), making.stage.size, "resize")
    shown = ((pixels_of(image) + 1) / 2).to(unet.device)

    class Controlled(Hook):
        def conditioned(self, at, noisy, given):
            given = replace(given, control=shown.expand(len(noisy), *shown.shape[1:]))
            return replace(given, added=side(noisy, at.timestep, given))

    return Controlled()


register(
    HookKind(
        "controlled",
        "Control",
        _make,
        ControlledSettings,
        file_problems=_file_problems,
        inline={"clip_prompt": "image"},
    )
)
