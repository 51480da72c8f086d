"""Copies of a run's files from the Runs tab: the remembered folder, what a shared page may write to, several at once."""

from __future__ import annotations

import json
import threading
from operator import itemgetter

import pytest
import torch
from made_runs import make_run
from safetensors.torch import save_file
from work_parts import event, image, make_page, said, wait_until

from core import tasks
from core.record.kept import read_kept
from core.record.problems import ProblemsError
from core.settings.methods import methods
from tabs.runs.tab import TAB, RunHandlers
from tabs.tools import copies as runs_copy
from tabs.tools.forms import ToolForm
from tests.refusals import refused

RUN, FILE = "20260101-120000_one", "one-step00000020.safetensors"
OTHER = "one-step00000040.safetensors"


@pytest.fixture
def desk(page):
    make_run(page.workspace.runs, RUN, saved=(20, 40))
    return RunHandlers(page)


@pytest.fixture
def loras(tmp_path):
    folder = tmp_path / "ComfyUI" / "models" / "loras"
    folder.mkdir(parents=True)
    return folder


def copy(desk, text, place=None, name=FILE):
    """Name a folder in the panel and press Copy; returns what the browser shows, and its "place"."""
    place = place or {"open": RUN}
    assert "copy-folder" in desk.act(place, event("copy-to", name))["copy"]
    return desk.copy_act(place, event("into", value=text)) | {"place": place}


def ended(desk) -> None:
    wait_until(lambda: all(each.task.done for each in desk.copies._copies.values()))


def test_the_folder_is_remembered_for_the_next_file_and_the_next_server(desk, loras, tmp_path):
    page = desk.page
    assert 'data-act="copy-to"' in desk._main({"open": RUN}) and 'data-act="copy"' not in desk._main({"open": RUN})
    place, shown, panel = itemgetter("place", "main", "copy")(copy(desk, str(loras)))
    assert panel == "" and 'data-act="copy"' in shown
    ended(desk)
    assert "Copied: " in desk._main(place) and (loras / FILE).is_file()
    desk.act(place, event("copy", OTHER))
    ended(desk)
    assert (loras / OTHER).stat().st_size == 2_300_000
    kept = json.loads(page.project.file.read_text("utf-8"))["tabs"][TAB]
    assert kept == {"copy_to": str(loras)}
    again = RunHandlers(make_page(tmp_path, page.engine))
    assert again.copies.folder("lora") == loras and str(loras) in again._main({"open": RUN})


def test_programs_get_a_sample_as_preview_which_replaces_nothing(desk, loras, tmp_path):
    snapshot = desk.page.engine.snapshot
    sample = image(desk.page.workspace.runs / RUN / "samples" / "20.png")
    samples = [{"index": 0, "step": 20, "file": "samples/20.png", "path": str(sample), "prompt": "a fox", "seed": 1}]
    desk.page.engine.snapshot = lambda run: snapshot(run) | {"samples": samples}
    preview = loras / FILE.replace(".safetensors", ".preview.png")
    preview.write_text("mine")
    place = copy(desk, str(loras))["place"]
    ended(desk)
    assert preview.read_text() == "mine" and "preview" not in desk._main(place)
    preview.unlink()
    desk.act(place, event("copy", FILE))
    ended(desk)
    assert preview.read_bytes() == sample.read_bytes() and preview.name in desk._main(place)
    (elsewhere := tmp_path / "backup").mkdir()
    copy(desk, str(elsewhere))
    ended(desk)
    assert [path.name for path in elsewhere.iterdir()] == [FILE]


def test_each_kind_of_file_has_its_folder(desk, loras):
    copy(desk, str(loras))
    ended(desk)
    whole, kind = "20260101-130000_whole", {"method": {"kind": "fine_tune"}}
    make_run(desk.page.workspace.runs, whole, saved=(20,), settings=kind)
    desk.copies.keep(whole, "whole-step00000020.safetensors", "")
    ended(desk)
    assert [path.name for path in loras.iterdir()] == [FILE] and 'data-act="copy"' not in desk._main({"open": whole})
    panel = desk.act({"open": whole}, event("copy-to", "whole-step00000020.safetensors"))["copy"]
    assert (
        "ComfyUI/models/checkpoints" in panel and "Forge/models/Stable-diffusion" in panel and str(loras) not in panel
    )
    copy(desk, str(loras.parent), {"open": whole}, "whole-step00000020.safetensors")
    ended(desk)
    assert desk.copies.folder("model") == loras.parent and desk.copies.folder("lora") == loras
    assert {spec.saves for spec in methods().values()} <= {*runs_copy.FOLDERS}


