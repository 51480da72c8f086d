"""What speaks against a training is said before anything is loaded, on every way to a start."""

import math
import shutil

import pytest
import torch
from safetensors.torch import save_file

from core.cli.main import BAD_INPUT, DONE, main
from core.cli.options import Options
from core.cli.train import check
from core.dataset.preflight import preflight
from core.formats.tensors.lazy import in_memory
from core.formats.tensors.writer import write_safetensors
from core.generation.model.embeddings import token_widths
from core.record.problems import Problem, ProblemsError
from core.record.run_folder import seal_state
from core.record.space import RESERVE
from core.settings.rules.embedding import other_size
from core.training.building.network_files import network_problems
from core.training.checks import embedding_file
from core.training.checks.before_start import problems_with_model, problems_without_model
from tests.models import tiny_file, tiny_folder
from tests.refusals import refused
from tests.training.conftest import STARTER


def wheres(job, workspace, device="cpu"):
    found = problems_without_model(job, workspace, preflight(job, workspace), device)
    return [problem.where for problem in found if problem.level == "error"]


@pytest.mark.parametrize(
    ("setting", "name"),
    [("saving.copy_to", "loras"), ("logging.logging_dir", "logs"), ("logging.console_log_file", "said.txt")],
)
def test_a_folder_that_takes_no_files_is_told_before_the_start(make_job, workspace, tmp_path, setting, name):
    group, field = setting.split(".")
    logs = {"logging": {"log_with": "tensorboard"}}
    (tmp_path / "file").write_text("")
    fine, bad = ({group: {**logs.get(group, {}), field: str(tmp_path / place / name)}} for place in ("new", "file"))
    assert wheres(make_job(**fine), workspace) == [] and not (tmp_path / "new").exists()
    assert wheres(make_job(**bad), workspace) == [setting]


@pytest.mark.parametrize(
    ("groups", "where"),
    [
        ({"memory": {"attention": "xformers"}}, "memory.attention"),
        ({"optimizer": {"optimizer_type": "bitsandbytes.optim.AdEMAMix32bit"}}, "optimizer.optimizer_type"),
        (
            {
                "method": {"kind": "embedding"},
                "embedding": {"token_string": "zkw"},
                "captions": {"trigger_word": "another"},
            },
            "captions.trigger_word",
        ),
        ({"resume": {"initial_epoch": 3}}, "resume.initial_epoch"),
        ({"resume": {"initial_step": 4}}, "resume.initial_step"),
        (
            {"schedule": {"lr_scheduler_type": "OneCycleLR", "lr_scheduler_args": {"max_lr": 1e-3}}},
            "schedule.lr_scheduler_args",
        ),
        (
            {
                "schedule": {"max_train_steps": None, "max_train_epochs": 2},
                "method": {"ema": True, "ema_update_every": 7},
            },
            "method.ema_update_every",
        ),
    ],
)
def test_what_images_device_and_length_tell_is_told_before_the_start(make_job, workspace, groups, where):
    assert wheres(make_job(**groups), workspace) == [where]


def test_a_state_of_the_last_step_is_refused_before_the_start(make_job, workspace, tmp_path):
    for step in (2, 4):
        state = tmp_path / "run" / "state" / f"step{step:08d}"
        state.mkdir(parents=True)
        (state / "training.pt").write_bytes(b"weights")
        seal_state(state)
    assert wheres(make_job(resume={"resume": str(tmp_path / "run")}), workspace) == ["resume.resume"]
    longer = make_job(resume={"resume": str(tmp_path / "run")}, schedule={"max_train_steps": 5})
    assert wheres(longer, workspace) == []


def test_a_class_that_nobody_names_is_told_before_the_start(make_job, workspace):
    (where,) = wheres(make_job(method={"kind": "dreambooth", "prior": "model"}), workspace)
    assert where.startswith("folder ")


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ({"method": {"kind": "fine_tune", "block_lr": ",".join(["1e-6"] * 23)}}, [("method.block_lr", "error")]),
        ({"network": {"block_dims": ",".join(["4"] * 23)}}, [("network.block_dims", "error")]),
        ({"network": {"block_dims": "4,4"}}, []),
        ({}, []),
    ],
)
def test_what_only_the_family_tells_is_said_once_the_model_tells_it(make_job, workspace, groups, told):
    groups = {**groups, "dataset": {"resolution": 128, **groups.get("dataset", {})}}
    found = problems_with_model(make_job(**groups), workspace)
    assert [(problem.where, problem.level) for problem in found] == told


@pytest.mark.parametrize("more", [{}, {"train_norm": True}])
def test_ranks_for_the_23_blocks_of_sdxl_fit(make_job, workspace, tmp_path, more):
    model = {"base_model": str(tiny_folder("sdxl", tmp_path / "model")), "family": "sdxl"}
    network = {"block_dims": ",".join(["4"] * 23), "block_alphas": ",".join(["2"] * 23)} | more
    job = make_job(model=model, network=network)
    assert not [each for each in problems_with_model(job, workspace) if each.where.startswith("network.")]


