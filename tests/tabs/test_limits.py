"""How much the page keeps, lists and shows, and which of it: with just as many as there is room for, and with one more."""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from generate_parts import draw, make_desk
from work_parts import event, image, make_page, wait_until

from core.dataset.doctor.finding import Finding, FindingImage
from core.dataset.doctor.trash import Removal
from core.dataset.report import Row
from core.engine.queue import QueueEntry
from core.record.problems import Problem
from core.settings.check import build
from core.settings.dataset.source import Source
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from tabs.captions import view as captions_view
from tabs.captions.tab import CaptionHandlers
from tabs.dataset import concept_cards, doctor, grid, plots, questions
from tabs.dataset import view as dataset_view
from tabs.dataset.concepts import FolderContents, with_entries
from tabs.form import folder_browser, picker
from tabs.form.project import OldRevision, edited_by
from tabs.generate import gallery, panel, prompt_box, stage
from tabs.markup import middle, short
from tabs.monitor import tab as monitor
from tabs.monitor.charts import validation_points, value_series
from tabs.runs import compare
from tabs.runs import details as runs_details
from tabs.server.browsers import Browsers
from tabs.tools import models as tool_models
from tabs.tools import works

# -- browsers


def test_200_browsers_are_kept_and_the_one_not_heard_of_for_longest_goes():
    browsers = Browsers()
    for number in range(200):
        browsers.of(str(number))
    browsers.of("0")
    assert len(browsers._all) == 200
    browsers.of("another")
    assert len(browsers._all) == 200 and {"0", "another"} < set(browsers._all) and "1" not in browsers._all


def test_the_latest_200_changes_of_a_browser_are_known_and_one_that_comes_twice_is_applied_twice():
    browsers = Browsers()
    browser = browsers.of("one")
    for number in range(1, 202):
        browsers.mark_handled(browser, number)
    assert browsers.wait_for(browser, list(range(2, 202)), 0) and not browsers.wait_for(browser, [1], 0)
    assert [browsers.is_newest(browser, "a", number) for number in (2, 2, 1, 3)] == [True, True, False, True]


# -- the project


def test_a_hundred_steps_of_undo_are_kept_the_latest(tmp_path):
    project = make_page(tmp_path).project
    for number in range(1, 102):
        project.edit("network.rank", str(number))
    for _ in range(101):
        project.undo()
    assert project.job.network.rank == 1 and not project.can_undo


@pytest.mark.parametrize(("changes", "taken"), [(200, True), (201, False)])
def test_a_change_is_taken_while_the_changes_since_its_stamp_are_known(tmp_path, changes, taken):
    project = make_page(tmp_path).project
    stamp = project.stamp
    with edited_by("mine"):
        for number in range(changes):
            project.edit("network.rank", str(number % 9 + 1))
    with edited_by("mine", stamp), nullcontext() if taken else pytest.raises(OldRevision):
        project.edit("network.alpha", "3")


def test_fifty_steps_of_undo_are_kept_for_the_fields_of_generate(tmp_path):
    presets = make_desk(tmp_path).presets
    for steps in range(1, 52):
        presets.put(presets.load() | {"steps": steps})
    for _ in range(51):
        presets.act("preset_undo", "", "")
    assert presets.load()["steps"] == 1


# -- Monitor


def ended(number: int, **more) -> QueueEntry:
    task, job = more.pop("task", "generate"), more.pop("job", {})
    return QueueEntry(f"e{number}", task, f"job {number}", job, **{"state": "done", **more})


@pytest.fixture
def queued(tmp_path):
    """A page whose engine's queue is `entries`."""
    page = make_page(tmp_path)
    page.entries = []
    page.engine.queue, page.engine.queue_paused = lambda: page.entries, False
    return page


