"""HTML of cards for runs, LoRAs and other model files: image, name, step, the run's other steps, and what is below."""

from collections.abc import Callable, Sequence
from pathlib import Path

from core.record.workspace import display_path
from tabs.form.lora_steps import Checkpoint, Lora
from tabs.markup import esc, middle

THUMB = 96  # pixels of an image
LONG_LABEL = 13  # characters of a step that have room next to a name
LORAS, RUNS = "gen-loras", "runs"  # ids of what chooses by an act: the list of LoRAs in Generate, the table of runs


def thumb(image: Path | None, thumb_url: Callable[..., str]) -> str:
    """Return HTML of a thumbnail; an empty frame without an image."""
    image_html = f'<img src="{esc(thumb_url(image, THUMB))}" alt="" loading="lazy">' if image is not None else ""
    return f'<span class="lora-thumb">{image_html}</span>'


def card(
    lora: Lora,
    thumb_url: Callable[..., str],
    *,
    first_line: str,
    second_line: str,
    third_line: str,
    about: str,
    reason: str = "",
    steps: str = "",
    below: str = "",
    attributes: str = "",
) -> str:
    """Return HTML of a card, 72 px high: three lines next to the image.

    first_line, second_line, third_line   HTML; the first has the name
    about                                 text at the end of the third line
    reason                                why the file cannot be used, or ""
    steps                                 HTML of `strip` or `lazy_strip`
    below                                 HTML below the lines
    attributes                            of the card's element
    """
    error = f"<p class=field-error>{esc(reason)}</p>" if reason else ""
    return (
        f"<li{attributes}>{thumb(lora.image, thumb_url)}<div>"
        f'<div class="strip{" has-steps" if steps else ""}">{first_line}</div>{second_line}'
        f'<div class="strip lora-words">{third_line}<span class="hint" title="{esc(about)}">{esc(about)}</span></div></div>'
        f"{steps}{error}{below}</li>"
    )


def strip(lora: Lora, attributes: Callable[[Checkpoint], str], thumb_url: Callable[..., str]) -> str:
    """Return HTML of a button with the step's name that opens the other steps of the run; "" for a file without a run.
    attributes: (checkpoint) -> attributes of its button"""
    checkpoint = lora.checkpoint
    if checkpoint is None:
        return ""
    group = esc(f"steps {checkpoint.path.parent.parent.name}")
    buttons = step_buttons(lora.steps, checkpoint.path, attributes, thumb_url)
    long = " long" if len(checkpoint.label) > LONG_LABEL else ""
    return (
        f'<details class="lora-steps" data-group="{group}"><summary class="btn quiet{long}" '
        f'aria-label="Other steps, now {esc(checkpoint.label)}"><span>{esc(checkpoint.label)}</span></summary><ul>{buttons}</ul></details>'
    )


def lazy_strip(lora: Lora, form: str) -> str:
    """Return `strip` without its step buttons, which assets/picker.js requests when the strip is opened. For a file without a run, the
    strip has the button that copies the path instead.
    form: id of the form or list"""
    marks = lora.checkpoint.marks if lora.checkpoint and form == RUNS else ()  # other lists show them as badges
    text = ", ".join((lora.checkpoint.label, *marks)) if lora.checkpoint else "path"
    label = f"Other steps of {lora.name}, now {text}" if lora.checkpoint else f"Copy the path of {lora.name}"
    return (
        f'<details class="lora-steps" data-group="steps {esc(lora.path)}" data-steps="{esc(display_path(lora.path))}" '
        f'data-form="{esc(form)}"><summary class="btn quiet" aria-label="{esc(label)}"><span>{esc(text)}</span></summary>'
        f"<ul></ul></details>"
    )


def step_buttons(
    steps: Sequence[Checkpoint],
    chosen: Path,
    attributes: Callable[[Checkpoint], str],
    thumb_url: Callable[..., str],
) -> str:
    """Return HTML of a button for each checkpoint of a run, with its first sample.

    chosen       path of the chosen checkpoint
    attributes   (checkpoint) -> attributes of its button
    """
    buttons = ""
    for each in steps:
        label = ", ".join((each.label, *each.marks))
        loss = f"loss {each.loss:.3g}" if each.loss is not None else ""
        buttons += (
            f'<li><button type="button" class="btn" {attributes(each)} title="{esc(", ".join(filter(None, (label, loss))))}" '
            f'aria-pressed="{str(each.path == chosen).lower()}" data-again>{thumb(each.sample, thumb_url)}'
            f'<span>{esc(label)}</span><span class="hint">{loss}</span></button></li>'
        )
    return buttons


def strength_slider(name: str, strength: float, id: str = "", about: str = "") -> str:
    """Return HTML of a strength as a slider from -1 to 2 and as a number, which follow each other.

    name    of the LoRA, for screen readers
    id      prefix of the ids of both
    about   attributes of both
    """
    position, label = min(max(strength, -1.0), 2.0), esc(f"Strength of {name}")
    return (
        f'<div class="strip"><input type="range" min="-1" max="2" step="0.05" value="{position:g}" id="{id}slide" {about} '
        f'data-twin="{id}value" aria-label="{label}"><input type="number" min="-10" max="10" step="0.05" '
        f'value="{strength:g}" id="{id}value" {about} data-twin="{id}slide" aria-label="{label}, as a number"></div>'
    )


def copy_button(path: Path, name: str = "") -> str:
    """Return HTML of a button that copies a file's path. name: of the file, for screen readers."""
    label = f' aria-label="Copy path of {esc(name)}"' if name else ""
    return f'<button type="button" class="btn quiet" data-copy="{esc(str(path.absolute()))}"{label}>Copy path</button>'


def card_line(lora: Lora, thumb_url: Callable[..., str]) -> str:
    """Return HTML of a model file on one line, shown in a field instead of its path."""
    checkpoint = lora.checkpoint
    label = ", ".join((checkpoint.label, *checkpoint.marks)) if checkpoint else ""
    return f"{thumb(lora.image, thumb_url)}<b>{middle(lora.name)}</b><span>{esc(label)}</span>"
