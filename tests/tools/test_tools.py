"""Small jobs on files: what they say and what they write."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import tasks
from core.engine.engine import Engine
from core.networks.adapter_file import save_lora
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.base import Declared
from core.settings.check import build
from core.settings.job import JOBS
from core.tools.models.inspect import fact_lines, inspect
from tests.refusals import refused
from tests.tasks import surroundings

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
CONV = "lora_unet_mid_block_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
METADATA = {"ss_base_model_version": "sd_v1", "ss_tag_frequency": '{"fox": {"a": 2}}', "modelspec.title": "glyph"}


def lora(path, **changed):
    tensors = {
        f"{LAYER}.lora_down.weight": torch.full((4, 8), 0.5),
        f"{LAYER}.lora_up.weight": torch.full((8, 4), 0.25),
        f"{LAYER}.alpha": torch.tensor(2.0),
        f"{CONV}.lora_down.weight": torch.full((2, 8, 3, 3), 0.5),
        f"{CONV}.lora_up.weight": torch.full((8, 2, 1, 1), 3.0),
        f"{CONV}.alpha": torch.tensor(1.0),
        f"{TEXT}.lora_down.weight": torch.full((4, 8), 0.5),
        f"{TEXT}.lora_up.weight": torch.zeros(8, 4),
        f"{TEXT}.alpha": torch.tensor(2.0),
    }
    return save_lora(path, tensors | changed, METADATA)


def use(workspace=None, **asked):
    """What a tool found, or the file that it wrote, and its lines."""
    task = tasks.named(asked.pop("name"))
    outcome = task.start(build(task.job, {task.name: asked}), surroundings(workspace or Workspace()))
    return Path(outcome.facts["file"]) if "file" in outcome.facts else outcome.facts, list(outcome.lines)


def test_inspect_tells_what_a_lora_is(tmp_path):
    path = lora(tmp_path / "glyph.safetensors")
    facts, lines = use(name="inspect", file=str(path))
    assert (facts["kind"], facts["family"], facts["layout"]) == ("lora", "sd1", "kohya")
    assert facts["lora"]["layers"] == {"unet": 2, "text_encoder": 1}
    assert facts["lora"]["ranks"] == {2: 1, 4: 2} and facts["lora"]["alphas"] == {1.0: 1, 2.0: 2}
    assert facts["lora"]["untrained"] == [TEXT]
    assert facts["lora"]["largest"] == 3.0
    assert facts["metadata"]["ss_tag_frequency"] == {"fox": {"a": 2}}
    assert facts["weights_hash"] == {"sha256": facts["metadata"]["sshs_model_hash"], "as_in_metadata": True}
    assert facts["model_hash"] == "e3b0c442"  # A1111's old hash of any file under 1 MiB
    said = "\n".join(lines)
    assert "SD 1.x LoRA" in said and "rank: 2 in 1 layers, 4 in 2 layers" in said and "modelspec.title: glyph" in said
    assert "DAMAGED" not in said
    json.dumps(facts, allow_nan=False)  # what the page and the journal take


@pytest.mark.parametrize("stored", ["float8_e4m3fn", "float8_e5m2"])
def test_a_lora_in_fp8_is_inspected_converted_and_merged(tmp_path, stored):
    tensors = load_file(lora(tmp_path / "whole.safetensors"))
    save_file(
        {key: value.to(getattr(torch, stored)) for key, value in tensors.items()},
        path := tmp_path / "a.safetensors",
        METADATA,
    )
    facts, _ = use(name="inspect", file=str(path))
    assert facts["lora"]["alphas"] == {1.0: 1, 2.0: 2}
    task = tasks.named("convert_lora")
    job = build(task.job, {"convert_lora": {"file": str(path), "save_precision": "bf16"}})
    task.check_job(job, Workspace())
    [file] = task.start(job, surroundings(Workspace())).facts["files"]
    merged, _ = use(name="merge_loras", models=[str(path)], output=str(tmp_path / "merged.safetensors"))
    converted = load_file(file)
    assert converted.keys() == load_file(merged).keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in converted.items() if "alpha" in key)


def test_inspect_finds_damaged_numbers_and_changed_weights(tmp_path):
    path = lora(tmp_path / "a.safetensors")
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # the last float32 becomes NaN
    path.write_bytes(content)
    facts = inspect(path)
    assert len(facts["lora"]["not_finite"]) == 1
    assert facts["weights_hash"]["as_in_metadata"] is False
    said = "\n".join(fact_lines(facts))
    assert "DAMAGED: NaN or infinity" in said and "NOT as in the metadata" in said
    large = lora(tmp_path / "b.safetensors", **{f"{CONV}.lora_up.weight": torch.full((8, 2, 1, 1), 2e4)})
    assert inspect(large)["lora"]["too_large"] == [f"{CONV}.lora_up.weight"]


def test_inspect_counts_the_vectors_of_an_embedding_and_finds_damaged_ones(tmp_path):
    for name, value in (("sound", 0.5), ("nan", float("nan"))):
        save_file({"emb_params": torch.full((4, 64), value)}, path := tmp_path / f"{name}.safetensors")
        facts, lines = use(name="inspect", file=str(path))
        said = "\n".join(lines)
        assert facts["embedding"]["vectors"] == {"": 4} and "vectors: 4\n" in said
        assert ("DAMAGED: NaN or infinity in emb_params" in said) == (name == "nan")
        json.dumps(facts, allow_nan=False)
    torch.save({"string_to_param": {"zun": torch.ones(3, 64), "bra": torch.ones(2, 64)}}, tmp_path / "two.pt")
    assert "vectors: 3 in zun, 2 in bra" in use(name="inspect", file=str(tmp_path / "two.pt"))[1]


def test_inspect_tells_what_models_and_their_parts_are():
    facts, lines = use(name="inspect", file="models/starter")
    assert (facts["kind"], facts["family"], facts["layout"]) == ("checkpoint", "sd1", "diffusers")
    assert facts["path"] == "models/starter" and {"unet", "vae", "text_encoder"} <= set(facts["parts"])
    assert "checkpoint" in lines[0]
    part = inspect(PROJECT / "models/starter/vae/diffusion_pytorch_model.safetensors")
    assert part["kind"] == "vae" and part["parameters"] > 1_000_000 and part["types"] == {"F16": 244}


def test_inspect_says_that_a_file_is_recognized_and_not_offered(tmp_path):
    save_file(
        {"image_proj.proj.weight": torch.ones(1, 1), "ip_adapter.1.to_k_ip.weight": torch.ones(1, 768)},
        tmp_path / "x.safetensors",
    )
    facts, lines = use(name="inspect", file=str(tmp_path / "x.safetensors"))
    assert facts["what"] == "SD 1.x IP-Adapter" and facts["offered"] is False
    assert "not offered" in lines[2]


def test_files_that_are_none_are_refused_in_plain_words(tmp_path):
    (tmp_path / "page.safetensors").write_text("<!doctype html><html>login")
    for asked, code in (
        ({"name": "inspect", "file": None}, "tools.no-file-given"),
        ({"name": "inspect", "file": str(tmp_path / "missing.safetensors")}, "tools.no-such-file"),
        ({"name": "download", "hub_id": None}, "model.bad-source"),
        ({"name": "download", "hub_id": "no id"}, "model.bad-source"),
    ):
        with pytest.raises(ProblemsError) as refused:
            use(**asked)
        assert refused.value.codes == [code]
    for asked, words in (({"name": "inspect", "file": str(tmp_path / "page.safetensors")}, "web page"),):
        with pytest.raises(ProblemsError, match=words):
            use(**asked)


TOOLS = [name for name, task in tasks.tasks().items() if task.own and task.check]


def path_settings(task: tasks.Task) -> list[Declared]:
    """The tool's settings that name a file or folder."""
    fields = task.job.model_fields[task.own].annotation.model_fields
    known = [Declared(f"{task.own}.{name}", task.own, name, info) for name, info in fields.items()]
    return [entry for entry in known if entry.names in ("path", "path or name")]


