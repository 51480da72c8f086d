"""All problems of a training before it starts, as one list for the command line, the page and the run."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from core.dataset.buckets.batches import Placed
from core.dataset.captions.pipeline import longest_captions, plain_caption
from core.dataset.captions.words import word_pattern
from core.dataset.doctor.examine import held_out_copies
from core.dataset.report import Report
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import names_of
from core.diffusion.samplers import sampler_problem
from core.families import family
from core.families.attention import memory_problems
from core.families.locate import base_model_family, model_path, model_problems
from core.families.prompt_weights import FIX, escape_brackets, weight_error
from core.families.trained_size import trained_size
from core.formats.detect import identify
from core.formats.hub.upload import upload_problem
from core.generation.prompt.sample_prompts import SamplePrompt, as_prompt, read_prompts
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError, errors, errors_first
from core.record.secrets import secret
from core.record.workspace import Workspace
from core.settings.dataset.concepts import training_resolution
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.model import FAMILIES
from core.settings.rules import length_problems, set_without_effect, training_problems
from core.settings.rules.noise import prediction_problems
from core.training.checks.demo_setup import demo_problems
from core.training.checks.named_files import named_file_problems
from core.training.loop.prior import has_prior, prior_problems
from core.training.memory.disk import disk_problems
from core.training.saving.resume import start_step_problems
from core.training.sharding.fast_disk import space_problems


def problems_before_start(
    job: TrainJob,
    workspace: Workspace,
    report: Report,
    device: str | None = None,
    *,
    new_run: bool = True,
    copies: bool = True,
    model: bool = True,
    written: int = 0,
    cancel: CancelToken | None = None,
) -> list[Problem]:
    """Return all problems that prevent or affect a start, errors first, each once.

    device   None if it is not known yet: problems of the device, and of the files of a new run, are then left out
    new_run  the run has no training state yet
    copies   report held-out images that are copies of training images, which reads the files
    model    check the base model and VAE too; the command line may have to download them first
    written  bytes of the files that the run has written already
    """
    problems = problems_without_model(job, workspace, report, device, new_run=new_run)
    if new_run and copies:
        problems += held_out_copies(report, workspace.private / "index.sqlite", cancel)
    if model:
        problems += [*model_problems(job.model, workspace), *problems_with_model(job, workspace)]
        if device is not None and not report.undecoded and not errors(problems):
            problems += disk_problems(job, workspace, report, written)
    return errors_first(problems)


def problems_without_model(
    job: TrainJob,
    workspace: Workspace,
    report: Report,
    device: str | None = None,
    *,
    new_run: bool = True,
) -> list[Problem]:
    """Return the problems of settings, images, files and device, without those of the base model. Arguments: see
    `problems_before_start`."""
    problems = [*training_problems(job), *report.problems, *prior_problems(job, report.placed)]
    problems += demo_problems(job, workspace)
    problems += weight_problems(job, [*report.placed, *report.validation])
    problems += bracket_problems(job, report.placed)
    if job.method.traits.new_words:
        problems += [*token_problems(job, report.placed), *sample_token_problems(job)]
    problems += named_file_problems(job, workspace, new_run=new_run)
    if new_run and not errors(problems):
        problems += start_step_problems(job, workspace, report)
    total = report.total_steps
    if total:
        problems += length_problems(job, total, report.length.epochs)
    if device is not None:
        from core.optimization.optimizers import device_problems
        from core.optimization.schedules import schedule_problems

        problems += schedule_problems(job, total)
        problems += [*device_problems(job.optimizer, device), *memory_problems(job.memory, device)]
    return problems


def upload_problems(job: TrainJob) -> list[Problem]:
    """Return the problems of uploads to the hub. Uses the network, so it is called once before a start, not at each change of the form."""
    problem = upload_problem(job.hub, secret("huggingface_token"))
    return [problem] if problem else []


def problems_with_model(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Return the problems of the loss, the family, the resolution, the method's files, the samplers and the offload disk that depend on the
    base model's header. A missing model or an unknown family is reported by `model_problems`."""
    name = base_model_family(job.model, workspace)
    return [
        *(_part_problems(job, workspace, name) if name else ()),
        *objective_problems(job, workspace),
        *(_family_problems(job, name) if name and job.model.family == "auto" else ()),
        *_resolution_problems(job, workspace),
        *spec_of(job).file_problems(job, workspace),
        *(_sampler_problems(job, name) if name else ()),
        *space_problems(job, workspace),
    ]


