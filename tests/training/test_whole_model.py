"""DreamBooth and fine-tune: the model itself trains, is saved whole, and continues to the bit."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from core.diffusion.text_states import Conditioning
from core.families import family
from core.families.locate import family_of
from core.families.saving import save_model
from core.generation.model.library import Scan
from core.training.building.setup import Training
from tests.models import tiny_folder
from tests.options import ADAFACTOR
from tests.refusals import refused

SMALL = {"resolution": 64, "bucket_reso_steps": 32, "train_batch_size": 2}
UNET = "model.diffusion_model."
CONV_IN = UNET + "input_blocks.0.0.weight"


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {name: tiny_folder(name, tmp_path_factory.mktemp("tiny") / name) for name in ("sd1", "sdxl")}


@pytest.fixture
def tune(train, folders, images):
    """A training of a tiny model, not yet started; rates are high, so that three steps are seen."""

    def make(name="sd1", **groups):
        groups = {
            "method": {"kind": "fine_tune", **groups.pop("method", {})},
            "model": {"base_model": str(folders[name]), **groups.pop("model", {})},
            "dataset": {"folder": str(images), **SMALL, **groups.pop("dataset", {})},
            "optimizer": {"learning_rate": 1e-3, **groups.pop("optimizer", {})},
            "schedule": {"max_train_steps": 3, "seed": 7, **groups.pop("schedule", {})},
            **groups,
        }
        return train(**groups)

    return make


def watched(monkeypatch, training, look):
    """Train to the end; `look(its run)` before it lets go of everything."""
    found = []
    release = Training.release

    def last_look(built):
        found.append(look(built.run))
        release(built)

    monkeypatch.setattr(Training, "release", last_look)
    assert training.start() == "done"
    return found[0]


def weights(training, name="t.safetensors"):
    return load_file(training.file(name))


@pytest.fixture(scope="session")
def base(folders):
    """The tiny SD 1 model as it is, under the names of a saved file."""
    path = folders["sd1"].parent / "base.safetensors"
    save_model(family("sd1").load(folders["sd1"]), path, ["unet", "text_encoder"], form="safetensors")
    return load_file(path)


# -- what trains and what is saved


@pytest.mark.slow
def test_dreambooth_with_class_images_changes_the_model_and_saves_one_that_others_read(train, images, tmp_path):
    classes = tmp_path / "classes"
    classes.mkdir()
    for path in sorted(images.glob("*.png"))[:2]:
        shutil.copy(path, classes)
        (classes / path.with_suffix(".txt").name).write_text("a shape")
    training = train(
        method={"kind": "dreambooth"},
        dataset={"reg_data_dir": str(classes), "train_batch_size": 1},
        optimizer={"learning_rate": 1e-4},
        schedule={"max_train_steps": 3},
        saving={"save_model_as": "diffusers_safetensors"},
        samples={"sample_prompts": ["a red circle"], "sample_steps": 2, "sample_every_n_steps": 3},
    )
    assert training.start() == "done"
    folder = training.file("t")
    ours, base = family("sd1").load(folder), family("sd1").load(training.job.model.base_model)
    for part in ("unet", "text_encoder"):
        one, other = (getattr(each, part, None) or each.text_encoders[0] for each in (ours, base))
        changed = [not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
        assert sum(changed) > 0.9 * len(changed), f"{part} trained"
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    assert torch.equal(theirs.unet.conv_in.weight, ours.denoiser.conv_in.weight)
    assert torch.equal(theirs.vae.encoder.conv_in.weight, base.vae.encoder.conv_in.weight)
    assert len(list(training.folder.samples.glob("*.png"))) == 2, "the base model's first"
    assert folder in [path for _, path in Scan(training.workspace).checkpoints()], "the Generate tab offers it"


@pytest.mark.slow
def test_one_file_of_sdxl_has_both_encoders_and_says_what_it_is(tune, folders):
    training = tune("sdxl", method={"train_text_encoder": "yes"}, saving={"save_precision": "fp32"})
    assert training.start() == "done"
    assert family_of(training.file()) == "sdxl"
    ours, base = family("sdxl").load(training.file()), family("sdxl").load(folders["sdxl"])
    for place, encoder in enumerate(ours.text_encoders):
        before = dict(base.text_encoders[place].named_parameters())
        same = {name for name, value in encoder.named_parameters() if torch.equal(value, before[name])}
        unread = {name for name in before if "layers.2." in name or "final_layer_norm" in name}
        assert same == (unread if place == 0 else set()), "of the first, the last layer and the norm are never read"
    assert not torch.equal(ours.denoiser.conv_in.weight, base.denoiser.conv_in.weight)
    with safe_open(training.file(), "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert not any(key.startswith("ss_") for key in metadata)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "method", "trains"),
    [
        ({"text_encoder_lr": (0.0, 1e-3), "unet_lr": 0.0}, {"train_text_encoder": "yes"}, {"text_encoder_2"}),
        ({}, {"block_lr": ",".join(["0"] * 9 + ["1e-3"] + ["0"] * 13)}, {"unet_block9"}),
    ],
    ids=["a rate of 0 leaves a part out", "blocks with a rate of 0 stay as they are"],
)
def test_rates_choose_what_trains(tune, folders, optimizer, method, trains):
    training = tune("sdxl", optimizer=optimizer, method=method)
    assert training.start() == "done"
    assert set(training.lines("steps")[-1]["rates"]) == trains
    ours, base = family("sdxl").load(training.file()), family("sdxl").load(folders["sdxl"])
    parts = [("unet", ours.denoiser, base.denoiser)]
    parts += [(f"te{n}", *pair) for n, pair in enumerate(zip(ours.text_encoders, base.text_encoders, strict=True), 1)]
    changed = set()
    for part, one, other in parts:
        before = dict(other.named_parameters())
        changed |= {f"{part}.{name}" for name, value in one.named_parameters() if not torch.equal(value, before[name])}
    if trains == {"text_encoder_2"}:
        assert changed and all(name.startswith("te2.") for name in changed)
    else:  # block 9 is input_blocks.8
        assert changed and all(name.startswith("unet.down_blocks.2.") for name in changed)
        assert not any("resnets.0" in name or "attentions.0" in name for name in changed)


@pytest.mark.slow
def test_blocks_at_rate_0_count_in_the_clipped_norm_where_sd_scripts_is_repeated(tune):
    """All blocks count at the first step; nothing clears what clipping leaves of them, so the norm goes on growing."""
    plain = {"optimizer_type": "SGD", "learning_rate": 1e-9, "max_grad_norm": 1e-3}
    rest = {"block_lr": ",".join(["0"] * 9 + ["1e-9"] + ["0"] * 13)}

    def norm(step, compatibility="none", **method):
        training = tune(
            "sdxl",
            optimizer=plain,
            model={"compatibility": compatibility},
            method=method,
            schedule={"max_train_steps": step, "max_train_epochs": None},
        )
        assert training.start() == "done"
        return training.lines("steps")[-1]["grad_norm"]  # a line may tell of several steps: its norm is the last one's

    assert norm(1, "sd-scripts-0.10", **rest) == pytest.approx(norm(1), rel=1e-4)
    assert norm(1, **rest) < 0.9 * norm(1)
    assert norm(3, **rest) < 0.9 * norm(3, "sd-scripts-0.10", **rest)


@pytest.mark.slow
def test_a_negative_rate_trains_away(tune, base):
    forth, back = (tune(optimizer={"learning_rate": rate, "optimizer_type": "SGD"}) for rate in (1e-3, -1e-3))
    assert forth.start() == back.start() == "done"
    assert forth.losses()[1] == back.losses()[1]
    name = UNET + "out.2.bias"
    step, other = weights(forth)[name] - base[name], weights(back)[name] - base[name]
    assert torch.dot(step.flatten(), other.flatten()) < 0


# -- continuing to the bit


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_equal(value, other[key])
        else:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])), key


@pytest.mark.slow
def test_a_text_encoder_that_stops_stays_as_it_is_by_then(tune):
    training = tune(
        method={"kind": "dreambooth", "stop_text_encoder_training": 2},
        schedule={"max_train_steps": 4},
        saving={"save_every_n_steps": 1, "save_precision": "fp32"},
    )
    assert training.start() == "done"
    states = [weights(training, f"t-step{step:08d}.safetensors") for step in (1, 2, 3)] + [weights(training)]
    text = [key for key in states[0] if key.startswith("cond_stage_model.") and key.endswith("weight")]

    def moved(one, other):
        return [not torch.equal(states[one][key], states[other][key]) for key in text]

    assert all(moved(0, 1)) and not any(moved(1, 2)) and not any(moved(2, 3))
    assert not torch.equal(states[2][CONV_IN], states[3][CONV_IN]), "the U-Net goes on"


# -- moving weights within the backward pass


@pytest.mark.slow
def test_stepping_within_the_backward_pass_gives_what_the_plain_step_gives(tune):
    """Without clipping, whose scope differs, nothing else does: not a bit."""
    groups = {"optimizer": {**ADAFACTOR, "max_grad_norm": 0.0}}
    plain = tune(**groups, memory={"full_precision": "bf16"})
    again = {"gradient_checkpointing": True}  # computes forwards once more, in the middle of it
    fused = tune(**groups, memory={"full_precision": "bf16", "fused_backward_pass": True, **again})
    grouped = tune(**groups, memory={"full_precision": "bf16", "fused_optimizer_groups": 5})
    for training in (plain, fused, grouped):
        assert training.start() == "done"
        assert training.losses() == plain.losses()
        ours, theirs = weights(plain), weights(training)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_groups_within_the_backward_pass_work_for_adamw(tune):
    plain = tune(optimizer={"max_grad_norm": 0.0})
    grouped = tune(optimizer={"max_grad_norm": 0.0}, memory={"fused_optimizer_groups": 4})
    assert plain.start() == grouped.start() == "done"
    ours, theirs = weights(plain), weights(grouped)
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_gradients_are_gone_when_the_backward_pass_ends(tune, monkeypatch):
    from core.optimization.fused import FusedBackward

    held = []
    end = FusedBackward.end

    def looked_at(self):
        held.append(sum(weight.grad is not None for weight in self._parts))
        return end(self)

    monkeypatch.setattr(FusedBackward, "end", looked_at)
    training = tune(optimizer=ADAFACTOR, memory={"fused_backward_pass": True})
    assert training.start() == "done"
    assert held == [0, 0, 0]


@pytest.mark.slow
def test_a_loss_that_is_no_number_moves_nothing_within_the_backward_pass_either(tune, monkeypatch):
    from core.training.loop import update

    plain = update.micro_batch

    def spoiled(run, epoch, batch, timesteps):
        losses = plain(run, epoch, batch, timesteps)
        return losses * float("nan") if run.state.step == 1 else losses

    one = tune(optimizer=ADAFACTOR, memory={"fused_backward_pass": True}, schedule={"max_train_steps": 1})
    assert one.start() == "done"
    monkeypatch.setattr(update, "micro_batch", spoiled)
    training = tune(optimizer=ADAFACTOR, memory={"fused_backward_pass": True})
    found = []
    release = Training.release
    monkeypatch.setattr(
        Training,
        "release",
        lambda built: (found.append(built.run.passes.components.denoiser.conv_in.weight.clone()), release(built))[1],
    )
    with refused("training.not-finite", "of step 2 "):
        training.start()
    assert torch.equal(found[0], weights(one)[CONV_IN])


# -- keeping a class


@pytest.mark.slow
def test_the_prior_without_images_asks_nothing_at_first_and_holds_the_model_back_later(tune, folders):
    groups = {"schedule": {"max_train_steps": 6}}
    free = tune(**groups)
    held = tune(**groups, method={"prior": "model", "class_caption": "a shape"}, dataset={"prior_loss_weight": 20.0})
    assert free.start() == held.start() == "done"
    assert held.losses()[1] == pytest.approx(free.losses()[1], rel=1e-6), "it still is the untrained model"
    assert held.losses()[2] > free.losses()[2]
    kind = family("sd1")
    noisy, at = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([300, 700])
    with torch.no_grad():
        seen = []
        for path in (folders["sd1"], free.file(), held.file()):
            model = kind.load(path)
            seen.append(kind.predict(model, noisy, at, Conditioning(kind.encode_captions(model, ["a shape"] * 2))))
    before, without, held_back = seen
    assert (held_back - before).norm() < 0.8 * (without - before).norm()


# -- types and averages


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "kept"),
    [
        ({"mixed_precision": "bf16"}, torch.float32),
        ({"full_precision": "bf16"}, torch.bfloat16),
    ],
)
def test_weights_that_train_keep_their_type(tune, base, monkeypatch, memory, kept):
    training = tune(memory=memory)
    types = watched(monkeypatch, training, lambda run: {weight.dtype for weight in run.stepper._parameters})
    assert types == {kept}
    ours = weights(training)
    for key in (CONV_IN, UNET + "out.2.weight"):
        assert not torch.equal(ours[key].float(), base[key].to(kept).float())


@pytest.mark.slow
def test_frozen_encoders_lie_in_the_type_that_computes(tune, monkeypatch):
    training = tune(
        "sdxl",
        memory={"mixed_precision": "bf16"},
        method={"train_text_encoder": "yes"},
        optimizer={"text_encoder_lr": (1e-4, 0.0)},
    )
    types = watched(
        monkeypatch, training, lambda run: [encoder.dtype for encoder in run.passes.components.text_encoders]
    )
    assert types == [torch.float32, torch.bfloat16]


@pytest.mark.slow
def test_the_average_is_what_is_saved_and_the_weights_go_on_as_without_it(tune, base):
    plain = tune(saving={"save_every_n_steps": 1, "save_precision": "fp32"})
    shown = tune(method={"ema": True, "ema_decay": 0.5, "ema_warmup": False})
    assert plain.start() == shown.start() == "done"
    assert shown.losses() == plain.losses()
    points = [weights(plain, f"t-step{step:08d}.safetensors")[CONV_IN] for step in (1, 2)] + [weights(plain)[CONV_IN]]
    average = base[CONV_IN]
    for point in points:
        average = 0.5 * average + 0.5 * point
    torch.testing.assert_close(weights(shown)[CONV_IN], average, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_groups_within_the_backward_pass_are_as_many_as_was_asked_for(tune, at_first_step):
    def groups(training):
        run = training.run
        return len(run.stepper.optimizer.param_groups), len({id(part) for part in run.stepper._fused._parts.values()})

    job = tune(memory={"fused_optimizer_groups": 4}).job
    values = {name: getattr(job, name).model_dump() for name in ("method", "model", "dataset", "optimizer", "memory")}
    assert at_first_step(groups, **values) == (4, 4)
