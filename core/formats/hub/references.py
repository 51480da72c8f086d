"""Resolves model references: a local file or folder, or one to download into models/: a catalog entry, a hub id
(owner/name) or a link to a file."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from core.formats.hashes import file_sha256
from core.formats.hub import catalog
from core.formats.hub.fetch import FetchError, Remote, fetch, partial_bytes, remove_partial, require_room
from core.formats.tensors.header import FORMS, check_format
from core.record import atomic
from core.record.allowed import may_reach, may_use_keys
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.record.secrets import secret
from core.record.workspace import display_path, open_home, resolve_path

WEIGHT_SUFFIXES = tuple(FORMS)
HUB_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
HUB_ID = re.compile(rf"({HUB_NAME})/({HUB_NAME})(?:/(.+))?$")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
SMALL_SUFFIXES = (".json", ".txt")
HUB = "huggingface.co"
TIMEOUT_SECONDS = 15.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HubId:
    """A model on the Hugging Face hub, or one of its files if `file` is set ("v1-5-pruned-emaonly.safetensors")."""

    owner: str
    name: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}/{self.file}" if self.file else self.repository

    @property
    def repository(self) -> str:
        """Id of the repository: "owner/name"."""
        return f"{self.owner}/{self.name}"

    @property
    def folder_name(self) -> str:
        """Name of the model's folder under models/: "owner--name"."""
        return f"{self.owner}--{self.name}"


@dataclass(frozen=True)
class Link:
    """A download link to a model file on any web server."""

    url: str

    def __str__(self) -> str:
        """Return the URL without its query string, which may contain a key."""
        return self.url.partition("?")[0]

    @property
    def file(self) -> str:
        """Name of the file under models/: the last part of the URL."""
        return unquote(urlsplit(self.url).path).rpartition("/")[2]

    @property
    def query(self) -> str:
        """First 16 digits of the SHA-256 of the URL's query string, which may contain a key; "" without a query string."""
        query = urlsplit(self.url).query
        return hashlib.sha256(query.encode()).hexdigest()[:16] if query else ""


Source = HubId | Link


def resolve(reference: str, models: Path | str, outputs: Path | None = None) -> Path | HubId:
    """Return the local path of a model setting, or the HubId of a model that is not downloaded yet.

    reference  a path (absolute, or relative to the project), a name under models/ with or without its extension, "outputs/...", a catalog
               entry ("sd15") or a hub id ("owner/name")
    outputs    the folder that "outputs/..." refers to
    Raises ProblemsError for an empty reference and for anything else that does not exist.
    """
    text, models = reference.strip(), Path(models)
    if not text:
        raise ProblemsError.one("No model is selected", "model", "choose a file, a folder or a hub id", "model.none")
    for candidate in _candidates(text, models, outputs):
        if may_reach(candidate) and os.path.exists(candidate):  # false, not an error, for an invalid file name
            return _model_in(candidate)
    hub_id = parse_hub_id(text)
    if hub_id is None:
        fix = f"choose an existing file or folder, a hub id (owner/name), or one of: {catalog.known_names()}"
        raise ProblemsError.one(f"The model '{reference}' does not exist", display_path(models), fix, "model.not-found")
    path = _downloaded(hub_id, models)
    return hub_id if path is None else path


def _candidates(text: str, models: Path, outputs: Path | None) -> list[Path]:
    """Return the paths that the reference `text` may mean, in the order to try them; [] for text with a null character."""
    if "\0" in text:
        return []
    paths = [resolve_path(text)]
    if not open_home(text).is_absolute():
        inside = PurePosixPath(text.replace("\\", "/"))
        names = [inside, PurePosixPath(*inside.parts[1:])] if inside.parts[:1] == ("models",) else [inside]
        for name in names:
            if ".." not in name.parts and name.parts:
                paths += [models / name, *(models / f"{name}{suffix}" for suffix in WEIGHT_SUFFIXES)]
        if outputs is not None and inside.parts[:1] == ("outputs",) and ".." not in inside.parts:
            paths.append(outputs / PurePosixPath(*inside.parts[1:]))
    return paths