@pytest.mark.parametrize(("number", "first"), [(19, 0), (20, 0), (21, 1)])
def test_the_newest_20_ended_jobs_stand_in_monitor_newest_first(queued, number, first):
    queued.entries = [ended(n) for n in range(number)]
    assert [each["id"] for each in monitor.queue(queued)["ended"]] == [f"e{n}" for n in reversed(range(first, number))]


def test_running_jobs_come_before_waiting_ones_and_trainings_that_began_are_not_among_the_ended(queued):
    queued.entries = [
        ended(0, state="waiting"),
        ended(1, state="running"),
        ended(2, task="train", run="r"),
        ended(3, task="train", state="cancelled"),
        ended(4, task="download"),  # of another lane
    ]
    found = monitor.queue(queued)
    assert [each["id"] for each in found["entries"]] == ["e1", "e0"]
    assert [(each["id"], each["tab"]) for each in found["ended"]] == [("e3", "")]


def test_the_queue_lists_jobs_of_tools_after_those_of_the_device(queued):
    queued.entries = [ended(n, task="resize", state="waiting") for n in range(2)]
    queued.entries += [ended(2, task="resize", state="running"), *(ended(n, state="waiting") for n in (3, 4))]
    rows = monitor.queue(queued)["entries"]
    assert [each["id"] for each in rows] == ["e3", "e4", "e2", "e0", "e1"] and all(each["own"] for each in rows)
    assert [(each.get("up"), each.get("down")) for each in rows] == [(None, 1), (0, None), *[(None, None)] * 3]


@pytest.mark.parametrize(
    ("state", "doing"), [("running", "step 5 of 10, 2:29 left"), ("paused", "paused at step 5 of 10")]
)
def test_a_paused_training_has_no_time_left_in_the_queue(queued, monkeypatch, state, doing):
    job = {"entry": "e1", "state": state, "step": 5, "total": 10, "eta_seconds": 149.0}
    monkeypatch.setattr(queued.engine, "status", lambda: {"job": job}, raising=False)
    queued.entries = [ended(1, task="train", state="running")]
    (row,) = monitor.queue(queued)["entries"]
    assert (row["doing"], row["paused"]) == (doing, state == "paused")


def test_trainings_of_one_name_are_told_apart_by_what_differs(queued):
    jobs = [to_values(build(TrainJob, {"network": {"rank": rank, "alpha": 2.0}})) for rank in (4, 32)]
    queued.entries = [ended(n, task="train", state="waiting", job=job) for n, job in enumerate([*jobs, jobs[0]])]
    queued.entries = [
        replace(entry, title=title) for entry, title in zip(queued.entries, ("fox", "fox", "owl"), strict=True)
    ]
    shown = [each["title"] for each in monitor.queue(queued)["entries"]]
    assert shown == ["fox (Network rank (dim) 4)", "fox (Network rank (dim) 32)", "owl"]
    queued.entries[1] = replace(queued.entries[1], job=jobs[0])
    assert [each["title"] for each in monitor.queue(queued)["entries"]] == ["fox", "fox", "owl"], "equal ones"


def test_each_ended_job_leads_to_its_tab_with_its_last_four_images(queued, tmp_path):
    files = [str(image(tmp_path / "outputs" / f"{n}.png")) for n in range(5)]
    queued.engine.progress = lambda entry: {"images": files}
    leads = {
        "probe": "Train",
        "prepare": "Train",
        "generate": "Generate",
        "grid": "Generate",
        "class_images": "Dataset",
        "assess": "Monitor/20260101-120000_one%20run",
    }
    leads |= {"tag": "Captions", "resize": "Tools"}
    assessed = {"assess": {"run": "20260101-120000_one run"}}
    queued.entries = [
        ended(n, task=task, run="r", job=assessed if task == "assess" else {}) for n, task in enumerate(leads)
    ]
    on_device = [each for each in queued.entries if monitor.lane_of(each) == "device"]
    found = monitor.queue(queued)["ended"]
    assert {each["task"]: each["tab"] for each in found} == {each.task: leads[each.task] for each in on_device}
    assert len(found) >= 5
    for each in found:
        assert [shown["whole"] for shown in each["images"]] == [queued.file_url(file) for file in files[1:]]


