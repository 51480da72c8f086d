"""Limits, tables and texts of settings, each at its edge."""

import math
from types import SimpleNamespace

import pytest

from core.settings.base import declared, item_settings, settings_called
from core.settings.blocks import COUNTS, SIDES, block_rates, block_sizes, blocks_in_words, numbers, rate_numbers
from core.settings.check import build, shorten
from core.settings.flags import read_flags
from core.settings.generation.high_resolution import unsharp_of
from core.settings.job import JOBS, GenerateJob, TrainJob
from core.settings.layers import Entry, Layer, LayerChoice, rank_of_line
from core.settings.methods import Usual
from core.settings.named import Limits, limit_problems
from core.settings.names import bad_name, without_signs
from core.settings.optimization.optimizer import OptimizerSettings, optimizer_sentence
from core.settings.optimization.optimizers import Argument, argument_problems, module_problem, nearest
from core.settings.optimization.schedule import ScheduleSettings, read_step_rules, span
from core.settings.optimization.usual_rates import _optimizer_factors, short, usual_rates
from core.settings.presets.files import PresetStore, content, parse, with_job
from core.settings.presets.levels import levels
from core.settings.readers import program_of
from core.settings.values import bytes_text, shown_value, text_of, value_from, value_typed
from tests.refusals import problems_of
from tests.refusals import refused as is_refused

FIELDS = {entry.path: entry for model in JOBS.values() for entry in declared(model)}


@pytest.mark.parametrize(
    ("text", "count", "rates"),
    [
        ("linear", 3, [0, 0.5, 1]), ("reverse_linear", 3, [1, 0.5, 0]), ("zeros", 3, [0, 0, 0]),
        ("sine", 3, [0, math.sqrt(0.5), 1]), ("cosine", 3, [1, math.sqrt(0.5), 0]), ("linear+0.25", 3, [0.25, 0.75, 1.25]),
        ("sine", 1, [0]), ("linear", 2, [0, 1]), ("0.5", 12, [0.5] * 12), ("0.5", 4, [0.5] * 4), ("0.5", 3, [0.5]),
        ("1, 0.5,,2", 4, [1, 0.5, 0, 2]),
    ],
)  # fmt: skip
def test_rates_of_blocks(text, count, rates):
    assert rate_numbers(text, count) == pytest.approx(rates)


@pytest.mark.parametrize("text", ["inf", "nan", "x", "linear+inf", "1 2", "linear-1"])
def test_what_is_no_rate_of_blocks(text):
    with pytest.raises(ValueError):
        rate_numbers(text, 3)
    assert numbers(" 1 ,") == [1, 0]


def test_the_sides_of_a_unet_are_down_middle_up_with_1_where_a_list_ends():
    network = build(
        TrainJob, {"network": {"down_lr_weight": "0.1, 0.2", "mid_lr_weight": "0.5", "up_lr_weight": "0.3"}}
    ).network
    rates = block_rates(network, 25)
    assert rates == [0.1, 0.2, *[1.0] * 10, 0.5, *[0.3] * 12]
    assert block_rates(network, 23) == [1.0, 0.1, 0.2, *[1.0] * 7, 0.5, 1.0, 1.0, *[0.3] * 9, 1.0]
    assert COUNTS == {"sd1": 25, "sd2": 25, "sdxl": 23}
    assert [sum(sides[n] for sides in SIDES.values()) for n in (0, 1)] == [25, 23 - 2]
    at_the_threshold = network.model_copy(update={"block_lr_zero_threshold": 0.2})
    assert block_rates(at_the_threshold, 25)[:3] == [0.0, 0.0, 1.0]
    assert block_rates(build(TrainJob, {}).network, 25) is None


def test_rank_and_alpha_of_each_block():
    ranks, alphas = ", ".join(map(str, range(1, 26))), ", ".join(["0"] * 12 + ["2"] * 13)
    given = {"block_dims": ranks, "block_alphas": alphas, "conv_rank": 3, "conv_alpha": None, "down_lr_weight": "0"}
    plain, wide = block_sizes(build(TrainJob, {"network": given}).network, 25)
    assert [each.rank for each in plain] == [*[0] * 12, *range(13, 26)], "a rate of 0 leaves no rank"
    assert [each.alpha for each in plain] == [*range(1, 13), *[2] * 13], "an alpha of 0 is the rank"
    assert [(each.rank, each.alpha) for each in wide] == [(0, 3)] * 12 + [(3, 3)] * 13
    with pytest.raises(ValueError):
        block_sizes(build(TrainJob, {}).network.model_copy(update={"block_dims": "1, 2"}), 25)