def _part_problems(job: TrainJob, workspace: Workspace, name: str) -> list[Problem]:
    """Return the problems of loading the base model's parts, tokenizer and VAE. name: the model's family"""
    try:
        vae = model_path(job.model.vae, workspace, "model.vae") if job.model.vae else None
    except ProblemsError:
        return []
    return family(name).problems(model_path(job.model.base_model, workspace), vae)


def _family_problems(job: TrainJob, name: str) -> list[Problem]:
    """Return the problems of settings that exist only for the model's family: with `family` "auto" the first check does not know it."""
    with_family = job.with_settings(model={"family": name})
    reported = {(each.where, each.code) for each in [*training_problems(job), *set_without_effect(job)]}
    problems = [*training_problems(with_family), *set_without_effect(with_family)]
    return [each for each in problems if (each.where, each.code) not in reported]


def _sampler_problems(job: TrainJob, family_name: str) -> list[Problem]:
    """Return the problems of the sample prompts' samplers that do not fit the trained objective."""
    objective = FAMILIES[family_name].objective if job.noise.objective == "auto" else str(job.noise.objective)
    samplers = dict.fromkeys(prompt.sampler or job.samples.sample_sampler for prompt in _prompts(job))
    problems = (sampler_problem(each, objective, "samples.sample_sampler") for each in samplers)
    return [problem for problem in problems if problem is not None]


