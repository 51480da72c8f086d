"""What jobs name outside themselves: each such setting is declared as one, and a shared page keeps to its folders."""

from __future__ import annotations

import json
import ntpath
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import BaseModel

import core.record.allowed as allowed
from core.engine.engine import Engine
from core.engine.owner import hand_in
from core.engine.queue import as_guest
from core.record.allowed import lies_in_on_windows
from core.record.problems import ProblemsError
from core.record.regular import is_special_on_windows
from core.record.run_about import read_about, write_person
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace, display_path, is_share
from core.settings.base import about_of, union_members
from core.settings.check import build
from core.settings.job import JOBS, GenerateJob, TrainJob
from core.settings.named import WRITTEN, Limits, admit, closed_path_problem, leads_out, limit_problems, named_in
from core.settings.presets.files import to_values
from tabs.form.folder_browser import nearest
from tabs.roots import Roots

READ = set(  # paths that are only read, or changed in place by tools that look where they write
    "in_json replacements_file control_image image folder conditioning_data_dir reg_data_dir metadata_file thumbnail image_path mask_path"
    " images captions folders guide_image from_file region_map sample_prompts_file metadata_thumbnail".split()
)
FREE = {  # texts that name nothing outside the job, and why
    "words of captions and prompts": "trigger_word caption_prefix caption_suffix caption_separator keep_tokens_separator"
    " secondary_separator write_missing class_word prompt negative_prompt clip_prompt caption token_string init_word class_caption"
    " sample_prompts identifier class_tokens replacements tags after find replace_with implications separator new_separator filter prefix"
    " suffix remove_words only ad_prompt ad_negative_prompt",
    "classes of a detector": "ad_model_classes",
    "tags of captions": "undesired_tags wanted_tags tag_replacement always_first_tags",
    "prompts of captioners, and phrases of captions": "system_prompt caption_start person_name words_to_avoid required_words"
    " openers",
    "searched in names of images and filled in from them, never opened": "pattern expression replaced",
    "names of texts within files": "sidecar_keys category_order excluded_categories text_fields",
    "compared with the numbers of changes, never opened": "undo",
    "a color by its pattern": "alpha_color",
    "names of settings": "x_axis y_axis z_axis",
    "values of settings, held to the same where the cells are planned (core/generation/grids/plan.py)": "x_values y_values"
    " z_values",
    "four numbers": "gradual_latent_unsharp_params",
    "an ending by its pattern, of files beside the images": "caption_extension tags_extension captions_to tags_to",
    "code, allowed by its own list (core/record/allowed.py)": "dataset_class optimizer_type lr_scheduler_type",
    "a module, allowed by the owner's list (core/record/allowed.py), and text for it": "from_module prompter_module_args",
    "layers of a model by their names": "pag_layers slg_layers seg_layers layers exclude_layers layer_dims",
    "names of files from fields, without what leads out of the folder (core/generation/images/output.py)": "file_pattern"
    " folder_pattern",
    "numbers, and names of presets": "block_weights lbws",
    "numbers": "block_lr block_dims block_alphas conv_block_dims conv_block_alphas down_lr_weight mid_lr_weight up_lr_weight"
    " base_weights_multiplier ratios lr_warmup_steps lr_decay_steps steps",
    "arguments by name, numbers and words for a class": "optimizer_args lr_scheduler_args",
    "written into files as metadata": "training_comment metadata_title metadata_author metadata_description metadata_license"
    " metadata_tags metadata_usage_hint metadata_trigger_phrase metadata_merged_from metadata_preprocessor set_keys",
    "compared with the keys of a file's metadata": "remove_keys",
    "compared with names of images, never opened": "validation_images",
    "compared with names of saved styles": "styles",
    "compared with names of runs and of measures": "run measures",
    "handed to the loss with each image": "custom_attributes",
    "a word by which folders share batches": "batch_group",
    "a place in a repository, beside one that is marked": "huggingface_path_in_repo",
    "a title at wandb, beside a marked tracker": "wandb_run_name",
}
NOT_MARKED = {name for names in FREE.values() for name in names.split()}