@pytest.mark.parametrize(
    ("kind", "takes", "refuses"),
    [("bool", [True], [1, "x", None]), ("int", [1, -1], [True, 1.0, None]), ("number", [1, 0.5], [True, "1", None])]
    + [("numbers", [[1, 2.0], (1, None)], [[1], [True, 1], 1, None]), ("text", ["a"], [1, None])]
    + [("choice", ["a", 2], ["b", None]), ("any", [1, "a", None, []], [])],
)
def test_what_each_kind_of_argument_takes(kind, takes, refuses):
    argument = Argument("x", kind, default=[0.9, 0.999] if kind == "numbers" else None, choices=("a", 2))
    assert all(map(argument.accepts, takes)) and not any(map(argument.accepts, refuses))
    assert Argument("x", kind, optional=True, choices=("a", 2)).accepts(None)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("a" * 200, True),
        ("a" * 201, False),
        ("é" * 100, True),
        ("é" * 101, False),
        ("", False),
        (" ", False),
        ("a.", False),
    ]
    + [
        (".a", False),
        ("a b", True),
        ("console", True),
        ("com0", True),
        ("com10", True),
        ("a\x1f", False),
        ("\ud800", False),
    ]
    + [(f"a{sign}b", False) for sign in '<>:"/\\|?*']
    + [(name, False) for name in ("con", "PRN", "aux.txt", "nul", "com1", "COM9", "lpt1", "lpt9.a.b")],
)
def test_names_that_every_system_takes(name, valid):
    assert (bad_name(name) is None) == valid


@pytest.mark.parametrize(
    ("optimizer", "factors"),
    [("AdamW", (1, 1, 1)), ("Lion", (0.1, 0.2, 1 / 3)), ("Tiger", (0.1, 0.2, 1 / 3)), ("SGDNesterov", (100, 100, 1000))]
    + [("AdamWScheduleFree", (1, 3, 10)), ("Adagrad", (1, 10, 1000)), ("Muon", (1, 10, 1000)), ("RMSprop", (1, 1, 1))],
)
def test_usual_rates_of_other_optimizers_compared_with_adamws(optimizer, factors):
    job = build(TrainJob, {"optimizer": {"optimizer_type": optimizer}})
    assert _optimizer_factors(job) == factors
    assert _optimizer_factors(SimpleNamespace(optimizer=SimpleNamespace(optimizer_type="x.Unheard"))) == (
        0.1,
        1.0,
        10.0,
    )


# ---- texts of fields


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("noise.min_snr_gamma", "0,125", 0.125),  # no thousands begin with a 0
        ("noise.min_snr_gamma", "1,0000", 1.0),
        ("noise.min_snr_gamma", "1000,123", 1000.123),
        ("noise.min_snr_gamma", "+1,5", 1.5),
        ("memory.text_cache_bytes", "1k", 1024),
        ("memory.text_cache_bytes", "2 TiB", 2 << 40),
        ("memory.text_cache_bytes", "0.5m", 1 << 19),
        ("saving.output_name", " a ", "a"),
        ("samples.sample_prompts", "a\n\n b", ["a", "b"]),
        ("captions.caption_suffix", " a ", " a "),
        ("optimizer.betas", "[0.9, 0.99]", [0.9, 0.99]),
        ("dataset.resolution", "512;768", [512, 768]),
        ("sharding.offload_param_device", "", None),
        ("method.kind", "", ""),
    ],
)
def test_more_texts_of_fields(path, text, value):
    assert value_from(FIELDS[path], text) == value


@pytest.mark.parametrize(
    ("path", "text"),
    [("noise.min_snr_gamma", "12,345"), ("noise.min_snr_gamma", "999,000"), ("noise.min_snr_gamma", "-1,000")]
    + [("optimizer.betas", "0,01"), ("optimizer.betas", "-01 1"), ("memory.text_cache_bytes", "1 EB")],
)
def test_more_texts_that_are_no_value(path, text):
    with is_refused("settings.bad-value"):
        value_from(FIELDS[path], text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(1 << 20, "1 MB"), ((1 << 20) - 1, "1048575"), ((1 << 20) + 1, "1048577"), (1 << 30, "1 GB"), (3 << 29, "1536 MB")]
    + [(1 << 40, "1 TB"), (0, "0")],
)
def test_sizes_are_written_in_the_largest_whole_unit(size, text):
    assert bytes_text(size) == text


