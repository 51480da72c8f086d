"""What one draw shows: every choice has an address, its shares and ranges are the reference's, SDXL hears the truth."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.dataset.buckets.aspect_ratio import Placement, plan_buckets
from core.dataset.buckets.batches import Placed
from core.dataset.captions.pipeline import Caption
from core.dataset.images.views import Face, View, draw_view, face_crop, face_of, is_varied, size_conditioning
from core.dataset.sources.image_info import ImageInfo
from core.settings.dataset.concepts import PLAIN
from core.settings.dataset.images import ImageSettings

CAPTION = Caption("", None, "none")


def placed(width=1000, height=1500, name="a.png", **given) -> Placed:
    images = ImageSettings(**given)
    placement = plan_buckets(images).assign(width, height)
    image = ImageInfo("fox", name, Path(name), width, height, 1, 1)
    return Placed(image, placement, CAPTION, replace(PLAIN, images=images))


def views(each: Placed, count=2000, seed=1) -> list[View]:
    return [draw_view(each, seed, n // 10, n % 10) for n in range(count)]


def test_without_augmentation_every_draw_is_as_planned():
    each = placed()
    assert set(views(each, 30)) == {View(each.placement)}
    assert not is_varied(each.concept.images)


def test_a_draw_has_an_address_and_another_setting_does_not_change_it():
    both, flips = placed(flip_aug=True, color_aug=True, random_crop=True), placed(flip_aug=True)
    assert views(both, 50) == views(both, 50) != views(both, 50, seed=2)
    assert [view.flip for view in views(both, 50)] == [view.flip for view in views(flips, 50)]
    other = replace(both, image=replace(both.image, relative="b.png"))
    further = replace(both, variant="768x768")
    assert views(other, 50) != views(both, 50) != views(further, 50)


def test_half_of_the_draws_are_mirrored():
    each = placed(flip_aug=True)
    share = sum(view.flip for view in views(each)) / 2000
    assert abs(share - 0.5) < 0.045  # four standard deviations of 2000 draws
    assert not is_varied(each.concept.images)  # two forms, both of which can be cached


def test_a_third_of_the_draws_change_either_the_hue_or_the_brightness():
    each = placed(color_aug=True)
    drawn = views(each, 4000)
    hues = [view.hue for view in drawn if view.hue]
    gammas = [view.gamma for view in drawn if view.gamma != 1]
    assert not any(view.hue and view.gamma != 1 for view in drawn)
    for found, low, high in ((hues, -8, 8), (gammas, 0.95, 1.05)):
        assert abs(len(found) / 4000 - 0.165) < 0.024  # 0.33 / 2; four standard deviations
        assert low <= min(found) < low + 0.02 * (high - low) and high - 0.02 * (high - low) < max(found) <= high
    assert is_varied(each.concept.images)


def test_a_crop_by_chance_takes_every_offset_of_the_side_that_is_longer():
    each = placed(1000, 1500, resolution=1024, random_crop=True)  # resized to 832 x 1248, bucket 832 x 1216
    assert each.placement.resized == (832, 1248) and each.placement.bucket == (832, 1216)
    drawn = views(each, 1000)
    assert {view.placement.crop for view in drawn} == {(0, top) for top in range(33)}
    assert {replace(view.placement, crop=(0, 0)) for view in drawn} == {replace(each.placement, crop=(0, 0))}
    assert is_varied(each.concept.images)


def test_nothing_to_cut_is_nothing_to_draw():
    each = placed(512, 512, random_crop=True)
    assert {view.placement for view in views(each, 20)} == {each.placement}


# ---- faces


def test_the_face_is_read_from_the_name():
    assert face_of("sub_1/anna_0512_0300_0120_0140.png") == Face(512, 300, 120, 140)
    assert face_of("my_anna_03_512_300_120_140.jpg") == Face(512, 300, 120, 140)
    for name in ("512_300_120_140.png", "anna_512_300_120.png", "anna_a_b_c_d.png", "anna_1_2_0_9.png", "anna.png"):
        assert face_of(name) is None


SIZES = st.integers(64, 3000)


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(SIZES, SIZES),
    bucket=st.tuples(st.integers(8, 128).map(lambda n: 8 * n), st.integers(8, 128).map(lambda n: 8 * n)),
    face=st.builds(Face, *[st.integers(0, 3500)] * 2, *[st.integers(1, 1500)] * 2),
    sizes=st.tuples(st.floats(0.3, 20), st.floats(0.3, 20)),
    jitter=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_face_crop_lies_inside_the_image_whatever_the_name_says(size, bucket, face, sizes, jitter, seed):
    start = Placement(size, bucket, bucket, (0, 0))
    found = face_crop(start, face, sizes, jitter, random.Random(seed))
    for length, window, at in zip(found.resized, bucket, found.crop):
        assert 0 <= at <= length - window
    scale = [new / old for new, old in zip(found.resized, size)]
    assert abs(scale[0] - scale[1]) <= 1 / min(size)  # the shape is kept but for rounding to pixels
    cover = max(bucket[0] / size[0], bucket[1] / size[1])
    assert max(scale) >= cover - 1e-9
    assert max(scale) <= max(1.0, cover) + 1 / min(size)  # never enlarged more than covering needs


def test_a_crop_is_as_many_faces_as_asked_for_and_the_face_lies_in_its_middle():
    """2000 x 1600, face 200 pixels around (1000, 800), window 400: at 4 faces the face is 100 pixels, scale 0.5."""
    start = Placement((2000, 1600), (400, 400), (500, 400), (50, 0))
    found = face_crop(start, Face(1000, 800, 200, 160), (4, 4), False, random.Random(0))
    assert found.resized == (1000, 800) and found.crop == (500 - 200, 400 - 200)
    at_the_edge = face_crop(start, Face(30, 1590, 200, 160), (4, 4), False, random.Random(0))
    assert at_the_edge.crop == (0, 800 - 400)


def test_the_scale_of_a_face_crop_is_drawn_between_both_ends():
    start = Placement((2000, 1600), (400, 400), (500, 400), (50, 0))
    found = [face_crop(start, Face(1000, 800, 200, 160), (2.5, 4), False, random.Random(seed)) for seed in range(300)]
    scales = [each.resized[0] / 2000 for each in found]
    assert min(scales) == pytest.approx(0.5, abs=0.01) and max(scales) == pytest.approx(0.8, abs=0.01)
    moved = {each.crop[0] + 200 - round(1000 * each.resized[0] / 2000) for each in found}
    # a twentieth of the face of 200 pixels; the center itself is rounded, which may move it by one
    assert min(moved) in (-11, -10) and max(moved) in (10, 11)


def test_a_crop_by_chance_moves_the_face_farther_but_keeps_it_likely_in_the_middle():
    start = Placement((2000, 1600), (400, 400), (500, 400), (50, 0))
    found = [face_crop(start, Face(1000, 800, 200, 160), (4, 4), True, random.Random(s)).crop[0] for s in range(600)]
    assert min(found) == 0 and max(found) == 600
    # the sum of two even draws over 0..500, less 500: within +-150 with probability 1 - 0.7 ** 2 = 0.51
    assert abs(sum(abs(left - 300) <= 150 for left in found) / 600 - 0.51) < 0.08


def test_face_crops_need_a_name_that_tells_the_face_and_one_size_for_all():
    given = {"resolution": 256, "face_crop_aug_range": (1.5, 4)}
    name = "anna_0500_0700_0300_0300.png"
    with_face = placed(1000, 1500, name, enable_bucket=False, **given)
    assert len({view.placement for view in views(with_face, 50)}) > 10 and is_varied(with_face.concept.images)
    for other in (
        placed(1000, 1500, "anna.png", enable_bucket=False, **given),
        placed(1000, 1500, name, **given),
    ):
        assert {view.placement for view in views(other, 50)} == {other.placement}


# ---- what SDXL is told


def test_the_true_crop_is_told_and_sd_scripts_number_on_request():
    """The reference's example: 1000 x 1500 in 832 x 1216. Fitted inside it is 810.67 wide: (10, 0). Really cut: (0, 16)."""
    each = placed(1000, 1500, resolution=1024)
    view = draw_view(each, 0, 0, 0)
    assert size_conditioning(each, view) == ((1000, 1500), (0, 16), (832, 1216))
    assert size_conditioning(each, view, "kohya") == ((1000, 1500), (10, 0), (832, 1216))
    flipped = replace(view, flip=True)
    assert size_conditioning(each, flipped, "kohya")[1] == (11, 0)  # 832 - (10 + 810.67), as a whole number
    assert size_conditioning(each, flipped)[1] == (0, 16)


def test_the_crop_of_a_mirrored_draw_is_counted_in_the_mirrored_image():
    placement = Placement((1000, 500), (512, 512), (1024, 512), (100, 0))
    each = placed()
    assert size_conditioning(each, View(placement))[1] == (100, 0)
    assert size_conditioning(each, View(placement, flip=True))[1] == (1024 - 512 - 100, 0)


def test_a_crop_by_chance_is_told_as_it_was_drawn():
    each = placed(1000, 1500, resolution=1024, random_crop=True)
    drawn = views(each, 100)
    assert {size_conditioning(each, view)[1] for view in drawn} == {view.placement.crop for view in drawn}
    assert {size_conditioning(each, view, "kohya")[1] for view in drawn} == {(10, 0)}
