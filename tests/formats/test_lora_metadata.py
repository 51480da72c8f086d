"""Metadata of LoRA files, in the words other programs look for."""

import json
from dataclasses import replace

import pytest

from core.formats.lora.metadata import lora_metadata, trigger_words, version_metadata
from core.formats.model_spec import SaveFacts
from core.networks.kinds.lora import network_args
from core.settings.job import TrainJob


def job(**groups):
    return TrainJob.model_validate(groups)


FACTS = SaveFacts(
    session_id=42,
    started_at=1000.0,
    saved_at=2000.5,
    seed=7,
    num_train_images=24,
    num_batches_per_epoch=6,
    num_epochs=10,
    epoch=3,
    step=18,
    max_train_steps=60,
    mixed_precision="bf16",
    resolution=(128, 192),
    base_model_name="starter",
    base_model_hash="e3b0c442",
    base_model_sha256="ab" * 32,
    dataset_dirs={"10_fox": {"n_repeats": 10, "img_count": 24}},
    tag_frequency={"10_fox": {"a fox": 1, "füchse": 2}},
    bucket_info={"buckets": {"0": {"resolution": [128, 128], "count": 24}}, "mean_img_ar_error": 0.0},
)


def test_every_value_is_a_string_in_pythons_words():
    metadata = lora_metadata(TrainJob(), FACTS)
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
    assert (
        metadata["ss_v2"] == "False" and metadata["ss_clip_skip"] == "None" and metadata["ss_cache_latents"] == "True"
    )


def test_the_run_is_described():
    metadata = lora_metadata(TrainJob(), FACTS)
    expected = {
        "ss_session_id": "42",
        "ss_training_started_at": "1000.0",
        "ss_training_finished_at": "2000.5",
        "ss_seed": "7",
        "ss_epoch": "3",
        "ss_steps": "18",
        "ss_num_epochs": "10",
        "ss_max_train_steps": "60",
        "ss_num_train_images": "24",
        "ss_num_batches_per_epoch": "6",
        "ss_mixed_precision": "bf16",
        "ss_resolution": "(128, 192)",
        "ss_sd_model_name": "starter",
        "ss_sd_model_hash": "e3b0c442",
        "ss_new_sd_model_hash": "ab" * 32,
        "modelspec.resolution": "128x192",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["ss_tag_frequency"]) == {"10_fox": {"a fox": 1, "füchse": 2}}
    assert json.loads(metadata["ss_dataset_dirs"])["10_fox"] == {"n_repeats": 10, "img_count": 24}
    assert "ss_vae_name" not in metadata, "no VAE was chosen"


def test_the_settings_are_described():
    asked = job(
        network={"rank": 8, "alpha": 4, "conv_rank": 4, "conv_alpha": 1},
        optimizer={"optimizer_type": "AdamW8bit", "learning_rate": 0.0001, "unet_lr": 0.0005, "weight_decay": 0.1},
        saving={"output_name": "fox", "training_comment": "first"},
        noise={"min_snr_gamma": 5, "max_timestep": 900},
        captions={"max_token_length": 150, "shuffle_caption": True},
        dataset={"train_batch_size": 4},
        schedule={"gradient_accumulation_steps": 2},
        model={"clip_skip": 2},
    )
    metadata = lora_metadata(asked, replace(FACTS, network_args=network_args(asked)))
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_learning_rate": "0.0001",
        "ss_unet_lr": "0.0005",
        "ss_text_encoder_lr": "None",
        "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)",
        "ss_output_name": "fox",
        "ss_training_comment": "first",
        "ss_min_snr_gamma": "5.0",
        "ss_max_token_length": "150",
        "ss_shuffle_caption": "True",
        "ss_batch_size_per_device": "4",
        "ss_total_batch_size": "8",
        "ss_clip_skip": "2",
        "modelspec.title": "fox",
        "modelspec.encoder_layer": "2",
        "modelspec.timestep_range": "0,900",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "1.0"}


