"""The comparison of a run's checkpoints: what to generate, its grid and images, and how long an image takes.

In all functions `facts` is the run's snapshot, and a verdict the stored choice of checkpoints, prompts and strengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from core.engine.proposed_prompts import ProposedPrompt
from core.engine.verdict import (
    FEW,
    STRENGTHS,
    USUAL_STRENGTHS,
    Cell,
    Comparison,
    Verdict,
    cell_of,
    cells_of,
    comparison_of,
)
from core.generation.grids.folder import GridContent, GridFolder
from core.generation.grids.plan import expected_steps
from core.record.events import newest_rows
from core.record.file_titles import is_average
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from tabs.generate import form, grids
from tabs.monitor import assess

if TYPE_CHECKING:
    from tabs.context import Page

TIMED, GUIDED = 8, 2  # images; predictions of a step with guidance
TAB, BUDGET, MOST_MINUTES = "Monitor", 10.0, 1440.0  # minutes for the images of a comparison, kept in the tab's state


@dataclass(frozen=True)
class Images:
    """Images of a comparison. A cell is (file, prompt, strength).

    paths      {cell: path} of the images to show
    failed     {cell: reason}
    generated  cells that the comparison's grid has generated
    samples    cells for which the grid takes a sample of the run
    """

    cells: Set[Cell]
    paths: Mapping[Cell, str]
    failed: Mapping[Cell, str]
    generated: Set[Cell]
    samples: Set[Cell]

    @property
    def missing(self) -> int:
        """Number of cells that are not generated yet."""
        return len(self.cells) - len(self.generated)

    @property
    def from_samples(self) -> int:
        """Number of cells not generated yet for which a sample of the run is taken."""
        return len(self.samples - self.generated)


def comparison_to_generate(
    page: Page,
    facts: Mapping[str, Any],
    job: TrainJob,
    verdict: Verdict | None,
    all_prompts: bool = False,
    strength: float = 1.0,
) -> Comparison:
    """Return the comparison to generate: the verdict's, extended by new checkpoints, or a first one within the time limit.

    facts        the run's snapshot
    verdict      stored checkpoints, prompts and strengths of the comparison, None before the first
    all_prompts  whether to use all prompts
    strength     one more LoRA strength
    Raises ProblemsError.
    """
    strengths = sorted({*(verdict.strengths if verdict is not None else USUAL_STRENGTHS), strength} & {*STRENGTHS})
    limit = None if all_prompts else len(verdict.prompts) if verdict is not None else FEW
    comparison = comparison_of(facts, job, page.workspace, limit, prompt_in_generate(page), strengths)
    seconds = seconds_per_image(page, comparison, facts, job) * len(comparison.files)  # of a prompt
    prompt_limit = max(1, int(60 * minutes_limit(page) / seconds)) if seconds else FEW
    if verdict is not None or all_prompts or prompt_limit >= len(comparison.prompts):
        return comparison
    return comparison_of(facts, job, page.workspace, prompt_limit, prompt_in_generate(page), strengths)


def seconds_per_image(
    page: Page, comparison: Comparison, facts: Mapping[str, Any], job: TrainJob, grid: GridContent | None = None
) -> float:
    """Return the expected seconds per image of a comparison; 0 if nothing was timed.

    The first of these counts: its `grid` with at least TIMED images (so that loading counts less), the run's samples, its smaller grid,
    the run's training steps, the newest grid of all.
    """
    steps = expected_steps(comparison.grid.job, ())
    measured = grid.seconds / grid.steps if grid and grid.steps else 0.0
    of_samples = (facts.get("seconds_per_sample") or 0.0) / job.samples.sample_steps
    of_training = GUIDED * assess.seconds_per_prediction(facts, job)
    timed = measured if grid and grid.steps >= TIMED * steps else 0.0
    return (timed or of_samples or measured or of_training or grids.seconds_per_step(page.workspace)) * steps


def minutes_limit(page: Page) -> float:
    """Return the minutes that the images of a first comparison may take, as set by the user."""
    minutes = page.project.tab_state(TAB).get("minutes")
    return float(minutes) if isinstance(minutes, (int, float)) and 0 < minutes <= MOST_MINUTES else BUDGET


def prompt_in_generate(page: Page) -> str:
    """Return the prompt in the Generate form, which runs without prompts use."""
    return str(form.stored_values(page.project.tab_state(grids.TAB), page.project.job)["prompt"])


def owner_of_images(page: Page, facts: Mapping[str, Any]) -> str:
    """Return the person to whom the run's comparison images belong, if that is not this page's user; else "". facts: the run's snapshot"""
    person = facts.get("person", "")
    return person if page.engine.people and person not in ("", page.workspace.person or page.engine.owner) else ""


