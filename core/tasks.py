"""The registry of tasks: everything that can be run, for page, command line, presets, queue and docs. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from core import extensions
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace, in_workspace
from core.settings.base import Job, Settings
from core.settings.named import named_in
from core.settings.needs import unmet_needs, without_effect

if TYPE_CHECKING:
    from core.record.context import JobContext, Outcome

# device: one job at a time on the GPU or the CPU; light: threads next to it; downloads: one after another, next to it too;
# process: a process of its own with its own threads, so that neither the page nor a training waits for it
Lane = Literal["device", "light", "downloads", "process"]
Run = Callable[[Any, "JobContext"], "Outcome"]  # given the job, or a tool's own settings


@dataclass(frozen=True)
class Card:
    """A form on the page. Tasks with the same card share it, with a list to choose from. tab: title of the tab that shows it."""

    name: str
    title: str
    help: str = ""
    tab: str = "Tools"


@dataclass(frozen=True)
class Task:
    """Something that can be run: training, generation, a captioner, a tool.

    name, title   name in presets and on the command line; title on the page
    about         one line of --help
    job           model of its settings, in groups
    run           (job, context) -> Outcome
    lane          where its jobs run
    own           group of settings that `run` and `check` get instead of the whole job; "" for the job
    check         (job, workspace) -> text on what the job would do; raises ProblemsError with all problems
    reads         whether a job only reads, so that it can run while a page holds the outputs folder; or (job) -> that
    pauses        whether `run` handles pause and resume itself; in other tasks `context.check()` waits
    ends_paused   whether pausing ends a job, which resumes where it stopped when started again
    card          form on the page; None without one
    tab           tab that its ended jobs lead to; "" for the card's
    button        label of the form's start button
    values        name under which the form's values are stored; tasks of a card with the same name share them. "": the card's
    under         command that it is a tool of: with "caption", `caption tag` is `tag`
    on_cpu        whether a waiting job can be started at once on the CPU, in a process of its own
    unused        ({setting: value} of the form) -> settings without effect, which the form hides; for tools, by default, those whose
                  needs are not met (core/settings/needs.py)
    takes         setting that the positional argument sets (`tag FOLDER`): a name in `own`, else a dotted path
    """

    name: str
    title: str
    about: str
    job: type[Settings]
    run: Run
    lane: Lane = "device"
    own: str = ""
    check: Callable[[Any, Workspace], str] | None = None
    reads: bool | Callable[[Any], bool] = False
    pauses: bool = False
    ends_paused: bool = False
    on_cpu: bool = False
    card: Card | None = None
    tab: str = ""
    button: str = "Start"
    values: str = ""
    under: str = ""
    unused: Callable[[Mapping[str, Any]], Collection[str]] = lambda values: ()
    takes: str = ""

    @property
    def argument(self) -> str:
        """Dotted path of the setting that the positional argument sets; "" without one."""
        return f"{self.own}.{self.takes}" if self.own and self.takes else self.takes

    def settings_of(self, job: Settings) -> Any:
        """Return the part of a job that `run` and `check` get: its group `own`, else the whole job."""
        return getattr(job, self.own) if self.own else job

    def start(self, job: Settings, context: JobContext) -> Outcome:
        """Run a job to its end in this thread and return its outcome. Warns of a tool's settings without effect."""
        for problem in self._without_effect(job):
            context.warn(problem)
        with in_workspace(context.workspace):
            return self.run(self.settings_of(job), context)

    def check_job(self, job: Settings, workspace: Workspace) -> str:
        """Return text on what a job would do. Raises ProblemsError with all its problems."""
        if self.check is None:
            return "The settings are valid."
        with in_workspace(workspace):
            text = self.check(self.settings_of(job), workspace)
        return "\n".join([text, *map(str, self._without_effect(job))])

    def _without_effect(self, job: Settings) -> list[Problem]:
        """Return advice on a tool's settings that were changed in vain."""
        return list(without_effect(self.settings_of(job), self.own)) if self.own else []

    def title_of(self, job: Settings) -> str:
        """Return the title of a job in lists: the task's, for tools followed by the file or folder that it works on."""
        path = next((each.value for each in named_in(job)), "") if self.own else ""
        name = path.partition("?")[0].replace("\\", "/").rstrip("/").rpartition("/")[2]
        return f"{self.title}: {name}" if name else self.title

    def only_reads(self, job: Settings) -> bool:
        """Whether this job only reads (`reads`), so that it can run while a page holds the outputs folder."""
        return self.reads if isinstance(self.reads, bool) else self.reads(self.settings_of(job))


def tool(name: str, settings: type[Settings], run: Run, *, title: str, **about: Any) -> Task:
    """Return a task whose job has the single group `settings`, which `run` gets. about: further fields of `Task`."""
    group: Any = (settings, Field(default_factory=settings, title=title))
    job = create_model(f"{name.title().replace('_', '')}Job", __base__=Job, __doc__=settings.__doc__, **{name: group})
    properties: dict[str, Any] = {"lane": "process", "card": Card(name, title, (settings.__doc__ or "").strip())}
    properties |= {"unused": lambda values: set(unmet_needs(settings, values))} | about
    return Task(name, title, job=job, run=run, own=name, **properties)


TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Add a task to the registry, replacing one of the same name."""
    TASKS[task.name] = task


def tasks() -> dict[str, Task]:
    """Return {name: task} of all registered tasks."""
    extensions.load()
    return TASKS


def named(name: str) -> Task:
    """Return the task with this name. Raises ProblemsError if it is not registered."""
    if name not in tasks():
        fix = f"use one of {', '.join(TASKS)}"
        raise ProblemsError.one(f"There is no task '{name}'", "task", fix, "tasks.unknown")
    return TASKS[name]


class JobModels(Mapping[str, type[Settings]]):
    """Read-only mapping {task name: model of its job} of all registered tasks."""

    def __getitem__(self, name: str) -> type[Settings]:
        return tasks()[name].job

    def __iter__(self) -> Iterator[str]:
        return iter(tasks())

    def __len__(self) -> int:
        return len(tasks())
