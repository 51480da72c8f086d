"""One server, several people: each login of a list has a page of its own, with its form and presets."""

from __future__ import annotations

import json
import re
import urllib.parse
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import work_parts
from generate_parts import lora
from page_server import Served, Visit, make_workspace
from test_request_check import JSON, ask
from test_runs_tab import write_run
from work_parts import image, wait_until

from core import tasks
from core.dataset.captions.history import Change, History
from core.dataset.sources.files import walk_folders
from core.dataset.sources.metadata import Finder, read_metadata
from core.dataset.sources.walk import walk
from core.engine.deleted import restore_run
from core.engine.engine import Engine
from core.engine.queue import GUEST, QueueEntry, as_guest
from core.engine.waiting import Wait
from core.generation.images.gallery import Gallery
from core.generation.prompt.styles import Style, read_styles, write_styles
from core.record.problems import ProblemsError
from core.record.run_about import write_about, write_person
from core.record.run_folder import RunFolder, seal_state
from core.record.workspace import Workspace, in_workspace
from core.settings.check import build
from core.settings.job import GenerateJob, TrainJob
from core.settings.presets.files import PresetStore, dump
from tabs.captions.tab import CaptionHandlers
from tabs.context import handling, make_page
from tabs.generate import prompt_box
from tabs.generate.stage import Stage
from tabs.generate.tab import GenerateHandlers
from tabs.monitor import tab as monitor
from tabs.monitor import verdict
from tabs.runs.tab import RunHandlers
from tabs.tools.disk import DiskHandlers
from tests.refusals import refused

OTTO, ANNA, BEN = ("otto", "1"), ("anna", "2"), ("ben", "3")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """The page of the owner, Otto, with those of Anna and Ben."""

    def people(engine, workspace):
        engine.people, engine.owner = frozenset({"anna", "ben"}), "otto"
        pages = {login: make_page(engine, replace(workspace, person=login[0]), shared=True) for login in (ANNA, BEN)}
        for page in pages.values():
            page.links.answer("whose", lambda body, page=page: {"page": page.workspace.person, "guest": GUEST.get()})
        return pages

    served = Served(tmp_path_factory.mktemp("studio"), shared=True, auth=OTTO, people=people)
    yield served
    served.close()


def cookie(studio, user: str, password: str) -> str:
    body = urllib.parse.urlencode({"username": user, "password": password}).encode()
    status, _, headers = ask(studio, "POST", "/login", body, Content_Type="application/x-www-form-urlencoded")
    return headers["set-cookie"].split(";")[0] if status == 200 else ""


def test_each_login_gets_its_own_page_and_nobody_elses(studio):
    def whose(login: str) -> tuple[int, dict]:
        status, content, _ = ask(studio, "POST", "/atelier/whose", b"{}", Cookie=login, **JSON)
        return status, json.loads(content) if status == 200 else {}

    assert whose(cookie(studio, *ANNA)) == (200, {"page": "anna", "guest": "anna"})
    assert whose(cookie(studio, *BEN)) == (200, {"page": "ben", "guest": "ben"})
    assert whose(cookie(studio, *OTTO))[0] == 404, "this route is of their pages alone"
    assert not cookie(studio, "anna", "3") and whose("")[0] == 401
    login = cookie(studio, *ANNA)
    for path in ("/", "/config"):
        status, content, headers = ask(studio, "GET", path, Cookie=login)
        assert status == 200 and b"dataset" in content and "set-cookie" not in headers
        assert headers["x-frame-options"] == "SAMEORIGIN"
    assert ask(studio, "GET", "/config")[0] == 401


def test_the_page_shows_who_is_logged_in(studio):
    for name, password in (OTTO, ANNA):
        config = ask(studio, "GET", "/config", Cookie=cookie(studio, name, password))[1].decode()
        assert f'>Log out <span class=\\"who\\">{name}</span>' in config


