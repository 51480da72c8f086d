"""Trainings of a ControlNet and of an LLLite: they begin as the model, resume to the bit, and their files are known, begun with
and loaded."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.control.controlnet_file import load_control_net
from core.dataset.preflight import preflight
from core.diffusion.schedule import sd_alpha_bar, snr
from core.families import family
from core.record.events import CONTROL_IMAGE, WITHOUT_CONTROL
from core.settings.methods import in_force
from core.settings.rules import ineffective, training_problems
from core.tools.models.inspect import inspect
from core.training.building.objective import objective_of
from core.training.checks.before_start import problems_before_start
from core.training.loop.sources import FrozenText, Latents
from core.training.memory.plan import facts_of, memory_plan
from tests.models import tiny_folder
from tests.training.conftest import METHODS, STARTER
from tests.training.untrained import distances

START = {"controlnet": "controlnet_model_name_or_path", "lllite": "weights"}
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {name: str(tiny_folder(name, place / name)) for name in ("sd2", "sdxl")}


def specified(training):
    """Architecture, title, resolution and prediction type of the file's metadata."""
    with safe_open(training.file(), "pt") as file:
        said = file.metadata()
    return tuple(said[f"modelspec.{name}"] for name in ("architecture", "title", "resolution", "prediction_type"))


@pytest.mark.slow
@every_method
def test_it_begins_as_the_model_and_its_file_begins_another(method, groups, train, at_first_step):
    two = {"schedule": {"max_train_steps": 2}}
    whole, plain = train(**groups(method, **two)), train(**two)
    assert whole.start() == plain.start() == "done"
    assert whole.losses()[1] == pytest.approx(plain.losses()[1], rel=1e-5), "nothing is added before the first step"
    assert whole.losses()[2] != plain.losses()[2]
    tensors = load_file(whole.file())
    facts, kind = inspect(whole.file()), "controlnet" if method == "controlnet" else "controlnet_lllite"
    assert (facts["kind"], facts["family"], facts["offered"]) == (kind, "sd1", True)
    suffix = {"controlnet": "controlnet", "lllite": "control-net-lllite"}[method]
    assert specified(whole) == (f"stable-diffusion-v1/{suffix}", "t", "64x64", "epsilon")

    one = {"saving": {"save_model_as": "pt"}, "schedule": {"max_train_steps": 1}}
    again = train(**groups(method, **{method: {START[method]: str(whole.file())}}, **one))
    assert again.start() == "done" and inspect(again.file("t.pt"))["kind"] == kind

    def state(training):
        return {name: value.clone() for name, value in training.run.passes.method.state_dict().items()}

    trained = at_first_step(state, **groups(method, **{method: {START[method]: str(whole.file())}}))
    fresh = at_first_step(state, **groups(method))
    assert trained.keys() == fresh.keys()
    assert any(not torch.equal(trained[name], fresh[name]) for name in fresh)
    if method == "controlnet":
        unet = family("sd1").load(STARTER).denoiser
        tensors = load_control_net(whole.file(), unet, "sd1").state_dict()
    assert trained.keys() >= tensors.keys() and tensors
    assert all(torch.equal(trained[name], tensors[name]) for name in tensors)