def test_a_word_of_the_command_line_holds_ten_thousand_values():
    entry = FIELDS["samples.sample_prompts"]
    for count, read in ((10_001, True), (10_002, False)):
        word = ",".join(["a"] * count)
        assert value_typed(entry, word) == (word.split(",") if read else word)
    assert value_typed(FIELDS["captions.caption_prefix"], "," * 10_001) == "," * 10_001


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [("network.train_unet", True, "on"), ("network.train_unet", False, "off"), ("network.train_unet", None, "off")]
    + [("memory.mixed_precision", "no", "fp32"), ("sharding.offload_param_device", None, "GPU")]
    + [("samples.sample_prompts", ["a", "b"], "a; b"), ("samples.sample_prompts", [], "empty")]
    + [("schedule.seed", None, "empty"), ("optimizer.learning_rate", 1e-4, "1e-4")]
    + [("dataset.resolution", (512, 768), "512 x 768"), ("optimizer.betas", (0.9, 0.99), "0.9, 0.99")],
)
def test_values_in_words(path, value, text):
    assert shown_value(FIELDS[path], value) == text


def test_an_object_is_empty_or_json():
    (entry,) = (each for each in item_settings(FIELDS["dataset.sources"]) if each.name == "custom_attributes")
    assert (text_of(entry, {}), value_from(entry, " ")) == ("", {})
    with is_refused("settings.bad-json"):
        value_from(entry, "[]")


@pytest.mark.parametrize(
    ("text", "value"),
    [("100%", "100%"), ("12.5 %", "12.5%"), ("0", 0), (0.0, 0), ("0.0", 0), ("1.0", 1), (1.0, 1), (0.999, 0.999)]
    + [("1e2", 100), (".5", 0.5), (10_000_000, 10_000_000), (" 7 ", 7)],
)
def test_spans(text, value):
    assert (span(text), type(span(text))) == (value, type(value))


@pytest.mark.parametrize("text", ["100.1%", "-1", -1, 1.5, "1.5", True, None, 10_000_001, "a", "", "%"])
def test_what_is_no_span(text):
    with pytest.raises(ValueError):
        span(text)


@pytest.mark.parametrize("rules", ["1:10,0.1:10,1", "1:10,0.1:9,1", "inf:1,1", "1:1,nan", "1,1", "1:a,1", "a:1,1"])
def test_step_rules_increase_and_are_finite(rules):
    with pytest.raises(ValueError):
        read_step_rules(rules)
    assert read_step_rules("2") == ([], 2.0) and read_step_rules("1:10,0.1:11,1")[0] == [(1.0, 10), (0.1, 11)]


@pytest.mark.parametrize(
    ("text", "values"),
    [(None, None), ("", None), ("3,0.5,0.4", (3, 0.5, 0.4, True)), ("0,1,1,0", (0, 1, 1, False)), ("1,1,-1,1", (1, 1, -1, True))],
)  # fmt: skip
def test_the_unsharp_mask_of_gradual_latent(text, values):
    assert unsharp_of(text) == values


@pytest.mark.parametrize("text", ["2,1,1", "-1,1,1", "1.5,1,1", "3,0,1", "3,-1,1", "3,inf,1", "3,1,1,1,1", "3,1"])
def test_what_is_no_unsharp_mask(text):
    with pytest.raises(ValueError):
        unsharp_of(text)


# ---- problems of values


@pytest.mark.parametrize(
    ("value", "text"),
    [("a" * 58, '"' + "a" * 58 + '"'), ("a" * 59, '"' + "a" * 56 + "..."), (float("inf"), "infinite"), (None, "null")]
    + [(float("-inf"), "infinite"), ("ä", '"ä"'), (True, "true")],
)
def test_a_value_is_shown_in_sixty_characters(value, text):
    assert shorten(value) == text


def test_of_many_unknown_names_only_the_first_are_compared_with_the_known_ones(monkeypatch):
    monkeypatch.setattr("core.settings.check.MOST", 2)
    found = problems_of(TrainJob, {"network": {f"zzzz{n}": 1 for n in range(5)}})
    assert [each.code for each in found] == ["settings.unknown-name"] * 3 + ["settings.more-problems"] * 2


