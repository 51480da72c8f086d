"""The demo's settings with other images: what is told, and what one step sets."""

import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from core.cli.main import DONE, main
from core.dataset.preflight import preflight
from core.families.prompt_weights import runs_of
from core.generation.prompt.sample_prompts import read_prompts
from core.record.problems import errors
from core.record.workspace import PROJECT, Workspace
from core.settings.base import declared, value_of
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.names import bad_name
from core.settings.presets.files import to_values
from core.settings.rules import training_problems
from core.training.checks.before_start import problems_without_model
from core.training.checks.demo_setup import (
    DEMO,
    MODEL,
    NAME,
    PROMPTS,
    apply_setup,
    demo,
    name_of,
    prompts_of_pairs,
    recommended_setup,
)
from tests.models import tiny_file


@pytest.fixture
def space(tmp_path):
    """A workspace with the starter as its only base model."""
    return Workspace(tmp_path / "outputs", tmp_path / "models", PROJECT / "presets")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Puts a model of a family, made once, at a path."""
    home, made = tmp_path_factory.mktemp("real"), {}

    def put(family, path):
        if family not in made:
            made[family] = tiny_file(family, home / f"{family}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made[family], path)
        return path

    return put


def folder_of(tmp_path, name="10_mira woman", sizes=((640, 800),) * 12, captions=True):
    home = tmp_path / "sets" / name
    home.mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (number, 90, 90)).save(home / f"{number}.png")
        if captions:
            (home / f"{number}.txt").write_text(f"mira on day {number}")
    return home


def chosen(folder, **groups):
    """The demo with another folder, as a first visitor's form holds it."""
    return build(TrainJob, merge(to_values(demo()), {"dataset": {"folder": str(folder)}} | groups))


def setup_of(job, space, memory=0):
    return recommended_setup(job, preflight(job, space), space, memory)


def advice(job, space):
    return {each.where for each in problems_without_model(job, space, preflight(job, space)) if each.level != "error"}


def test_the_demo_itself_is_offered_nothing(space):
    assert setup_of(demo(), space) is None
    assert not {MODEL, NAME, f"{NAME}, {PROMPTS}"} & advice(demo(), space)


def test_the_demos_model_name_and_prompts_are_told_for_other_images(space, tmp_path):
    job = chosen(folder_of(tmp_path))
    assert {MODEL, f"{NAME}, {PROMPTS}"} <= advice(job, space)
    own = chosen(folder_of(tmp_path, "b"), saving={"output_name": "mine"}, samples={"sample_prompts": ["mira"]})
    assert MODEL in advice(own, space) and not {NAME, f"{NAME}, {PROMPTS}"} & advice(own, space)


def test_the_check_on_the_command_line_says_it(tmp_path, capsys):
    folder = folder_of(tmp_path)
    words = ["train", str(DEMO), "--dataset.folder", str(folder), "--check", "--outputs", str(tmp_path / "out")]
    assert main(words) == DONE
    said = capsys.readouterr().err
    assert MODEL in said and "starter" in said and PROMPTS in said


def test_one_step_sets_everything_up_for_a_real_model(space, real, tmp_path):
    model = real("sd1", space.models / "real.safetensors")
    job = chosen(folder_of(tmp_path))
    setup = setup_of(job, space)
    made = apply_setup(job, setup)
    assert made.model.base_model == str(model) and not setup.missing_model
    assert made.dataset.resolution == 512 and made.dataset.train_batch_size == 1
    assert made.optimizer.learning_rate == 1e-4
    assert made.saving.output_name == "mira_woman"
    prompts = made.samples.sample_prompts
    assert 3 <= len(prompts) <= 4 and len(set(prompts)) == len(prompts)
    assert set(prompts) <= {f"mira on day {number}" for number in range(12)}
    report = preflight(made, space)
    assert 1500 <= report.total_steps <= 2500
    assert 4 <= report.total_steps / made.samples.sample_every_n_steps <= 16
    assert not {each.where for each in training_problems(made)} & {"optimizer.learning_rate"}
    assert setup_of(made, space) is None and MODEL not in advice(made, space)
    assert all(change.reason and change.old != change.new for change in setup.changes)
    same = {entry.path for entry in declared(TrainJob)} - {change.path for change in setup.changes}
    assert all(value_of(made, path) == value_of(job, path) for path in same)


def test_without_a_real_model_it_says_so_and_sets_what_it_can(space, tmp_path):
    job = chosen(folder_of(tmp_path))
    setup = setup_of(job, space)
    made = apply_setup(job, setup)
    assert "photographs" in setup.missing_model
    assert made.model.base_model == job.model.base_model and made.dataset.resolution == 128
    assert made.saving.output_name == "mira_woman" and made.samples.sample_prompts[0].startswith("mira")
    assert made.optimizer.learning_rate == demo().optimizer.learning_rate


