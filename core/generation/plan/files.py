"""Finds and checks the files of a generation by their headers, before anything is loaded."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from core.diffusion.samplers import noise_problem, sampler_problem, schedule_problem
from core.families import family
from core.families.locate import GENERATED, REFINER, check_clip_skip, family_of, model_path, vae_problems
from core.families.prompt_weights import FIX
from core.families.trained_size import default_guidance
from core.formats.detect import identify
from core.formats.lora.names import group_by_module
from core.formats.models.checkpoint import open_vae
from core.generation.model.embeddings import Embedding, check_token, find_embeddings, without_repeated_tokens
from core.generation.model.library import ambiguity_advice, find_all, named_embeddings
from core.generation.model.other_files import REFINER_FILE, check_upscaler, control_file, find_refiner
from core.generation.model.sources import Sources
from core.generation.plan.hooks import prompts_of
from core.generation.plan.stages import passes_of, stages_of
from core.generation.prompt.editing import wrong_weight_in
from core.generation.prompt.loras import LORAS, with_prompt_loras
from core.networks.adapter_file import LoraFile
from core.networks.block_weights import PRESETS, SLOTS, block_weights, slot_of, unlisted
from core.networks.files import check_layers, zero_alpha_problems
from core.record.problems import Problem, ProblemsError, collected, problems_at
from core.record.workspace import Workspace, display_path
from core.settings.base import value_of
from core.settings.blocks import has_nine_blocks
from core.settings.generation.generate import GenerateSettings
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES

Checked = TypeVar("Checked")
FEW_STEP_GUIDANCE = 3.0  # more is too much for them
# LCM, DMD2, TCD, SDXL-Lightning, SDXL-Turbo and Hyper-SD, by the sampler that they are used with
FEW_STEPS = re.compile(
    r"(?<![a-z])(?:(?P<lcm>lcm|dmd2)|(?P<tcd>tcd)|(?P<euler>sd_?xl[-_ ]?(?:lightning|turbo)|hyper[-_ ]?sd(?:xl|15)?))(?![a-z])",
    re.IGNORECASE,
)


def with_model_schedule(job: GenerateJob, sources: Sources) -> GenerateJob:
    """Return the job with zero terminal SNR set to "on" or "off" instead of "auto"."""
    used = "on" if uses_zero_terminal_snr(job, sources) else "off"
    return job.with_settings(generate={"zero_terminal_snr": used})


def with_model_guidance(job: GenerateJob, model: Path) -> GenerateJob:
    """Return the job with the model's default guidance scale if it sets none."""
    if job.generate.guidance_scale is not None:
        return job
    return job.with_settings(generate={"guidance_scale": default_guidance(model)})


