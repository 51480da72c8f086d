"""Import a LoRA file as settings to train a similar one, from its metadata and the shapes of its tensors.

Only the header is read. sd-scripts' metadata become its options; a config of OneTrainer in the file is read as a preset.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.formats.detect import identify_header
from core.formats.lora.metadata import object_of, trigger_words
from core.formats.lora.recognition import ranks_of
from core.formats.tensors.header import read_header
from core.imports.projects import onetrainer
from core.imports.projects.options import SCRIPTS
from core.imports.projects.report import Entry, Import, Source
from core.imports.projects.rules import Reading, Values
from core.imports.projects.to_job import built, by_group, to_import
from core.record.bounded_json import json_or_none
from core.record.problems import Problem, ProblemsError
from core.settings.network import NETWORK_KINDS
from core.settings.optimization.optimizers import catalog

NAME, TITLE, SUFFIX = "lora_file", "LoRA file", ".safetensors"
FAMILIES = ("sd1", "sd2", "sdxl", None)
LONGEST = 2_000  # characters of an optimizer with its arguments
# Key in the metadata -> what wrote the file
PROGRAMS = {
    "ot_revision": "OneTrainer", "software": "ai-toolkit", "lora_adapter_metadata": "diffusers or PEFT",
    "ss_network_module": "sd-scripts",
}  # fmt: skip
# Option of sd-scripts -> its key, where that is not its name after ss_
KEYS = {
    "train_batch_size": "ss_batch_size_per_device", "debiased_estimation_loss": "ss_debiased_estimation",
    "pretrained_model_name_or_path": "ss_sd_model_name", "vae": "ss_vae_name", "optimizer_type": "ss_optimizer",
    "optimizer_args": "ss_optimizer", "v2": "ss_base_model_version", "v_parameterization": "ss_base_model_version",
    "min_timestep": "modelspec.timestep_range", "max_timestep": "modelspec.timestep_range",
}  # fmt: skip
MACHINE = "mixed_precision full_fp16 gradient_checkpointing cache_latents lowram fp8_base fp8_base_unet".split()
# What no file records: {what: how the import fills it in}
NOT_RECORDED = {
    "lr_scheduler_num_cycles, lr_scheduler_power, lr_scheduler_args, bucket_reso_steps, caption_extension, masked_loss": (
        "are not recorded by sd-scripts; its defaults are set"
    ),
    "learning rates, optimizer, schedule, length": "are not in the file; Atelier's usual are set",
    "base model": "is known by its name at most; choose it",
    "images": "are not in the file; choose the folders",
}


@dataclass
class Header:
    """The header of a LoRA file.

    family   model family; None if unknown
    kind     name of its network kind; "" if unknown
    entries  report entries collected so far
    """

    source: Source
    tensors: Mapping[str, Any]
    metadata: Mapping[str, str]
    family: str | None
    kind: str
    entries: list[Entry] = field(default_factory=list)

    def json(self, key: str) -> dict[str, Any]:
        """Return the JSON object in the metadata key `key`, as `object_of`."""
        return object_of(self.metadata, key)

    def has(self, *parts: str) -> bool:
        """Return whether any tensor's name begins with one of `parts`."""
        return any(name.startswith(parts) for name in self.tensors)

    @property
    def trained_parts(self) -> tuple[bool, bool]:
        """(whether the file has U-Net layers, whether it has text encoder layers)."""
        text = ("lora_te", "text_encoder", "lycoris_text_encoder", "base_model.model.text_encoder")
        return any(not name.startswith(text) for name in self.tensors), self.has(*text)


def recognizes(source: Source) -> bool:
    """Return whether a source is a .safetensors file."""
    return source.path is not None and source.path.suffix.lower() == SUFFIX


def keys() -> Iterable[str]:
    """Return the metadata keys that the importer knows."""
    machine = (f"ss_{name}" for name in MACHINE)
    return [*PROGRAMS, *KEYS.values(), *machine, "ot_config", "ss_network_args", "ss_datasets"]