def test_a_gpu_with_room_gets_sdxl_and_results_of_runs_come_last(space, real, tmp_path):
    real("sd1", space.runs / "2026-01-01_a" / "checkpoints" / "a.safetensors")
    job = chosen(folder_of(tmp_path, sizes=((1200, 1200),) * 3))
    assert "2026-01-01_a" in apply_setup(job, setup_of(job, space)).model.base_model
    real("sdxl", space.models / "xl.safetensors")
    assert "xl" in apply_setup(job, setup_of(job, space)).model.base_model
    real("sd1", space.models / "one.safetensors")
    assert "one" in apply_setup(job, setup_of(job, space)).model.base_model
    large = apply_setup(job, setup_of(job, space, memory=24 << 30))
    assert "xl" in large.model.base_model and large.dataset.resolution == 1024


@pytest.mark.parametrize(
    ("size", "resolution"), [((300, 300), 320), ((2000, 3000), 512), ((512, 512), 512), ((100, 90), 128)]
)
def test_the_resolution_is_never_far_above_the_images(space, real, tmp_path, size, resolution):
    real("sd1", space.models / "real.safetensors")
    job = chosen(folder_of(tmp_path, sizes=[size] * 3))
    assert apply_setup(job, setup_of(job, space)).dataset.resolution == resolution


@pytest.mark.parametrize(
    ("kind", "rate"), [("lora", 1e-4), ("dreambooth", 2e-6), ("fine_tune", 5e-6), ("embedding", 5e-3)]
)
def test_the_rate_follows_the_method(space, real, tmp_path, kind, rate):
    real("sd1", space.models / "real.safetensors")
    more = {"embedding": {"token_string": "zkw"}} if kind == "embedding" else {}
    job = chosen(folder_of(tmp_path), method={"kind": kind}, **more)
    made = apply_setup(job, setup_of(job, space))
    assert made.optimizer.learning_rate == rate
    if kind == "embedding":
        assert all("zkw" in prompt for prompt in made.samples.sample_prompts)


def test_what_a_person_chose_stays(space, real, tmp_path):
    real("sd1", space.models / "real.safetensors")
    own = {
        "saving": {"output_name": "mine"},
        "samples": {"sample_prompts": ["my words"]},
        "schedule": {"max_train_epochs": None, "max_train_steps": 700},
        "dataset": {"resolution": 448, "train_batch_size": 2},
        "optimizer": {"learning_rate": 3e-4},
    }
    folder = folder_of(tmp_path)
    job = chosen(folder, **merge(own, {"dataset": {"folder": str(folder)}}))
    made = apply_setup(job, setup_of(job, space))
    for group, fields in own.items():
        for name, value in fields.items():
            assert getattr(getattr(made, group), name) == value, name


def test_a_setting_altered_since_the_offer_keeps_its_value(space, tmp_path):
    job = chosen(folder_of(tmp_path))
    setup = setup_of(job, space)
    later = chosen(tmp_path / "sets" / "10_mira woman", saving={"output_name": "named_since"})
    assert apply_setup(later, setup).saving.output_name == "named_since"


def test_a_missing_base_model_ends_neither_the_offer_nor_the_checks(space, tmp_path):
    setup = setup_of(chosen(folder_of(tmp_path), model={"base_model": "gone.safetensors"}), space)
    offered = {each.path for each in setup.changes}
    assert "saving.output_name" in offered and "dataset.resolution" not in offered


def test_images_without_captions_get_words_all_the_same(space, tmp_path):
    named = chosen(folder_of(tmp_path, captions=False))
    assert apply_setup(named, setup_of(named, space)).samples.sample_prompts == ["mira woman"]
    bare = chosen(folder_of(tmp_path, "holiday", captions=False))
    assert apply_setup(bare, setup_of(bare, space)).samples.sample_prompts == ["holiday"]
    word = chosen(folder_of(tmp_path, "images", captions=False), captions={"trigger_word": "zkw"})
    assert apply_setup(word, setup_of(word, space)).samples.sample_prompts == ["zkw images"]


@pytest.mark.parametrize("upload", ["images", "images-2"])
def test_the_folder_of_loose_uploads_becomes_no_name_caption_or_prompt(space, tmp_path, upload):
    folder = folder_of(tmp_path, "any", sizes=((64, 64),) * 4, captions=False)
    space.datasets.mkdir(parents=True)
    job = chosen(folder.rename(space.datasets / upload))
    report = preflight(job, space)
    assert {row.caption for row in report.rows} == {""} and not errors(report.problems)
    made = apply_setup(job, setup_of(job, space))
    assert made.saving.output_name == "my_images" and made.samples.sample_prompts == ["a photo"]


