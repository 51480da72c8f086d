"""What Train says of a dataset before every image of it has been decoded, and after."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from work_parts import image, wait_until

from core.dataset.images import look
from core.record.problems import errors
from tabs.train import checks

IMAGES = 20


@pytest.fixture
def slow(monkeypatch):
    """Images are decoded one by one as the test lets them."""
    gate, begun, opened, real = threading.Semaphore(0), [], [], look.open_decoded

    def open_decoded(path, **more):
        begun.append(path.name)
        gate.acquire()
        opened.append(path.name)
        return real(path, **more)

    monkeypatch.setattr(look, "open_decoded", open_decoded)
    yield SimpleNamespace(let=lambda number: gate.release(number), begun=begun, opened=opened)
    gate.release(10_000)


def images(folder, number=IMAGES, broken=()):
    """Broken ones have a header that is right, and end early."""
    for index in range(number):
        path = image(folder / f"{index:02}.png", (64, 64), caption=f"image {index}")
        if index in broken:
            path.write_bytes(path.read_bytes()[:-30])
    return folder


def looked(page, test):
    """What the page is told once `test` holds of it."""
    wait_until(lambda: test(page.checks.latest(page.project.job)))
    return page.checks.latest(page.project.job)


def test_nothing_is_called_fine_before_every_image_was_decoded_and_a_start_decodes_none_again(page, tmp_path, slow):
    page.project.edit("dataset.folder", str(images(tmp_path / "set", broken=(3, 11))))
    first = looked(page, lambda found: found.get("undecoded"))
    assert first["undecoded"] == IMAGES and not errors_of(first)
    slow.let(7)
    looked(page, lambda found: found["read"] == (7, IMAGES))
    slow.let(IMAGES)
    done = looked(page, lambda found: found.get("undecoded") == 0)
    assert "read" not in done and done["trained"] == IMAGES - 2
    assert sorted(problem["where"][-6:] for problem in errors_of(done)) == ["03.png", "11.png"]
    assert {problem["remedy"] for problem in errors_of(done)} == {"dataset.skip_broken"}
    assert sorted(slow.opened) == [f"{index:02}.png" for index in range(IMAGES)]
    report = page.checks.report(page.project.job, decode=True)  # what a start does
    assert len(errors(report.problems)) == 2 and len(slow.opened) == IMAGES
    page.checks.latest(page.project.job, again=True)
    assert looked(page, lambda found: not found["checking"])["undecoded"] == 0 and len(slow.opened) == IMAGES


def test_check_again_answers_also_where_nothing_has_changed(page, tmp_path):
    page.project.edit("dataset.folder", str(images(tmp_path / "set", 2)))
    before = looked(page, lambda found: not found["checking"] and not found.get("undecoded"))
    page.checks.latest(page.project.job, again=True)
    again = looked(page, lambda found: not found["checking"] and not found.get("undecoded"))
    assert again["trained"] == before["trained"] and again != before


def errors_of(found):
    return [problem for problem in found["problems"] if "png" in problem["where"]]


def test_another_dataset_ends_the_reading_and_what_was_read_is_kept(page, tmp_path, slow):
    first, second = images(tmp_path / "a"), images(tmp_path / "b", 3)
    page.project.edit("dataset.folder", str(first))
    looked(page, lambda found: found.get("undecoded"))
    slow.let(5)
    looked(page, lambda found: found["read"] == (5, IMAGES))
    wait_until(lambda: len(slow.begun) == 5 + 4)  # each of its threads holds one
    page.project.edit("dataset.folder", str(second))
    page.checks.latest(page.project.job)  # the first reading is cancelled here
    slow.let(4 + 3)  # those that its threads hold, and the new ones
    assert looked(page, lambda found: found.get("undecoded") == 0 and not found["checking"])["trained"] == 3
    assert len(slow.opened) == 5 + 4 + 3
    page.project.edit("dataset.folder", str(first))
    slow.let(IMAGES)
    looked(page, lambda found: found.get("undecoded") == 0 and found["trained"] == IMAGES)
    assert len(slow.opened) == IMAGES + 3


def test_a_missing_image_folder_leads_to_its_field(page, tmp_path):
    page.project.edit("dataset.folder", str(tmp_path / "gone"))
    found = looked(page, lambda found: not found["checking"])
    assert ("dataset.missing-folder", "dataset.folder") in [(each["code"], each["where"]) for each in found["problems"]]


def test_a_look_that_fails_says_why(page, tmp_path, monkeypatch):
    page.project.edit("dataset.folder", str(images(tmp_path / "set", 2)))

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(page.checks, "facts", fail)
    found = looked(page, lambda found: not found["checking"])
    assert [problem["level"] for problem in found["problems"]] == ["error"]


def test_masks_are_read_before_anything_is_called_fine(page, tmp_path, slow):
    images(tmp_path / "set", 3)
    images(tmp_path / "masks", 3, broken=(1,))
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    page.project.edit("dataset.conditioning_data_dir", str(tmp_path / "masks"))
    page.project.edit("dataset.masked_loss", True)
    looked(page, lambda found: found.get("undecoded") == 6)
    slow.let(4)
    looked(page, lambda found: found["read"] == (4, 6))
    slow.let(2)
    done = looked(page, lambda found: found.get("undecoded") == 0)
    assert len(slow.opened) == 6
    assert any("mask" in problem["what"] for problem in errors_of(done))


def test_the_folders_are_looked_at_again_each_minute_and_each_few_seconds_while_somebody_is_there(page, monkeypatch):
    clock, looked_at = [100.0], []
    monkeypatch.setattr(checks, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(page.checks, "_preflight", lambda job, task: looked_at.append(clock[0]))
    for clock[0] in [*range(100, 190, 11), *range(190, 203)]:
        page.checks.latest(page.project.job)
        page.checks._task.wait(60)
    assert looked_at == [100, 166, 190, 196, 202]


def test_while_another_file_is_checked_no_finding_is_of_the_former_one(page, tmp_path, monkeypatch):
    page.project.edit("dataset.folder", str(images(tmp_path / "set", 2)))
    page.project.edit("model.base_model", str(image(tmp_path / "not_a_model.png", (64, 64))))

    def at_the_model(found):
        return [each["code"] for each in found["problems"] if each["where"] == "model.base_model"]

    assert at_the_model(looked(page, lambda found: not found["checking"] and not found.get("undecoded")))
    gate, facts = threading.Event(), page.checks.facts
    monkeypatch.setattr(page.checks, "facts", lambda *given, **more: gate.wait() and facts(*given, **more))
    page.project.edit("model.base_model", str(tmp_path / "gone.safetensors"))
    for again in (False, True):
        found = page.checks.latest(page.project.job, again=again)
        assert found["checking"] and found["trained"] == 2 and not at_the_model(found)
    gate.set()
    assert at_the_model(looked(page, lambda found: not found["checking"])) == ["model.not-found"]
