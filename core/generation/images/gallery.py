"""The images of outputs/images: an index of their settings, stars, filters and trash.

An image is named by its path below that folder. Facts are read once per version of a file and stored in the index in
outputs/.atelier; stars have a separate file there, so they outlive the index.
"""

import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path

from core.dataset.doctor import trash
from core.dataset.sources.files import TRASH_FOLDER, is_junk, name_key
from core.dataset.sources.memo import Memo
from core.generation.images.metadata import read_image_metadata
from core.generation.model.library import title_of_name
from core.generation.prompt.loras import strengths
from core.record import atomic
from core.record.bounded_json import json_or_none, read_json_object
from core.record.file_titles import file_stem
from core.record.problems import ProblemsError
from core.record.stamps import stamp_of
from core.record.workspace import Workspace
from core.settings.generation.controls import ControlSettings
from core.settings.job import GenerateJob

KIND = "generated image 3"  # of the facts in the index; another number reads all images again
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MOST_STARS = 5
# Folders that changed less than this before a listing are listed again, since file times are coarse.
SETTLED_NS = 2_000_000_000
AT_ONCE = 256  # images read between two updates of the index
LONGEST = 4000  # characters of a prompt in the index
MODEL_DEFAULTS = ("width", "height", "guidance_scale")  # settings whose default depends on the model


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about an image, for listing, filtering and comparing.

    seed, sampler   of its settings
    model           file name without the ending; "" in other programs' images
    loras           titles of its LoRAs
    source          "atelier", "a1111" ...; "" if it has no settings
    own             LoRAs with strengths and embeddings as text, or the model trained here (`nets_text`)
    pair            key of all settings except LoRAs and embeddings (`pair_key`)
    plain           whether it has neither LoRAs nor embeddings
    kin             key of the settings in `pair` except the model and MODEL_DEFAULTS
    bare            key of the settings in `pair` except ControlNets; "" if it has none
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
    bare: str = ""


UNREAD = Facts()


def read_facts(path: Path, title_of: Callable[[str], str] = file_stem) -> Facts | None:
    """Read the facts of an image file: UNREAD for a damaged file, only the size for one without settings; None for one that cannot be
    opened, perhaps only while another program has it open. title_of: as in `facts_of`"""
    from core.dataset.images.opening import BrokenImage, UnreachableImage, read_header

    try:
        header = read_header(path)
    except UnreachableImage:
        return None
    except BrokenImage:
        return UNREAD
    record = read_image_metadata(path)
    facts = facts_of(record.job, record.source, title_of) if record.job is not None else UNREAD
    return replace(facts, width=header.width, height=header.height)


def facts_of(job: GenerateJob, source: str = "atelier", title_of: Callable[[str], str] = file_stem) -> Facts:
    """Return the facts of a job of one image, without width and height. Only Atelier's model names are used.

    source     program that wrote the settings
    title_of   (model file) -> its title
    """
    settings = job.generate
    return Facts(
        seed=settings.seed,
        prompt=settings.prompt[:LONGEST],
        negative=settings.negative_prompt[:LONGEST],
        model=Path(job.model.base_model).name.removesuffix(".safetensors") if source == "atelier" else "",
        loras=tuple(title_of(use.file) for use in settings.loras),
        sampler=settings.sampler,
        source=source,
        own=nets_text(job, title_of),
        pair=pair_key(job),
        plain=not (settings.loras or settings.embeddings),
        kin=pair_key(job, MODEL_DEFAULTS, "model"),
        bare=pair_key(without_controls(job)) if job.controls.used else "",
    )


def without_controls(job: GenerateJob) -> GenerateJob:
    """Return the job without ControlNets."""
    return job.model_copy(update={"controls": ControlSettings()})