def test_the_newest_200_runs_are_in_the_list_of_monitor(queued):
    queued.engine.run_states = lambda most: [SimpleNamespace(name=f"{n}", title="", state="done") for n in range(300)][
        :most
    ]
    assert [run["name"] for run in monitor.run_names(queued)] == [f"{n}" for n in range(200)]


def test_the_first_40_of_the_images_that_train_worst_are_shown(queued):
    seen = [{"source": "s", "name": f"{n}", "corrected": 2.0 - n / 100, "count": 1} for n in range(41)]
    queued.engine.watch = lambda run: {"images": seen, "bands": []}
    queued.engine.run_job = lambda run: TrainJob()
    found = monitor.further_losses(queued, "r", {"total": 9, "norms": [[1, 0.5, None], [2, 0.25, 3.0]]})
    assert [each["name"] for each in found["images"]] == [str(n) for n in range(40)]
    assert (found["gradient"], found["weights"]) == (
        {"steps": [1, 2], "values": [0.5, 0.25]},
        {"steps": [2], "values": [3.0]},
    )


ACTIONS = [
    ("done", "waiting", True, 5, ["cancel"]),
    ("running", "running", True, 0, ["sample", "save", "pause", "stop"]),
    ("paused", "running", True, 0, ["resume", "sample", "save", "stop"]),
    ("stopped", "", True, 5, ["continue", "generate", "settings", "grid"]),
    ("stopped", "", False, 5, ["continue", "settings"]),
    ("interrupted", "", False, 0, ["continue", "settings"]),
    ("failed", "", False, 0, ["settings"]),
    ("done", "", True, 5, ["generate", "settings", "grid"]),
    ("done", "", False, 5, ["generate", "settings"]),
]


@pytest.mark.parametrize(("state", "entry", "files", "resumable", "wanted"), ACTIONS)
def test_the_actions_of_a_run_in_each_state(queued, state, entry, files, resumable, wanted):
    queued.tensorboard = SimpleNamespace(offered=False)
    facts = {"files": ["f"] if files else [], "resumable_step": resumable, "fix": "lower the batch size"}
    given = ended(0, state=entry) if entry else None
    assert monitor.actions(queued, state, given, facts) == wanted
    queued.tensorboard.offered = True
    assert monitor.actions(queued, state, given, facts)[len(wanted) :] == (
        [] if wanted == ["cancel"] else ["tensorboard"]
    )


def test_series_have_each_value_at_its_place():
    points = [
        {"step": n, "loss": n, "train_loss": n + 1, "gap": n + 2, "effect": n + 3, "images": n + 4} for n in (1, 2)
    ]
    found = validation_points(points)
    assert [found[name] for name in ("steps", "loss", "train", "gap", "effect")] == [
        [1, 2],
        [1, 2],
        [2, 3],
        [3, 4],
        [4, 5],
    ]
    assert (found["images"], found["on"], validation_points([])["images"]) == (6, "held_out", 0)
    assert value_series([[1, 5.0], [2, None]]) == {"steps": [1], "values": [5.0]}


# -- Runs


def log_line(number: int, level: str) -> dict:
    return {"time": 0.0, "level": level, "text": f"{level}-{number}."}


def test_the_last_five_errors_of_a_log_stand_above_its_last_60_other_lines():
    lines = [log_line(n, "error") for n in range(6)] + [log_line(n, "info") for n in range(61)]
    shown = re.findall(r"(\w+-\d+)\.", runs_details._log(lines))
    assert shown == [f"error-{n}" for n in range(1, 6)] + [f"info-{n}" for n in range(1, 61)]
    assert re.findall(r"(\w+-\d+)\.", runs_details._log(lines[5:8])) == ["error-5", "info-0", "info-1"]
    mixed = [log_line(0, "error"), *(log_line(n, "info") for n in range(60))]  # errors among the last lines count there
    assert len(re.findall(r"info-\d+\.", runs_details._log([*mixed[1:], mixed[0]]))) == 59


