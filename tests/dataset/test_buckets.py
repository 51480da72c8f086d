"""Buckets against sd-scripts' own results (tests/vectors) and the rules that hold for any image."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.dataset.buckets.aspect_ratio import bucket_sizes, plan_buckets, rounded_limits
from core.record.problems import ProblemsError
from core.settings.dataset.dataset import DatasetSettings
from tests.recorded_json import recorded_json

VECTORS = Path(__file__).parents[1] / "vectors"
CASES = recorded_json("buckets")["settings"]


def transposed(sizes):
    return sorted(set(sizes) | {(height, width) for width, height in sizes})


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda case: (
        f"{case['resolution']}-{case['max_bucket_reso']}-{case['bucket_reso_steps']}-{case['bucket_no_upscale']}"
    ),
)
def test_every_image_gets_the_bucket_size_and_crop_that_sd_scripts_gives_it(case):
    names = ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale")
    plan = plan_buckets(DatasetSettings(resolution=tuple(case["resolution"]), **{name: case[name] for name in names}))
    for item in case["items"]:
        placement = plan.assign(*item["size"])
        if "error" in item or "note" in item:  # sd-scripts fails here: a side of 0
            assert placement is None, item
            continue
        got = (placement.bucket, placement.resized, placement.crop)
        assert got == tuple(tuple(item[name]) for name in ("bucket", "resized", "centre_crop_left_top")), item


def test_limits_are_rounded_outwards_to_the_step():
    for case in json.loads((VECTORS / "bucket_min_max_adjust.json").read_text())["cases"]:
        assert list(rounded_limits(case["min"], case["max"], case["steps"])) == case["adjusted"]


@pytest.mark.parametrize(
    ("resolution", "lowest", "highest", "count", "half"),
    [
        (
            (512, 512),
            256,
            1024,
            17,
            [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640)],
        ),
        ((768, 768), 256, 1024, 19, [(576, 960), (576, 1024), (640, 896), (704, 832), (768, 768)]),
        ((1024, 1024), 512, 2048, 33, [(512, 1856), (576, 1664), (640, 1536), (704, 1408), (768, 1280), (832, 1216)]),
        ((1024, 1024), 256, 2048, 41, [(256, 2048), (448, 2048), (896, 1152), (960, 1088)]),
        (
            (512, 768),
            256,
            1024,
            19,
            [(384, 896), (384, 960), (448, 832), (512, 704), (512, 768), (576, 576), (576, 640)],
        ),
    ],
)
def test_the_published_bucket_lists(resolution, lowest, highest, count, half):
    sizes = bucket_sizes(resolution, lowest, highest, 64)
    assert len(sizes) == count
    assert set(transposed(half)) <= set(sizes)


def test_the_longest_side_follows_the_resolution_when_it_is_not_set():
    assert max(max(size) for size in plan_buckets(DatasetSettings(resolution=1024)).sizes) == 2048
    assert max(max(size) for size in plan_buckets(DatasetSettings(resolution=512)).sizes) == 1024


def test_the_shortest_side_is_lowered_where_it_would_leave_only_the_square():
    for resolution in (128, 256):
        sizes = plan_buckets(DatasetSettings(resolution=resolution)).sizes
        assert (resolution, resolution) in sizes and len(sizes) >= 5
        assert min(min(size) for size in sizes) == resolution // 2
    assert (96, 160) in plan_buckets(DatasetSettings(resolution=128, bucket_reso_steps=32)).sizes


def test_lowering_a_shortest_side_that_a_person_set_is_said():
    assert not plan_buckets(DatasetSettings(resolution=128)).advice  # the default: its help says so
    (said,) = plan_buckets(DatasetSettings(resolution=256, min_bucket_reso=320)).advice
    assert "320" in said.what and said.level == "advice"


def test_a_longest_side_below_the_resolution_is_an_error():
    with pytest.raises(ProblemsError, match="512 is below the resolution 768 x 768"):
        plan_buckets(DatasetSettings(resolution=768, max_bucket_reso=512))


def test_limits_that_are_rounded_to_the_step_are_named():
    def advice(**given):
        return [(each.code, each.fix) for each in plan_buckets(DatasetSettings(resolution=512, **given)).advice]

    assert advice(min_bucket_reso=300, max_bucket_reso=1000) == [
        ("dataset.min-bucket-resolution-rounded", "use 256, or another step"),
        ("dataset.max-bucket-resolution-rounded", "use 1024, or another step"),
    ]
    assert not advice(min_bucket_reso=320, max_bucket_reso=1024) and not advice(bucket_reso_steps=96)
    assert not advice(bucket_no_upscale=True, max_bucket_reso=1000), "where they have no effect"


def test_a_step_above_the_resolution_is_an_error():
    with pytest.raises(ProblemsError) as caught:
        plan_buckets(DatasetSettings(resolution=64, bucket_reso_steps=128))
    assert caught.value.codes == ["dataset.bucket-step"]


def test_buckets_off_is_one_size_for_all():
    plan = plan_buckets(DatasetSettings(resolution=(100, 140), enable_bucket=False))
    assert plan.sizes == ((96, 136),) and "96 x 136" in plan.advice[0].what
    assert plan.assign(3000, 200).bucket == (96, 136)


def test_the_frame_is_the_crop_as_shares_of_the_image():
    placement = plan_buckets(DatasetSettings(resolution=512)).assign(1000, 1500)  # (384, 640) out of (427, 640)
    assert placement.frame == pytest.approx((21 / 427, 0, 405 / 427, 1))
    assert placement.scale == pytest.approx(427 / 1000) and placement.area_after_crop == pytest.approx(384 / 427)


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 9000),
    height=st.integers(1, 9000),
    resolution=st.integers(64, 2048),
    step=st.sampled_from([8, 16, 32, 64]),
    no_upscale=st.booleans(),
    enable=st.booleans(),
)
def test_any_image_covers_its_bucket_and_the_crop_lies_inside(width, height, resolution, step, no_upscale, enable):
    asked = DatasetSettings(
        resolution=resolution, bucket_reso_steps=step, bucket_no_upscale=no_upscale, enable_bucket=enable
    )
    placement = plan_buckets(asked).assign(width, height)
    if placement is None:
        assert no_upscale and enable  # only there a side can vanish
        return
    for side in (0, 1):
        assert 0 <= placement.crop[side] <= placement.resized[side] - placement.bucket[side]
        assert placement.bucket[side] > 0 and placement.bucket[side] % (step if enable else 8) == 0
    # The resized image keeps its shape to half a pixel, and without enlarging it has the smaller of both areas.
    assert abs(placement.resized[0] / width - placement.resized[1] / height) <= 0.51 / min(width, height)
    if no_upscale and enable:
        assert placement.resized[0] <= width and placement.resized[1] <= height
    # A bucket of its own has one side on the step: rounding it up adds at most half a step along the other side.
    slack = step * max(placement.bucket) if no_upscale and enable else 0
    assert placement.bucket[0] * placement.bucket[1] <= resolution**2 + slack
