"""A metadata file written back as caption files: which image an entry means, what is kept, and both ways at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.captioning.report import caption_report
from core.record.allowed import keep_files_inside
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.job import CaptionJob
from tests.tools.metadata.metadata_cases import codes, files, images, undo, use


@pytest.fixture
def folder(tmp_path):
    return images(tmp_path / "set", {"a.png": None, "b [1].png": None, "sub/c 🦊.png": None})


def write(path: Path, entries) -> Path:
    path.write_text(json.dumps(entries), "utf-8")
    return path


def texts(folder: Path) -> dict[str, str]:
    return {name: data.decode() for name, data in files(folder).items() if not name.endswith((".png", ".jpg"))}


def test_captions_and_tags_get_a_file_each(folder, tmp_path):
    entries = {
        "a": {"caption": 'é, "q"\r\nline', "tags": "x, y"},
        str(folder / "b [1].png"): {"tags": "z"},
        "sub/c 🦊": {"caption": ""},
    }
    facts, lines = use("metadata_to_captions", in_json=write(tmp_path / "m.json", entries), folders=[folder])
    expected = {"a.caption": 'é, "q"\nline\n', "a.txt": "x, y\n", "b [1].txt": "z\n", "sub/c 🦊.caption": ""}
    assert texts(folder) == expected
    assert len(facts["written"]) == 4 and lines[-1] == "4 files written"


def test_each_form_of_metadata_is_read(folder, tmp_path):
    newer = {str(folder / "a.png"): {"tags": "x", "image_size": [8, 8]}}
    use("metadata_to_captions", in_json=write(tmp_path / "m.json", newer), folders=[folder])
    lines = [{"image_path": "b [1].png", "caption": "one"}, {"file_name": "sub/c 🦊.png", "text": "two"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    use("metadata_to_captions", in_json=tmp_path / "m.jsonl", folders=[folder])
    cache = {str(folder / "a.png"): {"caption": "three", "resolution": [8, 8]}}
    use("metadata_to_captions", in_json=write(folder / "metadata_cache.json", cache))  # next to the images
    del (found := texts(folder))["metadata_cache.json"]
    assert found == {"a.txt": "x\n", "b [1].caption": "one\n", "sub/c 🦊.caption": "two\n", "a.caption": "three\n"}


def test_the_extensions_are_those_asked_for_and_empty_writes_none(folder, tmp_path):
    source = write(tmp_path / "m.json", {"a": {"caption": "c", "tags": "t"}})
    use("metadata_to_captions", in_json=source, folders=[folder], captions_to=None, tags_to=".wd")
    assert texts(folder) == {"a.wd": "t\n"}
    use("metadata_to_captions", in_json=source, folders=[folder], captions_to=".txt", tags_to=None)
    assert texts(folder) == {"a.wd": "t\n", "a.txt": "c\n"}


def test_captions_and_tags_of_one_extension_are_joined_as_for_training(folder, tmp_path):
    entries = {"a": {"caption": "c", "tags": "t, u"}, "b [1]": {"tags": "z"}, "sub/c 🦊": {"caption": "c\r\n"}}
    source = write(tmp_path / "m.json", entries)
    use("metadata_to_captions", in_json=source, folders=[folder], captions_to=".txt", tags_to=".TXT")
    assert texts(folder) == {"a.txt": "c,t, u\n", "b [1].txt": "z\n", "sub/c 🦊.txt": "c\n"}


def test_existing_files_are_kept_or_replaced_with_a_way_back(folder, tmp_path):
    (folder / "a.txt").write_text("by hand")
    (folder / "b [1].txt").write_text("same\n")
    source = write(tmp_path / "m.json", {"a": {"tags": "new"}, "b [1]": {"tags": "same"}, "c 🦊": {"tags": "new"}})
    facts, lines = use("metadata_to_captions", in_json=source, folders=[folder])
    assert texts(folder) == {"a.txt": "by hand", "b [1].txt": "same\n", "sub/c 🦊.txt": "new\n"}
    assert facts["kept"] == 2 and lines[-1] == "1 file written; 2 existing files kept"
    facts, lines = use("metadata_to_captions", in_json=source, folders=[folder], existing="replace")
    assert texts(folder)["a.txt"] == "new\n" and facts["written"] == [str(folder / "a.txt")]
    assert lines[-1] == "1 file written; the caption history keeps 1 earlier text; 2 had the same text"
    undo(facts["undo"])
    assert texts(folder)["a.txt"] == "by hand"


def test_a_preview_writes_nothing(folder, tmp_path):
    source = write(tmp_path / "m.json", {"a": {"caption": "c\nd", "tags": "t"}})
    facts, lines = use("metadata_to_captions", in_json=source, folders=[folder], preview=1)
    assert lines == [f"{folder / 'a.caption'}: c\\nd", "2 files would be written; nothing was written"]
    assert texts(folder) == {} and facts["written"] == []


def test_entries_without_an_image_are_named_and_nothing_is_written_outside(folder, tmp_path):
    outside = images(tmp_path, {"x.png": None}) / "x.png"
    entries = {
        "a": {"tags": "t"},
        "gone": {"tags": "t"},
        str(folder / "gone.png"): {"tags": "t"},
        "../x": {"tags": "t"},
        "..\\x.png": {"tags": "t"},
        str(outside): {"tags": "t"},
        "D:\\set\\a.png": {"tags": "t"},
        "\0": {"tags": "t"},
        "sub": {"tags": "t"},
    }
    before = files(tmp_path)
    facts, lines = use("metadata_to_captions", in_json=write(tmp_path / "m.json", entries), folders=[folder])
    assert facts["missing"] == ["gone", str(folder / "gone.png"), "\0", "sub"]
    assert facts["outside"] == ["../x", "..\\x.png", str(outside), "D:\\set\\a.png"]
    assert codes(facts) == ["metadata.no-image", "metadata.outside-folder"] and "no image for gone" in lines
    del (after := files(tmp_path))["m.json"]
    assert after == before | {"set/a.txt": b"t\n"}


def test_a_name_is_looked_for_elsewhere_only_if_asked(folder, tmp_path):
    entries = {"D:\\other\\a.png": {"tags": "one"}, "/mnt/x/c 🦊.webp": {"tags": "two"}, "/mnt/v1.5": {"tags": "no"}}
    source = write(tmp_path / "m.json", entries)
    images(folder, {"v1.png": None})
    with pytest.raises(ProblemsError) as refused:
        use("metadata_to_captions", in_json=source, folders=[folder])
    assert refused.value.codes == ["metadata.outside-folder"] and texts(folder) == {}
    facts, _ = use("metadata_to_captions", in_json=source, folders=[folder], match_by_name=True)
    assert texts(folder) == {"a.txt": "one\n", "sub/c 🦊.txt": "two\n"} and facts["outside"] == ["/mnt/v1.5"]


def test_subfolders_are_searched_unless_turned_off(folder, tmp_path):
    source = write(tmp_path / "m.json", {"c 🦊": {"tags": "t"}, "a": {"tags": "t"}})
    facts, _ = use("metadata_to_captions", in_json=source, folders=[folder], recursive=False)
    assert texts(folder) == {"a.txt": "t\n"} and facts["missing"] == ["c 🦊"]


def test_a_name_that_several_images_have_is_refused_and_a_shared_caption_file_is_not(folder, tmp_path):
    other = images(tmp_path / "other", {"a.png": None})
    source = write(tmp_path / "m.json", {"a": {"tags": "t"}})
    with pytest.raises(ProblemsError) as refused:
        use("metadata_to_captions", in_json=source, folders=[folder, other])
    assert refused.value.codes == ["metadata.ambiguous-key"] and texts(folder) == texts(other) == {}
    images(folder, {"a.jpg": None})
    use("metadata_to_captions", in_json=source, folders=[folder])
    assert texts(folder) == {"a.txt": "t\n"}
    for second, expected in (("t", None), ("u", ["metadata.shared-sidecar"])):
        entries = {"a.png": {"tags": "t"}, "a.jpg": {"tags": second}}
        asked = {"in_json": write(tmp_path / "m.json", entries), "folders": [folder], "existing": "replace"}
        if expected is None:
            use("metadata_to_captions", **asked)
            continue
        with pytest.raises(ProblemsError) as refused:
            use("metadata_to_captions", **asked)
        assert refused.value.codes == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"in_json": ""}, ["metadata.no-file-given"]),
        ({"folders": ["none"]}, ["tools.no-such-folder"]),
        ({"captions_to": None, "tags_to": None}, ["metadata.nothing-to-write"]),
        ({"captions_to": ".a.png", "tags_to": ".npz"}, ["settings.bad-value"] * 2),
        ({"in_json": "gone/m.json", "folders": []}, ["metadata.missing-file"]),
        ({"in_json": "empty.json"}, ["metadata.empty"]),
        ({"in_json": "list.json"}, ["metadata.no-path"]),
        ({"in_json": "deep.json"}, ["file.not-json"]),
        ({"in_json": "values.json"}, ["metadata.invalid-values"]),
        ({"in_json": "long.json"}, ["metadata.text-too-long"]),
        ({"in_json": "textless.json"}, ["metadata.no-text"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folder, tmp_path, asked, expected):
    write(tmp_path / "m.json", {"a": {"tags": "t"}})
    write(tmp_path / "empty.json", {})
    write(tmp_path / "list.json", [{"a": 1}])
    (tmp_path / "deep.json").write_text('{"a":' * 5000)
    write(tmp_path / "values.json", {"a": {"caption": {"x": 1}}, "b": 3})
    write(tmp_path / "long.json", {"a": {"caption": "é" * 600_000}})
    write(tmp_path / "textless.json", {"a": {"image_size": [8, 8]}})
    before = files(tmp_path)
    whole = {"in_json": "m.json", "folders": [str(folder)]} | asked
    whole["in_json"] = str(tmp_path / whole["in_json"]) if whole["in_json"] else ""
    with pytest.raises(ProblemsError) as refused:
        use("metadata_to_captions", **whole)
    assert refused.value.codes == expected and files(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names in folders there")
def test_what_is_no_file_is_found_before_the_first_is_replaced(folder, tmp_path):
    os.mkfifo(folder / "b [1].txt")
    source = write(tmp_path / "m.json", {"a": {"tags": "t"}, "b [1]": {"tags": "t"}})
    with pytest.raises(ProblemsError) as refused:
        use("metadata_to_captions", in_json=source, folders=[folder], existing="replace")
    assert refused.value.codes == ["file.is-pipe"] and not (folder / "a.txt").exists()


def test_a_shared_page_reads_and_writes_nothing_behind_a_link_out_of_its_folder(folder, tmp_path):
    secret = images(tmp_path / "secret", {"s.png": "private"})
    (folder / "way").symlink_to(secret)
    source = write(folder / "m.json", {"a": {"tags": "t"}, "s": {"tags": "t"}})
    asked = {"out_json": folder / "out.json", "folders": [folder], "full_path": True, "recursive": True}
    (folder / "a.caption").write_text("c")
    keep_files_inside([folder])
    try:
        facts, _ = use("metadata_to_captions", in_json=source, folders=[folder])
        assert facts["missing"] == ["s"] and "metadata.no-access" in codes(facts)
        use("merge_captions", **asked)
    finally:
        keep_files_inside(None)
    assert not (secret / "s.txt").exists() and list(json.loads(asked["out_json"].read_text())) == [
        str(folder / "a.png")
    ]
    use("metadata_to_captions", in_json=source, folders=[folder])
    assert (secret / "s.txt").exists()  # on the machine itself links are followed


# A byte order mark in front and null characters are about encodings, not part of a caption.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ufeff\0"), max_size=60)
NAME = st.text(st.sampled_from("ab []'é🦊._-%~"), min_size=1, max_size=8).map(lambda text: f"x{text}x")


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAME, st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.booleans())
def test_sidecars_to_json_and_back_are_the_same_texts(pairs, full_path):
    with TemporaryDirectory() as place:
        first, second, out = Path(place) / "set", Path(place) / "new" / "set", Path(place) / "meta.json"
        for number, extension in enumerate((".caption", ".txt")):
            images(first, {f"{name}.png": both[number] for name, both in pairs.items()}, extension)
        images(second, {f"{name}.png": None for name in pairs})
        for tool in ("merge_captions", "merge_tags"):
            use(tool, out_json=out, folders=[first], full_path=full_path)
        use("metadata_to_captions", in_json=out, folders=[second], match_by_name=full_path)
        expected = {name: _normal(text) for name, text in files(first).items() if not name.endswith((".png", ".jpg"))}
        assert {name: data.decode() for name, data in files(second).items() if not name.endswith(".png")} == expected


def _normal(data: bytes) -> str:
    """A caption as it is saved: \\n line ends, no blanks around it, one line end behind."""
    text = data.decode().replace("\r\n", "\n").replace("\r", "\n").strip()
    return f"{text}\n" if text else ""


def test_the_written_file_is_a_dataset_with_the_same_captions(tmp_path):
    folder = images(tmp_path / "set", {"b.png": 'one, "two"', "a.png": "été 🦊"})
    by_files = build(CaptionJob, {"dataset": {"folder": str(folder)}, "captions": {"caption_extension": ".caption"}})
    for full_path in (False, True):
        out = tmp_path / f"{full_path}.json"
        use("merge_captions", out_json=out, folders=[folder], full_path=full_path)
        by_list = build(CaptionJob, {"dataset": {"sources": [{"folder": str(folder), "metadata_file": str(out)}]}})
        read = [
            [(row.image.relative, row.caption.text) for row in caption_report(job).rows] for job in (by_files, by_list)
        ]
        assert read[0] == read[1] == [("a.png", "été 🦊"), ("b.png", 'one, "two"')]
