"""Poses found in the outputs of networks and drawn, by closed forms; models of these contracts are in test_pose_models.py."""

import numpy as np
import pytest

from core.control.hints.models import DETECTOR, DWPOSE, IMAGE, OPENPOSE, Profile, kind_of
from core.control.hints.one_image import letterboxed, normalized
from core.control.hints.pose import bottom_up, top_down
from core.control.hints.pose.bottom_up import FIELDS, MATCHED, bodies_of, peaks_of
from core.control.hints.pose.detector import corners_of, grid, non_max_suppression
from core.control.hints.pose.drawing import COLORS, FINGERS, LIMBS, draw
from core.control.hints.pose.person import Person, person_of
from core.control.hints.pose.top_down import cropped, keypoints_of, region_of
from tests.control.hints.pose_models import COCO, STANDING


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        ({"simcc_x": [0, 133, 576], "simcc_y": [0, 133, 768]}, DWPOSE),
        ({"simcc_x": [], "simcc_y": []}, DWPOSE),
        ({"4301": [1, 17, 384], "4302": [1, 17, 512]}, DWPOSE),
        ({"a": [1, 21, 384], "b": [1, 21, 512]}, IMAGE),
        ({"output": [1, 8400, 85]}, DETECTOR),
        ({"output": [1, 8400, 6]}, DETECTOR),
        ({"dets": [0, 0, 5], "labels": [0, 0]}, DETECTOR),
        ({"paf": [1, 38, 46, 46], "heat": [1, 19, 46, 46]}, OPENPOSE),
        ({f"{n}": [0, n, 32, 57] for n in (19, 38)} | {f"b{n}": [0, n, 32, 57] for n in (19, 38)}, OPENPOSE),
        ({"paf": [], "heat": []}, IMAGE),
        ({"depth": [1, 518, 518]}, IMAGE),
        ({"depth": [0, 0, 0]}, IMAGE),
        ({}, IMAGE),
    ],
    ids=str,
)
def test_the_outputs_show_of_which_kind_a_model_is(outputs, kind):
    assert kind_of(outputs) == kind


# ---- boxes


def test_a_small_or_large_image_lies_in_the_upper_left_of_a_letterbox():
    for shape, inner, scale in (((50, 100), (32, 64), 0.64), ((200, 50), (64, 16), 0.32), ((10, 10), (64, 64), 6.4)):
        pixels, found = letterboxed(np.full((*shape, 3), 200, np.uint8), (64, 64), 114)
        wanted = np.full((64, 64, 3), 114, np.uint8)
        wanted[: inner[0], : inner[1]] = 200
        assert np.array_equal(pixels, wanted) and found == pytest.approx(scale)


def test_a_cell_of_the_raw_head_is_a_box_around_its_place_times_its_stride():
    places, _ = grid((640, 480))
    assert len(places) == 80 * 60 + 40 * 30 + 20 * 15
    values = np.zeros((len(places), 85), np.float32)
    cell = 80 * 60 + 7 * 40 + 3  # of stride 16: column 3, row 7
    values[cell, :6] = 0.25, 0.5, np.log(4), np.log(10), 0.8, 0.5
    corners, scores = corners_of(values, (640, 480))
    x, y = 3.25 * 16, 7.5 * 16
    assert corners[cell] == pytest.approx([x - 32, y - 80, x + 32, y + 80]) and scores[cell] == pytest.approx(0.4)
    assert corners[0] == pytest.approx([-4, -4, 4, 4]) and corners[-1] == pytest.approx([592, 432, 624, 464])


@pytest.mark.parametrize("columns", [5, 84])
def test_other_boxes_are_corners_with_the_score_of_people_first(columns):
    values = np.arange(3 * columns, dtype=np.float32).reshape(3, columns)
    corners, scores = corners_of(values, (64, 64))
    assert np.array_equal(corners, values[:, :4]) and np.array_equal(scores, values[:, 4])


def test_of_boxes_that_overlap_by_more_than_their_share_the_best_is_kept():
    def moved(right):  # over a box of 100 x 100: an overlap of (100 - right) / (100 + right)
        return [right, 0, right + 100, 100]

    corners = np.array([moved(0), moved(37), moved(39), [500, 500, 510, 510]], float)
    kept = non_max_suppression(corners, np.array([0.9, 0.8, 0.95, 0.4]))
    assert kept.tolist() == [moved(39), moved(0), [500, 500, 510, 510]]
    kept = non_max_suppression(corners[:3], np.array([0.9, 0.8, 0.7]))
    assert kept.tolist() == [moved(0), moved(39)]  # 63 / 137 is above 0.45, 61 / 139 below
    assert non_max_suppression(np.empty((0, 4)), np.empty(0)).shape == (0, 4)


