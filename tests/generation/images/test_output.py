"""Files of generated images: formats, names, folders, and the settings in them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from core.generation.images import output
from core.generation.images.metadata import read_image_metadata, user_comment
from core.generation.images.output import save_image
from core.generation.model.sources import Hashes
from core.generation.model.store import make_store
from core.generation.plan.checks import output_problems
from core.generation.run import run_generate
from core.record.workspace import PROJECT, Workspace
from core.settings.job import GenerateJob
from tests.refusals import refused

HASHES = Hashes("a" * 64, {"models/x.safetensors": "b" * 64}, {})
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (72, 64, 3), dtype=np.uint8))


@pytest.fixture
def space(tmp_path):
    return Workspace(tmp_path / "outputs", PROJECT / "models")


def job_of(output=None, **generate):
    asked = {"prompt": "a fox, 狐 (red:1.2)", "seed": 7, "width": 64, "height": 72, "guidance_scale": 4.5} | generate
    return GenerateJob.model_validate({"generate": asked, "output": output or {}})


def saved(space, output=None, name=None, **more):
    job = job_of(output, **more)
    return save_image(NOISE, job, HASHES, space, name), job


@pytest.mark.parametrize(("kind", "ending"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_each_format_holds_the_whole_job_and_a1111s_block(space, kind, ending):
    path, job = saved(space, {"image_format": kind, "outdir": str(space.outputs / "private place")})
    record = read_image_metadata(path)
    assert path.suffix == ending and record.source == "atelier" and record.hashes == HASHES
    assert record.job is not None and record.job.generate == job.generate and record.job.output == GenerateJob().output
    with Image.open(path) as image:
        block = image.info["parameters"] if kind == "png" else user_comment(image.getexif())
        assert image.format == kind.upper() and image.size == NOISE.size
    assert block.startswith("a fox, 狐 (red:1.2)\nSteps: 20") and b"private place" not in path.read_bytes()


def test_a1111s_comment_in_exif_is_utf_16_with_the_high_byte_first(space):
    path, _ = saved(space, {"image_format": "jpeg"})
    assert b"UNICODE\0" + "a fox, 狐".encode("utf-16-be") in path.read_bytes()


def test_lossless_webp_keeps_every_pixel_and_quality_decides_the_size(space):
    lossless, _ = saved(space, {"image_format": "webp", "webp_lossless": True})
    assert (np.asarray(Image.open(lossless)) == np.asarray(NOISE)).all()
    sizes = [
        saved(space, {"image_format": kind, "image_quality": quality})[0].stat().st_size
        for kind in ("jpeg", "webp")
        for quality in (30, 95)
    ]
    assert sizes[0] < sizes[1] and sizes[2] < sizes[3]


def test_settings_too_long_for_exif_keep_a1111s_block(space):
    path, _ = saved(space, {"image_format": "jpeg"}, prompt="fox " * 7000)
    record = read_image_metadata(path)
    assert record.source == "a1111" and record.job.generate.seed == 7
    assert read_image_metadata(saved(space, {"image_format": "jpeg"}, prompt="fox " * 20000)[0]).job is None


def test_fields_of_patterns_are_filled_in(space, monkeypatch):
    monkeypatch.setattr(output.time, "localtime", lambda: time.struct_time((2026, 1, 2, 3, 4, 5, 0, 0, 0)))
    names = "[date] [time] [seed] [prompt] [model] [sampler] [steps] [cfg] [width] [height] [number]"
    path, _ = saved(space, {"folder_pattern": "[model]/[width]x[height]", "file_pattern": names})
    told = "2026-01-02 030405 7 a fox, 狐 (red1.2) starter ddim 20 4.5 64 72 00001.png"
    assert path == space.images / "starter" / "64x72" / told
    path, _ = saved(space, {"folder_pattern": "a", "file_pattern": "[model]\\b/[seed]"})
    assert path == space.images / "a" / "starter" / "b" / "7.png"


@pytest.mark.parametrize("pattern", ["../../[seed]", "/etc/[seed]", "..\\..\\x", "[prompt]/../..", "C:/x", "a/./b"])
def test_no_pattern_leaves_the_output_folder(space, pattern):
    for prompt in ("../../up", "/etc/passwd", "..\\up"):
        path, _ = saved(space, {"folder_pattern": pattern, "file_pattern": pattern}, prompt=prompt)
        assert path.resolve().is_relative_to(space.images.resolve())


@pytest.mark.parametrize("letter", ["狐", "𠮷", "x"])
def test_names_of_any_script_fit_a_drive(space, letter):
    pattern = {"folder_pattern": "[prompt]", "file_pattern": "[date]_[time]_[seed]_[prompt]"}
    for _ in range(2):  # the second gets a number
        path, _ = saved(space, pattern, prompt=letter * 300)
        assert path.is_file() and max(len(part.encode()) for part in path.parts) <= 255
    path, _ = saved(space, {}, name=letter * 300 + ".png")
    assert path.stem and set(path.stem) == {letter}


def test_names_of_windows_itself_and_empty_ones_are_made_usable(space):
    assert saved(space, {"file_pattern": "con"})[0].name == "_con.png"
    assert saved(space, {"file_pattern": "...", "folder_pattern": ""})[0] == space.images / "image.png"


def test_an_unknown_field_is_refused_with_the_nearest(space):
    (problem,) = output_problems(job_of({"file_pattern": "[sede]"}), space)
    assert problem.code == "output.unknown-field" and "[seed]" in problem.fix


def test_sd_scripts_names(space, tmp_path):
    folder = {"folder_pattern": "", "outdir": str(tmp_path / "mine")}
    job = job_of(folder | {"sequential_file_name": True})
    made = [save_image(NOISE, job, HASHES, space, number=number) for number in (1, 2, 2)]
    assert [path.name for path in made] == ["im_000001.png", "im_000002.png", "im_000002-2.png"]
    assert save_image(NOISE, job, HASHES, space, stage="1").name == "im_1000001.png"
    job = GenerateJob.model_validate(
        {"image_to_image": {"image_path": "x/photo.jpeg"}, "output": folder | {"use_original_file_name": True}}
    )
    assert save_image(NOISE, job, HASHES, space) == tmp_path / "mine" / "photo.png"
    (advice,) = output_problems(job_of({"use_original_file_name": True}), space)
    assert (advice.level, advice.code) == ("advice", "output.no-original")


def test_the_ending_of_a_prompts_name_chooses_the_format(space):
    for name, kind in (("a.JPG", "JPEG"), ("b.webp", "WEBP"), ("c.png", "PNG"), ("d.v2", "WEBP")):
        path, _ = saved(space, {"image_format": "webp"}, name)
        with Image.open(path) as image:
            assert image.format == kind and path.stem.startswith(name.rsplit(".", 1)[0])


def test_a_folder_that_cannot_be_written_is_said_before_a_model_is_loaded(space, tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = make_store()
    with refused("file.not-a-folder"):
        run_generate(job_of({"outdir": str(tmp_path / "file" / "below")}), space, store=store)
    assert not list(output_problems(job_of({"outdir": str(tmp_path / "new" / "folder")}), space))
    assert [each.code for each in output_problems(job_of({"outdir": "smb://nas/x"}), space)] == ["folder.windows-path"]


def test_a_job_writes_the_folder_format_and_numbers_that_it_asks_for(space, tmp_path):
    mine = {"outdir": str(tmp_path / "mine"), "folder_pattern": ""}
    job = job_of(mine | {"image_format": "webp", "file_pattern": "[number]"}, steps=1, count=2, width=64, height=64)
    files = run_generate(job, space, store=make_store())
    assert files == [tmp_path / "mine" / "00001.webp", tmp_path / "mine" / "00002.webp"]
    assert [read_image_metadata(path).job.generate.seed for path in files] == [7, 8]
