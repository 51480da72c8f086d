"""JSON of strangers that is nested 3,000 brackets deep is answered, wherever it is read, and never ends in a RecursionError."""

import sqlite3
from contextlib import closing

import pytest
from PIL import Image

from core.dataset.doctor.images import Reading, second_look
from core.dataset.images.look import look_at_all, looks
from core.formats.hub import catalog
from core.formats.hub.fetch import Remote, _Transfer
from core.formats.models.diffusers_folder import write_older_vocabulary
from core.generation.images.a1111_rows import other_settings, read_other
from core.generation.images.gallery import Gallery
from core.networks.kinds.lora import sizes_as_metadata
from core.record.bounded_json import json_or_none
from core.record.workspace import Workspace
from core.tools.models.header_edit import _tensors_of
from tabs.form.form_values import SOURCE, read
from tabs.generate.sending import _parsed_choice
from tests.dataset.test_look import listed
from tests.refusals import refused

DEEP = "[" * 3000 + "]" * 3000


def damage(memo, kind: str) -> None:
    with closing(sqlite3.connect(memo)) as connection, connection:
        assert connection.execute("UPDATE files SET value = ? WHERE kind LIKE ?", (DEEP, f"{kind}%")).rowcount


def test_only_json_within_limits_has_a_content():
    assert json_or_none('{"a": [1]}') == {"a": [1]}
    assert json_or_none(DEEP) is json_or_none("") is json_or_none('"\\ud800"') is json_or_none(b"\xff") is None


def test_network_arguments_of_a_lora_file_count_as_none():
    assert "ss_network_args" not in sizes_as_metadata({}, DEEP)


def test_the_list_of_downloads_counts_as_empty(tmp_path):
    (tmp_path / catalog.RECORD).write_text(DEEP)
    assert catalog.recorded(tmp_path) == {}


def test_a_partial_download_with_such_a_note_starts_over(tmp_path):
    transfer = _Transfer(Remote("http://127.0.0.1/a.bin"), tmp_path / "a.bin", lambda done, total: None, None)
    transfer.part.write_bytes(b"half")
    transfer.note.write_text(DEEP)
    transfer._resume_part()
    assert transfer.received == 0 and not transfer.part.exists()


def test_what_is_cached_of_images_is_measured_again(tmp_path):
    (tmp_path / "fox").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "fox" / "a.png")
    images, memo = listed(tmp_path / "fox"), tmp_path / "memo.sqlite"
    found = look_at_all(images, memo_path=memo)
    damage(memo, "look")
    assert looks(images, memo) == {} and look_at_all(images, memo_path=memo) == found
    assert second_look(images, Reading(memo))
    damage(memo, "closer")
    assert second_look(images, Reading(memo)) == {}


def test_the_gallery_reads_an_image_again(tmp_path):
    space = Workspace(tmp_path)
    space.images.mkdir(parents=True)
    Image.new("RGB", (16, 8)).save(space.images / "a.png")
    for _ in range(2):
        gallery = Gallery(space)
        gallery.refresh()
        gallery.read()
        assert gallery.facts("a.png").width == 16
        damage(next(tmp_path.rglob("*.sqlite")), "")


def test_a_tokenizer_of_a_model_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(DEEP)
    with refused("file.not-json"):
        write_older_vocabulary(tmp_path)


def test_a_kept_header_is_no_files(tmp_path):
    assert _tensors_of(DEEP.encode()) is None and _tensors_of(b'{"__metadata__": {}, "a": 1}') == {"a": 1}


def test_settings_in_images_are_ignored_and_those_typed_are_refused():
    pair = next(entry for entry in other_settings().values() if entry.kind == "pair")
    with pytest.raises(ValueError):
        read_other(pair, DEEP)
    with refused("settings.bad-json"):
        read(SOURCE["custom_attributes"], DEEP)
    with refused("upscale.bad-choice"):
        _parsed_choice(DEEP)