def read(source: Source) -> Import:
    """Import a LoRA file as a job: from OneTrainer's config or sd-scripts' metadata if present, else from its tensors."""
    header = _header(source)
    config = replace(source, text=header.metadata.get("ot_config", ""), suffix="", path=None)
    if config.json:
        result = onetrainer.read(config)
        result.title += ", in a LoRA file"
        return result
    recorded = "ss_learning_rate" in header.metadata
    result = _from_options(header) if recorded else _from_tensors(header)
    missing = list(NOT_RECORDED.items())
    del missing[1 if recorded else 0]
    result.report += [*header.entries, *_facts(header, {entry.key for entry in result.report})]
    result.report += [Entry("unavailable", key, sentence=sentence) for key, sentence in missing]
    known = sum(entry.kind == "taken" for entry in result.report)
    program = next((title for key, title in PROGRAMS.items() if key in header.metadata), "an unknown program")
    result.title = f"{TITLE} by {program}, {known} settings are in it"
    what, fix = "A LoRA file has neither its base model nor its images", "choose the base model and the image folders"
    result.problems.append(Problem(what, source.where, fix, "warning", code="import.no-dataset"))
    return result


def _header(source: Source) -> Header:
    """Read the header. Raises ProblemsError for files other than a LoRA trained on SD 1.x, SD 2.x or SDXL."""
    tensors, metadata = read_header(source.path or "")
    kind = identify_header(tensors, metadata)
    what, code, comments = "", "", f"{metadata.get('ss_training_comment')} {metadata.get('modelspec.title')}".lower()
    if kind.kind != "lora":
        what, code = f"This file is not a LoRA: {kind}", "import.not-a-lora"
    elif kind.family not in FAMILIES:
        what, code = f"This is a LoRA for other models: {kind}", "import.other-family"
    elif "ss_learning_rate" not in metadata and ("modelspec.merged_from" in metadata or "merged" in comments):
        what, code = "This LoRA was merged from others, not trained", "import.merged"
    if what:
        fix = "choose a LoRA that was trained on SD 1.x, SD 2.x or SDXL"
        raise ProblemsError.one(what, source.where, fix, code)
    network = next((name for name, each in NETWORK_KINDS.items() if each.title == kind.network), "")
    return Header(source, tensors, metadata, kind.family, network)


def _from_options(header: Header) -> Import:
    """Import the options that sd-scripts recorded in the metadata."""
    metadata, version = header.metadata, header.metadata.get("ss_base_model_version", "")
    script = SCRIPTS["sdxl_train_network" if header.family == "sdxl" else "train_network"]
    dataset_options, raw = _dataset(header), Values()
    for name, option in script.options.items():
        text = metadata.get(KEYS.get(name, f"ss_{name}"), dataset_options.get(name))
        if text not in (None, "None", "") and name not in MACHINE:
            raw[name] = text.strip("[]()").split(",") if option.many and isinstance(text, str) else text
    unet, text_encoder = header.trained_parts
    low, _, high = metadata.get("modelspec.timestep_range", "").partition(",")
    optimizer, arguments = _optimizer(metadata)
    network = [f"{name}={value}" for name, value in header.json("ss_network_args").items() if name != "dropout"]
    raw |= {
        "v2": version.startswith("sd_v2"),
        "v_parameterization": version.endswith("_v") or metadata.get("modelspec.prediction_type") == "v",
        "network_train_unet_only": not text_encoder, "network_train_text_encoder_only": not unet, "network_args": network,
        "optimizer_type": optimizer, "optimizer_args": arguments, "min_timestep": low or None, "max_timestep": high or None,
    }  # fmt: skip
    named = {name: KEYS.get(name, f"ss_{name}") for name in raw if name in script.options}
    written = frozenset(name for name, key in named.items() if key in metadata)
    reading = Reading(script, {name: raw[name] for name in named}, written, named)
    if "pretrained_model_name_or_path" in written:
        reading.note("pretrained_model_name_or_path", "changed", "only the name of the file is recorded")
    header.entries.append(Entry("changed", "tensors", sentence="tell which of U-Net and text encoder it trained"))
    return to_import(reading, header.source, NAME, TITLE, {}, [])


