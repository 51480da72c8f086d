"""From which step a method acts, what it trains, and under which name its numbers are."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from core.formats.embedding_file import LAYERS
from core.formats.lora.names import ALPHA, DOWN, UP
from core.methods.controlnet import ControlNetMethod
from core.methods.ema import WeightAverage
from core.methods.embedding import EmbeddingMethod
from core.methods.full import FullMethod, trained_parts
from core.methods.lllite import LLLiteMethod
from core.methods.network import NetworkMethod
from core.networks.kinds.lora import LoraAdapter
from core.networks.network import apply_max_norm
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.method import MethodSettings
from core.settings.methods import methods, spec_of
from core.training.loop.reports import rate_name


def job_of(kind, **groups):
    return build(TrainJob, {"method": {"kind": kind, **groups.pop("method", {})}, **groups})


# ---- an average


@pytest.mark.parametrize("every", [1, 2, 3])
def test_with_warmup_the_average_looks_back_as_far_as_diffusers(every):
    """EMAModel.get_decay with its defaults for inv_gamma 1 and power 1 replaced: (1 + n) / (10 + n), at most the decay."""
    trains = nn.Parameter(torch.zeros(1))
    own = WeightAverage({"w": trains}, MethodSettings(ema=True, ema_decay=0.5, ema_warmup=True, ema_update_every=every))
    expected = 0.0
    for step in range(1, 13):
        with torch.no_grad():
            trains.fill_(float(step))
        own.after_step()
        if step % every == 0:
            taken = step // every
            keep = min(0.5**every, (1 + taken) / (10 + taken))
            expected = keep * expected + (1 - keep) * step
        assert float(own.average["w"]) == pytest.approx(expected, rel=1e-5)


# ---- whole models


@pytest.mark.parametrize(
    ("stop", "trains"), [(None, [True] * 4), (1, [True, False, False, False]), (3, [True] * 3 + [False])]
)
def test_text_encoders_train_before_the_step_at_which_they_stop_and_not_in_it(stop, trains):
    own = FullMethod(job_of("dreambooth", method={"stop_text_encoder_training": stop}), Path("model.safetensors"))
    own._trainable = {name: nn.Linear(1, 1) for name in ("unet", "text_encoder", "text_encoder_2")}
    found = []
    for step in range(4):
        own.before_micro_batch(step, 0, [])
        now = {name: next(part.parameters()).requires_grad for name, part in own._trainable.items()}
        assert now["unet"] and now["text_encoder"] == now["text_encoder_2"]
        found.append(now["text_encoder"])
    assert found == trains


@pytest.mark.parametrize(
    ("kind", "method", "text"),
    [
        ("dreambooth", {}, True),
        ("dreambooth", {"train_text_encoder": "no"}, False),
        ("dreambooth", {"stop_text_encoder_training": 0}, False),
        ("dreambooth", {"stop_text_encoder_training": 1}, True),
        ("fine_tune", {}, False),
        ("fine_tune", {"train_text_encoder": "yes"}, True),
        ("fine_tune", {"train_text_encoder": "yes", "stop_text_encoder_training": 0}, False),
    ],
)
def test_which_text_encoders_train_is_the_methods_default_the_setting_and_the_rates(kind, method, text):
    assert spec_of(job_of(kind, method=method)).trains_text(job_of(kind, method=method)) is text
    both = {"unet", "text_encoder", "text_encoder_2"} if text else {"unet"}
    assert trained_parts(job_of(kind, method=method)) == both
    assert trained_parts(job_of(kind, method=method), 1) == both - {"text_encoder_2"}
    still = job_of(kind, method=method, optimizer={"unet_lr": 0.0})
    assert trained_parts(still) == both - {"unet"}


def test_of_sdxls_first_text_encoder_what_no_loss_reaches_is_frozen():
    from core.methods.full import _freeze_unread

    layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))
    model = SimpleNamespace(encoder=SimpleNamespace(layers=layers), final_layer_norm=nn.LayerNorm(1))
    _freeze_unread(SimpleNamespace(text_model=model))
    assert [next(layer.parameters()).requires_grad for layer in layers] == [True, True, False]
    assert not any(each.requires_grad for each in model.final_layer_norm.parameters())


# ---- new words


@pytest.mark.parametrize("extended", [False, True])
def test_each_word_has_its_own_vectors_in_their_order(extended):
    """Two words of two vectors; XTI's rows go layer by layer."""
    words = {"token_string": "zunkel, brabol", "num_vectors_per_token": 2, "extended": extended}
    own = EmbeddingMethod(job_of("embedding", embedding=words))
    layers = len(LAYERS) if extended else 1
    own._tables = [SimpleNamespace(rows=torch.arange(4.0 * layers).view(-1, 1))]
    for begin, word in ((0, "zunkel"), (2, "brabol")):
        found = own.vectors(word)
        assert list(found) == (list(LAYERS) if extended else ["emb_params"])
        for layer, rows in enumerate(found.values()):
            assert rows.flatten().tolist() == [4 * layer + begin, 4 * layer + begin + 1]
    assert [path.name for path in own.extra_files(Path("a/t.safetensors"))] == ["t-brabol.safetensors"]