def test_logging_out_ends_this_session_alone(studio):
    first, second = cookie(studio, *ANNA), cookie(studio, *ANNA)
    assert ask(studio, "POST", "/atelier/logout", b"", Cookie=first, Origin="http://evil.example")[0] == 403
    assert ask(studio, "POST", "/atelier/logout", b"", Cookie=first)[0] == 204
    still = [ask(studio, "POST", "/atelier/whose", b"{}", Cookie=each, **JSON)[0] for each in (first, second)]
    assert still == [401, 200] and ask(studio, "POST", "/atelier/logout", b"")[0] == 401
    assert b"log-out" in ask(studio, "GET", "/config", Cookie=second)[1]


def test_each_has_images_stars_styles_and_grids_of_their_own(tmp_path):
    owner = Workspace(tmp_path)
    spaces = [owner, *(replace(owner, person=name) for name in ("anna", "ben"))]
    for space in spaces:
        image(space.images / "2026-11-30" / "a.png")
    galleries = [Gallery(space) for space in spaces]
    for gallery in galleries:
        gallery.refresh()
    assert [len(gallery.unread()) for gallery in galleries] == [1, 1, 1]
    galleries[1].set_stars(["2026-11-30/a.png"], 5)
    assert [Gallery(space).stars("2026-11-30/a.png") for space in spaces] == [0, 5, 0]
    write_styles(spaces[2], [Style("moody", "dark")])
    assert [list(read_styles(space)) for space in spaces] == [[], [], ["moody"]]
    assert len({space.grids for space in spaces}) == 3


@pytest.mark.parametrize("person", ["", "ben"])
def test_links_in_a_folder_lead_a_person_to_nothing_of_others(tmp_path, person):
    space = Workspace(tmp_path / "outputs", person=person)
    anna = image(tmp_path / "outputs" / "people" / "anna" / "images" / "secret.png", caption="anna's")
    common = image(tmp_path / "common" / "a.png").parent
    (common / "file.png").symlink_to(anna)
    (common / "folder").symlink_to(anna.parent)
    (common / "10_all").symlink_to(tmp_path / "outputs")
    page = work_parts.make_page(tmp_path)
    page.workspace = space
    page.project.edit("dataset.folder", str(common))
    with handling(None, page.workspace):
        task = page.engine.light(lambda task: [Path(each.path).name for each in walk(common).files])
        below = [name for _, _, names in walk_folders(common) for name in names]
    wait_until(lambda: task.done)
    others = {"file.png", "secret.png"}
    assert ("a.png" in below, "a.png" in task.result) == (True, True)
    assert others.isdisjoint([*below, *task.result]) is bool(person) and (person or others <= {*below, *task.result})


@pytest.mark.parametrize("person", ["", "ben"])
def test_a_metadata_file_leads_a_person_to_nothing_of_others(tmp_path, person):
    space = Workspace(tmp_path / "outputs", person=person)
    anna = image(tmp_path / "outputs" / "people" / "anna" / "images" / "secret.png")
    common = image(tmp_path / "outputs" / "datasets" / "a.png").parent
    keys = {"a": {"control_image": str(anna)}, str(anna): {}, "../people/anna/images/secret.png": {}}
    metadata = common / "meta.json"
    metadata.write_text(json.dumps(keys))
    with in_workspace(space):
        listed = read_metadata(metadata)
        matches = Finder(walk(common).files, common, common).match(listed.entries)
        control = listed.entries[0].control_at(common)
    assert {file.path.name for _, file in matches.pairs} == ({"a.png"} if person else {"a.png", "secret.png"})
    assert len(matches.inaccessible) == (2 if person else 0) and control == (None if person else anna)


def test_a_job_uses_the_folders_of_who_added_it(studio):
    studio.engine.people = frozenset({"anna"})
    entries = [QueueEntry("e", "generate", "", {}, guest=name) for name in ("", "anna", "abcdef")]
    seen = [Engine.workspace_of(studio.engine, entry).person for entry in entries]
    assert seen == ["", "anna", ""], "the last is a guest of a page that is one workspace"