def parse_hub_id(text: str) -> HubId | None:
    """Parse "owner/name", "owner/name/file" or a catalog entry; None if `text` can only be a local path."""
    entry = catalog.named(text)
    if entry is not None:
        owner, name = entry.repository.split("/")
        return HubId(owner, name, entry.file)
    match = HUB_ID.fullmatch(text.strip())
    if match is None or text.startswith(("models/", "outputs/")) or ".." in text.split("/"):
        return None
    owner, name, file = match.groups()
    if file is None and name.lower().endswith(WEIGHT_SUFFIXES):
        return None  # folder/file.safetensors: a missing local path
    return HubId(owner, name, file)


def parse_source(text: str) -> Source:
    """Parse a catalog entry, a hub id or a link into the source of a download. Raises ProblemsError for anything else."""
    text = text.strip()
    source = _parse_link(text) if re.match(r"[a-z]+://", text, re.IGNORECASE) else parse_hub_id(text)
    if source is None:
        raise ProblemsError.one(
            f"'{text}' is not a catalog entry, a hub id or a link" if text else "No model is given",
            "download.hub_id",
            f"write {catalog.known_names()}, owner/name, owner/name/file.safetensors, or the https link of a model file",
            code="model.bad-source",
        )
    return source


def _parse_link(text: str) -> Source:
    """Parse an http(s) link to a model file; a link to huggingface.co becomes a HubId. Raises ProblemsError for other links."""
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").lower()
    except ValueError:
        host = ""
    if not host or parts.scheme.lower() not in ("http", "https") or parts.username is not None:
        what = f"'{text}' is not a valid link"
        raise ProblemsError.one(what, "download.hub_id", "use a link that starts with https://", "model.bad-link")
    on_hub = re.fullmatch(r"/([^/]+)/([^/]+)/(?:resolve|blob)/main/(.+)", unquote(parts.path))
    if host == HUB and on_hub:
        hub_id = parse_hub_id("/".join(on_hub.groups()))
        if hub_id is not None:
            return hub_id
    link = Link(text)
    if not link.file.lower().endswith(WEIGHT_SUFFIXES) or not re.fullmatch(r"[\w][\w .()+-]{0,150}", link.file):
        raise ProblemsError.one(
            "The link does not end in a model file name",
            text,
            "use a link that ends in .safetensors or .ckpt, or download the file in your browser and put it into models/",
            code="model.link-without-file",
        )
    return link


def installed_path(source: Source, models: Path, cancel: CancelToken | None = None) -> Path | None:
    """Return the path of a model that is already downloaded; None if it is missing or its hash is wrong.

    Files of the catalog and of links are checked against the recorded SHA-256 (their size too, for the catalog), other hub models are not.
    Raises ProblemsError for a file that is not in the format of its name, such as a saved login page.
    """
    if isinstance(source, Link):
        facts = catalog.recorded(models).get(source.file, {})
        is_of_link = (facts.get("source"), facts.get("query", "")) == (str(source), source.query)
        path, expected = models / source.file if is_of_link else None, facts.get("sha256")
    elif entry := catalog.of_hub(source.repository, source.file):
        path, expected = catalog.installed_path(entry, models), entry.sha256
    else:
        folder = models / source.folder_name
        path, expected = folder / source.file if source.file else _model_in(folder), None
    if path is None or not path.exists():
        return None
    if path.is_file():
        check_format(path, path.name)
        if expected and file_sha256(path, cancel) != expected:
            return None
    return path


def _downloaded(hub_id: HubId, models: Path) -> Path | None:
    """Return the local path of a hub model; None if it is not downloaded."""
    entry = catalog.of_hub(hub_id.repository, hub_id.file)
    if entry is not None:
        return catalog.installed_path(entry, models)
    for folder in (models / hub_id.folder_name, models / hub_id.name):
        if hub_id.file is not None:
            if os.path.isfile(folder / hub_id.file):  # its name may be too long for the system
                return folder / hub_id.file
        elif os.path.isdir(folder):
            return _model_in(folder)
    return None


def _model_in(path: Path) -> Path:
    """Return the only weight file of a folder that has no model_index.json or config.json; otherwise `path` itself."""
    if path.is_dir() and not any((path / name).is_file() for name in ("model_index.json", "config.json")):
        files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in WEIGHT_SUFFIXES]
        if len(files) == 1:
            return files[0]
    return path


