"""Lists and finds models, LoRAs and embeddings in the models folder and among the results of runs."""

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePosixPath

from core.control.kinds import CODES
from core.dataset.captions.words import word_pattern
from core.dataset.sources.files import is_junk, name_key, walk_folders
from core.families.prompt_weights import unescape_brackets
from core.formats.embedding_file import TOKEN, bundled_tokens, read_shapes, tokens_in
from core.formats.tensors.header import read_header
from core.generation.model.index import UNREADABLE, cached_facts, facts_of_file
from core.generation.model.wildcard_files import wildcard_lines
from core.generation.prompt.analysis import Names
from core.record.allowed import may_reach
from core.record.best import read_best
from core.record.file_titles import title_of_file
from core.record.kept import kept_mark, read_kept
from core.record.problems import Problem, ProblemsError
from core.record.regular import open_regular
from core.record.run_about import initial_title, title_of
from core.record.run_folder import RunFolder
from core.record.stamps import Stamp, cached_until_changed, stamp
from core.record.units import first_of, with_article
from core.record.workspace import CAPTIONERS, PREPROCESSORS, PROJECT, Workspace, display_path, real_path, resolve_path

MAX_LISTED, COMPARED_BYTES = 3, 1 << 20  # files listed of one name; bytes compared
SUFFIXES = {".safetensors", ".ckpt", ".pt", ".bin"}
UPSCALER_SUFFIXES = SUFFIXES | {".pth"}
INDEX, CONFIG = "model_index.json", "config.json"  # in a diffusers folder: of a model, of a part
FOLDER_KINDS = {  # of folders under models/
    "loras": "lora",
    "lora": "lora",
    "embeddings": "embedding",
    "upscalers": "upscaler",
    "vae": "vae",
    "vaes": "vae",
    "controlnet": "controlnet",
}
MAX_NEAR = 3  # for a missing name