def test_the_files_of_a_run_are_listed_by_step_and_then_by_name_newest_first(tmp_path):
    files = [
        {"name": name, "path": str(tmp_path / name), "step": step, "bytes": 1}
        for step, name in ((10, "c"), (20, "a"), (20, "b"))
    ]
    shown = runs_details._files(files, lambda *given, **more: "", lambda file: ("", ""), None, {})
    assert re.findall(r'data-copy="[^"]*/(\w)"', shown) == ["b", "a", "c"]


def test_twenty_things_found_for_comparisons_are_kept_the_latest():
    known = dict.fromkeys(range(21))
    assert list(compare.newest(known)) == list(range(1, 21)) and len(compare.newest(dict.fromkeys(range(20)))) == 20


# -- Tools


@pytest.mark.parametrize(("number", "left"), [(300, 0), (301, 0), (302, 1), (400, 99)])
def test_of_a_long_result_the_first_300_lines_and_the_last_are_shown(number, left):
    shown = works._shortened(lines := [f"line {n}" for n in range(number)])
    assert shown == (lines[:300] + [f"and {left} more line{'s' if left > 1 else ''}", lines[-1]] if left else lines)


@pytest.mark.parametrize(("number", "first"), [(10, 0), (11, 1)])
def test_the_newest_ten_jobs_of_tools_are_shown_newest_first(queued, number, first):
    later = time.time() + 60
    queued.entries = [ended(n, task="resize", added=later) for n in range(number)]
    assert [work.id for work in queued.works.works()] == [f"e{n}" for n in reversed(range(first, number))]


def test_files_and_folders_to_browse_are_sorted_by_name_and_cut_where_there_are_too_many(tmp_path, monkeypatch):
    page = make_page(tmp_path)
    for name in ("b", "A", "c"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / f"{name}.safetensors").touch()
    for most, cut in ((3, False), (2, True)):
        monkeypatch.setattr(folder_browser, "MAX_FOLDERS", most)
        monkeypatch.setattr(tool_models, "MOST_FILES", most)
        found = folder_browser.listing(page.roots, str(tmp_path / "set"))
        assert (found.folders, found.more) == (["A", "b", "c"][:most], cut)
        files = tool_models.browse(page.workspace, page.roots, str(tmp_path / "set"))["files"]
        assert [each["name"].partition(".")[0] for each in files] == ["A", "b", "c"][:most]
    monkeypatch.setattr(folder_browser, "MAX_FOLDERS", 3)
    for looked, cut in ((6, False), (5, True)):
        monkeypatch.setattr(folder_browser, "MAX_ENTRIES", looked)
        assert folder_browser.listing(page.roots, str(tmp_path / "set")).more is cut


def test_sixty_files_of_a_list_are_offered_those_that_fit_first(queued):
    found = [SimpleNamespace(path=Path(f"n{n}"), fits=n > 0) for n in range(61)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picker, "one_for_each_run", lambda files, workspace: [(each, 1) for each in files])
        patch.setattr(picker, "_row", lambda each, number, why, *more: f"<b>{each.path}{'!' if why else ''}</b>")

        def rows(files):
            return picker.rows(files, queued, lambda each: "" if each.fits else "misfit", lambda path: "", "list")

        assert re.findall("<b>(.*?)</b>", rows(found)) == [f"n{n}" for n in range(1, 61)] and "1 more" in rows(found)
        assert re.findall("<b>(.*?)</b>", rows(found[:60]))[-1] == "n0!" and "more" not in rows(found[:60])


# -- Generate