def find_sources(job: GenerateJob, workspace: Workspace, images: Sequence[GenerateJob] = ()) -> Sources:
    """Find and check all files of a job by their headers. Raises ProblemsError with all problems, before a model is loaded.
    images: jobs of the single images, if known: their prompts may name further LoRAs and embeddings"""
    problems, notes = list[Problem](), list[Problem]()
    jobs = list(images) or [collected(problems, with_prompt_loras, job) or job]
    model = collected(problems, model_path, job.model.base_model, workspace, "model.base_model")
    family_name = collected(problems, family_of, model, job.model.family, GENERATED) if model else None
    if model and family_name:
        collected(problems, check_clip_skip, job.model.clip_skip, model, family_name)
    vae = collected(problems, model_path, job.model.vae, workspace, "model.vae") if job.model.vae else None
    vae_part = collected(problems, open_vae, vae) if vae else None
    problems += lora_problems(jobs, family_name)
    check_lora = partial(problems_at(LORAS)(check_layers), family_name=family_name or "sd1")
    uses = [use.file for each in jobs for use in each.generate.loras]
    checked_loras = list(_checked_files("lora", uses, check_lora, workspace, problems, notes))
    loras = {file: path for file, path, _ in checked_loras}
    notes += [note for _, _, lora in checked_loras if lora is not None for note in zero_alpha_problems(lora)]
    notes += _unlisted_block_advice(jobs, {file: lora for file, _, lora in checked_loras if lora is not None})
    notes += _few_step_advice(jobs, loras, default_guidance(model)) if model else ()
    refiners: dict[str, Any] = {
        file: collected(problems, find_refiner, file, workspace, family_name)
        for file in dict.fromkeys(each.refiner.refiner_checkpoint for each in jobs)
        if file
    }
    check_net = partial(control_file, family=family_name, model=model)
    uses = [use.file for each in jobs for use in each.controls.used]
    named_nets = _checked_files("controlnet", uses, check_net, workspace, problems, notes)
    controls = {file: net for file, _, net in named_nets if net is not None}
    embeddings = _chosen_embeddings(job.generate.embeddings, family_name, model, workspace, problems)
    if model and family_name:
        embeddings += _prompt_embeddings(jobs, embeddings, family_name, model, workspace, loras.values(), notes)
    problems += [problem for each in jobs for problem in image_problems(each, family_name, bool(loras))]
    if problems:
        raise ProblemsError(list(dict.fromkeys(problems)))
    assert model is not None and family_name is not None
    notes += vae_problems(vae_part, family_name, "model.vae") if vae_part else ()
    if unused := None if vae else _a1111_vae(model):
        what = f"A1111 uses the VAE {unused.name} next to the model; here it is not used"
        fix = f"set the VAE to {display_path(unused)}"
        notes.append(Problem(what, "model.vae", fix, "advice", code="generate.vae-beside"))
    if embeddings and refiners:
        what, fix = "The refiner reads the names of embeddings as plain words", "switch later, or turn it off"
        notes.append(Problem(what, REFINER_FILE, fix, "advice", code="refiner.embeddings"))
    return Sources(model, family_name, vae, loras, embeddings, notes, refiners, controls)


def find_upscalers(
    jobs: Iterable[GenerateJob], family_name: str, workspace: Workspace, problems: list[Problem]
) -> dict[str, Path]:
    """Find and check the upscaler files of hires fix; return {name in the settings: path}. problems: receives errors and advice"""
    used = [each.hires.highres_fix_upscaler_file for each in jobs if each.hires.highres_fix_scale is not None]
    files = _checked_files(
        "upscaler",
        filter(None, used),
        lambda path: check_upscaler(identify(path), path, family_name),
        workspace,
        problems,
        problems,
    )
    return {name: path for name, path, _ in files}


def _a1111_vae(model: Path) -> Path | None:
    """Return the VAE that A1111 loads with a model of one file, NAME.vae.safetensors or .vae.pt next to it; None if there is none."""
    paths = (model.with_suffix(f".vae{ending}") for ending in (".safetensors", ".pt", ".ckpt"))
    return next((path for path in paths if path.is_file()), None)


def _checked_files(
    kind: str,
    names: Iterable[str],
    check: Callable[[Path], Checked],
    workspace: Workspace,
    problems: list[Problem],
    notes: list[Problem],
) -> Iterator[tuple[str, Path, Checked | None]]:
    """Find and check the files of `kind` (of `library.KINDS`); yield (name in the settings, path, result of `check`) for each found one.

    The result is None if `check` raised ProblemsError.

    problems   receives errors of missing files and of `check`
    notes      receives advice about names that match several files
    """
    for name in dict.fromkeys(names):
        if paths := collected(problems, find_all, kind, name, workspace):
            yield name, paths[0], collected(problems, check, paths[0])
            notes += ambiguity_advice(kind, name, paths)