@pytest.mark.parametrize(
    ("path", "value", "fix"),
    [
        ("network.rank", 0, "use a whole number, 1 to 1024"),
        ("network.rank", 1.5, "use a whole number, 1 to 1024"),
        ("network.train_unet", 1, "use true or false"),
        ("noise.huber_c", 0, "use a number, above 0, up to 100"),
        ("method.ema_decay", 1, "use a number, 0 or more, below 1"),
        ("memory.mixed_precision", "x", "use one of auto, no, bf16, fp16"),
        ("samples.width", 65, "use a whole number, 64 to 4096, a multiple of 8 (pixels), or leave it empty"),
        ("saving.copy_to", 1, "use text in quotes, or leave it empty"),
        ("samples.sample_prompts", 1, "use a list"),
        ("dataset.conditioning_suffix", "a/b", 'use none of < > : " / \\ | ? *: file names cannot contain them'),
        ("dataset.alpha_color", "white", "use text such as #ffffff"),
        ("optimizer.optimizer_args", 1, "use names with values, such as d_coef=2"),
        ("optimizer.betas", 0.9, "use two numbers, or leave it empty"),
        ("optimizer.betas", [0.9, -1], "use numbers of 0 or more"),
        ("dataset.more_resolutions", [8193], "use 8192 or less"),
        ("dataset.face_crop_aug_range", [0, 2], "use numbers of more than 0"),
    ],
)
def test_what_a_setting_takes_is_said_in_words(path, value, fix):
    group, name = path.split(".")
    (found,) = problems_of(TrainJob, {group: {name: value}})
    assert (found.code, found.where, found.fix) == ("settings.bad-value", path, fix)


def test_in_files_an_empty_setting_is_null_and_a_missing_one_is_told():
    (found,) = problems_of(TrainJob, {"samples": {"width": 65}}, "a.json")
    assert found.fix.endswith(", or null") and found.where == "a.json, samples.width"
    (missing,) = problems_of(TrainJob, {"dataset": {"sources": [{}]}})
    assert (missing.code, missing.where) == ("settings.missing", "dataset.sources.0.folder")
    (followed,) = problems_of(TrainJob, {"noise": {"compatibility": "kohya"}}, "a.json")
    assert (followed.code, followed.where) == ("settings.unknown-name", "a.json, noise.compatibility")


@pytest.mark.parametrize(
    ("name", "fix"),
    [("rankk", "network.rank"), ("min_snr_gama", "noise.min_snr_gamma"), ("rank", "network.rank")],
)
def test_a_name_in_another_group_leads_to_its_own(name, fix):
    (found,) = problems_of(TrainJob, {"memory": {name: 1}})
    assert fix in found.fix


def test_the_settings_of_a_name_are_sorted_by_method():
    known = {entry.path: entry for entry in declared(TrainJob)}
    assert settings_called("network_dim", known) == ["network.rank", "lllite.hidden_dim"]
    assert settings_called("network_dim", known, "lllite") == ["lllite.hidden_dim", "network.rank"]
    assert settings_called("nothing", known) == []


@pytest.mark.parametrize(
    ("words", "values", "told"),
    [
        ("--network.rank=4", {"network": {"rank": 4}}, []),
        ("--no-network.train_unet", {"network": {"train_unet": False}}, []),
        ("--network.train_unet TRUE", {"network": {"train_unet": True}}, []),
        ("--network.train_unet=false", {"network": {"train_unet": False}}, []),
        ("--network.train_unet --network.rank 4", {"network": {"train_unet": True, "rank": 4}}, []),
        ("--network.train_unet 4", {"network": {"train_unet": True}}, ["flags.stray-word"]),
        ("--network.rank", {}, ["flags.no-value"]),
        ("--network.rank --network.alpha 1", {"network": {"alpha": 1}}, ["flags.no-value"]),
        ("--network.rnk 4 --network.alpha 1", {"network": {"alpha": 1}}, ["settings.unknown-name"]),
        ("--network.rnk=4 5", {}, ["settings.unknown-name", "flags.stray-word"]),
        ("--no-network.rnk", {}, ["settings.unknown-name"]),
        ("--captions.caption_prefix=", {"captions": {"caption_prefix": None}}, []),
        ("--dataset.sources a", {}, ["flags.no-objects"]),
        ("--dataset.sources []", {"dataset": {"sources": []}}, []),
        ("--use_8bit_adam=true", {"optimizer": {"optimizer_type": "AdamW8bit"}}, []),
        ("--use_lion_optimizer", {"optimizer": {"optimizer_type": "Lion"}}, []),
        ("--optimizer.optimizer_type=Adam --use_8bit_adam", {"optimizer": {"optimizer_type": "Adam"}}, ["cli.given-twice"]),
    ],
)  # fmt: skip
def test_words_of_the_command_line(words, values, told):
    found, problems = read_flags(TrainJob, words.split())
    assert (found, [each.code for each in problems]) == (values, told)