class Scan:
    """The model files of a workspace by kind. Folders are walked once for all lists.

    Labels are paths relative to models/ without ending ("loras/fox"); of results "RUN / FILE" ("2026-01-31_fox / fox").
    """

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self._kinds: dict[Path, str] = {}

    def loras(self) -> list[tuple[str, Path]]:
        """Return (label, path) of every LoRA, newest first, with each run's best and kept checkpoints before its others."""
        return _best_first(self.newest_first("lora"), self.workspace)

    def embeddings(self) -> list[tuple[str, Path]]:
        """Return (label, path) of every embedding, newest first, with each run's best and kept checkpoints before its others."""
        return _best_first(self.newest_first("embedding"), self.workspace)

    def control(self, *kinds: str) -> list[tuple[str, Path]]:
        """Return (label, path) of every ControlNet file and diffusers folder, newest first in each kind.

        kinds   "controlnet", "controlnet_lllite"
        """
        files = [(*each, kind) for kind in kinds for each in self.newest_first(kind)]
        return list(dict.fromkeys(_containing_folder(*each, self.workspace) for each in files))

    def checkpoints(self) -> list[tuple[str, Path]]:
        """Return (label, path) of every checkpoint file and diffusers folder: those under models/ by name, then results, newest first."""
        with cached_facts(self.workspace):
            local = sorted([*self.folders(), *self.files("checkpoint")], key=lambda item: item[0].lower())
            results = sorted(self.results("checkpoint"), key=lambda item: -_mtime_ns(item[1]))
        return _labeled(local + _best_first(results, self.workspace))

    def vaes(self) -> list[tuple[str, Path]]:
        """Return (label, path) of every VAE file under models/ by name; unreadable files last."""
        with cached_facts(self.workspace):
            return _labeled(sorted(self.files("vae"), key=lambda item: item[0].lower()))

    def upscalers(self) -> list[tuple[str, Path]]:
        """Return (label, path) of every supported upscaler under models/, for images and latents, by name; unreadable files last."""
        with cached_facts(self.workspace):
            kinds = [*self.files("upscaler", UPSCALER_SUFFIXES), *self.files("latent_upscaler")]
        return _labeled(sorted(kinds, key=lambda item: item[0].lower()))

    def newest_first(self, kind: str) -> list[tuple[str, Path]]:
        """Return (label, path) of the files of a kind (`ModelKind.kind`) under models/ and of runs, newest first; unreadable files last."""
        with cached_facts(self.workspace):
            files = [*self.files(kind), *self.results(kind)]
        return _labeled(sorted(files, key=lambda item: (-_mtime_ns(item[1]), item[0])))

    def files(self, kind: str, suffixes: Collection[str] = SUFFIXES) -> list[tuple[str, Path]]:
        """Return (label, path) of the files under models/ that have this kind (`ModelKind.kind`) and one of these suffixes."""
        return self._files_of_kind(self._local[0], self.workspace.models, kind, suffixes)

    def folders(self) -> list[tuple[str, Path]]:
        """Return (label, path) of the diffusers folders under models/."""
        return [(_label(path, self.workspace.models), path) for path in self._local[1]]

    def results(self, kind: str) -> Iterator[tuple[str, Path]]:
        """Yield (label, path) of the files of a kind among the checkpoints of all runs; for "checkpoint" also of diffusers folders."""
        for run, (files, folders) in self._runs:
            root = run / "checkpoints"
            labeled = [(_label(path, root), path) for path in folders] if kind == "checkpoint" else []
            labeled += self._files_of_kind(files, root, kind, SUFFIXES)
            if labeled:
                title = _run_label(run)
                yield from ((f"{title} / {label}", path) for label, path in labeled)

    @cached_property
    def _local(self) -> tuple[list[Path], list[Path]]:
        """(weight files, diffusers folders) under models/."""
        return _weights_and_folders(self.workspace.models)

    @cached_property
    def _runs(self) -> list[tuple[Path, tuple[list[Path], list[Path]]]]:
        """[(folder of a run, (weight files, diffusers folders) among its checkpoints)]."""
        runs = sorted(self.workspace.runs.iterdir()) if self.workspace.runs.is_dir() else []
        return [(run, _weights_and_folders(run / "checkpoints")) for run in runs]

    def _files_of_kind(
        self, files: Iterable[Path], root: Path, kind: str, suffixes: Collection[str]
    ) -> list[tuple[str, Path]]:
        """Return (label, path) of those files that have this kind and one of the suffixes. root: folder to which labels are relative"""
        return [
            (_label(path, root), path)
            for path in files
            if path.suffix.lower() in suffixes and self._kind(path, root) == kind
        ]

    def _kind(self, path: Path, root: Path) -> str:
        """Return the kind under which a file is listed, cached. root: models/ or the checkpoints folder of a run"""
        if path not in self._kinds:
            self._kinds[path] = _listed_kind(path, root)
        return self._kinds[path]


def _containing_folder(label: str, path: Path, kind: str, workspace: Workspace) -> tuple[str, Path]:
    """Return (label, path) of the diffusers folder that contains a weight file, else of the file itself.

    kind   which the folder must have too, "controlnet" or "controlnet_lllite"
    """
    folder = path.parent
    inside = workspace.models in folder.parents
    if not inside or not (folder / CONFIG).is_file() or facts_of_file(folder).kind != kind:
        return label, path
    return _label(folder, workspace.models), folder