@pytest.mark.slow(but=("sd1-128-512",))
@pytest.mark.parametrize(
    ("family", "resolution", "told"),
    [("sd1", 128, 512), ("sd1", 384, None), ("sd2", 384, 768), ("sdxl", 512, 1024), ("sdxl", (768, 1024), None)],
)
def test_a_resolution_that_was_left_behind_is_warned_of(make_job, workspace, tmp_path, family, resolution, told):
    """As with the starter's preset, whose 128 stays when another base model is chosen."""
    model = {"base_model": str(tiny_file(family, tmp_path / "model.safetensors"))}

    def advice(**dataset):
        found = problems_with_model(make_job(model=model, dataset=dataset), workspace)
        return [(each.level, each.fix.split(",")[0]) for each in found if each.where == "dataset.resolution"]

    assert advice(resolution=resolution) == ([("warning", f"use {told}")] if told else [])
    assert advice(resolution=resolution, more_resolutions=[1024]) == []


def test_the_size_that_a_file_states_comes_before_that_of_its_family(make_job, workspace, tmp_path):
    file = tiny_file("sd1", tmp_path / "model.safetensors", {"modelspec.resolution": "128x128"})
    found = problems_with_model(make_job(model={"base_model": str(file)}, dataset={"resolution": 96}), workspace)
    assert "dataset.resolution" not in [problem.where for problem in found]


def test_a_weight_that_is_no_number_is_told_before_the_start_with_its_image(make_job, workspace, images, tmp_path):
    own = shutil.copytree(images, tmp_path / "weighed")
    caption = sorted(own.glob("*.txt"))[1]
    caption.write_text("a (fox:1.2.3), :4.5.6)", "utf-8")

    def problems(**captions):
        job = make_job(dataset={"folder": str(own)}, captions=captions)
        found = problems_without_model(job, workspace, preflight(job, workspace), "cpu")
        return [(problem.what, problem.where) for problem in found if problem.level == "error"]

    assert problems() == []  # brackets are text
    (problem,) = problems(weighted_captions=True)
    assert problem[0].endswith(f"{caption.stem}.png, the weight '1.2.3' is not a number") and problem[1] == str(caption)
    caption.write_text("a fox, :4.5.6)", "utf-8")
    assert problems(weighted_captions=True) == []
    (problem,) = problems(weighted_captions=True, caption_prefix="(all:1..)")
    assert "'1..'" in problem[0] and problem[1].startswith("captions.caption_prefix")


def test_tokens_initializers_and_the_initial_embedding_are_checked_before_the_start(make_job, workspace, tmp_path):
    def problems(**embedding):
        embedding = {"token_string": "zunkel", **embedding}
        groups = {"method": {"kind": "embedding"}, "embedding": embedding, "dataset": {"resolution": 128}}
        found = problems_with_model(make_job(**groups), workspace)
        return [(each.code, each.where, each.level) for each in found if each.where.startswith("embedding.")]

    assert problems() == problems(num_vectors_per_token=2, init_word="red fox") == []
    assert problems(token_string="zunkel, Fox") == [("embedding.known-token", "embedding.token_string", "error")]
    assert problems(init_word="red fox") == [("embedding.initializer-cut", "embedding.init_word", "advice")]
    (cut,) = embedding_file._initializer_advice(make_job(embedding={"token_string": "z", "init_word": "red fox"}))
    assert cut.what.endswith("is 2 tokens, of which only 'red' is used") and cut.fix.startswith("use 2 vectors")
    file, where = tmp_path / "fox.safetensors", "embedding.embedding_weights"
    width = token_widths(STARTER)[0]
    for value, told in ((1.0, []), (math.nan, [("weights.not-finite", where, "error")])):
        write_safetensors(file, {"emb_params": in_memory(torch.full((1, width), value))}, {})
        assert problems(embedding_weights=str(file), init_word="red fox") == told
    tables = {name: in_memory(torch.ones(1, width)) for name in ("<fox>", "<bear>")}
    write_safetensors(file, tables, {})
    assert problems(embedding_weights=str(file)) == [("embedding.first-token", where, "advice")]
    for other in ("unet", "vae"):
        weights = str(STARTER / other / "diffusion_pytorch_model.safetensors")
        assert problems(embedding_weights=weights) == [("embedding.not-an-embedding", where, "error")]
    (missing,) = embedding_file.problems(make_job(embedding={"embedding_weights": "no.pt"}), workspace)
    assert missing.where == where and "sd15" not in missing.fix


