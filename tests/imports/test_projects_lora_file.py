"""A LoRA file as settings: what sd-scripts recorded is recovered, what tensors tell is guessed, and the rest is asked for."""

import json
import random
import struct
import time

import pytest

from core.imports.projects.importers import import_project
from core.record.problems import ProblemsError
from tests.imports.projects import cases

UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
PEFT = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": [4, 768],
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": [320, 4],
}


def layers(rank=8, *names):
    found = {}
    for name in names or (UNET, TEXT):
        found |= {f"{name}.lora_down.weight": [rank, 768], f"{name}.lora_up.weight": [320, rank], f"{name}.alpha": []}
    return found


def written(path, metadata, shapes):
    """A .safetensors file with these tensors of zeros."""
    listing, start = {"__metadata__": metadata}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        listing[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    header = json.dumps(listing).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(start))
    return path


def recorded(name):
    return next(case for case in cases("metadata") if case["name"] == name)


def test_settings_that_sd_scripts_recorded_are_recovered(tmp_path):
    case = recorded("sd_scripts_folders")
    found = import_project(written(tmp_path / "a.safetensors", case["metadata"], layers()))
    job = found.job
    assert (job.network.rank, job.network.alpha, job.optimizer.optimizer_type) == (8, 4.0, "AdamW")
    assert (job.optimizer.weight_decay, job.optimizer.betas) == (0.05, (0.9, 0.98))
    assert (job.optimizer.learning_rate, job.optimizer.unet_lr, job.optimizer.text_encoder_lr) == (1e-4, 1e-4, 5e-5)
    assert (job.schedule.lr_scheduler, job.schedule.lr_warmup_steps, job.schedule.max_train_steps) == ("cosine", 0.1, 2)
    assert (job.dataset.resolution, job.dataset.train_batch_size, job.dataset.enable_bucket) == (64, 2, True)
    assert (job.captions.shuffle_caption, job.captions.keep_tokens, job.captions.caption_dropout_rate) == (
        True,
        1,
        0.05,
    )
    assert (job.noise.min_snr_gamma, job.noise.noise_offset, job.model.clip_skip) == (5.0, 0.05, 2)
    assert (job.schedule.seed, job.saving.output_name, job.dataset.prior_loss_weight) == (7, "fox", 0.8)
    assert (job.network.train_unet, job.network.train_text_encoder, job.model.family) == (True, True, "sd1")
    assert {"ss_learning_rate", "ss_optimizer"} <= {each.key for each in found.entries("taken")}
    assert {"ss_sd_model_name", "tensors"} <= {each.key for each in found.entries("changed")}
    assert {"base model", "images", "ss_dataset_dirs"} <= {each.key for each in found.entries("unavailable")}
    assert set(case["metadata"]) <= {each.key for each in found.report}, "each key has a line"
    assert [problem.code for problem in found.problems] == ["import.missing-path", "import.no-dataset"]


@pytest.mark.parametrize(
    ("arguments", "more", "name", "momentum"),
    [
        ("", {}, "SGD", None),
        ("(weight_decay=0.1)", {}, "SGD", None),
        ("(momentum=0.8)", {}, "SGDNesterov", 0.8),  # sd-scripts does not record nesterov=True
        ("(momentum=0.8)", {"atelier_version": "1"}, "SGD", 0.8),
        ("(nesterov=True,momentum=0.8)", {"atelier_version": "1"}, "SGDNesterov", 0.8),
    ],
)
def test_recorded_sgd_is_plain_or_that_of_nesterov(tmp_path, arguments, more, name, momentum):
    metadata = recorded("sd_scripts_folders")["metadata"] | {"ss_optimizer": f"torch.optim.sgd.SGD{arguments}"} | more
    optimizer = import_project(written(tmp_path / "a.safetensors", metadata, layers())).job.optimizer
    assert (optimizer.optimizer_type, optimizer.optimizer_args.get("momentum")) == (name, momentum)