# ---- one person


@pytest.mark.parametrize("box", [(20.0, 30, 80, 130), (0, 0, 200, 60), (150, 90, 260, 170)])
def test_a_crop_shows_the_box_padded_to_the_shape_of_the_input(box):
    """Levels that rise by 1 a pixel show which place of the image each pixel is."""
    y, x = np.mgrid[:150, :250]
    image = np.stack([x, y, np.full_like(x, 255)], axis=2).astype(np.uint8)
    center, extent = region_of(np.array(box), (96, 128))
    across, down = (box[2] - box[0]) * 1.25, (box[3] - box[1]) * 1.25
    assert center.tolist() == [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    assert extent == pytest.approx([max(across, down * 0.75), max(down, across / 0.75)])
    crop = cropped(image, center, extent, (96, 128)).astype(float)
    for channel, count, length in ((0, 96, 250), (1, 128, 150)):
        place = np.arange(count) * extent[channel] / count + center[channel] - extent[channel] / 2
        shown = crop[..., channel] if channel == 0 else crop[..., channel].T
        other = crop[..., 2] if channel == 0 else crop[..., 2].T
        inside = (place >= 0) & (place <= length - 1)
        lines = (other[:, inside] == 255).all(axis=1)
        assert lines.sum() > 10 and inside.sum() > 10
        below = place[inside] - shown[lines][:, inside]
        assert below.min() > -0.01 and below.max() < 1  # Pillow cuts off what is behind the point
        outside = (place < -1) | (place > length)
        assert not shown[:, outside].any()


def test_a_keypoint_is_where_both_axes_are_highest():
    size, center, extent = (96, 128), np.array([70.0, 90.0]), np.array([150.0, 200.0])
    along_x, along_y = np.zeros((3, 192), np.float32), np.zeros((3, 256), np.float32)
    for number, (i, j) in enumerate(((0, 0), (191, 255), (96, 128))):
        along_x[number, i], along_y[number, j] = 0.9, 0.2 + 0.4 * number
    points, scores = keypoints_of(along_x, along_y, center, extent)
    assert scores == pytest.approx([0.2, 0.6, 0.9])
    assert points[0].tolist() == [-5, -10] and points[2].tolist() == [70, 90]
    assert points[1] == pytest.approx([95.5 / 96 * 150 - 5, 127.5 / 128 * 200 - 10])
    index = (points - center + extent / 2) * size / extent  # of the crop's pixels: half the positions
    assert index[1] == pytest.approx([95.5, 127.5])


def coco(count=17):
    points = np.full((count, 2), 7.0)
    points[:17] = STANDING[list(COCO)]
    return points


def test_keypoints_are_in_the_order_of_openpose_with_a_neck_between_the_shoulders():
    assert person_of(coco(), Profile()).body == pytest.approx(STANDING)
    halpe = coco(26)
    assert person_of(halpe, Profile()).body == pytest.approx(STANDING) and not person_of(halpe, Profile()).hands
    halpe[5] = np.nan
    assert np.isnan(person_of(halpe, Profile()).body).all(axis=1).nonzero()[0].tolist() == [1, 5]


def test_hands_and_face_are_parts_of_the_whole_body_unless_they_are_not_wanted():
    points = np.stack([np.arange(133.0)] * 2, axis=1)
    found = person_of(points, Profile())
    left, right = found.hands
    assert (found.face[0, 0], found.face[-1, 0], len(found.face)) == (23, 90, 68)
    assert (left[0, 0], left[-1, 0], right[0, 0], right[-1, 0]) == (91, 111, 112, 132)
    bare = person_of(points, Profile(hands=False, face=False))
    assert not bare.hands and bare.face is None


# ---- everybody at once

STRIDE = 8


def maps(people, size):
    """Heat maps and fields that a perfect network would give: bells of 7 pixels; within 8 pixels of a limb its unit vector, or the
    mean where limbs cross."""
    y, x = np.mgrid[: size[1] // STRIDE, : size[0] // STRIDE] * STRIDE + (STRIDE - 1) / 2
    heat, fields, counts = (np.zeros((count, *x.shape), np.float32) for count in (19, 38, 38))
    for points in people:
        for part, (px, py) in enumerate(points):
            bell = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 7**2))
            heat[part] = np.maximum(heat[part], np.nan_to_num(bell))
        for (first, second), channel in zip(MATCHED, FIELDS, strict=True):
            start, way = points[first], points[second] - points[first]
            length = np.hypot(*way)
            along = ((x - start[0]) * way[0] + (y - start[1]) * way[1]) / length
            aside = ((x - start[0]) * way[1] - (y - start[1]) * way[0]) / length
            near = (along > -8) & (along < length + 8) & (np.abs(aside) < 8)
            fields[channel : channel + 2] += near * (way / length)[:, None, None]
            counts[channel : channel + 2] += near
    return heat, fields / np.maximum(counts, 1)


