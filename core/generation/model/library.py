"""Lists and finds models, LoRAs, embeddings and wildcards in the models folder and among the results of runs."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from core.control.kinds import CODES
from core.dataset.captions.words import word_pattern
from core.dataset.sources.files import is_junk, walk_folders
from core.formats.embedding_file import bundled_tokens, read_shapes, tokens_in
from core.formats.tensors.header import read_header
from core.generation.model.index import UNREADABLE, facts_of_file, kept_index
from core.generation.prompt.analysis import Known
from core.generation.prompt.wildcards import WildcardError
from core.record.allowed import may_reach
from core.record.best import read_best
from core.record.kept import read_kept
from core.record.problems import Problem, ProblemsError
from core.record.regular import open_regular, read_regular
from core.record.run_about import given_title, title_of
from core.record.run_folder import RunFolder
from core.record.workspace import CAPTIONERS, PREPROCESSORS, PROJECT, Workspace, display_path, real_path, resolve_path

SHOWN, COMPARED = 3, 1 << 20  # files of one name; bytes of them that are compared
SUFFIXES = {".safetensors", ".ckpt", ".pt", ".bin"}
UPSCALER_SUFFIXES = SUFFIXES | {".pth"}
INDEX, CONFIG = "model_index.json", "config.json"  # of a diffusers folder: of a whole model, of a part
FOLDER_KINDS = {  # of folders under models/
    "loras": "lora",
    "lora": "lora",
    "embeddings": "embedding",
    "upscalers": "upscaler",
    "vae": "vae",
    "vaes": "vae",
    "controlnet": "controlnet",
}
MOST_NEAR = 3  # names that are offered in place of one that is not there


def list_loras(workspace: Workspace) -> list[tuple[str, Path]]:
    """(label, path) of every LoRA, newest first. The folder is part of a label: "loras/fox", "2026-01-31_fox / fox"."""
    return _best_first(_newest_first(workspace, "lora"), workspace)


def list_embeddings(workspace: Workspace) -> list[tuple[str, Path]]:
    """(label, path) of every textual inversion embedding, newest first, labeled as in `list_loras`."""
    return _best_first(_newest_first(workspace, "embedding"), workspace)


def _newest_first(workspace: Workspace, kind: str) -> list[tuple[str, Path]]:
    with kept_index(workspace):
        found = [*_files(workspace.models, kind), *_results(workspace, kind)]
    return _labeled(sorted(found, key=lambda item: (-_changed(item[1]), item[0])))


def list_control(workspace: Workspace, kind: str) -> list[tuple[str, Path]]:
    """(label, path) of every ControlNet or ControlNet-LLLite, files and diffusers folders, newest first. kind: "controlnet" or
    "controlnet_lllite" """
    return list(dict.fromkeys(_with_config(*each, kind, workspace) for each in _newest_first(workspace, kind)))


def _with_config(label: str, path: Path, kind: str, workspace: Workspace) -> tuple[str, Path]:
    """The diffusers folder that a weight file is of, which also has its config and its other shards; else the file."""
    folder = path.parent
    inside = workspace.models in folder.parents
    if not inside or not (folder / CONFIG).is_file() or kind_of(folder) != kind:
        return label, path
    return _label(folder, workspace.models), folder


def _labeled(found: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Unreadable files last, each with the reason."""
    reasons = [(label, path, why_unreadable(path)) for label, path in found]
    sound = [(label, path) for label, path, why in reasons if not why]
    return sound + [(f"{label} (unreadable: {why})", path) for label, path, why in reasons if why]


