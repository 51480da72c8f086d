"""train and prepare take a dataset file of sd-scripts: below the flags, above the preset."""

import pytest

from core.cli.main import DONE
from core.cli.options import commands, job_from, split_options
from core.cli.train import run
from core.record.problems import ProblemsError
from tests.noise import noise_images

FILE = "[[datasets]]\nresolution = 512\nbatch_size = 2\n[[datasets.subsets]]\nimage_dir = '/set'\n"


def options_for(tmp_path, *more, task="train", text=FILE, name="--dataset_config"):
    (tmp_path / "set.toml").write_text(text)
    words = ["presets/starter_lora.json", name, str(tmp_path / "set.toml"), *more]
    return split_options(words, commands()[task])


@pytest.mark.parametrize("task", ["train", "prepare"])
@pytest.mark.parametrize("name", ["--dataset-config", "--dataset_config"])
def test_the_folders_of_the_file_take_the_place_of_the_presets(tmp_path, task, name):
    options = options_for(tmp_path, task=task, name=name)
    job = job_from(task, options)
    assert [source.folder for source in job.dataset.sources] == ["/set"] and job.dataset.folder is None
    assert (job.dataset.resolution, job.dataset.train_batch_size) == (512, 2)
    assert job.saving.output_name == "glyph_style", "what the file does not know stays the preset's"
    assert "1 folder in 1 dataset." in options.advice[0].what


@pytest.mark.slow(only=("config-48-0",))
@pytest.mark.parametrize(
    ("more", "trained", "held"),
    [
        ("config", 48, 0),
        ("config --model.compatibility sd-scripts-0.10", 48, 0),
        ("--model.compatibility sd-scripts-0.10", 48, 0),
        ("", 46, 2),
        ("config --validation.best_checkpoint auto", 46, 2),
    ],
)
def test_a_check_names_every_image_that_is_held_out_and_none_is_where_sd_scripts_is_followed(
    tmp_path, capsys, more, trained, held
):
    folder = noise_images(tmp_path / "set", 48)
    words = ["presets/starter_lora.json", "--check", "--outputs", str(tmp_path / "out"), *more.split()]
    if "config" in words:
        (tmp_path / "set.toml").write_text(FILE.replace("512", "128").replace("/set", str(folder)))
        words[words.index("config") : words.index("config") + 1] = ["--dataset-config", str(tmp_path / "set.toml")]
    else:
        words += ["--dataset.folder", str(folder)]
    assert run(words) == DONE
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{trained} images") and len(said) == 1 + bool(held)
    assert not held or said[1].count(".png") == held


def test_flags_come_before_the_file(tmp_path):
    assert job_from("train", options_for(tmp_path, "--dataset.train_batch_size", "3")).dataset.train_batch_size == 3


def test_what_is_wrong_in_the_file_is_told_with_what_is_wrong_elsewhere(tmp_path):
    options = options_for(tmp_path, "--network.rnk", "3", text=FILE + "flip_augg = true\n")
    with pytest.raises(ProblemsError) as error:
        job_from("train", options)
    said = str(error.value)
    assert "datasets[0].subsets[0].flip_augg" in said and "line 6" in said and "--network.rnk" in said


def test_a_run_that_goes_on_takes_no_other_folders(tmp_path):
    with pytest.raises(ProblemsError, match="takes the settings of the run"):
        run(["--continue", "x", "--dataset_config", "set.toml"])