def _dataset(header: Header) -> Values:
    """Return {option: value} of the first dataset and its first folder in the metadata; without ss_datasets nearly empty."""
    datasets = json_or_none(header.metadata.get("ss_datasets") or "[]")
    first: Values = {}
    for key in ("", "subsets"):
        listed = first.get(key) if key else datasets
        first |= listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
    return first | {"train_batch_size": first.get("batch_size_per_device")}


def _optimizer(metadata: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """Return (optimizer's name, ["name=value", ...]) from ss_optimizer, such as "torch.optim.adamw.AdamW(weight_decay=0.05)"."""
    path, _, arguments_text = metadata.get("ss_optimizer", "")[:LONGEST].partition("(")
    try:
        call = ast.parse(f"f({arguments_text or ')'}", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        call = None
    keywords = call.keywords if isinstance(call, ast.Call) else []
    arguments = {each.arg: ast.unparse(each.value) for each in keywords if each.arg}
    entries = [each for each in catalog().values() if path in (each.path, each.definition, *each.aliases)]
    # Of SGDNesterov sd-scripts records momentum alone.
    argument = "nesterov" if "atelier_version" in metadata else "momentum"
    entries.sort(key=lambda each: ("nesterov" in each.implied) != (argument in arguments))
    return next((each.name for each in entries), path) or None, [f"{name}={value}" for name, value in arguments.items()]


def _from_tensors(header: Header) -> Import:
    """Import what follows from the tensors and a few metadata keys; other settings are at their default."""
    kind = NETWORK_KINDS.get(header.kind)
    rank, conv = ranks_of(header.tensors, kind.title if kind else None, header.metadata)
    adapter = {key.rpartition(".")[2]: value for key, value in header.json("lora_adapter_metadata").items()}
    steps, name = header.json("training_info").get("step"), header.metadata.get("ss_output_name", "").strip()[:100]
    stated: Values = {
        "network.alpha": adapter.get("lora_alpha"),
        "network.network_dropout": adapter.get("lora_dropout"),
        "schedule.max_train_steps": steps,
        "saving.output_name": name or None,
    }
    known = {path: value for path, value in stated.items() if type(value) in (int, float, str)}
    guessed: Values = {
        "model.family": header.family, "network.kind": header.kind or "lora", "network.rank": rank, "network.conv_rank": conv,
        "network.conv_alpha": conv, "network.train_unet": header.trained_parts[0], "network.train_text_encoder": header.trained_parts[1],
        "network.alpha": rank,
    }  # fmt: skip
    guessed = {path: value for path, value in guessed.items() if value is not None and path not in known}
    job, corrected = built(by_group(guessed | known))
    report = [Entry("taken", "metadata", value, (path,)) for path, value in known.items()]
    for path, value in guessed.items():
        alpha = "alpha is not in the header; equal to the rank is assumed" if path == "network.alpha" else ""
        sentence = corrected.get(path) or alpha or f"{path} by the tensors' names and shapes"
        report.append(Entry("changed", "tensors", value, (path,), sentence))
    return Import(NAME, TITLE, job, report)


def _facts(header: Header, reported: set[str]) -> Iterator[Entry]:
    """Yield report entries for metadata without one: dataset folders, likely trigger words, and other keys.
    reported: keys that have an entry already"""
    folders = header.json("ss_dataset_dirs") | header.json("ss_reg_dataset_dirs")
    listed = [
        f"{name} ({each.get('n_repeats')} repeats, {each.get('img_count')} images)"
        for name, each in folders.items()
        if isinstance(each, dict)
    ]
    if listed:
        sentence = "only the names are recorded; choose the folders"
        yield Entry("unavailable", "ss_dataset_dirs", ", ".join(listed), sentence=sentence)
    triggers = trigger_words(header.source.path or Path(), header.metadata)
    if triggers:
        sentence = "may be trigger words: set captions.trigger_word"
        yield Entry("changed", "ss_tag_frequency", ", ".join(triggers[:5]), sentence=sentence)
    for key, value in header.metadata.items():
        if key not in {*reported, "ss_dataset_dirs", "ss_tag_frequency"}:
            machine = key.removeprefix("ss_") in MACHINE
            sentence = "is of the machine that trained it" if machine else "is a fact about that training or file"
            yield Entry("idle", key, value[:100], sentence=sentence)