def test_captions_that_would_not_be_read_as_prompts_are_passed_over(space, tmp_path):
    folder = folder_of(tmp_path, sizes=((64, 64),) * 4)
    for number, text in enumerate(("#1 of a row", "a cat --n dog", "a cat\na dog", "a cat")):
        (folder / f"{number}.txt").write_text(text)
    job = chosen(folder)
    assert apply_setup(job, setup_of(job, space)).samples.sample_prompts == ["a cat"]


def test_any_folders_name_gives_a_name_that_a_file_can_have():
    chance = random.Random(7)
    signs = "aZ9 _-.<>:\"|?*\\äß漢\u200b\n\t'&%$#@!()[]{}~;,=+"
    for _ in range(500):
        name, _ = name_of("/" + "/".join("".join(chance.choices(signs, k=chance.randint(1, 120))) for _ in range(2)))
        assert bad_name(name) is None and name == name.strip() and len(name.encode()) <= 100
    assert name_of("/home/mira/photos")[0] == "mira" and name_of("/images")[0] == "my_images"
    assert name_of("/sets/con")[0] == "sets"


def test_a_folder_of_no_telling_name_is_called_as_the_one_with_repeats_inside(space, tmp_path):
    folder = folder_of(tmp_path, "photos", sizes=((64, 64),) * 4)
    folder_of(tmp_path, "photos/5_mira", sizes=((64, 64),) * 2, captions=False)
    job = chosen(folder)
    setup = setup_of(job, space)
    (named,) = (change for change in setup.changes if change.path == NAME)
    assert named.new == "mira" and "5_mira" in named.reason
    prompts = apply_setup(job, setup).samples.sample_prompts
    assert prompts and all(prompt.startswith("mira on day") for prompt in prompts)  # no class tokens with captions


def test_the_demos_prompts_ask_only_for_what_its_model_draws():
    known = (
        (PROJECT / "models/starter/README.md").read_text().split("## What it knows")[1].split("It has never seen")[0]
    )
    for prompt in demo().samples.sample_prompts:
        words, _, style = prompt.partition(", ")
        assert words.removeprefix("a ") in known and style == "glyph style"
    captions = [path.read_text() for path in (PROJECT / "models/starter/images").glob("*.txt")]
    assert len(captions) == 24 and not [text for text in captions if text.startswith("a cherries")]


TAGS = "1girl, solo, mira, long hair, {}, white shirt, simple background, {}, best quality, upper body"


def test_a_tagged_set_is_proposed_short_prompts_of_what_it_shares_and_a_few_tags_of_one_image(space, tmp_path):
    folder = folder_of(tmp_path, sizes=((64, 64),) * 8)
    poses, places = ("standing", "sitting", "running", "smile"), ("outdoors", "night")
    for number in range(8):
        (folder / f"{number}.txt").write_text(TAGS.format(poses[number % 4], places[number % 2]))
    job = chosen(folder)
    prompts = apply_setup(job, setup_of(job, space)).samples.sample_prompts
    assert 3 <= len(prompts) <= 4 and all(prompt.startswith("1girl, solo, mira, long hair, ") for prompt in prompts)
    assert all(len(prompt.split(", ")) <= 7 for prompt in prompts) and len(set(prompts)) == len(prompts)
    assert any("standing" in prompt for prompt in prompts) and any("running" in prompt for prompt in prompts)


def test_nothing_is_offered_once_nothing_is_left_to_set(space, tmp_path):
    job = chosen(folder_of(tmp_path))
    made = apply_setup(job, setup_of(job, space))
    assert setup_of(made, space) is None and MODEL in advice(made, space)


def test_what_was_made_for_other_images_is_offered_anew_and_a_persons_own_stays(space, tmp_path):
    job = chosen(folder_of(tmp_path))
    setup = setup_of(job, space)
    left = {change.path for change in setup.changes}
    second = folder_of(tmp_path, "20_tom", sizes=((64, 64),) * 3)
    (second / "0.txt").write_text("tom at sea")
    later = merge(to_values(apply_setup(job, setup)), {"dataset": {"folder": str(second)}})
    moved = TrainJob(**merge(later, {"saving": {"output_name": "mine"}}))
    assert setup_of(moved, space) is None
    again = recommended_setup(moved, preflight(moved, space), space, 0, left - {NAME})
    paths = {change.path: change.new for change in again.changes}
    assert NAME not in paths and any("tom" in prompt for prompt in paths[PROMPTS])


