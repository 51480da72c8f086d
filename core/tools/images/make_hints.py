"""The tool that makes control images for a folder of images with a preprocessor."""

from dataclasses import replace

import numpy as np

from core.control.hints import make_hint, preprocessors, unused_settings
from core.dataset.images.colors import BLACK, WHITE
from core.dataset.images.opening import DecodedImage
from core.record.context import JobContext, Outcome
from core.record.draws import address
from core.record.workspace import Workspace
from core.settings.tools.hints import MakeHintsSettings
from core.tools.images.folders import FolderPlan
from core.tools.images.hints import folder_plan, make_control_images


def plan(settings: MakeHintsSettings, workspace: Workspace) -> FolderPlan:
    """Return the plan, named after the preprocessor. Raises ProblemsError as `folder_plan`."""
    title = preprocessors()[settings.preprocessor].title
    return replace(folder_plan(settings, settings.preprocessor, workspace), title=title)


def do(settings: MakeHintsSettings, plan: FolderPlan, context: JobContext) -> Outcome:
    """Write the control images; warn of changed settings that the preprocessor does not use."""
    fields = MakeHintsSettings.model_fields
    for name in sorted(unused_settings({"preprocessor": settings.preprocessor}) & fields.keys()):
        if getattr(settings, name) != fields[name].default:
            context.say(f"'{settings.title_of(name)}' has no effect with {plan.title}", "warning")

    def hint(opened: DecodedImage, relative: str) -> np.ndarray:
        """Return the control image of an image, RGB uint8 [H, W, 3]. `relative`: its path, which seeds random preprocessors."""
        if settings.preprocessor == "inpaint" and opened.alpha is not None:
            return np.asarray(opened.on(BLACK))
        seed = address(settings.hint_seed, "hint", relative)
        return make_hint(np.asarray(opened.on(WHITE)), settings.model_copy(update={"hint_seed": seed}))

    return make_control_images(settings, plan, context, hint)
