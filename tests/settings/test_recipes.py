"""The shipped recipes: each is for a family, a method and an amount of VRAM, and states nothing without need and reason."""

import json
from dataclasses import replace

import pytest

from core.record.problems import ProblemsError
from core.record.workspace import PROJECT
from core.settings.base import declared, value_of
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.presets import files as presets
from core.settings.presets.files import PresetStore, apply, differences, keeps, outside_recipes, read
from core.settings.rules import set_without_effect, training_problems
from core.training.memory.plan import memory_plan
from tests.selection import slow_unless
from tests.training.test_memory_plan import published
from workshop import recipe_docs

SETTINGS = {entry.path: entry for entry in declared(TrainJob)}
SHIPPED = [read(path) for path in sorted((PROJECT / "presets").glob("*.json"))]
RECIPE = {preset.name: preset for preset in SHIPPED if preset.kind == "recipe"}
WIDTH = {"sd1": 512, "sd2": 768, "sdxl": 1024}
SPARE = 0.9  # of the VRAM: the screen and other programs need some

every_recipe = pytest.mark.parametrize("name", RECIPE)


def users(family: str = "sd1") -> TrainJob:
    """A form whose every setting that a recipe keeps is the user's own."""
    own = {
        "model": {"base_model": "models/mine.safetensors", "family": family},
        "dataset": {"folder": "images/mira", "resolution": 640, "train_batch_size": 7, "flip_aug": True},
        "captions": {"trigger_word": "mira", "caption_suffix": "photo"},
        "embedding": {"token_string": "mira", "init_word": "cat"},
        "saving": {"output_name": "mira", "copy_to": "models/finished", "metadata_author": "me"},
        "samples": {"sample_prompts": ["mira in a garden"], "negative_prompt": "blurry"},
        "validation": {"best_checkpoint": "auto", "validation_split": 0.1},
        "logging": {"log_with": "none"},
    }
    own["dataset"]["conditioning_data_dir"] = "images/mira_canny"
    return build(TrainJob, own)


def loaded(name: str, over: TrainJob | None = None) -> TrainJob:
    job = apply(RECIPE[name], over or users(RECIPE[name].family))
    assert isinstance(job, TrainJob)
    return job


def test_what_is_the_users_is_named_as_it_is_declared():
    assert presets._REFUSED | presets._SIZES | presets._TRAINED | presets._KEPT <= set(SETTINGS)
    assert presets._REFUSED_GROUPS | presets._KEPT_GROUPS <= {entry.group for entry in SETTINGS.values()}


def test_the_recipes_cover_each_family_and_method():
    jobs = [(preset.family, apply(preset).method.kind) for preset in RECIPE.values()]
    assert 15 <= len(jobs) <= 25
    methods = {"lora", "dreambooth", "fine_tune", "embedding", "controlnet"}
    assert {kind for family, kind in jobs if family == "sd1"} == methods
    assert {"lora", "fine_tune", "controlnet", "lllite"} <= {kind for family, kind in jobs if family == "sdxl"} and (
        "sd2",
        "lora",
    ) in jobs
    assert {4, 6, 8} <= {preset.vram_gb for preset in RECIPE.values() if preset.family == "sd1"}
    assert {8, 12, 16} <= {preset.vram_gb for preset in RECIPE.values() if preset.family == "sdxl"}


@every_recipe
def test_a_recipe_says_what_it_is_for(name):
    preset = RECIPE[name]
    assert preset.title and preset.description and preset.family in WIDTH and preset.vram_gb
    assert len(preset.title) <= 60 and "\n" not in preset.description and len(preset.description) <= 120
    assert f"{preset.vram_gb} GB" in preset.title


@every_recipe
def test_a_recipe_gives_a_job_without_errors_advice_or_settings_without_effect(name):
    before, job = users(RECIPE[name].family), loaded(name)
    assert training_problems(job) == []
    stated, known = RECIPE[name].stated(), {problem.where for problem in set_without_effect(before)}
    if "captions.caption_template" in stated:  # in place of captions; the user's prefix and suffix stay in the form
        known |= {"captions.caption_prefix", "captions.caption_suffix"}
    idle = [problem.where for problem in set_without_effect(job)]
    assert [path for path in idle if path in stated or path not in known] == []


@every_recipe
def test_a_recipe_states_only_what_differs_from_the_defaults(name):
    preset, job = RECIPE[name], loaded(name)
    stated = preset.stated()
    for path, value in stated.items():
        assert not outside_recipes(SETTINGS[path])
        assert value_of(job, path) == value_of(apply(preset), path)
        assert keeps(SETTINGS[path]) or value != SETTINGS[path].default, path
    assert {"dataset.resolution", "dataset.train_batch_size"} == {path for path in stated if keeps(SETTINGS[path])}
    assert stated["dataset.resolution"] == WIDTH[preset.family]