def nets_text(job: GenerateJob, title_of: Callable[[str], str] = file_stem) -> str:
    """Return LoRAs with strengths, and embeddings: "fox at 0.8, glyphs"; without any, the title of a model trained here, else "".

    Strengths of the same file, named by its path or its name alone, are joined: "fox at 0.8 + 0.7". title_of: as in `facts_of`
    """
    by_file: dict[str, list[str]] = {}
    paths = {use.file for use in job.generate.loras if Path(use.file).name != use.file}
    for use in job.generate.loras:
        same = [path for path in paths if use.file not in paths and file_stem(path) == file_stem(use.file)]
        strength = strengths(use.strength, use.text_encoder_strength)
        by_file.setdefault(same[0] if len(same) == 1 else use.file, []).append(strength)
    parts = {file: "" if texts == ["1"] else f" at {' + '.join(texts)}" for file, texts in by_file.items()}
    names = [title_of(file) + strength for file, strength in parts.items()]
    names += [text.partition("=")[0] if "=" in text else title_of(text) for text in job.generate.embeddings]
    trained = job.model.base_model
    return ", ".join(names) or (title_of(trained) if "checkpoints" in Path(trained).parts else "")


def pair_key(job: GenerateJob, ignored: Iterable[str] = (), *groups: str) -> str:
    """Return a hash of the settings that identify an image, without LoRAs, embeddings, count, zero terminal SNR and memory.
    ignored, groups: further settings of `generate`, and further groups, to leave out"""
    excluded = {"loras", "embeddings", "count", "zero_terminal_snr", *ignored}
    values = job.model_dump(mode="json", exclude={"generate": excluded, **dict.fromkeys(("memory", *groups), True)})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Shot:
    """An image file in the gallery. name: path below outputs/images, with forward slashes"""

    name: str
    path: Path
    bytes: int
    mtime_ns: int

    @property
    def time(self) -> float:
        """Modification time in seconds since the epoch."""
        return self.mtime_ns / 1e9


@dataclass(frozen=True)
class Filter:
    """Criteria for listing images; "" and 0 mean any.

    words         all must be in the prompt or the name
    model, lora   `Facts.model`, and one of `Facts.loras`
    day           "today", "week" (7 days) or a date such as "2026-12-31"
    stars         minimum
    """

    words: str = ""
    model: str = ""
    lora: str = ""
    day: str = ""
    stars: int = 0

    def span(self) -> tuple[float, float]:
        """Return (first, end) of the days in seconds since the epoch, the end exclusive. Raises ProblemsError for an invalid date."""
        today = date.today()
        try:
            first_day = {"": date.min, "today": today, "week": today - timedelta(6)}.get(self.day)
            first_day = first_day or date.fromisoformat(self.day)
        except ValueError:
            what, fix = f"'{self.day[:20]}' is not a date", "use a date such as 2026-12-31"
            raise ProblemsError.one(what, "Date", fix, "gallery.bad-day") from None
        if first_day == date.min:
            return -float("inf"), float("inf")
        last_day = first_day if self.day not in ("today", "week") else today
        return _start_of_day(first_day), _start_of_day(last_day + timedelta(1))