def test_network_arguments_and_the_trained_parts_are_recovered(tmp_path):
    case = recorded("sd_scripts_locon_args")
    job = import_project(written(tmp_path / "a.safetensors", case["metadata"], layers(16, UNET))).job
    assert (job.network.conv_rank, job.network.conv_alpha, job.network.rank_dropout) == (4, 1.0, 0.1)
    assert (job.network.network_dropout, job.network.down_lr_weight) == (0.1, "1,1,1,1,1,1,1,1,1,1,1,0")
    assert (job.optimizer.loraplus_unet_lr_ratio, job.network.scale_weight_norms) == (4.0, 1.0)
    assert (job.model.prediction, job.noise.zero_terminal_snr, job.noise.debiased_estimation_loss) == ("v", True, True)
    assert (job.network.train_unet, job.network.train_text_encoder) == (True, False)
    assert job.optimizer.learning_rate == 2e-6 and job.noise.ip_noise_gamma == 0.1


def test_without_recorded_settings_the_tensors_tell_rank_kind_and_parts(tmp_path):
    for name, program in (("onetrainer_default", "OneTrainer"), ("ai_toolkit", "ai-toolkit")):
        found = import_project(written(tmp_path / "a.safetensors", recorded(name)["metadata"], layers(24, UNET)))
        assert (found.job.network.rank, found.job.network.kind, found.job.network.train_text_encoder) == (
            24,
            "lora",
            False,
        )
        assert program in found.title and found.job.model.family == "sd1"
    assert (found.job.schedule.max_train_steps, found.job.saving.output_name) == (2000, "fox_xl")
    adapter = json.dumps({"unet.r": 4, "unet.lora_alpha": 2, "unet.lora_dropout": 0.1})
    found = import_project(written(tmp_path / "b.safetensors", {"lora_adapter_metadata": adapter}, PEFT))
    assert (found.job.network.rank, found.job.network.alpha, found.job.network.network_dropout) == (4, 2.0, 0.1)
    assert "network.alpha" in {path for each in found.entries("taken") for path in each.settings}


def test_a_config_of_onetrainer_in_the_file_is_read_as_a_preset(tmp_path):
    config = json.dumps({"__version": 11, "training_method": "LORA", "lora_rank": 32, "epochs": 7})
    found = import_project(written(tmp_path / "a.safetensors", {"ot_config": config}, layers()))
    assert (found.job.network.rank, found.job.schedule.max_train_epochs, found.program) == (32, 7, "onetrainer")


def test_files_that_no_training_made_are_refused(tmp_path):
    for metadata, shapes, code in (
        ({"modelspec.merged_from": "a, b"}, layers(), "import.merged"),
        ({}, {"model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3]}, "import.not-a-lora"),
        ({}, {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": [4, 8]}, "import.other-family"),
    ):
        with pytest.raises(ProblemsError) as refused:
            import_project(written(tmp_path / "a.safetensors", metadata, shapes))
        assert refused.value.codes == [code]


def mutated(metadata, draws):
    """Metadata with texts cut, doubled and replaced."""
    values = dict(metadata)
    for key in draws.sample(sorted(values), 8):
        text = values[key]
        values[key] = draws.choice(
            (text[: len(text) // 2], text * 3, "None", "1e999", "0,1", "(" * 300, "\0", "[]", "{}", "-1")
        )
    return values


def answered(path):
    begun = time.thread_time()
    try:
        found = import_project(path)
        assert list(found.lines()) and found.description
    except ProblemsError as error:
        assert all(problem.fix and problem.code for problem in error.problems)
    assert time.thread_time() - begun < 1


def test_mutated_metadata_are_read_or_refused(tmp_path):
    for number in range(20):
        draws = random.Random(number)
        metadata = mutated(draws.choice(cases("metadata")[:4])["metadata"] | {"a": "", "b": "", "c": ""}, draws)
        answered(written(tmp_path / "a.safetensors", metadata, layers()))


@pytest.mark.slow
def test_a_thousand_mutated_headers_are_read_or_refused(tmp_path):
    for number in range(1000):
        draws = random.Random(number)
        metadata = mutated(draws.choice(cases("metadata"))["metadata"] | dict.fromkeys("abcdefgh", "x"), draws)
        path = written(tmp_path / "a.safetensors", metadata, layers())
        data = bytearray(path.read_bytes())
        for _ in range(draws.randint(0, 3)):
            data[draws.randrange(2000)] = draws.randrange(256)
        path.write_bytes(bytes(data))
        answered(path)
