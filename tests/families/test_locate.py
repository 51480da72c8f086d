"""What the settings of a model are told before anything is loaded."""

import pytest

from core.families.locate import check_family, model_problems
from core.formats.detect import ModelKind
from core.generation.plan.files import find_sources
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from core.settings.model import ModelSettings
from tests.models import tiny_file, tiny_folder
from tests.refusals import refused


@pytest.mark.parametrize("name", ["sdxl", "sd2"])
def test_clip_skip_is_advised_against_where_the_family_leaves_out_layers_itself(tmp_path, name):
    workspace = Workspace(tmp_path / "outputs", PROJECT / "models", PROJECT / "presets")
    base = str(tiny_folder(name, tmp_path / name))
    (found,) = model_problems(ModelSettings(base_model=base, clip_skip=2), workspace)
    assert (found.level, found.code, found.where) == ("advice", f"model.clip-skip-{name}", "model.clip_skip")
    assert model_problems(ModelSettings(base_model=base), workspace) == []
    assert model_problems(ModelSettings(base_model="models/starter", clip_skip=2), workspace) == []


def test_a_clip_skip_beyond_the_layers_of_the_text_encoder_is_refused():
    workspace = Workspace(PROJECT / "outputs", PROJECT / "models", PROJECT / "presets")
    last, beyond = (ModelSettings(base_model="models/starter", clip_skip=number) for number in (4, 5))
    assert model_problems(last, workspace) == []
    (found,) = model_problems(beyond, workspace)
    assert (found.level, found.code, found.where) == ("error", "model.clip-skip-layers", "model.clip_skip")
    with refused("model.clip-skip-layers"):
        find_sources(GenerateJob(model=beyond), workspace)


def test_articles_are_those_that_people_say(tmp_path):
    for name, article in (("sd1", "an SD"), ("sdxl", "an SDXL"), ("flux", "a Flux")):
        with refused("model.other-family", f"This is {article}"):
            check_family(ModelKind("checkpoint", name, "diffusers", None, ""), tmp_path, "sd2")
    with refused("model.other-family", "choose an SD 1.x model"):
        check_family(ModelKind("checkpoint", "sdxl", "diffusers", None, ""), tmp_path, "sd1")


def test_a_vae_of_another_family_is_named(tmp_path):
    workspace = Workspace(tmp_path / "outputs", PROJECT / "models", PROJECT / "presets")
    sdxl, sd2 = (str(tiny_folder(name, tmp_path / name)) for name in ("sdxl", "sd2"))
    (found,) = model_problems(ModelSettings(base_model=sdxl, vae=sd2), workspace)
    assert (found.level, found.code) == ("warning", "vae.other-family")
    assert "0.18215, which is not SDXL's" in found.what
    (found,) = model_problems(ModelSettings(base_model="models/starter", vae=sdxl), workspace)
    assert "0.13025, which is not SD 1.x's" in found.what
    assert model_problems(ModelSettings(base_model=sdxl, vae=sdxl), workspace) == []
    assert model_problems(ModelSettings(base_model="models/starter", vae=sd2), workspace) == []
    files = {name: str(tiny_file(name, tmp_path / f"{name}.safetensors")) for name in ("sdxl", "sd2")}
    for model, wrong, right in ((sdxl, files["sd2"], files["sdxl"]), ("models/starter", files["sdxl"], files["sd2"])):
        found = model_problems(ModelSettings(base_model=model, vae=wrong), workspace)
        assert [each.code for each in found] == ["vae.other-family"], "of a checkpoint in one file"
        job = build(GenerateJob, {"model": {"base_model": model, "vae": wrong}})
        assert "vae.other-family" in [each.code for each in find_sources(job, workspace).notes]
        assert model_problems(ModelSettings(base_model=model, vae=right), workspace) == []


@pytest.mark.parametrize("name", ["sd1.5", "SDXL", "owner/name"])
def test_a_model_that_can_be_downloaded_is_no_unknown_name_and_its_download_is_named(tmp_path, name):
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models", PROJECT / "presets")
    (found,) = model_problems(ModelSettings(base_model=name), workspace)
    assert found.code == "model.not-downloaded" and found.where == "model.base_model"
    assert f"--download.hub_id {name}" in found.fix


def test_a_name_that_is_none_leads_to_those_that_can_be_typed(tmp_path):
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models", PROJECT / "presets")
    found, vae = model_problems(ModelSettings(base_model="sd15-of-mine", vae="None"), workspace)
    assert "sd15, sd21, sdxl" in found.fix
    assert (vae.code, vae.where) == ("model.not-found", "model.vae") and "sd15" not in vae.fix
