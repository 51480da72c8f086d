"""The program's own files, damaged by hand or half written, and what reads them when the page starts or a run is shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.changes import DEEP, Files, text
from tests.hostile.text_files import bad_json, preset_bytes

# ---- the program's own files, damaged by hand or half written


def _queue() -> bytes:
    job = json.loads(preset_bytes())
    entry = {"id": "abc", "task": "train", "title": "fox", "job": job, "state": "waiting", "run": "", "added": 1.5}
    return json.dumps({"paused": False, "entries": [entry, {**entry, "id": "def", "state": "done"}]}, indent=1).encode()


def _journal() -> bytes:
    from core.record.events import BackedUp, LogMessage, Planned, Saved, StateChanged, Steps

    events = [
        StateChanged("running"), Planned(10, 1, 10, 5), Steps([1, 2], [0.1, 0.2], {"unet": 1e-4}, 0, 0.5),
        Saved(2, "checkpoints/a.safetensors", 5), BackedUp(2), LogMessage("info", "hello"), StateChanged("done"),
    ]  # fmt: skip
    lines = [{"v": 1, "seq": n, "time": 1.5 + n, "kind": each.kind, **each.facts()} for n, each in enumerate(events, 1)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _project() -> bytes:
    from core.settings.job import TrainJob
    from core.settings.presets.files import to_values

    content = {"v": 1, "revision": 3, "preset": "a", "job": to_values(TrainJob()), "bad": {}, "tabs": {"generate": {}}}
    return json.dumps(content, indent=1).encode()


OWN: dict[str, Callable[[], bytes]] = {
    "queue.json": _queue,
    "project.json": _project,
    "job.json": preset_bytes,
    "events.jsonl": _journal,
    "commands.jsonl": text('{"id": "a", "time": 1.0, "name": "stop"}\n{"id": "b", "time": 2.0, "name": "save"}\n'),
    "dataset.json": text('{"images": [{"path": "a.png", "sha256": "ab"}], "measured_with": "validation seed"}'),
    "watch.json": text('{"step": 5, "bands": [0.1, 0.2], "images": {"a.png": [0.5, 3]}}'),
    "summary.json": text(
        '{"of": [9, 9, 9, 9], "state": "done", "step": 3, "started": 1.5, "files": ["checkpoints/a"], "best": [0.1, 2],'
        ' "best_file": null, "words": {"dataset": "foxes"}, "version": 1}'
    ),
    "complete.json": text('{"weights.safetensors": {"bytes": 1, "sha256": "ab"}}'),
    "holder.json": text('{"what": "the page", "pid": 3, "since": 100.5}'),
    "inbox.json": lambda: json.dumps({"task": "train", "title": "a", "job": json.loads(preset_bytes())}).encode(),
}
_LINES_BAD = [
    '{"seq": 1}', '{"seq": 1, "kind": "steps"}', '{"seq": 1, "kind": 5, "time": 1}', '{"seq": 1, "time": null, "kind": "log"}',
    '{"seq": 1, "time": 1, "kind": "steps", "steps": [], "losses": []}',
    '{"seq": 1, "time": 1, "kind": "steps", "steps": [1], "losses": [null], "epoch": 0, "rates": {}, "seconds_per_step": "x"}',
    '{"seq": 1, "time": 1, "kind": "state", "state": [], "message": 5, "fix": null}',
    '{"seq": 1, "time": 1, "kind": "planned", "total": "a"}', '{"seq": 99999999999999999999, "time": 1e308, "kind": "x"}',
    '{"seq": 1, "time": NaN, "kind": "sample", "file": 5}', '{"seq": 1, "time": 1, "kind": "saved", "file": "../../etc"}',
    "[" * DEEP, '{"seq": ' + "9" * 5000 + "}", "null", "[]", '{"name": "' + "a" * 100_000, '{"name": {"a": []}}', '{"name": []}',
]  # fmt: skip


def make_own(folder: Path, case: int) -> Path:
    names = list(OWN)
    name, number = names[case % len(names)], case // len(names)
    bad = [*bad_json(name), *((name, text(each + "\n")) for each in _LINES_BAD)]
    return Files(name, OWN[name], bad)(folder, number)


def read_own(path: Path) -> None:
    """Each by what reads it when the page starts or a run is shown; what is set aside is kept."""

    READERS[path.name](path)


def _content(path: Path) -> bytes | None:
    """Of a file of a usual size."""
    usual = path.is_file() and os.access(path, os.R_OK) and path.stat().st_size < 1 << 30
    return path.read_bytes() if usual else None


def _read_queue(path: Path) -> None:
    from core.engine.queue import Queue

    held = _content(path)
    queue = Queue(path)
    queue.add("train", "new", {})
    assert len(Queue(path).entries()) >= 1
    if held and queue.set_aside:
        kept = [each for each in path.parent.iterdir() if _content(each) == held]
        assert kept, "the damaged queue is lost"


def _read_project(path: Path) -> None:
    from core.record.workspace import Workspace
    from core.settings.presets.files import PresetStore
    from tabs.form.project import Project

    held = _content(path)
    project = Project(path, PresetStore(path.parent / "presets"))  # type: ignore[call-arg]
    assert project.job and Workspace
    if held and project.notice:
        assert any(_content(each) == held for each in path.parent.iterdir()), "lost"


def _read_job(path: Path) -> None:
    from core.record.run_folder import RunFolder, list_runs

    run = RunFolder(path.parent)
    assert isinstance(run.preset, str)
    list_runs(path.parent.parent)
    run.job()


def _read_events(path: Path) -> None:
    from core.engine.view import RunView
    from core.record.events import LogMessage
    from core.record.journal import Journal, last_of_kind
    from core.record.run_folder import RunFolder

    view = RunView.read(RunFolder(path.parent))
    json.dumps(view.snapshot(False))
    last_of_kind(path, "steps")
    if path.is_file():
        with Journal(path.parent) as journal:
            journal.put(LogMessage("info", "more"))


def _read_commands(path: Path) -> None:
    from core.record.commands import CommandReader

    there = path.with_name("there.jsonl")
    if os.path.lexists(path):
        path.rename(there)
    reader = CommandReader(path.parent)
    if os.path.lexists(there):
        there.rename(path)
    assert all(isinstance(name, str) for name in reader.new())


def _read_dataset(path: Path) -> None:
    from tabs.runs.compared import read_dataset

    assert isinstance(read_dataset.__wrapped__(path), dict)


def _read_watch(path: Path) -> None:
    from core.engine.view import read_watch
    from core.record.run_folder import RunFolder

    assert isinstance(read_watch(RunFolder(path.parent)), dict)


def _read_summary(path: Path) -> None:
    from core.engine.run_facts import read_facts
    from core.record.run_folder import RunFolder

    assert read_facts(RunFolder(path.parent)) is None, "the run has no such journal"


def _read_complete(path: Path) -> None:
    from core.record.run_folder import is_whole

    assert is_whole(path.parent) is False


def _read_holder(path: Path) -> None:
    from core.engine.owner import Ownership
    from core.record.workspace import Workspace

    work = Workspace(outputs=path.parent / "outputs")
    work.private.mkdir(parents=True)
    if os.path.lexists(path):
        path.rename(work.private / "holder.json")
    Ownership(work, "a test").release()


def _read_inbox(path: Path) -> None:
    from core.engine.owner import inbox, read_inbox
    from core.record.workspace import Workspace

    work = Workspace(outputs=path.parent / "outputs")
    inbox(work).mkdir(parents=True)
    if not os.path.lexists(path):
        return
    path.rename(inbox(work) / "1.json")
    taken: list[Any] = []
    read_inbox(work, taken.append)
    assert taken or list(inbox(work).iterdir())


READERS = {
    "queue.json": _read_queue, "project.json": _read_project, "job.json": _read_job, "events.jsonl": _read_events,
    "commands.jsonl": _read_commands, "dataset.json": _read_dataset, "watch.json": _read_watch,
    "summary.json": _read_summary, "complete.json": _read_complete, "holder.json": _read_holder, "inbox.json": _read_inbox,
}  # fmt: skip


def own_readers() -> dict[str, Callable[[Path], None]]:
    import tabs.form.project
    import tabs.runs.compared  # noqa: F401  gradio loads here, not in the first reading

    return {"read": read_own}


FAMILIES = {"own files": (make_own, own_readers)}
