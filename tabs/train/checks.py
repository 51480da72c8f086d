"""Checks of the form's job in the background: model family and preflight."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.report import Report
from core.families.locate import base_model_family, check_family, model_problems
from core.families.token_count import count_tokens
from core.formats.detect import FAMILY_NAMES, identify
from core.formats.hub.references import HubId
from core.record.problems import Problem, ProblemsError, errors, errors_first
from core.record.units import size_text
from core.record.workspace import Workspace, resolve_path
from core.settings.job import TrainJob
from core.settings.presets.files import Preset, differences
from core.settings.rules.validation import holds_out
from core.training.checks.before_start import problems_before_start
from core.training.checks.demo_setup import Setup
from core.training.checks.recipe_fit import recipe_problems
from core.training.memory.disk import disk_plan
from tabs.dataset.reading import Reading
from tabs.dataset.setup_offer import SetupOffer, card
from tabs.form.fields import paths_of
from tabs.roots import Roots

if TYPE_CHECKING:
    from core.engine.engine import Engine

RECHECK_SECONDS = 5.0  # until the folders of an unchanged job are checked again
IDLE_RECHECK_SECONDS = 60.0  # the same if all pages are idle, which then ask less often (assets/ticks.js)
IDLE_AFTER_SECONDS = 5.0  # without a request
RECHECK_FACTOR = 30  # times the seconds of the last preflight, at least: large datasets must not keep a core busy
# Warnings that the recipe's card shows, counted in the headline
BY_RECIPE = ("recipe.other-family", "recipe.more-vram")
SHOWN_IMAGES = 12


class Checks:
    """Runs the preflight after each change of the job: first with headers and captions, then with decoded images. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        workspace: Workspace,
        roots: Roots,
        thumb_url: Callable[..., str],
        reading: Reading,
        setup_offer: SetupOffer,
        recipe: Callable[[], Preset | None] = lambda: None,
    ):
        self._engine, self._workspace, self._roots = engine, workspace, roots
        self._thumb_url, self._reading, self._setup_offer, self._recipe = thumb_url, reading, setup_offer, recipe
        self._lock = threading.Lock()
        self._task: Any = None
        self._started: tuple[TrainJob, float] | None = None  # job and time of the last preflight
        self._rechecks = 0  # times that Check again was pressed
        self._facts: dict[str, Any] = {}
        self._facts_of: TrainJob | None = None  # the job of the facts; None after Check again
        self._facts_folders: list[str] = []  # folders of the job of the facts
        self._facts_job: TrainJob | None = None  # the job of the facts, also after Check again
        self._decoded = (0, 0)  # images that the running preflight has decoded, and all
        self._took = 0.0  # seconds of the last preflight, without decoding
        self._last_request = -IDLE_RECHECK_SECONDS
        self.setup: Setup | None = None  # recommended settings
        self._identify_cached = lru_cache(50)(lambda text, family, state: self._identify(text, family))
        self._paths: tuple[list[str], dict[tuple[str, str], Path]] = ([], {})  # folders, {(folder, name): path}

    # -- the model

    def model(self, text: str, family: str = "auto") -> dict[str, Any]:
        """Return facts of the base model named or located by `text`.

        {"family": "SD 1.x", "evidence", "problem", "fix", "offer": hub id to download or "", "numbers": parameter count, 0 if unknown}
        """
        return self._identify_cached(text, family, self._model_stamp(text))

    def _model_stamp(self, text: str) -> Any:
        """Return a value that changes whenever the model's file or folder changes."""
        try:
            path = self._locate(text)
            changes = os.stat(path).st_mtime_ns if isinstance(path, Path) else time.monotonic() // RECHECK_SECONDS
            return (str(path), changes)
        except (OSError, ValueError, ProblemsError):
            return time.monotonic() // RECHECK_SECONDS

    def _locate(self, text: str) -> Path | HubId:
        """Return the path of a model, or its hub id if it is not on this machine. Raises ProblemsError."""
        from core.formats.hub.references import resolve

        path = resolve(text, self._workspace.models, self._workspace.outputs)
        return self._roots.check(path, "model.base_model") if isinstance(path, Path) else path

    def _identify(self, text: str, family: str) -> dict[str, Any]:
        """Return the facts of `model`, without its cache."""
        answer: dict[str, Any] = {"family": "", "evidence": "", "problem": "", "fix": "", "offer": "", "numbers": 0}
        try:
            path = self._locate(text)
            if not isinstance(path, Path):
                what, fix = f"'{text}' is not on this machine", "download it, or choose another"
                return answer | {"problem": what, "fix": fix, "offer": str(path)}
            kind = identify(path)
            answer["family"] = FAMILY_NAMES.get(kind.family or "", "") or "unknown"
            answer["evidence"] = f"{kind}: {kind.evidence}" if kind.evidence else str(kind)
            check_family(kind, path, family)
        except ProblemsError as error:
            return answer | {"problem": error.problems[0].what, "fix": error.problems[0].fix}
        return answer | {"numbers": self._numbers(path)}

    @staticmethod
    def _numbers(path: Path) -> int:
        """Return the number of parameters of a model; 0 if it cannot be read, which other checks report."""
        from core.formats.models.checkpoint import open_checkpoint

        try:
            return sum(part.weight_bytes(1) for part in open_checkpoint(path).parts.values())
        except (ProblemsError, OSError):
            return 0

    # -- the preflight

    def latest(self, job: TrainJob, again: bool = False) -> dict[str, Any]:
        """Return `facts` of the latest preflight; starts a new one if the job has changed, after a while, or with `again`. Without any yet,
        or if paths are not allowed, there are only "checking" and perhaps "problems".

        "checking"   whether the facts are of an earlier job with the same folders
        "undecoded"  number of images and masks of which only the header was read
        "read"       (decoded, all) images of the running preflight
        "rechecks"   times that it ran `again`: the page shows "Checking images ..." until it receives other data
        """
        self._rechecks += again
        if refused := self._roots.refused(job):
            return {
                "checking": False,
                "rechecks": self._rechecks,
                "problems": [problem.to_dict() for problem in refused],
            }
        with self._lock:
            now = time.monotonic()
            active, self._last_request = now - self._last_request < IDLE_AFTER_SECONDS, now
            wait = max(RECHECK_SECONDS if active else IDLE_RECHECK_SECONDS, RECHECK_FACTOR * self._took)
            stale = self._started is None or self._started[0] != job or again
            finished = self._task is None or self._task.done
            if stale and not finished:
                self._task.cancel()
            if stale or (finished and self._started is not None and now - self._started[1] > wait):
                self._started = (job, now)
                self._task = self._engine.light(self._preflight, job, title="preflight")
                self._facts_of = None if again else self._facts_of
            facts = self._current_facts(job) if self._facts_folders == _folders(job) else {}
            answer = {"checking": self._facts_of != job, "rechecks": self._rechecks, **facts}
            if failed := self._failed():
                return answer | {"checking": False, "problems": [*failed, *facts.get("problems", ())]}
            return answer | ({"read": self._decoded} if facts.get("undecoded") else {})

    def _current_facts(self, job: TrainJob) -> dict[str, Any]:
        """Return the facts of the last preflight without problems of fields that have changed since."""
        changed = differences(job, self._facts_job) if self._facts_job not in (None, job) else {}
        remaining = [
            each for each in self._facts.get("problems", ()) if changed.keys().isdisjoint(paths_of(each["where"]))
        ]
        return self._facts | {"problems": remaining} if changed else self._facts

    def _failed(self) -> list[dict[str, Any]]:
        """Return the problems of a failed preflight; [] if it is running, succeeded or was cancelled."""
        task = self._task
        if task is None or not task.done or task.error is None or task.token.wanted:
            return []
        return [problem.to_dict() for problem in task.error.problems]

    def known_steps(self, job: TrainJob) -> int:
        """Return the total steps of this job by its settings, else by the last preflight; 0 if unknown."""
        return job.schedule.steps_in_force or int(self._facts.get("total_steps") or 0)

    def known_disk(self, job: TrainJob) -> str:
        """Return the size of the files of this job's run, as text; "" if unknown."""
        return str(self._facts.get("disk", "")) if self._facts_of == job else ""

    def offered(self, job: TrainJob) -> Setup | None:
        """Return the recommended settings, if the last preflight had this job's folders; else None."""
        return self.setup if self._facts_folders == _folders(job) else None

    def paths_of(self, job: TrainJob | None) -> dict[tuple[str, str], Path]:
        """Return {(folder, name): path} of the training images, if the job has the folders of the last preflight; else {}."""
        return self._paths[1] if job is not None and _folders(job) == self._paths[0] else {}

    def _preflight(self, job: TrainJob, task: Any) -> None:
        """Publish the facts of a job in the background, first without decoding the images, then with."""
        began = time.monotonic()
        facts = self.facts(job, task.token)
        with self._lock:
            self._took = time.monotonic() - began
            earlier = self._facts.get("problems", ()) if self._facts_of == job else ()
            had_errors = any(problem["level"] == "error" for problem in earlier)
            self._decoded = (0, 0)
        if not facts.get("undecoded"):
            return self._publish(job, facts)

        def say(done: int, total: int) -> None:
            if not task.token.wanted:
                self._decoded = (done, total)

        if not had_errors:  # earlier errors stay until the images are decoded
            self._publish(job, facts)
        self._publish(job, self.facts(job, task.token, say, decode=True))

    def _publish(self, job: TrainJob, facts: dict[str, Any]) -> None:
        """Store the facts of a job, unless another job has been started since."""
        with self._lock:
            if self._started is not None and self._started[0] == job:
                self._facts, self._facts_of, self._facts_folders = facts, job, _folders(job)
                self._facts_job = job

    def facts(self, job: TrainJob, token: Any = None, progress: Any = None, decode: bool = False) -> dict[str, Any]:
        """Return the facts of a new preflight for the page's script: {"problems"} if it fails, else `Report.summary` with:

        "images"             [`_image_facts`] of the first training images
        "held_out"           {"count", "images", "automatic"} of the validation images
        "setup"              HTML of the recommended settings or ""
        "problems"           of the job, as dicts
        "disk"               size of the run's files, if the device is known, the images are decoded and there is no error
        "warned_by_recipe"   number of problems that a recipe shows instead

        progress: called with (decoded, all) images; decode: whether to decode whole images
        """
        try:
            report = self.report(job, token, progress, decode)
        except ProblemsError as error:
            return {"problems": [problem.to_dict() for problem in error.problems]}
        facts = report.summary()
        paths = {(row.key[0], " ".join(row.key[1:])): row.path for row in report.rows if row.trains}
        self._paths = (_folders(job), paths)
        trained = [row for row in report.rows if row.trains][:SHOWN_IMAGES]
        facts["images"] = [self._image_facts(row) for row in trained]
        validation = [row for row in report.rows if row.role == "validation"]
        facts["held_out"] = {
            "count": len(validation),
            "images": [self._image_facts(row) for row in validation[:SHOWN_IMAGES]],
            "automatic": job.validation.automatic and not holds_out(job),
        }
        device = self._engine.find_device() if "torch" in sys.modules else None  # the page does not wait for torch
        self.setup = self._setup_offer.offer(job, report)
        facts["setup"] = card(self.setup, lead=False, again=bool(self._setup_offer.applied(job)))
        in_offer = {"demo.name-or-prompts"} if self.setup and self.setup.changes else set()
        problems = self.problems(job, report, device)
        if device is not None and not report.undecoded and not errors(problems):
            needed, _ = disk_plan(job, self._workspace, report)
            facts["disk"] = size_text(needed) if needed else ""
        facts["problems"] = [each.to_dict() for each in problems if each.code not in {*in_offer, *BY_RECIPE}]
        facts["warned_by_recipe"] = sum(problem.code in BY_RECIPE for problem in problems)
        return facts

    def _image_facts(self, row: Any) -> dict[str, Any]:
        """Return {"url", "control": thumbnail URLs, the latter None without a control image, "frame", "ratio": aspect ratio, "name",
        "caption", "bucket": text} of an image for the page's script.
        row: of the report"""
        width, height = row.bucket
        return {
            "url": self._thumb_url(row.path, 192),
            "control": self._thumb_url(row.control, 192) if row.control else None,
            "frame": row.frame,
            "ratio": width / height,
            "name": row.key[1],
            "caption": row.caption,
            "bucket": f"{width} x {height}",
        }

    def report(self, job: TrainJob, token: Any = None, progress: Any = None, decode: bool = False) -> Report:
        """Return the preflight report of a job. decode: whether to decode whole images, not only headers. Raises ProblemsError."""
        from core.dataset.preflight import preflight

        self._roots.admit(job)
        return preflight(
            job, self._workspace, count_tokens=count_tokens, cancel=token, progress=progress, decode=decode
        )

    def problems(
        self, job: TrainJob, report: Report, device: str | None = None, find_copies: bool = False
    ) -> list[Problem]:
        """Return all problems of this job, errors first.

        find_copies: whether to compare images for copies in both training and validation; else the Dataset tab's findings are used
        """
        if refused := self._roots.refused(job):
            return refused
        problems = problems_before_start(job, self._workspace, report, device, copies=find_copies)
        family = base_model_family(job.model, self._workspace)
        problems = errors_first([*problems, *recipe_problems(self._recipe(), family)])
        model_errors = errors(model_problems(job.model.model_copy(update={"vae": None}), self._workspace))
        problems = [replace(each, where="model.base_model") if each in model_errors else each for each in problems]
        problems = [_at_its_field(each, job.dataset.folder) for each in problems]
        return problems if find_copies or not report.validation else errors_first([*problems, *self._copies(job)])

    def _copies(self, job: TrainJob) -> list[Problem]:
        """Return the dataset doctor's errors, if its findings are of this job's dataset."""
        read = self._reading.job
        is_current = (read.dataset, read.captions, read.validation) == (job.dataset, job.captions, job.validation)
        findings = self._reading.findings if is_current else None
        return [finding.problem() for finding in findings or () if finding.level == "error"]


def _at_its_field(problem: Problem, folder: str | None) -> Problem:
    """Return a problem that the form's image folder is missing with a link to the field in place of the path; others unchanged."""
    if problem.code != "dataset.missing-folder" or problem.where not in (folder, str(resolve_path(folder or ""))):
        return problem
    return replace(problem, what=f"The image folder '{problem.where}' does not exist", where="dataset.folder")


def _folders(job: TrainJob) -> list[str]:
    """Return the paths of the job's enabled dataset folders."""
    return [source.folder for source in job.dataset.all_sources() if source.enabled]