def _labeled(files: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Move unreadable files to the end, with the reason in their labels."""
    labeled = [(label, path, why_unreadable(path)) for label, path in files]
    readable = [(label, path) for label, path, why in labeled if not why]
    return readable + [(f"{label} (unreadable: {why})", path) for label, path, why in labeled if why]


def _mtime_ns(path: Path) -> int:
    """Return the modification time in nanoseconds; 0 for a file that no longer exists."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _best_first(files: list[tuple[str, Path]], workspace: Workspace) -> list[tuple[str, Path]]:
    """Move each run's best and kept checkpoints before its other files, with a mark in their labels."""
    runs = {
        path: workspace.runs / path.relative_to(workspace.runs).parts[0]
        for _, path in files
        if path.is_relative_to(workspace.runs)
    }
    marks = _marks(set(runs.values()))
    first: dict[Path, int] = {}  # per run, the position of its newest file
    for number, (_, path) in enumerate(files):
        first.setdefault(runs.get(path, path), number)
    keys = [(first[runs[path]], 0) if path in marks else (number, 1) for number, (_, path) in enumerate(files)]
    ordered = [files[number] for number in sorted(range(len(files)), key=keys.__getitem__)]
    return [(f"{label} ({marks[path]})" if path in marks else label, path) for label, path in ordered]


def _marks(runs: Iterable[Path]) -> dict[Path, str]:
    """Return {checkpoint: mark in its label} for the best checkpoint of each run and those that the user keeps."""
    marks: dict[Path, list[str]] = {}
    for run in runs:
        if (best := read_best(run)) is not None:
            marks[run / best[0]] = [best[1]]
        for file, name in read_kept(run).items():
            marks.setdefault(run / file, []).append(kept_mark(file, name))
    return {path: ", ".join(marks_of_file) for path, marks_of_file in marks.items()}


def find_file(name: str, workspace: Workspace) -> Path | None:
    """Return the file or folder at a path, or None. The path is absolute, or relative to the project, models/ or outputs/."""
    text = name.strip()
    existing = (path for path in _as_paths(text, workspace) if may_reach(path) and os.path.exists(path))
    return next(existing, None) if text else None


def title_of_name(name: str, workspace: Workspace) -> str:
    """Return the title of a model file in the settings: "fox, step 250" for a run's checkpoint, else the file name."""
    return title_of_file(find_file(name, workspace) or Path(name), workspace.runs)


def portable_name(path: str | Path, workspace: Workspace) -> str:
    """Return a name of a file that other machines can find with `find` or `formats.hub.resolve`.

    "models/..." or "outputs/..." for files in those folders, relative for other files of the project, else the file name.
    """
    resolved = real_path(Path(path).expanduser())
    parents = set(resolved.parents)
    for folder, prefix in ((workspace.models, "models/"), (workspace.outputs, "outputs/"), (PROJECT, "")):
        if (root := folder.resolve()) in parents:
            return prefix + resolved.relative_to(root).as_posix()
    return resolved.name


@dataclass(frozen=True)
class FileKind:
    """A kind of model file that settings and prompts refer to by name.

    title, where, code   for the problem of an unknown name
    listed               workspace -> [(label, path)], the likeliest match for a name first
    none                 fix of that problem if the list is empty
    folders              whether a name can mean a folder
    """

    title: str
    where: str
    code: str
    listed: Callable[[Workspace], Sequence[tuple[str, Path]]]
    none: str
    folders: bool = False


KINDS = {
    "lora": FileKind(
        "LoRA",
        "LoRAs",
        "lora.not-found",
        lambda workspace: Scan(workspace).newest_first("lora"),
        "train one, or put a file into models/loras",
    ),
    "embedding": FileKind(
        "embedding",
        "embeddings",
        "embedding.not-found",
        lambda workspace: Scan(workspace).newest_first("embedding"),
        "train one, or put a file into models/embeddings",
    ),
    "upscaler": FileKind(
        "upscaler",
        "hires.highres_fix_upscaler_file",
        "upscaler.not-found",
        lambda workspace: _weights_below(workspace.models / "upscalers"),
        "put it into models/upscalers, or write its path",
    ),
    "controlnet": FileKind(
        "ControlNet",
        "controls.nets",
        "controls.not-found",
        lambda workspace: Scan(workspace).control(*CODES),
        "put it into models/controlnet, or write its path",
        folders=True,
    ),
}


def find(kind: str, name: str, workspace: Workspace, where: str = "") -> Path:
    """Return the likeliest file for a name, of several LoRAs the newest. Arguments and errors as in `find_all`."""
    return find_all(kind, name, workspace, where=where)[0]


def find_all(
    kind: str,
    name: str,
    workspace: Workspace,
    listed: Sequence[tuple[str, Path]] | None = None,
    where: str = "",
) -> list[Path]:
    """Return all files that match a name. Raises ProblemsError if there are none.

    The name is a path as in `find_file`, a label, a file name with or without folders and ending, or the output name under
    which exactly one LoRA was trained.

    kind     key of KINDS
    listed   [(label, path)] of the kind, if already known
    where    setting with the name, for the problem; "": the kind's
    """
    entry, normalized = KINDS[kind], _normalized(name.strip())
    path = find_file(name, workspace)
    if path is not None and (entry.folders or path.is_file()):
        return [path]
    files = entry.listed(workspace) if listed is None else listed
    by_alias = (path for _, path in files if normalized and _normalized(facts_of_file(path).alias) == normalized)
    if (matches := _matching(normalized, files)) or len(matches := list(by_alias)) == 1:
        return matches
    fix = _suggestion(normalized, files) if files else entry.none
    other = KINDS.get({"lora": "embedding", "embedding": "lora"}.get(kind, ""))
    if other is not None and (matches := _matching(normalized, other.listed(workspace))):
        fix = f"{matches[0].name} is {with_article(other.title)}: choose it there"
    raise ProblemsError.one(f"No {entry.title} '{name}'", where or entry.where, fix, entry.code)


def _matching(normalized: str, files: Sequence[tuple[str, Path]]) -> list[Path]:
    """Return the files among [(label, path)] that a normalized name means: a label, or a path's end."""
    parts = [part for part in normalized.replace("\\", "/").split("/") if part not in ("", ".")]
    ending = "/" + "/".join(parts[1:] if parts[:1] == ["models"] else parts)
    names = ((path, _normalized(label), _normalized(path.as_posix())) for label, path in files)
    return list(dict.fromkeys(path for path, label, whole in names if normalized == label or whole.endswith(ending)))


def _suggestion(missing: str, files: Sequence[tuple[str, Path]]) -> str:
    """Return the fix for an unknown name: similar names, or examples. missing: the name in lower case without ending"""
    names = {_normalized(path.name): _name_alone(path) for _, path in files}  # as prompts can contain them too
    steps = sorted((name for name in names if re.fullmatch(rf"{re.escape(missing)}-step\d{{8}}", name)), reverse=True)
    near = steps[:MAX_NEAR]  # of a run without a final file
    if near := near or difflib.get_close_matches(missing, list(names), n=MAX_NEAR, cutoff=0.5):
        return f"did you mean {_or_list(names[name] for name in near)}?"
    return f"choose one from the list, for example {', '.join(list(names.values())[:MAX_NEAR])}"


def _name_alone(path: Path) -> str:
    """Return the name of a file without its ending, or with it if the name is not found without, such as that of the folder "canny-1.1"."""
    return path.stem if _normalized(path.stem) == _normalized(path.name) else path.name


def _or_list(options: Iterable[str]) -> str:
    """Join texts: "a", "a or b", "a, b or c"."""
    *first, last = options
    return f"{', '.join(first)} or {last}" if first else last


def ambiguity_advice(kind: str, name: str, files: Sequence[Path]) -> list[Problem]:
    """Return advice if files that match a name have different contents, else []. kind: key of KINDS; files: matches, the used one first"""
    entry, first = KINDS[kind], files[0]
    different = [path for path in files[1:] if not _are_copies(path, first)]
    if not different:
        return []
    examples = first_of([display_path(path) for path in different], MAX_LISTED)
    what = f"'{name}' is {display_path(first)}, the first of {len(different) + 1} files of this name; there is also {examples}"
    fix = f"write the folder too, such as {_name_with_folders(different[0], files)}"
    fix = "choose the other in Embeddings" if kind == "embedding" else fix  # prompts name them without folders
    return [
        Problem(what, entry.where, f"{fix}, or rename one", "advice", code=f"{entry.code.partition('.')[0]}.several")
    ]


def _name_with_folders(path: Path, files: Sequence[Path]) -> str:
    """Return the name of a file with as few folders as tell it from the others of `files`, or its path if none do."""
    parts, names = (*path.parts[:-1], _name_alone(path)), [_normalized(each.as_posix()) for each in files]
    for number in range(2, len(parts)):
        name = "/".join(parts[-number:])
        if sum(each.endswith(f"/{_normalized(name)}") for each in names) == 1:
            return name
    return display_path(path)


def _are_copies(path: Path, other: Path) -> bool:
    """Return whether two files have equal sizes and equal first COMPARED_BYTES bytes (metadata and the first weights)."""
    with suppress(OSError, ProblemsError):
        if path.stat().st_size == other.stat().st_size:
            with open_regular(path) as first, open_regular(other) as second:
                return first.read(COMPARED_BYTES) == second.read(COMPARED_BYTES)
    return False


def _as_paths(text: str, workspace: Workspace) -> Iterator[Path]:
    """Yield the paths that a name may mean. "models/..." and "outputs/..." are in the workspace's folders, wherever those are."""
    if "\0" in text:
        return
    portable = PurePosixPath(text.replace("\\", "/"))
    relative = not portable.is_absolute() and ".." not in portable.parts
    roots = {"models": workspace.models, "outputs": workspace.outputs} if relative else {}
    first = portable.parts[0] if portable.parts else ""
    if first in roots:  # before the project's folder of that name
        yield roots[first] / PurePosixPath(*portable.parts[1:])
    yield resolve_path(text)
    for root in roots.values():
        yield root / portable


def _normalized(name: str) -> str:
    """Return the name without the ending of a model file, in a form that is equal for names that look alike."""
    stem, dot, suffix = name.rpartition(".")
    return name_key(stem if dot and f".{suffix.lower()}" in UPSCALER_SUFFIXES else name)


# -- scanning


def _weights_and_folders(root: Path) -> tuple[list[Path], list[Path]]:
    """Return (weight files, diffusers folders) below a folder, without files in diffusers folders and hidden files."""
    weights, diffusers = [], []
    for folder, names, files in walk_folders(root):
        if INDEX in files:
            names[:] = []
            diffusers.append(folder)
            continue
        names[:] = _searched_subfolders(folder, names, root)
        weights += [
            folder / file
            for file in sorted(files)
            if os.path.splitext(file)[1].lower() in UPSCALER_SUFFIXES and not file.startswith(".")
        ]
    return weights, diffusers


def _weights_below(root: Path) -> list[tuple[str, Path]]:
    """Return (relative path, path) of all weight files below a folder, of any kind."""
    files = sorted(folder / name for folder, _, names in walk_folders(root) for name in names)
    return [(path.relative_to(root).as_posix(), path) for path in files if path.suffix.lower() in UPSCALER_SUFFIXES]


def _searched_subfolders(folder: Path, names: list[str], root: Path) -> list[str]:
    """Return the subfolders to search: without system folders and those of captioning models and preprocessors."""
    visible = sorted(name for name in names if not is_junk(name))
    return [name for name in visible if name not in (CAPTIONERS, PREPROCESSORS) or folder != root]


def _listed_kind(path: Path, root: Path) -> str:
    """Return the kind (`ModelKind.kind`) under which a file is listed. An unreadable file counts as its folder's or its neighbors' kind."""
    kind = facts_of_file(path).kind
    if kind != UNREADABLE:
        return kind
    folder = path.relative_to(root).parts[0].lower()
    if folder in FOLDER_KINDS or root.name != "checkpoints":
        return FOLDER_KINDS.get(folder, "checkpoint")
    neighbors = (facts_of_file(each).kind for each in sorted(path.parent.iterdir()) if each.suffix.lower() in SUFFIXES)
    return next((each for each in neighbors if each in ("lora", "embedding", "checkpoint")), "lora")


def _run_label(run: Path) -> str:
    """Return a run's title and folder name, "Fox (2026-01-31_fox)", or the folder name alone if the user gave no title."""
    folder = RunFolder(run)
    title = title_of(folder)
    return run.name if title == initial_title(folder) else f"{title} ({run.name})"


def _label(path: Path, root: Path) -> str:
    """Return the path relative to `root`, for a file without its ending."""
    name = path.relative_to(root).as_posix()
    return name.removesuffix(path.suffix) if path.is_file() else name


def why_unreadable(path: Path) -> str:
    """Return why a model file or folder cannot be read, or "" if it can."""
    return facts_of_file(path).problem


def _local_embeddings(workspace: Workspace) -> Iterator[tuple[str, Path, str]]:
    """Yield (name in prompts, file, token) of the embeddings under models/; one with a trained token is yielded under both names.

    Names may repeat. token: key in a file with several embeddings, else ""
    """
    for _, path in Scan(workspace).files("embedding"):
        yield from ((token or path.stem, path, token) for token in tokens_of_file(path))
        if trained := trained_token(path):
            yield trained, path, ""


def embeddings_of_runs(workspace: Workspace) -> dict[str, Path]:
    """Return {name: file} of the embeddings of training runs, which prompts can name once they are chosen. Of equal names the newest."""
    files = [path for _, path in Scan(workspace).embeddings() if path.is_relative_to(workspace.runs)]
    return {trained_token(path) or path.stem: path for path in reversed(files)}


def trained_token(path: Path) -> str:
    """Return the token that an embedding file was trained for; "" if it equals the file name or the metadata has none."""
    with suppress(ProblemsError, OSError):
        token = _token_in_header(path)
        return token if token.casefold() != path.stem.casefold() and len(token.split()) == 1 else ""
    return ""


@cached_until_changed(4096, missing="")
def _token_in_header(path: Path) -> str:
    """Return the token in the metadata of an embedding file, or "" if there is none; cached."""
    return read_header(path)[1].get(TOKEN, "")


def tokens_of_file(path: Path) -> list[str]:
    """Return the tokens of a file with several embeddings; [""] for a file with one, and for an unreadable file."""
    with suppress(ProblemsError, OSError):
        return _tokens(path) or [""]
    return [""]


_tokens = cached_until_changed(4096, missing=[])(tokens_in)


def named_embeddings(
    texts: Iterable[str], workspace: Workspace, loras: Iterable[Path] = ()
) -> list[tuple[str, Path, str]]:
    """Return (name, file, token) of the embeddings under models/ and in these LoRA files whose names occur in the texts.

    An embedding in a LoRA file replaces one of the same name under models/. token: key in a file with several, else ""
    """
    bundled = {token: path for path in loras for token in bundled_tokens(read_header(path)[0])}
    embeddings = [(token, path, token) for token, path in bundled.items()]
    embeddings += [each for each in _local_embeddings(workspace) if each[0] not in bundled]
    text = name_key("\n".join(texts))
    text += "\n" + unescape_brackets(text)  # names may contain brackets
    return [each for each in embeddings if name_key(each[0]) in text and word_pattern([each[0]]).search(text)]


def prompt_names(workspace: Workspace, extra: Iterable[tuple[str, Path, str]] = ()) -> Names:
    """Return the wildcards, LoRAs and embeddings that prompts can use. extra: (name, file, token) of embeddings outside models/"""
    files = partial(wildcard_lines, workspace)
    return Names(
        files,
        lambda name: ambiguity_advice("lora", name, find_all("lora", name, workspace)),
        embedding_vectors(workspace, extra),
    )


def embedding_vectors(workspace: Workspace, extra: Iterable[tuple[str, Path, str]] = ()) -> dict[str, int]:
    """Return {name of an embedding: its number of vectors}, without unreadable files. extra: as in `prompt_names`"""
    local = {each[0]: each for each in _local_embeddings(workspace)}
    vectors: dict[str, int] = {}
    for name, path, token in (*local.values(), *extra):
        with suppress(ProblemsError, OSError):
            vectors[name] = _vector_count(path, token, stamp(path))
    return vectors


@lru_cache(maxsize=4096)
def _vector_count(path: Path, token: str, stamp: Stamp) -> int:
    """Return the number of vectors of an embedding.

    token   its key in a file with several, else ""
    stamp   makes the cache follow changes of the file
    """
    return next(iter(read_shapes(path, token).values()))[0]
