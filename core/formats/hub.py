"""Models by name: a file or folder that is here, or a hub id (owner/name) that can be fetched into models/."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from core.record import atomic
from core.record.cancel import Cancelled
from core.record.problems import ProblemsError
from core.record.workspace import display_path, open_home, resolve_path

if TYPE_CHECKING:
    from core.record.cancel import CancelToken

WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin", ".pth")
HUB_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
HUB_ID = re.compile(rf"({HUB_NAME})/({HUB_NAME})(?:/(.+))?$")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
SMALL_SUFFIXES = (".json", ".txt")
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 15.0
SPARE_BYTES = 1 << 28  # left free on the disk beside the download

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HubId:
    """A model on the hub; `file` is one file of it ("v1-5-pruned-emaonly.safetensors")."""

    owner: str
    name: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}/{self.file}" if self.file else self.repository

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def folder_name(self) -> str:
        """Its folder under models/."""
        return f"{self.owner}--{self.name}"


def resolve(reference: str, models: Path | str, outputs: Path | None = None) -> Path | HubId:
    """What a model setting stands for.

    A path (absolute, or relative to the project), a name under models/ with or without its ending, `outputs/...` for what
    was trained, wherever that folder is, or a hub id whose model lies under models/ already: its path. A hub id that is
    not here: the HubId. Anything else is a problem.
    """
    text, models = reference.strip(), Path(models)
    if not text:
        raise ProblemsError.one("No model is chosen", "model", "choose a file, a folder or a hub id")
    for candidate in _candidates(text, models, outputs):
        if os.path.exists(candidate):  # false, not an error, for a name that no disk takes
            return _model_in(candidate)
    hub_id = parse_hub_id(text)
    if hub_id is None:
        raise ProblemsError.one(
            f"There is no model '{reference}'", display_path(models), "choose a file or folder that exists, or a hub id"
        )
    found = _downloaded(hub_id, models)
    return hub_id if found is None else found


def _candidates(text: str, models: Path, outputs: Path | None) -> list[Path]:
    """Places where a name may lie, in the order they are looked at."""
    if "\0" in text:
        return []
    places = [resolve_path(text)]
    if not open_home(text).is_absolute():
        inside = PurePosixPath(text.replace("\\", "/"))
        names = [inside, PurePosixPath(*inside.parts[1:])] if inside.parts[:1] == ("models",) else [inside]
        for name in names:
            if ".." not in name.parts and name.parts:
                places += [models / name, *(models / f"{name}{suffix}" for suffix in WEIGHT_SUFFIXES)]
        if outputs is not None and inside.parts[:1] == ("outputs",) and ".." not in inside.parts:
            places.append(outputs / PurePosixPath(*inside.parts[1:]))
    return places


def parse_hub_id(text: str) -> HubId | None:
    """`owner/name` or `owner/name/file`; None for what can only be a path on this machine."""
    match = HUB_ID.fullmatch(text.strip())
    if match is None or text.startswith(("models/", "outputs/")) or ".." in text.split("/"):
        return None
    owner, name, file = match.groups()
    if file is None and name.lower().endswith(WEIGHT_SUFFIXES):
        return None  # folder/file.safetensors: a path that is not there
    return HubId(owner, name, file)


def _downloaded(hub_id: HubId, models: Path) -> Path | None:
    for folder in (models / hub_id.folder_name, models / hub_id.name):
        if hub_id.file is not None:
            if (folder / hub_id.file).is_file():
                return folder / hub_id.file
        elif folder.is_dir():
            return _model_in(folder)
    return None


def _model_in(path: Path) -> Path:
    """A folder that only wraps one weight file stands for that file."""
    if path.is_dir() and not any((path / name).is_file() for name in ("model_index.json", "config.json")):
        files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in WEIGHT_SUFFIXES]
        if len(files) == 1:
            return files[0]
    return path


# ---- download ----


def download(
    hub_id: HubId,
    models: Path | str,
    on_progress: Progress | None = None,
    cancel: CancelToken | None = None,
    endpoint: str | None = None,
) -> Path:
    """Fetch what is needed of a hub model into models/ and return its path there.

    It appears whole or not at all; an interrupted download goes on where it stopped. on_progress(bytes done, in all).
    Access tokens are those of the environment (HF_TOKEN) or of huggingface_hub's own login.
    """
    models = Path(models)
    target = models / hub_id.folder_name
    try:
        wanted = choose_files(hub_id, _listing(hub_id, endpoint))
        partial = models / f".part-{hub_id.folder_name}"
        _check_space(hub_id, models, partial, wanted)
        _fetch_all(hub_id, wanted, partial, on_progress or (lambda done, total: None), cancel, endpoint)
    except (Cancelled, ProblemsError):
        raise
    except Exception as error:
        raise _failed(hub_id, models, error) from error
    _move_in(partial, target)
    return target / hub_id.file if hub_id.file else _model_in(target)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub model. sha256 is known of large ones."""

    name: str
    size: int
    sha256: str | None = None


