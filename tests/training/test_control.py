"""Trainings of a ControlNet and of an LLLite: they begin as the model, resume to the bit, and their files are known, begun with
and loaded."""

import shutil

import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.dataset.preflight import preflight
from core.families import family
from core.record.events import CONTROL_IMAGE, WITHOUT_CONTROL
from core.settings.flags import merge
from core.settings.rules import ineffective, training_problems
from core.tools.inspect import inspect
from core.training.checks.before_start import problems_before_start
from core.training.memory.plan import facts_of, memory_plan
from tests.models import tiny_folder

SMALL = {"lllite": {"cond_emb_dim": 8, "hidden_dim": 16}}
METHODS = {"controlnet": {"method": {"kind": "controlnet"}}, "lllite": {"method": {"kind": "lllite"}, **SMALL}}
START = {"controlnet": "controlnet_model_name_or_path", "lllite": "weights"}
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="session")
def controls(images, tmp_path_factory):
    """A control image for each image: its negative."""
    folder = tmp_path_factory.mktemp("control")
    for path in images.glob("*.png"):
        ImageOps.invert(Image.open(path).convert("RGB")).save(folder / path.name)
    return folder


@pytest.fixture
def groups(controls):
    """groups(method, ...): those of a training of this method."""

    def make(method, **more):
        return merge(METHODS[method] | {"dataset": {"conditioning_data_dir": str(controls)}}, more)

    return make


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {name: str(tiny_folder(name, place / name)) for name in ("sd2", "sdxl")}


@every_method
def test_it_begins_as_the_model_resumes_to_the_bit_and_its_file_begins_another(method, groups, train, at_first_step):
    whole, parted, plain = train(**groups(method)), train(**groups(method)), train()
    assert whole.start() == plain.start() == "done"
    assert whole.losses()[1] == pytest.approx(plain.losses()[1], rel=1e-5), "nothing is added before the first step"
    assert whole.losses()[4] != plain.losses()[4]
    assert parted.start(stop_at=2) == "stopped" and parted.again().start() == "done"
    tensors = load_file(whole.file())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(parted.file()).items())
    facts, kind = inspect(whole.file()), "controlnet" if method == "controlnet" else "controlnet_lllite"
    assert (facts["kind"], facts["family"], facts["offered"]) == (kind, "sd1", True)
    with safe_open(whole.file(), "pt") as file:
        suffix = {"controlnet": "controlnet", "lllite": "control-net-lllite"}[method]
        assert file.metadata()["modelspec.architecture"] == f"stable-diffusion-v1/{suffix}"

    again = train(**groups(method, **{method: {START[method]: str(whole.file())}}, saving={"save_model_as": "pt"}))
    assert again.start() == "done" and inspect(again.file("t.pt"))["kind"] == kind

    def state(training):
        return {name: value.clone() for name, value in training.run.passes.method.state_dict().items()}

    trained = at_first_step(state, **groups(method, **{method: {START[method]: str(whole.file())}}))
    fresh = at_first_step(state, **groups(method))
    assert trained.keys() == fresh.keys()
    assert any(not torch.equal(trained[name], fresh[name]) for name in fresh)
    if method == "lllite":
        assert all(torch.equal(trained[name], tensors[name]) for name in tensors)


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


def test_of_sd2_the_file_has_the_names_of_sd2(groups, train, models):
    training = train(**groups("controlnet", model={"base_model": models["sd2"]}))
    assert training.start() == "done"
    names = load_file(training.file())
    assert names and all(name.startswith("control_model.") for name in names)


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


def test_the_untrained_model_is_the_model_without_it(groups, at_first_step):
    from core.diffusion.text_states import Conditioning

    def apart(training):
        passes, method = training.run.passes, training.run.passes.method
        batch = passes.latents.batch(0, [(training.run.plan.placed[0], 0)])
        given = Conditioning(passes.text.states(["a fox"]), control=batch.control)
        at = torch.tensor([500])
        with torch.no_grad():
            for weight in method.state_dict().values():
                weight.add_(0.02)
            own = passes.predict(batch.latents, at, given)
            with method.untrained():
                base = passes.predict(batch.latents, at, given)
            method.release()
        plain = family("sd1").predict(passes.components, batch.latents, at, given)
        return (own - base).abs().max(), (plain - base).abs().max()

    for method in METHODS:
        changed, same = at_first_step(apart, **groups(method))
        assert changed > 1e-4 and same == 0


def test_compatibility_trains_sd1_as_sd_scripts(groups, at_first_step):
    kohya = {"model": {"compatibility": "sd-scripts-0.10"}}

    def way(training):
        return training.run.passes.method._side.kohya

    assert at_first_step(way, **groups("controlnet", **kohya)) and not at_first_step(way, **groups("controlnet"))


def test_dropout_thins_an_lllite_while_it_trains(groups, train):
    plain, dropped = (train(**groups("lllite", lllite={"dropout": share})) for share in (0.0, 0.5))
    assert plain.start() == dropped.start() == "done"
    assert plain.losses()[1] == dropped.losses()[1] and plain.losses()[4] != dropped.losses()[4]


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
    assert {"network.rank", "dataset.masked_loss", "embedding.token_string", "method.prior", "method.ema"} <= unused
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
        ("controlnet", {"saving": {"save_model_as": "diffusers"}}, "saving.full-model-format"),
        (
            "controlnet",
            {"model": {"family": "sd1", "compatibility": "sd-scripts-0.10"}},
            "control.other-range",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(method, more, code, groups, make_job):
    assert code in [each.code for each in training_problems(make_job(**groups(method, **more)))]
    usual = {"optimizer": {"learning_rate": 1e-4}}
    assert code not in [each.code for each in training_problems(make_job(**groups(method, **usual)))]


def test_files_that_cannot_begin_it_are_named_before_the_start(groups, make_job, workspace, models, train, tmp_path):
    def codes(method, **more):
        job = make_job(**groups(method, **more))
        return {each.code for each in problems_before_start(job, workspace, preflight(job, workspace), "cpu")}

    control, lite = train(**groups("controlnet")), train(**groups("lllite"))
    assert control.start() == lite.start() == "done"
    own = {"controlnet": str(control.file()), "lllite": str(lite.file())}
    unwanted = {"control.other-family", "control.other-tensors", "lllite.other-tensors", "control.not-a-controlnet"}
    for method in METHODS:
        start = {method: {START[method]: own[method]}}
        assert not unwanted & codes(method, **start)
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
    assert "lllite.family" in codes("lllite", model={"base_model": models["sd2"]})
    one = sorted((tmp_path / "few").parent.glob("*"))[0]
    (tmp_path / "few").mkdir()
    shutil.copy(one, tmp_path / "few")
    assert "control.missing" in codes("controlnet", dataset={"conditioning_data_dir": str(tmp_path / "few")})
    assert "prompts.no-control-image" in codes("controlnet", samples={"sample_prompts": ["a fox"]})


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


@every_method
def test_precision_and_the_fused_backward_pass(method, groups, train):
    half = train(**groups(method, memory={"full_precision": "bf16"}))
    assert half.start() == "done"
    if method == "controlnet":
        fused = {"memory": {"fused_backward_pass": True}, "optimizer": {"optimizer_type": "AdaFactor"}}
        assert train(**groups(method, **fused)).start() == "done"
    eight = train(**groups(method, memory={"fp8_base_unet": True, "mixed_precision": "bf16"}))
    assert eight.start() == "done"