# ---- networks


def test_a_max_norm_is_applied_once_a_step_and_its_numbers_have_sd_scripts_names():
    own, limits = NetworkMethod(job_of("lora", network={"scale_weight_norms": 0.5}), 0), []
    facts = SimpleNamespace(scaled=torch.tensor(3), mean=torch.tensor(0.25), largest=torch.tensor(0.5))
    own.network = SimpleNamespace(apply_max_norm=lambda limit: limits.append(limit) or facts)
    found = {name: float(value) for name, value in own.after_update().items()}
    assert found == {"max_norm/keys_scaled": 3, "max_norm/average_key_norm": 0.25, "max_norm/max_key_norm": 0.5}
    assert limits == [0.5]
    off = NetworkMethod(job_of("lora", network={"scale_weight_norms": None}), 0)
    assert off.after_update() == {}


def test_a_change_is_shortened_above_the_limit_alone():
    lengths, ratios = [0.0, 0.999, 1.0, 1.001, 4.0], []
    adapters = [SimpleNamespace(norm=lambda n=n: torch.tensor(n), shorten=ratios.append) for n in lengths]
    facts = apply_max_norm(adapters, 1.0)
    assert [float(ratio) for ratio in ratios] == pytest.approx([1, 1, 1, 1 / 1.001, 0.25])
    assert int(facts.scaled) == 2 and float(facts.largest) == 1.0 and float(facts.mean) == pytest.approx(3.999 / 5)


def test_a_frozen_lora_computes_in_the_type_of_its_input_also_when_that_changes_and_new_weights_come():
    layer = LoraAdapter.fresh("lora_unet_x", nn.Linear(8, 8).requires_grad_(False), 4, 4.0, seed=1)
    for weight in (layer.down, layer.up):
        weight.requires_grad_(False)
    for value in (1 / 3, 1 / 7):
        layer.take({DOWN: torch.full((4, 8), value), UP: torch.full((8, 4), value), ALPHA: torch.tensor(4.0)})
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.bfloat16):
            for weight, shape in zip(layer._weights(dtype), ((4, 8), (8, 4)), strict=True):
                assert torch.equal(weight, torch.full(shape, value).to(dtype)) and weight.dtype == dtype


@pytest.mark.parametrize(
    ("stop", "trains"),
    [(None, [True] * 4), (0, [False] * 4), (1, [True, False, False, False]), (3, [True] * 3 + [False])],
)
def test_a_networks_text_encoder_part_trains_before_the_step_at_which_it_stops(stop, trains):
    own = NetworkMethod(job_of("lora", method={"stop_text_encoder_training": stop}), 0)
    parts = {part: [nn.Parameter(torch.zeros(1))] for part in ("unet", "text_encoder")}
    own.network = SimpleNamespace(parameters_by_part=lambda: parts, show=lambda *given: None)
    found = []
    for step in range(4):
        for number in range(2):
            own.before_micro_batch(step, number, [])
        assert parts["unet"][0].requires_grad
        found.append(parts["text_encoder"][0].requires_grad)
    assert found == trains and own.steady_gradients is (stop is None)


