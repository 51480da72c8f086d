"""Writes a model as a diffusers folder: one folder per part with its config, tokenizers, scheduler, model_index.json."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.formats.detect import read_json
from core.formats.models.checkpoint import index_name
from core.formats.models.part_kinds import PartKind, kind_of
from core.formats.tensors.lazy import LazyTensor
from core.formats.tensors.writer import Wrote, write_pickle, write_safetensors
from core.record.bounded_json import read_json_object
from core.record.cancel import CancelToken

SHARD_BYTES = 10 * 10**9  # diffusers 0.42 shards there: the U-Net of SDXL in fp32 is 10.3 GB
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction"}
NOT_SAVED = ("_name_or_path", "transformers_version", "_commit_hash")  # specific to the machine the config comes from


@dataclass(frozen=True)
class Published:
    """The configs shipped for a family.

    configs      a folder per part with its config.json; a tokenizer's folder may have a tokenizer.json
    vocabulary   CLIP's tokenizer.json, for tokenizers without one
    denoiser     the part that predicts the noise
    """

    configs: Path
    vocabulary: Path
    denoiser: str = "unet"

    def config(self, part: str) -> dict[str, Any]:
        """Return the published config of a part."""
        return json.loads((self.configs / part / "config.json").read_text(encoding="utf-8"))

    def kind(self, part: str) -> PartKind:
        """Return the kind of a part by its published config."""
        kind = kind_of(part, self.config(part))
        assert kind is not None, (
            f"{self.configs / part}: its class is not registered in core/formats/models/part_kinds.py"
        )
        return kind

    @property
    def parts(self) -> list[str]:
        """Names of the parts that have a config: the denoiser, the VAE, the text encoders."""
        texts = sorted(folder.name for folder in self.configs.glob("text_encoder*"))
        return [name for name in (self.denoiser, "vae", *texts) if (self.configs / name / "config.json").is_file()]


def shards(tensors: Mapping[str, LazyTensor], limit: int) -> list[dict[str, LazyTensor]]:
    """Split the tensors, in order, into groups of at most `limit` bytes; a larger tensor gets its own group."""
    groups: list[dict[str, LazyTensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if groups[-1] and filled + tensor.byte_count > limit:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor
        filled += tensor.byte_count
    return groups


def write_part(
    folder: Path,
    stem: str,
    tensors: Mapping[str, LazyTensor],
    config: Mapping[str, Any],
    *,
    pickled: bool,
    metadata: Mapping[str, str],
    variant: str = "",
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
) -> None:
    """Write a part's config.json and weights; large safetensors are sharded with an index.

    stem      of the weight file's name (PartKind.stem)
    pickled   write a .bin
    variant   "fp16": an infix of the file names; "" for none
    wrote     called with the bytes of each written tensor
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", clean_config(config, tensors))
    ending = ".bin" if pickled else ".safetensors"
    if stem == "model" and pickled:
        stem = "pytorch_model"  # as transformers calls its pickles
    # diffusers finds sharded pickles only with use_safetensors=False.
    groups = [dict(tensors)] if pickled else shards(tensors, SHARD_BYTES)
    stem = f"{stem}.{variant}" if variant else stem
    names = [f"{stem}{ending}"]
    if len(groups) > 1:
        names = [f"{stem}-{number:05d}-of-{len(groups):05d}{ending}" for number in range(1, len(groups) + 1)]
        total = sum(tensor.byte_count for tensor in tensors.values())
        files = {key: name for name, shard in zip(names, groups, strict=True) for key in shard}
        write_json(folder / index_name(f"{stem}{ending}"), {"metadata": {"total_size": total}, "weight_map": files})
    for name, shard in zip(names, groups, strict=True):
        if pickled:
            write_pickle(folder / name, shard, cancel=cancel, wrote=wrote)
        else:
            write_safetensors(folder / name, shard, metadata, cancel, wrote)


