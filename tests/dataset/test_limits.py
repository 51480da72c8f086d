"""Limits, tables and names of a dataset, each at its edge."""

import os
import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from core.dataset.advice import remark_advice, size_advice
from core.dataset.buckets.aspect_ratio import fit_to_bucket
from core.dataset.buckets.batches import Placed
from core.dataset.buckets.length import advised_epochs
from core.dataset.buckets.placing import merged
from core.dataset.buckets.rotation import Rotation
from core.dataset.buckets.validation_split import automatic_count, held_out
from core.dataset.caches.store import prune
from core.dataset.captions import history as history_module
from core.dataset.captions.files import Caption, SidecarIndex
from core.dataset.captions.history import Change, History
from core.dataset.doctor.captions import SIMILAR, _similar_pairs
from core.dataset.doctor.trash import companions, put_away, put_back, split_label, undoable_actions
from core.dataset.images.look import Look
from core.dataset.sources import files
from core.dataset.sources.files import (
    begins_like_image,
    format_if_other,
    is_image,
    is_image_name,
    is_junk,
    repeats_and_words,
    without_face,
)
from core.dataset.sources.folders import roots_of
from core.dataset.sources.image_info import about
from core.dataset.sources.memo import Memo
from core.dataset.sources.walk import walk
from core.record import draws
from core.settings.dataset.source import Source
from tests.dataset.test_placing import automatic, image


@pytest.mark.parametrize(
    ("images", "out"),
    [(39, 0), (40, 2), (83, 2), (84, 3), (116, 3), (117, 4), (516, 15), (517, 16), (550, 16), (10_000, 16)],
)
def test_3_in_100_images_are_held_out_from_40_images_at_least_2_and_at_most_16(images, out):
    assert automatic_count(images) == out
    if images <= 117:
        there = [replace(image(n), bytes=n + 1) for n in range(images)]
        assert len(held_out(there, automatic({}), lambda members: {}[0], 0)) == out


@pytest.mark.parametrize(
    ("images", "share", "out"),
    [(1, 0.5, 0), (2, 0.1, 1), (2, 0.99, 1), (6, 0.25, 2), (6, 0.24, 1), (6, 0.99, 5), (6, 1.0, 6), (6, 0.0, 0)],
)
def test_a_share_is_rounded_and_leaves_one_of_each_unless_it_is_whole(images, share, out):
    there = [replace(image(n), bytes=n + 1) for n in range(images)]
    names = lambda members: {each.key: each.relative for each in members}  # noqa: E731
    assert len(held_out(there, automatic({"validation_split": share}), names, 0)) == out


@pytest.mark.parametrize(
    ("views", "batch", "epochs"),
    [(0, 1, 10), (1, 1, 100), (15, 1, 100), (16, 1, 94), (157, 1, 14), (300, 1, 10), (301, 1, 10), (5000, 1, 10)]
    + [(15, 4, 100), (15, 100, 100), (300, 30, 10), (300, 31, 10), (300, 50, 17), (300, 300, 100)],
)
def test_the_recommended_epochs_give_1500_views_to_15_images_and_3000_to_300_in_100_steps(views, batch, epochs):
    assert advised_epochs(views, batch) == epochs
    assert advised_epochs(300, 1, batches=9) == 12, "the batches that there are count, not their number by size"


def changed(history, folder, number, size=1):
    history.apply(f"Edit {number}", [Change(folder / f"{number}.txt", None, b"x" * size)])


@pytest.mark.parametrize(("limit", "left"), [(1, [5]), (2, [4, 5]), (5, [1, 2, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5])])
def test_the_newest_changes_stay_as_many_as_the_limit_says(tmp_path, monkeypatch, limit, left):
    monkeypatch.setattr(history_module, "MAX_CHANGES", limit)
    history = History(tmp_path / "history")
    for number in range(6):
        changed(history, tmp_path, number)
    history._prune()
    assert [entry.title for entry in history.entries()] == [f"Edit {number}" for number in reversed(left)]


