"""LoRAs converted one by one and in bulk: what is written, what is refused, what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import tasks
from core.cli.main import main
from core.networks.adapter_file import load_lora, save_lora
from core.record.cancel import Cancelled, CancelToken
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.presets.files import parse
from tests.refusals import refused
from tests.tasks import surroundings

LAYER, TEXT = "lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"
METADATA = {"ss_base_model_version": "sd_v1", "modelspec.title": "glyph"}


def lora(path, alpha=2.0, **more):
    draw = torch.Generator().manual_seed(5)
    tensors = {
        f"{name}.{key}": value
        for name in (LAYER, TEXT)
        for key, value in (
            ("lora_down.weight", torch.randn(4, 8, generator=draw)),
            ("lora_up.weight", torch.randn(8, 4, generator=draw)),
            ("alpha", torch.tensor(alpha)),
        )
    }
    return save_lora(path, tensors | more, METADATA)


def convert(cancel=None, **asked):
    task = tasks.named("convert_lora")
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in asked.items()}
    job, context = build(task.job, {"convert_lora": asked}), surroundings(Workspace(), cancel)
    task.check_job(job, context.workspace)
    outcome = task.start(job, context)
    return [Path(file) for file in outcome.facts["files"]], "\n".join(outcome.lines)


def test_to_diffusers_and_back_the_bits_are_the_same(tmp_path):
    path = lora(tmp_path / "glyph.safetensors", alpha=0.7)
    [made], lines = convert(file=path, names="diffusers")
    assert made == tmp_path / "glyph_diffusers.safetensors" and made.name in lines
    assert set(load_file(made)) == {
        f"{layer}.lora_{side}.weight"
        for layer in ("unet.mid_block.attentions.0.proj_in", "text_encoder.text_model.encoder.layers.0.mlp.fc1")
        for side in "AB"
    }
    [back], _ = convert(file=made, names="kohya", output=tmp_path / "back.safetensors")
    ours, theirs = load_lora(back), load_lora(path)
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[name], value) for name, value in theirs.tensors.items())
    assert theirs.metadata.items() <= ours.metadata.items() and ours.metadata["ss_network_dim"] == "4"
    header = back.read_bytes()
    start = 8 + int.from_bytes(header[:8], "little")
    assert header[start:] == path.read_bytes()[-len(header[start:]) :], "the same hash of the weights in A1111"


def test_a_folded_alpha_is_multiplied_into_b(tmp_path):
    path = lora(tmp_path / "glyph.safetensors")
    [made], _ = convert(file=path, names="diffusers_folded")
    name, given = "unet.mid_block.attentions.0.proj_in.lora_B.weight", load_lora(path).tensors
    assert torch.equal(load_file(made)[name], given[f"{LAYER}.lora_up.weight"] * 0.5)


def test_the_precision_is_the_one_asked_for_and_alphas_stay_exact(tmp_path):
    path = lora(tmp_path / "glyph.safetensors", alpha=0.1)
    [made], _ = convert(file=path, save_precision="bf16")
    assert made.name == "glyph_bf16.safetensors"
    read = load_file(made)
    assert read[f"{LAYER}.lora_down.weight"].dtype == torch.bfloat16
    assert torch.equal(read[f"{LAYER}.alpha"], torch.tensor(0.1))
    [peft], _ = convert(file=path, names="diffusers", save_precision="fp16")
    assert {value.dtype for value in load_file(peft).values()} == {torch.float16}
    large = lora(tmp_path / "large.safetensors", **{f"{LAYER}.lora_up.weight": torch.full((8, 4), 1e6)})
    with refused("weights.overflow", LAYER):
        convert(file=large, save_precision="fp16")
    assert not (tmp_path / "large_kohya.safetensors").exists()


def test_a_folder_is_converted_with_its_folders_and_what_is_none_is_left_out_and_said(tmp_path):
    folder = tmp_path / "loras"
    lora(folder / "a.safetensors")
    lora(folder / "deep" / "b.safetensors")
    torch.save(dict(load_lora(folder / "a.safetensors").tensors), folder / "c.pt")
    save_file({"emb_params": torch.zeros(1, 768)}, folder / "word.safetensors")
    (folder / "broken.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:-9])
    save_file({f"{LAYER}.hada_w1_a": torch.zeros(2, 2)}, folder / "half.safetensors")
    (folder / "notes.txt").write_text("mine")
    made, lines = convert(file=folder, names="diffusers", output=tmp_path / "out")
    names = ("a_diffusers.safetensors", "c_diffusers.safetensors", "deep/b_diffusers.safetensors")
    assert made == [tmp_path / "out" / name for name in names] and all(file.is_file() for file in made)
    assert all(f"left out {name}" in lines for name in ("word.safetensors", "broken.safetensors", "half.safetensors"))
    again, lines = convert(file=tmp_path / "out", names="kohya")
    assert [file.name for file in again] == ["a_kohya.safetensors", "c_kohya.safetensors", "b_kohya.safetensors"]
    for file in again:
        ours, theirs = load_file(file), load_lora(folder / "a.safetensors").tensors
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_nothing_is_written_over_and_everything_is_told_before(tmp_path):
    path = lora(tmp_path / "a.safetensors")
    lora(tmp_path / "b.safetensors")
    for asked, code in (
        ({"file": path, "names": "kohya"}, "tools.nothing-to-convert"),
        ({"file": path, "names": "diffusers", "output": path}, "tools.output-is-input"),
        ({"file": path, "names": "diffusers", "output": tmp_path / "b.safetensors"}, "tools.output-exists"),
        ({"file": tmp_path, "names": "diffusers", "output": tmp_path / "x.safetensors"}, "tools.output-not-a-folder"),
        ({"file": tmp_path, "names": "kohya"}, "tools.no-loras"),
    ):
        before = {file: file.read_bytes() for file in tmp_path.iterdir()}
        with refused(code) as caught:
            convert(**asked)
        assert str(caught.value).count(path.name) <= 1
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert "b.safetensors" in str(caught.value)  # each file of the folder that was left out
    lora(tmp_path / "a.pt.safetensors").rename(tmp_path / "a.pt")
    with refused("tools.output-twice"):
        convert(file=tmp_path, names="diffusers")


def test_a_cancelled_conversion_leaves_whole_files_only(tmp_path):
    for name in "abc":
        lora(tmp_path / f"{name}.safetensors")
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        convert(token, file=tmp_path, names="diffusers")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "c.safetensors"]


def test_what_diffusers_has_no_names_for_is_refused_before_the_start(tmp_path):
    keys = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    shapes = ((8, 2), (2, 8), (8, 2), (2, 8))
    content = {f"{LAYER}.{key}": torch.ones(shape) for key, shape in zip(keys, shapes, strict=True)}
    save_file(content, tmp_path / "loha.safetensors")
    with refused("lora.no-diffusers-names", "LoHa"):
        convert(file=tmp_path / "loha.safetensors", names="diffusers")


@pytest.mark.parametrize(("magnitudes", "fits"), [((8, 1), True), ((1, 8), False)])
def test_a_dora_that_peft_has_no_form_for_is_refused_before_the_start(tmp_path, magnitudes, fits):
    file = tmp_path / "dora.safetensors"
    lora(file, **{f"{name}.dora_scale": torch.ones(magnitudes) for name in (LAYER, TEXT)})
    task = tasks.named("convert_lora")
    job = build(task.job, {"convert_lora": {"file": str(file), "names": "diffusers"}})
    if fits:
        assert task.check_job(job, Workspace()).startswith("convert 1 LoRA")
    else:
        with refused("lora.no-diffusers-names", "DoRA", "magnitudes per input"):
            task.check_job(job, Workspace())


def test_changes_of_biases_and_norm_layers_stay_under_kohyas_names_and_are_listed_for_diffusers(tmp_path):
    path = "unet.mid_block.attentions.0.proj_in"
    given = {f"{path}.lora_A.weight": torch.ones(2, 8), f"{path}.lora_B.weight": torch.ones(8, 2)}
    given |= {f"{path}.diff_b": torch.ones(8), f"{path}.lora_B.bias": torch.ones(8)}
    given |= {"unet.mid_block.attentions.0.norm.w_norm": torch.ones(8)}
    save_file(given, tmp_path / "a.safetensors")
    [made], lines = convert(file=tmp_path / "a.safetensors", names="kohya")
    kept = {f"{LAYER}.diff_b", "lora_unet_mid_block_attentions_0_norm.w_norm"}
    assert kept < load_file(made).keys() and not any("lora_B" in key for key in load_file(made))
    assert "left out 1 tensor" in lines and "lora_B.bias" in lines
    with refused("lora.norms-lost"):
        convert(file=made, names="diffusers")
    _, lines = convert(file=made, names="diffusers", drop_norms=True)
    assert "left out 2 tensors" in lines


# -- the export that was here before


def test_presets_of_the_former_export_do_the_same(tmp_path):
    raw = {"kind": "job", "schema_version": 2, "task": "export_diffusers", "export_diffusers": {"file": "fox"}}
    preset = parse(raw, "old.json")
    assert preset.task == "convert_lora"
    assert preset.values == {"convert_lora": {"names": "diffusers_folded", "file": "fox"}}
    tool = {"name": "export_diffusers", "file": "fox", "output": "out"}
    oldest = parse({"kind": "job", "schema_version": 1, "task": "tool", "tool": tool}, "older.json")
    assert oldest.values == {"convert_lora": {"names": "diffusers_folded", "file": "fox", "output": "out"}}


@pytest.mark.parametrize(
    "words", [["export_diffusers", "{}"], ["tool", "--tool.name", "export_diffusers", "--tool.file", "{}"]]
)
def test_the_former_command_does_the_same(tmp_path, words, capsys):
    path = lora(tmp_path / "glyph.safetensors")
    given = [word.format(path) for word in words]
    assert main([*given, "--outputs", str(tmp_path / "out")]) == 0, capsys.readouterr()
    assert (tmp_path / "glyph_diffusers.safetensors").is_file()
