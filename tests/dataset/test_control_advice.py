"""What is said of control images, at each limit: half of them softer, one level or one image more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from core.dataset import control_advice as advice


def pairs(*sharpness):
    """Images and control images whose paths are their sharpness."""
    return [SimpleNamespace(path=Path(str(image)), control=Path(str(control))) for image, control in sharpness]


@pytest.mark.parametrize(
    ("soft", "sharp", "softer"),
    [(0, 3, False), (1, 1, False), (2, 2, False), (3, 2, True), (2, 1, True), (6, 6, False), (7, 5, True)],
)
def test_control_images_are_softer_if_more_than_half_have_less_than_half_of_the_details(
    monkeypatch, soft, sharp, softer
):
    monkeypatch.setattr(advice, "_sharpness", lambda path: float(str(path)))
    both = [(8, 3.9)] * soft + [(8, 4)] * sharp  # 4 is half of 8, which is not less
    assert advice._mostly_softer(pairs(*both)) == softer


def test_twelve_pairs_spread_over_all_are_looked_at(monkeypatch):
    looked = []
    monkeypatch.setattr(advice, "_sharpness", lambda path: looked.append(str(path)) or 1.0)
    assert not advice._mostly_softer(pairs(*((f"i{n}", f"c{n}") for n in range(30))))
    assert [each for each in looked if each[0] == "i"] == [f"i{n}" for n in range(0, 24, 2)]


@pytest.mark.parametrize(("named", "level"), [(0, None), (1, "advice"), (2, "advice"), (3, "warning")])
def test_more_than_half_is_a_warning(named, level):
    images = [SimpleNamespace(path=Path("a.png"), control=Path("c/a.png"), relative=Path("a.png"))] * named
    assert [each.level for each in advice._control_problem(images, 4, "{n} {names}", "fix", "control.blank")] == [
        level
    ] * bool(named)


@pytest.mark.parametrize(
    ("colors", "exchanged"),
    [
        ([(0, 21), (5.9, 30)], True),
        ([(0, 21)], False),  # one pair shows nothing
        ([(0, 21), (6, 21)], False),
        ([(0, 21), (0, 20)], False),
    ],
)
def test_folders_are_exchanged_if_all_images_are_gray_and_all_control_images_colored(monkeypatch, colors, exchanged):
    monkeypatch.setattr(advice, "_chroma", lambda path: float(str(path)))
    found = advice._exchanged([(each, each.control) for each in pairs(*colors)])
    assert [each.code for each in found] == ["control.exchanged"] * exchanged


@pytest.mark.parametrize(("levels", "same"), [(0, True), (3, True), (4, False)])
def test_an_image_is_the_same_up_to_three_levels(tmp_path, levels, same):
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    values = np.full((32, 32, 3), 100, np.uint8)
    Image.fromarray(values).save(one)
    Image.fromarray(values + np.uint8(levels)).save(other)
    assert advice._is_copy(SimpleNamespace(path=one), other) == same
    assert not advice._is_copy(SimpleNamespace(path=one), tmp_path / "gone.png")


def test_details_are_measured_in_the_middle(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)
    for name, box in (("inside", np.s_[44:556, 44:556]), ("outside", np.s_[0:44, :])):
        values = np.full((600, 600, 3), 128, np.uint8)
        values[box] = noise[box]
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    assert advice._sharpness(tmp_path / "inside.png") > 1000 and advice._sharpness(tmp_path / "outside.png") == 0
    assert advice._sharpness(tmp_path / "gone.png") == 0