def test_the_last_three_failures_that_nobody_has_closed_are_shown_and_fifty_closed_ones_remembered(tmp_path):
    desk = make_desk(tmp_path)
    desk.page.engine.entries = [ended(n, state="failed") for n in range(5)]
    shown = lambda: [identity for identity, _ in desk.stage._failures()]  # noqa: E731
    assert shown() == ["e2", "e3", "e4"]
    desk.stage.act(event("close", "e3"))
    assert shown() == ["e1", "e2", "e4"]
    for number in range(50):
        desk.stage.act(event("close", f"x{number}"))
    assert shown() == ["e2", "e3", "e4"], "the oldest of 51 is forgotten"


def test_what_takes_a_second_an_iteration_is_said_in_seconds():
    assert [stage._pace(seconds) for seconds in (2.5, 1.0, 0.5)] == ["2.5 s/it", "1.0 s/it", "2.0 it/s"]


@pytest.mark.parametrize(("side", "remarked"), [(512, True), (520, False), (768, False), (1144, False), (1152, True)])
def test_sizes_of_two_and_a_quarter_times_the_models_pixels_and_more_are_remarked_on(side, remarked):
    model = panel.Model("sd1", (768, 768))
    assert (panel.about_size(model, (side, side)) != panel.about_size(model, (768, 768))) is remarked


def test_the_gallery_sends_the_newest_tiles_the_sessions_strip_and_the_latest_days(tmp_path, monkeypatch):
    for name, most in (("FIRST_TILES", 2), ("MAX_STRIP", 1), ("MAX_DAYS", 1), ("MAX_COPIED", 1)):
        monkeypatch.setattr(gallery, name, most)
    desk = make_desk(tmp_path)
    now = time.time()
    for number in range(4):
        import os

        path = draw(desk.page.workspace.images / "d" / f"{number}.png", seed=number, prompt=f"fox {number}")
        os.utime(path, (now + 86_400 * number, now + 86_400 * number))
    listed = desk.gallery_handlers.answer({"act": "list"})
    assert listed["names"] == [f"d/{n}.png" for n in (3, 2, 1, 0)] and listed["strip"] == ["d/3.png"]
    assert set(listed["tiles"]) == {"d/3.png", "d/2.png"}
    assert [day for day, _ in listed["days"]] == [time.strftime("%Y-%m-%d", time.localtime(now + 3 * 86_400))]
    desk.gallery_handlers.answer({"act": "train", "folder": "mine"})
    wait_until(lambda: desk.gallery_handlers.parts("Generate", {})["gallery"]["copy"]["done"])
    assert [path.read_text() for path in (desk.page.workspace.datasets / "mine").glob("*.txt")] == ["fox 3"]
    assert gallery.names_of({"names": ["a", 5, "b", "c"]}, 3) == ["a", "b"]


def test_twelve_completions_are_offered_those_that_begin_so_first():
    names = ["a fox", *(f"fox {n}" for n in range(12))]
    assert prompt_box._matching_names(names, " FOX ") == [f"fox {n}" for n in range(12)]
    assert prompt_box._matching_names(names[:12], "fox")[-1] == "a fox"


def test_the_meter_counts_four_prompts_and_four_windows_one_by_one():
    def said(*parts):
        return prompt_box.meter(SimpleNamespace(parts=[SimpleNamespace(windows=part) for part in parts], drawn=False))

    assert said((75, 9)) == "75/75, 9/75" and said(*[(1,)] * 4) == " AND ".join(["1/75"] * 4)
    assert said(*[(1,)] * 6) == " AND ".join(["1/75"] * 4) + " AND 2 more"
    assert said((75,) * 3 + (9,)).count("75/75") == 3 and said((75,) * 4 + (9,)) == "5 windows, 9/75 in the last"


# -- Dataset


def seen(number: int) -> FindingImage:
    return FindingImage(("s", f"{number}.png"), Path(f"{number}.png"), f"note {number}")


