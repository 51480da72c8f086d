"""Finds the model folder of a sentence captioner, checks its files before a library reads them, and downloads them."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from core.captioning.sentences.profiles import Profile, profile_of
from core.formats.hub import references as hub
from core.formats.tensors.header import read_header, sniff
from core.record.allowed import may_reach
from core.record.bounded_json import read_json_object
from core.record.context import JobContext
from core.record.problems import Problem, ProblemsError, collected, raise_any
from core.record.regular import check_regular
from core.record.units import size_text
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.captioning.sentences import CaptionModelSettings

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What a model needs besides config and weights -> the files it can be in, one of each set complete.
NEEDS = {
    "the image processor": (("preprocessor_config.json",), ("processor_config.json",)),
    "the tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",)),
}
TEMPLATES = ("chat_template.jinja", "chat_template.json")
SMALL = re.compile(r"[\w.-]+\.(json|txt|jinja)")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_OTHER_INDEX = re.compile(r".*\.(bin|msgpack|h5)\.index\.json")
PICKLED = re.compile(r".*\.(bin|pt|pth|pkl|ckpt)")
MAX_CONFIG_BYTES = 16_000_000
MAX_TOKENIZER_BYTES = 200_000_000  # of Gemma: 33 MB
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")  # read by the tokenizers library, in Rust
MOST_LAYERS = 1000
MAX_NUMBER = 1 << 40  # of any number in a config
DOWNLOAD_AGAIN = "download the model again"


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder. `id`: its hub repository; None for a user's folder, which is not downloaded."""

    profile: Profile
    folder: Path
    id: hub.HubId | None

    @property
    def title(self) -> str:
        """The hub id, or the name of a user's folder."""
        return str(self.id) if self.id else self.folder.name

    @property
    def setting(self) -> str:
        """The setting that selects the model, for problems."""
        return f"{self.profile.task}.model"


def find(profile: Profile, settings: CaptionModelSettings, workspace: Workspace) -> ModelFiles:
    """Return the model that the settings name; its files may be missing. Raises ProblemsError."""
    text = settings.model
    where = f"{profile.task}.model"
    if not text:
        fix = "choose a folder, or owner/name of the Hugging Face Hub"
        raise ProblemsError.one("No model is selected", where, fix, "captioner.no-model")
    match = hub.HUB_ID.fullmatch(text)
    is_users = match is None or match[3] is not None or text.startswith(("models/", "outputs/", "./"))
    hub_id = None if match is None or is_users else hub.HubId(match[1], match[2])
    candidates = [workspace.captioners / text, workspace.models / text] if ".." not in Path(text).parts else []
    candidates += [workspace.captioners / hub_id.folder_name] if hub_id else []
    for folder in (resolve_path(text), *candidates):
        if may_reach(folder) and os.path.isdir(folder):  # false, not an error, for an invalid name
            return ModelFiles(profile, folder, hub_id if folder.is_relative_to(workspace.captioners) else None)
    if hub_id is None:
        fix = f"choose a folder below {display_path(workspace.captioners)}, or owner/name of the Hugging Face Hub"
        raise ProblemsError.one(f"The model '{text}' does not exist", where, fix, "captioner.not-found")
    return ModelFiles(profile, workspace.captioners / hub_id.folder_name, hub_id)


def check(files: ModelFiles) -> None:
    """Raise ProblemsError with all problems of a model's files: unsupported, missing, damaged or unsafe."""
    _check_kind(files)
    _check_complete(files)
    problems: list[Problem] = []
    for path in sorted(files.folder.iterdir()):
        if path.name in TOKENIZER_FILES or SMALL.fullmatch(path.name):
            collected(problems, _check_small_file, path)
    for file in [] if problems else weight_files(files.folder):
        collected(problems, _check_weights, file)
    raise_any(problems)


