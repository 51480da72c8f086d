"""What is written into an image comes back, and what others wrote is understood."""

from __future__ import annotations

import json
import re
import time
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core import __version__
from core.diffusion.samplers import schedules_of
from core.generation.images.a1111 import a1111_text, from_a1111_text
from core.generation.images.a1111_rows import ROWS, other_settings
from core.generation.images.metadata import EXIF_FOLDER, EXIF_USER_COMMENT, one_image, png_info, read_image_metadata
from core.generation.images.output import encoded_image
from core.generation.model.library import portable_name
from core.generation.model.sources import Hashes, Sources
from core.generation.plan.stages import stages_of
from core.generation.plan.upscalers import UPSCALERS
from core.record.workspace import PROJECT, Workspace
from core.settings.base import declared
from core.settings.check import build
from core.settings.generation.generate import GenerateSettings, LoraUse
from core.settings.job import GenerateJob
from core.settings.model import ModelSettings
from core.settings.samples import SAMPLER_LABELS

A1111_EXAMPLE = """a portrait of a knight, <lora:armor_v2:0.8> (silver:1.2)
oil painting
Negative prompt: blurry, low quality
hands
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 2179987202, Size: 768x512, Model hash: 93b79e09ed, """
A1111_EXAMPLE += 'Model: anything-v4.5, Clip skip: 2, Lora hashes: "armor_v2: 1a2b3c4d5e6f", Version: v1.9.4'


def whole_job() -> GenerateJob:
    generate = GenerateSettings(
        prompt='a fox, "quoted"\nsecond line; naïve 狐',
        negative_prompt="blurry\nSteps: 3, not these",
        width=192,
        height=128,
        steps=12,
        guidance_scale=4.25,
        seed=4294967295,
        count=1,
        sampler="dpmsolver++",
        loras=[
            LoraUse(file="models/loras/glyph.safetensors", strength=-0.75),
            LoraUse(file="outputs/runs/a/checkpoints/b.safetensors"),
        ],
    )
    return GenerateJob(
        generate=generate, model=ModelSettings(base_model="models/starter", clip_skip=2, prediction="epsilon")
    )


def save(path: Path, info: PngInfo) -> Path:
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_a_job_comes_back_from_its_image_exactly(tmp_path):
    job, hashes = whole_job(), Hashes("ab" * 32, {"models/loras/glyph.safetensors": "cd" * 32})
    record = read_image_metadata(save(tmp_path / "a.png", png_info(job, hashes)))
    assert record.job == job
    assert record.hashes == hashes
    assert (record.source, record.notes) == ("atelier", [])


def test_the_a1111_block_has_the_published_form():
    text = a1111_text(whole_job(), Hashes("ab" * 32, {"models/loras/glyph.safetensors": "cd" * 32}))
    lines = text.split("\n")
    assert lines[1] == "second line; naïve 狐 <lora:glyph:-0.75> <lora:b:1>"
    assert lines[2] == "Negative prompt: blurry"
    assert lines[-1] == (
        "Steps: 12, Sampler: DPM++ 2M, Schedule type: Uniform, CFG scale: 4.25, Seed: 4294967295, Size: 192x128, "
        "Model hash: ababababab, Model: starter, Clip skip: 2, RNG: CPU, "
        f'Lora hashes: "glyph: cdcdcdcdcdcd", prediction: epsilon, Version: Atelier {__version__}'
    )