def groups(model: type[BaseModel], seen=None) -> set[type[BaseModel]]:
    """A job's model with all models within it, in lists too."""
    seen = set() if seen is None else seen
    if model in seen:
        return seen
    seen.add(model)
    for info in model.model_fields.values():
        for kind in _classes(info.annotation):
            if issubclass(kind, BaseModel):
                groups(kind, seen)
    return seen


def _classes(annotation) -> set[type]:
    found = set()
    for member in union_members(annotation):
        arguments = getattr(member, "__args__", ())
        if arguments and getattr(member, "__origin__", None) is not None and "Literal" not in str(member.__origin__):
            for each in arguments:
                found |= _classes(each)
        elif isinstance(member, type):
            found.add(member)
    return found


def holds_text(annotation) -> bool:
    return str in _classes(annotation) or "str" in str(annotation).split("Literal")[0] or "JsonValue" in str(annotation)


def what_named(info) -> str:
    return about_of(info).get("names", "")


def test_every_setting_with_text_says_what_it_names_or_is_known_to_name_nothing():
    fields = [
        (group, name, info)
        for job in JOBS.values()
        for group in groups(job)
        for name, info in group.model_fields.items()
    ]
    texts = {(group.__name__, name): what_named(info) for group, name, info in fields if holds_text(info.annotation)}
    assert len(texts) > 80
    unknown = {place for place, what in texts.items() if not what and place[1] not in NOT_MARKED}
    assert unknown == set(), "mark it with setting(names=...), or add it to FREE with the reason"
    both = {place for place, what in texts.items() if what and place[1] in NOT_MARKED}
    assert both == set(), "a setting of this name is in FREE: give yours another name, or take the name out of FREE"


@pytest.fixture
def space(tmp_path):
    space = Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")
    for folder in (space.outputs, space.models, space.presets, space.private):
        folder.mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "there.txt").write_text("x")
    (space.outputs / "way").symlink_to(tmp_path / "secret")
    return space


def marked() -> list[tuple[str, str, str, type]]:
    """(task, group, setting, what) of every marked setting of every job, those of folders and LoRAs with their list."""
    found = []
    for task, model in JOBS.items():
        for group, info in model.model_fields.items():
            for name, each in info.annotation.model_fields.items():
                if what := what_named(each):
                    found.append((task, group, name, what))
                for kind in _classes(each.annotation):
                    if issubclass(kind, BaseModel):
                        found += [
                            (task, group, f"{name}.{inner}", what_named(deep))
                            for inner, deep in kind.model_fields.items()
                            if what_named(deep)
                        ]
    return found


def job_with(task: str, group: str, name: str, text: str, space: Workspace):
    """A job whose one setting says this."""
    model = JOBS[task]
    outer, _, inner = name.partition(".")
    if inner:
        needed = {"sources": {"folder": str(space.outputs / "a")}, "nets": {"file": str(space.outputs / "a")}}
        values = {outer: [needed.get(outer, {}) | {inner: text}]}
    else:
        kind = str(model.model_fields[group].annotation.model_fields[outer].annotation)
        values = {outer: [text] if "list" in kind else text}
    if group == "images":
        values = {"folder": str(space.outputs / "a")} | values
    return build(model, {group: values})


SHARES = ("//server/share/a", "\\\\server\\share\\a", "\\\\?\\UNC\\server\\share", "/\\server/a", " //server/share")
PATHS = ("path", "path or name", "word=path", "state")