def test_a_controlnet_is_offered_prompts_with_the_control_images_of_its_pairs(space, tmp_path):
    folder, hints = folder_of(tmp_path), folder_of(tmp_path, "hints", captions=False)
    images = {"folder": str(folder), "conditioning_data_dir": str(hints)}
    (folder / "0.txt").write_text("# no prompt")
    (folder / "1.txt").write_text("mira --n red")
    job = chosen(folder, method={"kind": "controlnet"}, dataset=images)
    made = apply_setup(job, setup_of(job, space))
    prompts, notes = read_prompts(made.samples, control=True)
    assert len(prompts) == 4 and not notes
    shown = [Path(each.control) for each in prompts]
    assert all(each.prompt == f"mira on day {path.stem}" for each, path in zip(prompts, shown, strict=True))
    assert {path.parent for path in shown} == {hints}
    (bucket,) = {row.bucket for row in preflight(made, space).rows}
    assert {(each.width, each.height) for each in prompts} == {bucket} and bucket[0] < bucket[1]


def test_a_control_image_whose_path_reads_as_an_option_is_proposed_for_no_prompt(space, tmp_path):
    folder, hints = folder_of(tmp_path), folder_of(tmp_path, "hints --d 3", captions=False)
    images = {"folder": str(folder), "conditioning_data_dir": str(hints)}
    job = chosen(folder, method={"kind": "controlnet"}, dataset=images)
    assert prompts_of_pairs(job, preflight(job, space)) is None


@pytest.mark.parametrize(
    ("captions", "word"),
    [
        (["zkw, a dog", "zkw, a cat", "a tree, zkw"], "zkw"),
        (["zkw, red, a dog", "zkw, a cat, red", "zkw, red"], "zkw"),  # several are shared: the first of each caption
        (["qxz, zkw, a dog", "zkw, qxz", "zkw, qxz"], None),
        (["zkw, a dog", "zkw, a cat"], None),  # too few to tell
        (["1girl, solo, smile", "1girl, sky", "1girl, red"], None),
        (["a photo of a fox, smile", "a photo of a fox, sky", "a photo of a fox, red"], None),
        (["1girl, solo, zkw", "1girl, zkw, sky", "1girl, red, zkw"], "zkw"),
        (["zkw, a dog", "zkw, a cat", "zkw"], None),  # a sentence
        (["w" * 40 + ", a", "b, " + "w" * 40, "w" * 40 + ", c"], "w" * 40),
        (["w" * 41 + ", a", "b, " + "w" * 41, "w" * 41 + ", c"], None),
    ],
)
def test_the_tag_that_all_captions_share_is_the_proposed_trigger_word(space, tmp_path, captions, word):
    folder = folder_of(tmp_path, sizes=((64, 64),) * len(captions), captions=False)
    for number, caption in enumerate(captions):
        (folder / f"{number}.txt").write_text(caption)
    job = chosen(folder)
    assert apply_setup(job, setup_of(job, space)).captions.trigger_word == word


def test_brackets_of_captions_are_text_in_the_proposed_prompts_too(space, tmp_path):
    folder = folder_of(tmp_path, sizes=((64, 64),) * 4, captions=False)
    for number in range(4):
        (folder / f"{number}.txt").write_text(rf"automobile_(object), red, sky, \m/, day {number}, street")
    job = chosen(folder)
    (prompt, *_) = apply_setup(job, setup_of(job, space)).samples.sample_prompts
    assert r"automobile_\(object\)" in prompt
    assert runs_of(prompt)[0][0].startswith(r"automobile_(object), red, sky, \m/")
    for group in ({"samples": {"prompt_weights": False}}, {"captions": {"weighted_captions": True}}):
        as_written = chosen(folder, **group)
        assert "automobile_(object)" in apply_setup(as_written, setup_of(as_written, space)).samples.sample_prompts[0]


@pytest.mark.parametrize(
    ("prompt", "told"), [("a fox_(animal)", True), (r"a fox_\(animal\)", False), ("a (red:1.2) fox", False)]
)
def test_a_sample_prompt_with_a_bracket_of_the_captions_is_told(space, tmp_path, prompt, told):
    folder = folder_of(tmp_path, sizes=((64, 64),) * 2, captions=False)
    for number in range(2):
        (folder / f"{number}.txt").write_text("fox_(animal), snow")
    job = chosen(folder, saving={"output_name": "mine"}, samples={"sample_prompts": [prompt]})
    codes = {each.code for each in problems_without_model(job, space, preflight(job, space))}
    assert ("prompts.caption-brackets" in codes) == told