def _start_of_day(day: date) -> float:
    """Return the start of a day in local time, in seconds since the epoch."""
    return time.mktime(day.timetuple())


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder as listed: modification time, time of listing, {name: image} of its own files, subfolders."""

    mtime_ns: int
    listed_ns: int
    shots: dict[str, Shot]
    below: tuple[Path, ...]


class Gallery:
    """Index of the images in one outputs folder.

    `refresh` lists the files, `read` reads their facts from the index or the images. Both may be called from any thread.
    """

    def __init__(self, workspace: Workspace):
        self.folder = workspace.images
        self.version = 0  # incremented when an image, a fact or a star changes
        self._memo = Memo(workspace.private / "index.sqlite")
        self._title_of = partial(title_of_name, workspace=workspace)
        self._stars_file = workspace.personal_private / "stars.json"
        self._bases_file = workspace.personal_private / "comparisons.json"
        self._folders: dict[Path, _Folder] = {}
        self._shots: dict[str, Shot] = {}
        self._facts: dict[str, tuple[Shot, Facts]] = {}
        self._newest: tuple[int, list[Shot]] = (-1, [])
        self._plain: tuple[int, dict[str, list[str]], dict[str, list[str]]] = (-1, {}, {})
        self._stars: dict[str, int] | None = None
        self._bases: tuple[float, set[str]] | None = None
        self._lock, self._reading = threading.RLock(), threading.Lock()

    # -- listing

    def refresh(self, full: bool = False) -> None:
        """List the folders that changed since the last call. full: list all, and read again what could not be read"""
        with self._lock:
            if full:
                self._facts = {name: entry for name, entry in self._facts.items() if entry[1] != UNREAD}
            folders: dict[Path, _Folder] = {}
            queue = [self.folder]
            while queue:
                folder = queue.pop()
                with suppress(OSError):
                    folders[folder] = self._list_folder(folder, full)
                    queue += folders[folder].below
            if folders == self._folders:
                return
            self._folders = folders
            shots = {name: shot for each in folders.values() for name, shot in each.shots.items()}
            if shots == self._shots:
                return
            self._facts = {name: facts for name, facts in self._facts.items() if shots.get(name) == facts[0]}
            self._shots = shots
            self.version += 1

    def _list_folder(self, folder: Path, full: bool) -> _Folder:
        """Return the folder's earlier listing if it has not changed since (and not `full`), else list it. Raises OSError."""
        mtime_ns, listed = os.stat(folder).st_mtime_ns, self._folders.get(folder)
        settled = listed is not None and listed.listed_ns > mtime_ns + SETTLED_NS
        if listed is not None and settled and listed.mtime_ns == mtime_ns and not full:
            return listed
        now, shots, below = time.time_ns(), {}, []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_junk(entry.name) or not _is_text(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(Path(entry.path))
                elif entry.name.lower().endswith(ENDINGS) and entry.is_file(follow_symlinks=False):
                    with suppress(OSError):  # deleted meanwhile
                        state = entry.stat(follow_symlinks=False)
                        path = Path(entry.path)
                        name = path.relative_to(self.folder).as_posix()
                        if state.st_size:  # otherwise it is still being written
                            shots[name] = Shot(name, path, *stamp_of(state))
        return _Folder(mtime_ns, now, shots, tuple(sorted(below)))

    def unread(self) -> list[Shot]:
        """Return the images whose facts are not read yet, newest first."""
        with self._lock:
            if len(self._facts) == len(self._shots):
                return []
            return _by_age(shot for shot in self._shots.values() if shot.name not in self._facts)

    def read(
        self,
        most: int | None = None,
        check: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Read the facts of at most `most` (None: all) unread images, newest first. Returns at once if another thread is reading.

        check      called between images; may raise to cancel, after facts read so far are stored
        progress   called with (images read, images to read)
        """
        if not self._reading.acquire(blocking=False):
            return
        try:
            waiting = self.unread()[:most]
            for start in range(0, len(waiting), AT_ONCE):
                part = waiting[start : start + AT_ONCE]
                facts = self._memo.facts(KIND, part, self._facts_json, check)
                with self._lock:
                    self._add_facts({path: text or "null" for path, text in facts.items()})
                    self.version += 1
                if progress:
                    progress(start + len(part), len(waiting))
        finally:
            self._reading.release()

    def _add_facts(self, texts: dict[Path, str]) -> None:
        """Add facts to the gallery. texts: {image: its facts as JSON}; facts with damaged JSON are read from the image"""
        for path, text in texts.items():
            shot = self._shots.get(path.relative_to(self.folder).as_posix())
            if shot is None:  # deleted meanwhile
                continue
            try:
                values = json_or_none(text)
                facts = Facts(**values | {"loras": tuple(values["loras"])})
            except (TypeError, KeyError):  # a damaged row, or none
                facts = read_facts(path, self._title_of) or UNREAD
            self._facts[shot.name] = (shot, facts)

    def _facts_json(self, shot: Shot) -> str | None:
        """Return the facts of an image as JSON, read from its file; None, which is not cached, if it cannot be opened now."""
        return json.dumps(asdict(facts)) if (facts := read_facts(shot.path, self._title_of)) else None

    # -- queries

    def newest(self) -> list[Shot]:
        """Return all images, newest first."""
        with self._lock:
            if self._newest[0] != self.version:
                self._newest = (self.version, _by_age(self._shots.values()))
            return self._newest[1]

    def shot(self, name: str) -> Shot:
        """Return the image with this name. Raises ProblemsError if it is not in the folder."""
        with self._lock:
            if name in self._shots:
                return self._shots[name]
        what = "The image is no longer in the folder"
        raise ProblemsError.one(what, name[:200], "choose another image", "gallery.gone")

    def facts(self, name: str) -> Facts:
        """Return the facts of an image; UNREAD until they are read."""
        entry = self._facts.get(name)
        return entry[1] if entry else UNREAD

    def matching(self, criteria: Filter | None = None) -> list[Shot]:
        """Return the images that match a filter (None: all), newest first, `without_twins`. Raises ProblemsError for an invalid date."""
        criteria = criteria or Filter()
        words = name_key(criteria.words).split()
        begin, end = criteria.span()
        shots = [
            shot
            for shot in self.newest()
            if begin <= shot.time < end
            and (not criteria.stars or self.stars(shot.name) >= criteria.stars)
            and self._matches(shot.name, words, criteria)
        ]
        return self.without_twins(shots)

    def without_twins(self, shots: Sequence[Shot]) -> list[Shot]:
        """Return `shots` without base images of comparisons, each of which is shown together with the image it belongs to (`twin`)."""
        twins = {shot.name: twin for shot in shots if self._compared(twin := self.twin(shot.name), shot)}
        hidden = set(twins.values())
        hidden = {twin for name, twin in twins.items() if name not in hidden}  # a hidden image hides no twin of its own
        return [shot for shot in shots if shot.name not in hidden]

    def _matches(self, name: str, words: list[str], criteria: Filter) -> bool:
        """Return whether an image matches words, model and LoRA. words: in lower case"""
        facts = self.facts(name)
        if (criteria.model and facts.model != criteria.model) or (criteria.lora and criteria.lora not in facts.loras):
            return False
        text = name_key(f"{facts.prompt} {name}") if words else ""
        return all(word in text for word in words)

    def twin(self, name: str) -> str:
        """Return the name of the base image to compare an image with, or "".

        An image with the same settings but without what was trained: with another model for an image of a model trained here, else
        without LoRAs and embeddings; for an image without those, without ControlNets. The newest one that is older than the image,
        else the newest.
        """
        facts = self.facts(name)
        bases = [each for each in self._kin(name) if not self.facts(each).own] if facts.own else []
        bases = bases or self._without_loras()[0].get(facts.bare if facts.plain else facts.pair, [])
        return self._older(bases, name) or next(iter(bases), "")

    def before(self, name: str) -> str:
        """Return the name of the newest older image with the same settings from another model, or ""."""
        model = self.facts(name).model
        return self._older([each for each in self._kin(name) if self.facts(each).model != model], name)

    def _older(self, names: Iterable[str], name: str) -> str:
        """Return the first of `names` whose image is not newer than the image `name`, or ""."""
        time = self.shot(name).mtime_ns
        return next((each for each in names if self.shot(each).mtime_ns <= time), "")

    def _kin(self, name: str) -> list[str]:
        """Return images without LoRAs and embeddings that have this image's settings except the model, newest first, itself included; [] if
        it has LoRAs or embeddings, or its settings are not known."""
        facts = self.facts(name)
        return self._without_loras()[1].get(facts.kin, []) if facts.plain and facts.kin else []

    def _without_loras(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Return ({`Facts.pair`: images}, {`Facts.kin`: images}) of images without LoRAs and embeddings, newest first. Cached."""
        if self._plain[0] != self.version:
            pairs: dict[str, list[str]] = {}
            kin: dict[str, list[str]] = {}
            for shot in self.newest():
                facts = self.facts(shot.name)
                if facts.plain and facts.pair:
                    pairs.setdefault(facts.pair, []).append(shot.name)
                    kin.setdefault(facts.kin, []).append(shot.name)
            self._plain = (self.version, pairs, kin)
        return self._plain[1:]

    def models(self) -> Counter[str]:
        """Return {model: number of images}."""
        return Counter(entry.model for _, entry in list(self._facts.values()) if entry.model)

    def days(self) -> Counter[str]:
        """Return {day such as "2026-12-31": number of images}."""
        return Counter("{}-{:02}-{:02}".format(*time.localtime(shot.time)[:3]) for shot in self.newest())

    def loras(self) -> Counter[str]:
        """Return {title of a LoRA: number of images}."""
        return Counter(lora for _, entry in list(self._facts.values()) for lora in entry.loras)

    # -- comparisons

    def add_bases(self, paths: Iterable[Path]) -> None:
        """Record images as base images of a comparison, which are shown with the image they belong to. paths: absolute"""
        with self._lock:
            since, bases = self._all_bases()
            folder = os.path.abspath(self.folder)
            bases |= {path.relative_to(folder).as_posix() for path in paths if path.is_relative_to(folder)}
            self._write_bases(since, bases)
            self.version += 1

    def _compared(self, base: str, shot: Shot) -> bool:
        """Return whether `base` was generated as a base image for `shot`; before this was recorded, any older `base` counts."""
        since, bases = self._all_bases()
        return bool(base) and (base in bases or self.shot(base).mtime_ns <= min(shot.mtime_ns, since * 1e9))

    def _all_bases(self) -> tuple[float, set[str]]:
        """Return (time of the first record in seconds since the epoch, recorded base images). A damaged file counts as empty, from now."""
        with self._lock:
            if self._bases is None:
                try:
                    stored = read_json_object(self._bases_file)
                    self._bases = float(stored["since"]), {str(name) for name in stored["names"]}
                except (ProblemsError, ValueError, TypeError, KeyError, OverflowError):
                    self._write_bases(time.time(), set())
            assert self._bases is not None
            return self._bases

    def _write_bases(self, since: float, bases: set[str]) -> None:
        """Store the record of base images. since: time of the first record, in seconds since the epoch"""
        self._bases = since, bases
        with suppress(OSError):  # a full disk only costs the folding
            atomic.write_json(self._bases_file, {"v": 1, "since": since, "names": sorted(bases)})

    # -- stars

    def stars(self, name: str) -> int:
        """Return the stars of an image, 0 to MOST_STARS."""
        return self._all_stars().get(name, 0)

    def set_stars(self, names: Iterable[str], stars: int) -> None:
        """Set the stars of images, clamped to 0 (none) to MOST_STARS. Raises ProblemsError for an image that does not exist."""
        with self._lock:
            stars_by_name = self._all_stars() | {self.shot(name).name: min(max(stars, 0), MOST_STARS) for name in names}
            stars_by_name = {name: number for name, number in stars_by_name.items() if number}
            atomic.write_json(self._stars_file, {"v": 1, "stars": stars_by_name})
            self._stars = stars_by_name
            self.version += 1

    def _all_stars(self) -> dict[str, int]:
        """Return {image: stars}, read once."""
        with self._lock:
            if self._stars is None:
                self._stars = self._read_stars()
            return self._stars

    def _read_stars(self) -> dict[str, int]:
        """Read {image: stars} from the file. A damaged file is renamed, not overwritten."""
        if not self._stars_file.exists():
            return {}
        try:
            stored = read_json_object(self._stars_file)["stars"]
            return {str(name): min(int(number), MOST_STARS) for name, number in stored.items() if int(number) > 0}
        except (ProblemsError, ValueError, TypeError, KeyError, AttributeError):
            with suppress(OSError):
                atomic.replace(self._stars_file, self._stars_file.with_name(f"stars-damaged-{int(time.time())}.json"))
            return {}

    # -- trash

    def put_away(self, names: Sequence[str]) -> str:
        """Move images and their caption files to the trash of outputs/images; return a token for `put_back`."""
        token = trash.put_away([self.shot(name).path for name in names], self.folder, "deleted in Generate")
        self.refresh()
        return token

    def put_back(self, token: str) -> list[str]:
        """Restore the files of one `put_away`; return the images' names. Raises ProblemsError for tokens of another trash."""
        if Path(token).parent.parent != Path(os.path.abspath(self.folder)) / TRASH_FOLDER:
            what = "The trash folder no longer has a record of this; nothing was changed"
            raise ProblemsError.one(what, token[:200], "move the files back manually", "trash.missing-record")
        paths = trash.put_back(token)
        self.refresh()
        names = (path.relative_to(os.path.abspath(self.folder)).as_posix() for path in paths)
        return [name for name in names if name in self._shots]


def _is_text(name: str) -> bool:
    """Return whether a file name is valid Unicode; on Linux others exist, which JSON and the page cannot represent."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _by_age(shots: Iterable[Shot]) -> list[Shot]:
    """Sort images, newest first."""
    return sorted(shots, key=lambda shot: (shot.mtime_ns, shot.name), reverse=True)