def test_generate_shows_and_cancels_only_what_its_page_added(tmp_path):
    page = work_parts.make_page(tmp_path)
    jobs = [QueueEntry(name, "generate", f"a fox of {name}", {}, "waiting", guest=name) for name in ("anna", "ben")]
    page.engine.queue, page.engine.waits, page.engine.people = lambda: jobs, dict, frozenset({"anna", "ben"})
    page.engine.queue_paused = False
    page.engine.status = lambda: {
        "job": {"entry": "anna", "task": "generate", "title": "a fox of anna", "state": "running"}
    }
    stage = Stage(page, lambda: None, lambda new: [])
    for person, shown in (("anna", ["anna"]), ("ben", ["ben"]), ("", [])):
        page.workspace = replace(page.workspace, person=person)
        assert [name for name in ("anna", "ben") if f"a fox of {name}" in stage.status()] == shown
        assert (stage.stamp()[2] is not None) == (person == "anna")
    page.engine.people = frozenset()
    assert "1 more job" in stage.status(), "one workspace"


def test_undo_of_captions_leaves_what_others_wrote(tmp_path):
    page = work_parts.make_page(tmp_path)
    files = [image(tmp_path / "set" / f"{name}.png", caption=name).with_suffix(".txt") for name in "ab"]
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    page.workspace = replace(page.workspace, person="anna")
    desk = CaptionHandlers(page)
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    edits = desk.edits
    edits.follow()
    for person, file in (("ben", files[0]), ("anna", files[1])):
        change = Change(file, file.read_bytes(), b"new")
        History(page.workspace.captions, person).apply(f"by {person}", [change])
        edits.follow()
    assert edits.next_step("undo").name == "by anna"
    History(page.workspace.captions, "ben").apply("later, by ben", [Change(files[0], b"new", b"newer")])
    edits.follow()
    assert edits.next_step("undo").name == "by anna"


def test_each_has_presets_of_their_own(tmp_path):
    owner, anna, ben = (PresetStore(tmp_path, person) for person in ("", "anna", "ben"))
    anna.save("fox", TrainJob())
    owner.save("cat", TrainJob())
    assert [store.names() for store in (owner, anna, ben)] == [["user/cat"], ["user/fox"], []]


def test_presets_in_another_folder_stand_beside_those_that_come_with_the_program(tmp_path):
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "starter.json").write_text(json.dumps(dump(TrainJob())))
    store = PresetStore(tmp_path / "mine", shipped=tmp_path / "shipped")
    store.save("fox", TrainJob())
    (tmp_path / "mine" / "cat.json").write_text(json.dumps(dump(TrainJob())))
    assert store.names() == ["cat", "starter", "user/fox"]
    assert all(store.load(name).kind == "job" for name in store.names())
    page = make_page(None, Workspace(tmp_path / "outputs", presets=tmp_path / "mine"))
    assert page.presets.names()[0] == "cat" and {"starter_lora", "user/fox"} <= set(page.presets.names())


@pytest.fixture
def engine(tmp_path):
    """A real engine, never started, of Anna, Ben and their owner Otto."""
    engine = Engine(make_workspace(tmp_path), "cpu", "a test")
    engine.people, engine.owner = frozenset({"anna", "ben"}), "otto"
    yield engine
    engine.close()


def test_a_waiting_job_moves_past_those_of_others_to_the_place_of_the_next_own_one(engine):
    ids = []
    for name in ("anna", "ben", "anna", "", "anna"):
        with as_guest(name):
            ids.append(engine.submit("train", TrainJob()))
    for asks, moves in {
        "anna": [(None, 2), (0, 4), (2, None)],
        "ben": [(None, None)],
        "": [(None, 1), (0, 2), (1, 3), (2, 4), (3, None)],
    }.items():
        with as_guest(asks):
            rows = monitor.queue(SimpleNamespace(engine=engine))["entries"]
        assert [(row["up"], row["down"]) for row in rows if row["own"]] == moves
    with as_guest("anna"):
        engine.move(ids[4], 2)
        assert [entry.id for entry in engine.queue()] == [ids[0], ids[1], ids[4], ids[3], ids[2]]
        engine.move(ids[0], 2)
        assert [entry.id for entry in engine.queue()] == [ids[4], ids[1], ids[0], ids[3], ids[2]]