def clean_config(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Return the config without paths and versions of other machines, and with the dtype of `tensors`, by which transformers loads."""
    cleaned = {key: value for key, value in config.items() if key not in NOT_SAVED}
    for key in ("dtype", "torch_dtype"):
        if key in cleaned:
            cleaned[key] = next(iter(tensors.values())).type
    return cleaned


# ---- scheduler, tokenizers, index ----


def write_rest(
    folder: Path,
    published: Published,
    source: Path | None,
    prediction: str | None,
    zero_terminal_snr: bool,
    inpainting: bool = False,
) -> None:
    """Write scheduler, tokenizers and model_index.json into the model's folder, whose parts are already written.

    source       model folder whose scheduler and tokenizers are copied; a file, or None: the published ones
    prediction   "epsilon" or "v"; for others the scheduler config is unchanged
    """
    scheduler = scheduler_config(published, source, prediction, zero_terminal_snr)
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    for shipped in sorted(published.configs.glob("tokenizer*")):
        if shipped.is_dir():
            _write_tokenizer(folder / shipped.name, shipped, published.vocabulary, source)
    index = read_json(published.configs / "model_index.json") or {}
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    index |= {name: [None, None] for name in published.parts if not (folder / name).is_dir()}
    if inpainting:
        index["_class_name"] = str(index["_class_name"]).replace("Pipeline", "InpaintPipeline")
    write_json(folder / "model_index.json", index)


def scheduler_config(
    published: Published, source: Path | None, prediction: str | None, zero_terminal_snr: bool
) -> dict[str, Any]:
    """Return the source folder's scheduler config, else the published one.

    source              model folder; a file or None: the published config
    prediction          "epsilon" or "v", which is set; others leave the prediction type unchanged
    zero_terminal_snr   adds rescaled betas and trailing timesteps (Lin et al. 2024)
    """
    name = "scheduler_config.json"
    config = read_json(source / "scheduler" / name) if source is not None and source.is_dir() else None
    if config is None or "_class_name" not in config:
        config = read_json(published.configs / "scheduler" / name) or {}
    if prediction in PREDICTION_TYPES:  # flow matching schedulers have none
        config["prediction_type"] = PREDICTION_TYPES[prediction]
    if zero_terminal_snr:
        if config["_class_name"] == "PNDMScheduler":  # does not support it; DDIM is the same except for its steps
            config["_class_name"] = "DDIMScheduler"
            config.pop("skip_prk_steps", None)
        # Lin et al. 2024, arXiv:2305.08891: sampling has to start at the last timestep, which is pure noise.
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {key: value for key, value in config.items() if key not in NOT_SAVED}


def _write_tokenizer(folder: Path, shipped: Path, vocabulary: Path, source: Path | None) -> None:
    """Write a tokenizer folder: copied from the source folder if it has one, else the published one.

    folder    to write
    shipped   the published tokenizer's folder
    """
    source_folder = source / folder.name if source is not None else None
    folder.mkdir()
    if source_folder is not None and _is_tokenizer(source_folder):
        for file in sorted(source_folder.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                shutil.copyfile(file, folder / file.name)
        write_older_vocabulary(folder)
        return
    config = read_json(shipped / "tokenizer_config.json") or {}
    write_json(folder / "tokenizer_config.json", config)
    marks: dict[str, Any] = {
        key: config[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token") if key in config
    }
    write_json(folder / "special_tokens_map.json", marks)
    tokenizer = shipped / "tokenizer.json"
    shutil.copyfile(tokenizer if tokenizer.is_file() else vocabulary, folder / "tokenizer.json")
    write_older_vocabulary(folder)


def write_older_vocabulary(folder: Path) -> None:
    """Write vocab.json, merges.txt and added_tokens.json from tokenizer.json if they are missing.

    transformers before 5 (used by sd-scripts) reads CLIP's tokenizer only from these.
    """
    source = folder / "tokenizer.json"
    if not source.is_file() or ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        return
    tokenizer = read_json_object(source)
    if "merges" not in tokenizer["model"]:  # not CLIP's: T5's vocabulary has no merges
        return
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    lines = ["#version: 0.2", *(pair if isinstance(pair, str) else " ".join(pair) for pair in merges)]
    added = {each["content"]: each["id"] for each in tokenizer.get("added_tokens", []) if each["content"] not in vocab}
    _write_vocab(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    if added and not (folder / "added_tokens.json").exists():
        _write_vocab(folder / "added_tokens.json", added)


def _write_vocab(path: Path, vocab: Mapping[str, int]) -> None:
    path.write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8", newline="\n")


def _is_tokenizer(folder: Path) -> bool:
    """Return whether a folder has tokenizer.json, or vocab.json and merges.txt."""
    if (folder / "tokenizer.json").is_file():
        return True
    return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON as diffusers does: keys sorted, indented by two spaces."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
