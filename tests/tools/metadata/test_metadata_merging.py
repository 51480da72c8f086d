"""Captions and tags merged into a metadata JSON: the bytes that sd-scripts writes, and what is refused before."""

from __future__ import annotations

import json
import os

import pytest

from core import tasks
from core.cli.main import main
from core.record.problems import ProblemsError
from core.settings.check import build
from tests.tools.metadata.metadata_cases import codes, files, images, undo, use


def as_sd_scripts(folders, name, extension, metadata, full_path=False, recursive=False):
    """What merge_captions_to_metadata (0.9) writes: sorted paths, stripped texts, known keys in their place, indent 2."""
    for folder in folders:
        found = folder.rglob("*.png") if recursive else folder.glob("*.png")
        for path in sorted(found):
            text = path.with_suffix(extension).read_text("utf-8").strip()
            metadata.setdefault(str(path) if full_path else path.stem, {})[name] = text
    return json.dumps(metadata, indent=2).encode()


@pytest.fixture
def folder(tmp_path):
    texts = {"b.png": "a fox \n", "a.png": 'été, "quoted"\r\nsecond line\n\n', "c d [1].png": "🦊 \\ back\tslash"}
    return images(tmp_path / "set", texts)


def test_the_file_is_byte_for_byte_what_sd_scripts_writes(folder, tmp_path):
    out = tmp_path / "meta.json"
    facts, lines = use("merge_captions", out_json=out, folders=[folder])
    assert out.read_bytes() == as_sd_scripts([folder], "caption", ".caption", {})
    assert (facts["images"], facts["merged"], facts["added"], facts["missing"]) == (3, 3, 3, [])
    assert "3 of 3 images merged" in lines[-1]


def test_a_chain_of_folders_and_tags_after_captions_keeps_the_order_and_what_was_there(folder, tmp_path):
    other = images(tmp_path / "other", {"a-x.png": "one", "sub/b.png": "two", "z.png": "three"})
    images(folder, {"a.png": "tag, tags", "b.png": "", "c d [1].png": "t"}, ".txt")
    images(other, {"a-x.png": "1", "sub/b.png": "2", "z.png": "3"}, ".txt")
    out = tmp_path / "meta.json"
    old = {"gone": {"caption": "kept", "n": [1, 1.5, None]}, str(folder / "b.png"): {"tags": "old", "caption": "x"}}
    out.write_text(json.dumps(old))
    given = {"out_json": out, "folders": [folder, other], "full_path": True, "recursive": True}
    use("merge_captions", **given)
    facts, _ = use("merge_tags", **given)
    sofar = json.loads(as_sd_scripts([folder, other], "caption", ".caption", json.loads(json.dumps(old)), True, True))
    assert out.read_bytes() == as_sd_scripts([folder, other], "tags", ".txt", sofar, True, True)
    assert facts["added"] == 0 and facts["empty"] == [str(folder / "b.png")]
    keys = list(json.loads(out.read_text()))
    assert keys[:2] == list(old) and keys[-3:] == [str(other / name) for name in ("a-x.png", "sub/b.png", "z.png")]


def test_another_file_can_be_started_from_and_stays_as_it_is(folder, tmp_path):
    start, out = tmp_path / "start.jsonl", tmp_path / "new" / "meta.json"
    start.write_text('{"image_path": "a", "caption": "old", "image_size": [8, 8]}\n{"file_name": "q", "text": "t"}\n')
    before = start.read_bytes()
    use("merge_captions", out_json=out, in_json=start, folders=[folder])
    found = json.loads(out.read_text())
    assert found["a"] == {"caption": 'été, "quoted"\nsecond line', "image_size": [8, 8]}
    assert found["q"] == {"text": "t", "caption": "t"} and start.read_bytes() == before


