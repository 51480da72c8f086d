"""Where images go: held out by content, at every resolution of their folder, at the size metadata gives."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.dataset.buckets.placing import place
from core.dataset.buckets.validation_split import automatic_count, held_out
from core.dataset.captions.files import Caption
from core.dataset.sources.image_info import ImageInfo
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts, concepts_of
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.source import Source
from core.settings.dataset.validation import ValidationSettings
from core.settings.job import TrainJob
from core.settings.model import ModelSettings


def folders(*sources, split=0.0, **dataset):
    given = DatasetSettings(sources=[Source(folder=f"f{n}", **source) for n, source in enumerate(sources)], **dataset)
    return concepts(given, CaptionSettings(), ValidationSettings(validation_split=split))


def image(index, concept=0, size=(512, 512), **more):
    source = more.pop("source", f"f{concept}")
    return ImageInfo(source, f"{index}.png", Path(f"f{concept}/{index}.png"), *size, 1, 1, concept=concept, **more)


def contents(images):
    return {each.key: sha256(str(each.path).encode()).hexdigest() for each in images}


def no_caption(image):
    return Caption("", "none", image.path)


# ---- validation


@given(count=st.integers(2, 80), share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_a_share_is_held_out_and_both_sides_keep_at_least_one(count, share, seed):
    images = [image(index) for index in range(count)]
    out = held_out(images, folders({}, split=share), contents, seed)
    assert len(out) == min(max(round(share * count), 1), count - 1)
    assert out == held_out(images[::-1], folders({}, split=share), contents, seed)  # whatever their order


@pytest.mark.parametrize(
    ("sizes", "share", "counts"),
    [
        ((8, 5), 0.15, [1, 1]),
        ((8, 3), 0.15, [1, 0]),  # rounded as sd-scripts rounds it
        ((1,) * 10, 0.3, 3),  # too small to split: as a whole
    ],
)
def test_each_folder_with_repeats_is_split_by_itself(sizes, share, counts):
    """sd-scripts splits each subset: one concept alone would say nothing about the loss of the others."""
    images = [image(f"{part}/{n}", source=f"{part}_x") for part, size in enumerate(sizes) for n in range(size)]
    for seed in range(20):
        out = held_out(images, folders({}, split=share), contents, seed)
        by_folder = [sum(key[0] == f"{part}_x" for key in out) for part in range(len(sizes))]
        assert (by_folder if isinstance(counts, list) else sum(by_folder)) == counts


def test_what_is_held_out_goes_by_content_not_by_name_or_place():
    before = [image(index) for index in range(20)]
    renamed = [replace(each, relative=f"other/{each.relative}", source="moved") for each in before]
    same = contents(before)

    def contents_of_both(images):
        return {each.key: same["f0", each.path.name] for each in images}

    first = held_out(before, folders({}, split=0.3), contents, 0)
    second = held_out(renamed, folders({}, split=0.3), contents_of_both, 0)
    assert {key[1] for key in first} == {Path(key[1]).name for key in second}
    assert first != held_out(before, folders({}, split=0.3), contents, 1)


def test_two_copies_of_an_image_are_never_on_both_sides():
    images = [image(index) for index in range(40)]
    twins = {each.key: str(index // 2) for index, each in enumerate(images)}
    for seed in range(20):
        out = held_out(images, folders({}, split=0.25), lambda members: twins, seed)
        assert {twins[key] for key in out} & {twins[each.key] for each in images if each.key not in out} == set()


def test_a_share_holds_out_the_copies_in_other_folders_too():
    images = [image(index, concept) for concept in range(3) for index in range(8)]
    given = folders({"validation_split": 0.5}, {}, {"role": "regularization"})
    out = held_out(images, given, lambda members: {each.key: each.relative for each in members}, 0)
    assert {key[0] for key in out} == {"f0", "f1"} and len(out) == 8
    assert {name for folder, name in out if folder == "f0"} == {name for folder, name in out if folder == "f1"}


def test_a_file_that_two_entries_reach_is_held_out_of_both():
    images = [replace(image(index, concept), path=Path(f"{index}.png")) for concept in range(2) for index in range(5)]
    for first in ({"validation_images": ["3.png"]}, {"validation_split": 0.2}):
        out = held_out(images, folders(first, {}), contents, 0)
        assert len(out) == 2 and len({key[1] for key in out}) == 1


def test_a_folder_or_named_images_are_held_out_and_regularization_never_is():
    images = [image(index, concept) for concept in range(3) for index in range(4)]
    all_of = folders({"role": "validation"}, {"role": "regularization"}, {"validation_images": ["2.png"]}, split=0.0)
    assert held_out(images, all_of, contents, 0) == {*(("f0", f"{n}.png") for n in range(4)), ("f2", "2.png")}
    shared = folders({"role": "regularization"}, {}, {"validation_split": 0.0}, split=0.5)
    assert {key[0] for key in held_out(images, shared, contents, 0)} == {"f1"}


def test_held_out_images_never_train():
    images = [image(index) for index in range(10)]
    given = folders({}, split=0.3)
    out = held_out(images, given, contents, 0)
    placing = place(images, given, no_caption, held_out=out)
    assert {each.image.key for each in placing.validation} == out and len(out) == 3
    assert {each.image.key for each in placing.placed} == {each.key for each in images} - out


# ---- sizes


def test_an_image_trains_at_every_resolution_of_its_folder():
    given = folders({"more_resolutions": [768, (768, 512)]}, {"resolution": 256})
    placing = place([image(1), image(1, 1)], given, no_caption)
    assert [(each.variant, each.placement.bucket) for each in placing.placed] == [
        ("", (512, 512)),
        ("768x768", (768, 768)),
        ("768x512", (576, 576)),  # the square of its area
        ("", (256, 256)),
    ]
    assert len({each.key for each in placing.placed}) == 4


def test_a_small_image_that_is_never_enlarged_trains_once():
    given = folders({"more_resolutions": [768, 1024], "bucket_no_upscale": True})
    placing = place([image(1, size=(500, 500)), image(2, size=(900, 900))], given, no_caption)
    assert [(each.image.relative, each.placement.bucket) for each in placing.placed] == [
        ("1.png", (448, 448)),
        ("2.png", (512, 512)),
        ("2.png", (768, 768)),
        ("2.png", (896, 896)),
    ]


def test_a_bucket_of_images_that_are_never_enlarged_joins_none_that_would_enlarge_them():
    sizes = [(500, 500), (520, 390), (530, 390), (1000, 470)]
    images = [image(index, size=size) for index, size in enumerate(sizes)]
    given = folders({"bucket_no_upscale": True}, train_batch_size=4)
    apart = {each.placement.bucket for each in place(images, given, no_caption).placed}
    found = place(images, given, no_caption, merge=True).placed
    assert apart == {(448, 448), (512, 384), (704, 320)}
    assert {each.placement.bucket for each in found[1:3]} != {(448, 448)}  # nearest in shape, but taller than they are
    assert all(each.placement.scale <= 1 for each in found)


def test_sizes_from_metadata_are_the_buckets():
    with_size = [image(n, size=(1000, 1500), metadata_bucket=(384, 640)) for n in range(2)]
    placing = place(with_size, folders({}), no_caption)
    assert {each.placement.bucket for each in placing.placed} == {(384, 640)}
    assert placing.placed[0].placement.resized == (427, 640)  # covered and cropped, not squashed


def test_contradicting_sizes_are_said_once_for_all_images():
    given = folders({"max_bucket_reso": 256, "resolution": 512})
    placing = place([image(n) for n in range(5)], given, no_caption)
    assert len(placing.problems) == 1 and "256 is below the resolution" in placing.problems[0].what
    assert len(placing.refused) == 5


def test_an_image_too_narrow_is_refused_by_name_and_nothing_crashes():
    given = folders({"bucket_no_upscale": True})
    placing = place([image(1, size=(60, 400)), image(2, size=(400, 60))], given, no_caption)
    assert set(placing.refused.values()) == {"is too narrow for any bucket"} and not placing.placed
    assert ["1.png (60 x 400)" in placing.problems[0].what, "2.png (400 x 60)" in placing.problems[1].what] == [
        True
    ] * 2
    titles = [ImageSettings.title_of(name) for name in ("bucket_no_upscale", "bucket_reso_steps")]
    assert all(title in problem.fix for problem in placing.problems for title in titles)  # cropping makes it no wider


# ---- held out to find the best checkpoint


def automatic(*sources, how="auto", compatibility="none", **more):
    given = DatasetSettings(sources=[Source(folder=f"f{n}", **source) for n, source in enumerate(sources)])
    job = TrainJob(
        dataset=given,
        validation=ValidationSettings(best_checkpoint=how, **more),
        model=ModelSettings(compatibility=compatibility),
    )
    return concepts_of(job)


@given(
    sizes=st.lists(st.integers(1, 120), min_size=1, max_size=6),
    copies=st.lists(st.integers(0, 40), max_size=60),
    seed=st.integers(0, 5),
)
@hypothesis.settings(max_examples=30)
def test_a_few_images_are_held_out_by_formula_and_copies_are_never_split(sizes, copies, seed):
    """copies: so many images share their bytes with others of the same number."""
    images = [image(n, concept) for concept, size in enumerate(sizes) for n in range(size)]
    images = [replace(each, bytes=1000 + n) for n, each in enumerate(images)]
    text = {each.key: str(each.path) for each in images}
    for n, number in enumerate(copies):  # spread over the folders
        each = images[n * 7 % len(images)]
        images[n * 7 % len(images)] = replace(each, bytes=number + 1)
        text[each.key] = f"copy {number}"
    given = automatic(*({} for _ in sizes))
    out = held_out(images, given, lambda members: {each.key: text[each.key] for each in members}, seed)
    wanted = automatic_count(len(images))
    assert wanted == (min(max(round(0.03 * len(images)), 2), 16) if len(images) >= 40 else 0)
    room = sum(size // 2 for size in sizes)
    assert len(out) <= wanted and (copies or len(out) == min(wanted, room))
    assert not {text[key] for key in out} & {text[each.key] for each in images if each.key not in out}
    for concept, size in enumerate(sizes):
        assert sum(key[0] == f"f{concept}" for key in out) <= size // 2
    assert out == held_out(images[::-1], given, lambda members: {each.key: text[each.key] for each in members}, seed)


def test_no_file_is_read_to_choose_them_where_no_two_are_as_long():
    images = [replace(image(n), bytes=n + 1) for n in range(100)]
    out = held_out(images, automatic({}), lambda members: {}[0], 0)
    assert len(out) == 3 and out != held_out(images, automatic({}), lambda members: {}[0], 1)


def test_larger_folders_give_in_proportion_and_the_class_keeps_its_regularization_images():
    sizes = {0: 300, 1: 100, 2: 4, 3: 60}
    images = [replace(image(n, c), bytes=n + 1000 * c) for c, size in sizes.items() for n in range(size)]
    given = automatic({}, {}, {}, {"role": "regularization"})
    out = held_out(images, given, contents, 0)
    assert [sum(key[0] == f"f{n}" for key in out) for n in range(4)] == [9, 3, 0, 0]


def test_a_file_that_also_serves_as_regularization_image_is_not_held_out():
    images = [replace(image(n), bytes=n + 1) for n in range(40)]
    again = [replace(each, source="f1", concept=1) for each in images[:38]]
    out = held_out([*images, *again], automatic({}, {"role": "regularization"}), contents, 0)
    assert out == set(), "two images are left, too few"
    copied = [replace(image(n, 1), bytes=n + 1) for n in range(38)]  # other files with the same bytes
    same = lambda members: {each.key: each.relative for each in members}  # noqa: E731
    out = held_out([*images, *copied], automatic({}, {"role": "regularization"}), same, 0)
    assert {key[1] for key in out} <= {"38.png", "39.png"}


def test_what_a_person_holds_out_or_switches_off_holds_out_nothing_more():
    images = [replace(image(n), bytes=n + 1) for n in range(60)]
    for how in ("off", "training"):
        assert not held_out(images, automatic({}, how=how), contents, 0)
    for version in ("sd-scripts-0.10", "sd-scripts-0.9"):  # which train on all that they are not told to hold out
        assert not held_out(images, automatic({}, compatibility=version), contents, 0)
        asked = automatic({"validation_split": 0.1}, compatibility=version)
        assert len(held_out(images, asked, contents, 0)) == 6
    assert held_out(images, automatic({"validation_images": ["3.png"]}), contents, 0) == {("f0", "3.png")}
    assert len(held_out(images, automatic({}, validation_split=0.1), contents, 0)) == 6
    assert not held_out(images, automatic({"validation_split": 0.0}), contents, 0)
    assert not held_out(images[:39], automatic({}), contents, 0)