@every_recipe
def test_each_value_of_a_recipe_has_one_line_of_reason(name):
    preset = RECIPE[name]
    assert list(preset.reasons) == list(preset.stated()), "in the order of the settings, none too many"
    for reason in preset.reasons.values():
        assert reason.endswith(".") and 15 <= len(reason) <= 120 and "\n" not in reason


@every_recipe
def test_loading_a_recipe_leaves_model_data_and_names_to_the_user(name):
    before = users(RECIPE[name].family)
    after, stated = loaded(name, before), RECIPE[name].stated()
    changed = set(differences(after, before))
    assert changed <= set(stated) | {path for path, entry in SETTINGS.items() if not keeps(entry)}
    for path in ("model.base_model", "dataset.folder", "saving.output_name", "samples.sample_prompts"):
        assert path not in changed
    for path in ("captions.trigger_word", "embedding.token_string", "saving.copy_to", "validation.validation_split"):
        assert path not in changed
    # Whatever was set before, the rest is the recipe's.
    other = build(
        TrainJob, merge(before.model_dump(mode="json"), {"network": {"rank": 99}, "noise": {"loss_type": "l1"}})
    )
    assert loaded(name, other) == after


def test_how_images_were_trained_before_gives_way_to_the_recipe():
    """Of an imported config for another size, a bucket limit below the recipe's resolution would refuse the start."""
    dataset = {
        "folder": "images/mira",
        "resolution": 128,
        "min_bucket_reso": 64,
        "max_bucket_reso": 256,
        "color_aug": True,
    }
    before = build(TrainJob, {"dataset": dataset, "model": {"clip_skip": 2, "prediction": "epsilon"}})
    after = loaded("sd15_lora_style_8gb", before)
    assert training_problems(after) == [] and after.dataset.resolution == 512 and after.model.clip_skip == 2
    assert (
        after.dataset.min_bucket_reso == 256 and after.dataset.max_bucket_reso is None and not after.dataset.color_aug
    )
    assert after.dataset.folder == "images/mira" and after.model.prediction == "epsilon"


TIGHTEST = {"sd15_lora_subject_4gb", "sd15_lora_prodigy_8gb", "sd15_dreambooth_12gb", "sdxl_lora_8gb"}


@pytest.mark.slow(
    only=(
        "sd15_lora_prodigy_8gb",
        "sd15_lora_subject_4gb",
        "sdxl_lora_8gb",
    )
)
@pytest.mark.parametrize("name", slow_unless(TIGHTEST.__contains__, RECIPE))
def test_a_recipe_fits_its_vram_by_the_memory_forecast(name):
    """With weights of the published model's sizes; `auto` is bf16 on a GPU of this kind."""
    preset, job = RECIPE[name], loaded(name)
    if job.memory.full_precision == "fp32":
        job = build(TrainJob, merge(job.model_dump(mode="json"), {"memory": {"mixed_precision": "bf16"}}))
    facts = published(preset.family, WIDTH[preset.family], job.dataset.train_batch_size)
    plan = memory_plan(job, replace(facts, images=200))
    assert plan.total < SPARE * preset.vram_gb * 2**30, plan.parts()


def test_an_opened_recipe_is_kept_with_its_title_and_reasons(tmp_path):
    store, preset = PresetStore(tmp_path), RECIPE["sdxl_lora_8gb"]
    again = store.load(store.save_copy("mine", preset))
    assert replace(again, name=preset.name) == preset
    with pytest.raises(ProblemsError) as twice:
        store.save_copy("mine", preset)
    assert twice.value.codes == ["preset.exists"]


@pytest.mark.parametrize(
    "head",
    [{"family": "sd9"}, {"vram_gb": "8"}, {"vram_gb": True}, {"reasons": ["x"]}, {"reasons": {"network.rank": 8}}],
)
def test_a_recipe_with_a_damaged_head_is_refused(tmp_path, head):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"kind": "recipe", "schema_version": 2, **head}))
    with pytest.raises(ProblemsError) as refused_for:
        read(path)
    assert refused_for.value.codes == ["preset.bad-header"]


def test_the_page_of_recipes_in_the_docs_is_fresh():
    assert recipe_docs.TARGET.read_text("utf-8") == recipe_docs.render(), "run ./launch.sh docs"