def _listing(hub_id: HubId, endpoint: str | None) -> list[RemoteFile]:
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).model_info(hub_id.repository, files_metadata=True, timeout=TIMEOUT_SECONDS)
    return [
        RemoteFile(file.rfilename, file.size or 0, getattr(file.lfs, "sha256", None) if file.lfs else None)
        for file in info.siblings or []
    ]


def choose_files(hub_id: HubId, files: list[RemoteFile]) -> list[RemoteFile]:
    """Only what is needed: one form of the weights (fp16 and safetensors first), configs and vocabulary."""
    by_name = {file.name: file for file in files}
    if hub_id.file is not None:
        if hub_id.file not in by_name:
            raise _no_such_file(hub_id, list(by_name))
        return [by_name[hub_id.file]]
    if "model_index.json" in by_name:
        wanted = ["model_index.json"]
        for part in PARTS:
            inside = [name for name in by_name if name.startswith(f"{part}/") and name.count("/") == 1]
            wanted += [name for name in inside if name.endswith(SMALL_SUFFIXES) and not name.endswith(".index.json")]
            wanted += _one_form(inside)
        return [by_name[name] for name in wanted]
    if "config.json" in by_name:  # one part alone, such as a VAE
        return [by_name[name] for name in ("config.json", *_one_form([name for name in by_name if "/" not in name]))]
    single = [name for name in by_name if name.lower().endswith(".safetensors") and "/" not in name]
    if len(single) != 1:
        raise _no_such_file(hub_id, single)
    return [by_name[single[0]]]


def _one_form(names: list[str]) -> list[str]:
    """The weights of one folder in one form, shards and their index together."""
    for pattern in (
        r"(diffusion_pytorch_model|model)\.fp16(-\d+-of-\d+)?\.safetensors(\.index(\.fp16)?\.json)?",
        r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
        r"(diffusion_pytorch_model|pytorch_model)\.fp16\.bin",
        r"(diffusion_pytorch_model|pytorch_model)\.bin",
    ):
        found = [name for name in names if re.fullmatch(pattern, name.rpartition("/")[2])]
        if found:
            return found
    return []


def _no_such_file(hub_id: HubId, names: list[str]) -> ProblemsError:
    files = [name for name in names if name.lower().endswith(WEIGHT_SUFFIXES)]
    shown = ", ".join(files[:5]) or "none"
    return ProblemsError.one(
        f"'{hub_id}' does not say which file to get; it has: {shown}",
        str(hub_id),
        f"name one of its files, for example {hub_id.repository}/{files[0]}" if files else "choose another model",
    )


def _check_space(hub_id: HubId, models: Path, partial: Path, wanted: list[RemoteFile]) -> None:
    models.mkdir(parents=True, exist_ok=True)
    here = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial.is_dir() else 0
    needed, free = sum(file.size for file in wanted) - here, shutil.disk_usage(models).free
    if needed + SPARE_BYTES > free:
        raise ProblemsError.one(
            f"'{hub_id}' needs {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free",
            display_path(models),
            "free some space, or start with --models and a folder on another disk",
        )


def _fetch_all(
    hub_id: HubId,
    wanted: list[RemoteFile],
    partial: Path,
    on_progress: Progress,
    cancel: CancelToken | None,
    endpoint: str | None,
) -> None:
    total, done = sum(file.size for file in wanted), 0
    on_progress(0, total)
    for file in wanted:
        path = partial / _safe_name(hub_id, file.name)
        if not (path.is_file() and path.stat().st_size == file.size):
            _fetch(hub_id, file, path, _progress_after(on_progress, done, total), cancel, endpoint)
        done += file.size
        on_progress(done, total)


def _safe_name(hub_id: HubId, name: str) -> PurePosixPath:
    """A file's name as a path inside the model's folder; names come from outside and must not lead out of it."""
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or any(sign in name for sign in '\\:*?"<>|\0'):
        raise ProblemsError.one(
            f"'{hub_id}' has a file whose name is not allowed: {name!r}", "", "choose another model"
        )
    return inside