@pytest.mark.parametrize("given", [{}, {"relative_step": True}])
def test_adafactor_that_finds_the_rate_itself_leaves_none_and_names_its_schedule(given):
    rates = {"learning_rate": 0.0003, "unet_lr": 0.0005, "text_encoder_lr": 0.0001}
    metadata = lora_metadata(job(optimizer={"optimizer_type": "AdaFactor", "optimizer_args": given, **rates}), FACTS)
    assert [metadata[f"ss_{name}"] for name in rates] == ["None"] * 3
    assert metadata["ss_lr_scheduler"] == "adafactor:0.0003"
    of_its_own = {"optimizer_type": "AdaFactor", "optimizer_args": {"relative_step": False}, **rates}
    metadata = lora_metadata(job(optimizer=of_its_own, schedule={"lr_scheduler": "cosine"}), FACTS)
    assert [metadata[f"ss_{name}"] for name in rates] == [str(rate) for rate in rates.values()]
    assert metadata["ss_lr_scheduler"] == "cosine"


def test_a_curve_of_torch_is_the_one_that_is_named():
    metadata = lora_metadata(job(schedule={"lr_scheduler_type": "StepLR"}), FACTS)
    assert metadata["ss_lr_scheduler"] == "StepLR"


def test_how_memory_was_saved_and_images_resized_is_described():
    metadata = lora_metadata(job(memory={"fp8_base_unet": True}, dataset={"resize_interpolation": "nearest"}), FACTS)
    assert (metadata["ss_fp8_base_unet"], metadata["ss_fp8_base"]) == ("True", "False")
    assert metadata["ss_resize_interpolation"] == "nearest"
    assert lora_metadata(TrainJob(), FACTS)["ss_resize_interpolation"] == "None"


def test_the_options_of_the_step_are_described():
    chosen = {
        "noise_offset": 0.05,
        "noise_offset_random_strength": True,
        "adaptive_noise_scale": 0.005,
        "multires_noise_iterations": 6,
        "multires_noise_discount": 0.2,
        "ip_noise_gamma": 0.1,
        "ip_noise_gamma_random_strength": True,
        "zero_terminal_snr": True,
        "min_snr_gamma": 5.0,
        "loss_type": "huber",
        "huber_schedule": "exponential",
        "huber_c": 0.2,
        "huber_scale": 1.5,
    }
    metadata = lora_metadata(job(noise={**chosen, "debiased_estimation_loss": True}), FACTS)
    assert {name: metadata[f"ss_{name}"] for name in chosen} == {name: str(value) for name, value in chosen.items()}
    assert metadata["ss_debiased_estimation"] == "True"
    plain = lora_metadata(TrainJob(), FACTS)
    assert (plain["ss_loss_type"], plain["ss_zero_terminal_snr"], plain["ss_adaptive_noise_scale"]) == (
        "l2",
        "False",
        "None",
    )


def test_a_plain_lora_has_no_network_args_and_conv_alpha_follows_the_rank():
    assert network_args(TrainJob()) == {} and "ss_network_args" not in lora_metadata(TrainJob(), FACTS)
    with_conv = lora_metadata(TrainJob(), replace(FACTS, network_args=network_args(job(network={"conv_rank": 8}))))
    assert json.loads(with_conv["ss_network_args"]) == {"conv_dim": "8", "conv_alpha": "8"}


