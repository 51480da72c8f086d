"""What the dataset's options do to a training, seen in its losses, its weights and what it read."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from core.settings.flags import merge
from tests.refusals import refused


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
        schedule = {"max_train_epochs": 1, "max_train_steps": None, "seed": 7}
        training = train(dataset={"folder": None, "train_batch_size": 1, **dataset}, schedule=schedule)
        return start(training).losses()

    both = [source(subject), source(classes, role="regularization")]
    assert len(losses(sources=both[:1])) == 2
    silent, heard = losses(sources=both, prior_loss_weight=0.0), losses(sources=both)
    assert len(silent) == len(heard) == 4
    assert sum(loss == 0.0 for loss in silent.values()) == 2 and all(loss > 0 for loss in heard.values())


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
def test_transparency_as_a_mask_hides_what_is_transparent(train, folder):
    losses = {}
    for shown in (1.0, 0.25):
        path = folder(f"subject {shown}")
        for file in Path(path).glob("*.png"):
            image = Image.open(file).convert("RGBA")
            alpha = Image.new("L", image.size, 0)
            alpha.paste(255, (0, 0, int(image.width * shown), image.height))
            image.putalpha(alpha)
            image.save(file)
        dataset, noise = {"folder": path, "alpha_mask": True}, {"mask_mean": "image"}
        job = train(dataset=dataset, noise=noise, schedule={"max_train_steps": 1})
        losses[shown] = start(job).losses()[1]
    assert 0 < losses[0.25] < 0.6 * losses[1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "groups",
    [
        {"network": {"train_text_encoder": True}},
        {"method": {"kind": "fine_tune"}, "optimizer": {"learning_rate": 1e-4}},
    ],
    ids=["LoRA", "fine-tune"],
)
def test_outside_of_masks_the_base_model_holds_the_prediction(train, folder, groups):
    """At the first step the model still is the base model, so fully transparent images have no loss; with half of each image
    masked it grows as soon as the other half has moved the weights."""
    whole, half = folder("clear"), folder("half")
    for path, share in ((whole, 0.0), (half, 0.5)):
        for file in Path(path).glob("*.png"):
            image = Image.open(file).convert("RGBA")
            alpha = Image.new("L", image.size, 0)
            alpha.paste(255, (0, 0, int(image.width * share), image.height))
            image.putalpha(alpha)
            image.save(file)

    def losses(path, weight, steps):
        more = {"dataset": {"folder": path, "alpha_mask": True}, "schedule": {"max_train_steps": steps}}
        return start(train(**merge(groups, more), noise={"masked_prior_preservation_weight": weight})).losses()

    assert losses(whole, 5.0, 1) == {1: pytest.approx(0.0, abs=1e-9)}
    free, held = losses(half, 0.0, 2), losses(half, 5.0, 2)
    assert held[1] == pytest.approx(free[1], rel=1e-6) and held[2] > free[2] * (1 + 1e-4)