def test_a_networks_strength_is_set_where_it_changes_and_comes_back_after_the_untrained_model():
    own, told = NetworkMethod(job_of("lora"), 0), []
    own.network = SimpleNamespace(set_multiplier=told.append)
    own.set_strength(1.0)
    own.set_strength(0.5)
    own.set_strength(0.5)
    with own.untrained():
        assert told == [0.5, 0.0]
    assert told == [0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("rates", "second"), [({}, "text_encoder"), ({"text_encoder_lr": [1e-5, 2e-5]}, "text_encoder_2")]
)
def test_the_second_text_encoder_is_a_group_of_its_own_only_at_a_rate_of_its_own(rates, second):
    own = NetworkMethod(job_of("lora", optimizer=rates), 0)
    adapter = SimpleNamespace(parameters=lambda: [(nn.Parameter(torch.zeros(1)), "plain")])
    names = ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te2_text_model_encoder_layers_0_mlp_fc1")
    network = SimpleNamespace(adapters=dict.fromkeys((*names, "lora_unet_mid_block_attentions_0_proj_in"), adapter))
    assert [each.part for each in own._trainables(network)] == ["text_encoder", second, "unet"]


# ---- what follows control images


def test_dropout_of_an_lllite_is_shown_before_a_pass_and_gone_after_it():
    own, told = LLLiteMethod(job_of("lllite"), 0, None), []
    dropout = SimpleNamespace(show=lambda *given: told.append(given[:3]), hide=lambda: told.append("hidden"))
    own.net = SimpleNamespace(dropout=dropout, parameters=lambda: iter([torch.zeros(1)]))
    own.before_micro_batch(3, 1, ["a"])
    own.after_micro_batch()
    assert told == [(3, 1, ["a"]), "hidden"]


@pytest.mark.parametrize("signed", [True, False])
def test_samples_show_control_images_from_0_to_1_and_training_goes_on_as_before(signed):
    own = ControlNetMethod(job_of("controlnet"), 0, None)
    own._control_net = SimpleNamespace(signed=signed)
    with own.sampling():
        assert own._control_net.signed is False
    assert own._control_net.signed is signed
    given = SimpleNamespace()
    with own.untrained():
        assert own.conditioned(given, None, None) is given and not own.active
    assert own.active


# ---- names


def test_rates_are_logged_under_the_names_of_each_methods_script():
    """Reference: sd-scripts' train_network, train_db, fine_tune, train_textual_inversion, train_control_net."""
    groups = ("unet", "text_encoder", "text_encoder_2", "unet_block3", "unet plus", "controlnet")
    model = ["lr/unet", "lr/text_encoder1", "lr/text_encoder2", "lr/block3", "lr/unet plus", "lr/controlnet"]
    expected = {
        "lora": ["lr/unet", "lr/textencoder", "lr/textencoder2", "lr/unet_block3", "lr/unet plus", "lr/controlnet"],
        "dreambooth": model,
        "fine_tune": model,
        "embedding": ["lr/unet", "lr", "lr/text_encoder2", "lr/unet_block3", "lr/unet plus", "lr/controlnet"],
        "controlnet": ["lr", "lr/text_encoder", "lr/text_encoder_2", "lr/unet_block3", "lr plus", "lr/control_net"],
        "lllite": ["lr", "lr/text_encoder", "lr/text_encoder_2", "lr/unet_block3", "lr plus", "lr/controlnet"],
    }
    assert expected.keys() == set(methods())
    assert {kind: [rate_name(spec_of(job_of(kind)), name) for name in groups] for kind in expected} == expected