@pytest.mark.parametrize("name", TOOLS)
def test_a_wrong_path_is_told_at_its_setting_so_that_the_page_marks_the_field(name, tmp_path):
    """Missing, and of the wrong kind: a file where a folder is asked for, a folder where a file is."""
    task = tasks.named(name)
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    for entry in path_settings(task):
        for path in (str(tmp_path / each) for each in ("gone", "file", "folder.json")):
            job = build(task.job, {task.own: {entry.name: [path] if entry.kind == "list" else path}})
            try:
                task.check_job(job, Workspace(tmp_path / "outputs"))
            except ProblemsError as error:
                settings = {entry.path for entry in path_settings(task)}
                about = [problem for problem in error.problems if path in f"{problem.what} {problem.where}"]
                assert all(problem.where in settings for problem in about), (
                    f"{about}: give the setting ('{entry.path}') as `where`, and name the path in `what`"
                )


def test_the_name_of_a_lora_is_enough(tmp_path):
    workspace = Workspace(outputs=tmp_path / "outputs", models=tmp_path / "models")
    lora(workspace.models / "loras" / "glyph.safetensors")
    assert use(workspace, name="inspect", file="glyph")[0]["what"] == "SD 1.x LoRA"


def test_the_key_in_a_link_stays_in_no_file(tmp_path):
    engine = Engine(Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets"), "cpu", "a test")
    try:
        link = "http://127.0.0.1:9/model.safetensors?token=SECRET"
        identity = engine.submit("download", build(JOBS["download"], {"download": {"hub_id": link}}))
        end = time.monotonic() + 60
        while engine.progress(identity)["state"] in ("waiting", "running") and time.monotonic() < end:
            time.sleep(0.05)
        assert engine.progress(identity)["state"] == "failed"
    finally:
        engine.close()
    kept = [path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert len(kept) > 2 and not any(b"SECRET" in content for content in kept)


def test_a_model_that_is_here_is_not_downloaded_again(tmp_path):
    workspace = Workspace(outputs=tmp_path / "outputs", models=tmp_path / "models")
    folder = workspace.models / "someone--some-model"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    path, lines = use(workspace, name="download", hub_id="someone/some-model")
    assert path == folder and str(folder) in lines[0]


def test_a_lora_tool_asks_for_a_lora_where_it_is_given_another_file_or_a_folder(tmp_path):
    (tmp_path / "notes.md").write_text("notes")
    for given in (tmp_path / "notes.md", tmp_path, "models/starter"):
        with refused("tools.not-a-lora") as caught:
            use(name="resize_lora", file=str(given))
        assert "folder" not in caught.value.problems[0].fix
    with refused("tools.output-format"):
        use(name="resize_lora", file=str(lora(tmp_path / "fox.safetensors")), output=str(tmp_path / "small.ckpt"))
    with refused("tools.no-file-given", "extract_lora.model_org"):
        use(name="extract_lora", model_tuned="models/starter")


def test_checkpoints_are_named_as_in_train(tmp_path):
    space = Workspace(tmp_path / "outputs", tmp_path / "models")
    for name in ("one", "two"):
        shutil.copytree("models/starter", tmp_path / "models" / name)
    path, _ = use(space, name="merge_models", models=["one", "two"], output=str(tmp_path / "m.safetensors"))
    assert path.is_file()
    check = tasks.named("check_weights")
    (tmp_path / "notes.md").write_text("notes")
    with refused("model.unknown-file", "check_weights.file"):
        check.check_job(build(check.job, {"check_weights": {"file": str(tmp_path / "notes.md")}}), space)