@pytest.mark.parametrize("spare", [0, -1])
@pytest.mark.parametrize("large", [False, True])
def test_the_newest_changes_stay_as_far_as_they_fit_and_the_last_always(tmp_path, monkeypatch, spare, large):
    history = History(tmp_path / "history")
    for number in range(4):
        changed(history, tmp_path, number, 1000)
    sizes = [path.stat().st_size for path in history._files()]
    monkeypatch.setattr(history_module, "LARGE_CHANGE", min(sizes) - 1 if large else max(sizes))
    monkeypatch.setattr(history_module, "MAX_HISTORY_BYTES", sum(sizes[2:]) + spare)
    history._prune()
    assert [entry.title for entry in history.entries()] == (["Edit 3", "Edit 2"] if spare == 0 else ["Edit 3"])
    monkeypatch.setattr(history_module, "MAX_HISTORY_BYTES", 0)
    history._prune()
    assert [entry.title for entry in history.entries()] == ["Edit 3"]


def test_old_changes_are_looked_for_at_the_first_and_every_hundredth(tmp_path, monkeypatch):
    history, looks = History(tmp_path / "history"), []
    monkeypatch.setattr(history, "_prune", lambda: looks.append(history._opened))
    for number in range(201):
        with history.open(str(number)):
            pass
    assert looks == [0, 100, 200]


def test_of_a_caption_the_newest_changes_are_listed_newest_first(tmp_path):
    history, path = History(tmp_path / "history"), tmp_path / "a.txt"
    for old, new in ((None, b"1"), (b"1", b"2"), (b"2", b"3")):
        history.apply("Edit", [Change(path, old, new)])
    assert [(change.old, change.new) for _, change in history.changes_of(path, 2)] == [(b"2", b"3"), (b"1", b"2")]


@pytest.mark.parametrize(("keep", "left"), [(0, "c"), (299, "cd"), (300, "bcd"), (399, "bcd"), (400, "abcd")])
def test_a_cache_loses_what_was_used_longest_ago_and_never_what_is_needed(tmp_path, keep, left):
    for number, name in enumerate("abcd"):
        path = tmp_path / (name * 2) / f"{name}.safetensors"
        path.parent.mkdir()
        path.write_bytes(b"x" * 100)
        os.utime(path, (1000 + number, 1000 + number))
    assert prune(tmp_path, keep, {"c"}) == 100 * (4 - len(left))
    assert sorted(path.stem for path in tmp_path.rglob("*.safetensors")) == list(left)


@pytest.mark.parametrize(
    ("name", "read"),
    [(f"a.{ending}", True) for ending in "png jpg jpeg jfif webp bmp gif tif tiff avif heic heif hif jxl PNG".split()]
    + [("a", False), ("png", False), ("a.png.txt", False), ("a.svg", False), ("a.psd", False)],
)
def test_these_endings_are_images(name, read):
    assert is_image_name(name) == read


@pytest.mark.parametrize("name", ["._a.png", ".a.png", "Thumbs.db", "desktop.ini", "ehthumbs.db", "Icon\r"])
def test_leftovers_of_systems_are_no_files_of_a_dataset(name):
    assert is_junk(name) and not is_junk(f"a{name}")


@pytest.mark.parametrize("name", ["__MACOSX", "$RECYCLE.BIN", "_atelier_trash"])
def test_folders_of_systems_and_the_trash_are_no_folders_of_a_dataset(name):
    assert is_junk(name) and not is_junk(f"{name}2")


@pytest.mark.parametrize(
    ("name", "held", "told"),
    [("a.jpg", "JPEG", ""), ("a.jpeg", "JPEG", ""), ("a.jfif", "JPEG", ""), ("a.jpg", "MPO", ""), ("a.tif", "TIFF", "")]
    + [
        ("a.tiff", "TIFF", ""),
        ("a.bmp", "DIB", ""),
        ("a.heic", "HEIF", ""),
        ("a.hif", "HEIF", ""),
        ("a.PNG", "PNG", ""),
    ]
    + [("a.png", "JPEG", "JPEG"), ("a.png", "MPO", "JPEG"), ("a.jpg", "WEBP", "WEBP"), ("a.png", "DIB", "BMP")],
)
def test_an_ending_that_is_not_the_formats_is_told(name, held, told):
    assert format_if_other(name, held) == told


@pytest.mark.parametrize(
    ("name", "expected"),
    [("10_sks fox", (10, "sks fox")), ("0_fox", (0, "fox")), ("10_", (10, "")), ("10_a_b", (10, "a_b"))]
    + [("10000_fox", (10000, "fox")), ("10001_fox", None), ("00010_fox", (10, "fox")), ("000010_fox", None)]
    + [("fox", None), ("10fox", None), ("x10_fox", None), ("_fox", None), ("10 _fox", None), ("-1_fox", None)],
)
def test_repeats_in_the_name_of_a_folder(name, expected):
    assert repeats_and_words(name) == expected