def test_no_path_setting_of_any_job_leads_out(space, tmp_path):
    outside = tmp_path / "secret"
    ways = [
        outside,
        outside / "there.txt",
        outside / "gone.txt",
        f"{space.outputs}/../secret",
        f"{space.outputs}/way/there.txt",
    ]
    ways += ["/etc/passwd", "~/x", "~root/x", "../x", "outputs/../../x", f"{space.private}/queue.json", f"'{outside}'"]
    ways += [f"{space.outputs}/.ATELIER/queue.json", "a/../../../x", f" {outside} ", "a\0b", f'"{outside}']
    ways += [*SHARES, "file:///etc/passwd", "file://server/share/a", f"file://{outside}"]
    ways += [
        f"\u202a{outside}",
        f"\u200b'\ufefffile://{outside}'",
        "file:%2Fetc",
        "file:/%2e%2e/etc",
        "\u202a//server/share/a",
    ]
    limits = Limits.of(space)
    places = [each for each in marked() if each[3] in PATHS]
    assert {name for _, _, name, _ in places} >= {
        "base_model",
        "vae",
        "sources.folder",
        "loras.file",
        "copy_to",
        "resume",
        "output",
    }
    for number, (task, group, name, what) in enumerate(places):
        for way in map(str, ways[number % 4 :: 4]):
            found = limit_problems(job_with(task, group, name, way, space), limits)
            assert found and found[0].where.startswith(f"{group}.{name.split('.')[0]}"), (task, name, way)
        if what == "word=path":
            assert limit_problems(job_with(task, group, name, f"fox={outside}", space), limits)
        inside = str(space.outputs / "runs" / "x.safetensors")
        assert not limit_problems(job_with(task, group, name, inside, space), limits), (task, name)


def test_a_path_is_checked_as_written_and_as_it_is_read_from_a_pasted_text(space):
    # To which a path that begins with an invisible character is relative
    limits = Limits.of(replace(space, allowed=(PROJECT,)))
    for text in ("\u202a/etc/passwd", "file:///etc/passwd", "\u200b//server/share/a", "'\u202a/etc/passwd'"):
        assert not limits.allows(text), text
        for where, job in (("generate.embeddings", "generate"), ("model.base_model", "train")):
            group, name = where.split(".")
            values = {group: {name: [text] if job == "generate" else text}}
            assert limit_problems(build(JOBS[job], values), limits), (where, text)
    job = build(TrainJob, {"dataset": {"folder": f"\u202afile://{space.outputs}/a%20b"}})
    assert job.dataset.folder == f"{space.outputs}/a b" and not limit_problems(job, limits)


def personal_folders(space: Workspace) -> list[Path]:
    """Every folder that Workspace has for each person alone, of this one."""
    names = [name for name, each in vars(Workspace).items() if isinstance(each, property)]
    assert {"images", "grids"} <= set(names)
    other = replace(space, person="somebody")
    folders = {name: getattr(space, name) for name in names if getattr(space, name) != getattr(other, name)}
    return [folder for name, folder in folders.items() if space.person or not name.startswith("personal")]


def test_what_somebody_else_has_alone_is_closed_to_a_person_in_every_setting(space):
    owner, anna, ben = (replace(space, person=name) for name in ("", "anna", "ben"))
    closed = [each / name for one in (owner, ben) for each in personal_folders(one) for name in ("", "a/b.png")]
    (space.outputs / "link").symlink_to(ben.images)
    closed += [
        space.outputs / "link",
        space.outputs / "PEOPLE" / "ben",
        space.outputs / "people" / "anna" / ".." / "ben",
    ]
    above = [space.outputs, space.outputs / "people"]  # read with their subfolders
    open_ = [*(each for each in personal_folders(anna) if not each.is_relative_to(space.private)), space.datasets / "x"]
    roots = {each.person: Roots(each, local=False) for each in (owner, anna)}
    for folder in closed:
        assert not roots["anna"].holds(folder), folder
        for ask in (roots["anna"].check, roots["anna"].check_written):
            with pytest.raises(ProblemsError) as told:
                ask(str(folder))
            assert str(anna.images) in told.value.problems[0].fix
    assert all(roots["anna"].holds(folder) for folder in open_) and all(map(roots[""].holds, closed))
    limits, owners = Limits.of(anna), Limits.of(owner)
    for way in ("a\0b", *SHARES, str(space.private), "~root/x"):
        assert "somebody else" not in closed_path_problem(way, "a field", limits).what
    for task, group, name, what in marked():
        if what in PATHS:
            for folder in [*closed, *above]:
                text = f"fox={folder}" if what == "word=path" else str(folder)
                assert limit_problems(job_with(task, group, name, text, space), limits), (task, name, text)
            for folder in open_:
                assert not limit_problems(job_with(task, group, name, str(folder), space), limits), (task, name, folder)
            assert not limit_problems(job_with(task, group, name, str(ben.images), space), owners)
    # names may lie in outputs
    for name in ("people/ben/images/a.safetensors", "outputs/people/ben/images", "outputs\\grids\\x"):
        job = build(TrainJob, {"model": {"base_model": name}})
        assert limit_problems(job, limits) and not limit_problems(job, owners)