def _changed(path: Path) -> int:
    """0 for a file that no longer exists."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def list_models(workspace: Workspace) -> list[tuple[str, Path]]:
    """(label, path) of every checkpoint, files and diffusers folders: those under models/ by name, then results."""
    folders = [(_label(path, workspace.models), path) for path in _diffusers_folders(workspace.models)]
    with kept_index(workspace):
        ours = sorted([*folders, *_files(workspace.models, "checkpoint")], key=lambda item: item[0].lower())
        results = sorted(_results(workspace, "checkpoint"), key=lambda item: -_changed(item[1]))
    return _labeled(ours + _best_first(results, workspace))


def list_vaes(workspace: Workspace) -> list[tuple[str, Path]]:
    """(label, path) of every VAE file under models/; unreadable ones last."""
    with kept_index(workspace):
        return _labeled(sorted(_files(workspace.models, "vae"), key=lambda item: item[0].lower()))


def list_upscalers(workspace: Workspace) -> list[tuple[str, Path]]:
    """(label, path) of every upscaler under models/ that can be used, of images and of latents; unreadable ones last."""
    with kept_index(workspace):
        kinds = [*_files(workspace.models, "upscaler", UPSCALER_SUFFIXES), *_files(workspace.models, "latent_upscaler")]
    usable = [(label, path) for label, path in kinds if facts_of_file(path).offered]
    return _labeled(sorted(usable, key=lambda item: item[0].lower()))


def _best_first(found: list[tuple[str, Path]], workspace: Workspace) -> list[tuple[str, Path]]:
    """The same files with each run's best and kept checkpoints first, marked in their labels."""
    run_of = {
        path: workspace.runs / path.relative_to(workspace.runs).parts[0]
        for _, path in found
        if path.is_relative_to(workspace.runs)
    }
    marks = _marks(set(run_of.values()))
    first: dict[Path, int] = {}  # per run, the position of its newest file
    for number, (_, path) in enumerate(found):
        first.setdefault(run_of.get(path, path), number)
    order = sorted(
        enumerate(found), key=lambda item: (first[run_of[item[1][1]]], 0) if item[1][1] in marks else (item[0], 1)
    )
    return [(f"{label} ({marks[path]})" if path in marks else label, path) for _, (label, path) in order]


def _marks(runs: Iterable[Path]) -> dict[Path, str]:
    """{file of a run: mark behind its name}: the best one, and those that the user keeps, maybe under another name."""
    marks: dict[Path, list[str]] = {}
    for run in runs:
        if (best := read_best(run)) is not None:
            marks[run / best[0]] = [best[1]]
        for file, name in read_kept(run).items():
            own = name == (run / file).stem
            marks.setdefault(run / file, []).append("kept" if own else f"kept as {name}")
    return {path: ", ".join(words) for path, words in marks.items()}


def find_file(name: str, workspace: Workspace) -> Path | None:
    """The file or folder at a path that is absolute or relative to the project, the models or the outputs folder."""
    text = name.strip()
    there = (path for path in _as_paths(text, workspace) if may_reach(path) and os.path.exists(path))
    return next(there, None) if text else None


def portable_name(path: str | Path, workspace: Workspace) -> str:
    """A name without the machine's folders: `models/...` or `outputs/...` for files in those folders, relative for
    other files in the project, else the bare file name. `library.find` and `formats.hub.resolve` find it
    on any machine that has the file."""
    resolved = real_path(Path(path).expanduser())
    for root, prefix in ((workspace.models, "models/"), (workspace.outputs, "outputs/"), (PROJECT, "")):
        if resolved.is_relative_to(root.resolve()) and resolved != root.resolve():
            return prefix + resolved.relative_to(root.resolve()).as_posix()
    return resolved.name


@dataclass(frozen=True)
class Kind:
    """Model files that settings and prompts name.

    title, where, code   of the problem that there is none of a name
    listed               workspace -> (label, path) of each, the likeliest meaning of a name first
    none                 what to do where the list is empty
    folders              whether a folder can be one, too
    """

    title: str
    where: str
    code: str
    listed: Callable[[Workspace], Sequence[tuple[str, Path]]]
    none: str
    folders: bool = False


KINDS = {
    "lora": Kind(
        "LoRA",
        "LoRAs",
        "lora.not-found",
        lambda workspace: _newest_first(workspace, "lora"),
        "train one, or put a file into models/loras",
    ),
    "embedding": Kind(
        "embedding",
        "embeddings",
        "embedding.not-found",
        lambda workspace: _newest_first(workspace, "embedding"),
        "train one, or put a file into models/embeddings",
    ),
    "upscaler": Kind(
        "upscaler",
        "hires.highres_fix_upscaler_file",
        "upscaler.not-found",
        lambda workspace: _weights_below(workspace.models / "upscalers"),
        "put it into models/upscalers, or write its path",
    ),
    "controlnet": Kind(
        "ControlNet",
        "controls.nets",
        "controls.not-found",
        lambda workspace: [each for kind in CODES for each in list_control(workspace, kind)],
        "put it into models/controlnet, or write its path",
        folders=True,
    ),
}


