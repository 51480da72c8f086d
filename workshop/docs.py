"""Writes settings.md, recipes.md, optimizers.md and the pages on importers of docs/ from the declarations: `./launch.sh docs`.

Tests fail if they are stale.
"""

import json

from core import tasks
from core.record.workspace import PROJECT
from core.settings.base import Settings, declared, item_settings

TARGET = PROJECT / "docs" / "settings.md"


def render() -> str:
    lines = [
        "# Settings",
        "",
        "Written by `./launch.sh docs` from the declarations in `core/settings`. The same names are used on the page, in presets and,",
        "as `--group.name value`, on the command line.",
    ]
    shown: dict[str, object] = {}
    for name, task in tasks.tasks().items():
        groups = {group: info.annotation for group, info in task.job.model_fields.items()}
        repeated = tuple(group for group, kind in groups.items() if shown.get(group) is kind)
        if len(repeated) == len(groups):  # another way to use a job that stands above
            continue
        shown |= groups
        lines += ["", f"## {task.title} (`{name}`)"]
        lines += [f"\nAs above: {', '.join(f'`{group}`' for group in repeated)}."] if repeated else []
        lines += _tables(task.job, repeated)
    return "\n".join(lines) + "\n"


def _tables(model: type[Settings], skip: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    for group, info in model.model_fields.items():
        entries = [entry for entry in declared(model) if entry.group == group]
        if group in skip:
            continue
        lines += ["", f"### {info.title or group}", "", (info.annotation.__doc__ or "").strip()]
        if not entries:
            continue
        lines += [
            "",
            "| setting | default | allowed | what it does | sd-scripts | source |",
            "|---|---|---|---|---|---|",
        ]
        for entry in [part for each in entries for part in (each, *item_settings(each))]:
            allowed = " ".join(part for part in (entry.range_text, f"({entry.unit})" if entry.unit else "") if part)
            default = "required" if entry.info.is_required() else f"`{json.dumps(entry.default, default=str)}`"
            text = " ".join(part for part in (f"**{entry.title}.**", entry.help, entry.costs) if part)
            row = (
                f"`{entry.path}`",
                default,
                allowed,
                text,
                f"`{entry.kohya}`" if entry.kohya else "",
                entry.source,
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return lines


if __name__ == "__main__":
    from core.record.atomic import write_text
    from workshop import optimizer_docs, recipe_docs, trainer_docs

    for target, text in (
        (TARGET, render()),
        (recipe_docs.TARGET, recipe_docs.render()),
        (optimizer_docs.TARGET, optimizer_docs.render()),
        *((page, trainer_docs.render(page)) for page in trainer_docs.PAGES),
    ):
        write_text(target, text)
        print(f"wrote {target.name}")