@pytest.mark.parametrize(
    ("family", "prediction", "version", "architecture", "implementation"),
    [
        ("sd1", "epsilon", "sd_v1", "stable-diffusion-v1/lora", "diffusers"),
        ("sd1", "v", "sd_v1_v", "stable-diffusion-v1/lora", "diffusers"),
        ("sd2", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora", "diffusers"),
        ("sd2", "v", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "diffusers"),
        (
            "sdxl",
            "epsilon",
            "sdxl_base_v1-0",
            "stable-diffusion-xl-v1-base/lora",
            "https://github.com/Stability-AI/generative-models",
        ),
        (
            "sdxl",
            "v",
            "sdxl_base_v1-0",
            "stable-diffusion-xl-v1-base/lora",
            "https://github.com/Stability-AI/generative-models",
        ),
    ],
)
def test_the_base_model_is_named_as_uis_expect(family, prediction, version, architecture, implementation):
    metadata = lora_metadata(TrainJob(), SaveFacts(family=family, prediction=prediction, saved_at=0.0))
    assert metadata["ss_base_model_version"] == version
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["modelspec.implementation"] == implementation
    assert metadata["modelspec.prediction_type"] == prediction
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"


def test_kohyas_minimum_and_what_a1111_reads_is_there():
    metadata = lora_metadata(TrainJob(), FACTS)
    minimum = {"ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha"}
    assert minimum | {"ss_output_name", "ss_tag_frequency"} <= set(metadata)


def test_the_date_is_local_time_without_fractions():
    date = lora_metadata(TrainJob(), FACTS)["modelspec.date"]
    assert "." not in date and "T" in date and len(date) == 19


def test_more_metadata_is_taken_as_it_is():
    facts = SaveFacts(extra={"ss_datasets": "[]", "modelspec.author": "me"})
    metadata = lora_metadata(TrainJob(), facts)
    assert metadata["ss_datasets"] == "[]" and metadata["modelspec.author"] == "me"


@pytest.mark.parametrize(
    ("family", "prediction", "v2", "version"),
    [("sd1", "epsilon", "False", "sd_v1"), ("sd1", "v", "False", "sd_v1_v"), ("sd2", None, "True", "sd_v2")]
    + [
        ("sd2", "v", "True", "sd_v2_v"),
        ("sdxl", "epsilon", "False", "sdxl_base_v1-0"),
        ("sdxl", "v", "False", "sdxl_base_v1-0"),
    ],
)
def test_the_version_of_the_base_model_is_sd_scripts_word(family, prediction, v2, version):
    assert version_metadata(family, prediction) == {"ss_v2": v2, "ss_base_model_version": version}
    assert version_metadata(None, prediction) == {"ss_v2": "False"}


PHRASE, HINT, TAGS = "modelspec.trigger_phrase", "modelspec.usage_hint", "ss_tag_frequency"
DIRS = "ss_dataset_dirs"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({PHRASE: ",".join(f"w{n}" for n in range(13))}, [f"w{n}" for n in range(12)]),
        ({PHRASE: f"{'a' * 80}, {'b' * 81}, c, , c"}, ["a" * 80, "c"]),
        ({PHRASE: "a" * 1998 + ",b"}, ["b"]),
        ({PHRASE: "a" * 1999 + ",b"}, []),
        ({HINT: "b, a", PHRASE: "a"}, ["a", "b"]),
        (
            {TAGS: json.dumps({"a": {f"t{n}": n + 1 for n in range(9)}, "b": {"t0 ": 100, "x": "9", "y": None}})},
            ["t0", "t8", "t7", "t6", "t5", "t4", "t3", "t2"],
        ),
        ({TAGS: json.dumps({"a": {"often": 2}}), PHRASE: "stated"}, ["stated", "often"]),
        ({TAGS: "[1]"}, []),
        ({TAGS: '{"a": 5, "b": {"c": 2}}'}, ["c"]),
        ({TAGS: json.dumps({"a": {f"a painting of a house, number {n}": 1 for n in range(4)}, "b": {"a bee": 1}})}, []),
        (
            {TAGS: json.dumps({"a": {"a large house in the evening light": 9, "a large evening light": 9}})},
            ["a large evening light"],
        ),
        ({TAGS: json.dumps({"a": {"often": 5, "seldom": 4}}), DIRS: '{"a": {"img_count": 20}}'}, ["often"]),
        ({TAGS: "no json"}, []),
    ],
)
def test_twelve_trigger_words_of_80_characters_and_eight_frequent_tags(tmp_path, metadata, words):
    assert list(trigger_words(tmp_path / "a.safetensors", metadata)) == words


def test_the_trigger_word_of_a_run_comes_after_those_that_are_stated(tmp_path):
    (tmp_path / "job.json").write_text('{"captions": {"trigger_word": " sks "}}')
    metadata = {PHRASE: "stated", TAGS: json.dumps({"a": {"often": 2}})}
    assert trigger_words(tmp_path / "checkpoints" / "a.safetensors", metadata) == ("stated", "sks", "often")
    assert trigger_words(tmp_path / "others" / "a.safetensors", metadata) == ("stated", "often")
