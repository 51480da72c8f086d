"""Numbers, sizes, times and counts in words."""

import pytest

from core.record.units import clock, count, first_of, memory_text, progress_text, size_text


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (8_400_000, "8.4 MB"),
        (850e6, "850 MB"),
        (999.9e6, "1.0 GB"),
        (4_265_146_304, "4.3 GB"),
        (3e12, "3.0 TB"),
    ],
)
def test_files_and_disks_are_in_powers_of_1000(size, words):
    assert size_text(size) == words


@pytest.mark.parametrize(("size", "words"), [(1, "1 MB"), (120 << 20, "120 MB"), (24 << 30, "24.0 GB")])
def test_memory_is_in_the_gb_that_gpus_are_sold_by(size, words):
    assert memory_text(size) == words


def test_times_and_counts():
    assert [clock(each) for each in (None, float("nan"), -1, 0, 59.6, 3600, 7384)] == [
        "–",
        "–",
        "–",
        "0:00",
        "1:00",
        "1:00:00",
        "2:03:04",
    ]
    assert (count(1, "image"), count(10_000, "image"), count(2, "batch", "batches")) == (
        "1 image",
        "10,000 images",
        "2 batches",
    )


def test_progress_counts_things_and_says_bytes_in_words():
    assert progress_text(3, 0) == progress_text(3, 0, of_bytes=True) == ""
    assert progress_text(3, 20) == " 3/20"
    assert progress_text(640, 2_132_470_614, of_bytes=True) == " 640 bytes of 2.1 GB"


def test_the_first_of_many_are_named_and_the_others_counted():
    names = [f"n{number}" for number in range(1002)]
    assert (first_of([], 2), first_of(names[:2], 2)) == ("", "n0, n1")
    assert first_of(names[:3], 2) == "n0, n1 and 1 more" and first_of(names, 2, "; ") == "n0; n1 and 1,000 more"
