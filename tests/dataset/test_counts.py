"""All counts of images, views, batches and steps that a report states are those of what trains."""

import re
from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.cli.dataset_report import report_lines
from core.dataset.buckets.plan import Plan
from core.dataset.preflight import preflight
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.training.saving.facts import buckets_of
from tabs.dataset.concepts import entries_of, folder_contents

SIZES = [(128, 128), (128, 128), (192, 96), (96, 192), (128, 128), (192, 96), (256, 72)]
SEEDS = range(40)  # with them each image of a bucket is in some batch


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of 1 to 7 images of several shapes."""
    root = tmp_path_factory.mktemp("sets")
    for number in range(1, 8):
        (root / f"f{number}").mkdir()
        for index, size in enumerate(SIZES[:number]):
            Image.effect_noise(size, 50 + index).convert("RGB").save(root / f"f{number}" / f"{index}.png")
    return root


FOLDER = st.fixed_dictionaries(
    {
        "images": st.integers(1, 7),
        "role": st.sampled_from(["train", "train", "regularization"]),
        "repeats": st.integers(1, 3),
    },
    optional={"train_batch_size": st.integers(1, 3), "samples_per_epoch": st.integers(1, 9)},
)


def job_of(root, drawn, **dataset):
    sources = []
    for entry in drawn:
        source = {"folder": str(root / f"f{entry['images']}"), "role": entry["role"], "num_repeats": entry["repeats"]}
        names = ["train_batch_size", *(["samples_per_epoch"] if entry["role"] == "train" else [])]
        sources.append(source | {name: entry[name] for name in names if name in entry})
    common = {"resolution": 128, "bucket_reso_steps": 32, "min_bucket_reso": 64, "sources": sources}
    return common | dataset


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=st.lists(FOLDER, min_size=1, max_size=3, unique_by=lambda each: each["images"]),
    short=st.sampled_from(["keep", "refill", "merge", "drop", "drop"]),
    like=st.sampled_from(["none", "sd-scripts-0.9"]),
    batch=st.integers(1, 5),
    split=st.sampled_from([0, 0.3]),
    accumulation=st.integers(1, 2),
    more=st.sampled_from([[], [96]]),
)
def test_every_count_is_that_of_what_trains(folders, drawn, short, like, batch, split, accumulation, more):
    dataset = job_of(folders, drawn, short_batches=short, train_batch_size=batch, more_resolutions=more)
    schedule = {"gradient_accumulation_steps": accumulation, "max_train_epochs": 2}
    job = build(
        TrainJob,
        {
            "dataset": dataset,
            "validation": {"validation_split": split},
            "schedule": schedule,
            "model": {"compatibility": like},
        },
    )
    report = preflight(job, Workspace(*(folders.parent / name for name in ("out", "models", "presets"))))
    plan = Plan(report.placed, job, 0, report.total_steps)
    epochs = [plan.epochs.batches(seed, 0) for seed in SEEDS]
    shown = {(each.key, repeat): each for batches in epochs for made in batches for each, repeat in made.items}
    if short == "refill":  # what fills up is shown again
        shown = {(each.key, repeat): each for each, repeat in plan.epochs.views_of(0)}
    views = list(shown.values())
    by_folder = Counter(each.concept.number for each in views)
    in_buckets = Counter(each.placement.bucket for each in views)
    if short == "drop":  # some of a bucket's views, others in each epoch
        assert all(each <= by_folder[number] for number, each in report.views.items())
        by_folder = Counter(report.views)
        in_buckets = Counter(made.bucket for made in epochs[0] for _ in made.items)
    total = by_folder.total()
    assert report.views == by_folder and total == in_buckets.total()
    assert {size: views for size, (_, views) in report.buckets.items() if views} == in_buckets
    assert all(images for images, _ in report.buckets.values())
    assert report.batches_per_epoch == len(epochs[0]) and report.steps_per_epoch == len(plan.epochs.groups(0, 0))
    assert report.total_steps == sum(len(plan.epochs.groups(0, epoch)) for epoch in range(2)) * bool(epochs[0])
    in_folder = defaultdict(set)
    for each in views:
        in_folder[each.concept.number].add(each.image.key)
    steady = plan.epochs.steady
    cards = folder_contents(entries_of(job), report)
    held_out = Counter(row.concept for row in report.rows if row.role == "validation")
    for number, inside in enumerate(cards):
        assert inside.views == by_folder[number]
        if steady:
            assert inside.images == len(in_folder[number]) + held_out[number]
            assert like != "none" or sum(folder.images for folder in inside.folders) == inside.images
    counted = buckets_of([each for each, _ in plan.epochs.views_of(0)])["buckets"].values()
    assert sum(each["count"] for each in counted) == total
    assert list(report_lines(job, report))[-1] == report.sentence
    if not epochs[0]:
        assert report.sentence == "No images to train on"
        return
    if steady:
        images = len(set().union(*in_folder.values()))
        stated = re.match(r"(?:(\d+) views of )?(\d+) images?(?: \((\d+) with repeats\))?", report.sentence)
        assert report.trained == images == int(stated[2]) and int(stated[1] or stated[3] or images) == total
    stated = re.search(r"(\d+) batch(?:es)? of (up to )?(\d+)", report.sentence)
    if stated:
        sizes = [len(made) for made in epochs[0]]
        assert int(stated[1]) == len(sizes) and max(sizes) <= int(stated[3])
        assert stated[2] or set(sizes) == {int(stated[3])}


def test_a_bucket_that_is_dropped_counts_nowhere(folders):
    """Of 7 images of four shapes with batches of 2, the widest and the tallest are never used."""
    dataset = job_of(folders, [{"images": 7, "role": "train", "repeats": 1}], short_batches="drop", train_batch_size=2)
    job = build(TrainJob, {"dataset": dataset, "schedule": {"max_train_epochs": 1}})
    report = preflight(job, Workspace(*(folders.parent / name for name in ("out", "models", "presets"))))
    assert report.sentence == "4 views of 5 images in rotation x 1 epoch / batch 2 = 2 steps"
    (card,) = folder_contents(entries_of(job), report)
    assert (card.images, card.views, report.trained, report.folders[0].images) == (5, 4, 5, 5)
    assert report.buckets.keys() == {(128, 128), (160, 96)}, "without the sizes that never train"
