"""The tool that makes control images for a folder of images with an ONNX model."""

from dataclasses import dataclass

import numpy as np

from core.control.hints.by_model import open_model
from core.control.hints.models import ModelFile, checked_model
from core.dataset.images.colors import WHITE
from core.formats.onnx.providers import CPU, onnxruntime, provider_title, providers_for
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, collected, raise_if_errors
from core.record.workspace import Workspace
from core.settings.tools.hints import HintsByModelSettings
from core.tools.images.folders import FolderPlan
from core.tools.images.hints import folder_plan, make_control_images

MODEL, PROVIDER = "hints_by_model.hint_model", "hints_by_model.provider"


@dataclass(frozen=True)
class Plan(FolderPlan):
    """The folders and the ONNX model."""

    model: ModelFile


def plan(settings: HintsByModelSettings, workspace: Workspace) -> Plan:
    """Check the folder, the model and the execution provider, and return the plan. Raises ProblemsError with all problems."""
    problems: list[Problem] = []
    collected(problems, folder_plan, settings, "", workspace)
    model = collected(problems, checked_model, settings.hint_model, workspace, MODEL)
    if settings.provider != "auto":
        collected(problems, _providers, settings, "")
    raise_if_errors(problems)
    assert model is not None
    folders = folder_plan(settings, model.title, workspace)
    return Plan(model.title, folders.folder, folders.output, model)


def _providers(settings: HintsByModelSettings, device: str) -> list[str]:
    """Return onnxruntime's execution providers for the setting, in order of preference. Raises ProblemsError if the provider is not
    installed."""
    return providers_for(settings.provider, device, onnxruntime().get_available_providers(), PROVIDER)


def do(settings: HintsByModelSettings, plan: Plan, context: JobContext) -> Outcome:
    """Load the model and write the control images."""
    context.stage(f"loading {plan.model.title}")
    with open_model(plan.model, _providers(settings, context.device), context.device, context.cancel) as model:
        context.say(f"{plan.model.title} runs on {provider_title(model.provider)}")
        if model.provider != model.preferred and model.provider == CPU:
            what = f"onnxruntime cannot use {provider_title(model.preferred)} here, so the model runs on the CPU"
            fix = "run python webui.py check; its CUDA libraries come with the CUDA build of torch"
            context.say(what, "warning", fix)
        return make_control_images(settings, plan, context, lambda opened, _: model.make(np.asarray(opened.on(WHITE))))