def finding(images: int, advised: int = 0) -> Finding:
    groups = (tuple(seen(n) for n in range(images)),)
    return Finding(
        "same", "advice", "what", "fix", groups, tuple(("s", f"{n}.png") for n in range(advised)), "put away"
    )


def row(number: int = 0, **more) -> Row:
    facts = {"key": ("s", f"{number}.png"), "path": Path(f"{number}.png"), "size": (64, 64), "bucket": (64, 64)}
    facts |= {"frame": (0, 0, 1, 1), "scale": 1.0, "repeats": 1, "caption": "", "caption_path": None, "source": "file"}
    return Row(**{**facts, "tokens": 1, "trains": True, **more})


def report(number: int):
    return SimpleNamespace(rows=[row(n) for n in range(number)], placed=number)


def cards(findings, images: int = 8) -> str:
    return doctor.cards(findings, report(images), lambda path, size: str(path))


def test_the_doctor_shows_twenty_findings_of_twelve_images_each():
    assert [cards([finding(1)] * number).count("<article") for number in (20, 21)] == [20, 20]
    assert ["more finding" in cards([finding(1)] * number) for number in (20, 21)] == [False, True]
    assert [cards([finding(number)]).count("<img") for number in (12, 13)] == [12, 12]
    assert ["1 more image" in cards([finding(number)]) for number in (12, 13)] == [False, True]


def test_more_than_a_quarter_of_the_images_is_moved_only_after_a_question():
    assert ["data-sure" in cards([finding(4, advised)]) for advised in (2, 3)] == [False, True]


def test_the_first_four_of_what_was_put_away_can_be_put_back():
    away = [Removal(f"token{n}", 0.0, "by hand", ("a.png",), 1) for n in range(5)]
    assert re.findall(r"token\d", doctor.removals_html(away)) == [f"token{n}" for n in range(4)]
    assert ["earlier action" in doctor.removals_html(away[:number]) for number in (4, 5)] == [False, True]


def test_thirty_problems_are_listed_errors_first():
    advice = [Problem(f"advice {n}.", "w", "f", level="advice") for n in range(30)]
    shown = dataset_view.checks(TrainJob(), None, [*advice, Problem("the error.", "w", "f")])
    assert re.findall(r"(the error|advice \d+)\.", shown) == ["the error", *(f"advice {n}" for n in range(29))]
    assert "1 more finding" in shown and "more finding" not in dataset_view.checks(TrainJob(), None, advice)


