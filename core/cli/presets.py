"""webui.py presets: list the presets, or describe one."""

import json

from core.cli.main import DONE
from core.cli.options import COMMAND_OPTIONS, preset_path, split_options
from core.record.problems import ProblemsError, raise_any
from core.record.workspace import PROJECT
from core.settings.base import declared
from core.settings.job import JOBS
from core.settings.presets.files import Preset, PresetStore, read


def run(argv: list[str]) -> int:
    """Run `webui.py presets` with these arguments and return the exit code. Raises ProblemsError."""
    options = split_options(argv, COMMAND_OPTIONS["presets"], settings=False)
    raise_any(options.problems)
    workspace = options.workspace()
    if options.preset is not None:
        print("\n".join(preset_lines(read(preset_path(options.preset, workspace)))))
        return DONE
    store, rows = PresetStore(workspace.presets, shipped=PROJECT / "presets"), []
    for name in store.names():
        try:
            preset = store.load(name)
            rows.append((name, preset.title, preset.description.partition("\n")[0]))
        except ProblemsError as error:
            rows.append((name, "", f"cannot be read: {error.problems[0].what}"))
    width = max((len(name) for name, *_ in rows), default=0)
    for name, title, about in rows:
        print(f"{name.ljust(width)}  {'. '.join(filter(None, (title, about)))}")
    return DONE


def preset_lines(preset: Preset) -> list[str]:
    """Return lines on a preset: title, description, and its settings other than defaults with their reasons."""
    lines = [text for text in (preset.title, preset.description) if text]
    settings = {entry.path: entry for entry in declared(JOBS[preset.task])}
    lines += ["", "It sets:"]
    for path, value in preset.stated().items():
        if preset.kind == "job" and value == settings[path].default:
            continue
        lines.append(f"  {path} = {json.dumps(value, ensure_ascii=False)}  ({settings[path].title})")
        lines += [f"      {preset.reasons[path]}"] if path in preset.reasons else []
    if preset.kind == "recipe":
        lines += [
            "",
            "Model, images, trigger words, sample prompts, validation, logging and names do not change; all else gets its default.",
        ]
    return lines