def test_images_without_a_file_are_named_and_keep_their_entry(folder, tmp_path):
    out = tmp_path / "meta.json"
    out.write_text('{"d": {"caption": "earlier"}}')
    images(folder, {"d.png": None, "e.png": None, "a-masklabel.png": None})
    facts, lines = use("merge_captions", out_json=out, folders=[folder])
    assert facts["missing"] == [str(folder / "d.png"), str(folder / "e.png")] and facts["images"] == 5
    assert lines[0] == f"{folder / 'd.png'} has no .caption file" and "3 of 5 images merged" in lines[-1]
    found = json.loads(out.read_text())
    assert found["d"] == {"caption": "earlier"} and "e" not in found and "a-masklabel" not in found


def test_captions_in_other_encodings_are_read_as_everywhere(tmp_path):
    folder = images(
        tmp_path / "set",
        {
            "a.png": "狐の絵、森のなか".encode("shift-jis"),
            "b.png": "fox".encode("utf-16"),
            "c.png": b"\xef\xbb\xbfx",
        },
    )
    facts, _ = use("merge_captions", out_json=tmp_path / "m.json", folders=[folder])
    found = json.loads((tmp_path / "m.json").read_text())
    assert [entry["caption"] for entry in found.values()] == ["狐の絵、森のなか", "fox", "x"]
    assert codes(facts) == ["caption.not-utf8", "caption.not-utf8"]


def test_the_extension_is_the_one_asked_for(folder, tmp_path):
    images(folder, {"a.png": "from wd"}, ".wd")
    use("merge_captions", out_json=tmp_path / "c.json", folders=[folder], caption_extension=".wd")
    use("merge_tags", out_json=tmp_path / "t.json", folders=[folder], tags_extension=".wd")
    assert json.loads((tmp_path / "c.json").read_text()) == {"a": {"caption": "from wd"}}
    assert json.loads((tmp_path / "t.json").read_text()) == {"a": {"tags": "from wd"}}


def test_a_preview_shows_entries_and_writes_nothing(folder, tmp_path):
    before = files(tmp_path)
    facts, lines = use("merge_captions", out_json=tmp_path / "m.json", folders=[folder], preview=2)
    assert lines[:2] == ['a: été, "quoted"\\nsecond line', "b: a fox"] and "nothing was written" in lines[-1]
    assert files(tmp_path) == before and "file" not in facts
    task = tasks.named("merge_captions")
    assert task.only_reads(build(task.job, {"merge_captions": {"preview": 2}})) and not task.only_reads(task.job())


def test_the_replaced_file_comes_back(folder, tmp_path):
    out = tmp_path / "meta.json"
    out.write_bytes(b'{"a":   {"caption": "by hand"}}')
    before = out.read_bytes()
    facts, lines = use("merge_captions", out_json=out, folders=[folder])
    assert out.read_bytes() != before and "the caption history keeps the earlier file" in lines[-1]
    undo(facts["undo"])
    assert out.read_bytes() == before
    use("merge_captions", out_json=out, folders=[folder])
    facts, lines = use("merge_captions", out_json=out, folders=[folder])
    assert facts["undo"] == "" and "is unchanged" in lines[-1]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"out_json": "", "folders": []}, ["metadata.no-file-given", "tools.no-folder-chosen"]),
        ({"out_json": "x.txt", "folders": ["no"]}, ["metadata.not-json-name", "tools.no-such-folder"]),
        ({"out_json": "m\0.json"}, ["metadata.not-json-name"]),
        ({"out_json": "."}, ["metadata.not-json-name"]),
        ({"out_json": "set/d.json"}, ["metadata.is-folder"]),
        ({"recursive": True}, ["metadata.recursive-needs-full-path"]),
        ({"caption_extension": ".PNG"}, ["settings.bad-value"]),
        ({"in_json": "none.json"}, ["metadata.missing-file"]),
        ({"in_json": "set"}, ["file.is-folder"]),
        ({"out_json": "set/a.png/m.json"}, ["file.unwritable"]),
    ],
)
def test_wrong_settings_are_all_named_before_anything_is_written(folder, tmp_path, asked, expected):
    (folder / "d.json").mkdir()
    paths = {name: str(tmp_path / text) for name, text in asked.items() if name.endswith("json") and text}
    given = {"out_json": str(tmp_path / "m.json"), "folders": [str(folder)]} | asked | paths
    given["folders"] = [str(tmp_path / each) for each in given["folders"]]
    before = files(tmp_path)
    with pytest.raises(ProblemsError) as refused:
        use("merge_captions", **given)
    assert refused.value.codes == expected and files(tmp_path) == before
    assert all(problem.where and problem.fix for problem in refused.value.problems)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"[1]", "metadata.no-path"),
        (b'"text"', "metadata.not-a-list"),
        (b'{"a": ["caption"]}', "metadata.invalid-values"),
        (b'{"a": ', "json.invalid"),
        (b"[" * 100_000, "file.not-json"),
        (b'{"a": {"n": NaN}}', "file.not-json"),
        (b'{"a": {"caption": "\\ud800"}}', "file.not-json"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\0", "json.invalid"),
        (b"[" + b"[]," * 2_100_000 + b"[]]", "file.not-json"),
    ],
)
def test_an_existing_file_of_another_kind_is_refused_and_stays(folder, tmp_path, content, code):
    out = tmp_path / "meta.json"
    out.write_bytes(content)
    with pytest.raises(ProblemsError) as refused:
        use("merge_captions", out_json=out, folders=[folder])
    assert refused.value.codes == [code] and out.read_bytes() == content


