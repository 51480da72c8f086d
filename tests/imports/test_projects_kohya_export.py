"""Jobs as presets of kohya_ss: what is imported comes back, and what cannot be expressed is listed."""

import json
import random

import pytest

from core.cli.main import BAD_INPUT, DONE, main
from core.imports.projects import kohya_ss
from core.imports.projects.export import export_project
from core.imports.projects.importers import import_project
from core.imports.projects.kohya_export import SAFE, export_preset
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.network import NETWORK_KINDS
from core.settings.presets.files import differences
from core.settings.rules import ineffective
from tests.imports.projects import cases
from tests.imports.test_projects_export import NOT_OPTIONS, job_of

IDLE = {
    "logging.wandb_run_name",
    "logging.logging_dir",
    "optimizer.unet_lr",
    "optimizer.text_encoder_lr",
    "schedule.lr_warmup_steps",
}  # other words, same training
IDLE |= {"schedule.lr_decay_steps", "method.kind", "model.family", "saving.save_model_as"}


def job(**groups):
    return build(TrainJob, groups)


def unsafe(value):
    """Whether a text cannot stand in additional_parameters."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(each, str) and not SAFE.fullmatch(each) for each in texts)


@pytest.mark.parametrize("seed", range(8))
def test_an_imported_job_comes_back_from_its_preset(seed):
    original = job_of(random.Random(seed))
    preset = export_preset(original)
    assert all(unsafe(mine) for mine, _ in preset.lost.values()), preset.lost
    back = import_project(preset.text, choice=preset.tab).job
    without_effect = ineffective(original).keys() & ineffective(back).keys()
    assert set(differences(original, back)) <= IDLE | set(preset.lost) | without_effect


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_two_hundred_random_jobs_come_back(seed):
    assert all(unsafe(mine) for mine, _ in export_preset(job_of(random.Random(seed))).lost.values())


def test_recorded_presets_come_back_on_their_tab_within_the_limits_of_its_fields():
    for case in cases("kohya_ss")[::4]:
        try:
            original = import_project(json.dumps(case["preset"]), choice=case["tab"]).job
        except ProblemsError:
            continue
        preset = export_preset(original)
        assert preset.tab == case["tab"] and set(preset.lost) <= NOT_OPTIONS | {
            "captions.caption_prefix",
            "captions.keep_tokens_separator",
        }
        for name, value in preset.fields.items():
            row = kohya_ss.FIELDS[name]
            assert "choices" not in row or str(value) in row["choices"], (case["name"], name)
            assert "most" not in row or float(value) <= row["most"], (case["name"], name)


@pytest.mark.parametrize("kind", NETWORK_KINDS)
def test_a_network_loses_no_more_than_with_sd_scripts(kind):
    original = job(network={"kind": kind, "conv_rank": 8, "conv_alpha": 4, "rank_dropout": 0.1})
    assert set(export_preset(original).lost) <= set(export_project(original).lost)


def test_fields_have_what_a_user_of_kohya_ss_would_enter():
    original = job(
        network={"rank": 1024, "conv_rank": 8, "train_text_encoder": True},
        optimizer={"learning_rate": 1e-4, "unet_lr": 2e-4},
        schedule={"max_train_epochs": 7, "lr_warmup_steps": "10%"},
        samples={"sample_prompts": ["a fox", "a wolf --w 512"]},
        captions={"caption_extension": "auto"},
        memory={"attention": "sdpa", "cache_latents": "off", "num_processes": 2},
    )  # fmt: skip
    fields = export_preset(original).fields
    expected = {
        "LoRA_type": "Kohya LoCon", "conv_dim": 8, "unet_lr": 2e-4, "text_encoder_lr": 1e-4, "epoch": 7, "max_train_epochs": 7,
        "max_train_steps": 0, "lr_warmup": 10, "sample_prompts": "a fox\na wolf --w 512", "caption_extension": ".txt",
        "xformers": "sdpa", "cache_latents": False, "num_processes": 2, "sdxl": False,
    }  # fmt: skip
    assert {name: fields[name] for name in expected} == expected
    assert fields["network_dim"] == 8 and "--network_dim=1024" in fields["additional_parameters"].split()
    assert not {"wandb_api_key", "huggingface_token"} & set(fields)


def test_a_preset_states_each_field_of_its_tab():  # a missing one keeps what the form held before
    for kind, tab in (("lora", "lora"), ("dreambooth", "dreambooth"), ("embedding", "ti")):
        assert set(export_preset(job(method={"kind": kind})).fields) >= set(kohya_ss.form_of(tab)) - kohya_ss.SECRETS


def test_full_models_with_a_metadata_file_go_to_the_fine_tuning_tab_and_others_to_dreambooths():
    source = {"folder": "images", "metadata_file": "meta/cap.json", "num_repeats": 3}
    preset = export_preset(job(method={"kind": "fine_tune"}, dataset={"sources": [source]}))
    fields = preset.fields
    assert (fields["train_dir"], fields["caption_metadata_filename"], fields["dataset_repeats"]) == (
        "meta",
        "cap.json",
        "3",
    )
    assert preset.tab == "finetune" and "dataset.sources" not in preset.lost
    assert export_preset(job(method={"kind": "fine_tune"}, dataset={"folder": "images"})).tab == "dreambooth"


def test_what_kohya_ss_cannot_express_is_listed():
    lost = export_preset(
        job(
            method={"kind": "embedding"},
            captions={"keep_tokens_separator": "|||"},
            dataset={"skip_broken": True},
            embedding={"extended": True},
        )
    ).lost
    assert {"captions.keep_tokens_separator", "dataset.skip_broken", "embedding.extended"} <= set(lost)
    with pytest.raises(ProblemsError) as refused:
        export_preset(job(method={"kind": "lllite"}))
    assert refused.value.codes == ["export.no-script"]


def test_the_command_writes_a_preset(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["export", "starter_lora", "--to", "kohya_ss", "--save", str(out)]) == DONE
    assert (
        json.loads(out.read_text())["LoRA_type"] == "Kohya LoCon"
        and "Not the same in kohya_ss" in capsys.readouterr().out
    )
    assert main(["export", "starter_lora", "--to", "kohya"]) == BAD_INPUT