@pytest.mark.slow
@every_method
def test_of_sdxl_with_samples_checkpointing_and_validation(method, groups, train, images, models):
    lines = [f"a fox --d 3 --s 2 --w 72 --h 64 --cn {path}" for path in sorted(images.glob("*.png"))[:2]]
    more = {
        "model": {"base_model": models["sdxl"]},
        "dataset": {"bucket_reso_steps": 8, "flip_aug": True},
        "validation": {"validation_split": 0.4},
        "memory": {"gradient_checkpointing": True, "cache_latents": "off"},
        "optimizer": {"learning_rate": 1e-2},
    }
    training = train(**groups(method, **more, samples={"sample_prompts": lines}))
    assert training.start() == "done"
    shown = {(each["step"], each["index"]): training.folder.path / each["file"] for each in training.lines("sample")}
    steps = sorted({step for step, _ in shown})
    assert steps[:3] == [CONTROL_IMAGE, WITHOUT_CONTROL, 0] and len(shown) == 2 * len(steps) == 8
    images_of = {place: Image.open(path) for place, path in shown.items()}
    assert images_of[CONTROL_IMAGE, 1].size == (72, 64) and images_of[CONTROL_IMAGE, 0] != images_of[CONTROL_IMAGE, 1]
    assert images_of[WITHOUT_CONTROL, 0] == images_of[0, 0] != images_of[steps[-1], 0], "it begins as the model"
    begin, *_, end = training.lines("validated")
    assert begin["loss"] != end["loss"] and begin["effect"] == 0 and end["effect"] > 1e-3
    assert inspect(training.file())["family"] == "sdxl"
    suffix = {"controlnet": "controlnet", "lllite": "control-net-lllite"}[method]
    assert specified(training) == (f"stable-diffusion-xl-v1-base/{suffix}", "t", "64x64", "epsilon")


@pytest.mark.slow
def test_a_controlnet_is_saved_as_a_folder_that_diffusers_loads_and_another_begins_with(groups, train):
    training = train(**groups("controlnet", saving={"save_model_as": "diffusers_safetensors", "save_every_n_steps": 2}))
    assert training.start() == "done" and training.file("t-step00000002").is_dir()
    own = train(**groups("controlnet"))
    assert own.start() == "done"
    unet = family("sd1").load(STARTER).denoiser
    wanted = load_control_net(own.file(), unet, "sd1").state_dict()
    for found in (
        ControlNetModel.from_pretrained(training.file("t")),
        load_control_net(training.file("t"), unet, "sd1"),
    ):
        for name, value in found.state_dict().items():
            assert torch.equal(value.float(), wanted[name]), name
    assert inspect(training.file("t"))["kind"] == "controlnet"
    start = {START["controlnet"]: str(training.file("t"))}
    assert train(**groups("controlnet", controlnet=start)).start() == "done"


@pytest.mark.slow
def test_of_sd2_the_file_has_the_names_of_sd2(groups, train, models):
    training = train(**groups("controlnet", model={"base_model": models["sd2"]}, schedule={"max_train_steps": 1}))
    assert training.start() == "done"
    names = load_file(training.file())
    assert names and all(name.startswith("control_model.") for name in names)
    said = ("stable-diffusion-v2-768-v/controlnet", "t", "64x64", "v")  # as the folder's scheduler says
    assert specified(training) == said


