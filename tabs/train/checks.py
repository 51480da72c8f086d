"""What is known of the job in the form before it starts: model family and preflight, found in the background."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.report import Report
from core.families.locate import check_family, family_found, model_problems
from core.families.token_count import count_tokens
from core.formats.detect import FAMILY_NAMES, identify
from core.formats.hub.references import HubId
from core.record.problems import Problem, ProblemsError, errors, errors_first
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from core.settings.presets.files import Preset
from core.settings.rules.validation import holds_out
from core.training.checks.before_start import problems_before_start
from core.training.checks.demo_setup import Setup
from core.training.checks.recipe_fit import recipe_problems
from tabs.dataset.own_setup import OwnSetup, setup_facts
from tabs.dataset.reading import Reading
from tabs.roots import Roots

if TYPE_CHECKING:
    from core.engine.engine import Engine

LOOKED_AFTER = 5.0  # seconds until an unchanged job's folders are looked at again
UNWATCHED_AFTER = 60.0  # the same while nobody is at work on a page, which then asks seldom (assets/ticks.js)
OFTEN = 5.0  # seconds between two questions of a page on which somebody is
SPARING = 30  # a look that takes a second is repeated after half a minute: large sets must not keep a core busy
BY_RECIPE = (
    "recipe.other-family",
    "recipe.more-vram",
)  # warnings that the recipe's card shows, counted in the headline
SHOWN_IMAGES = 12


class Checks:
    """Runs the preflight whenever the job has changed: headers and captions first, then every image decoded that nobody
    has decoded yet. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        workspace: Workspace,
        roots: Roots,
        thumb_url: Callable[..., str],
        reading: Reading,
        own: OwnSetup,
        recipe: Callable[[], Preset | None] = lambda: None,
    ):
        self._engine, self._workspace, self._roots = engine, workspace, roots
        self._thumb_url, self._reading, self._own, self._recipe = thumb_url, reading, own, recipe
        self._lock = threading.Lock()
        self._task: Any = None
        self._asked: tuple[TrainJob, float] | None = None
        self._facts: dict[str, Any] = {}
        self._facts_of: TrainJob | None = None  # the job that they are of; None after a person asked for a new look
        self._folders_found: list[str] = []  # of the job that the facts were found for
        self._read = (0, 0)  # images that the look in hand has decoded, and all
        self._took = 0.0  # seconds of the last look, without decoding
        self._last_asked = -UNWATCHED_AFTER
        self.setup: Setup | None = None  # what is offered for these images
        self._models: dict[Any, dict[str, Any]] = {}
        self._paths: tuple[list[str], dict[tuple[str, str], Path]] = ([], {})  # folders, and their images by address

    # -- the model

    def model(self, text: str, family: str = "auto") -> dict[str, Any]:
        """What a model field holds: {"family": "SD 1.x", "evidence", "problem", "fix", "offer": hub id or "", "numbers": of a
        whole model's weights, 0 where they are not known}."""
        key = (text, family, self._state_of(text))
        with self._lock:
            if key in self._models:
                return self._models[key]
        found = self._identify(text, family)
        with self._lock:
            self._models = dict(list(self._models.items())[-50:]) | {key: found}
        return found

    def _state_of(self, text: str) -> Any:
        """Changes when the file or folder does."""
        try:
            path = self._place(text)
            changes = os.stat(path).st_mtime_ns if isinstance(path, Path) else time.monotonic() // LOOKED_AFTER
            return (str(path), changes)
        except (OSError, ValueError, ProblemsError):
            return time.monotonic() // LOOKED_AFTER

    def _place(self, text: str) -> Path | HubId:
        """Where the model lies, or the hub id of one that is not on this machine."""
        from core.formats.hub.references import resolve

        found = resolve(text, self._workspace.models, self._workspace.outputs)
        return self._roots.check(found, "model.base_model") if isinstance(found, Path) else found

    def _identify(self, text: str, family: str) -> dict[str, Any]:
        answer: dict[str, Any] = {"family": "", "evidence": "", "problem": "", "fix": "", "offer": "", "numbers": 0}
        try:
            path = self._place(text)
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
        """How many numbers a whole model has; 0 where its parts cannot be read, which the checks tell."""
        from core.formats.models.checkpoint import open_checkpoint

        try:
            return sum(part.weight_bytes(1) for part in open_checkpoint(path).parts.values())
        except (ProblemsError, OSError):
            return 0

    # -- the preflight

    def look(self, job: TrainJob, again: bool = False) -> dict[str, Any]:
        """The latest findings. Starts a new look when the job or, after a while, the folder may have changed; `again`: now.

        "checking": they are of an earlier job. Those of other folders are not shown at all.
        "undecoded": of so many images and masks only the header is known; "read": (done, all) of what decodes them.
        """
        if refused := self._roots.refused(job):
            return {"checking": False, "problems": [problem.to_dict() for problem in refused]}
        with self._lock:
            now = time.monotonic()
            watched, self._last_asked = now - self._last_asked < OFTEN, now
            wait = max(LOOKED_AFTER if watched else UNWATCHED_AFTER, SPARING * self._took)
            stale = self._asked is None or self._asked[0] != job or again
            idle = self._task is None or self._task.done
            if stale and not idle:
                self._task.cancel()
            if stale or (idle and self._asked is not None and now - self._asked[1] > wait):
                self._asked = (job, now)
                self._task = self._engine.light(self._preflight, job, title="preflight")
                self._facts_of = None if again else self._facts_of
            facts = self._facts if self._folders_found == _folders(job) else {}
            found = {"checking": self._facts_of != job, **facts}
            if failed := self._failed():
                return found | {"checking": False, "problems": [*failed, *facts.get("problems", ())]}
            return found | ({"read": self._read} if facts.get("undecoded") else {})

    def _failed(self) -> list[dict[str, Any]]:
        """Why the last look came to nothing."""
        task = self._task
        if task is None or not task.done or task.error is None or task.token.wanted:
            return []
        return [problem.to_dict() for problem in task.error.problems]

    def known_steps(self, job: TrainJob) -> int:
        """Steps of this job's training: as set, else as last counted; 0 while they are not known."""
        return job.schedule.steps_in_force or int(self._facts.get("total_steps") or 0)

    def offered(self, job: TrainJob) -> Setup | None:
        """The set-up that was found for this job's folders."""
        return self.setup if self._folders_found == _folders(job) else None

    def paths_of(self, job: TrainJob | None) -> dict[tuple[str, str], Path]:
        """{(folder's name, image's name): path} where a run's job has the folders that were looked at last."""
        return self._paths[1] if job is not None and _folders(job) == self._paths[0] else {}

    def _preflight(self, job: TrainJob, task: Any) -> None:
        began = time.monotonic()
        facts = self.facts(job, task.token)
        with self._lock:
            self._took = time.monotonic() - began
            old = self._facts.get("problems", ()) if self._facts_of == job else ()
            refused = any(problem["level"] == "error" for problem in old)
            self._read = (0, 0)
        if not facts.get("undecoded"):
            return self._publish(job, facts)

        def say(done: int, total: int) -> None:
            if not task.token.wanted:
                self._read = (done, total)

        if not refused:  # what an earlier look refused stays until this one knows better
            self._publish(job, facts)
        self._publish(job, self.facts(job, task.token, say, decode=True))

    def _publish(self, job: TrainJob, facts: dict[str, Any]) -> None:
        with self._lock:
            if self._asked is not None and self._asked[0] == job:
                self._facts, self._facts_of, self._folders_found = facts, job, _folders(job)

    def facts(self, job: TrainJob, token: Any = None, progress: Any = None, decode: bool = False) -> dict[str, Any]:
        """The findings as the page shows them."""
        try:
            report = self.report(job, token, progress, decode)
        except ProblemsError as error:
            return {"problems": [problem.to_dict() for problem in error.problems]}
        facts = report.summary()
        paths = {(row.key[0], " ".join(row.key[1:])): row.path for row in report.rows if row.trains}
        self._paths = (_folders(job), paths)
        shown = [row for row in report.rows if row.trains][:SHOWN_IMAGES]
        facts["images"] = [self._shown(row) for row in shown]
        held = [row for row in report.rows if row.role == "validation"]
        facts["held_out"] = {
            "count": len(held),
            "images": [self._shown(row) for row in held[:SHOWN_IMAGES]],
            "automatic": job.validation.automatic and not holds_out(job),
        }
        device = self._engine.find_device() if "torch" in sys.modules else None  # the page does not wait for torch
        self.setup = self._own.offer(job, report)
        facts["setup"] = setup_facts(self.setup)
        told = {"demo.name-or-prompts"} if self.setup and self.setup.changes else set()  # by the offer's own rows
        found = self.problems(job, report, device)
        facts["problems"] = [problem.to_dict() for problem in found if problem.code not in {*told, *BY_RECIPE}]
        facts["warned_by_recipe"] = sum(problem.code in BY_RECIPE for problem in found)
        return facts

    def _shown(self, row: Any) -> dict[str, Any]:
        """One image as it will be cropped: its address, its frame, its shape, and its control image where it has one."""
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
        from core.dataset.preflight import preflight

        self._roots.admit(job)
        return preflight(
            job, self._workspace, count_tokens=count_tokens, cancel=token, progress=progress, decode=decode
        )

    def problems(self, job: TrainJob, report: Report, device: str | None = None, look: bool = False) -> list[Problem]:
        """Everything against this job.

        look   read the images to find those that both train and validate; else only what the Dataset tab has found counts
        """
        if refused := self._roots.refused(job):
            return refused
        found = problems_before_start(job, self._workspace, report, device, copies=look)
        family = family_found(job.model, self._workspace)
        found = errors_first(
            [*found, *recipe_problems(self._recipe(), family)]
        )  # of its VRAM the preset's own card tells
        alone = errors(model_problems(job.model.model_copy(update={"vae": None}), self._workspace))
        found = [replace(each, where="model.base_model") if each in alone else each for each in found]  # leads there
        return found if look or not report.validation else errors_first([*found, *self._found_copies(job)])

    def _found_copies(self, job: TrainJob) -> list[Problem]:
        known = self._reading.findings if _same_images(self._reading.job, job) else None
        return [finding.problem() for finding in known or () if finding.level == "error"]


def _folders(job: TrainJob) -> list[str]:
    return [source.folder for source in job.dataset.all_sources() if source.enabled]


def _same_images(one: TrainJob, other: TrainJob) -> bool:
    return (one.dataset, one.captions, one.validation) == (other.dataset, other.captions, other.validation)
