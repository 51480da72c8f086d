"""Getting a base model on the page: the catalog, short names, files put there by hand, browsing."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

import pytest
from generate_parts import lora
from PIL import Image
from playwright.sync_api import expect

from core.formats.hub import catalog
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from tests.local_server import Answers, as_hub, serving

WEIGHTS = (PROJECT / "models" / "starter" / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
PIECE = len(WEIGHTS) // 20


class Slow(Answers):
    """Every address is the same file, sent while `server.go` allows it, with ranges."""

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.server.starts.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(WEIGHTS) - start))
        self.send_header("ETag", '"1"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}")
        self.end_headers()
        try:
            for place in range(start, len(WEIGHTS), PIECE):
                if place >= self.server.stop_at:
                    self.server.go.wait()
                self.wfile.write(WEIGHTS[place : place + PIECE])
        except OSError:
            pass


@pytest.fixture(scope="module")
def store():
    with serving(Slow, daemon_threads=True, go=threading.Event(), stop_at=len(WEIGHTS), starts=[]) as server:
        yield server
        server.go.set()


@pytest.fixture(scope="module")
def shop(tmp_path_factory, store):
    """A page with an empty models folder of its own and a hub on this machine."""
    import page_server

    def own_models(folder):
        models = folder / "models"
        models.mkdir(parents=True)
        made = plain(folder)
        return Workspace(outputs=made.outputs, models=models, presets=made.presets)

    plain = page_server.make_workspace
    small = tuple(
        dataclasses.replace(each, size=len(WEIGHTS), sha256=hashlib.sha256(WEIGHTS).hexdigest())
        for each in catalog.ENTRIES
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_server, "make_workspace", own_models)
        patch.setattr(catalog, "ENTRIES", small)
        as_hub(patch, store)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        page = page_server.Served(tmp_path_factory.mktemp("shop"))
        yield page
        page.close()


@pytest.fixture
def window(shop, store, chromium):
    from page_server import Visit

    store.go.clear()
    store.stop_at, store.starts = len(WEIGHTS), []
    shop.page.project.choose("starter_lora")
    made = Visit(chromium, shop.url)
    yield made
    made.close()
    store.go.set()
    assert made.errors == [] and made.outside == []
    for left in shop.workspace.models.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def row(tab, entry="sd15"):
    return tab.locator(f"[data-catalog]:visible [data-entry={entry}]")


def field(tab):
    return tab.locator("#field-model-base-model")


@pytest.mark.slow
def test_one_click_downloads_pauses_survives_a_refresh_resumes_and_is_chosen(window, shop, store):
    store.stop_at = 10 * PIECE
    tab = window.open("Train")
    field(tab).get_by_role("button", name="Get a model").click()
    expect(tab.locator("[data-catalog]:visible > li")).to_have_count(len(catalog.ENTRIES))
    row(tab).get_by_role("button", name="Download").click()
    expect(row(tab)).to_have_attribute("data-state", "running")
    expect(row(tab).locator(".model-pace")).to_contain_text(" of ")
    tab.reload()
    tab.wait_for_selector("body[data-atelier=ready]")
    field(tab).get_by_role("button", name="Get a model").click()
    expect(row(tab)).to_have_attribute("data-state", "running")
    store.go.set()  # the handler looks at the pause between its pieces
    store.stop_at = len(WEIGHTS)
    expect(row(tab)).to_have_attribute("data-state", "found")
    row(tab).get_by_role("button", name="Use as base model").click()
    place = shop.workspace.models / catalog.ENTRIES[0].place
    assert place.read_bytes() == WEIGHTS
    expect(field(tab).locator("input").first).to_have_value(re.compile(re.escape(place.stem)))
    assert shop.page.project.job.model.base_model == str(place)


@pytest.mark.slow
def test_a_paused_download_keeps_its_bytes_and_a_discarded_one_does_not(window, shop, store):
    store.stop_at = 10 * PIECE
    part = shop.workspace.models / (catalog.ENTRIES[0].place + ".part")
    tab = window.open("Tools")
    tab.evaluate("atelier.openTools('tools')")
    row(tab).get_by_role("button", name="Download").click()
    expect(row(tab)).to_have_attribute("data-state", "running")
    wait(lambda: part.exists() and part.stat().st_size >= 5 * PIECE)
    row(tab).get_by_role("button", name="Pause").click()
    # Else the whole file comes first
    wait(lambda: any(token.wanted for token in shop.page.engine.beside._tokens.values()))
    store.stop_at = 12 * PIECE
    store.go.set()
    expect(row(tab)).to_have_attribute("data-state", "partial")
    kept = part.stat().st_size
    assert 5 * PIECE <= kept < len(WEIGHTS)
    store.go.clear()
    row(tab).get_by_role("button", name="Resume").click()
    wait(lambda: store.starts[-1] == kept)
    row(tab).get_by_role("button", name="Cancel").click()
    wait(lambda: any(token.wanted for token in shop.page.engine.beside._tokens.values()))
    store.go.set()
    expect(row(tab)).to_have_attribute("data-state", "missing")
    assert not part.exists() and catalog.installed_path(catalog.ENTRIES[0], shop.workspace.models) is None


@pytest.mark.slow
def test_a_short_name_leads_to_the_download(window, shop):
    tab = window.open("Train")
    box = field(tab).locator("input").first
    box.fill("sd1.5")
    box.press("Enter")
    get = field(tab).get_by_role("button", name=re.compile("Download Stable Diffusion 1.5"))
    get.click()
    # The file here is no whole model: it comes, and is then told for what it is.
    expect(field(tab).locator(".field-error")).to_contain_text("VAE")
    assert (shop.workspace.models / catalog.ENTRIES[0].place).is_file()


@pytest.mark.slow
def test_a_file_put_into_the_folder_by_hand_appears_in_lists_and_catalog(window, shop):
    tab = window.open("Train")
    field(tab).get_by_role("button", name="Get a model").click()
    expect(row(tab, "sdxl-vae")).to_have_attribute("data-state", "missing")
    (shop.workspace.models / "vae").mkdir()
    (shop.workspace.models / catalog.ENTRIES[3].place).write_bytes(WEIGHTS)
    shutil.copytree(PROJECT / "models" / "starter", shop.workspace.models / "mine")
    expect(row(tab, "sdxl-vae")).to_have_attribute("data-state", "found")
    row(tab, "sdxl-vae").get_by_role("button", name="Use as VAE").click()
    wait(lambda: shop.page.project.job.model.vae == str(shop.workspace.models / catalog.ENTRIES[3].place))
    expect(field(tab).locator("datalist option", has_text="mine")).to_have_count(1)


@pytest.mark.slow
def test_the_list_of_a_field_dims_another_family_and_refuses_it_and_takes_what_fits(window, shop):
    folder = shop.workspace.models / "loras"
    for name, width in (("fox", 768), ("large", 2048)):
        lora(folder / f"{name}.safetensors", {"modelspec.trigger_phrase": f"{name} word"}, width)
    Image.new("RGB", (8, 8)).save(folder / "fox.png")
    tab = window.open("Train")
    tab.locator("#group-network > button").click()
    tab.locator("#more-network > button").click()
    field, rows = tab.locator("#field-network-network-weights-control"), tab.locator("#pick-list > li")
    tab.get_by_role("button", name="Choose: Initial LoRA weights").click()
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).not_to_have_class(re.compile("misfit"))
    expect(rows.nth(0).locator("img")).to_have_count(1)
    expect(rows.nth(0).locator(".badge")).to_have_text(["SD 1.x", "LoRA", "rank 4"])
    expect(rows.nth(1)).to_have_class(re.compile("misfit"))
    rows.nth(0).locator("summary").click()
    copies = rows.nth(0).get_by_role("button", name="Copy path")
    expect(copies).to_have_attribute("data-copy", str(folder / "fox.safetensors"))
    rows.nth(1).locator(".choose").click()
    expect(tab.locator(".models-dialog .problem.error")).to_contain_text("large.safetensors")
    expect(field).to_have_value("")
    tab.locator("#pick-find").fill("fox word")
    expect(rows).to_have_count(1)
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    expect(tab.locator("dialog")).to_have_count(0)
    expect(field).to_have_value(str(folder / "fox.safetensors"))
    wait(lambda: shop.page.project.job.network.network_weights == str(folder / "fox.safetensors"))
    face = tab.locator("#field-network-network-weights .pick-face")
    expect(face).to_have_text("fox")
    place = "(node) => [node.offsetLeft, node.offsetTop, node.offsetWidth, node.offsetHeight]"
    before = field.evaluate(place)
    field.focus()
    expect(face).to_be_hidden()
    assert field.evaluate(place) == before
    field.fill("nowhere")
    field.press("Tab")
    expect(face).to_have_count(0)
    choose = tab.get_by_role("button", name="Choose: Initial LoRA weights")
    choose.click()
    choose.evaluate("(node) => { node.dataset.form = 'other'; }")  # as of another tool, whose form has come meanwhile
    tab.locator(".models-dialog").get_by_role("button", name="Browse files").click()
    expect(tab.locator("dialog")).to_have_count(0)
    expect(tab.locator("#said.info")).to_be_visible()


@pytest.fixture
def shallow(tmp_path_factory):
    """A folder that does not lie among the thousands of a test run: a list of folders names 500."""
    folder = Path(tempfile.mkdtemp(prefix="browse-", dir=tmp_path_factory.getbasetemp().parent))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_browsing_finds_a_file_anywhere_that_is_open(window, shop, shallow):
    (shallow / "in <here> ü").mkdir()
    (shallow / "in <here> ü" / "my model.safetensors").write_bytes(WEIGHTS)
    (shallow / "in <here> ü" / "words.txt").write_text("no")
    tab = window.open("Train")
    field(tab).get_by_role("button", name="Browse files").click()
    browser = tab.locator("#model-browser")
    browser.get_by_role("button", name="/", exact=True).click()
    for name in (*shallow.parts[1:], "in <here> ü"):
        browser.get_by_role("button", name=f"{name}/", exact=True).click()
    expect(browser.locator(".file")).to_have_count(1)
    assert "null" not in browser.inner_text()
    browser.get_by_role("button", name=re.compile("my model")).click()
    wait(lambda: shop.page.project.job.model.base_model.endswith("my model.safetensors"))
    expect(tab.locator("dialog")).to_have_count(0)


@pytest.mark.slow
def test_a_list_of_folders_that_changes_under_a_press_is_drawn_after_it(window, shop, shallow):
    (shallow / "one").mkdir()
    tab = window.open("Tools")
    tab.evaluate("atelier.openTools('tools-images')")
    tab.locator("#tool-resize-folder").fill(str(shallow))
    tab.get_by_role("region", name="Images", exact=True).get_by_role("button", name="Browse: Image folder").click()
    browser = tab.locator("#model-browser")
    browser.get_by_role("button", name="one/", exact=True).hover()
    tab.mouse.down()
    (shallow / "two").mkdir()
    with tab.expect_response(lambda answer: "pulse" in answer.url and '"two"' in answer.text()):
        pass
    expect(browser.get_by_role("button", name="two/", exact=True)).to_have_count(0)
    tab.mouse.move(1, 1)
    tab.mouse.up()
    expect(browser.get_by_role("button", name="two/", exact=True)).to_be_visible()
    browser.get_by_role("button", name="one/", exact=True).click()
    expect(browser.locator(".at code")).to_have_text(str(shallow / "one"))


@pytest.mark.slow
def test_a_file_and_a_folder_that_are_browsed_for_stand_in_their_fields(window, shop, shallow):
    (shallow / "mine.safetensors").write_bytes(WEIGHTS)
    tab = window.open("Tools")
    state = lambda card: shop.page.project.tab_state("Tools").get(card, {})  # noqa: E731
    tab.evaluate("atelier.openTools('tools-images')")
    folder = tab.locator("#tool-resize-folder")
    folder.fill(str(shallow))
    tab.get_by_role("region", name="Images", exact=True).get_by_role("button", name="Browse: Image folder").click()
    browser = tab.locator("#model-browser")
    expect(browser.locator(".at code")).to_have_text(str(shallow))
    expect(browser.locator(".file")).to_have_count(0)
    browser.get_by_role("button", name=".. parent folder").click()
    expect(browser.locator(".at code")).to_have_text(str(shallow.parent))
    browser.get_by_role("button", name="Use this folder").click()
    expect(folder).to_have_value(str(shallow.parent))
    wait(lambda: state("images").get("folder") == str(shallow.parent))
    tab.evaluate("atelier.openTools('tools-models')")
    file = tab.locator("#tool-inspect-file")
    file.fill(str(shallow / "no such file"))
    tab.get_by_role("button", name="Choose: File").first.click()
    tab.get_by_role("button", name="Browse files").click()
    browser.get_by_role("button", name=re.compile("mine.safetensors")).click()
    expect(file).to_have_value(str(shallow / "mine.safetensors"))
    wait(lambda: state("models").get("file") == str(shallow / "mine.safetensors"))


def wait(test, seconds=60.0):
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)


# ---- a shared page ----


@pytest.fixture
def guest(tmp_path):
    from work_parts import make_page

    page = make_page(tmp_path, shared=True)
    page.workspace.outputs.mkdir()
    return page


def test_a_guest_browses_only_open_folders(guest, tmp_path):
    from tabs.tools.models import browse

    shown = guest.models.parts("Train", {"wants": {"files": str(tmp_path)}})["browse"]
    assert "not accessible" in shown["reason"] and str(tmp_path) != shown["folder"]
    assert browse(guest.workspace, guest.roots, "")["parent"] == ""
    for kind in ("file", "folder", "any"):
        shown = guest.models.parts("Captions", {"wants": {"files": str(tmp_path), "kind": kind}})["browse"]
        assert guest.roots.holds(shown["folder"])
    with pytest.raises(ProblemsError, match="not accessible"):
        guest.models.choose({"use": "base_model", "about": "/etc/passwd"})


@pytest.mark.parametrize(
    "wants",
    [
        None,
        5,
        {},
        {"files": 5},
        {"files": "a\0b"},
        {"files": "/no/such/folder"},
        {"files": "a\0b", "kind": "file"},
        {"files": ".", "kind": 5},
    ],
)
def test_whatever_is_asked_the_page_answers(guest, wants):
    assert "catalog" in guest.models.parts("Train", {"wants": wants})
    assert "catalog" not in guest.models.parts("Monitor", {"wants": wants})


def test_a_model_that_predicts_v_sets_what_it_needs_and_the_next_one_takes_it_back(tmp_path, monkeypatch):
    import work_parts

    vpred = next(entry for entry in catalog.ENTRIES if entry.id == "noobai-vpred")
    small = dataclasses.replace(vpred, size=len(WEIGHTS))
    monkeypatch.setattr(catalog, "ENTRIES", (small,))
    page = work_parts.make_page(tmp_path)
    files = [tmp_path / "models" / name for name in (small.place, "other.safetensors")]
    monkeypatch.setattr(page.models, "_workspace", dataclasses.replace(page.workspace, models=tmp_path / "models"))
    monkeypatch.setattr(page.models, "_roots", work_parts.Roots(page.models._workspace, local=True))
    seen = []
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(WEIGHTS)
        page.models.choose({"use": "base_model", "about": str(path)})
        job = page.project.job
        assert job.model.base_model == str(path)
        seen.append((job.model.prediction, job.noise.zero_terminal_snr))
    assert seen == [("v", True), ("auto", False)]
    page.project.undo()
    assert page.project.job.noise.zero_terminal_snr, "one undo takes back the model with its settings"