def _resolution_problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Return a warning if the training resolution is at most half the side that the base model was trained at, such as 128 px with SDXL;
    else []."""
    try:
        native = trained_size(model_path(job.model.base_model, workspace), job.model.family)
    except (ProblemsError, OSError):
        return []
    size = training_resolution(job)
    if job.dataset.more_resolutions or 4 * size[0] * size[1] > native[0] * native[1]:
        return []
    what = (
        f"The resolution is {size[0]} x {size[1]} pixels, but the base model was trained at {native[0]} x {native[1]}"
    )
    fix = f"use {max(native)}, or a little less to save memory; low resolutions give coarse images"
    return [Problem(what, "dataset.resolution", fix, level="warning", code="dataset.resolution-below-model")]


CAPTION_ADDITIONS = "captions.caption_prefix, caption_suffix, trigger_word"


def weight_problems(job: TrainJob, placed: Sequence[Placed]) -> list[Problem]:
    """Return one error for each kind of invalid prompt weight in captions, naming the images that have it, and one for the class caption;
    [] if captions are not weighted."""
    if not job.captions.weighted_captions:
        return []
    by_error: defaultdict[tuple[str, bool], list[Placed]] = defaultdict(list)
    for each in {each.image.key: each for each in placed}.values():
        in_file = _weight_error(each.caption.whole.splitlines())  # any line may be chosen
        error = in_file or _weight_error(_trained_captions(each))
        if error:
            by_error[error, bool(in_file)].append(each)
    problems = [
        Problem(
            f"In the caption of {names_of([each.image for each in images])}, {error}",
            printable(images[0].caption.path) if in_file else CAPTION_ADDITIONS,
            FIX,
            code="caption.bad-weight",
        )
        for (error, in_file), images in by_error.items()
    ]
    caption = job.method.class_caption if has_prior(job) else None
    error = weight_error(caption or "")
    if error:
        what = f"In the class caption, {error}"
        problems.append(Problem(what, "method.class_caption", FIX, code="caption.bad-weight"))
    return problems


_GROUP = re.compile(r"(?<!\\)\([^()\\]+\)|(?<!\\)\[[^\[\]\\]+\]")


def bracket_problems(job: TrainJob, placed: Sequence[Placed]) -> list[Problem]:
    """Return advice on the first sample prompt whose brackets are plain text in captions, but a weight in the prompt; else []."""
    for prompt in job.samples.sample_prompts:
        for group in _GROUP.findall(prompt) if as_prompt(job, prompt) != prompt else ():
            if any(group in each.caption.whole for each in placed):
                what = f"The sample prompt '{prompt[:40]}' reads {group[:40]} of the captions as a weight"
                fix = f"write {escape_brackets(group)[:44]} for the brackets as text"
                return [Problem(what, "samples.sample_prompts", fix, "advice", code="prompts.caption-brackets")]
    return []


def _trained_captions(placed: Placed) -> set[str]:
    """Return the captions of an image as they are trained, with the prefix, suffix and trigger word."""
    caption, settings, class_tokens = placed.caption, placed.concept.captions, placed.image.class_tokens
    return {plain_caption(caption.text, settings, class_tokens), *longest_captions(caption, settings, class_tokens)}


_WEIGHT_SIGNS = re.compile(r"[:(\[]")  # a text without them has no weights


def _weight_error(texts: Iterable[str]) -> str:
    """Return the error of the first invalid prompt weight in the texts; "" if there is none."""
    return next((error for text in texts if _WEIGHT_SIGNS.search(text) and (error := weight_error(text))), "")


def token_problems(job: TrainJob, placed: Sequence[Placed]) -> list[Problem]:
    """Return one error for each textual inversion token that no caption contains, so that it would not be trained."""
    texts = {text for each in placed for text in _token_texts(each)}
    return [
        Problem(
            f"No caption contains the token '{word}', so it would not be trained",
            *_token_where_and_fix(job, word),
            code="embedding.token-not-in-captions",
        )
        for word in job.embedding.words
        if not any(word_pattern([word]).search(text) for text in texts)
    ]


def sample_token_problems(job: TrainJob) -> list[Problem]:
    """Return advice if no sample prompt contains a textual inversion token, so that the samples would not show what is trained."""
    prompts, token = _prompts(job), word_pattern(job.embedding.words)
    if not prompts or any(token.search(each.prompt) for each in prompts):
        return []
    what = f"No sample prompt contains {' or '.join(map(repr, job.embedding.words))}, so that the samples show the model alone"
    fix = f"write, for example: a photo of {job.embedding.words[0]}"
    return [Problem(what, "samples.sample_prompts", fix, "advice", code="embedding.token-not-in-samples")]


def _prompts(job: TrainJob) -> list[SamplePrompt]:
    """Return the sample prompts; [] if they cannot be read, which is reported where they are read."""
    try:
        return read_prompts(job.samples)[0]
    except (ProblemsError, OSError):
        return []


def _token_texts(placed: Placed) -> list[str]:
    """Return the texts of an image that may contain a token: the caption as trained and, without a caption template, the caption file's
    whole text, as only one of its random choices may contain the token."""
    settings = placed.concept.captions
    plain = plain_caption(placed.caption.text, settings, placed.image.class_tokens)
    return [plain] if settings.caption_template != "none" else [plain, placed.caption.whole]


def _token_where_and_fix(job: TrainJob, word: str) -> tuple[str, str]:
    """Return (setting, fix) for the problem that no caption contains the token `word`."""
    trigger = job.captions.trigger_word
    if trigger and len(job.embedding.words) == 1:
        return "captions.trigger_word", f"empty it, so that the token is used instead of '{trigger}'"
    return "embedding.token_string", f"write '{word}' into the captions of the images that show it"


def objective_problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Return the problems of loss settings that do not fit the prediction type and noise schedule stated in the base model's file.

    [] without a model, for a file that states neither, and where the settings state the prediction type (the rules check that).
    """
    try:
        kind = identify(model_path(job.model.base_model, workspace))
    except (ProblemsError, OSError):
        return []
    problems = []
    if kind.zero_terminal_snr and not job.noise.zero_terminal_snr:
        what = "The base model was trained with zero terminal SNR, which is off"
        fix = "turn it on, or very dark and very bright images will look gray"
        problems.append(Problem(what, "noise.zero_terminal_snr", fix, "advice", code="noise.model-has-zero-snr"))
    if job.model.prediction == "auto" and kind.prediction is not None:
        problems += prediction_problems(job.noise, kind.prediction)
    return problems