@pytest.mark.parametrize(
    ("repeats", "codes"), [(0, ["dataset.zero-repeats"]), (499, []), (500, ["dataset.many-repeats"])]
)
def test_repeats_that_are_more_likely_a_year_are_told(tmp_path, repeats, codes):
    folder = tmp_path / f"{repeats}_fox"
    folder.mkdir()
    roots, problems = roots_of(Source(folder=str(folder)), folder)
    assert [each.code for each in problems] == codes and [root.repeats for root in roots] == [repeats][:repeats]
    roots, problems = roots_of(Source(folder=str(folder), num_repeats=700), folder)
    assert not problems and [root.repeats for root in roots] == [700]


@pytest.mark.parametrize("others", [[], ["10.fox", "10fox"]])
def test_numbers_that_are_not_quite_repeats_are_told_unless_repeats_are_set(tmp_path, others):
    near = ["10 fox", "10-fox", "10X_fox", "１０_fox", "499 _fox"][: 5 - len(others)] + others
    for name in (
        *near,
        "10_fox",
        "fox 10",
        "10",
        "1girl",
        "90s fox",
        "3d fox",
        "2024-01-05 fox",
        "1.5_fox",
        "-3_fox",
        "512 px",
    ):
        (tmp_path / name).mkdir()
    roots, problems = roots_of(Source(folder=str(tmp_path)), tmp_path)
    assert [each.code for each in problems] == ["dataset.nearly-repeats"] and len(roots) == 2
    assert all(name in problems[0].what for name in near) and " more" not in problems[0].what
    assert not roots_of(Source(folder=str(tmp_path), num_repeats=2), tmp_path)[1]
    for recursive in (True, False):
        source = Source(folder=str(tmp_path / near[0]), recursive=recursive)
        assert [each.code for each in roots_of(source, tmp_path / near[0])[1]] == ["dataset.nearly-repeats"]


@pytest.mark.parametrize(
    ("stem", "source"),
    [
        ("foo_0123_0200_0080_0080", "foo"),
        ("a_b_1_2_3_4", "a_b"),
        ("foo_1_2_3", None),
        ("foo_1_2_3_x", None),
        ("_1_2_3_4", None),
    ],
)
def test_the_image_that_a_face_was_cut_from(stem, source):
    assert without_face(stem) == source


def placed(width, height, bucket, **more):
    info = image(0)
    return Placed(
        info, fit_to_bucket((width, height), bucket), Caption("", "none", Path("a.txt")), automatic({})[0], "", **more
    )


@pytest.mark.parametrize(("side", "codes"), [(1000, []), (1050, []), (1052, ["image.upscaled"])])
def test_an_image_that_is_enlarged_by_more_than_a_twentieth_is_told(side, codes):
    given = placed(1000, 1000, (side, side))
    assert given.placement.scale == side / 1000 and [each.code for each in size_advice([given])] == codes


def test_captions_are_alike_exactly_where_nine_in_ten_of_their_words_are():
    draw = random.Random(3)
    common = "abcdefghijklmnopqrs"
    sets = [
        frozenset(common[: draw.randint(9, 19)]) | set(draw.sample("tuvwxyz", draw.randint(0, 2))) for _ in range(60)
    ]
    sets.append(sets[0])
    pairs = {pair for pair in combinations(range(len(sets)), 2) if _alike(*(sets[n] for n in pair))}
    found = set(_similar_pairs(sets))
    assert found <= pairs and _joined(found, len(sets)) == _joined(pairs, len(sets)) and len(pairs) > 40


def _alike(one, other):
    return len(one & other) >= SIMILAR * len(one | other)


def _joined(pairs, number):
    """For each set the smallest number of those that it is joined with, through others too."""
    group = list(range(number))
    for a, b in sorted(pairs):
        low, high = sorted((group[a], group[b]))
        group = [low if each == high else each for each in group]
    return group


@pytest.mark.parametrize(("width", "codes"), [(2000, []), (2002, ["image.cropped"])])
def test_an_image_of_which_less_than_half_is_left_is_told(width, codes):
    assert [each.code for each in size_advice([placed(width, 1000, (1000, 1000))])] == codes


