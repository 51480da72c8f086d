"""Expands a generate job into one request per image: prompts, options, variants, styles and seeds."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as numbers
from random import Random
from typing import Any

from core.generation.plan.hooks import inline_setting
from core.generation.plan.idle import idle_settings
from core.generation.plan.stages import passes_of
from core.generation.prompt.analysis import Names, Parsing, findings_of
from core.generation.prompt.files import MODULE, Entry, is_prompt, line_of_table, module_entries, read_entries
from core.generation.prompt.loras import LORAS, with_prompt_loras
from core.generation.prompt.options import OPTIONS, PromptLine, read_line, take_seeds
from core.generation.prompt.styles import Style, styled, styled_entry
from core.generation.prompt.wildcards import FIX, Files, WildcardError, has_variants, variants
from core.generation.sample.noise import Variation
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.workspace import resolve_path
from core.settings.base import FRESH_SEEDS, SEEDS
from core.settings.generation.generate import LoraUse
from core.settings.generation.prompts import PromptSettings
from core.settings.job import GenerateJob

FILE, PROMPT, NEGATIVE = "prompts.from_file", "generate.prompt", "generate.negative_prompt"
DETAILER_PROMPTS = ("detailer.ad_prompt", "detailer.ad_negative_prompt")
DEFAULT_DEPTH, DEFAULT_START = 3, 650  # of Deep Shrink and Gradual Latent, if an inline option turns them on
MAX_IMAGES = 100_000  # images of one job


@dataclass(frozen=True)
class Request:
    """One image to generate.

    job    the settings that generate it again: one prompt without inline options and variants, its seed and LoRAs, count 1
    name   file name, if the prompt sets one (--f)
    """

    job: GenerateJob
    name: str | None = None

    @property
    def seed(self) -> int:
        """The seed of the image."""
        assert self.job.generate.seed is not None
        return self.job.generate.seed

    @property
    def variation(self) -> Variation | None:
        """Variation seed and strength of the image; None if the strength is 0."""
        settings = self.job.generate
        if not settings.variation_strength:
            return None
        assert settings.variation_seed is not None
        return Variation(settings.variation_seed, settings.variation_strength)


def requests_of(
    job: GenerateJob, files: Files, embeddings: Mapping[str, int] = {}, styles: Sequence[Style] = ()
) -> tuple[list[Request], list[Problem]]:
    """Expand a job into (requests in order, advice about its prompts). Raises ProblemsError for invalid prompts.

    files        (name of a wildcard) -> its lines
    embeddings   {name of an embedding: its number of token vectors}
    styles       the styles in the job's settings
    """
    enabled = [use for use in job.generate.loras if use.enabled]
    job, entries, where = in_styles(job.with_settings(generate={"loras": enabled}), styles)
    names = Names(files, embeddings=embeddings)
    notes = _syntax_problems(job, entries, names, where)
    raise_if_errors(notes)
    seeds = _Seeds(job, len(entries))
    requests: list[Request] = []
    for turn in range(job.prompts.n_iter):
        seeds.begin()
        order = list(entries)
        if job.prompts.shuffle_prompts:
            Random(seeds.first + turn).shuffle(order)
        for entry in order:
            requests += _requests_of_entry(job, entry, seeds, names, notes, where)
            if len(requests) > MAX_IMAGES:
                what, fix = f"There are more than {MAX_IMAGES:,} images", "lower the number of images or of repetitions"
                raise ProblemsError.one(what, where, fix, "generate.too-many-images")
    notes = list(dict.fromkeys(notes))
    raise_if_errors(notes)
    return requests, notes


def in_styles(job: GenerateJob, styles: Sequence[Style]) -> tuple[GenerateJob, list[Entry], str]:
    """Apply styles; return (job without styles, its unparsed prompts, the setting that contains them). Raises as `entries_of`."""
    entries, where = entries_of(job)
    entries = [styled_entry(entry, styles, job.prompts.dynamic_prompts or where == FILE) for entry in entries]
    negative = styled(job.generate.negative_prompt, [style.negative_prompt for style in styles])
    changes = {"negative_prompt": negative} | ({"prompt": entries[0]} if where == PROMPT else {})
    return job.with_settings(generate=changes, prompts={"styles": []}), entries, where


def _syntax_problems(job: GenerateJob, entries: Sequence[Entry], names: Names, where: str) -> list[Problem]:
    """Return the problems of negative prompt and prompts as written, before options and variants are resolved.
    where: the setting that contains the prompts"""
    dynamic, weighted = job.prompts.dynamic_prompts, job.generate.prompt_weights
    passes = tuple(each for each in passes_of(job) if each is not None)
    findings = list(
        findings_of(job.generate.negative_prompt, names, Parsing(dynamic, weighted, True, NEGATIVE, passes))
    )
    for entry in entries:
        text = entry if isinstance(entry, str) else entry.get("prompt")
        if isinstance(text, str):
            findings += findings_of(text, names, Parsing(dynamic, weighted, False, where, passes))
    return list(dict.fromkeys(finding.problem for finding in findings))


def entries_of(job: GenerateJob) -> tuple[list[Entry], str]:
    """Return (the unparsed prompts of a job, the setting that contains them). Raises ProblemsError if both a file and a module are set, for
    one that cannot be read, and for one without prompts."""
    settings = job.prompts
    if settings.from_file and settings.from_module:
        what, fix = "There are prompts from a file and from a module", "empty one of the two"
        raise ProblemsError.one(what, MODULE, fix, "prompts.two-sources")
    if settings.from_module:
        entries, where = module_entries(job), MODULE
    elif settings.from_file:
        entries, where = read_entries(resolve_path(settings.from_file), FILE), FILE
    else:
        return [job.generate.prompt], PROMPT
    prompts = [entry for entry in entries if isinstance(entry, dict) or is_prompt(entry)]
    if not prompts:
        what = f"There are no prompts in {settings.from_file or settings.from_module}: lines with # are comments"
        raise ProblemsError.one(what, where, "write one per line", "prompts.none")
    return prompts, where


class _Seeds:
    """Seeds of a job's images whose prompts set none.

    Counted up from the job's seed, or random as in sd-scripts' generator. With a variation strength all images have the job's
    seed, and the variation seed counts up instead, as in A1111.

    variations   endless variation seeds
    """

    def __init__(self, job: GenerateJob, prompts: int):
        """Choose random seeds if the job sets none. prompts: number of prompts of the job"""
        settings = job.generate
        self.first = secrets.randbelow(FRESH_SEEDS) if settings.seed is None else settings.seed
        self._same, self._prompt_seed = job.prompts.iter_same_seed, 0
        self._drawn = self._draws(job, prompts)
        variation_seed = secrets.randbelow(FRESH_SEEDS) if settings.variation_seed is None else settings.variation_seed
        self.variations = ((variation_seed + number) % SEEDS for number in numbers())

    def _draws(self, job: GenerateJob, prompts: int) -> Iterator[int]:
        """Return an endless iterator of seeds: counted up, constant with a variation strength, or random with compatibility "kohya"."""
        single = bool(job.prompts.from_file) and prompts == 1 and job.generate.count == 1
        per_image = not job.prompts.dynamic_prompts or (single and job.generate.seed is not None)  # of a saved image
        if job.generate.compatibility != "kohya" or per_image:
            step = 0 if job.generate.variation_strength else 1
            return ((self.first + number * step) % SEEDS for number in numbers())
        rng = Random(self.first)
        return (rng.randint(0, FRESH_SEEDS - 1) for _ in numbers())

    def begin(self) -> None:
        """Start a repetition of all prompts (`prompts.n_iter`); with `iter_same_seed`, draw the seed that all its images share."""
        self._prompt_seed = next(self._drawn) if self._same else 0

    def next(self) -> int:
        """Return the seed of the next image."""
        return self._prompt_seed if self._same else next(self._drawn)

    def of(self, prompt_seeds: Sequence[int], images: int, varied: bool) -> list[int]:
        """Return a seed for each of `images` images of one prompt.

        prompt_seeds   seeds that the prompt sets (--d); the last is repeated for further images, unless `varied`
        varied         whether seeds choose the prompt's variants; further images then get seeds of the job
        """
        seeds = list(prompt_seeds[:images])
        while len(seeds) < images:
            seeds.append(seeds[-1] if prompt_seeds and not varied else self.next())
        return seeds


def _requests_of_entry(
    job: GenerateJob, entry: Entry, seeds: _Seeds, names: Names, notes: list[Problem], where: str
) -> Iterator[Request]:
    """Yield the requests of one prompt, one for each seed or combination of variants.

    notes   receives problems of options and variants
    where   the setting that contains the prompt
    """
    if not job.prompts.dynamic_prompts and where == PROMPT:
        for seed in seeds.of((), job.generate.count, False):
            yield _request(job, PromptLine(str(entry)), seed, seeds, notes)
        return
    line, line_seeds = take_seeds(entry) if isinstance(entry, str) else line_of_table(entry, notes, where)
    text = line if isinstance(line, str) else line.text
    varied = job.prompts.dynamic_prompts and has_variants(text)
    image_seeds = seeds.of(line_seeds, job.generate.count, varied)
    dynamic = job.prompts.dynamic_prompts  # also without variants: escaped braces are unescaped
    try:
        weighted = job.generate.compatibility != "kohya"
        lines = [(text, seed) for seed in image_seeds]
        if dynamic:
            lines = variants(text, image_seeds, names.files, weighted, names.embeddings)
    except WildcardError as error:  # in a group that exists only after others were chosen
        notes.append(Problem(f"In the prompt '{text[:40]}', {error}", where, FIX, code="prompt.bad-wildcard"))
        return
    for chosen, seed in lines:
        parsed = read_line(chosen, notes, where) if isinstance(line, str) else PromptLine(chosen, line.values)
        yield _request(_with_chosen_variants(job, seed, names, notes) if dynamic else job, parsed, seed, seeds, notes)


def _with_chosen_variants(job: GenerateJob, seed: int, names: Names, notes: list[Problem]) -> GenerateJob:
    """Return the job with the variants in its negative prompt and the detailer's prompts chosen by an image's seed.
    notes: receives errors of these variants, and advice on {e$$a|b}, of which only the first combination is used"""
    for path in (NEGATIVE, *(DETAILER_PROMPTS if job.detailer.used else ())):
        group, _, name = path.partition(".")
        text = getattr(getattr(job, group), name) or ""
        try:
            weighted = job.generate.compatibility != "kohya"
            combinations = variants(text, [seed], names.files, weighted, names.embeddings)
        except WildcardError as error:
            notes.append(Problem(f"In '{text[:40]}', {error}", path, FIX, code="prompt.bad-wildcard"))
            continue
        chosen = combinations[0][0]
        if len(combinations) > 1:
            what = f"Of the {len(combinations):,} combinations of '{text[:40]}' only the first is used"
            fix = "write {a|b} without e$$, for one chosen by each image's seed"
            notes.append(Problem(what, path, fix, "advice", code="prompt.first-combination"))
        job = job.with_settings(**{group: {name: chosen}}) if chosen != text else job
    return job


def _request(job: GenerateJob, line: PromptLine, seed: int, seeds: _Seeds, notes: list[Problem]) -> Request:
    """Return the request of one image: the job with the text, inline options and LoRA tags of a prompt.
    notes: receives problems; a merged LoRA cannot have a step range"""
    changes: dict[str, dict[str, Any]] = {"generate": {"prompt": line.text, "seed": seed, "count": 1}}
    if line.values.get("generate.variation_strength", job.generate.variation_strength):
        changes["generate"]["variation_seed"] = next(seeds.variations)
    changes["prompts"] = PromptSettings(dynamic_prompts=False).model_dump()
    for name, value in line.values.items():
        group, dot, setting = (inline_setting(name) or name).partition(".")
        if dot:
            changes.setdefault(group, {})[setting] = value
    _enable_groups(changes, job)
    strengths = line.values.get("strengths")
    if strengths:
        changes["generate"]["loras"] = _with_strengths(job.generate.loras, strengths, count_merged_for_job(job))
    with_loras = with_prompt_loras(job.with_settings(**changes))
    if (merged := count_merged_for_job(job)) != count_merged_for_job(with_loras):  # those of tags are not merged
        with_loras = with_loras.with_settings(generate={"network_merge_n_models": merged})
    if any(not use.always for use in with_loras.generate.loras[: count_merged(job, len(with_loras.generate.loras))]):
        fix = "turn merging off, or give it all steps"
        notes.append(Problem("A LoRA that is merged acts at every step", LORAS, fix, code="lora.merged-range"))
    idle = idle_settings(with_loras) if line.values else {}
    for switch, option in OPTIONS.items():
        if option.sets in line.values and option.sets in idle:
            what = f"'--{switch}' has no effect: {idle[option.sets].removeprefix('ignored: ')}"
            notes.append(Problem(what, "generate.prompt", "remove it", "advice", code="prompts.idle-option"))
    return Request(with_loras, line.values.get("file_name"))


def _enable_groups(changes: dict[str, dict[str, Any]], job: GenerateJob) -> None:
    """Turn on Deep Shrink or Gradual Latent if an inline option sets a detail of it and neither option nor job turn it on.
    changes: {group: {setting: value}}, extended here"""
    for group, first, default in (
        ("deep_shrink", "ds_depth_1", DEFAULT_DEPTH),
        ("gradual_latent", "gradual_latent_timesteps", DEFAULT_START),
    ):
        if group in changes and first not in changes[group] and getattr(getattr(job, group), first) is None:
            changes[group][first] = default


def count_merged_for_job(job: GenerateJob) -> int:
    """Return the number of LoRAs, from the start of the list, that are merged once for the whole job and ignore strengths in prompts."""
    settings = job.generate
    if settings.network_merge_n_models is not None:
        return min(settings.network_merge_n_models, len(settings.loras))
    return len(settings.loras) if settings.network_merge else 0


def count_merged(job: GenerateJob, loras: int) -> int:
    """Return the number of LoRAs merged into the weights for an image with `loras` LoRAs: all of them with network_pre_calc."""
    return loras if job.generate.network_pre_calc else count_merged_for_job(job)


def _with_strengths(uses: Sequence[LoraUse], strengths: Sequence[float], fixed: int) -> list[LoraUse]:
    """Return `uses` with new strengths in order; the last strength applies to all further LoRAs.
    fixed: number of LoRAs at the start whose strengths stay as they are"""
    changed = (
        use.model_copy(update={"strength": strength, "text_encoder_strength": None})
        for use, strength in zip(uses[fixed:], [*strengths, *[strengths[-1]] * len(uses)], strict=False)
    )
    return [*uses[:fixed], *changed]