def test_images_of_other_people_are_not_among_the_finished_jobs(engine):
    page = SimpleNamespace(engine=engine, job_images={})
    for name in ("anna", "ben", ""):
        with as_guest(name):
            for task in ("generate", "tag"):
                engine._queue.add(task, name, {}, state="done")
    for asks, images in {"anna": ["anna"], "": ["", "ben", "anna"]}.items():
        with as_guest(asks):
            ended = monitor.queue(page)["ended"]
        titles = {task: [row["title"] for row in ended if row["task"] == task] for task in ("generate", "tag")}
        assert titles == {"generate": images, "tag": ["", "ben", "anna"]}


def test_others_see_that_images_are_made_but_not_their_prompt(engine):
    job = build(GenerateJob, {"generate": {"prompt": "a secret fox"}})
    for name in ("anna", "ben", ""):
        with as_guest(name):
            engine.submit("generate", job)
    for asks, shown in {"anna": [True, False, False], "ben": [False, True, False], "": [True] * 3}.items():
        with as_guest(asks):
            rows = monitor.queue(SimpleNamespace(engine=engine))["entries"]
        assert ["a secret fox" in row["title"] for row in rows] == shown
        assert all(row["title"] for row in rows)


def test_generate_offers_to_resume_only_a_queue_that_its_user_may_resume(tmp_path):
    page = work_parts.make_page(tmp_path)
    page.engine.queue = lambda: [QueueEntry("e", "generate", "a fox", {}, "waiting", guest="anna")]
    page.engine.waits = lambda: {"e": Wait(queue_paused=True)}
    for asks, paused_by, disabled in (("anna", "anna", False), ("anna", "", True), ("", "", False)):
        page.engine.paused_by = paused_by
        with as_guest(asks):
            html = Stage(page, lambda: None, lambda new: []).status()
        assert ("disabled" in button("resume", html)) == disabled


READS = {"verdict_minutes", "verdict_all", "verdict_copy"}


@pytest.mark.parametrize("name", sorted(verdict.COMMANDS.keys() - READS))
def test_what_a_comparison_writes_into_a_run_is_refused_for_the_runs_of_others(engine, name):
    page = make_page(engine, replace(engine.workspace, person="anna"), shared=True)
    folder = write_run(page, "20260101-120000_ben", "done")
    write_person(RunFolder(folder), "ben")
    data = {"run": folder.name, "file": "glyphs.safetensors", "files": ["glyphs.safetensors"], "keep": True}
    with as_guest("anna"), refused("runs.not-yours"):
        verdict.COMMANDS[name](page, data, page.browsers.of(None))
    with as_guest("anna"):
        part = verdict.part(page, folder.name, engine.snapshot(folder.name), engine.run_job(folder.name))
    assert part["refused"] == "The run of ben" and part["blind"] is None


def test_the_owner_does_not_replace_the_images_with_which_a_person_compares(engine):
    page = make_page(engine, engine.workspace, shared=True)
    folder = write_run(page, "20260101-120000_ben", "done")
    write_person(RunFolder(folder), "ben")
    with refused("runs.not-yours"):
        verdict.start(page, folder.name)
    write_person(RunFolder(folder), "otto")
    with suppress(ProblemsError):
        verdict.start(page, folder.name)