def test_20_kinds_of_damage_are_told():
    given = [replace(placed(8, 8, (8, 8)), image=image(n)) for n in range(21)]
    looks = {each.image.key: Look(remark=f"damage {n}") for n, each in enumerate(given)}
    assert len(remark_advice(given, looks)) == 20 and len(remark_advice(given[:20], looks)) == 20
    assert len(remark_advice(given, {key: replace(look, remark="one") for key, look in looks.items()})) == 1


def bucketed(number, bucket):
    return Placed(image(number), fit_to_bucket((1024, 1024), bucket), Caption("", "none", Path("a")), pairs_of_images())


def pairs_of_images():
    """A folder whose batches have two images."""
    (concept,) = automatic({"train_batch_size": 2})
    return concept


@pytest.mark.parametrize(
    ("target", "moves"),
    [((512, 512), True), ((512, 1024), True), ((512, 1032), False), ((512, 256), True), ((512, 248), False)],
)
def test_an_image_alone_in_its_bucket_moves_to_one_of_half_to_twice_its_area(target, moves):
    """An image of 512 x 512 and two of another bucket, which fill a batch."""
    given = [bucketed(0, (512, 512)), bucketed(1, target), bucketed(2, target)]
    assert [each.placement.bucket for each in merged(given)] == [target if moves else (512, 512), target, target]


def test_of_buckets_as_near_the_first_is_taken_and_two_processes_need_twice_as_many():
    given = [
        bucketed(0, (512, 512)),
        *(bucketed(n, (512, 640)) for n in (1, 2)),
        *(bucketed(n, (448, 512)) for n in (3, 4)),
    ]
    assert merged(given)[0].placement.bucket == (448, 512), "0.875 is nearer to 1 than 0.8"
    assert len({each.placement.bucket for each in merged(given, processes=2)}) == 1
    assert [each.placement.bucket for each in merged(given[1:])] == [each.placement.bucket for each in given[1:]]


BESIDE = ["a.txt", "a.caption", "a.npz", "a_flip.npz", "a_te_outputs.npz", "a_0512x0768.npz", "a_0512x0768_sdxl.npz"]
BESIDE += ["a-masklabel.png", "a-condlabel.png", "A.TXT"]
OTHERS = ["b.txt", "a_b.npz", "a_0512.npz", "a_05x07.npz", "ab.txt", "a.safetensors", "a-label.png", "a.psd"]


def test_captions_caches_and_labels_of_an_image_go_to_the_trash_with_it_and_come_back(tmp_path):
    for name in ("a.png", *BESIDE, *OTHERS):
        (tmp_path / name).write_text(name)
    assert sorted(path.name for path in companions([tmp_path / "a.png"])) == sorted(BESIDE)
    token = put_away([tmp_path / "a.png"], tmp_path, "test")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(OTHERS)
    assert {path.name for path in put_back(token)} == {"a.png", *BESIDE}
    (tmp_path / "a.jpg").write_text("shares them")
    assert not any(path.suffix in (".txt", ".caption") for path in companions([tmp_path / "a.png"]))