def test_a_setting_that_is_written_to_names_no_run_of_somebody_else(space):
    anna, runs = replace(space, person="anna"), {}
    for person in ("anna", "ben", ""):
        runs[person] = RunFolder.create(space.runs, person or "old", {})
        write_person(runs[person], person)
    paths = [(name.rpartition(".")[2], f"{group}.{name}") for _, group, name, what in marked() if what == "path"]
    assert [where for name, where in paths if not {name, where} & (WRITTEN | READ)] == [], "is it read or written?"
    for task, group, name, what in marked():
        if what == "path":
            for person, run in runs.items():
                job = job_with(task, group, name, str(run.samples / "a.png"), space)
                found = [each.code for each in limit_problems(job, Limits.of(anna))]
                is_written = {name, f"{group}.{name}"} & WRITTEN and person != "anna"
                assert found == (["runs.not-yours"] if is_written else []), (task, group, name, person)
                assert not limit_problems(job, Limits.of(space))


def test_the_engine_takes_what_a_person_may_name_also_after_their_login_is_removed(space):
    anna, ben = (replace(space, person=name) for name in ("anna", "ben"))
    engine = Engine(space, device="cpu", holder="a test")
    try:
        engine.people, engine.limits = frozenset({"anna", "ben"}), Limits.of(ben)  # the page that was made last
        jobs = {each.person: build(GenerateJob, {"output": {"outdir": str(each.images)}}) for each in (anna, ben)}
        with as_guest("anna"):
            mine = engine.submit("generate", jobs["anna"])
            with pytest.raises(ProblemsError):
                engine.submit("generate", jobs["ben"])
        assert engine.submit("generate", jobs["anna"]), "the owner"
        engine.people = frozenset({"ben"})
        assert engine.workspace_of(engine._queue.get(mine)).images == anna.images
        run = engine._new_folder(replace(engine._queue.get(mine), task="train"), build(TrainJob, {}))
        assert read_about(run).person == "anna"
    finally:
        engine.close()


def test_a_share_is_told_by_its_text_without_a_look_at_it(space, monkeypatch):
    """Windows signs in to a share as soon as it is looked at."""
    for text in [*SHARES[:4], Path("//server/share")]:
        assert is_share(text), text
    for text in ("/server", "C:\\a", "\\\\?\\C:\\a", "models/starter", "", "file://x"):
        assert not is_share(text), text
    looked: list[str] = []
    for name in ("stat", "lstat", "scandir", "listdir", "readlink"):
        there = getattr(os, name)

        def noted(path, *rest, there=there, **more):
            looked.append(str(path))
            return there(path, *rest, **more)

        monkeypatch.setattr(os, name, noted)
    roots, job = Roots(space, local=False), build(TrainJob, {"dataset": {"folder": SHARES[0]}})
    looked.clear()
    assert limit_problems(job, roots.limits) and display_path(SHARES[0]) == SHARES[0]
    nearest(roots, Path(SHARES[0]))
    assert not roots.holds(SHARES[0]) and [path for path in looked if "server" in path] == []


def test_names_of_models_stay_names(space):
    limits = Limits.of(space)
    for text in ("starter", "owner/model", "models/starter", "my lora", "a.safetensors", "20260101-101010_run"):
        values = {"model": {"base_model": text}, "network": {"network_weights": text}, "resume": {"resume": text}}
        assert limit_problems(build(TrainJob, values), limits) == []