def test_two_images_of_one_name_are_refused_unless_paths_are_full(folder, tmp_path):
    other = images(tmp_path / "other", {"a.png": "another"})
    images(folder, {"b.jpg": None})
    with pytest.raises(ProblemsError) as refused:
        use("merge_captions", out_json=tmp_path / "m.json", folders=[folder, other])
    (problem,) = refused.value.problems
    assert problem.code == "metadata.shared-key" and "2 names" in problem.what and not (tmp_path / "m.json").exists()
    facts, _ = use("merge_captions", out_json=tmp_path / "m.json", folders=[folder, other, folder], full_path=True)
    assert facts["merged"] == 5  # a folder given twice counts once


@pytest.mark.skipif(os.name == "nt", reason="names there are Unicode")
def test_a_name_that_is_not_utf8_is_refused(folder, tmp_path):
    with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb") as handle:
        handle.write(b"x")
    with pytest.raises(ProblemsError) as refused:
        use("merge_captions", out_json=tmp_path / "m.json", folders=[folder])
    assert refused.value.codes == ["metadata.name-not-utf8"]


def test_no_caption_at_all_is_refused_with_the_extension_that_is_there(folder, tmp_path):
    with pytest.raises(ProblemsError) as refused:
        use("merge_tags", out_json=tmp_path / "m.json", folders=[folder])
    (problem,) = refused.value.problems
    assert problem.code == "metadata.no-captions" and "merge_tags.tags_extension to .caption" in problem.fix
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProblemsError) as refused:
        use("merge_tags", out_json=tmp_path / "m.json", folders=[tmp_path / "empty"])
    assert refused.value.codes == ["tools.no-images"] and not (tmp_path / "m.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names in folders there")
def test_a_caption_that_cannot_be_read_is_left_out_and_named(folder, tmp_path):
    images(folder, {"p.png": None, "q.png": "x" * 1_100_000})
    os.mkfifo(folder / "p.caption")
    facts, _ = use("merge_captions", out_json=tmp_path / "m.json", folders=[folder])
    assert codes(facts) == ["caption.unreadable"] * 2 and facts["merged"] == 3


def test_the_command_line_merges_too(folder, tmp_path, capsys):
    out = tmp_path / "meta.json"
    words = ["merge_captions", "--outputs", str(tmp_path / "outputs"), "--merge_captions.out_json", str(out)]
    assert main([*words, "--merge_captions.folders", str(folder), "--check"]) == 0 and not out.exists()
    assert main([*words, "--merge_captions.folders", str(folder)]) == 0
    assert out.read_bytes() == as_sd_scripts([folder], "caption", ".caption", {})
    assert "3 of 3 images merged" in capsys.readouterr().out
    assert main(words) != 0 and "No folder is chosen" in capsys.readouterr().err
