"""Pairs of images and control images: every layout, and what is wrong with them, named."""

import json
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from core.control.hints import make_hint
from core.dataset.preflight import preflight
from core.dataset.sources import conditioning
from core.dataset.sources.archive import unpack_zip
from core.dataset.sources.conditioning import same_aspect_ratio
from core.dataset.sources.scan import scan_dataset
from core.record.workspace import Workspace
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.validation import ValidationSettings
from core.settings.hints import HintSettings
from core.settings.job import TrainJob
from core.settings.method import OF_METHODS
from core.settings.methods import METHODS


@pytest.fixture
def scanned(tmp_path):
    """Scans the folder set for a method with control images; paths are below the folder of the test."""

    def whole(path):
        return str(tmp_path / path)

    def scan(metadata=None, folder="set", control=True, more=(), **options):
        if "conditioning_data_dir" in options:
            options["conditioning_data_dir"] = whole(options["conditioning_data_dir"])
        source = {"folder": whole(folder)} | ({"metadata_file": whole(metadata)} if metadata else {})
        sources = [source, *({"folder": whole(each)} for each in more)]
        dataset = DatasetSettings(sources=sources, **options)
        asked = [replace(each, control=control) for each in concepts(dataset, CaptionSettings(), ValidationSettings())]
        return scan_dataset(dataset, asked)

    return scan


def pairs(found):
    return {image.relative: image.control and image.control.name for image in found.images}


def codes(found):
    return [problem.code for problem in found.problems]


def said(found, code):
    (problem,) = [problem for problem in found.problems if problem.code == code]
    assert problem.fix and problem.where
    return problem


# ---- layouts


def test_a_suffix_tells_control_images_beside_their_images(add, scanned):
    for name in (
        "set/2_fox/a.png",
        "set/2_fox/a_HINT.jpg",
        "set/3_cat/a.png",
        "set/3_cat/a_hint.webp",
        "set/3_cat/hint.png",
    ):
        add(name)
    add("set/3_cat/hint_hint.png")
    found = scanned(conditioning_suffix="_hint")
    assert [(image.path.parent.name, image.relative, image.control.name) for image in found.images] == [
        ("2_fox", "a.png", "a_HINT.jpg"), ("3_cat", "a.png", "a_hint.webp"), ("3_cat", "hint.png", "hint_hint.png"),
    ]  # fmt: skip
    assert not found.problems


def test_a_suffix_holds_in_a_folder_of_control_images_too(add, scanned):
    for name in ("set/a.png", "set/b_hint.png", "control/a_hint.png", "control/b_hint_hint.png", "control/a.png"):
        add(name)
    found = scanned(conditioning_data_dir="control", conditioning_suffix="_hint")
    assert pairs(found) == {"a.png": "a_hint.png", "b_hint.png": "b_hint_hint.png"}
    assert codes(found) == ["control.unmatched"]


def test_masks_may_have_a_suffix_too(add, scanned):
    for name in ("set/a.png", "set/a-mask.png"):
        add(name)
    found = scanned(control=False, conditioning_suffix="-mask", masked_loss=True)
    assert [(image.relative, image.conditioning.name) for image in found.images] == [("a.png", "a-mask.png")]


