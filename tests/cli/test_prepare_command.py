"""prepare: what it lists of a dataset, and the files it writes for other programs."""

import pytest

from core.cli.main import BAD_INPUT, DONE, main

pytestmark = pytest.mark.usefixtures("starter_set")


@pytest.fixture
def starter_set(tmp_path, monkeypatch):
    """A folder with a sound image, one with a long caption, a small one and one to be held out."""
    from PIL import Image

    folder = tmp_path / "set"
    folder.mkdir()
    for name, size, caption in (
        ("a", (256, 256), "a fox, running"),
        ("b", (320, 240), "word " * 90),
        ("c", (60, 60), "tiny"),
        ("d", (256, 256), "held out"),
    ):
        Image.new("RGB", size, (200, len(caption) % 255, 3)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    return folder


def prepare(tmp_path, *words):
    sources = f'[{{"folder": {str(tmp_path / "set")!r}, "validation_images": ["d.png"], "num_repeats": 2}}]'
    return main(
        [
            "prepare",
            "--outputs",
            str(tmp_path / "out"),
            "--dataset.sources",
            sources.replace("'", '"'),
            "--dataset.resolution",
            "128",
            "--dataset.bucket_reso_steps",
            "16",
            "--dataset.train_batch_size",
            "2",
            "--schedule.max_train_epochs",
            "3",
            *words,
        ]
    )


def test_check_lists_every_image_with_its_place_words_and_what_is_cut(tmp_path, capsys):
    assert prepare(tmp_path, "--check", "--captions.shuffle_caption", "--model.base_model", "models/starter") == DONE
    said = capsys.readouterr()
    lines = said.out.splitlines()
    first = next(line for line in lines if line.startswith("set/a.png"))
    assert "256x256 -> 128x128, x0.50, 100% kept" in first and "2 repeats" in first and "4 tokens" in first
    draws = lines[lines.index(first) + 1 : lines.index(first) + 3]
    assert {"'a fox, running'", "'running, a fox'"} >= {line.strip() for line in draws if not line.startswith("set")}
    long = lines[lines.index(next(line for line in lines if line.startswith("set/b.png"))) + 1]
    assert "cut off: 'word" in long
    assert any(line.startswith("set/d.png") and "validation" in line for line in lines)
    assert any("validation: set/d.png" in line for line in lines)
    assert lines[-1].startswith("3 images (6 with repeats) x 3 ") and lines[-1].endswith(" / batch 2 = 9 steps")
    assert "smaller than their bucket" in said.err


def test_what_the_settings_answer_is_not_left_open(tmp_path, capsys):
    from PIL import Image

    for name in ("a", "c"):
        Image.new("RGBA", (256, 256), (9, 9, 9, 0)).save(tmp_path / "set" / f"{name}.png")
    (tmp_path / "set" / "b.caption").write_text("a sentence")
    (tmp_path / "set" / "c.txt").write_text("one\ntwo")
    answers = {
        "Alpha mask, 2 images": ["--dataset.alpha_mask", "--dataset.alpha_color=#000000"],
        "Multiple caption files, 1 image": ["--captions.sidecars=joined", "--captions.caption_extension=.txt"],
        "Multi-line captions, 1 image": ["--captions.caption_lines=all"],
    }
    words = ["--check", "--captions.caption_extension=auto", "--model.base_model", "models/starter"]
    assert prepare(tmp_path, *words) == DONE
    said = capsys.readouterr().out
    assert all(f"Left open: {question}" in said for question in answers)
    for question, settings in answers.items():
        for setting in settings:
            assert prepare(tmp_path, *words, setting) == DONE
            said = capsys.readouterr().out
            assert f"Left open: {question}" not in said and said.count("Left open") == 2, setting


def test_images_without_a_caption_are_named_once(tmp_path, capsys):
    from PIL import Image

    (tmp_path / "plain").mkdir()
    Image.new("RGB", (128, 128), "red").save(tmp_path / "plain" / "a.png")
    words = ["prepare", "--check", "--outputs", str(tmp_path / "out"), "--dataset.folder", str(tmp_path / "plain")]
    assert main(words) == DONE
    assert capsys.readouterr().err.count("no caption") == 1


def test_the_captions_listed_are_those_that_the_batches_train(tmp_path, capsys):
    words = ["--captions.token_warmup_step", "40", "--captions.shuffle_caption", "--schedule.seed", "5"]
    for name in "abc":
        (tmp_path / "set" / f"{name}.txt").write_text(", ".join(f"{name}{number}" for number in range(9)))
    assert prepare(tmp_path, "--check", *words) == DONE
    listed = {line for line in capsys.readouterr().out.splitlines() if line.startswith("    '")}
    assert prepare(tmp_path, "--debug-dataset", "3", *words) == DONE
    trained = {line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("      '")}
    assert len(listed) > 5 and listed - {"    'held out'"} <= trained  # also while the number of tags still grows
    assert prepare(tmp_path, "--check", *words[:-2]) == DONE
    assert "No seed is set" in capsys.readouterr().out


def test_debug_dataset_lists_the_batches_that_training_will_see(tmp_path, capsys):
    words = ["--model.base_model", "models/starter", "--dataset.flip_aug", "--schedule.seed", "5"]
    assert prepare(tmp_path, "--debug_dataset", "2", *words) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("epoch")] == ["epoch 1", "epoch 2"]
    assert sum(line.startswith("  step ") for line in lines) == 6
    shown = [line for line in lines if " #" in line]
    assert len(shown) == 12 and not any("d.png" in line for line in shown)
    assert any("mirrored" in line for line in shown) and not all("mirrored" in line for line in shown)
    again = prepare(tmp_path, "--debug_dataset", "2", *words)
    assert again == DONE and capsys.readouterr().out.splitlines() == lines


def test_a_number_of_epochs_that_is_none_is_refused(tmp_path, capsys):
    assert prepare(tmp_path, "--debug-dataset", "many", "--model.base_model", "models/starter") == BAD_INPUT
    assert "--debug-dataset" in capsys.readouterr().err
