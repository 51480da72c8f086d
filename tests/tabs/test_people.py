"""One server, several people: each login of a list has a page of its own, with its form and presets."""

from __future__ import annotations

import json
import urllib.parse
from dataclasses import replace

import pytest
from page_server import Served, Visit
from test_request_check import JSON, ask
from work_parts import image, wait_until

from core.engine.queue import GUEST
from core.generation.images.gallery import Gallery
from core.generation.plan.checks import root_of
from core.record.workspace import Workspace, resolve_path
from core.settings.check import build
from core.settings.job import GenerateJob, TrainJob
from core.settings.presets.files import PresetStore
from tabs.context import make_page
from tabs.generate.stage import Stage

OTTO, ANNA, BEN = ("otto", "1"), ("anna", "2"), ("ben", "3")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """The page of the owner, Otto, with those of Anna and Ben."""

    def people(engine, workspace):
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


def test_logging_out_ends_this_session_alone(studio):
    first, second = cookie(studio, *ANNA), cookie(studio, *ANNA)
    assert ask(studio, "POST", "/atelier/logout", b"", Cookie=first, Origin="http://evil.example")[0] == 403
    assert ask(studio, "POST", "/atelier/logout", b"", Cookie=first)[0] == 204
    still = [ask(studio, "POST", "/atelier/whose", b"{}", Cookie=each, **JSON)[0] for each in (first, second)]
    assert still == [401, 200] and ask(studio, "POST", "/atelier/logout", b"")[0] == 401
    assert b"log-out" in ask(studio, "GET", "/config", Cookie=second)[1]


def test_each_has_images_and_stars_of_their_own_and_the_owner_sees_all(tmp_path):
    owner = Workspace(tmp_path)
    spaces = [owner, *(replace(owner, person=name) for name in ("anna", "ben"))]
    for space in spaces:
        image(space.images / "2026-11-30" / "a.png")
    galleries = [Gallery(space) for space in spaces]
    for gallery in galleries:
        gallery.refresh()
    assert [len(gallery.unread()) for gallery in galleries] == [3, 1, 1]
    galleries[1].set_stars(["2026-11-30/a.png"], 5)
    assert [Gallery(space).stars("2026-11-30/a.png") for space in spaces] == [0, 5, 0]


def test_their_jobs_write_where_their_gallery_looks(studio):
    page = next(page for login, page in studio.people.items() if login == ANNA)
    stage = Stage(page, lambda: None, lambda new: [])
    own = GenerateJob().model_copy(
        update={"output": GenerateJob().output.model_copy(update={"outdir": "outputs/else"})}
    )
    for job, folder in ((GenerateJob(), page.workspace.images), (own, resolve_path("outputs/else"))):
        entry = stage.submit([job])
        queued = next(each for each in studio.engine.queue() if each.id == entry)
        assert root_of(build(GenerateJob, queued.job), studio.workspace) == folder


def test_each_has_presets_of_their_own(tmp_path):
    owner, anna, ben = (PresetStore(tmp_path, person) for person in ("", "anna", "ben"))
    anna.save("fox", TrainJob())
    owner.save("cat", TrainJob())
    assert [store.names() for store in (owner, anna, ben)] == [["user/cat"], ["user/fox"], []]


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
        stored = studio.workspace.private / f"project{'' if login is OTTO else '-' + login[0]}.json"
        wait_until(lambda stored=stored, name=login[0]: stored.is_file() and f"{name}_lora" in stored.read_text())
        window.close()
    assert len(set(names.values())) == 1
    for login in (ANNA, BEN):
        again = make_page(studio.engine, replace(studio.workspace, person=login[0]), shared=True)
        assert again.project.job.saving.output_name == f"{login[0]}_lora"
    assert studio.page.project.job.saving.output_name == "otto_lora"
