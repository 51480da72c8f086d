"""What the gallery knows of an image: what it was made with, and which images it can be compared with. Without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from core.generation.images.metadata import read_image_metadata
from core.settings.job import GenerateJob

LONGEST = 4000  # characters of a prompt in the index
MODELS_OWN = ("width", "height", "guidance_scale")  # settings whose default depends on the model


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of an image. source: "atelier", "a1111" ...; "" if it has no settings.

    own    LoRAs with strengths, embeddings or the trained model, in a few words
    pair   equal for images that differ only in LoRAs and embeddings; plain: whether this one has none
    kin    equal for images that also differ in the model and in settings of MODELS_OWN
    """

    width: int = 0
    height: int = 0
    seed: int | None = None
    prompt: str = ""
    negative: str = ""
    model: str = ""
    loras: tuple[str, ...] = ()
    sampler: str = ""
    source: str = ""
    own: str = ""
    pair: str = ""
    plain: bool = True
    kin: str = ""


UNREAD = Facts()


def read_facts(path: Path) -> Facts:
    """The facts of an image file; UNREAD for a damaged one, only the size for one without settings."""
    from core.dataset.images.opening import BrokenImage, read_header

    try:
        header = read_header(path)
    except BrokenImage:
        return UNREAD
    record = read_image_metadata(path)
    found = facts_of(record.job, record.source) if record.job is not None else UNREAD
    return Facts(**asdict(found) | {"width": header.width, "height": header.height})


def facts_of(job: GenerateJob, source: str = "atelier") -> Facts:
    """The facts of a job of one image, without its size. Model names in other programs' images are not used."""
    asked = job.generate
    return Facts(
        seed=asked.seed,
        prompt=asked.prompt[:LONGEST],
        negative=asked.negative_prompt[:LONGEST],
        model=Path(job.model.base_model).name.removesuffix(".safetensors") if source == "atelier" else "",
        loras=tuple(Path(use.file).stem for use in asked.loras),
        sampler=asked.sampler,
        source=source,
        own=own_words(job),
        pair=pair_key(job),
        plain=not (asked.loras or asked.embeddings),
        kin=pair_key(job, MODELS_OWN, "model"),
    )


def own_words(job: GenerateJob) -> str:
    """LoRAs with strengths and embeddings, "fox 0.8, glyphs", or else the name of a model trained here."""
    words = []
    for use in job.generate.loras:
        both = use.text_encoder_strength not in (None, use.strength)
        strength = f"{use.strength:g}" + (f" / {use.text_encoder_strength:g}" if both else "")
        words.append(Path(use.file).stem + (f" {strength}" if strength != "1" else ""))
    words += [text.partition("=")[0] if "=" in text else Path(text).stem for text in job.generate.embeddings]
    trained = Path(job.model.base_model)
    return ", ".join(words) or (trained.stem if "checkpoints" in trained.parts else "")


def pair_key(job: GenerateJob, but: Iterable[str] = (), *groups: str) -> str:
    """A hash of all settings except LoRAs and embeddings. but, groups: further settings of generate, and groups, to ignore"""
    own = {"loras", "embeddings", "count", "zero_terminal_snr", *but}
    values = job.model_dump(mode="json", exclude={"generate": own, **dict.fromkeys(("memory", *groups), True)})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