def test_each_has_a_prompt_history_of_their_own(tmp_path):
    histories = []
    for person in ("", "anna", "ben"):
        page = work_parts.make_page(tmp_path)
        page.workspace = replace(page.workspace, person=person)
        histories.append(prompt_box.History(page, Gallery(page.workspace)))
    histories[1].add(build(GenerateJob, {"generate": {"prompt": "of anna"}}))
    assert [history.entries() for history in histories] == [[], [("of anna", "")], []]


def button(act: str, html: str) -> str:
    return re.search(f'<button[^>]*data-act="{act}"[^>]*>', html)[0]


def test_of_other_peoples_runs_only_what_is_not_refused_is_offered(engine):
    page = make_page(engine, replace(engine.workspace, person="anna"), shared=True)
    desk, runs = RunHandlers(page), {}
    for name in ("anna", "ben", "old"):
        runs[name] = write_run(page, f"20260101-120000_{name}", "stopped")
        state = runs[name] / "state" / "step00000030"
        state.mkdir(parents=True)
        (state / "training.pt").write_bytes(b"weights")
        seal_state(state)
        if name != "old":
            write_about(RunFolder(runs[name]), note=f"{name}'s note")
            write_person(RunFolder(runs[name]), name)
    with as_guest("anna"):
        details = {name: desk._main({"open": folder.name}) for name, folder in runs.items()}
        chosen = {name: desk._main({"picked": [folder.name, runs["anna"].name]}) for name, folder in runs.items()}
        monitored = {name: monitor.parts(page, folder.name)["run"]["actions"] for name, folder in runs.items()}
    owners = desk._main({"open": runs["ben"].name})
    refused = [f'data-act="{act}"' for act in ("delete", "rename", "note", "continue", "longer", "mark")]
    for shown in (details["anna"], owners):
        assert [act for act in refused if act not in shown] == []
    for name, title in (("ben", "The run of ben"), ("old", "The run of the owner")):
        assert [act for act in refused if act in details[name]] == []
        star, delete = button("star", details[name]), button("delete-picked", chosen[name])
        assert all("disabled" in each and title in each for each in (star, delete))
        assert ">Compare</a>" in chosen[name] and "continue" not in monitored[name]
    assert "ben&#x27;s note" in details["ben"] and "disabled" not in button("delete-picked", chosen["anna"])
    assert "continue" in monitored["anna"]


@pytest.mark.slow
def test_forms_are_apart_and_stay_so_after_a_restart(studio, chromium):
    names = {}
    for login in (ANNA, BEN, OTTO):
        window = Visit(chromium, studio.url, fresh=True)
        assert window.context.request.post(
            f"{studio.url}login", form=dict(zip(("username", "password"), login, strict=True))
        ).ok
        tab = window.open()
        field = tab.get_by_label("Output name").first
        names[login[0]] = field.input_value()
        field.fill(f"{login[0]}_lora")
        field.press("Tab")
        person = "" if login is OTTO else login[0]
        stored = replace(studio.workspace, person=person).personal_private / "project.json"
        wait_until(lambda stored=stored, name=login[0]: stored.is_file() and f"{name}_lora" in stored.read_text())
        window.close()
    assert len(set(names.values())) == 1
    for login in (ANNA, BEN):
        again = make_page(studio.engine, replace(studio.workspace, person=login[0]), shared=True)
        assert again.project.job.saving.output_name == f"{login[0]}_lora"
    assert studio.page.project.job.saving.output_name == "otto_lora"


def writers(page, folder):
    """What each way to write into a run does, to call."""
    samples, file = folder / "samples", folder / "checkpoints" / "fox.safetensors"
    picture, space = image(samples / "one.png"), page.workspace
    lora(file)
    strip, number = tasks.named("strip_metadata"), tasks.named("number")
    change = Change(picture.with_suffix(".txt"), None, b"a fox")
    to_samples = build(GenerateJob, {"output": {"outdir": str(samples / "x")}})
    copy = build(strip.job, {"strip_metadata": {"file": str(file)}})  # next to the file
    in_place = build(number.job, {"number": {"folder": str(samples), "number_in_place": True}})
    return [
        lambda: page.roots.check_written(samples),
        lambda: page.roots.admit(to_samples),
        lambda: strip.check_job(copy, space),
        lambda: number.check_job(in_place, space),
        lambda: History(space.captions, space.person).apply("edit", [change]),
    ]