def find(
    kind: str,
    name: str,
    workspace: Workspace,
    listed: Sequence[tuple[str, Path]] | None = None,
    where: str = "",
) -> Path:
    """The file of a name: of several the likeliest, for LoRAs the newest. Arguments as in `find_all`. Raises ProblemsError."""
    return find_all(kind, name, workspace, listed, where)[0]


def find_all(
    kind: str,
    name: str,
    workspace: Workspace,
    listed: Sequence[tuple[str, Path]] | None = None,
    where: str = "",
) -> list[Path]:
    """All files that a name can mean: a path as in `find_file`, else a label or a file name with or without extension and
    folders, else the one LoRA that was trained under this name. Raises ProblemsError if there is none.

    kind     of KINDS
    listed   as `Kind.listed` lists them; None: they are listed now
    where    the setting that names it, if it is not the kind's own
    """
    meant, wanted = KINDS[kind], _plain(name.strip())
    path = find_file(name, workspace)
    if path is not None and (meant.folders or path.is_file()):
        return [path]
    files = meant.listed(workspace) if listed is None else listed
    parts = [part for part in wanted.replace("\\", "/").split("/") if part not in ("", ".")]
    end = "/" + "/".join(parts[1:] if parts[:1] == ["models"] else parts)
    matches = [path for label, path in files if wanted == _plain(label) or _plain(path.as_posix()).endswith(end)]
    if matches and wanted:
        return list(dict.fromkeys(matches))
    if (
        wanted
        and (renamed := [path for _, path in files if _plain(facts_of_file(path).alias) == wanted])
        and len(renamed) == 1
    ):
        return renamed
    fix = _near(wanted, files) if files else meant.none
    raise ProblemsError.one(f"No {meant.title} '{name}'", where or meant.where, fix, meant.code)


def _near(wanted: str, known: Sequence[tuple[str, Path]]) -> str:
    """What to write in place of a name that is not known."""
    names = {_plain(path.name): path.stem for _, path in known}  # as a prompt can have them too
    steps = [int(found[1]) for name in names if (found := re.fullmatch(rf"{re.escape(wanted)}-step(\d{{8}})", name))]
    if steps:  # of a run whose last file is gone
        return f"did you mean step {_either(f'{step:,}' for step in sorted(steps, reverse=True)[:MOST_NEAR])}?"
    near = difflib.get_close_matches(wanted, list(names), n=MOST_NEAR, cutoff=0.5)
    if near:
        return f"did you mean {_either(names[name] for name in near)}?"
    return f"choose one from the list, for example {', '.join(list(names.values())[:MOST_NEAR])}"