@pytest.mark.parametrize("column", ["conditioning_image", "conditioning_path", "control_path", "control_image"])
def test_a_column_of_the_metadata_file_names_control_images(add, scanned, tmp_path, column):
    for name in ("set/a.png", "set/b.png", "set/c.png", "elsewhere/x.png", "set/hints/y.png", "set/z.png"):
        add(name)
    lines = [
        {"file_name": "a.png", "text": "a fox", column: "elsewhere/x.png"},  # next to the metadata file
        {"file_name": "b.png", "text": "a cat", column: "hints/y.png"},  # below the images
        {"file_name": "c.png", "text": "a dog", column: str(tmp_path / "set/z.png")},
    ]
    (tmp_path / "meta.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = scanned("meta.jsonl")
    assert pairs(found) == {"a.png": "x.png", "b.png": "y.png", "c.png": "z.png"}
    (tmp_path / "elsewhere/x.png").unlink()
    found = scanned("meta.jsonl")
    assert "a.png" in said(found, "control.missing").what and len(found.images) == 2
    (tmp_path / "meta.jsonl").write_text(json.dumps(lines[0] | {column: 3}))
    found = scanned("meta.jsonl")
    assert "metadata.invalid-values" in codes(found)


def test_a_zip_with_both_folders_is_unpacked_and_paired(add, scanned, tmp_path):
    for name in ("z/images/a.png", "z/control/a.png"):
        add(name)
    with ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("images/a.png", "control/a.png"):
            archive.write(tmp_path / "z" / name, name)
    folder = unpack_zip(tmp_path / "set.zip", tmp_path / "datasets")
    found = scanned(folder=str(folder), conditioning_data_dir=str(folder / "control"))
    assert pairs(found) == {"images/a.png": "a.png"} and not found.problems
    found = scanned(folder=str(folder / "images"), conditioning_data_dir=str(folder / "control"))
    assert pairs(found) == {"a.png": "a.png"} and not found.problems


# ---- what is wrong


def test_two_control_images_of_one_name_are_named_with_the_one_that_is_used(add, scanned):
    for name in ("set/a.png", "control/a.jpg", "control/a.png", "control/b.png"):
        add(name)
    found = scanned(conditioning_data_dir="control")
    assert pairs(found) == {"a.png": "a.png"} and codes(found) == ["control.doubled", "control.unmatched"]
    assert "a.jpg (next to a.png)" in said(found, "control.doubled").what


def test_image_folders_that_share_a_folder_of_control_images_do_not_name_each_others(add, scanned):
    for name in ("set/a.png", "other/b.png", "control/a.png", "control/b.png"):
        add(name)
    found = scanned(conditioning_data_dir="control", more=["other"])
    assert pairs(found) == {"a.png": "a.png", "b.png": "b.png"} and not found.problems
    add("control/c.png")
    found = scanned(conditioning_data_dir="control", more=["other"])
    assert codes(found) == ["control.unmatched"] and said(found, "control.unmatched").what.endswith(": c.png")


def test_another_size_of_the_same_aspect_ratio_is_fine_and_another_aspect_ratio_is_an_error(add, scanned):
    for number, size in enumerate([(150, 100), (301, 200), (30, 20), (149, 100), (151, 151)]):
        add(f"set/{number}.png", 150, 100)
        add(f"control/{number}.png", *size)
    found = scanned(conditioning_data_dir="control")
    problem = said(found, "control.other-aspect-ratio")
    assert problem.level == "error" and "4.png (151 x 151 for 150 x 100)" in problem.what
    assert "3.png" not in problem.what and "1.png" not in problem.what and len(found.problems) == 1


def test_sizes_have_one_shape_up_to_a_pixel_of_the_smaller():
    assert (
        same_aspect_ratio((1000, 1500), (512, 768))
        and same_aspect_ratio((1001, 1500), (512, 768))
        and same_aspect_ratio((341, 512), (683, 1024))
    )
    assert (
        not same_aspect_ratio((1000, 1500), (512, 770))
        and not same_aspect_ratio((64, 64), (64, 62))
        and not same_aspect_ratio((100, 50), (50, 100))
    )


def test_captions_beside_the_control_images_alone_mean_exchanged_folders(add, scanned, tmp_path):
    for name in ("set/a.png", "set/b.png", "control/a.png", "control/b.png"):
        add(name)
    assert not scanned(conditioning_data_dir="control").problems
    for name in ("a", "b"):
        (tmp_path / f"control/{name}.txt").write_text("a fox")
    assert codes(scanned(conditioning_data_dir="control")) == ["control.exchanged"]
    (tmp_path / "set/a.txt").write_text("a fox")
    assert not scanned(conditioning_data_dir="control").problems


def test_one_of_many_pairs_is_named_and_only_headers_are_read(add, scanned, tmp_path, monkeypatch):
    add("one.png", 40, 30)
    data = (tmp_path / "one.png").read_bytes()
    for folder in ("set", "control"):
        (tmp_path / folder).mkdir()
        for number in range(400):
            if (folder, number) != ("control", 123):
                (tmp_path / folder / f"{number:05}.png").write_bytes(data)
    looked = []
    headers = conditioning.headers
    monkeypatch.setattr(
        conditioning, "headers", lambda files, *more: looked.append(len(files)) or headers(files, *more)
    )
    found = scanned(conditioning_data_dir="control")
    assert len(found.images) == 399 and codes(found) == ["control.missing"] and looked == [399]
    assert "00123.png" in said(found, "control.missing").what and "1 of 400" in said(found, "control.missing").what


def test_of_an_animated_control_image_the_first_frame_is_used_and_that_is_said(add, scanned, tmp_path):
    add("set/a.png", 64, 64)
    frames = [Image.new("RGB", (64, 64), color) for color in ("black", "white")]
    (tmp_path / "control").mkdir()
    frames[0].save(tmp_path / "control" / "a.gif", save_all=True, append_images=frames[1:])
    found = scanned(conditioning_data_dir="control")
    assert codes(found) == ["control.animated"] and found.images[0].control.name == "a.gif"


# ---- what decoding finds


@pytest.fixture
def looked(tmp_path, monkeypatch):
    """Codes about control images after decoding everything, of {name: (image, control image)} as arrays."""
    spec = replace(METHODS["lora"], control_images=True)
    monkeypatch.setitem(METHODS, "lora", spec)
    monkeypatch.setitem(OF_METHODS, "lora", spec.traits)

    def look(named):
        for name, both in named.items():
            for folder, values in zip(("set", "control"), both, strict=True):
                (tmp_path / folder).mkdir(exist_ok=True)
                Image.fromarray(values).save(tmp_path / folder / f"{name}.png")
        dataset = DatasetSettings(folder=str(tmp_path / "set"), conditioning_data_dir=str(tmp_path / "control"))
        report = preflight(TrainJob(dataset=dataset), Workspace.of(tmp_path / "outputs"), decode=True)
        return {problem.code: problem for problem in report.problems if problem.code.startswith("control.")}

    return look


def colored(seed=0):
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((16, 16, 1), np.uint8))


