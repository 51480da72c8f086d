"""The Generate tab as HTML: LoRAs with their strengths, the gallery and the enlarged image."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.generation.image_metadata import ImageRecord, read_image_metadata
from core.generation.prompt.tags import LoraTag
from core.record.units import clock
from core.settings.job import GenerateJob
from core.settings.samples import SAMPLER_LABELS
from tabs.generate.form import signature
from tabs.markup import (
    button,
    empty_state,
    esc,
    facts,
    link,
    page_count,
    pager,
    section,
    short,
)

PAGE_SIZE = 36
PAIRED = 240  # so many of the newest images are looked through for one that differs only in its LoRAs


@dataclass(frozen=True)
class Shown:
    """One place of the gallery: an image, and the same one without LoRAs where there is one."""

    path: Path
    seed: int | None
    record: ImageRecord
    base: Path | None = None


# -- fields


def prompts(fields: str, beside: str) -> str:
    """The prompts, the button that draws, and how many it draws."""
    draw = (
        '<button type="button" class="btn primary" id="gen-draw" data-act="draw" title="Ctrl+Enter">Generate</button>'
    )
    side = f'<div class="gen-start">{draw}<div class="concept-fields">{beside}</div></div>'
    return f'<div class="block-part gen-top"><div class="concept-fields">{fields}</div>{side}</div>'


# -- LoRAs


def loras(
    uses: Sequence[dict[str, Any]],
    marked: Sequence[str] = (),
    schedule: str = "auto",
    tags: Sequence[LoraTag] = (),
) -> str:
    """One row a LoRA: name, strength as slider and number, remove. Below, those of the prompt, and what was found of
    zero terminal SNR.

    marked   files that say they were trained with it      schedule   the setting: "auto", "on" or "off"
    """
    named = ", ".join(f"{tag.name} {strengths(tag.unet, tag.text_encoder)}" for tag in tags)
    said = f'<p class="hint">From the prompt: {esc(named)}</p>' if named else ""
    if marked:
        used = "but it is off." if schedule == "off" else "and it is used."
        said += f'<p class="hint">Trained with zero terminal SNR: {esc(", ".join(marked))}, {used}</p>'
    if not uses and tags:
        return said
    if not uses:
        return (
            '<p class="hint">No LoRA: only the base model is used. Add one above; the list includes the results of your runs.'
            f"</p>{said}"
        )
    return f'<ul class="loras">{"".join(_lora(number, use) for number, use in enumerate(uses))}</ul>{said}'


def _lora(number: int, use: dict[str, Any]) -> str:
    path = Path(str(use["file"]))
    name, strength = path.name.removesuffix(path.suffix), float(use["strength"])
    where = path.parent.parent.name if path.parent.name == "checkpoints" else path.parent.name
    place = min(max(strength, -1.0), 2.0)
    label = esc(f"Strength of {name}")
    if (own := use.get("text_encoder_strength")) is not None:
        where = f"{where}, text encoder {own:g}".lstrip(", ")
    return (
        f'<li><div class="strip"><b title="{esc(use["file"])}">{esc(name)}</b><span '
        f'class="hint">{esc(where)}</span><span class="grow"></span>'
        f"{button('remove', 'Remove', number, kind='quiet', label=f'Remove {name} ({where})')}</div>"
        f'<div class="strip"><input type="range" min="-1" max="2" step="0.05" value="{place:g}" '
        f'id="lora-slide-{number}" data-act="strength"'
        f' data-arg="{number}" data-twin="lora-value-{number}" aria-label="{label}">'
        f'<input type="number" min="-10" max="10" step="0.05" value="{strength:g}" id="lora-value-{number}" '
        f'data-act="strength"'
        f' data-arg="{number}" data-twin="lora-slide-{number}" aria-label="{label}, as a number"></div></li>'
    )


def training_words(now: dict[str, Any]) -> str:
    """How far a training is: its step and the time left, before the first step what it does."""
    if not now.get("step") or not now.get("total"):
        return str(now.get("stage") or "starting")
    left = f", {clock(now['eta_seconds'])} left" if now.get("eta_seconds") else ""
    return f"step {now['step']:,} of {now['total']:,}{left}"


# -- gallery


def record_of(path: Path) -> ImageRecord:
    """What an image tells about itself, remembered while the file does not change."""
    try:
        state = os.stat(path)
    except OSError:
        return ImageRecord(reason="The file is gone.")
    return _record(str(path), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=2048)
def _record(path: str, changed: int, size: int) -> ImageRecord:
    return read_image_metadata(path)


def paired(images: Sequence[dict[str, Any]]) -> list[Shown]:
    """Each image once, newest first; one drawn with LoRAs or embeddings takes the same one without them to its side."""
    records = [record_of(Path(each["path"])) for each in images[:PAIRED]]
    plain: dict[tuple[Any, ...], Path] = {}
    for each, record in zip(images, records, strict=False):
        if record.job is not None and not _own(record.job):
            plain.setdefault(signature(record.job), Path(each["path"]))
    shown, beside = [], set()
    for number, each in enumerate(images):
        path = Path(each["path"])
        record = records[number] if number < len(records) else ImageRecord()
        base = plain.get(signature(record.job)) if record.job is not None and _own(record.job) else None
        if base is not None:
            beside.add(base)
        shown.append(Shown(path, each.get("seed"), record, base))
    return [each for each in shown if each.path not in beside]


def _own(job: GenerateJob) -> bool:
    """Whether anything trained was put to the model."""
    return bool(job.generate.loras or job.generate.embeddings)


def does(number: int, each: Shown) -> str:
    """What an image can be used for."""
    use = button("use", "Use settings", number, kind="quiet") if each.record.job else ""
    return use + button("begin", "Image to image", number, kind="quiet", title="Begin the next images with this one")


def gallery(shown: Sequence[Shown], page: int, thumb_url: Callable[..., str]) -> str:
    """One page of images, newest first; a click enlarges."""
    if not shown:
        return section("Images", empty_state("No images yet.", "Write a prompt and press Generate."))
    pages = page_count(len(shown), PAGE_SIZE)
    page = max(0, min(page, pages - 1))
    part = shown[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    tiles = "".join(_tile(page * PAGE_SIZE + number, each, thumb_url) for number, each in enumerate(part))
    return section("Images", f'<ul class="tiles drawn">{tiles}</ul>{pager("page", page, pages, len(shown), "images")}')


def _tile(number: int, shown: Shown, thumb_url: Callable[..., str]) -> str:
    prompt = shown.record.job.generate.prompt if shown.record.job else shown.path.name
    alt = esc(f"{short(prompt, 80)}, seed {shown.seed}" if shown.seed is not None else short(prompt, 80))
    with_words = esc(lora_words(shown.record.job)) if shown.record.job else ""
    if shown.base is not None:
        images = (
            f'<figure><img src="{esc(thumb_url(shown.base, 384))}" alt="{alt}, base model" loading="lazy">'
            f"<figcaption>base model</figcaption></figure>"
            f'<figure><img src="{esc(thumb_url(shown.path, 384))}" alt="{alt}, {with_words}" loading="lazy">'
            f"<figcaption>{with_words}</figcaption></figure>"
        )
        kind = " double"
    else:
        under = f"<figcaption>{with_words}</figcaption>" if with_words else ""
        images = f'<figure><img src="{esc(thumb_url(shown.path, 384))}" alt="{alt}" loading="lazy">{under}</figure>'
        kind = ""
    seed = f"seed {shown.seed}" if shown.seed is not None else ""
    return (
        f'<li class="tile{kind}"><button type="button" class="shot" data-act="open" data-arg="{number}" '
        f'title="Enlarge">{images}</button>'
        f'<div class="says" title="{esc(prompt)}">{esc(short(prompt, 90))}</div><div class="sizes">{seed}</div></li>'
    )


def strengths(unet: float, text_encoder: float | None) -> str:
    """ "0.8", with another one for the text encoder "0.8 / 0.5"."""
    return f"{unet:g}" + ("" if text_encoder in (None, unet) else f" / {text_encoder:g}")


def lora_words(job: GenerateJob) -> str:
    """What of one's own an image is drawn with, in a few words: "fox 0.8, glyphs", a new word, or the name of a trained
    model."""
    used = {use.file: strengths(use.strength, use.text_encoder_strength) for use in job.generate.loras}
    words = [Path(file).stem + (f" {strength}" if strength != "1" else "") for file, strength in used.items()]
    words += [text.partition("=")[0] if "=" in text else Path(text).stem for text in job.generate.embeddings]
    trained = Path(job.model.base_model)
    return ", ".join(words) or (trained.stem if "checkpoints" in trained.parts else "")


def enlarged(shown: Sequence[Shown], number: int, file_url: Callable[..., str]) -> str:
    """The image over the page, beside what it was drawn with."""
    if not 0 <= number < len(shown):
        return ""
    each = shown[number]
    job = each.record.job
    prompt = job.generate.prompt if job else each.path.name
    alt = esc(short(prompt, 120))
    if each.base is not None:
        images = (
            f'<figure><img src="{esc(file_url(each.base))}" alt="{alt}, base model"><figcaption>base '
            f"model</figcaption></figure>"
            f'<figure><img src="{esc(file_url(each.path))}" alt="{alt}">'
            f"<figcaption>{esc(lora_words(job) if job else '')}</figcaption></figure>"
        )
    else:
        images = f'<figure><img src="{esc(file_url(each.path))}" alt="{alt}"></figure>'
    use = button("use", "Use these settings", number, kind="primary") if job else ""
    use += button("begin", "Image to image", number)
    bar = (
        f'<div class="bar-top">{button("open", "Previous", number - 1, disabled=number == 0, again=True)}'
        f"{button('open', 'Next', number + 1, disabled=number >= len(shown) - 1, again=True)}"
        f'<span class="hint">{number + 1:,} of {len(shown):,}</span><span class="grow">'
        f"</span>{button('shut', 'Close', title='Esc', lands='light')}</div>"
    )
    links = link(file_url(each.path), "Download", download=each.path.name) + link(file_url(each.path), "Open full size")
    about = about_job(job, each.record) + f'<div class="actions">{use}{links}</div>'
    return (
        f'<div class="lightbox" role="dialog" aria-modal="true" aria-label="Enlarged image"><div class="light">{bar}'
        f'<div class="light-main"><div class="light-images{" two" if each.base else ""}">{images}</div><div '
        f'class="light-about">{about}</div></div></div></div>'
    )


def about_job(job: GenerateJob | None, record: ImageRecord) -> str:
    """Every setting an image was drawn with, or why they are not known."""
    if job is None:
        return f'<p class="hint">{esc(record.reason)}</p>'
    asked = job.generate
    rows = [
        ("Prompt", esc(asked.prompt) or "<i>empty</i>"),
        ("Negative", esc(asked.negative_prompt)),
        ("Size", f"{asked.width} × {asked.height}" if asked.width and asked.height else ""),
        ("Steps", f"{asked.steps}"),
        ("Sampler", esc(SAMPLER_LABELS.get(asked.sampler, asked.sampler))),
        ("Guidance", "" if asked.guidance_scale is None else f"{asked.guidance_scale:g}"),
        ("Seed", "" if asked.seed is None else str(asked.seed)),
        ("Model", esc(job.model.base_model) if record.source == "atelier" else ""),
        ("Zero terminal SNR", "on" if asked.zero_terminal_snr == "on" else ""),
        ("Prompt weights", "" if asked.prompt_weights else "off"),
        ("VAE", esc(job.model.vae or "")),
        ("Clip skip", str(job.model.clip_skip or "")),
        (
            "LoRAs",
            "<br>".join(
                f"{esc(use.file)} <b>{strengths(use.strength, use.text_encoder_strength)}</b>" for use in asked.loras
            ),
        ),
        ("Embeddings", "<br>".join(esc(text) for text in asked.embeddings)),
    ]
    return facts([(name, value) for name, value in rows if value])