def found_in(heat, fields, size):
    peaks = [peaks_of(part, size, size) for part in heat[:18]]
    return sorted(bodies_of(peaks, fields, size, size[1]), key=lambda body: np.nanmean(body[:, 0]))


SIZE = (560, 368)


def test_keypoints_are_the_peaks_of_their_maps_to_within_a_pixel():
    points = STANDING * 300 + (251.3, 180.8)
    (body,) = found_in(*maps([points], SIZE), SIZE)
    assert np.abs(body - points).max() <= 1


@pytest.mark.parametrize("apart", [90, 150])
def test_limbs_of_people_next_to_or_before_one_another_are_told_apart_by_the_fields(apart):
    one, other = STANDING * 300 + (180.0, 180), STANDING * (-260, 260) + (180.0 + apart, 200)
    bodies = found_in(*maps([one, other], SIZE), SIZE)
    assert len(bodies) == 2
    for body, points in zip(bodies, (one, other), strict=True):
        assert np.abs(body - points).max() <= 1  # bells of two people may overlap


def test_a_person_of_few_parts_or_a_low_score_is_none():
    points = STANDING * 300 + (251.3, 180.8)

    def with_parts(*kept, factor=1.0):
        some = np.full_like(points, np.nan)
        some[[*kept]] = points[[*kept]]
        own, fields = maps([some], SIZE)[0], maps([points], SIZE)[1]
        return found_in(own * factor, fields * factor, SIZE)

    assert not with_parts(1, 2, 3)
    (arm,) = with_parts(1, 2, 3, 4)
    assert np.isfinite(arm).all(axis=1).nonzero()[0].tolist() == [1, 2, 3, 4]
    assert len(with_parts(*range(18), factor=0.3)) == 1 and not with_parts(*range(18), factor=0.2)
    # 18 peaks and 17 limbs of 0.2 are 0.39 a part
    assert not with_parts(14, 15, 16, 17)  # no limb joins both sides of a face


def test_parts_that_no_limb_joins_are_two_people_and_are_joined_by_one_that_begins_later():
    points = STANDING * 300 + (251.3, 180.8)
    heat, fields = maps([points], SIZE)
    fields[FIELDS[LIMBS.index((1, 8))] : FIELDS[LIMBS.index((1, 8))] + 2] = 0  # the right leg hangs on nothing
    bodies = found_in(heat, fields, SIZE)
    assert [np.isnan(body).all(axis=1).nonzero()[0].tolist() for body in bodies] == [[8, 9, 10]]
    fields[FIELDS[LIMBS.index((1, 0))] : FIELDS[LIMBS.index((1, 0))] + 2] = (
        0  # nor does the face, whose ears join shoulders
    )
    (body,) = found_in(heat, fields, SIZE)
    assert np.isfinite(body[[0, 14, 15, 16, 17]]).all()


def test_only_the_best_peaks_of_a_map_are_matched():
    heat = np.zeros((46, 70), np.float32)
    heat[::2, ::2] = 0.3
    assert len(peaks_of(heat, SIZE, SIZE)) == bottom_up.MAX_PEAKS
    heat[4, 60] = 0.9
    assert peaks_of(heat, SIZE, SIZE)[0].tolist() == pytest.approx([60 * 8 + 3.5, 4 * 8 + 3.5, 0.9])
    assert peaks_of(heat, SIZE, (480, 368))[0, 2] == pytest.approx(0.3)  # the rest shows no image
    assert not len(peaks_of(heat * 0.1, SIZE, SIZE))
    flat = np.full((46, 70), 0.5, np.float32)
    assert len(peaks_of(flat, SIZE, SIZE)) == 1


def test_a_peak_between_places_is_found_where_it_is_and_as_high():
    for x, y in ((40.0, 60.0), (41.7, 63.2), (39.5, 39.5), (43.5, 47.5)):
        heat, _ = maps([np.array([(x, y)] + [(np.nan, np.nan)] * 17)], (160, 120))
        (peak,) = peaks_of(heat[0] * 0.7, (160, 120), (160, 120))
        assert peak == pytest.approx([x, y, 0.7], abs=0.01)