def test_cached_captions_are_other_ones_at_the_next_epoch(groups, images, train, monkeypatch, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(images, folder)
    for path in folder.glob("*.txt"):
        path.write_text("a fox, b, c, d, e, f, g")
    shown, cached, batch, states = {}, set(), Latents.batch, FrozenText.states

    def noted(self, epoch, items, addresses=(), captions=()):
        for (placed, _), each in zip(items, captions, strict=False):
            shown.setdefault(placed.key, {})[epoch] = each
        return batch(self, epoch, items, addresses, captions)

    monkeypatch.setattr(Latents, "batch", noted)
    monkeypatch.setattr(FrozenText, "states", lambda self, captions: cached.update(captions) or states(self, captions))
    two = {"schedule": {"max_train_steps": None, "max_train_epochs": 2}, "captions": {"shuffle_caption": True}}
    own = {"folder": str(folder), "train_batch_size": 5, "enable_bucket": False}
    assert train(**groups("lllite", dataset=own, **two)).start() == "done"
    assert len(shown) == 5 and all(len(each) == 2 for each in shown.values())
    assert any(len(set(each.values())) == 2 for each in shown.values())
    assert cached >= {each for epochs in shown.values() for each in epochs.values()}


@pytest.mark.slow
def test_the_control_learning_rate_is_a_group_of_its_own(groups, at_first_step):
    def rates(training):
        return {
            group["name"]: (group["lr"], len(group["params"])) for group in training.run.stepper.optimizer.param_groups
        }

    one = at_first_step(rates, **groups("controlnet"))
    assert one.keys() == {"unet"} and one["unet"][0] == 1e-3
    two = at_first_step(rates, **groups("controlnet", controlnet={"control_net_lr": 5e-3}))
    assert (two["unet"][0], two["controlnet"][0]) == (1e-3, 5e-3)
    assert two["controlnet"][1] == 26 + 16 and two["unet"][1] + two["controlnet"][1] == one["unet"][1]


@pytest.mark.slow
def test_the_untrained_model_is_the_model_without_it(groups, at_first_step):
    for method in METHODS:
        changed, same = at_first_step(distances, **groups(method))
        assert changed > 1e-4 and same == 0


NOISE = {
    "min_timestep": 200,
    "max_timestep": 300,
    "zero_terminal_snr": True,
    "ip_noise_gamma": 0.1,
    "ip_noise_gamma_random_strength": True,
    "noise_offset": 0.1,
    "noise_offset_random_strength": True,
    "multires_noise_iterations": 6,
    "debiased_estimation_loss": True,
}


@pytest.mark.slow
def test_with_compatibility_settings_that_sd_scripts_ignores_have_no_effect_and_are_named(
    groups, at_first_step, make_job, workspace, models
):
    def trained_with(training):
        job, objective = training.run.job, training.run.passes.objective
        assert objective.settings == training.run.passes.job.noise == job.noise == training.inputs.job.noise
        return {name: value for name in NOISE if (value := getattr(job.noise, name)) == NOISE[name]}, job.captions

    def advice(method, base, **more):
        job = make_job(**groups(method, model={"base_model": base, **kohya}, noise=NOISE, **weighted, **more))
        found = problems_before_start(job, workspace, preflight(job, workspace), "cpu")
        return ineffective(job).keys() | {each.where for each in found if each.code == "settings.no-effect"}

    kohya, weighted = {"compatibility": "sd-scripts-0.10"}, {"captions": {"weighted_captions": True}}
    names = {f"noise.{name}" for name in NOISE.keys() - {"noise_offset"}}
    theirs, captions = at_first_step(trained_with, **groups("controlnet", model=kohya, noise=NOISE, **weighted))
    assert theirs == {"noise_offset": 0.1} and not captions.weighted_captions
    assert names | {"captions.weighted_captions"} <= advice("controlnet", str(STARTER))
    for method in METHODS:  # of SDXL
        told = advice(method, models["sdxl"])
        assert not names & told and "captions.weighted_captions" in told
        job = in_force(make_job(**groups(method, model=kohya, noise=NOISE)), "sdxl")
        assert all(getattr(job.noise, name) == value for name, value in NOISE.items())


@pytest.mark.parametrize(
    ("method", "base", "compatibility", "prediction", "weight"),
    [
        ("controlnet", "sdxl", "sd-scripts-0.10", "v", "epsilon"),
        ("controlnet", "sdxl", "sd-scripts-0.9", "v", "epsilon"),
        ("controlnet", "sdxl", "none", "v", "v"),
        ("controlnet", "sdxl", "sd-scripts-0.10", "epsilon", "epsilon"),
        ("controlnet", "sd1", "none", "v", "v"),
        ("lllite", "sdxl", "sd-scripts-0.10", "v", "v"),
    ],
)
def test_debiased_estimation_of_an_sdxl_controlnet_is_that_of_noise_prediction_with_compatibility_alone(
    method, base, compatibility, prediction, weight, groups, make_job
):
    """sd-scripts does not tell it of v-prediction: 1 / SNR ** .5 in place of 1 / (SNR + 1)."""
    model = {"compatibility": compatibility, "prediction": prediction}
    job = in_force(make_job(**groups(method, model=model, noise={"debiased_estimation_loss": True})), base)
    loaded = SimpleNamespace(family=base, prediction=prediction)
    objective = objective_of(job, SimpleNamespace(device="cpu"), loaded)
    every = torch.arange(1000)
    ratio = snr(sd_alpha_bar()).clip(max=1000)
    forms = {"epsilon": ratio**-0.5, "v": 1 / (ratio + 1)}
    torch.testing.assert_close(objective.weight(every), forms[weight].float())
    assert objective.prediction == prediction


@pytest.mark.slow
def test_with_compatibility_sd1_trains_on_signed_control_images_and_samples_show_them_from_0_to_1(
    groups, train, images, monkeypatch
):
    from diffusers.models.controlnets.controlnet import ControlNetModel

    seen, real = [], ControlNetModel.forward

    def spy(net, *given, controlnet_cond, **more):
        seen.append((torch.is_grad_enabled(), bool(controlnet_cond.min() < 0), controlnet_cond))
        return real(net, *given, controlnet_cond=controlnet_cond, **more)

    monkeypatch.setattr(ControlNetModel, "forward", spy)
    kohya = {"model": {"compatibility": "sd-scripts-0.10"}, "schedule": {"max_train_steps": 1}}
    path = min(images.glob("*.png"))
    samples = {"sample_prompts": [f"a fox --s 1 --w 64 --h 128 --cn {path}"], "sample_every_n_epochs": 1}
    assert train(**groups("controlnet", **kohya, samples=samples)).start() == "done"
    assert {(trains, signed) for trains, signed, _ in seen} == {(True, True), (False, False)}
    shown = next(hint for trains, _, hint in seen if not trains)[0]
    whole = Image.open(path).convert("RGB").resize((64, 128), Image.Resampling.LANCZOS)
    assert (shown.permute(1, 2, 0) - torch.tensor(np.array(whole)) / 255).abs().max() < 1e-2


@pytest.mark.slow
def test_the_bias_of_the_output_begins_as_asked(groups, at_first_step):
    def biases(training):
        tensors = training.run.passes.method.state_dict()
        return torch.cat([value for name, value in tensors.items() if name.endswith("up.0.bias")])

    assert not at_first_step(biases, **groups("lllite")).any()
    drawn = at_first_step(biases, **groups("lllite", lllite={"zero_bias": False}))
    assert 0.9 / 16**0.5 < float(drawn.abs().max()) <= 1 / 16**0.5, "uniform up to 1 / sqrt(hidden dimension)"


@every_method
def test_what_it_does_not_use_is_said(method, groups, make_job):
    job = make_job(**groups(method))
    unused = ineffective(job).keys()
    assert {"network.rank", "dataset.masked_loss", "embedding.token_string", "method.prior"} <= unused
    assert "method.ema" not in unused
    assert {"method.train_text_encoder", "optimizer.text_encoder_lr"} <= unused
    assert not {"dataset.conditioning_data_dir", "memory.full_precision", f"{method}.{START[method]}"} & unused
    other = make_job(**groups("lllite" if method == "controlnet" else "controlnet"))
    assert f"{method}.{START[method]}" in ineffective(other)
    assert "control.no-folder" in [each.code for each in training_problems(make_job(**METHODS[method]))]


@pytest.mark.parametrize(
    ("method", "more", "code"),
    [
        ("controlnet", {"sharding": {"deepspeed": True}}, "control.sharding"),
        ("lllite", {"sharding": {"deepspeed": True}}, "control.sharding"),
        ("lllite", {"model": {"family": "sd2"}}, "lllite.family"),
        ("lllite", {"memory": {"torch_compile": True}}, "lllite.compile"),
        ("controlnet", {"controlnet": {"control_net_lr": 5.0}}, "learning-rate.unusual"),
        ("controlnet", {"saving": {"save_model_as": "source"}}, "saving.full-model-format"),
        ("lllite", {"saving": {"save_model_as": "diffusers"}}, "saving.full-model-format"),
    ],
)
def test_what_cannot_be_is_refused_by_name(method, more, code, groups, make_job):
    assert code in [each.code for each in training_problems(make_job(**groups(method, **more)))]
    usual = {"optimizer": {"learning_rate": 1e-4}}
    assert code not in [each.code for each in training_problems(make_job(**groups(method, **usual)))]


@pytest.mark.slow
def test_files_that_cannot_begin_it_are_named_before_the_start(groups, make_job, workspace, models, train, tmp_path):
    def told(method, **more):
        job = make_job(**groups(method, **more))
        return problems_before_start(job, workspace, preflight(job, workspace), "cpu")

    def codes(method, **more):
        return {each.code for each in told(method, **more)}

    control, lite = train(**groups("controlnet")), train(**groups("lllite"))
    assert control.start() == lite.start() == "done"
    own = {"controlnet": str(control.file()), "lllite": str(lite.file())}
    unwanted = {"control.other-family", "control.other-tensors", "lllite.other-tensors", "control.not-a-controlnet"}
    for method in METHODS:
        start = {method: {START[method]: own[method]}}
        assert not unwanted & codes(method, **start)
        nowhere = told(method, **{method: {START[method]: str(tmp_path / "nowhere.safetensors")}})
        assert f"{method}.{START[method]}" in {each.where for each in nowhere if each.level == "error"}
        of_sdxl = codes(method, **start, model={"base_model": models["sdxl"]})
        assert of_sdxl & {"control.other-family", "lllite.other-family"}
    assert "control.not-a-controlnet" in codes(
        "controlnet", controlnet={"controlnet_model_name_or_path": own["lllite"]}
    )
    assert "lllite.not-an-lllite" in codes("lllite", lllite={START["lllite"]: own["controlnet"]})
    union = {**load_file(control.file()), "lora_controlnet": torch.zeros(1)}
    save_file(union, tmp_path / "lora.safetensors")
    assert "control.unsupported-variant" in codes(
        "controlnet", controlnet={START["controlnet"]: str(tmp_path / "lora.safetensors")}
    )
    bare = {name.removeprefix("control_model."): value for name, value in load_file(control.file()).items()}
    save_file(bare, tmp_path / "theirs.safetensors")
    for file, kohya, advised in (
        (None, False, False),
        (None, True, True),
        (own["controlnet"], False, False),
        (str(tmp_path / "theirs.safetensors"), False, True),
        (str(tmp_path / "theirs.safetensors"), True, False),
    ):
        model = {"model": {"compatibility": "sd-scripts-0.10"}} if kohya else {}
        start = {"controlnet": {START["controlnet"]: file}}
        assert ("control.other-range" in codes("controlnet", **start, **model)) == advised, (file, kohya)
    of_sd2 = [
        each.where for each in told("lllite", model={"base_model": models["sd2"]}) if each.code == "lllite.family"
    ]
    assert of_sd2 == ["model.base_model"]  # once, and at what was chosen
    one = sorted((tmp_path / "few").parent.glob("*"))[0]
    (tmp_path / "few").mkdir()
    shutil.copy(one, tmp_path / "few")
    assert "control.missing" in codes("controlnet", dataset={"conditioning_data_dir": str(tmp_path / "few")})
    assert "prompts.no-control-image" in codes("controlnet", samples={"sample_prompts": ["a fox"]})


@pytest.mark.slow
@every_method
def test_the_forecast_counts_what_trains_and_its_pass(method, groups, make_job, workspace, at_first_step):
    def of(**more):
        job = make_job(**more)
        facts = facts_of(job, workspace, "cpu")
        return job, facts, memory_plan(job, facts)

    from core.settings.methods import spec_of

    (job, facts, own), (_, _, lora) = of(**groups(method)), of(network={"rank": 1})
    counted = sum(spec_of(job).trained_numbers(job, facts.family, facts.parts).values())
    trains = at_first_step(lambda training: sum(map(torch.numel, training.run.stepper._parameters)), **groups(method))
    assert counted == trains and own.gradients == 4 * counted
    assert own.weights > lora.weights
    if method == "controlnet":
        assert own.activations > lora.activations
    else:
        large = of(**groups(method, lllite={"hidden_dim": 512}))[2]
        assert large.weights > own.weights and large.activations > own.activations


@pytest.mark.slow
@every_method
def test_precision_and_the_fused_backward_pass(method, groups, train):
    one = {"schedule": {"max_train_steps": 1}}
    half = train(**groups(method, memory={"full_precision": "bf16"}, **one))
    assert half.start() == "done"
    if method == "controlnet":
        fused = {"memory": {"fused_backward_pass": True}, "optimizer": {"optimizer_type": "AdaFactor"}}
        assert train(**groups(method, **fused, **one)).start() == "done"
    eight = train(**groups(method, memory={"fp8_base_unet": True, "mixed_precision": "bf16"}, **one))
    assert eight.start() == "done"


# -- what fails or has no effect in sd-scripts


@pytest.mark.slow
def test_min_snr_and_a_noise_offset_train_in_mixed_precision_with_fp32_weights(groups, train):
    noise, model = {"min_snr_gamma": 5.0, "noise_offset": 0.1}, {"compatibility": "sd-scripts-0.10"}
    more = {"model": model, "noise": noise, "memory": {"mixed_precision": "bf16"}, "schedule": {"max_train_steps": 2}}
    training = train(**groups("controlnet", **more))
    assert training.start() == "done" and np.isfinite(list(training.losses().values())).all()
    finer = [value.to(torch.bfloat16).float() != value for value in load_file(training.file()).values()]
    assert any(each.any() for each in finer), "weights are not rounded to bf16"


def test_captions_are_dropped_in_their_epochs_alone_and_a_warm_up_ends(groups, at_first_step):
    def captions(training):
        return [sorted(training.inputs.plan.captions(epoch)) for epoch in range(4)]

    dropped = {"captions": {"caption_dropout_every_n_epochs": 2}, "schedule": {"max_train_epochs": 4}}
    shown = at_first_step(captions, **groups("lllite", **dropped))
    assert [each == [""] for each in shown].count(True) == 2
    warm = {
        "captions": {"token_warmup_step": 2, "caption_prefix": "one, two, three,"},
        "schedule": {"max_train_steps": 8},
    }
    shown = at_first_step(captions, **groups("lllite", **warm, dataset={"train_batch_size": 5}))
    assert max(map(len, shown[0])) < max(map(len, shown[-1]))


def test_caches_refuse_what_they_would_freeze(groups, make_job, workspace):
    def codes(where):
        job = make_job(**groups("controlnet", dataset={"color_aug": True}, memory={"cache_latents": where}))
        return {each.code for each in problems_before_start(job, workspace, preflight(job, workspace), "cpu")}

    code = "dataset.augmentation-with-latent-cache"
    assert code in codes("disk") and code not in codes("auto")


def test_the_same_images_train_with_two_folders_of_control_images(groups, at_first_step, images, controls, tmp_path):
    def pairs(training):
        found = [(each.image.relative, each.image.control.parent) for each in training.inputs.plan.placed]
        assert len(found) == len(set(found))
        return {folder: sum(each == folder for _, each in found) for _, folder in found}

    shutil.copytree(controls, tmp_path / "other")
    sources = [{"folder": str(images), "conditioning_data_dir": str(each)} for each in (controls, tmp_path / "other")]
    count = len(list(images.glob("*.png")))
    found = at_first_step(pairs, **groups("controlnet", dataset={"folder": None, "sources": sources}))
    assert found == {controls: count, tmp_path / "other": count}


@every_method
def test_a_state_is_put_in_force_and_left_as_it_is(method, groups, at_first_step, models):
    def kept(training):
        own = training.run.passes.method
        state = {name: value + 1 for name, value in own.state_dict().items()}
        before = dict(state)
        own.load_state_dict(state)
        now = own.state_dict()
        return state == before and all(torch.equal(now[name], value) for name, value in before.items())

    assert at_first_step(kept, **groups(method, model={"base_model": models["sdxl"]}))


def test_a_unet_that_is_let_go_of_computes_without_the_lllite(groups, at_first_step):
    """The model stays loaded for the next job."""

    def hooks(training):
        method, unet = training.run.passes.method, training.run.passes.components.denoiser
        counts = []
        for _ in range(2):
            counts.append(sum(len(layer._forward_pre_hooks) for layer in unet.modules()))
            method.release()
        return counts

    attached, left = at_first_step(hooks, **groups("lllite"))
    assert attached > 10 and left == 0