# ---- download ----


def download(
    source: Source, models: Path | str, on_progress: Progress | None = None, cancel: CancelToken | None = None
) -> Path:
    """Download the needed files of a model into models/ and return its path there. Raises ProblemsError if that fails, and Cancelled.

    A file appears under its final name only when complete; an interrupted download resumes.
    on_progress   called with (bytes done, total bytes)
    The access token is HF_TOKEN, the one stored in Tools, or huggingface_hub's login. Only the hub receives it, and jobs of a shared
    page use none unless the owner allows it.
    """
    models = Path(models)
    progress = on_progress or (lambda done, total: None)
    try:
        if isinstance(source, Link):
            return _download_file(source, Remote(source.url), models / source.file, models, progress, cancel)
        entry = catalog.of_hub(source.repository, source.file)
        if entry is not None:
            address = _address(entry.repository, entry.file, entry.revision)
            remote = Remote(address, entry.size, entry.sha256, _headers())
            return _download_file(source, remote, catalog.target(entry, models), models, progress, cancel)
        return _download_folder(source, models, progress, cancel)
    except (Cancelled, ProblemsError):
        raise
    except Exception as error:
        raise _failed(source, models, error) from error


def download_files(
    hub_id: HubId, names: Sequence[str], folder: Path, on_progress: Progress, cancel: CancelToken | None = None
) -> None:
    """Download the named files of a hub model into `folder`, each atomically. Raises ProblemsError or Cancelled.

    names         paths in the repository, which become paths below `folder`
    on_progress   called with (bytes done, total bytes)
    An interrupted download resumes.
    """
    try:
        listed = {file.name: file for file in _listing(hub_id)}
        if gone := [name for name in names if name not in listed]:
            raise FetchError(f"it does not have the file {gone[0]}")
        files = [listed[name] for name in names]
        require_room(folder, sum(file.size for file in files), f"'{hub_id}'")
        _fetch_all(hub_id, files, folder, on_progress, cancel)
    except (Cancelled, ProblemsError):
        raise
    except Exception as error:
        by_hand = f"download {', '.join(names)} from https://{HUB}/{hub_id} into {display_path(folder)} by hand"
        raise _failed(hub_id, folder, error, by_hand) from error


def file_names(hub_id: HubId, folder: Path) -> list[str]:
    """Return the names of all files of a hub model. Raises ProblemsError if the hub cannot be reached or refuses.
    folder: where the error message tells users to put the files by hand"""
    try:
        return [file.name for file in _listing(hub_id)]
    except Exception as error:
        by_hand = f"download its files from https://{HUB}/{hub_id} into {display_path(folder)} by hand"
        raise _failed(hub_id, folder, error, by_hand) from error


def forget(source: Source, models: Path | str) -> None:
    """Delete the partial download of a model."""
    models = Path(models)
    entry = catalog.of_hub(source.repository, source.file) if isinstance(source, HubId) else None
    if isinstance(source, Link):
        remove_partial(models / source.file)
    elif entry is not None:
        remove_partial(catalog.target(entry, models))
    else:
        atomic.remove_folder(_partial_folder(source, models))


def _download_file(
    source: Source, remote: Remote, target: Path, models: Path, on_progress: Progress, cancel: CancelToken | None
) -> Path:
    """Download one file to `target`. Raises ProblemsError if another file already has that name."""
    if target.exists():
        facts = catalog.recorded(models).get(target.relative_to(models).as_posix(), {})
        origin = f", from {facts['source']}" if facts.get("source") not in (None, str(source)) else ""
        what = f"Another file is named {target.name}{origin}"
        raise ProblemsError.one(what, display_path(target), "rename it or move it away first", "model.name-taken")
    if remote.size:
        require_room(target.parent, remote.size - partial_bytes(target), target.name)
    digest = fetch(remote, target, on_progress, cancel)
    catalog.record(target, models, str(source), digest, source.query if isinstance(source, Link) else "")
    return target