def workspace_of_images(page: Page, facts: Mapping[str, Any]) -> Workspace:
    """Return the workspace with a comparison's images: the owner sees those of the run's person. facts: the run's snapshot"""
    return replace(page.workspace, person=page.workspace.person or owner_of_images(page, facts))


def opened_grid(workspace: Workspace, verdict: Verdict | None) -> tuple[GridFolder, GridContent] | None:
    """Return (folder, content) of a comparison's grid; None without one, or if it was deleted or is damaged."""
    try:
        folder = GridFolder.named(verdict.grid, workspace) if verdict is not None else None
        return (folder, folder.content()) if folder is not None else None
    except ProblemsError:
        return None


def images_of(
    page: Page,
    facts: Mapping[str, Any],
    job: TrainJob,
    verdict: Verdict,
    opened: tuple[GridFolder, GridContent] | None,
    samples: Set[Cell] = frozenset(),
) -> Images:
    """Return the images of a comparison: those of its grid, else samples of the run at the same step, prompt and usual strength.

    facts: the run's snapshot; opened: the grid; samples: cells that a grid still to be created takes over from the run's samples
    """
    steps = {file["name"]: file["step"] for file in facts["files"] if not is_average(file["name"])}
    if not job.method.traits.new_words:
        steps[""] = 0  # before the first step a model gives the images of its base
    saved = newest_rows(facts["samples"])
    positions = cells_of(verdict)
    usual = [(file, prompt, strength) for file, prompt, strength in positions if (strength,) == USUAL_STRENGTHS]
    paths = {
        cell: row[steps[cell[0]]]["file"] for cell in usual if (row := saved.get(cell[1])) and steps.get(cell[0]) in row
    }
    if opened is None:
        return Images(positions.keys(), paths, {}, frozenset(), samples)
    folder, content = opened
    generated, reused = folder.generated(), folder.samples(page.workspace)
    sources = {cell: content.source(position) for cell, position in positions.items()}
    cells_generated = {cell for cell, source in sources.items() if source in generated}
    failed = {
        cell: content.failed[source]
        for cell, source in sources.items()
        if source in content.failed and cell not in cells_generated
    }
    paths |= {cell: str(folder.cell(sources[cell])) for cell in cells_generated}
    return Images(
        positions.keys(), paths, failed, cells_generated, {cell for cell, source in sources.items() if source in reused}
    )


def complete_part(verdict: Verdict, images: Images) -> Verdict | None:
    """Return the part of a comparison whose images are all generated; None if there is none.

    It has the checkpoints with any image at the usual strength, and the first prompts and the strengths that are complete for all of these.
    """

    def has(files: Iterable[str], prompts: Iterable[ProposedPrompt], strength: float) -> bool:
        return images.generated >= {cell_of(file, prompt, strength) for file in files for prompt in prompts}

    (usual,) = USUAL_STRENGTHS
    files = tuple(file for file in verdict.files if any(has([file], [prompt], usual) for prompt in verdict.prompts))
    prompts = tuple(takewhile(lambda prompt: has(files, [prompt], usual), verdict.prompts))
    if not prompts or not any(files):
        return None
    return Verdict("", files, prompts, tuple(each for each in verdict.strengths if has(files, prompts, each)))