def test_the_newest_of_what_was_put_away_comes_first(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_text("")
        put_away([tmp_path / f"{number}.png"], tmp_path, str(number))
    assert [each.reason for each in undoable_actions(tmp_path)] == ["3", "2", "1", "0"]
    assert [each.reason for each in undoable_actions(tmp_path, 2)] == ["3", "2"]


@pytest.mark.parametrize(
    ("stem", "parts"),
    [
        ("a-masklabel", ("a", "-masklabel")),
        ("a-CondLabel", ("a", "-CondLabel")),
        ("-masklabel", ("-masklabel", "")),
        ("a", ("a", "")),
    ],
)
def test_labels_of_onetrainer(stem, parts):
    assert split_label(stem) == parts


def test_images_are_in_the_order_of_their_names_below_the_folder(tmp_path):
    for name in ("b/x.png", "c.png", "a.png", "b/a/y.png", "B.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = walk(tmp_path)
    assert [each.relative for each in found.files] == ["B.png", "a.png", "b/a/y.png", "b/x.png", "c.png"]


def test_facts_that_are_known_count_as_done(tmp_path):
    memo, told = Memo(tmp_path / "memo.sqlite"), []
    files = [replace(image(n), path=tmp_path / f"{n}.png") for n in range(3)]
    memo.facts("kind", files[:1], lambda file: "fact")
    memo.facts("kind", files, lambda file: "fact", progress=lambda *given: told.append(given))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_linked_folders_are_entered_once_and_not_again_below(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "below").mkdir()
    for name in ("one", "two", "three"):
        (folder / name).symlink_to(folder)
    looked_at = []
    monkeypatch.setattr(files, "identity_of", lambda path: looked_at.append(path) or os.stat(path).st_ino)
    assert [place for place, _, _ in files.walk_folders(folder)] == [folder, folder / "below"]
    assert len(looked_at) == 5


PNG = b"\x89PNG\r\n\x1a\n"
MARKS = [
    PNG,
    b"\xff\xd8\xff",
    b"RIFF\1\2\3\4WEBP",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"BM\1\2\3\4\0\0\0\0",
    b"qoif",
    b"\xff\x0a",
]
MARKS += [b"\0\0\0\x0cJXL ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"]
MARKS += [b"\0\0\0\x18ftyp" + brand for brand in (b"avif", b"avis", b"heic", b"heix", b"heim", b"mif1", b"msf1")]


@pytest.mark.parametrize("mark", MARKS)
def test_an_image_is_known_by_its_whole_mark_at_its_beginning(mark):
    assert begins_like_image(mark + b"rest")
    assert not begins_like_image(mark[:-1]) and not begins_like_image(b"x" + mark)


@pytest.mark.parametrize(
    ("name", "content", "is_one"),
    [
        ("a.jpg_large", PNG, True),
        ("a", PNG, True),
        ("a", b"no", False),
        ("a.xyz", b"words", False),
        ("a.png", b"words", True),
    ]
    + [(f"a.{ending}", PNG, False) for ending in ("part", "json", "txt", "caption", "zip", "svg", "safetensors")],
)
def test_only_a_file_of_an_unknown_ending_is_judged_by_its_first_bytes(tmp_path, name, content, is_one):
    (tmp_path / name).write_bytes(content)
    assert is_image(tmp_path / name, name) is is_one and not is_image(tmp_path, "folder")


def test_each_epoch_takes_its_number_of_images_where_the_last_one_ended():
    given = [bucketed(n, (512, 512)) for n in range(5)]
    pool = list(given)
    draws.python_random(0, "turn", "folder 1").shuffle(pool)
    turn = Rotation(given, 3, "folder 1")
    assert [each for epoch in range(3) for each, _ in turn.of_epoch(epoch)] == (pool * 2)[:9]
    assert (len(turn), turn.pool_size, turn.images) == (3, 5, pool)
    assert [repeat for _, repeat in Rotation(given[:1], 3, "").of_epoch(1)] == [0, 1, 2]
    assert (
        Rotation(given, 0, "").images == [] and len(Rotation([], 3, "")) == 0 and Rotation([], 3, "").of_epoch(1) == []
    )


def test_the_most_enlarged_and_the_most_cropped_are_named_first():
    enlarged = [replace(placed(1000, 1000, (side, side)), image=image(n)) for n, side in enumerate((1104, 2000, 1504))]
    (problem,) = size_advice(enlarged)
    assert "2.0 times" in problem.what and problem.what.endswith("1.png, 2.png, 0.png")
    cropped = [replace(placed(width, 1000, (1000, 1000)), image=image(n)) for n, width in enumerate((2500, 4000, 3000))]
    (problem,) = size_advice(cropped)
    assert "25%" in problem.what and problem.what.endswith("1.png, 2.png, 0.png")


def test_of_captions_that_differ_in_case_the_same_is_taken_on_every_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "listdir", lambda folder: ["a.txt", "A.TXT", "A.png.txt", "A.png", "a.Txt"])
    assert SidecarIndex().of(tmp_path / "A.png") == ["A.TXT", "A.png", "a.Txt", "a.txt", "A.png.txt"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.png"], "1 image is bad, has one and does it: a.png"),
        (["a.png", "b.png"], "2 images are bad, have one and do it: a.png, b.png"),
    ],
)
def test_a_sentence_on_images_agrees_with_their_number(names, said):
    (problem,) = about(names, "{n} {is} bad, {has} one and {do} it: {names}", "fix", "code")
    assert problem.what == said
    assert about([], "{n}", "fix", "code") == []