def test_the_sixteen_largest_buckets_are_listed_the_smaller_size_first_of_equal_ones():
    buckets = {(64 + 8 * n, 64): (n // 2 + 1, 1) for n in range(17)}
    found = SimpleNamespace(buckets=buckets)
    shown = re.findall(r'data-arg="(\d+)x64"', dataset_view.histogram(found, "all"))
    wanted = sorted(range(17), key=lambda n: (-(n // 2 + 1), n))[:16]
    assert shown == [str(64 + 8 * n) for n in wanted]
    assert "smaller bucket" in dataset_view.histogram(found, "all")
    del buckets[64, 64]
    assert "smaller bucket" not in dataset_view.histogram(found, "all")


SHOWN = {
    "all": {},
    "out": {"trains": False},
    "held": {"trains": False, "role": "validation"},
    "words": {"source": "folder"},
    "small": {"scale": 1.06},
    "cropped": {"frame": (0, 0, 0.49, 1)},
    "masks": {"mask": True},
    "control": {"control": Path("c.png")},
}


def test_each_view_of_the_images_shows_those_of_its_kind_alone():
    rows = [row(**facts) for facts in SHOWN.values()]
    edges = [row(scale=1.05), row(frame=(0, 0, 0.5, 1)), row(trains=False, source="folder")]
    for number, name in enumerate(SHOWN):
        test = grid.SHOWS[name][1]
        wanted = rows if name == "all" else [rows[number]]
        assert [each for each in rows if test(each)] == wanted, name
        assert name in ("all", "out") or not any(test(each) for each in edges), name
    assert set(SHOWN) == set(grid.SHOWS)
    tests = {name: test for name, (_, test) in captions_view.SHOWS.items()}
    long = [row(tokens=tokens) for tokens in (None, 75, 76)]
    assert [tests["long"](each) for each in long] == [False, False, True]
    assert [tests["none"](row(source=source)) for source in ("file", "metadata", "folder")] == [False, False, True]


def test_answers_for_the_fifty_latest_datasets_are_kept():
    jobs = [build(TrainJob, {"dataset": {"folder": f"set{n}"}}) for n in range(51)]
    state: dict = {}
    for job in jobs[:50]:
        state = {"answered": questions.with_answered(state, job, {"lines", "sidecars"})}
    state = {"answered": questions.with_answered(state, jobs[0], ["lines"])}
    assert questions.answered(state, jobs[0]) == ["lines"] and len(state["answered"]) == 50
    state = {"answered": questions.with_answered(state, jobs[50], [])}
    kept = [bool(questions.answered(state, job)) for job in jobs]
    assert kept == [True, False, *[True] * 48, False] and questions.answered(state, jobs[2]) == ["lines", "sidecars"]


def test_a_card_names_three_of_its_own_settings_and_twelve_folders_within():
    def names(*own):
        entry = Source(folder="a").model_copy(update=dict.fromkeys(own, 64))
        job = with_entries(TrainJob(), [entry])
        return concept_cards.cards(job, [entry], [FolderContents()], [], str)

    three = ("resolution", "min_bucket_reso", "max_bucket_reso")
    assert "..." not in names(*three) and "3 settings" in names(*three)
    assert " ...</span>" in names(*three, "bucket_reso_steps") and "4 settings" in names(*three, "bucket_reso_steps")
    folders = [SimpleNamespace(path=Path(f"r/{n}_x"), images=1, repeats=n, class_tokens="") for n in range(13)]
    inside = [concept_cards._subfolders(SimpleNamespace(folders=folders[:number]), None) for number in (12, 13)]
    assert [re.findall(r"<td>(\d+)_<wbr>x", each) for each in inside] == [[str(n) for n in range(12)]] * 2
    assert ["1 more folder" in each for each in inside] == [False, True]


@pytest.mark.parametrize(("longest", "size", "bins"), [(449, 5, 90), (450, 10, 46), (899, 10, 90), (900, 20, 46)])
def test_caption_lengths_fall_into_at_most_90_bins(longest, size, bins):
    found, width = plots.length_bins([0, longest])
    assert (width, len(found), found[0], found[-1]) == (size, bins, 1, 1)


def test_images_with_fewer_pixels_than_the_resolution_are_counted():
    job = build(TrainJob, {"dataset": {"resolution": 64}})
    shown = plots.sizes_plot(job, SimpleNamespace(rows=[row(size=size) for size in ((64, 64), (32, 128), (63, 65))]))
    assert re.findall(r"\((\d+) do\)", shown) == ["1"]


def test_sizes_are_500_marks_at_most_each_the_mean_of_its_images():
    def marks(side):
        return plots.size_marks([(100 * x, 100 * y) for x in range(1, side + 1) for y in range(1, side + 1)])[0]

    assert len(marks(22)) == 484 and len(marks(23)) <= 441 and sum(number for *_, number in marks(23)) == 529
    (mark, _), longest = plots.size_marks([(100, 50), (102, 50), (102, 54), (1000, 10)])
    assert mark == (pytest.approx(304 / 3), pytest.approx(154 / 3), 3) and longest == 1000


# -- Captions


@pytest.fixture
def captions(tmp_path):
    """The Captions tab over 21 images, whose first has a caption of many tags."""
    for number in range(21):
        image(tmp_path / "set" / f"{number:02}.png", (64, 64), caption=f"a fox {number}")
    tags = ["x" * 40, "y" * 41, *(f"tag {number}" for number in range(9))]
    (tmp_path / "set" / "00.txt").write_text(", ".join(tags))
    page = make_page(tmp_path)
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    desk = CaptionHandlers(page)
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    return desk


def save(desk, key: str, text: str, over: str, visit: str) -> dict:
    return desk.answer({"act": "save", "saves": [{"key": key, "text": text, "over": [over], "visit": visit}]})[
        "answers"
    ][0]


def test_a_preview_shows_twenty_differences_and_quick_tags_are_nine_short_ones(captions):
    shown = captions.answer({"act": "bulk_field", "arg": "tags", "value": "red"})["bulk"]
    assert shown.count("<ins>") == 20 and "and 1 more" in shown
    found = captions.answer({"act": "tags"})
    assert found["quick"] == [tag for tag, _ in found["tags"][:9] if len(tag) <= 40] and found["all"] == 11 + 20
    assert "x" * 40 in found["quick"] and "y" * 41 not in found["quick"]
    assert len(captions.answer({"act": "complete", "value": "a fox"})["options"]) == 12


def test_twenty_earlier_texts_thirty_changes_and_the_latest_steps_of_undo_are_kept(captions, monkeypatch):
    monkeypatch.setattr("tabs.captions.edits.MAX_UNDO", 2)
    key = captions.answer({"act": "open"})["open"]
    before = captions.answer({"act": "open"})["items"][key]["disk"]
    for number in range(31):
        assert save(captions, key, f"text {number}", before, f"v{number}")["wrote"]
        before = f"text {number}"
    earlier = re.findall(r'data-arg="(text \d+)"', captions.answer({"act": "earlier", "key": key})["texts"])
    assert len(earlier) == 20 and earlier[0] == "text 29"
    assert len(captions._latest()) == 30
    seen = []
    for _ in range(3):
        captions.answer({"act": "undo", "key": key})
        seen.append(
            (captions.page.project.job.dataset.folder and captions.edits.image(key).image.path).with_suffix(".txt")
        )
    assert seen[0].read_text().strip() == "text 28"


def test_of_a_message_with_many_saves_the_first_200_are_answered(captions):
    asked = [{"key": "f" * 16, "text": "x", "over": [""]}] * 201
    assert len(captions.answer({"act": "save", "saves": asked})["answers"]) == 200


def test_an_earlier_text_of_20_000_bytes_can_be_used_again():
    assert [bool(captions_view._use_button(b"x" * number)) for number in (0, 1, 20_000, 20_001)] == [
        False,
        True,
        True,
        False,
    ]


# -- images and words


def test_an_image_is_sent_in_the_next_larger_of_ten_sizes(tmp_path):
    links = make_page(tmp_path).links
    wanted = {1: 64, 64: 64, 65: 96, 96: 96, 100: 128, 129: 192, 193: 256, 257: 384, 385: 512, 513: 768, 769: 1024}
    wanted |= {1025: 2048, 2048: 2048, 9999: 2048}
    found = {size: int(re.search(r"size=(\d+)", links.thumb_url(tmp_path / "a.png", size))[1]) for size in wanted}
    assert found == wanted


def test_a_text_is_shortened_from_61_letters_on_and_a_name_before_its_last_eight():
    assert short("x" * 60) == "x" * 60 and short("x" * 61) == "x" * 59 + "…" and short("a \n b", 3) == "a b"
    assert re.findall("<span>(.*?)</span>", middle("fox-00000010")) == ["fox-", "00000010"]
    assert re.findall("<span>(.*?)</span>", middle("red fox 00000010")) == ["re", "d fox 00000010"]
    assert re.findall("<span>(.*?)</span>", middle("glyph, step 192 at 0.8")) == ["glyph", ", step 192 at 0.8"]