def test_our_own_a1111_block_reads_back_to_the_same_drawing():
    job = whole_job()
    record = from_a1111_text(a1111_text(job, Hashes("ab" * 32)))
    assert record.job is not None
    again, asked = record.job.generate, job.generate
    for name in ("prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "sampler"):
        assert getattr(again, name) == getattr(asked, name), name
    assert [(use.file, use.strength) for use in again.loras] == [("glyph", -0.75), ("b", 1.0)]
    assert record.job.model.clip_skip == 2


def test_an_image_of_a1111_is_understood_and_what_differs_is_noted(tmp_path):
    info = PngInfo()
    info.add_text("parameters", A1111_EXAMPLE)
    record = read_image_metadata(save(tmp_path / "a.png", info))
    assert record.source == "a1111" and record.job is not None
    asked = record.job.generate
    assert asked.prompt == "a portrait of a knight,  (silver:1.2)\noil painting"
    assert asked.negative_prompt == "blurry, low quality\nhands"
    assert (asked.steps, asked.guidance_scale, asked.seed, asked.width, asked.height) == (28, 6.5, 2179987202, 768, 512)
    assert asked.sampler == "dpmsolver++"
    assert asked.loras == [LoraUse(file="armor_v2", strength=0.8)]
    assert record.hashes == Hashes("93b79e09ed", {"armor_v2": "1a2b3c4d5e6f"})
    noted = {note.code: note.what for note in record.notes}
    assert (asked.sampler, asked.schedule_type) == ("dpmsolver++", "karras")
    assert "anything-v4.5" in noted["image-settings.other-model"]
    assert all(note.level == "advice" for note in record.notes)


def test_values_out_of_range_are_noted_and_the_others_kept():
    record = from_a1111_text("a fox\nSteps: 5000, Sampler: Restart, CFG scale: seven, Seed: -2, Size: 513x512")
    assert record.job is not None
    assert record.job.generate == GenerateSettings(prompt="a fox", width=512, height=512)
    assert len(record.notes) == 5


@pytest.mark.parametrize(
    ("size", "sides"), [("256x220", (256, 224)), ("1000x700", (1000, 704)), ("8000x32", (4096, 64)), ("512x640", None)]
)
def test_a_size_becomes_the_nearest_possible_one_and_is_noted(size, sides):
    record = from_a1111_text(f"a fox\nSteps: 20, Sampler: Euler, Size: {size}")
    wide, high = sides or (512, 640)
    assert (record.job.generate.width, record.job.generate.height) == (wide, high)
    assert [f"{wide}x{high}" in note.what for note in record.notes] == ([True] if sides else [])


def test_exif_of_a_jpeg_is_read(tmp_path):
    image = Image.new("RGB", (8, 8))
    exif = image.getexif()
    exif.get_ifd(EXIF_FOLDER)[EXIF_USER_COMMENT] = b"UNICODE\0" + A1111_EXAMPLE.encode("utf-16-be")
    image.save(tmp_path / "a.jpg", exif=exif)
    record = read_image_metadata(tmp_path / "a.jpg")
    assert record.job is not None and record.job.generate.steps == 28


@pytest.mark.parametrize("ending", ["jpeg", "webp"])
def test_the_user_comment_has_exifs_type_without_which_a1111_and_prompt_readers_find_no_text(ending):
    exif = Image.open(BytesIO(encoded_image(Image.new("RGB", (8, 8)), whole_job(), Hashes(), ending))).info["exif"]
    assert exif.count(b"\x92\x86\0\x07") == 1 and b"\x92\x86\0\x01" not in exif


def test_images_without_usable_settings_say_why_in_one_sentence(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "no_image.png").write_bytes(b"not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    damaged, newer, words = PngInfo(), PngInfo(), PngInfo()
    damaged.add_text("atelier", '{"format": 1, "job": {"generate": {"steps": "many"}}}')
    newer.add_text("atelier", '{"format": 99}')
    words.add_text("parameters", '{"program": "unknown"}')
    save(tmp_path / "damaged.png", damaged)
    save(tmp_path / "newer.png", newer)
    save(tmp_path / "words.png", words)
    reasons = {path.stem: read_image_metadata(path) for path in tmp_path.iterdir()}
    assert len(reasons) == 6
    assert all(record.job is None and record.reason.endswith(".") for record in reasons.values())
    assert len({record.reason for record in reasons.values()}) == 6
    for content in ("[]", "null", "3", '{"format": "1"}', '{"format": 1, "job": {}, "hashes": 5}'):
        info = PngInfo()
        info.add_text("atelier", content)
        assert read_image_metadata(save(tmp_path / "odd.png", info)).reason


def test_no_folder_of_the_machine_is_written(tmp_path):
    workspace = Workspace(outputs=tmp_path / "out" / "outputs", models=tmp_path / "lib" / "models")
    outside = tmp_path / "secret_person" / "x.safetensors"
    assert portable_name(workspace.models / "loras" / "a.safetensors", workspace) == "models/loras/a.safetensors"
    assert (
        portable_name(workspace.runs / "r" / "checkpoints" / "b.safetensors", workspace)
        == "outputs/runs/r/checkpoints/b.safetensors"
    )
    assert portable_name(PROJECT / "models" / "starter", workspace) == "models/starter"
    assert portable_name(outside, workspace) == "x.safetensors"
    assert portable_name(tmp_path / "lib" / "private" / "y.safetensors", workspace) == "y.safetensors"
    vae = tmp_path / "secret_person" / "v.safetensors"
    uses = [LoraUse(file=str(outside), strength=0.5)]
    job = GenerateJob(
        model=ModelSettings(base_model=str(outside), vae=str(vae)),
        generate=GenerateSettings(seed=7, width=128, height=128, count=4, loras=uses),
    )
    drawn = one_image(job, Sources(outside, "sd1", vae, {str(outside): outside}), workspace)
    assert (drawn.model.base_model, drawn.model.vae, drawn.generate.loras[0].file) == (
        "x.safetensors",
        "v.safetensors",
        "x.safetensors",
    )
    path = save(tmp_path / "a.png", png_info(drawn, Hashes()))
    with Image.open(path) as image:
        assert "secret_person" not in json.dumps(image.info)
    read = read_image_metadata(path).job
    assert read == drawn and read.generate.seed == 7 and read.generate.count == 1


def test_texts_behind_the_pixels_are_found(tmp_path):
    job = whole_job()
    content = save(tmp_path / "a.png", png_info(job, Hashes())).read_bytes()
    chunks, place = [], 8
    while place < len(content):
        length = 12 + int.from_bytes(content[place : place + 4], "big")
        chunks.append(content[place : place + length])
        place += length
    texts = [chunk for chunk in chunks if chunk[4:8] in (b"tEXt", b"iTXt")]
    others = [chunk for chunk in chunks if chunk not in texts]
    assert len(texts) == 2
    (tmp_path / "b.png").write_bytes(content[:8] + b"".join([*others[:-1], *texts, others[-1]]))
    assert read_image_metadata(tmp_path / "b.png").job == job


@pytest.mark.parametrize(
    "text", ["a" * 900_000, " " * 900_000 + "Steps: 1", "<lora:" * 100_000 + "\nSteps: 2, a: b, c: d"]
)
def test_texts_made_to_be_slow_are_answered_at_once(text):
    began = time.thread_time()
    from_a1111_text(text)
    assert time.thread_time() - began < 5


def codes_of(record):
    return [note.code for note in record.notes]


def test_weights_and_zero_terminal_snr_are_written_as_a1111_writes_them_and_read_back():
    for weights, schedule in ((True, "on"), (False, "off")):
        asked = {"prompt": "a (fox:1.3)", "prompt_weights": weights, "zero_terminal_snr": schedule, "seed": 1}
        text = a1111_text(build(GenerateJob, {"generate": asked}), Hashes())
        found = from_a1111_text(text)
        assert found.job.generate.prompt_weights is weights and "image-settings.prompt-weights" not in codes_of(found)
        assert found.job.generate.zero_terminal_snr == ("on" if schedule == "on" else "auto")
    theirs = from_a1111_text("a (fox:1.3)\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 64x64")
    assert (theirs.job.generate.prompt_weights, theirs.job.generate.emb_normalize_mode) == (True, "original")
    assert not theirs.notes, "A1111 keeps the original mean, which this program can do"


NETS = [
    {"file": "models/controlnet/lines.safetensors", "preprocessor": "canny", "edge_low": 50, "edge_high": 120},
    {"file": "lllite, odd: name", "weight": 0.6, "start_at": 0.1, "end_at": 0.75, "fit": "fill", "mode": "control"},
    {"file": "tiles", "preprocessor": "tile", "tile_factor": 2.5, "mode": "prompt", "fit": "crop"},
    {"file": "off", "enabled": False},
]


def test_control_nets_are_written_as_a1111s_extension_writes_them_and_read_back():
    job = build(GenerateJob, {"controls": {"nets": NETS}})
    text = a1111_text(job, Hashes(controls={NETS[0]["file"]: "d14c016b"}))
    assert (
        'ControlNet 0: "Module: canny, Model: lines [d14c016b], Weight: 1, Resize Mode: Just Resize, Threshold A: 50, '
        'Threshold B: 120, Guidance Start: 0, Guidance End: 1, Pixel Perfect: True, Control Mode: Balanced", '
    ) in text
    found = from_a1111_text(text)
    names = ("lines", "lllite_ odd_ name", "tiles")
    wanted = [use.model_copy(update={"file": name}) for use, name in zip(job.controls.used, names, strict=True)]
    assert found.job.controls.nets == wanted
    assert "image-settings.no-control-image" in codes_of(found) and found.hashes.controls == {"lines": "d14c016b"}
    assert "ControlNet" not in a1111_text(GenerateJob(), Hashes())


# Of images that people have shown: sd-webui-controlnet 1.1.4xx with A1111 1.9.4 and 1.6, and before 1.1.400.
THEIRS = {
    "Module: tile_resample, Model: control_v11f1e_sd15_tile_fp16 [3b860298], Weight: 0.6, Resize Mode: Crop and Resize, "
    "Processor Res: 512, Threshold A: 1.0, Threshold B: 0.5, Guidance Start: 0.0, Guidance End: 1.0, Pixel Perfect: True, "
    "Control Mode: Balanced": {
        "file": "control_v11f1e_sd15_tile_fp16", "weight": 0.6, "fit": "crop", "preprocessor": "tile", "tile_factor": 1,
    },
    "Module: none, Model: qrCodeMonster_v20 [5e5778cb], Weight: 1.1, Resize Mode: Crop and Resize, Low Vram: False, "
    "Guidance Start: 0.15, Guidance End: 1, Pixel Perfect: True, Control Mode: Balanced, Hr Option: Both, "
    "Save Detected Map: True": {"file": "qrCodeMonster_v20", "weight": 1.1, "fit": "crop", "start_at": 0.15},
    "preprocessor: canny, model: control_sd15_canny [fef5e48e], weight: 1, starting/ending: (0.1, 0.8), resize mode: "
    "Crop and Resize, pixel perfect: False, control mode: ControlNet is more important, preprocessor params: "
    "(512, 90, 210)": {
        "file": "control_sd15_canny", "fit": "crop", "preprocessor": "canny", "edge_low": 90, "edge_high": 210,
        "start_at": 0.1, "end_at": 0.8, "mode": "control",
    },
    "Module: dw_openpose_full, Model: control_v11p_sd15_openpose [cab727d4], Weight: 9, Resize Mode: 2, Processor Res: 512, "
    "Guidance Start: 0, Guidance End: 1, Pixel Perfect: False, Control Mode: 1": {
        "file": "control_v11p_sd15_openpose", "fit": "fill", "mode": "prompt",
    },
}  # fmt: skip


def test_control_nets_of_a1111s_images_are_read():
    units = ", ".join(f'ControlNet {number}: "{text}"' for number, text in enumerate(THEIRS))
    alone = 'ControlNet 4: "Module: openpose_full, Model: None, Weight: 1"'
    found = from_a1111_text(f"a fox\nSteps: 20, Sampler: DDIM, Seed: 1, Size: 64x64, {units}, {alone}, Version: v1.9.4")
    assert [use.model_dump(exclude_defaults=True) for use in found.job.controls.nets] == list(THEIRS.values())
    noted = [code for code in codes_of(found) if code != "image-settings.other-model"]
    assert noted.count("image-settings.no-preprocessor") == 1 and noted.count("image-settings.out-of-range") == 1


def test_noise_source_and_guidance_are_written_and_read_back():
    for groups in (
        {"start_noise": {"noise_source": "device"}},
        {"generate": {"guidance": "pag"}, "pag": {"pag_scale": 4.5, "pag_layers": "mid, up.1"}},
        {"generate": {"guidance": "tangential"}},
        {"generate": {"guidance": "smoothed_energy"}, "smoothed_energy": {"seg_blur": 2}},
    ):
        job = build(GenerateJob, groups)
        found = from_a1111_text(a1111_text(job, Hashes())).job
        assert found.start_noise.noise_source == job.start_noise.noise_source
        assert found.generate.guidance == job.generate.guidance
        assert getattr(found, job.generate.guidance, None) == getattr(job, job.generate.guidance, None)
    assert "Guidance" not in a1111_text(GenerateJob(), Hashes())


def test_noise_is_the_gpus_where_a1111_names_none_and_other_programs_texts_do_not_say():
    block = "a fox\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 64x64"
    for more, source in (
        ("", "device"),
        (", Version: v1.10.1", "device"),
        (", Version: f2.0.1v1.10.1-previous-659", "device"),
        (", RNG: NV, Version: v1.10.1", "device"),
        (", RNG: CPU, Version: v1.10.1", "cpu"),
        (", Version: ComfyUI", "cpu"),
        (", Version: Atelier", "cpu"),  # of before it was written
        (f", Version: Atelier {__version__}", "cpu"),
    ):
        assert from_a1111_text(block + more).job.start_noise.noise_source == source, more


def test_a_guidance_that_cannot_be_used_is_noted():
    block = "a fox\nSteps: 20, Sampler: DDIM, Seed: 1, Guidance: "
    other, bad = from_a1111_text(block + "magic"), from_a1111_text(block + "pag, pag_scale: 900")
    assert (other.job.generate.guidance, codes_of(other)) == ("classic", ["image-settings.no-guidance"])
    assert (bad.job.generate.guidance, codes_of(bad)) == ("pag", ["image-settings.out-of-range"])
    assert bad.job.pag.pag_scale == 3


def test_an_image_of_before_weights_were_read_is_made_again_as_it_was(tmp_path):
    info = PngInfo()
    job = {"generate": {"prompt": "a (fox:1.3)", "seed": 1}, "model": {}, "memory": {}}
    info.add_text("atelier", json.dumps({"format": 1, "job": job}))
    Image.new("RGB", (8, 8)).save(tmp_path / "old.png", pnginfo=info)
    asked = read_image_metadata(tmp_path / "old.png").job.generate
    assert not asked.prompt_weights and asked.zero_terminal_snr == "off"


@pytest.mark.parametrize("number", ["123456x", "9" * 5000, "1" * 7, "-3", "", "²"])
def test_a_number_that_none_can_be_is_left_out_and_said(number):
    record = from_a1111_text(
        f"a fox <lora:ink:1>\nSteps: {number}, Sampler: DDIM, Seed: 3, Size: 64x64, Clip skip: {number}"
    )
    default = GenerateJob()
    assert record.job.generate.steps == default.generate.steps and record.job.model.clip_skip == default.model.clip_skip
    assert record.job.generate.seed == 3 and record.notes


BLOCK = "a red hat\nNegative prompt: blur\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768"
HIRES = ", Denoising strength: 0.4, Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent, Version: v1.7.0"


def test_a_byte_order_mark_and_dos_line_endings_are_no_part_of_the_prompt():
    job = from_a1111_text("\ufeff" + BLOCK.replace("\n", "\r\n") + "\r\n").job.generate
    assert (job.prompt, job.negative_prompt, job.steps, job.width) == ("a red hat", "blur", 20, 512)


def test_hires_fix_of_a1111_is_read():
    job = from_a1111_text(BLOCK + HIRES).job
    first, second = stages_of(job)
    assert (first.size, first.steps, second.size, second.run) == ((512, 768), 20, (1024, 1536), 10)
    assert (job.image_to_image.strength, job.hires.highres_fix_upscaler) == (0.4, "latent")


@pytest.mark.parametrize(
    ("more", "sizes"),
    [
        ("Size: 512x768, Hires resize: 1024x1536", [(512, 768), (1024, 1536)]),
        ("Size: 512x768, Hires resize: 1000x0", [(512, 768), (1000, 1496)]),
        ("Size: 1024x1536, First pass size: 512x768", [(512, 768), (1024, 1536)]),
        ("Size: 1024x1024, First pass size: 0x0", [(512, 512), (1024, 1024)]),
        ("Size: 1024x2048, First pass size: 0x0", [(384, 768), (1024, 2048)]),
        ("Size: 512x768, Hires upscale: 1.5, Hires steps: 0", [(512, 768), (768, 1152)]),
        ("Size: 512x768, Hires upscale: 1.5, Hires resize: 0x0", [(512, 768), (768, 1152)]),
    ],
)
def test_every_way_in_which_a1111_says_a_second_stage_is_read(more, sizes):
    record = from_a1111_text(f"a\nSteps: 20, Sampler: Euler, Denoising strength: 0.5, {more}, Hires upscaler: 4x-Sharp")
    assert [stage.size for stage in stages_of(record.job)] == sizes and record.job.generate.steps == 20
    assert record.job.hires.highres_fix_upscaler_file == "4x-Sharp"
    assert codes_of(record) == []


def test_an_initial_image_that_is_not_in_the_file_is_noted_and_its_mask_settings_are_read():
    more = ", Denoising strength: 0.6, Mask blur: 8, Inpaint area: Only masked, Masked area padding: 16, "
    record = from_a1111_text(f"{BLOCK}{more}Mask mode: Inpaint not masked, Masked content: latent noise")
    given = record.job.image_to_image
    assert codes_of(record) == ["image-settings.no-initial-image"] and record.job.hires.highres_fix_scale is None
    assert (given.strength, given.mask_blur, given.mask_padding, given.mask_invert) == (0.6, 8, 16, True)
    assert (given.inpaint_area, given.masked_content) == ("masked", "latent_noise")


def test_one_note_names_everything_that_was_not_read_and_nothing_else():
    named = ["ENSD", "Eta", "Tiling", "Seed resize from", "ADetailer sampler", "ADetailer prompt 2nd", "FreeU Stages"]
    named += ["pag_enabled", "NGMS", "Hires prompt", "Dynamic thresholding enabled", "Face restoration", "Foo (bar)"]
    idle = ['Model hash: ab, Lora hashes: "a: bc", Version: v1.9.4, Batch pos: 2, Hires Module 1: Use same choices']
    idle += ["Hires CFG Scale: 7, Civitai metadata: {}, Template: x, SAG enabled: False"]
    record = from_a1111_text(", ".join([BLOCK, *(f"{name}: 1" for name in named), *idle]))
    (note,) = [each for each in record.notes if each.code != "image-settings.other-model"]
    assert note.code == "image-settings.not-read" and note.what.partition(": ")[2].split(", ") == named
    bare = 'Civitai resources: [{"type":"checkpoint","id":1}], Civitai metadata: {}'
    assert not from_a1111_text(f"{BLOCK}, {bare}").notes
    (note,) = from_a1111_text(f"{BLOCK}, {bare.replace('checkpoint', 'lora')}").notes
    assert "Civitai resources" in note.what


def test_a_vae_is_read_by_both_names():
    for more in ("VAE: mse.safetensors", "Module 1: mse.safetensors"):
        assert from_a1111_text(f"{BLOCK}, {more}").job.model.vae == "mse.safetensors"
    assert from_a1111_text(f"{BLOCK}, VAE: Automatic").job.model.vae is None


@pytest.mark.parametrize(
    "more",
    [
        'Wildcard prompt: "a __color__\nhat", Version: v1.6.0',
        "Odd: a\nb, c: d, Version: v1.6.0",
        "Version: v1.6.0\nTemplate: a {red|blue} hat, x\nNegative Template: Seed: 9, blur",
        'Odd: "never closed\nVersion: v1.6.0',
        'Odd: "Seed: 7, Steps: 3\nSteps", Seed: 8, Version: v1.6.0',
    ],
)
def test_a_value_with_a_line_break_costs_nothing_but_itself(more):
    found = from_a1111_text(f"{BLOCK}, {more}").job.generate
    assert (found.prompt, found.negative_prompt, found.steps, found.sampler) == ("a red hat", "blur", 20, "euler_a")
    assert (found.seed, found.width, found.height, found.guidance_scale) == (5, 512, 768, 7)


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [("only a prompt", "only a prompt", ""), ("a hat\nb\nNegative prompt: blur\nSteps", "a hat\nb", "blur\nSteps")],
)
def test_a_prompt_without_settings_is_offered_and_said(tmp_path, text, prompt, negative):
    info = PngInfo()
    info.add_text("parameters", text)
    record = read_image_metadata(save(tmp_path / "a.png", info))
    assert (record.job.generate.prompt, record.job.generate.negative_prompt) == (prompt, negative)
    assert codes_of(record) == ["image-settings.prompt-alone"]


def test_a_few_settings_alone_are_read_and_other_comments_are_no_prompts(tmp_path):
    found = from_a1111_text("a hat\nSeed: 5, Size: 512x512").job.generate
    assert (found.prompt, found.seed, found.width) == ("a hat", 5, 512)
    image = Image.new("RGB", (8, 8))
    exif = image.getexif()
    exif.get_ifd(EXIF_FOLDER)[EXIF_USER_COMMENT] = b"ASCII\0\0\0" + b"A day at the sea"
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image_metadata(tmp_path / "a.jpg").job is None


# What "Automatic" is in A1111 (modules/sd_samplers_kdiffusion.py, 1.10); elsewhere it is uniform.
KARRAS, EXPONENTIAL = ("DPM++ 2M", "DPM++ SDE", "DPM2", "DPM2 a"), ("DPM++ 2M SDE",)


@pytest.mark.parametrize("label", [*KARRAS, *EXPONENTIAL, "Euler", "Euler a", "LMS", "Heun", "DDIM", "PLMS", "UniPC"])
def test_schedule_types_mean_in_a1111_and_here_the_same(label):
    automatic = "karras" if label in KARRAS else "exponential" if label in EXPONENTIAL else "own"
    block = f"a\nSteps: 20, Sampler: {label}, Seed: 1, Size: 64x64"
    wanted = {"": "own", ", Schedule type: Automatic": automatic}
    for more, schedule in wanted.items():
        record = from_a1111_text(f"{block}{more}, Version: v1.10.1")
        assert record.job.generate.schedule_type == schedule and not record.notes
        written = a1111_text(record.job, Hashes())
        said = re.findall("Schedule type: (\\w+)", written)
        assert said == (["Uniform"] if automatic != schedule else [schedule.title()] if schedule != "own" else [])
        assert f"Sampler: {label}," in written
        assert from_a1111_text(written).job.generate.schedule_type == schedule


PORTABLE = st.sampled_from([None, "outputs/inputs/a.png"])
SHARES, SCALES = st.floats(0, 1), st.sampled_from([None, 2.0, 1.5, 0.5, 1.0, 1.8737])
MADE = st.fixed_dictionaries(
    {
        "generate": st.fixed_dictionaries(
            {
                "prompt": st.sampled_from(["a hat", "a (red:1.2) hat", "[a]"]),
                "negative_prompt": st.sampled_from(["", "blur, bad", "(bad)"]),
                "steps": st.integers(1, 1000),
                "seed": st.integers(0, 2**64 - 1),
                "width": st.sampled_from([512, 832]),
                "height": st.sampled_from([512, 1216]),
                "guidance_scale": st.none() | st.floats(0, 50),
                "negative_scale": st.none() | st.floats(-50, 50),
                "guidance_rescale": SHARES,
                "sampler": st.sampled_from(sorted(SAMPLER_LABELS)),
                "prompt_weights": st.booleans(),
                "emb_normalize_mode": st.sampled_from(["none", "original", "abs"]),
                "zero_terminal_snr": st.sampled_from(["auto", "on"]),
                "guidance": st.sampled_from(["classic", "pag"]),
                "long_prompts": st.sampled_from(["whole", "trained"]),
            }
        ),
        "model": st.fixed_dictionaries(
            {"vae": st.sampled_from([None, "v.pt"]), "clip_skip": st.none() | st.integers(1, 12)}
        ),
        "image_to_image": st.fixed_dictionaries(
            {
                "image_path": PORTABLE,
                "mask_path": PORTABLE,
                "strength": SHARES,
                "mask_blur": st.integers(0, 256),
                "mask_invert": st.booleans(),
                "inpaint_area": st.sampled_from(["whole", "masked"]),
                "mask_padding": st.integers(0, 1024),
                "masked_content": st.sampled_from(["original", "fill", "latent_noise", "latent_nothing"]),
                "fit": st.sampled_from(["resize", "crop"]),
            }
        ),
        "hires": st.fixed_dictionaries(
            {
                "highres_fix_scale": SCALES,
                "highres_fix_steps": st.none() | st.integers(1, 1000),
                "hires_steps": st.none() | st.integers(1, 1000),
                "highres_fix_strength": st.none() | SHARES,
                "highres_fix_upscaler": st.sampled_from(sorted(UPSCALERS)),
                "highres_fix_upscaler_file": st.sampled_from([None, "4x sharp"]),
            }
        ).filter(lambda hires: None in (hires["highres_fix_steps"], hires["hires_steps"])),
        "refiner": st.fixed_dictionaries(
            {"refiner_checkpoint": st.sampled_from([None, "r"]), "refiner_switch_at": st.floats(0.01, 0.99)}
        ),
        "pag": st.fixed_dictionaries({"pag_scale": st.floats(0, 50)}),
        "start_noise": st.fixed_dictionaries(
            {
                "noise_source": st.sampled_from(["cpu", "device"]),
                "noise_offset_prob": st.none() | SHARES,
                "noise_offset_range": st.tuples(SHARES, SHARES),
            }
        ),
        "sizes": st.fixed_dictionaries({"original_width": st.none() | st.integers(0, 65536)}),
    }
)


def acting(job):
    """The settings that act on the image, in one form each."""
    given, hires, asked = job.image_to_image, job.hires, job.generate
    changes = {"hires": hires.model_dump(), "image_to_image": given.model_dump(), "refiner": job.refiner.model_dump()}
    if hires.highres_fix_scale is None:
        changes["hires"] = {}
    elif hires.highres_fix_upscaler_file:
        del changes["hires"]["highres_fix_upscaler"]
    if changes["hires"]:
        changes["hires"]["hires_steps"] = hires.hires_steps or asked.steps
    if not given.image_path:
        changes["image_to_image"] = (
            {"strength": given.strength, "mask_path": given.mask_path} if changes["hires"] else {}
        )
    elif not given.mask_path:
        changes["image_to_image"] = {
            name: changes["image_to_image"][name] for name in ("image_path", "strength", "fit")
        }
    elif given.inpaint_area == "whole":
        del changes["image_to_image"]["mask_padding"]
    if not job.refiner.refiner_checkpoint:
        changes["refiner"] = {}
    weighs = any(mark in asked.prompt + asked.negative_prompt for mark in "()[]")
    if not asked.prompt_weights or not weighs:
        asked = asked.model_copy(update={"emb_normalize_mode": "none"} | ({} if weighs else {"prompt_weights": True}))
    changes |= {"generate": asked.model_dump(), "pag": job.pag.model_dump() if asked.guidance == "pag" else {}}
    return job.model_dump() | changes


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MADE, st.data())
def test_our_settings_come_back_from_our_block_alone(groups, data):
    sampler = groups["generate"]["sampler"]
    known = [each for each in schedules_of(sampler) if each != "uniform"]  # which is "own" where both are the same
    groups["generate"]["schedule_type"] = data.draw(st.sampled_from(known))
    job = build(GenerateJob, groups)
    record = from_a1111_text(a1111_text(job, Hashes()))
    assert acting(record.job) == acting(job.model_copy(update={"prompts": record.job.prompts}))
    assert codes_of(record) == ["image-settings.other-model"]


def test_every_setting_of_an_image_has_a_row_or_our_own_name():
    rows = {row.path for row in ROWS} | {entry.path for entry in other_settings().values()}
    others = [entry.path for entry in declared(GenerateJob) if entry.path not in rows]
    lists = {"generate.loras", "generate.embeddings", "controls.nets", "controls.control_image"}
    told = {"generate.prompt", "generate.negative_prompt", "generate.width", "generate.height", "generate.sampler"}
    told |= {"generate.schedule_type", "generate.prompt_weights", "generate.emb_normalize_mode", "model.base_model"}
    speed = {"model.family", "generate.count", "generate.batch_size", "generate.network_merge"}
    speed |= {"generate.network_merge_n_models", "generate.network_pre_calc"}
    rest = [path for path in others if path not in lists | told | speed]
    assert {path.partition(".")[0] for path in rest} <= {"prompts", "output", "memory", "generation_memory", "detailer"}