def test_openpose_is_given_levels_from_minus_to_plus_one_half_blue_first():
    pixels = np.zeros((1, 2, 3), np.uint8)
    pixels[0, 1] = 255, 128, 0
    values = normalized(pixels, Profile().over(bottom_up.USUAL))
    assert values[0] == pytest.approx(np.array([[-128, -128, -128], [-128, 0, 127]]) / 256)
    other = normalized(pixels, Profile(channels="RGB").over(bottom_up.USUAL))
    assert other[0, 1] == pytest.approx(np.array([127, 0, -128]) / 256)
    imagenet = normalized(pixels, Profile().over(top_down.USUAL))
    wanted = (np.array([255, 128, 0]) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    assert imagenet[0, 1] == pytest.approx(wanted, rel=1e-5)


# ---- drawing


def at(image, point):
    x, y = np.rint(point).astype(int)
    return tuple(int(level) for level in image[y, x])


def test_limbs_and_joints_have_openpose_s_colors_limbs_at_three_fifths():
    body = STANDING * 460 + (256, 256)
    image = draw([Person(body)], (512, 512))
    for limb, color in zip(LIMBS, COLORS, strict=False):
        assert at(image, body[[*limb]].mean(axis=0)) == tuple(level * 3 // 5 for level in color), limb
    for number, color in enumerate(COLORS):
        assert at(image, body[number]) == color, number
    levels = {0, 51, 85, 102, 153, 170, 255}
    assert {*np.unique(image)} == levels and at(image, (5, 5)) == (0, 0, 0)


@pytest.mark.parametrize(("side", "half"), [(512, 4), (1024, 8), (256, 2)])
def test_widths_scale_with_the_shorter_side(side, half):
    body = np.full((18, 2), np.nan)
    body[1], body[2] = (side * 0.75, side / 2), (side * 0.25, side / 2)  # neck and right shoulder
    image = draw([Person(body)], (side * 2, side))
    rows = image[:, side // 2, 0].nonzero()[0]
    assert (rows[0], rows[-1]) == (side // 2 - half, side // 2 + half)  # of the ellipse, in its middle
    joint = (image == (255, 170, 0)).all(axis=2)[:, side // 4].nonzero()[0]
    assert (joint[0], joint[-1]) == (side // 2 - half, side // 2 + half)
    columns = image.any(axis=(0, 2)).nonzero()[0]
    assert (columns[0], columns[-1]) == (side // 4 - half, side * 3 // 4 + half)


def test_hands_are_rainbows_with_blue_dots_and_faces_white_dots():
    hand = np.stack([20 + np.arange(21) % 4 * 40, 20 + np.arange(21) // 4 * 40], axis=1).astype(float)
    hand[0] = 20, 450
    face = np.array([[400.0, 30], [450, 30]])
    image = draw([Person(np.full((18, 2), np.nan), [hand], face)], (512, 512))
    assert {at(image, point) for point in hand} == {(0, 0, 255)} and {at(image, point) for point in face} == {
        (255, 255, 255)
    }
    assert FINGERS[:5] == [(0, 1), (1, 2), (2, 3), (3, 4), (0, 5)] and len(FINGERS) == 20
    assert at(image, (80, 20)) == (255, 77, 0)  # the second edge of 20: a hue of 18 degrees, 76.5
    assert at(image, (80, 20 - 5)) == (0, 0, 0)
    hand[3] = np.nan
    fewer = draw([Person(np.full((18, 2), np.nan), [hand])], (512, 512))
    assert at(fewer, (140, 20)) == (0, 0, 0) == at(fewer, (400, 30)) and at(fewer, (80, 20)) == (255, 77, 0)


def test_nobody_and_people_of_no_keypoints_are_black():
    assert not draw([], (64, 48)).any() and draw([], (64, 48)).shape == (48, 64, 3)
    assert not draw([Person(np.full((18, 2), np.nan))], (64, 48)).any()


def test_the_joints_of_everybody_lie_over_all_limbs():
    body = np.full((18, 2), np.nan)
    body[1], body[2] = (100, 256), (400, 256)
    other = np.full((18, 2), np.nan)
    other[13] = 250, 256  # on the limb of another
    for people in ([body, other], [other, body]):
        assert at(draw([Person(each) for each in people], (512, 512)), (250, 256)) == COLORS[13]
