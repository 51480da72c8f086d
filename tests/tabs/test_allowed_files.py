"""What the page lets out, and to whom."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar

import pytest
from PIL import Image

from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from tabs.roots import Roots


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    from page_server import Served

    page = Served(tmp_path_factory.mktemp("shared"), shared=True, auth=("mira", "secret"))
    yield page
    page.close()


def fetch(opener, url: str, data: bytes | None = None, **headers) -> tuple[int, bytes]:
    try:
        with opener.open(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def stranger():
    return urllib.request.build_opener()


def guest(served):
    """Someone who has logged in."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    form = urllib.parse.urlencode({"username": "mira", "password": "secret"}).encode()
    assert fetch(opener, served.url + "login", form)[0] == 200
    return opener


def image(folder):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    return folder / "red.png"


def test_images_are_served_to_the_logged_in_only(shared):
    url = shared.url + shared.page.thumb_url(image(shared.workspace.images), 64)
    assert fetch(stranger(), url)[0] == 401
    status, content = fetch(guest(shared), url)
    assert status == 200 and content[:2] == b"\xff\xd8"


def test_a_broken_image_is_answered_with_one_that_says_so(shared):
    path = image(shared.workspace.images)
    path.write_bytes(path.read_bytes()[:60])
    status, content = fetch(guest(shared), shared.url + shared.page.thumb_url(path, 64))
    assert status == 200 and b"cannot be read" in content and content.startswith(b"<svg")


def test_a_page_is_shown_and_nothing_in_it_runs(shared):
    path = image(shared.workspace.images).with_name("fox_card.html")
    path.write_text("<script>alert(1)</script>")
    with guest(shared).open(shared.url + shared.page.file_url(path), timeout=60) as answer:
        policy, content = answer.headers["Content-Security-Policy"], answer.read()
    assert content == path.read_bytes(), "no nonce of the page"
    assert answer.headers["Content-Type"].startswith("text/html") and "Content-Disposition" not in answer.headers
    assert policy.startswith("sandbox ") and "allow-scripts" not in policy and "default-src 'none'" in policy


def test_an_address_that_was_changed_is_refused(shared, tmp_path):
    opener = guest(shared)
    inside = shared.page.file_url(image(shared.workspace.images))
    other = urllib.parse.quote(str(PROJECT / "pyproject.toml"))
    for url in (
        inside.replace("red.png", "blue.png"),
        inside.replace("key=", "key=0"),
        f"atelier/file?path={other}",
        f"atelier/thumb?path={other}&size=64&key=",
        inside.replace("atelier/file", "atelier/thumb") + "&size=1024",
    ):
        assert fetch(opener, shared.url + url)[0] in (403, 404), url


def test_a_shared_page_serves_nothing_outside_its_folders_even_signed(shared, tmp_path):
    outside = image(tmp_path / "elsewhere")
    assert fetch(guest(shared), shared.url + shared.page.file_url(outside))[0] == 403
    link = shared.workspace.images / "link.png"
    link.symlink_to(outside)
    assert fetch(guest(shared), shared.url + shared.page.file_url(link))[0] == 403


def test_gradios_own_file_route_opens_neither_the_project_nor_the_disk(shared, served, tmp_path):
    secret = shared.workspace.private / "project.json"
    shared.page.project.keep("x", {"y": 1})
    assert secret.is_file()
    paths = ["/etc/passwd", str(PROJECT / "webui.py"), str(secret), str(image(tmp_path / "elsewhere"))]
    paths += [f"{shared.workspace.images}/../.atelier/project.json"]
    for who, page in ((guest(shared), shared), (stranger(), served)):
        for path in paths:
            assert fetch(who, f"{page.url}gradio_api/file={path}")[0] in (403, 404), path


def test_without_a_login_no_handler_answers(shared):
    body = json.dumps({"data": ["{}"], "fn_index": 0, "session_hash": "s"}).encode()
    for route in (
        "gradio_api/run/predict",
        "gradio_api/upload",
    ):
        assert fetch(stranger(), shared.url + route, body, **{"Content-Type": "application/json"})[0] == 401, route
    assert fetch(stranger(), shared.url + "config")[0] == 401


def test_every_handler_is_private(served):
    assert all(not each.queue and each.api_visibility == "private" for each in _own_handlers(served))


def _own_handlers(served):
    return [each for each in served.blocks.fns.values() if each.fn is not None]