def _chosen_embeddings(
    texts: Sequence[str], family_name: str | None, model: Path | None, workspace: Workspace, problems: list[Problem]
) -> list[Embedding]:
    """Return the embeddings in the setting `generate.embeddings`, without repeated tokens.

    texts      "FILE" or "TOKEN=FILE"
    problems   receives errors of missing files and, if family and model are known, of embeddings that do not fit them
    """
    embeddings: list[Embedding] = []
    for text in texts:
        for embedding in collected(problems, find_embeddings, text, workspace) or ():
            if model and family_name:
                collected(problems, check_token, embedding, embeddings, family_name, model)
            embeddings.append(embedding)
    return without_repeated_tokens(embeddings)


def model_problems(sources: Sources) -> list[Problem]:
    """Return the errors that loading the model, its VAE and its refiners would raise, from their headers alone."""
    problems = family(sources.family).problems(sources.model, sources.vae)
    return problems + [each for path in sources.refiners.values() for each in family(REFINER).problems(path)]


def _prompt_embeddings(
    jobs: Sequence[GenerateJob],
    chosen: Sequence[Embedding],
    family_name: str,
    model: Path,
    workspace: Workspace,
    loras: Iterable[Path],
    notes: list[Problem],
) -> list[Embedding]:
    """Return the embeddings under models/ and in LoRA files that prompts name, beyond the `chosen` ones.

    Of several with the same name, the first that fits the model is used.

    notes   receives advice about the others that fit, and about names of which no file fits
    """
    texts = [text for each in jobs for text in prompts_of(each)]
    names = {word.casefold() for embedding in chosen for word in embedding.names}
    tokens = {(embedding.path, embedding.token) for embedding in chosen}
    fitting: dict[str, list[Embedding]] = {}
    unfit: dict[str, list[Problem]] = {}
    for embedding in (Embedding(*each) for each in named_embeddings(texts, workspace, loras)):
        name = embedding.name.casefold()
        if name in names or (embedding.path, embedding.token) in tokens:
            continue
        try:
            check_token(embedding, (), family_name, model)
            fitting.setdefault(name, []).append(embedding)
        except ProblemsError as error:
            unfit.setdefault(name, []).extend(
                replace(each, what=f"'{name}' is read as text: {each.what}", level="advice") for each in error.problems
            )
    for candidates in fitting.values():
        notes += ambiguity_advice("embedding", candidates[0].name, [each.path for each in candidates])
    notes += [note for name, advice in unfit.items() if name not in fitting for note in advice]
    return [candidates[0] for candidates in fitting.values()]


def image_problems(job: GenerateJob, family_name: str | None, has_loras: bool) -> Iterator[Problem]:
    """Yield problems of one image's prompt weights, size and sampler.

    family_name   of the model; None: skip checks that need it
    has_loras     skip the check of the sampler's objective, since LoRAs may be trained for another one
    """
    settings = job.generate
    yield from weight_problems(job)
    problems = [schedule_problem(settings.sampler, settings.schedule_type, "generate.schedule_type")]
    if family_name:
        yield from size_problems(job, FAMILIES[family_name].size_step)
        if not has_loras:  # it may have been trained for another objective
            problems.append(sampler_problem(settings.sampler, family(family_name).objective, "generate.sampler"))
    if any(stage.run is not None for stage in stages_of(job)):
        problems.append(noise_problem(settings.sampler, "generate.sampler"))
    yield from (problem for problem in problems if problem is not None)


def size_problems(
    job: GenerateJob, step: int, sides: Sequence[str] = ("generate.width", "generate.height")
) -> Iterator[Problem]:
    """Yield errors of sides that are not multiples of `step` pixels. sides: settings that hold them"""
    for path in sides:
        length = value_of(job, path) or step
        if length % step:
            what = f"Images of this model's family have sides that are multiples of {step}"
            yield Problem(what, path, f"use {length // step * step}", code="generate.size-step")


