"""train and prepare take a dataset file of sd-scripts: below the flags, above the preset."""

import pytest

from core.cli.options import commands, job_from, split_options
from core.record.problems import ProblemsError

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


def test_flags_come_before_the_file(tmp_path):
    assert job_from("train", options_for(tmp_path, "--dataset.train_batch_size", "3")).dataset.train_batch_size == 3


def test_what_is_wrong_in_the_file_is_told_with_what_is_wrong_elsewhere(tmp_path):
    options = options_for(tmp_path, "--network.rnk", "3", text=FILE + "flip_augg = true\n")
    with pytest.raises(ProblemsError) as error:
        job_from("train", options)
    said = str(error.value)
    assert "datasets[0].subsets[0].flip_augg" in said and "line 6" in said and "--network.rnk" in said


def test_a_run_that_goes_on_takes_no_other_folders(tmp_path):
    from core.cli.train import run

    with pytest.raises(ProblemsError, match="takes the settings of the run"):
        run(["--continue", "x", "--dataset_config", "set.toml"])