def _progress_after(on_progress: Progress, before: int, total: int) -> Callable[[int], None]:
    """Progress of one file among those that are done already."""
    return lambda now: on_progress(before + now, total)


def _fetch(
    hub_id: HubId,
    file: RemoteFile,
    path: Path,
    on_bytes: Callable[[int], None],
    cancel: CancelToken | None,
    endpoint: str | None,
) -> None:
    """One file, beside its name until it is whole; what an earlier try left is kept and added to."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    have = unfinished.stat().st_size if unfinished.is_file() else 0
    if have > file.size:
        have = 0
    headers = build_hf_headers() | ({"Range": f"bytes={have}-"} if 0 < have < file.size else {})
    # Ranges and sizes are of the bytes as stored, so they must not come packed.
    headers["Accept-Encoding"] = "identity"
    url = hf_hub_url(hub_id.repository, file.name, endpoint=endpoint)
    if have < file.size or file.size == 0:
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                have = 0
            with open(unfinished, "ab" if have else "wb") as handle:
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    if cancel is not None:
                        cancel.check()
                    handle.write(chunk)
                    have += len(chunk)
                    on_bytes(have)
    _check_whole(hub_id, file, unfinished, cancel)
    atomic.replace(unfinished, path)


def _check_whole(hub_id: HubId, file: RemoteFile, unfinished: Path, cancel: CancelToken | None) -> None:
    """Size, and of large files the SHA-256 the hub tells. A wrong file is removed; a short one is kept to go on."""
    size = unfinished.stat().st_size
    if size < file.size:
        raise ConnectionError(f"the connection ended after {size:,} of {file.size:,} bytes of {file.name}")
    wrong = file.size > 0 and size > file.size
    if file.sha256 is not None and not wrong:
        digest = hashlib.sha256()
        with open(unfinished, "rb") as handle:
            while chunk := handle.read(CHUNK_BYTES):
                if cancel is not None:
                    cancel.check()
                digest.update(chunk)
        wrong = digest.hexdigest() != file.sha256
    if wrong:
        atomic.remove(unfinished)
        raise ConnectionError(f"{file.name} arrived damaged")


def _move_in(partial: Path, target: Path) -> None:
    """The finished folder gets its name; into a folder that is there already, file by file."""
    if not target.exists():
        atomic.replace(partial, target)
        return
    for file in sorted(path for path in partial.rglob("*") if path.is_file()):
        goal = target / file.relative_to(partial)
        goal.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(file, goal)
    atomic.remove_folder(partial)


def _failed(hub_id: HubId, models: Path, error: Exception) -> ProblemsError:
    """One line: what failed, and what to do without the network."""
    by_hand = (
        f"put its folder at {display_path(models / hub_id.folder_name)}, "
        f"or a .safetensors file into {display_path(models)}, by hand"
    )
    if isinstance(error, OSError) and not _is_network(error):
        return ProblemsError.one(f"'{hub_id}' could not be written: {error.strerror or error}", display_path(models))
    reason, advice = _reason(error)
    return ProblemsError.one(f"'{hub_id}' could not be downloaded: {reason}; {advice or by_hand}")


def _is_network(error: OSError) -> bool:
    """Errors of the connection are OSErrors too; those of the disk have a file name or say that space ran out."""
    return error.filename is None and error.errno not in (28, 122) and not isinstance(error, PermissionError)


def _reason(error: Exception) -> tuple[str, str]:
    """Why, and where that needs other advice than fetching it by hand, the advice."""
    kinds: Mapping[str, tuple[str, str]] = {
        "GatedRepoError": (
            "its owner asks for consent",
            "accept the terms on its page, then log in with `hf auth login` or set HF_TOKEN",
        ),
        "RepositoryNotFoundError": (
            "there is no such model, or it is private",
            "check the spelling; for a private one log in with `hf auth login` or set HF_TOKEN",
        ),
        "OfflineModeIsEnabled": ("offline mode is on (HF_HUB_OFFLINE)", ""),
    }
    for kind in type(error).__mro__:
        if kind.__name__ in kinds:
            return kinds[kind.__name__]
    response: Any = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 404):
        return kinds["RepositoryNotFoundError"]
    if response is not None:
        return f"the hub answered {response.status_code}", ""
    if isinstance(error, ConnectionError) and type(error) is ConnectionError:
        return str(error), "try again: it goes on where it stopped"
    return "the hub does not answer", ""