# ---- what a shared page takes


@pytest.mark.parametrize(
    ("schedule", "told"),
    [({"max_train_steps": 100_000}, []), ({"max_train_steps": 100_001}, ["schedule.max_train_steps"]), ({}, [])]
    + [({"max_train_epochs": 1000}, []), ({"max_train_epochs": 1001}, ["schedule.max_train_epochs"])]
    + [({"max_train_steps": 5, "max_train_epochs": 1001}, [])],
)
def test_a_training_on_a_shared_page_is_not_endless(schedule, told):
    found = limit_problems(build(TrainJob, {"schedule": schedule}), Limits([], [], False))
    assert [each.where for each in found if each.code == "shared.too-long"] == told


def test_control_images_in_prompts_are_looked_at_where_the_method_reads_them(tmp_path):
    limits = Limits([tmp_path.resolve()])
    for method, prompt, told in (
        ("controlnet", f"a --cn {tmp_path}/a.png --w 512", []),
        ("controlnet", "a --CN /else/a b.png --w 512", ["samples.sample_prompts"]),
        ("lora", "a --cn /else/a.png", []),
        ("controlnet", "a --cnx /else/a.png", []),
    ):
        job = build(TrainJob, {"method": {"kind": method}, "samples": {"sample_prompts": [prompt]}})
        assert [each.where for each in limit_problems(job, limits)] == told
    file = {"samples": {"sample_prompts_file": str(tmp_path / "a.txt")}}
    for method, told in (("lora", []), ("lllite", ["shared.prompts-file"])):
        assert [
            each.code for each in limit_problems(build(TrainJob, file | {"method": {"kind": method}}), limits)
        ] == told


def test_the_folders_of_a_shared_page_in_words(tmp_path):
    from core.record.workspace import PROJECT

    assert Limits([PROJECT / "outputs", tmp_path / "x"]).description == f"outputs, {tmp_path / 'x'}"


# ---- layers, blocks, networks


@pytest.mark.parametrize(
    ("line", "split"), [("a=8", ("a", 8)), ("a=b=3", ("a=b", 3)), ("a=0", ("a", 0)), ("a=1024", ("a", 1024))]
)
def test_a_rank_of_a_layer(line, split):
    assert rank_of_line(line) == split
    for bad in ("a=1025", "a=-1", "=3", "a", "a=", "3"):
        with pytest.raises(ValueError):
            rank_of_line(bad)


def test_expressions_share_half_a_second_and_have_a_tenth_each():
    for count, each in ((1, 0.5), (2, 0.25), (5, 0.1), (50, 0.1)):
        choice = LayerChoice(build(TrainJob, {"network": {"layers": [f"a{n}." for n in range(count)]}}).network)
        assert [entry._patterns[0]._left for entry in choice.chosen] == [pytest.approx(each)] * count
    ranked = build(TrainJob, {"network": {"layers": ["a."], "exclude_layers": ["b."], "layer_dims": ["c.=1", "d.=2"]}})
    choice = LayerChoice(ranked.network)
    entries = [*choice.chosen, *choice.excluded, *(entry for entry, _ in choice.ranked)]
    assert [entry._patterns[0]._left for entry in entries] == [pytest.approx(0.125)] * 4


