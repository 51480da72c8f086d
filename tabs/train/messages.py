"""The message with the form's state to a browser. Each contains the whole state, so that lost messages do no harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.settings.base import group_shown
from core.settings.rules import ineffective, training_problems
from core.settings.values import shown_value, summary
from tabs.form import fields as form
from tabs.form.presets import json_text
from tabs.form.project import FIELDS, Project
from tabs.server.browsers import Browser
from tabs.train import imports, method_needs, presets_bar
from tabs.train.sketches import timestep_facts

if TYPE_CHECKING:
    from tabs.context import Page


def form_part(page: Page, browser: Browser) -> dict[str, Any]:
    """Return the whole state of the form for `browser`: `_project_state` with "session", "stamp", "preset": `preset_facts`, "choosing",
    "hints": {path: text}, "curve": `RateSketch.facts`, "json_problems", "json_applied", "names", "model": `Checks.model`, "said":
    message and "notice": text.
    """
    project = page.project
    with project.lock:
        job = project.job
        model = page.checks.model(job.model.base_model, job.model.family)
        state = project.stamp, project.reference(), model
        if page.form_state[0] != state:  # most ticks find it as it was
            page.form_state = state, _project_state(project, model)
        return page.form_state[1] | {
            "session": browser.session,
            "stamp": project.stamp,
            "preset": preset_facts(page),
            "opened": browser.opened,
            "hints": method_needs.hints(job) | page.forecast.hints(job),
            "curve": page.sketch.facts(job, page.checks.known_steps(job)),
            "json_problems": browser.json_problems,
            "json_applied": browser.json_applied,
            "names": names(page),
            "model": model,
            "said": browser.message,
            "notice": " ".join(filter(None, (project.notice, page.engine.notice))),
        }


def _project_state(project: Project, model: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the form's state that depends on the project and its `model` (see `Checks.model`) alone.

    "values"               {path: text or state of the control}
    "changed"              {path: value in the preset, as text}
    "errors", "notes"      {path: problem of invalid input}, {path: problems of the value}
    "ignored", "idle"      {path: reason without effect}, paths of fields to hide
    "groups"               {group: `_group`}
    "imported", "needs"    `imports.origin`, `method_needs.needs`
    "recipes", "timesteps" `recipe_offers`, `timestep_facts`

    Also "method": its name, "undo" and "redo": whether they are possible, and "json": the job as text.
    """
    job, invalid, changed = project.job, project.bad, project.changed()
    errors = {path: {"what": item.problem.what, "fix": item.problem.fix} for path, item in invalid.items()}
    notes: dict[str, list[dict[str, str]]] = {}
    for problem in training_problems(job):
        for path in form.paths_of(problem.where):
            if path not in invalid:
                notes.setdefault(path, []).append({"what": problem.what, "fix": problem.fix, "level": problem.level})
    resolved = method_needs.with_family(job, model)
    idle = method_needs.idle_fields(resolved)
    return {
        "values": {entry.path: project.shown(entry.path) for entry in form.on_form()},
        "imported": imports.origin(project),
        "changed": {path: shown_value(FIELDS[path], value) for path, value in changed.items()},
        "errors": errors,
        "notes": notes,
        "ignored": ineffective(resolved),
        "idle": list(idle),
        "groups": {group: _group(group, job, changed, errors, idle) for group in form.groups()},
        "method": job.method.kind,
        "needs": method_needs.needs(job, model),
        "recipes": method_needs.recipe_offers(job),
        "timesteps": timestep_facts(job.noise),
        "undo": project.can_undo,
        "redo": project.can_redo,
        "json": json_text(job),
    }


def _group(
    group: str, job: Any, changed: dict[str, Any], errors: dict[str, Any], idle: dict[str, str]
) -> dict[str, Any]:
    """Return {"shown", "summary", "changed", "errors": numbers of changed and invalid fields, "idle": reason why no setting of the group
    has an effect, or ""} of a group.

    changed, errors   {path: ...} of such fields
    idle              {path: reason} of fields without effect
    """

    def number_in_group(paths: Any) -> int:
        return sum(FIELDS[path].group == group and form.in_group(FIELDS[path]) for path in paths)

    return {
        "shown": group_shown(job, group),
        "summary": summary(job, group),
        "changed": number_in_group(changed),
        "errors": number_in_group(errors),
        "idle": method_needs.idle_group(group, idle),
    }


def preset_facts(page: Page) -> dict[str, Any]:
    """Return the data of the preset bar: {"name": of the loaded preset, "own": whether it is the user's, "all": names, "recipe":
    `recipe_facts`}.
    """
    name = page.project.preset
    recipe = presets_bar.recipe_facts(page)
    return {"name": name, "own": name.startswith("user/"), "all": page.presets.names("train"), "recipe": recipe}


def names(page: Page) -> dict[str, str]:
    """Return {"project", "family", "evidence"}: project name and model family for the header."""
    job = page.project.job
    model = page.checks.model(job.model.base_model, job.model.family)
    return {"project": job.saving.output_name, "family": model["family"], "evidence": model["evidence"]}