def test_what_is_there_and_what_is_not_get_the_same_answer_outside(space, tmp_path, monkeypatch):
    from core.formats.hub.references import resolve
    from core.generation.model.library import find, find_file

    limits = Limits.of(space)
    there, gone = str(tmp_path / "secret" / "there.txt"), str(tmp_path / "secret" / "gone.txt")
    for task, group, name, what in marked():
        if what in PATHS:
            one, other = (limit_problems(job_with(task, group, name, text, space), limits) for text in (there, gone))
            assert [each.what.replace(there, gone) for each in one] == [each.what for each in other]
    monkeypatch.setattr(allowed, "_open_folders", None)
    monkeypatch.setattr(allowed, "_keys_lent", False)
    allowed.keep_files_inside(limits.folders)
    for look in (lambda text: resolve(text, space.models, space.outputs), lambda text: find("lora", text, space)):
        said = []
        for text in (there, gone):
            with pytest.raises(ProblemsError) as told:
                look(text)
            said.append(str(told.value.problems[0].what).replace(text, "it"))
        assert said[0] == said[1]
    assert find_file("README.md", space) is None  # the project's folder is not open either


def test_parts_of_names_lead_nowhere_on_any_page(space):
    for way in ("../x", "a/../../x", "/x", "\\x", "C:x", "..", "a\\..\\..\\x", "a\0"):
        assert leads_out(way), way
        for name in ("log_prefix", "log_tracker_name"):
            with pytest.raises(ProblemsError):
                admit(build(TrainJob, {"logging": {name: way}}), None)
    for name in ("fox", "a/b", "x..y", "run: 2", "läuft"):
        assert not leads_out(name), name
    assert limit_problems(build(TrainJob, {"logging": {"log_tracker_name": "aux"}}), Limits.of(space))


def test_keys_are_the_owners_unless_lent(space, monkeypatch):
    from core.record import secrets

    jobs = [
        {"hub": {"huggingface_repo_id": "owner/x"}},
        {"logging": {"log_with": "wandb"}},
        {"logging": {"log_with": "all"}},
    ]
    for values in jobs:
        assert limit_problems(build(TrainJob, values), Limits.of(space))
        assert not limit_problems(build(TrainJob, values), Limits.of(space, keys=True))
    assert limit_problems(
        build(TrainJob, {"logging": {"log_tracker_config": str(space.outputs / "x.toml")}}), Limits.of(space, True)
    )
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setattr(allowed, "_open_folders", None)
    monkeypatch.setattr(allowed, "_keys_lent", False)
    assert secrets.secret("huggingface_token") == "hf_abcdefgh"
    allowed.keep_files_inside([space.outputs])
    assert secrets.secret("huggingface_token") is None
    from core.formats.hub.references import _token

    assert _token() is False
    for name, value in allowed.limits_of_launched().items():
        monkeypatch.setenv(name, value)
    allowed.take_limits()
    assert secrets.secret("huggingface_token") is None
    allowed.keep_files_inside([space.outputs], keys=True)
    assert secrets.secret("huggingface_token") and allowed.KEYS_LENT in allowed.limits_of_launched()


def test_a_shared_page_fetches_from_the_hub_alone(space):
    for text in ("https://127.0.0.1/x.safetensors", "http://169.254.169.254/x", "https://example.org/m.safetensors"):
        assert limit_problems(build(JOBS["download"], {"download": {"hub_id": text}}), Limits.of(space)), text
    for text in ("owner/name", "owner/name/file.safetensors", "sd15"):
        assert not limit_problems(build(JOBS["download"], {"download": {"hub_id": text}}), Limits.of(space)), text


def test_the_engine_takes_no_such_job_whatever_made_it(space, tmp_path):
    bad = build(TrainJob, {"dataset": {"folder": str(tmp_path / "secret")}})
    good = build(GenerateJob, {})
    engine = Engine(space, device="cpu", holder="a test")
    try:
        waited = engine._queue.add("train", "before it was shared", to_values(bad))
        engine.limits = Limits.of(space)
        with pytest.raises(ProblemsError):
            engine.submit("train", bad)
        assert engine.submit("generate", good)
        hand_in(space, "train", "by hand", to_values(bad))
        hand_in(space, "train", "no job", {"nonsense": 1})
        from core.engine.owner import read_inbox

        read_inbox(space, engine._queue_handed_in)
        states = {entry.title: entry.state for entry in engine.queue()}
        assert states["by hand"] == "failed" and states["no job"] == "failed"
        engine._run_on_device(waited)
        assert engine._queue.get(waited.id).state == "failed" and not list(space.outputs.glob("runs/*"))
        with pytest.raises(ProblemsError):
            engine.light(lambda job, task: "done", bad).wait(60)
        assert engine.light(lambda job, task: "done", good).wait(60) == "done"
    finally:
        engine.close()