def _download_folder(hub_id: HubId, models: Path, on_progress: Progress, cancel: CancelToken | None) -> Path:
    """Download the needed files of a hub model into its folder under models/; return the folder, or the file it was asked for."""
    target, partial = models / hub_id.folder_name, _partial_folder(hub_id, models)
    files = choose_files(hub_id, _listing(hub_id))
    downloaded = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial.is_dir() else 0
    require_room(models, sum(file.size for file in files) - downloaded, f"'{hub_id}'")
    _fetch_all(hub_id, files, partial, on_progress, cancel)
    _move_in(partial, target)
    return target / hub_id.file if hub_id.file else _model_in(target)


def _partial_folder(hub_id: HubId, models: Path) -> Path:
    """Return the folder under models/ that collects the files of a download until it is complete."""
    return models / f".part-{hub_id.folder_name}"


def _address(repository: str, file: str, revision: str) -> str:
    """Return the download URL of a file on the hub. `revision` is a branch or commit."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, file, revision=revision)


def _headers() -> dict[str, str]:
    """Return the HTTP headers for the hub, with the access token if there is one."""
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(token=_token())


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub model: path in the repository, size in bytes, and SHA-256 if the hub stores the file with Git LFS."""

    name: str
    size: int
    sha256: str | None = None


def _token() -> str | bool | None:
    """Return the access token for the hub; None: use huggingface_hub's login, False: use no token."""
    return secret("huggingface_token") or None if may_use_keys() else False


def _listing(hub_id: HubId) -> list[RemoteFile]:
    """Return the files of a model as the hub lists them, with sizes and hashes."""
    from huggingface_hub import HfApi

    info = HfApi(token=_token()).model_info(hub_id.repository, files_metadata=True, timeout=TIMEOUT_SECONDS)
    return [
        RemoteFile(file.rfilename, file.size or 0, getattr(file.lfs, "sha256", None) if file.lfs else None)
        for file in info.siblings or []
    ]


def choose_files(hub_id: HubId, files: list[RemoteFile]) -> list[RemoteFile]:
    """Choose the files of a repository to download. Raises ProblemsError if the choice is not clear.

    The file that `hub_id` names; else of a diffusers folder the configs, vocabularies and each part's weights in one format (fp16
    safetensors first); else the only .safetensors file.
    """
    by_name = {file.name: file for file in files}
    if hub_id.file is not None:
        if hub_id.file not in by_name:
            raise _no_such_file(hub_id, list(by_name))
        return [by_name[hub_id.file]]
    if "model_index.json" in by_name:
        chosen = ["model_index.json"]
        for part in PARTS:
            inside = [name for name in by_name if name.startswith(f"{part}/") and name.count("/") == 1]
            chosen += [name for name in inside if name.endswith(SMALL_SUFFIXES) and not name.endswith(".index.json")]
            chosen += _weights(inside)
        return [by_name[name] for name in chosen]
    if "config.json" in by_name:  # a single part, such as a VAE
        return [by_name[name] for name in ("config.json", *_weights([name for name in by_name if "/" not in name]))]
    single = [name for name in by_name if name.lower().endswith(".safetensors") and "/" not in name]
    if len(single) != 1:
        raise _no_such_file(hub_id, single or list(by_name))
    return [by_name[single[0]]]


def _weights(names: list[str]) -> list[str]:
    """Return the weight files of one folder in the most preferred format it has, with all shards and their index; [] without any."""
    for pattern in (
        r"(diffusion_pytorch_model|model)\.fp16(-\d+-of-\d+)?\.safetensors(\.index(\.fp16)?\.json)?",
        r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
        r"(diffusion_pytorch_model|pytorch_model)\.fp16\.bin",
        r"(diffusion_pytorch_model|pytorch_model)\.bin",
    ):
        matches = [name for name in names if re.fullmatch(pattern, name.rpartition("/")[2])]
        if matches:
            return matches
    return []


def _no_such_file(hub_id: HubId, names: list[str]) -> ProblemsError:
    """Return the error that `hub_id` does not name one file of its repository. `names` are the files that could be meant."""
    files = [name for name in names if name.lower().endswith(WEIGHT_SUFFIXES)]
    examples = ", ".join(files[:5]) or "none"
    what = f"'{hub_id}' does not name a file to download; it has: {examples}"
    fix = f"name one of its files, for example {hub_id.repository}/{files[0]}" if files else "choose another model"
    return ProblemsError.one(what, str(hub_id), fix, "model.file-not-named")