def weight_files(folder: Path) -> list[Path]:
    """Return the paths of the model's safetensors files. Raises ProblemsError for a damaged index, or one with paths outside the folder."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    index = read_json_object(folder / INDEX, DOWNLOAD_AGAIN)
    listed = index.get("weight_map")
    names = list(listed.values()) if isinstance(listed, dict) and isinstance(index.get("metadata"), dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        what = "The index of the weights is damaged"
        raise ProblemsError.one(what, str(folder / INDEX), DOWNLOAD_AGAIN, "captioner.bad-index")
    return [folder / name for name in sorted(set(names))]


def _check_complete(files: ModelFiles) -> None:
    """Raise ProblemsError for missing files, and for weights that are a pickle or an adapter."""
    folder, where = files.folder, display_path(files.folder)
    if not folder.is_dir():
        what = f"The model {files.title} is not downloaded"
        raise ProblemsError([Problem(what, where, *_missing_files_fix(files), code="captioner.no-files")])
    weights = weight_files(folder)
    missing = [] if (folder / CONFIG).is_file() else [CONFIG]
    missing += [file.name for file in weights if not file.is_file()]
    for what, alternatives in NEEDS.items():
        if not any(all((folder / name).is_file() for name in names) for names in alternatives):
            missing.append(f"{alternatives[0][0]} ({what})")
    if files.profile.chat and not _has_template(folder):
        missing.append(f"{TEMPLATES[0]} (the chat template)")
    pickled = sorted(path.name for path in folder.iterdir() if PICKLED.fullmatch(path.name))
    if pickled and not any(file.is_file() for file in weights):
        what = f"The weights are a pickle ({pickled[0]}), which can run code when it is read"
        fix = f"get {WEIGHTS} of the model, or another model that has it"
        raise ProblemsError.one(what, where, fix, "captioner.pickle")
    if (folder / "adapter_config.json").exists():
        what, fix = "The folder contains an adapter, not a complete model", "choose a complete model"
        raise ProblemsError.one(what, where, fix, "captioner.adapter")
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        what = f"The model {files.title} is incomplete: {', '.join(missing)} {verb} missing"
        raise ProblemsError([Problem(what, where, *_missing_files_fix(files), code="captioner.incomplete")])


def _missing_files_fix(files: ModelFiles) -> tuple[str, str, str]:
    """Return (fix, level, remedy) of a Problem about missing files."""
    if files.id is None:
        return "copy the missing files into the folder", "error", ""
    by_hand = f"download the files from https://{hub.HUB}/{files.id} into the folder by hand"
    return f"turn on 'Download if missing', or {by_hand}", "error", f"{files.profile.task}.download"


def _has_template(folder: Path) -> bool:
    """Return whether the folder has a chat template; also True for a damaged config, which another check reports."""
    if any((folder / name).is_file() for name in TEMPLATES):
        return True
    configs = [
        folder / name for name in ("tokenizer_config.json", "processor_config.json") if (folder / name).is_file()
    ]
    try:
        return any("chat_template" in read_json_object(path, max_bytes=MAX_CONFIG_BYTES) for path in configs)
    except ProblemsError:
        return True  # reported as damaged


def _check_small_file(path: Path) -> None:
    """Raise ProblemsError for a damaged or too large file, and for a config that names code to run (`auto_map`)."""
    most = MAX_TOKENIZER_BYTES if path.name in TOKENIZER_FILES else MAX_CONFIG_BYTES
    if check_regular(path).st_size > most:
        what = f"The file is larger than the limit of {size_text(most)}"
        raise ProblemsError.one(what, str(path), DOWNLOAD_AGAIN, "captioner.too-large")
    if path.suffix != ".json" or path.name in TOKENIZER_FILES:
        return
    values = read_json_object(path, DOWNLOAD_AGAIN, max_bytes=MAX_CONFIG_BYTES, finite=False)
    if path.name != INDEX and any(key == "auto_map" and value for key, value in _pairs(values)):
        what = "The model needs its own code (auto_map), which is never run"
        fix = "choose a conversion without it, such as florence-community/Florence-2-large for Florence-2"
        raise ProblemsError.one(what, str(path), fix, "captioner.remote-code")
    if path.name == CONFIG:
        _check_numbers(path, values)


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every (key, value) of the dictionaries in a JSON value, at any depth."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield key, each
            yield from _pairs(each)
    elif isinstance(value, list):
        for each in value:
            yield from _pairs(each)


def _check_numbers(path: Path, values: dict[str, Any]) -> None:
    """Raise ProblemsError for implausible sizes in a config, as a library would build modules of that size before reading weights."""
    for key, value in _pairs(values):
        layers = "layer" in key or key.startswith(("depth", "num_block"))
        for number in value if isinstance(value, list) else [value]:
            if type(number) is int and abs(number) > (MOST_LAYERS if layers else MAX_NUMBER):
                what = f"The config's {key[:100]} is invalid: {str(number)[:50]}"
                raise ProblemsError.one(what, str(path), DOWNLOAD_AGAIN, "captioner.bad-config")


def _check_kind(files: ModelFiles) -> None:
    """Raise ProblemsError for an unsupported model_type, and for weights quantized by another library than bitsandbytes.

    A missing or damaged config passes: another check reports it.
    """
    where = files.folder / CONFIG
    try:
        values = read_json_object(where, DOWNLOAD_AGAIN, max_bytes=MAX_CONFIG_BYTES, finite=False)
    except ProblemsError:  # missing or damaged, which is reported with the other files
        return
    kind = values.get("model_type")
    if kind not in files.profile.types:
        other = profile_of(kind) if isinstance(kind, str) else None
        what = f"The captioner {files.profile.title} does not support this model ({str(kind)[:100]})"
        fix = f"use the captioner {other.title}" if other else f"choose one of: {', '.join(files.profile.types)}"
        raise ProblemsError.one(what, str(where), fix, "captioner.other-kind")
    packed = values.get("quantization_config")
    method = packed.get("quant_method") if isinstance(packed, dict) else None
    if packed and method != "bitsandbytes":
        what = f"The weights are packed with {str(method)[:50]}, which is not supported"
        fix = "choose the model's plain weights, with precision 4-bit if memory is short"
        raise ProblemsError.one(what, str(where), fix, "captioner.packed")


def _check_weights(path: Path) -> None:
    """Raise ProblemsError for a weight file that is a pickle or has a damaged header."""
    if sniff(path) == "pickle":
        what, fix = "The file is a pickle, which can run code when it is read", "get the model as safetensors"
        raise ProblemsError.one(what, str(path), fix, "captioner.pickle")
    read_header(path)


def fetch_missing(files: ModelFiles, settings: CaptionModelSettings, context: JobContext) -> None:
    """Download the model's files if some are missing and the settings allow it. Raises ProblemsError, also for damaged files."""
    if not settings.download or files.id is None:
        return
    try:
        check(files)
    except ProblemsError as error:
        if not {"captioner.no-files", "captioner.incomplete"} & set(error.codes):
            raise
    else:
        return

    names = files_to_download(hub.file_names(files.id, files.folder))
    if not any(name.endswith(".safetensors") for name in names):
        what, fix = f"'{files.id}' has no weights as safetensors", "choose a model that has them"
        raise ProblemsError.one(what, files.setting, fix, "captioner.pickle")
    on_progress = partial(context.stage, f"downloading {files.title}", of_bytes=True)
    hub.download_files(files.id, names, files.folder, on_progress, context.cancel)


def files_to_download(names: Iterable[str]) -> list[str]:
    """Return the files of a repository to download. config.json is last: a folder without it is incomplete."""
    small = [name for name in names if SMALL.fullmatch(name) and not _OTHER_INDEX.fullmatch(name)]
    chosen = dict.fromkeys([*small, *(name for name in names if _WEIGHTS.fullmatch(name))])
    return [*(name for name in chosen if name != CONFIG), *(name for name in chosen if name == CONFIG)]