def test_a_run_is_not_continued_with_settings_that_lead_out(space, tmp_path):
    from core.record.run_folder import RunFolder
    from core.settings.presets.files import dump

    job = build(TrainJob, {"dataset": {"folder": str(space.outputs)}})
    run = RunFolder.create(space.runs, "x", dump(job, task="train"))
    engine = Engine(space, device="cpu", holder="a test")
    engine.limits = Limits.of(space)
    try:
        before = json.loads(run.job_file.read_text())
        with pytest.raises(ProblemsError):
            engine.continue_run(run.name, {"saving": {"copy_to": str(tmp_path / "secret")}})
        assert json.loads(run.job_file.read_text()) == before and engine.queue() == []
    finally:
        engine.close()


def test_every_named_value_is_found_however_deep():
    values = {
        "dataset": {"folder": "a", "sources": [{"folder": "b", "metadata_file": "c"}]},
        "network": {"base_weights": ["d", "e"]},
    }
    found = {(named.where, named.value) for named in named_in(build(TrainJob, values))}
    assert found >= {
        ("dataset.folder", "a"),
        ("dataset.sources.0.folder", "b"),
        ("dataset.sources.0.metadata_file", "c"),
        ("network.base_weights", "d"),
        ("network.base_weights", "e"),
    }


WINDOWS = ["C:\\Atelier\\outputs", "D:\\models"]


@pytest.mark.parametrize(
    "path", ["C:\\Atelier\\outputs\\a.txt", "c:/atelier/OUTPUTS/b", "\\\\?\\C:\\Atelier\\outputs\\long", "D:\\models"]
)
def test_plain_windows_paths_inside_are_inside(path):
    assert lies_in_on_windows(path, WINDOWS)


@pytest.mark.parametrize(
    "path",
    [
        "C:\\Atelier\\outputs2\\a",
        "C:\\Atelier\\outputs\\..\\x",
        "C:Atelier\\outputs\\a",
        "\\Atelier\\outputs\\a",
        "E:\\models",
    ]
    + [
        "\\\\server\\share\\a",
        "//server/share",
        "\\\\?\\UNC\\server\\share\\a",
        "\\\\.\\C:\\Atelier\\outputs\\a",
        "\\\\.\\PhysicalDrive0",
    ]
    + [
        "\\\\?\\GLOBALROOT\\Device\\x",
        "\\\\?\\Volume{1}\\x",
        "C:\\Atelier\\outputs\\a.txt:b",
        "C:\\Atelier\\outputs\\con",
    ]
    + [
        "C:\\Atelier\\outputs\\LPT1.txt",
        "C:\\Atelier\\outputs\\a. \\b",
        "C:\\Atelier\\outputs\\a.",
        "C:\\Atelier\\outputs\\com¹",
        "",
    ],
)
def test_what_windows_reads_otherwise_is_outside(path):
    assert not lies_in_on_windows(path, WINDOWS)


def test_a_share_is_inside_where_the_folders_lie_on_it():
    assert lies_in_on_windows("\\\\nas\\atelier\\outputs\\a", ["\\\\nas\\atelier\\outputs"])
    assert not lies_in_on_windows("\\\\nas2\\atelier\\outputs\\a", ["\\\\nas\\atelier\\outputs"])


def test_no_mixture_of_parts_leads_out_on_windows():
    rng = random.Random(7)
    parts = ["..", ".", "a", "outputs", "Atelier", "C:", "\\", "/", "\\\\", "con", "x:y", "?", "~", " ", "b."]
    for _ in range(3000):
        text = "C:\\Atelier\\outputs\\" + "".join(rng.choice(parts) + rng.choice(["\\", "/", ""]) for _ in range(5))
        if lies_in_on_windows(text, WINDOWS):
            plain = ntpath.normpath(text)
            assert plain.lower().startswith(("c:\\atelier\\outputs", "d:\\models"))
            assert not any(is_special_on_windows(part) for part in plain.split("\\")[1:])