def _either(words: Iterable[str]) -> str:
    """ "a", "a or b", "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def several_files(kind: str, name: str, files: Sequence[Path]) -> list[Problem]:
    """Advice where a name means several files that differ. kind: of KINDS"""
    meant, first = KINDS[kind], files[0]
    others = [path for path in files[1:] if not _same(path, first)]
    if not others:
        return []
    shown = ", ".join(display_path(path) for path in others[:SHOWN]) + (" ..." if len(others) > SHOWN else "")
    what = (
        f"'{name}' is {display_path(first)}, the first of {len(others) + 1} files of this name; there is also {shown}"
    )
    fix = f"write the folder too, such as {others[0].parent.name}/{others[0].stem}, or rename one"
    return [Problem(what, meant.where, fix, "advice", code=f"{meant.code.partition('.')[0]}.several")]


def _same(one: Path, other: Path) -> bool:
    """Whether two files are copies, by their sizes and beginnings, which hold metadata and weights."""
    with suppress(OSError, ProblemsError):
        if one.stat().st_size == other.stat().st_size:
            with open_regular(one) as first, open_regular(other) as second:
                return first.read(COMPARED) == second.read(COMPARED)
    return False


def _as_paths(text: str, workspace: Workspace) -> Iterator[Path]:
    """Paths that a name may refer to; `models/...` and `outputs/...` mean those folders, wherever they are."""
    if "\0" in text:
        return
    inside = PurePosixPath(text.replace("\\", "/"))
    relative = not inside.is_absolute() and ".." not in inside.parts
    roots = {"models": workspace.models, "outputs": workspace.outputs} if relative else {}
    first = inside.parts[0] if inside.parts else ""
    if first in roots:  # before the project's own folder of that name
        yield roots[first] / PurePosixPath(*inside.parts[1:])
    yield resolve_path(text)
    for root in roots.values():
        yield root / inside


def _plain(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return (stem if dot and f".{suffix.lower()}" in UPSCALER_SUFFIXES else name).lower()


# -- scanning


def _files(root: Path, kind: str, suffixes: Collection[str] = SUFFIXES) -> Iterator[tuple[str, Path]]:
    """Model files of a kind below a folder, without the parts of diffusers folders and hidden folders."""
    for folder, names, files in walk_folders(root):
        if INDEX in files:
            names[:] = []
            continue
        names[:] = _entered(folder, names, root)
        for file in sorted(files):
            path = folder / file
            if path.suffix.lower() in suffixes and not file.startswith(".") and _listed_as(path, root) == kind:
                yield _label(path, root), path


def _weights_below(root: Path) -> list[tuple[str, Path]]:
    """All files with weights below a folder, of whatever kind."""
    files = sorted(folder / name for folder, _, names in walk_folders(root) for name in names)
    return [(path.relative_to(root).as_posix(), path) for path in files if path.suffix.lower() in UPSCALER_SUFFIXES]


def _entered(folder: Path, names: list[str], root: Path) -> list[str]:
    """The subfolders to search: without those of systems and captioning models."""
    shown = sorted(name for name in names if not is_junk(name))
    return [name for name in shown if name not in (CAPTIONERS, PREPROCESSORS) or folder != root]


def _listed_as(path: Path, root: Path) -> str:
    """The kind of list a file belongs to. An unreadable one is listed by its folder, or like its neighbors."""
    kind = kind_of(path)
    if kind != UNREADABLE:
        return kind
    folder = path.relative_to(root).parts[0].lower()
    if folder in FOLDER_KINDS or root.name != "checkpoints":
        return FOLDER_KINDS.get(folder, "checkpoint")
    neighbors = (kind_of(each) for each in sorted(path.parent.iterdir()) if each.suffix.lower() in SUFFIXES)
    return next((each for each in neighbors if each in ("lora", "embedding", "checkpoint")), "lora")


def _diffusers_folders(root: Path) -> Iterator[Path]:
    for folder, names, files in walk_folders(root):
        if INDEX in files:
            names[:] = []
            yield folder
        else:
            names[:] = _entered(folder, names, root)


def _results(workspace: Workspace, kind: str) -> Iterator[tuple[str, Path]]:
    if not workspace.runs.is_dir():
        return
    for run in sorted(workspace.runs.iterdir()):
        folder = run / "checkpoints"
        if folder.is_dir():
            whole = (
                [(_label(path, folder), path) for path in _diffusers_folders(folder)] if kind == "checkpoint" else []
            )
            yield from ((f"{_run_words(run)} / {label}", path) for label, path in [*whole, *_files(folder, kind)])


def _run_words(run: Path) -> str:
    """The run's title and folder name, or only the latter if the user gave no title."""
    folder = RunFolder(run)
    title = title_of(folder)
    return run.name if title == given_title(folder) else f"{title} ({run.name})"


