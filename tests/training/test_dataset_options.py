"""What the dataset's options do to a training, seen in its losses, its weights and what it read."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from core.settings.flags import merge
from core.training.loop import update
from tests.refusals import refused
from tests.selection import slow_unless


def start(training):
    assert training.start() == "done"
    return training


def weights(training):
    return load_file(training.file())


def same(a, b) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def folder(images, tmp_path):
    """folder(name, count): a copy of the first starter images, in square so that all share a bucket."""

    def make(name: str, count: int = 4):
        made = tmp_path / name
        made.mkdir()
        for path in sorted(images.glob("*.png"))[:count]:
            Image.open(path).convert("RGB").resize((128, 128)).save(made / path.name)
            shutil.copy(path.with_suffix(".txt"), made)
        return str(made)

    return make


def source(path, **more):
    return {"folder": path, **more}


@pytest.mark.slow
def test_regularization_is_shown_as_often_and_weighs_what_it_is_told(train, folder):
    subject, classes = folder("subject", 2), folder("class", 4)

    def losses(**dataset):
        schedule = {"max_train_epochs": 2, "max_train_steps": None, "seed": 7}
        training = train(dataset={"folder": None, "train_batch_size": 1, **dataset}, schedule=schedule)
        return start(training).losses()

    both = [source(subject), source(classes, role="regularization")]
    assert len(losses(sources=both[:1])) == 4
    silent, heard = losses(sources=both, prior_loss_weight=0.0), losses(sources=both)
    assert len(silent) == len(heard) == 8
    assert sum(loss == 0.0 for loss in silent.values()) == 4 and all(loss > 0 for loss in heard.values())


@pytest.mark.slow
def test_the_loss_weight_of_a_folder_scales_its_loss(train, folder):
    path = folder("subject")
    plain = start(train(dataset={"folder": None, "sources": [source(path)]}, schedule={"max_train_steps": 1}))
    twice = start(
        train(dataset={"folder": None, "sources": [source(path, loss_weight=2.0)]}, schedule={"max_train_steps": 1})
    )
    assert twice.losses()[1] == pytest.approx(2 * plain.losses()[1], rel=1e-6)


@pytest.mark.slow
def test_folders_of_different_network_strength_train_apart_and_differently(train, folder):
    first, second = folder("first", 2), folder("second", 3)

    def run(strength):
        sources = [source(first), source(second, network_multiplier=strength)]
        return start(train(dataset={"folder": None, "sources": sources}, schedule={"max_train_steps": 3}))

    one, half = run(1.0), run(0.5)
    assert one.losses()[1] != half.losses()[1]  # together in one bucket they share batches; apart they do not
    assert not same(one, half)
    with refused("dataset.network-multiplier-zero", "second"):
        run(0.0)


@pytest.mark.slow
def test_preserved_images_begin_with_no_loss_for_the_network_changes_nothing_yet(train, folder):
    kept = source(folder("kept", 2), custom_attributes={"diff_output_preservation": True})
    both = {"folder": None, "sources": [kept, source(folder("subject", 2))], "train_batch_size": 1}
    still = {"learning_rate": 1e-12}
    losses = start(train(dataset=both, schedule={"max_train_steps": 4}, optimizer=still)).losses()
    low, high = sorted(losses.values())[:2], sorted(losses.values())[2:]
    assert low == pytest.approx([0.0, 0.0], abs=1e-9) and min(high) > 1e-3
    for method in ({}, {"kind": "embedding"}):
        word = {"token_string": "zunkel"}
        with refused("prior.nothing-to-train"):
            train(dataset={"folder": None, "sources": [kept]}, method=method, embedding=word).start()


@pytest.mark.slow
def test_a_mask_that_covers_nothing_teaches_nothing_and_one_that_covers_all_is_none(train, folder, tmp_path):
    path = folder("subject")

    def run(color):
        masks = tmp_path / f"masks {color}"
        masks.mkdir()
        for image in Path(path).glob("*.png"):
            Image.new("L", (128, 128), color).save(masks / image.name)
        masked = source(path, masked_loss=True, conditioning_data_dir=str(masks))
        return start(train(dataset={"folder": None, "sources": [masked]}, schedule={"max_train_steps": 2}))

    plain = start(train(dataset={"folder": None, "sources": [source(path)]}, schedule={"max_train_steps": 2}))
    assert set(run(0).losses().values()) == {0.0}
    assert run(255).losses() == pytest.approx(plain.losses(), rel=1e-5)


@pytest.mark.slow
def test_transparency_as_a_mask_hides_what_is_transparent(train, folder):
    path = folder("subject")
    for file in Path(path).glob("*.png"):
        image = Image.open(file).convert("RGBA")
        image.putalpha(Image.new("L", image.size, 0))
        image.save(file)
    training = start(train(dataset={"folder": path, "alpha_mask": True}, schedule={"max_train_steps": 1}))
    assert training.losses() == {1: 0.0}
    plain = start(train(dataset={"folder": path}, schedule={"max_train_steps": 1}))
    assert plain.losses()[1] > 0


@pytest.mark.slow
def test_held_out_images_never_train(train, folder, monkeypatch):
    seen = set()
    original = update.micro_batch

    def watch(run, epoch, batch, timesteps):
        seen.update(placed.image.relative for placed, _ in batch.items)
        return original(run, epoch, batch, timesteps)

    monkeypatch.setattr(update, "micro_batch", watch)
    training = train(
        dataset={"folder": folder("subject"), "train_batch_size": 1},
        validation={"validation_split": 0.5},
        schedule={"max_train_epochs": 3, "max_train_steps": None},
    )
    start(training)
    assert len(seen) == 2 and len(training.losses()) == 6


EVERYTHING = {
    "in turn, of several sizes, mirrored": {
        "dataset": {
            "more_resolutions": [80],
            "flip_aug": True,
            "short_batches": "refill",
            "alpha_color": "#102030",
        },
        "captions": {
            "shuffle_caption": True,
            "caption_tag_dropout_rate": 0.3,
            "token_warmup_step": 4,
            "caption_dropout_every_n_epochs": 2,
            "trigger_word": "sks",
        },
    },
    "encoded at each step": {"dataset": {"random_crop": True, "color_aug": True, "flip_aug": True}},
    "regularized": {"dataset": {"prior_loss_weight": 0.5}},
    "mean of the latents": {"memory": {"latent_draw": "mean"}},
}


@pytest.mark.slow(only=("in turn, of several sizes, mirrored",))
@pytest.mark.parametrize("name", slow_unless(["in turn, of several sizes, mirrored"].__contains__, EVERYTHING))
def test_a_stopped_run_goes_on_bit_for_bit_with_these_too(train, folder, images, name, monkeypatch):
    classes = folder("class", 3)
    sources = [source(classes, role="regularization"), source(str(images), samples_per_epoch=3)]
    groups = merge({"dataset": {"folder": None, "sources": sources}}, EVERYTHING[name])
    groups["schedule"] = {"max_train_steps": 7, "seed": 7}
    whole = start(train(**groups))
    broken = train(**groups)

    def stop_after_three(line):
        if line["kind"] == "steps" and line["steps"][-1] >= 3:
            broken.token.cancel()

    broken.on_line = stop_after_three
    monkeypatch.setattr("core.training.loop.losses.EVENT_SECONDS", 0.0)
    assert broken.start() == "stopped"
    rest = start(broken.again())
    assert rest.losses() == whole.losses()
    assert same(whole, rest)