WIDE = Layer("lora_unet_conv", "down_blocks.0.resnets.0.conv1", True, True, True)
UNET = Layer("lora_unet_q", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", True, False)
TEXT = Layer("lora_te_q", "text_model.encoder.layers.0.self_attn.q_proj", False, False)
OUT = Layer("lora_unet_conv_out", "conv_out", True, True)


@pytest.mark.parametrize(
    ("text", "finds"),
    [
        ("full", [WIDE, UNET, TEXT, OUT]), ("full-lin", [UNET, TEXT]), ("attn-mlp", [UNET, TEXT]),
        ("attn-only", [UNET, TEXT]), ("unet-only", [WIDE, UNET, OUT]), ("unet-transformer-only", [UNET]),
        ("unet-convblock-only", [WIDE, OUT]), ("ia3", []), ("lora_te", [TEXT]), ("attn1", [UNET]),
        (r"attn\d\.", [UNET]), ("^conv_out$", [OUT]),
    ],
)  # fmt: skip
def test_what_an_item_of_the_layers_finds(text, finds):
    entry = Entry(text, "network.layers")
    assert [layer for layer in (WIDE, UNET, TEXT, OUT) if entry.matches(layer)] == finds


def test_block_counts_in_words():
    assert blocks_in_words([23]) == "23 (SDXL)" and blocks_in_words({25, 0}) == "25 (SD 1.x and SD 2.x) or none"
    assert rate_numbers("2", 4) == [2.0] * 4 and rate_numbers("2", 3) == [2.0]


def test_signs_that_no_file_name_has_are_left_out():
    assert without_signs(' .<a>:"/\\|?*b. ') == "ab" and without_signs("a.b") == "a.b"


@pytest.mark.parametrize(
    ("folder", "program"),
    [("/a/ComfyUI/models/loras", "ComfyUI"), ("/forge/x", "Forge"), ("/a/stable-diffusion-webui/x", "A1111"), ("/a", None)]
    + [("/stable-diffusion-webui-forge/x", "Forge"), ("/x/diffusers", "diffusers"), ("/automatic1111/forge", "Forge")],
)  # fmt: skip
def test_the_program_of_a_folder(folder, program):
    from pathlib import PurePosixPath

    assert program_of(PurePosixPath(folder)) == program


# ---- optimizers


def test_a_rate_is_far_at_three_times_the_usual():
    usual = Usual(3e-5, 1e-4, 1e-3)
    for rate, way in ((1e-5, ""), (9.9e-6, "below"), (3e-3, ""), (3.1e-3, "above"), (0, "below"), (math.nan, "below")):
        assert usual.deviation(rate) == way, rate


@pytest.mark.parametrize(("number", "text"), [(1e-3, "0.001"), (9.99e-4, "1e-3"), (1.25e-3, "0.0013"), (2e10, "2e+10")])
def test_short_rates(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    ("network", "start"),
    [({}, 1e-4), ({"alpha": 1}, 3e-4), ({"alpha": 8}, 2e-4), ({"alpha": 32}, 5e-5), ({"alpha": 64}, 1e-4 / 3)]
    + [({"alpha": 0}, 1e-4), ({"kind": "ia3", "alpha": 1}, 5e-3)],
)
def test_the_usual_rate_follows_alpha_within_three_times(network, start):
    job = build(TrainJob, {"network": network})
    assert usual_rates(job).start == pytest.approx(start)
    plus = usual_rates(job, "unet plus")
    assert (plus.low, plus.start) == (usual_rates(job).low, usual_rates(job).start * 16)


def test_rates_of_parts():
    own = OptimizerSettings(
        learning_rate=1.0, unet_lr=2.0, text_encoder_lr=(3.0, 4.0), loraplus_lr_ratio=5.0, loraplus_unet_lr_ratio=6.0
    )
    parts = ("unet", "text_encoder", "text_encoder_2", "controlnet")
    assert [own.rate_of(part) for part in parts] == [2, 3, 4, 1]
    assert [own.plus_ratio(part) for part in parts] == [6, 5, 5, 5] and OptimizerSettings().plus_ratio("unet") == 1
    one = OptimizerSettings(learning_rate=1.0, unet_lr=0.0)
    assert (one.unet_rate, one.text_rates, one.clips_as_kohya) == (0.0, (1.0, 1.0), False)
    kohya = {"model": {"compatibility": "sd-scripts-0.10"}, "optimizer": {"max_grad_norm": 0.0}}
    assert not build(TrainJob, kohya).optimizer.clips_as_kohya
    assert build(TrainJob, kohya | {"optimizer": {}}).optimizer.clips_as_kohya


def test_an_optimizer_in_a_sentence():
    assert optimizer_sentence(OptimizerSettings()) == "torch.optim.adamw.AdamW()"
    nesterov = OptimizerSettings(optimizer_type="SGDNesterov", optimizer_args={"momentum": 0.5}, weight_decay=0.1)
    assert optimizer_sentence(nesterov) == "torch.optim.sgd.SGD(nesterov=True,momentum=0.5,weight_decay=0.1)"
    other = OptimizerSettings(optimizer_type="a.B", betas=(0.9, 0.99))
    assert optimizer_sentence(other) == "a.B(betas=(0.9, 0.99))"


@pytest.mark.parametrize(
    ("argument", "words"),
    [(Argument("x", "bool"), "true or false"), (Argument("x", "int", optional=True), "a whole number, or null")]
    + [(Argument("x", "numbers", [0.9, 1e-30]), "numbers, such as (0.9, 1e-30)")]
    + [(Argument("x", "numbers"), "numbers, such as 500,1000"), (Argument("x", "number"), "a number")]
    + [(Argument("x", "choice", choices=("a", 2)), "one of a, 2"), (Argument("x", "text"), "text"), (Argument("x"), "a value")],
)  # fmt: skip
def test_what_an_argument_takes_in_words(argument, words):
    assert argument.accepted == words


def test_arguments_are_checked_by_name_value_and_need():
    known = {"size": Argument("size", "int", required=True), "rate": Argument("rate", "number")}
    found = argument_problems({"sizes": 1, "rate": "x", "z": 1}, known, "It", "a.b", {"z": "a.z"})
    assert [(each.code, each.where) for each in found] == [
        ("arguments.unknown", "a.b"), ("arguments.bad-value", "a.b, rate"), ("arguments.unknown", "a.z"),
        ("arguments.missing", "a.b"),
    ]  # fmt: skip
    assert "'size'" in found[0].fix and "did you mean" not in found[2].fix
    assert argument_problems({"size": 1}, known, "It", "a.b") == []


def test_a_name_of_code_is_looked_up_by_its_module(monkeypatch):
    from core.settings.optimization import optimizers

    monkeypatch.setattr(optimizers, "allowed_modules", lambda: {"mine"})
    assert module_problem("mine.sub.Class", "optimizer", "a", "") is None
    for name, code in (("mine", "unknown"), ("other.Class", "not-listed"), ("Adm", "unknown")):
        problem = module_problem(name, "optimizer", "a", "near")
        assert problem is not None and problem.code == f"optimizer.{code}" and "'near'" in problem.fix
    assert (nearest("adamw8bit"), nearest("zzzzzzzz")) == ("AdamW8bit", "")


def test_the_end_of_a_schedule_and_its_length():
    assert ScheduleSettings(lr_scheduler="cosine", lr_scheduler_min_lr_ratio=0.1).min_ratio == 0.1
    for given in ({"lr_scheduler": "constant", "lr_scheduler_min_lr_ratio": 0.1}, {"lr_scheduler": "cosine"}):
        assert ScheduleSettings(**given).min_ratio == 0
    kohya = {"model": {"compatibility": "sd-scripts-0.10"}, "schedule": {"lr_scheduler": "rex", "max_train_steps": 5}}
    assert build(TrainJob, kohya).schedule.steps_in_force == 5
    kohya["schedule"] |= {"lr_scheduler_min_lr_ratio": 0.1, "max_train_epochs": 1}
    schedule = build(TrainJob, kohya).schedule
    assert (schedule.min_ratio, schedule.steps_in_force) == (0, None)
    assert build(TrainJob, {"schedule": kohya["schedule"]}).schedule.steps_in_force == 5


# ---- presets


@pytest.mark.parametrize(
    ("head", "code"),
    [({"schema_version": 0}, "preset.bad-version"), ({"schema_version": True}, "preset.bad-version")]
    + [({"schema_version": 3}, None), ({"schema_version": 4}, "preset.newer-version")]
    + [({"kind": "recipe", "task": "generate"}, "preset.bad-header"), ({"kind": "job", "task": "generate"}, None)]
    + [({"task": "nothing"}, "preset.bad-header"), ({"vram_gb": 1024}, None), ({"vram_gb": 1025}, "preset.bad-header")]
    + [({"vram_gb": -1}, "preset.bad-header"), ({"vram_gb": True}, "preset.bad-header"), ({"vram_gb": 0}, None)]
    + [({"family": "sdxl"}, None), ({"family": "sd9"}, "preset.bad-header"), ({"reasons": []}, "preset.bad-header")]
    + [({"reasons": {"a": 1}}, "preset.bad-header"), ({"reasons": {"a": "b"}}, None)],
)
def test_the_head_of_a_preset(head, code):
    raw = {"schema_version": 3, **head}
    if code is None:
        preset = parse(raw, "a/name.json")
        again = parse(content(preset), "name.json")
        assert (preset.name, again) == ("name", preset) and preset.values == {}
    else:
        with is_refused(code):
            parse(raw, "name.json")


def test_a_recipe_saved_again_has_what_it_stated_and_what_differs():
    recipe = parse({"schema_version": 3, "kind": "recipe", "network": {"rank": 4}}, "r.json")
    job = build(TrainJob, {"network": {"rank": 4, "alpha": 2}, "dataset": {"resolution": 512}})
    assert with_job(recipe, job).values == {"network": {"rank": 4, "alpha": 2.0}}
    whole = with_job(parse({"schema_version": 3}, "j.json"), job)
    assert whole.values["network"]["alpha"] == 2 and "kind" not in whole.values and "lokr" not in whole.values


def test_presets_of_a_task_and_those_that_cannot_be_read_are_listed(tmp_path):
    for name, text in (("a", '{"task": "generate"}'), ("b", "{"), ("c", "[]"), ("d", "{}")):
        (tmp_path / f"{name}.json").write_text(text)
    store = PresetStore(tmp_path)
    assert (store.names("generate"), store.names("train")) == (["a"], ["b", "c", "d"])
    assert store.save(" user/e ", build(GenerateJob, {}), task="generate") == "user/e"
    assert store.names("generate") == ["a", "user/e"]
    with is_refused("preset.other-task"):
        store.load("user/e", "train")
    store.save("f", TrainJob())
    with is_refused("preset.exists"):
        store.rename("user/f", "e")
    assert store.rename("user/f", " user/g ") == "user/g"
    for name, code in (("user/f", "preset.unknown"), ("a", "preset.shipped")):
        with is_refused(code):
            store.delete(name)


@pytest.mark.parametrize(
    ("groups", "number", "facts"),
    [
        ({}, 0, {"vae_batch_size": 4, "highvram": True, "gradient_checkpointing": False, "vae_precision": "auto"}),
        ({}, 1, {"vae_batch_size": 1, "highvram": False, "gradient_checkpointing": False}),
        ({}, 2, {"gradient_checkpointing": True, "fp8_base_unet": False, "fp8_base": False}),
        ({}, 3, {"fp8_base_unet": True, "fp8_base": False, "vae_precision": "auto"}),
        ({}, 4, {"fp8_base_unet": False, "fp8_base": True, "vae_precision": "bf16"}),
        ({"method": {"kind": "embedding"}}, 4, {"fp8_base_unet": True, "fp8_base": False}),
        ({"method": {"kind": "fine_tune"}}, 2, {"full_precision": "fp32", "fused_optimizer_groups": None}),
        ({"method": {"kind": "fine_tune"}}, 3, {"full_precision": "bf16", "fused_optimizer_groups": None}),
        ({"method": {"kind": "fine_tune"}}, 4, {"fused_optimizer_groups": 10, "fused_backward_pass": False}),
        ({"method": {"kind": "fine_tune"}, "memory": {"mixed_precision": "fp16"}}, 4,
         {"full_precision": "fp16", "fused_optimizer_groups": None}),
        ({"method": {"kind": "fine_tune"}, "memory": {"mixed_precision": "no"}}, 3, {"mixed_precision": "auto"}),
        ({"method": {"kind": "fine_tune"}, "memory": {"num_processes": 2}}, 4, {"fused_optimizer_groups": None}),
        ({"method": {"kind": "fine_tune"}, "schedule": {"gradient_accumulation_steps": 2}}, 4,
         {"fused_optimizer_groups": None}),
        ({"method": {"kind": "controlnet"}}, 4, {"full_precision": "bf16", "fp8_base": False, "fp8_base_unet": True}),
    ],
)  # fmt: skip
def test_each_place_of_the_memory_slider(groups, number, facts):
    values = [level.values for level in levels(build(TrainJob, groups)) if level.number <= number][-1]
    assert {name: values[f"memory.{name}"] for name in facts} == facts