def lines(seed=0):
    gray = np.zeros((128, 128, 3), np.uint8)
    gray[:: 9 + seed] = 255
    return gray


def test_good_pairs_raise_no_suspicion(looked):
    assert not looked({"a": (colored(1), lines(1)), "b": (colored(2), lines(2)), "c": (lines(3), lines(4))})


def test_blank_control_images_are_named(looked):
    found = looked({"a": (colored(1), lines(1)), "b": (colored(2), np.zeros((128, 128, 3), np.uint8))})
    assert list(found) == ["control.blank"] and "b.png" in found["control.blank"].what


@pytest.mark.parametrize(("level", "codes"), [(0, ["control.blank"]), (255, [])])
def test_transparent_parts_of_control_images_are_black(looked, level, codes):
    """Black lines on nothing are lost, white ones are not."""
    alpha = lines(1)[..., :1]
    drawn = np.concatenate([np.full((128, 128, 3), level, np.uint8), alpha], axis=2)
    found = looked({"a": (colored(1), drawn), "b": (colored(2), lines(2))})
    assert list(found) == codes and all("transparen" in each.fix for each in found.values())


def test_control_images_that_are_the_images_themselves_are_named(looked):
    gray = np.repeat(colored(3).mean(axis=2).astype(np.uint8)[..., None], 3, axis=2)
    found = looked({"a": (colored(1), lines(1)), "b": (colored(2), colored(2)), "c": (colored(3), gray)})
    assert list(found) == ["control.is-the-image"] and "b.png" in found["control.is-the-image"].what
    assert "c.png" not in found["control.is-the-image"].what  # its grayscale is another image


@pytest.mark.parametrize("preprocessor", ["tile", "blur"])
def test_control_images_with_less_detail_are_not_the_images_themselves(looked, preprocessor):
    asked = HintSettings(preprocessor=preprocessor, blur_radius=2)
    photos = [np.kron(colored(n), np.ones((4, 4, 1), np.uint8)) for n in range(3)]
    assert not looked({name: (photo, make_hint(photo, asked)) for name, photo in zip("abc", photos, strict=True)})


def test_what_spoils_most_pairs_is_a_warning_and_what_spoils_few_is_advice(looked):
    black, good = np.zeros((128, 128, 3), np.uint8), (colored(1), lines(1))
    few = looked({"a": good, "b": good, "c": (colored(2), colored(2)), "d": (colored(3), black)})
    assert {code: each.level for code, each in few.items()} == {
        "control.is-the-image": "advice",
        "control.blank": "advice",
    }
    most = looked({name: (colored(n), colored(n)) for n, name in enumerate("abcd")})
    assert most["control.is-the-image"].level == "warning"


def test_colored_control_images_of_gray_images_mean_exchanged_folders(looked):
    assert list(looked({name: (lines(n), colored(n)) for n, name in enumerate("abc")})) == ["control.exchanged"]