def test_a_person_writes_nothing_into_the_run_of_somebody_else(engine):
    page = make_page(engine, replace(engine.workspace, person="anna"), shared=True)
    for name in ("anna", "ben", "old"):
        folder = write_run(page, f"20260101-120000_{name}", "done")
        if name != "old":
            write_person(RunFolder(folder), name)
        for write in writers(page, folder):
            if name == "anna":
                write()
            else:
                with refused("runs.not-yours", "people/anna"):
                    write()
        assert page.roots.check(folder / "samples"), "runs stay readable"


def test_a_deleted_run_is_offered_to_whom_it_belongs_and_to_the_owner(engine):
    page = make_page(engine, replace(engine.workspace, person="anna"), shared=True)
    folder = write_run(page, "20260101-120000_ben", "done")
    write_person(RunFolder(folder), "ben")
    deleted, desk = engine.delete_run(folder.name), DiskHandlers(page)
    for asks, offered in {"anna": False, "ben": True, "": True}.items():
        with as_guest(asks):
            assert (folder.name in desk.html({})) == offered
    with as_guest("anna"), refused("runs.not-yours"):
        restore_run(deleted, page.workspace, engine.people)
    with as_guest("ben"):
        restore_run(deleted, page.workspace, engine.people)
    assert folder.is_dir()


def test_a_deletion_asks_where_waiting_jobs_need_the_run(engine):
    page = make_page(engine, engine.workspace, shared=True)
    desk, runs = RunHandlers(page), [write_run(page, f"20260101-120000_{name}", "done") for name in ("fox", "cat")]
    file = f"outputs/runs/{runs[0].name}/checkpoints/glyphs.safetensors"
    job = build(GenerateJob, {"generate": {"prompt": "a secret fox", "loras": [{"file": file}]}})
    for name in ("anna", "ben"):
        with as_guest(name):
            engine.submit("generate", job)
    write_person(RunFolder(runs[0]), "ben")
    needed = 'data-sure="Waiting jobs that need its files would fail'
    with as_guest("ben"):
        html = desk._main({"open": runs[0].name})
        assert f"{needed}: a job of anna and &#x27;a secret fox&#x27;." in html
    html = desk._main({"picked": [each.name for each in runs]})
    assert needed in html and needed not in desk._main({"open": runs[1].name})


def test_the_owner_sees_the_images_with_which_a_person_compares_and_makes_none(engine):
    ben = replace(engine.workspace, person="ben")
    page, bens = make_page(engine, engine.workspace, shared=True), make_page(engine, ben, shared=True)
    folder = write_run(page, "20260101-120000_ben", "done")
    write_person(RunFolder(folder), "ben")
    lora(folder / "checkpoints" / "glyphs.safetensors", width=64)
    with as_guest("ben"):
        verdict.start(bens, folder.name)
    grid = verdict.GridFolder.named(verdict.read_verdict(folder).grid, ben)

    def making(of):
        return verdict.part(of, folder.name, engine.snapshot(folder.name), engine.run_job(folder.name))["making"]

    assert grid.path.is_relative_to(ben.grids) and making(page)["refused"] == "The images belong to ben"
    assert making(page)["state"] == "waiting" and making(page)["total"] == making(bens)["total"] > 0
    with as_guest("ben"):
        assert not making(bens)["refused"] and making(bens)["state"] == "waiting"


def test_an_empty_output_folder_shows_the_folder_of_the_person(tmp_path):
    page = work_parts.make_page(tmp_path)
    page.workspace = replace(page.workspace, person="anna")
    desk = GenerateHandlers(page)
    assert desk._placeholders(desk._values())["outdir"].endswith("people/anna/images")