def lora_problems(jobs: Sequence[GenerateJob], family_name: str | None) -> Iterator[Problem]:
    """Yield errors of invalid block weights and empty step ranges of LoRAs. family_name: None if unknown"""
    sdxl = None if family_name is None else has_nine_blocks(family_name)
    for use in [use for each in jobs for use in each.generate.loras]:
        try:
            block_weights(use.block_weights or "ALL", sdxl)
        except ValueError as error:
            fix = f"use a name ({', '.join(PRESETS)}), or as many numbers as the model has blocks"
            yield Problem(f"{use.file}: {error}", LORAS, fix, code="lora.block-weights")
        if use.start_at >= use.end_at:
            what = f"{use.file} starts at {use.start_at:g} of the steps and ends at {use.end_at:g}"
            yield Problem(what, LORAS, "use a later end, or turn it off", code="lora.step-range")


def _unlisted_block_advice(jobs: Sequence[GenerateJob], loras: Mapping[str, LoraFile]) -> Iterator[Problem]:
    """Yield advice about LoRAs with layers in blocks that their list of block weights leaves out. loras: {name in the settings: outline}"""
    for file, text in dict.fromkeys((use.file, use.block_weights) for job in jobs for use in job.generate.loras):
        layers = group_by_module(loras[file].tensors) if text and file in loras else ()
        kept = [slot for name in layers if (slot := slot_of(name)) is not None and slot in unlisted(text or "")]
        if kept:
            blocks = ", ".join(SLOTS[slot] for slot in sorted(set(kept)))
            what = f"The list leaves out blocks with {len(kept)} of {len(layers)} layers of {file}, which keep strength 1: {blocks}"
            yield Problem(what, LORAS, "write 26 numbers to set them too", "advice", code="lora.unlisted-blocks")


def _few_step_advice(jobs: Sequence[GenerateJob], loras: Mapping[str, Path], default: float) -> Iterator[Problem]:
    """Yield advice about LoRAs for few steps, by the names of their releases, that are used with a usual guidance scale.

    loras     {name in the settings: path}
    default   guidance scale of a job that sets none
    """
    uses = ((use, job.generate.guidance_scale) for job in jobs for use in job.generate.loras)
    for file, scale in dict.fromkeys((use.file, scale) for use, scale in uses if use.used and use.file in loras):
        guidance, name = default if scale is None else scale, loras[file].name
        match = FEW_STEPS.search(name) if guidance > FEW_STEP_GUIDANCE else None
        if match and "cfg" not in name.lower():  # Hyper-SDXL-8steps-CFG-lora takes guidance
            what = f"By its name, {name} is a LoRA for 1 to 8 steps without guidance; with {guidance:g} images are oversaturated"
            fix = f"set the guidance scale to 1, the sampler to {match.lastgroup} and the steps to the LoRA's, or turn it off"
            yield Problem(what, "generate.guidance_scale", fix, "advice", code="lora.few-steps")


def weight_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield errors of prompt weights that are not numbers, in the prompt and the negative prompt."""
    for name in ("prompt", "negative_prompt") if job.generate.prompt_weights else ():
        if error := wrong_weight_in(getattr(job.generate, name), passes_of(job)):
            what = f"{GenerateSettings.title_of(name)}: {error}"
            yield Problem(what, f"generate.{name}", FIX, code="prompt.bad-weight")


def marked_files(job: GenerateJob, sources: Sources) -> list[Path]:
    """Return the model, LoRA and embedding files in use whose metadata marks zero terminal SNR."""
    loras = [sources.loras[use.file] for use in job.generate.loras if use.used]
    files = [sources.model, *loras, *(embedding.path for embedding in sources.embeddings)]
    return [path for path in files if identify(path).zero_terminal_snr]


def uses_zero_terminal_snr(job: GenerateJob, sources: Sources) -> bool:
    """Return whether to sample with zero terminal SNR: as set, or for "auto" if any file in use is marked for it."""
    choice = job.generate.zero_terminal_snr
    return bool(marked_files(job, sources)) if choice == "auto" else choice == "on"