def test_what_became_of_a_copy_stands_at_its_file_until_it_is_closed(desk, loras):
    copy(desk, str(loras))
    ended(desk)
    copy(desk, str(loras))
    ended(desk)
    assert "Already there: " in desk._main({"open": RUN})
    (loras / FILE).write_bytes(b"another")
    copy(desk, str(loras))
    ended(desk)
    assert "under another name" in desk._main({"open": RUN})
    assert (loras / FILE).read_bytes() == b"another" and (loras / "one-step00000020-2.safetensors").is_file()
    desk.act({"open": RUN}, event("copied", FILE))
    assert "under another name" not in desk._main({"open": RUN})


def test_a_kept_file_is_copied_under_the_name_it_is_kept_with(desk, loras):
    desk.page.project.keep(TAB, {"copy_to": str(loras)})
    for file, name in ((FILE, "my fox: 1/2"), (OTHER, "con")):  # a name of a device on Windows
        desk.copies.keep(RUN, file, name)
        ended(desk)
    assert sorted(path.name for path in loras.iterdir()) == sorted(["my fox_ 1_2.safetensors", OTHER])
    desk.copies._file(RUN, OTHER).write_bytes(b"another step")
    desk.copies.keep(RUN, OTHER, "my fox: 1/2")
    copy(desk, str(loras), name=OTHER)
    ended(desk)
    assert (loras / "my fox_ 1_2-2.safetensors").is_file() and "under another name" in desk._main({"open": RUN})


def test_a_copy_that_ends_with_the_text_of_the_one_before_is_shown_as_ended(desk, loras, monkeypatch):
    before = copy(desk, str(loras))
    ended(desk)
    shown = desk.show(before["place"])
    assert "Copied: " in shown["main"]
    (loras / FILE).unlink()
    release = threading.Event()
    whole = runs_copy.copy_into
    monkeypatch.setattr(runs_copy, "copy_into", lambda *args, **named: release.wait(20) and whole(*args, **named))
    again = shown | desk.act(before["place"], event("copy", FILE))
    assert "Copied: " not in again["main"]
    release.set()
    ended(desk)
    assert "Copied: " in desk.tick(again["client"], before["place"])["main"]


def test_undoing_a_keep_says_where_the_copy_stays(desk, loras):
    desk.copies.keep(RUN, FILE, "")
    desk.copies.keep(RUN, FILE, None)
    assert "stays" not in said(desk)
    desk.page.project.keep(TAB, {"copy_to": str(loras)})
    desk.copies.keep(RUN, FILE, "")
    ended(desk)
    desk.copies.keep(RUN, FILE, None)
    assert str(loras / FILE) in said(desk) and (loras / FILE).is_file()


def test_what_the_folders_program_does_not_read_of_the_file_is_said(desk, loras, tmp_path):
    path = desk.copies._file(RUN, FILE)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{layer}.weight": torch.ones(8), f"{layer}.on_input": torch.tensor(0)}, path)
    copy(desk, str(loras))
    ended(desk)
    shown = desk._main({"open": RUN})
    assert "Copied: " in shown and "ComfyUI does not read it" in shown and 'data-act="convert_lora"' in shown
    assert desk.act({"open": RUN}, event("convert_lora", FILE))["tabs"].selected == "Tools"
    form = ToolForm(desk.page, tasks.named("convert_lora").card)
    filled = {"file": str(path), "network_type": "lora", "base_model": desk.page.engine.run_job(RUN).model.base_model}
    assert form.task.name == "convert_lora" and form.values() == filled
    (tmp_path / "mine").mkdir()
    copy(desk, str(tmp_path / "mine"))
    ended(desk)
    assert "does not read it" not in desk._main({"open": RUN}), "of a folder of no known program nothing is known"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("a file")])
def test_a_folder_that_cannot_be_used_is_refused_at_once_and_not_remembered(desk, tmp_path, make):
    make(tmp_path / "wrong")
    for text in (str(tmp_path / "wrong"), "", "  ", "\0"):
        with pytest.raises(ProblemsError) as error:
            copy(desk, text)
        assert error.value.problems[0].fix
    assert desk.page.project.tab_state(TAB) == {} and not desk.copies._copies


def test_a_remembered_folder_that_is_gone_is_told(desk, loras):
    copy(desk, str(loras))
    ended(desk)
    (loras / FILE).unlink()
    loras.rmdir()
    with refused("copy.missing-folder"):
        desk.act({"open": RUN}, event("copy", OTHER))
    desk.copies.keep(RUN, OTHER, "")
    message = desk.page.browsers.of(None).message
    assert [each["code"] for each in message["problems"]] == ["copy.missing-folder"]
    assert not loras.exists() and len(read_kept(desk.page.workspace.runs / RUN)) == 1