def _fetch_all(
    hub_id: HubId, files: list[RemoteFile], partial: Path, on_progress: Progress, cancel: CancelToken | None
) -> None:
    """Download the files into `partial`, skipping complete ones and resuming an interrupted one."""
    total, done = sum(file.size for file in files), 0
    on_progress(0, total)
    for file in files:
        path = partial / _safe_name(hub_id, file.name)
        if not (path.is_file() and path.stat().st_size == file.size):
            url = _address(hub_id.repository, file.name, "main")
            fetch(
                Remote(url, file.size, file.sha256, _headers()), path, _progress_after(on_progress, done, total), cancel
            )
        done += file.size
        on_progress(done, total)


def _safe_name(hub_id: HubId, name: str) -> PurePosixPath:
    """Return a file's name as a path relative to the model's folder. Raises ProblemsError if it would lead outside."""
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or any(sign in name for sign in '\\:*?"<>|\0'):
        what = f"'{hub_id}' contains a file with an unsafe name: {name!r}"
        raise ProblemsError.one(what, "", "choose another model", "model.unsafe-name")
    return inside


def _progress_after(on_progress: Progress, before: int, total: int) -> Progress:
    """Return a progress callback for one file that adds the `before` bytes of earlier files and reports `total` as the total."""
    return lambda now, _: on_progress(before + now, total)


def _move_in(partial: Path, target: Path) -> None:
    """Rename the finished folder to `target`; if `target` exists, move the files into it one by one."""
    if not target.exists():
        atomic.replace(partial, target)
        return
    for file in sorted(path for path in partial.rglob("*") if path.is_file()):
        moved = target / file.relative_to(partial)
        moved.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(file, moved)
    atomic.remove_folder(partial)


def _failed(source: Source, models: Path, error: Exception, instructions: str = "") -> ProblemsError:
    """Return the ProblemsError of a failed download.
    instructions: fix for a network error that has no advice of its own; "" describes the manual download"""
    if isinstance(error, OSError) and not _is_network(error):
        what = f"'{source}' could not be written: {error.strerror or error}"
        return ProblemsError.one(what, display_path(models), "check the disk and its permissions", "file.unwritable")
    reason, advice = (error.reason, error.advice) if isinstance(error, FetchError) else _reason(error)
    what = f"'{source}' could not be downloaded: {reason}"
    return ProblemsError.one(what, "", advice or instructions or _manual_steps(source, models), "model.download-failed")


def _manual_steps(source: Source, models: Path) -> str:
    """Describe how to download the files elsewhere and where to put them."""
    entry = catalog.of_hub(source.repository, source.file) if isinstance(source, HubId) else None
    if entry is not None:
        return f"download {entry.file} from {entry.page} on another machine and save it as {display_path(catalog.target(entry, models))}"
    if isinstance(source, Link):
        return f"download {source.file} elsewhere and put it into {display_path(models)}"
    return (
        f"put its folder at {display_path(models / source.folder_name)}, "
        f"or a .safetensors file into {display_path(models)}, by hand"
    )


def _is_network(error: OSError) -> bool:
    """Return whether an OSError is a connection error, not a disk error (file name set, disk or quota full, no permission)."""
    return error.filename is None and error.errno not in (28, 122) and not isinstance(error, PermissionError)


def _reason(error: Exception) -> tuple[str, str]:
    """Return (cause of a failed download as a clause, fix); the fix is "" if only a manual download helps."""
    kinds: Mapping[str, tuple[str, str]] = {
        "GatedRepoError": (
            "its owner requires you to accept its terms",
            "accept the terms on its page, then store a Hugging Face token in Tools or set HF_TOKEN",
        ),
        "RepositoryNotFoundError": (
            "the model does not exist or is private",
            "check the spelling; for a private one store a Hugging Face token in Tools or set HF_TOKEN",
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
    return _no_client() or ("the hub does not answer", "")


def _no_client() -> tuple[str, str] | None:
    """Return (cause, fix) as `_reason` if the environment names proxies or certificates with which no request can begin; else None."""
    import httpx

    try:
        httpx.Client().close()
    except Exception as error:
        fix = "correct or remove the variables ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE"
        return f"the environment of this program allows no connection ({error})", fix
    return None