def _label(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    return name.removesuffix(path.suffix) if path.is_file() else name


def kind_of(path: Path) -> str:
    """The kind from `formats.detect` ("lora", "checkpoint" ...), kept until the file changes;
    "unreadable" for a damaged file."""
    return facts_of_file(path).kind


def why_unreadable(path: Path) -> str:
    """Why a model file or folder cannot be read, in a few words; else empty."""
    return facts_of_file(path).problem


MOST_WILDCARD_BYTES = 4_000_000


def wildcard_lines(workspace: Workspace, name: str) -> list[str]:
    """The lines of models/wildcards/NAME.txt, or of all files that match a name with * or **, without comments and empty lines.
    Raises WildcardError if there are none."""
    folder = (workspace.models / "wildcards").resolve()
    plain = name.strip("/")
    names = [each for each in wildcard_names(workspace) if _fits(plain, each)] if "*" in plain else [plain]
    files = (folder / f"{each}.txt" for each in names)
    found = [file for file in files if os.path.isfile(file) and file.resolve().is_relative_to(folder)]
    lines: list[str] = []
    for file in found:
        try:
            read = read_regular(file, MOST_WILDCARD_BYTES).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise WildcardError(f"the wildcard file '{file.name}' is not UTF-8 text") from None
        lines += [line.strip() for line in read if line.strip() and not line.lstrip().startswith("#")]
    if lines:
        return lines
    if found:
        raise WildcardError(f"the wildcard file '{name}' is empty")
    near = difflib.get_close_matches(name, wildcard_names(workspace), 1)
    raise WildcardError(
        f"no wildcard file '{name}' in models/wildcards" + (f"; did you mean '{near[0]}'?" if near else "")
    )


def _fits(pattern: str, name: str) -> bool:
    """Whether a name matches: * is anything within a folder's or file's name, ** any folders, and at the end all that is below."""
    parts, words = pattern.split("/"), name.split("/")
    reached = {0}  # how many of the words the parts so far can be
    for part in [*parts, "*"] if parts[-1] == "**" else parts:
        if part == "**":
            reached = set(range(min(reached), len(words) + 1)) if reached else reached
        else:
            reached = {at + 1 for at in reached if at < len(words) and fnmatch(words[at], part)}
    return len(words) in reached


def wildcard_names(workspace: Workspace) -> list[str]:
    """The names of wildcard files, as prompts use them."""
    folder = workspace.models / "wildcards"
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.txt"))


def embedding_words(workspace: Workspace) -> dict[str, tuple[Path, str]]:
    """{name in prompts: (file, token)} of the embeddings under models/. token: of a file of several, each by its own name; else ""."""
    return {name: (path, token) for name, path, token in _embeddings(workspace)}


def _embeddings(workspace: Workspace) -> Iterator[tuple[str, Path, str]]:
    """(name, file, token) of them all, of which several may have one name."""
    for _, path in _files(workspace.models, "embedding"):
        yield from ((token or path.stem, path, token) for token in tokens_of_file(path))


def tokens_of_file(path: Path) -> list[str]:
    """The tokens of an embedding file that holds several; [""] for one, and for a file that cannot be read."""
    with suppress(ProblemsError, OSError):
        facts = path.stat()
        return _tokens(path, facts.st_mtime_ns, facts.st_size) or [""]
    return [""]


@lru_cache(maxsize=4096)
def _tokens(path: Path, changed: int, size: int) -> list[str]:
    return tokens_in(path)


def named_embeddings(
    texts: Iterable[str], workspace: Workspace, loras: Iterable[Path] = ()
) -> list[tuple[str, Path, str]]:
    """(name, file, token) of the embeddings under models/ and in LoRA files whose names are words of these texts. Those of LoRAs
    replace others of their names."""
    bundled = {token: path for path in loras for token in bundled_tokens(read_header(path)[0])}
    words = [(token, path, token) for token, path in bundled.items()]
    words += [each for each in _embeddings(workspace) if each[0] not in bundled]
    whole = "\n".join(texts).casefold()
    return [each for each in words if each[0].casefold() in whole and word_pattern([each[0]]).search(whole)]


def known_in(workspace: Workspace, more: Iterable[tuple[str, Path, str]] = ()) -> Known:
    """What prompts can name. more: (name, file, token) of embeddings outside models/"""
    files = partial(wildcard_lines, workspace)
    return Known(
        files,
        lambda name: several_files("lora", name, find_all("lora", name, workspace)),
        word_vectors(workspace, more),
    )


def word_vectors(workspace: Workspace, more: Iterable[tuple[str, Path, str]] = ()) -> dict[str, int]:
    """{name of an embedding: its number of vectors}, unreadable files left out. more: as in `known_in`"""
    there = ((word, path, token) for word, (path, token) in embedding_words(workspace).items())
    found: dict[str, int] = {}
    for word, path, token in (*there, *more):
        with suppress(ProblemsError, OSError):
            facts = path.stat()
            found[word] = _vectors(path, token, facts.st_mtime_ns, facts.st_size)
    return found


@lru_cache(maxsize=4096)
def _vectors(path: Path, token: str, changed: int, size: int) -> int:
    return next(iter(read_shapes(path, token).values()))[0]