def test_a_missing_folder_is_created_for_the_copy_only_where_this_browser_asked_for_it(desk, tmp_path):
    folder, browsers = tmp_path / "ComfyUI" / "new" / "loras", desk.page.browsers
    desk.copies.create_folder({}, browsers.of(None))
    with refused("copy.missing-folder"):
        copy(desk, str(folder))
    desk.copies.create_folder({}, browsers.of("another"))
    assert not folder.exists() and not desk.copies._copies
    (tmp_path / "ComfyUI").write_text("a file in the way")
    with pytest.raises(ProblemsError):
        desk.copies.create_folder({}, browsers.of(None))
    (tmp_path / "ComfyUI").unlink()
    with refused("copy.missing-folder"):
        copy(desk, str(folder))
    desk.copies.create_folder({}, browsers.of(None))
    ended(desk)
    assert [each.name for each in folder.iterdir()] == [FILE] and desk.copies.folder("lora") == folder
    desk.copies.create_folder({}, browsers.of(None))
    ended(desk)
    assert len([*folder.iterdir()]) == 1, "once"


@pytest.mark.parametrize("name", ["", "..", "../job.json", "job.json", "/etc/passwd", "one-step00000060.safetensors"])
def test_only_files_of_the_run_are_copied(desk, loras, name):
    with pytest.raises(ProblemsError):
        copy(desk, str(loras), name=name or "x")
    assert list(loras.iterdir()) == []


def test_copies_wait_for_each_other_and_a_cancelled_one_leaves_nothing(desk, loras, monkeypatch):
    go, begun = threading.Event(), threading.Event()
    real = runs_copy.copy_into

    def slow(source, folder, cancel, report, name):
        report(0.5, "copying")
        begun.set()
        go.wait(60)
        return real(source, folder, cancel, report, name)

    monkeypatch.setattr(runs_copy, "copy_into", slow)
    copy(desk, str(loras))
    assert begun.wait(60)
    desk.act({"open": RUN}, event("copy", OTHER))
    shown = desk._main({"open": RUN})
    assert "50%" in shown and "Waiting for another copy" in shown and shown.count('data-act="uncopy"') == 2
    with pytest.raises(ProblemsError, match="is being copied"):
        desk.act({"open": RUN}, event("copy", FILE))
    desk.act({"open": RUN}, event("uncopy", FILE))
    go.set()
    ended(desk)
    assert "Cancelled" in desk._main({"open": RUN}) and [path.name for path in loras.iterdir()] == [OTHER]


def test_cancel_closes_the_panel(desk):
    place = {"open": RUN}
    assert (
        "copy-folder" in desk.act(place, event("copy-to", FILE))["copy"]
        and desk.copy_act(place, event("shut"))["copy"] == ""
    )


def test_leaving_the_run_closes_the_panel(desk):
    place = {"open": RUN}
    desk.act(place, event("copy-to", FILE))
    panel = desk.act(place, event("back"))["copy"]
    assert panel == ""


# -- a shared page


@pytest.fixture
def shared(tmp_path):
    page = make_page(tmp_path, shared=True, real=True)
    make_run(page.workspace.runs, RUN, saved=(20,))
    yield RunHandlers(page)
    page.engine.close()


def test_a_shared_page_answers_the_same_for_what_is_outside_whether_or_not_it_is_there(shared, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "file").write_text("mine")
    (shared.page.workspace.outputs / "out").symlink_to(tmp_path / "outside")
    answers = set()
    for outside in ("outside", "nowhere", "file", "outputs/out", "outputs/../outside", "outputs/.atelier"):
        text = str(tmp_path / outside)
        with pytest.raises(ProblemsError) as error:
            copy(shared, text)
        assert error.value.codes == ["shared.path-closed"]
        answers.add(str(error.value).replace(text, "THE FOLDER"))
    assert len(answers) == 1
    assert list((tmp_path / "outside").iterdir()) == [] and shared.page.project.tab_state(TAB) == {}


def test_a_shared_page_copies_into_its_own_folders_and_shows_no_other(shared, tmp_path):
    (tmp_path / "owner").mkdir()
    shared.page.project.keep(TAB, {"copy_to": str(tmp_path / "owner")})  # chosen on the machine itself
    assert shared.copies.folder("lora") is None and str(tmp_path / "owner") not in shared._main({"open": RUN})
    assert "owner" not in shared.act({"open": RUN}, event("copy-to", FILE))["copy"]
    wants = {"files": str(tmp_path / "owner"), "kind": "folder"}
    assert shared.page.roots.holds(shared.page.models.parts("Runs", {"wants": wants})["browse"]["folder"])
    inside = shared.page.workspace.outputs / "for-comfy"
    inside.mkdir()
    copy(shared, str(inside))
    ended(shared)
    assert (inside / FILE).is_file()