def test_roots_of_a_shared_page(tmp_path):
    space = Workspace(tmp_path / "out", tmp_path / "models", tmp_path / "presets")
    for folder in (space.outputs, space.models, space.presets):
        folder.mkdir()
    (tmp_path / "out" / "way").symlink_to("/etc")
    closed, open_ = Roots(space, local=False), Roots(space, local=True)
    for bad in ("/etc/passwd", f"{space.outputs}/../x", f"{space.outputs}/way/passwd", "~", "a\0b"):
        assert not closed.holds(bad), bad
        with pytest.raises(ProblemsError):
            closed.check(bad)
        with pytest.raises(ProblemsError):
            closed.check(f"\u202a'{bad}'")
    pasted = f"\u202afile://{space.outputs}/a%20b"
    assert closed.check(pasted) == open_.check(pasted) == space.outputs / "a b"
    for written in ("file:///etc/passwd", f"file://{space.outputs}/%2e%2e/%2e%2e/x", "file:////server/share"):
        with pytest.raises(ProblemsError):
            closed.check(written)
    assert closed.holds(space.outputs / "runs" / "x") and open_.holds("/etc")
    with pytest.raises(ProblemsError):
        open_.check("a\0b")


def test_a_folder_of_allow_is_open_to_a_shared_page(tmp_path):
    from core.settings.named import Limits
    from tabs.form.folder_browser import starts

    image(tmp_path / "photos" / "fox")
    space = Workspace(tmp_path / "out", tmp_path / "models", tmp_path / "presets", allowed=(tmp_path / "photos",))
    shared = Roots(space, local=False)
    assert shared.check(str(tmp_path / "photos" / "fox")) and Limits.of(space).allows(str(tmp_path / "photos" / "fox"))
    assert ("photos", tmp_path / "photos") in starts(shared)
    with pytest.raises(ProblemsError) as refused:
        shared.check(str(tmp_path / "other"))
    assert "--allow" in refused.value.problems[0].fix and str(tmp_path / "photos") in refused.value.problems[0].fix


def test_a_shared_page_trains_on_no_folder_outside(shared, tmp_path):
    from core.settings.job import TrainJob
    from tabs.form.project import with_value

    image(tmp_path / "private")
    facts = shared.page.checks.facts(with_value(TrainJob(), "dataset.folder", str(tmp_path / "private")))
    assert facts["problems"][0]["code"] == "shared.path-closed" and "images" not in facts
    assert "not accessible" in shared.page.checks.model(str(tmp_path))["problem"]


@pytest.mark.parametrize(
    "setting, more",
    [("model.vae", {}), ("embedding.embedding_weights", {"method.kind": "embedding", "embedding.token_string": "zz"})],
)
def test_a_shared_page_reads_no_vae_and_no_embedding_outside(shared, tmp_path, setting, more):
    from core.settings.job import TrainJob
    from tabs.form.project import with_value

    outside = tmp_path / "private.safetensors"
    outside.write_bytes(b"")
    job = with_value(TrainJob(), "model.base_model", "models/starter")
    inside = shared.page.workspace.outputs / "datasets" / "red"
    image(inside)
    for name, value in {**more, "dataset.folder": str(inside), setting: str(outside)}.items():
        job = with_value(job, name, value)
    found = shared.page.checks.facts(job)["problems"]
    assert [problem["where"] for problem in found if problem["code"] == "shared.path-closed"] == [setting]


def test_tensorboard_is_not_offered_on_a_shared_page(shared):
    assert not shared.page.tensorboard.offered
    with pytest.raises(ProblemsError):
        shared.page.tensorboard.open("run", shared.workspace.runs)


def test_a_page_for_others_always_has_a_password(capsys):
    from tabs.server.app import _login_roles

    made, owner, people = _login_roles((), shared=True)
    printed = capsys.readouterr().out
    assert all(len(login[1]) >= 12 and login[1] in printed for login in (made, owner)) and not people
    assert _login_roles((), shared=False) == (None, None, ())
    me = ("me", "x:y")
    assert _login_roles([me], shared=False) == (me, None, ()) and _login_roles([me], shared=True)[0] == me
    assert "x:y" not in capsys.readouterr().out
    assert _login_roles([me, owner], shared=True) == (me, me, [owner]) == _login_roles([me, owner], shared=False)
    assert not capsys.readouterr().out, "the owner's password is their own"


@pytest.mark.slow
def test_the_page_is_imported_without_torch_and_asks_no_one():
    code = "import sys, tabs.server.app, tabs.train.tab, tabs.monitor.tab, tabs.tools.tab, tabs.pulse; print(*(name for name in "
    code += "('torch', 'diffusers', 'transformers', 'tensorboard') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_a_taken_port_gives_the_next_free_one():
    import socket

    from tabs.server.app import free_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        assert first < free_port("127.0.0.1", first) < first + 100