@pytest.mark.parametrize("setting", ["network_weights", "base_weights"])
def test_nan_and_an_alpha_of_0_in_a_lora_to_start_from_or_to_merge_are_named_before_the_start(
    make_job, workspace, tmp_path, setting
):
    name = "lora_unet_mid_block_attentions_0_proj_in"

    def codes(value, alpha=4.0):
        file = tmp_path / f"{value} {alpha}.safetensors"
        sizes = {"lora_down.weight": (4, 128, 1, 1), "lora_up.weight": (128, 4, 1, 1)}
        tensors = {f"{name}.{key}": torch.full(size, value) for key, size in sizes.items()}
        save_file(tensors | {f"{name}.alpha": torch.tensor(alpha)}, file)
        chosen = {"network_weights": str(file), "dim_from_weights": True}
        job = make_job(network=chosen if setting == "network_weights" else {setting: [str(file)]})
        return {each.code for each in network_problems(job, workspace)} & {"weights.not-finite", "lora.zero-alpha"}

    assert codes(1.0) == set() and codes(math.nan) == {"weights.not-finite"}
    assert codes(1.0, alpha=0.0) == {"lora.zero-alpha"}


def test_the_fix_of_an_embedding_of_another_size_is_the_one_that_helps():
    assert "vectors" not in other_size((1, 9), (1, 8)).fix and other_size((3, 8), (1, 8)).fix.endswith("to 3")


# -- on the command line


@pytest.fixture
def torn(images, tmp_path):
    """The words of a training that trains an image which it is also measured on."""
    held = tmp_path / "held"
    held.mkdir()
    shutil.copy(next(images.glob("*.png")), held / "other.png")
    sources = f'[{{"folder": "{images}"}}, {{"folder": "{held}", "role": "validation"}}]'
    short = "--dataset.resolution 64 --dataset.bucket_reso_steps 16 --schedule.max_train_steps 1 --device cpu"
    return ["train", "--outputs", str(tmp_path / "out"), *short.split(), "--dataset.sources", sources]


LEAK = "in both the training and the validation set"


def test_an_image_that_trains_and_validates_is_refused(torn, capsys):
    assert main([*torn, "--check"]) == BAD_INPUT and LEAK in capsys.readouterr().err
    apart = [word.replace(', "role": "validation"', "") for word in torn]
    assert main([*apart, "--check"]) == DONE


def test_errors_stand_before_advice_and_are_counted_alone(torn, capsys):
    assert main([*torn, "--check", "--network.conv_alpha", "3"]) == BAD_INPUT
    said = capsys.readouterr().err
    assert "1 problem:\n" in said
    assert said.index(LEAK) < said.index("advice: network.conv_alpha")


def test_a_model_is_fetched_only_when_nothing_else_is_wrong(make_job, workspace, monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr("core.formats.hub.references.download", lambda hub_id, *_: fetched.append(str(hub_id)))
    options = Options({"outputs": str(workspace.outputs), "models": str(tmp_path / "models"), "device": "cpu"})
    model = {"base_model": "someone/some-model"}
    with refused("dataset.missing-folder"):
        check(make_job(model=model, dataset={"folder": str(tmp_path / "nowhere")}), options)
    assert fetched == []
    with refused("model.not-downloaded"):  # the download was only pretended
        check(make_job(model=model), options)
    assert fetched == ["someone/some-model"]


@pytest.mark.parametrize(("free", "codes"), [(RESERVE, []), (RESERVE - 1, ["disk.space"])])
def test_a_nearly_full_disk_is_named_before_the_start(make_job, workspace, monkeypatch, free, codes):
    monkeypatch.setattr("core.record.machine.free_disk", lambda folder: free)
    found = problems_without_model(make_job(), workspace, preflight(make_job(), workspace))
    assert [each.code for each in found if each.code.startswith("disk.")] == codes


def test_an_upload_is_looked_at_before_the_start(make_job, workspace, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "core.training.checks.before_start.upload_problem", lambda hub, key: asked.append(key) or Problem("refused")
    )
    options = Options({"outputs": str(workspace.outputs), "models": str(workspace.models), "device": "cpu"})
    job = make_job(hub={"huggingface_repo_id": "me/run"})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("core.record.secrets._stored", dict)
    with refused("hub.no-token"):
        check(job, options)
    assert asked == [], "what is wrong without asking is said first"
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    with pytest.raises(ProblemsError, match="refused"):
        check(job, options)
    assert asked == ["hf_secret_token"]


def test_a_model_marked_with_zero_terminal_snr_asks_for_it(make_job, workspace, tmp_path):
    marks = {"ss_zero_terminal_snr": "True", "modelspec.prediction_type": "v"}
    path = tiny_file("sd1", tmp_path / "marked.safetensors", marks)
    codes = [
        [each.code for each in problems_with_model(make_job(model={"base_model": str(path)}, **noise), workspace)]
        for noise in ({}, {"noise": {"zero_terminal_snr": True}})
    ]
    assert "noise.model-has-zero-snr" in codes[0] and "noise.model-has-zero-snr" not in codes[1]
