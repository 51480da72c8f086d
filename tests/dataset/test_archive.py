"""A zip of images becomes a folder that a scan reads; a hostile or damaged one leaves nothing behind."""

import stat
import time
import warnings
import zipfile
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import core.dataset.sources.archive as archive_module
from core.dataset.sources.archive import unpack_zip
from core.dataset.sources.scan import scan_dataset
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.settings.dataset.dataset import DatasetSettings
from tests.refusals import refused as refusal


@pytest.fixture
def image(add):
    return add("source.png").read_bytes()


@pytest.fixture
def pack(tmp_path):
    def write(files: dict, name="fox.zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, data in files.items():
                archive.writestr(entry, data)
        return tmp_path / name

    return write


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_zip_of_images_and_captions_trains(tmp_path, pack, image):
    folder = unpack_zip(pack({"a.png": image, "a.txt": "a fox", "notes.pdf": b"x", "run.exe": b"x"}), tmp_path / "sets")
    assert folder == tmp_path / "sets" / "fox"
    assert tree(folder) == ["a.png", "a.txt"]
    found = scan_dataset(DatasetSettings(folder=str(folder)))
    assert len(found.images) == 1 and not found.problems


def test_one_folder_around_everything_is_taken_off_unless_its_name_says_repeats(tmp_path, pack, image):
    assert tree(unpack_zip(pack({"my set/a.png": image, "my set/b/c.png": image}), tmp_path)) == [
        "a.png",
        "b/c.png",
    ]
    assert tree(unpack_zip(pack({"10_fox/a.png": image}), tmp_path)) == ["10_fox/a.png"]


def test_a_name_that_is_taken_gets_a_number(tmp_path, pack, image):
    path = pack({"a.png": image})
    names = [unpack_zip(path, tmp_path / "sets").name for _ in range(3)]
    assert names == ["fox", "fox-2", "fox-3"]


@pytest.mark.parametrize("stem", ["狐" * 60, "1girl, " * 40 + "solo", "v1.5 " + "fox_" * 50])
def test_files_of_one_long_name_keep_one_name(tmp_path, pack, image, stem):
    members = {
        f"{stem}.png": image,
        f"{stem}.caption": "a fox",
        f"{stem}-masklabel.png": image,
        f"{stem}.png.txt": "fox",
    }
    names = tree(unpack_zip(pack(members), tmp_path / "sets"))
    short = min(names, key=len).removesuffix(".png")
    assert names == sorted(f"{short}{ending}" for ending in (".png", ".caption", "-masklabel.png", ".png.txt"))
    assert 100 < len(short.encode()) < 160


def test_junk_is_left_in_the_zip(tmp_path, pack, image):
    files = {"a.png": image, "__MACOSX/._a.png": b"x", ".hidden.png": b"x", "Thumbs.db": b"x", "sub/": b""}
    assert tree(unpack_zip(pack(files), tmp_path)) == ["a.png"]


def test_names_of_windows_and_names_it_forbids_become_plain(tmp_path, pack, image):
    files = {"sub\\a.png": image, "C:\\x\\b?.png": image, "/root/c.png": image, "con.png": image}
    assert tree(unpack_zip(pack(files), tmp_path)) == ["_con.png", "root/c.png", "sub/a.png", "x/b_.png"]


def test_names_that_differ_only_in_case_do_not_overwrite_each_other(tmp_path, pack, image):
    assert tree(unpack_zip(pack({"a.png": image, "A.PNG": image}), tmp_path)) == ["A-2.PNG", "a.png"]


OLD_NAMES = [
    ("cp932", ["きつねの写真.png", "猫.png"]),
    ("cp932", ["画像_001.png"]),
    ("gbk", ["图片/小猫.png", "训练集/女孩.png"]),
    ("utf-8", ["狐.png"]),
    ("cp437", ["café à.png"]),
]


@pytest.mark.parametrize(("encoding", "names"), OLD_NAMES)
def test_names_in_an_old_encoding_are_repaired(tmp_path, image, encoding, names):
    """Such a zip holds the raw bytes without saying so; Python can only write one with the bytes put in afterwards."""
    raw = [name.encode(encoding) for name in names]
    stand_ins = ["xyz"[number] * len(each) for number, each in enumerate(raw)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for stand_in in stand_ins:
            archive.writestr(stand_in, image)
    data = (tmp_path / "a.zip").read_bytes()
    for stand_in, each in zip(stand_ins, raw, strict=True):
        data = data.replace(stand_in.encode(), each)
    (tmp_path / "a.zip").write_bytes(data)
    assert tree(unpack_zip(tmp_path / "a.zip", tmp_path / "sets")) == sorted(names)


def refused(path, sets, code, where=None):
    with pytest.raises(ProblemsError) as error:
        unpack_zip(path, sets)
    (problem,) = error.value.problems
    assert problem.code == code and problem.fix and (where or path.name) in problem.where
    assert not sets.exists() or not list(sets.iterdir())


def test_a_path_out_of_the_folder_is_refused_whole(tmp_path, pack, image):
    for name in ("../evil.png", "a/../../evil.png", "..\\evil.png"):
        refused(pack({"a.png": image, name: image}), tmp_path / "sets", "zip.unsafe-path")
    assert not (tmp_path / "evil.png").exists()


@pytest.mark.parametrize("roots", ["//", "\\\\", "/\\", "\\\\?\\UNC\\", "\\\\.\\", "///", "C://", "C:\\\\"])
def test_no_name_leads_out_of_the_folder(tmp_path, pack, image, roots):
    """Two slashes in front are a root of their own: a name with them was written where it said."""
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = unpack_zip(pack({"a.png": image, f"{roots}{str(outside).lstrip('/')}/x.png": image}), tmp_path / "sets")
    assert list(outside.iterdir()) == []
    assert len(tree(folder)) == 2 and all(path.is_relative_to(folder) for path in (tmp_path / "sets").rglob("*.png"))


def test_odd_names_become_plain_ones(tmp_path, pack, image):
    names = [
        "a\x01b.png",
        "x.png:stream.png",
        "com\u00b9.png",
        "NUL .png",
        "é" * 200 + ".png",
        "./ /deep/b.png",
        "c. ./c.png",
    ]
    files = tree(unpack_zip(pack(dict.fromkeys(["1.png", *names], image)), tmp_path / "sets"))
    assert len(files) == 8 and {"a_b.png", "x.png_stream.png", "_com\u00b9.png", "deep/b.png", "c/c.png"} <= set(files)
    assert all(len(part.encode()) <= 160 for name in files for part in name.split("/"))


def test_a_file_and_a_folder_of_one_name_are_told(tmp_path, pack, image):
    for names in (("d.png/x.png", "d.png"), ("d.png", "d.png/x.png")):
        refused(pack(dict.fromkeys(["1.png", *names], image)), tmp_path / "sets", "zip.name-clash")


def test_folders_without_end_are_refused(tmp_path, pack, image):
    refused(pack({"a.png": image, "a/" * 5000 + "b.png": image}), tmp_path / "sets", "zip.too-deep")
    many = {f"{n}/" + "a/" * 20 + "b.txt": "a" for n in range(12_000)}
    refused(pack({"a.png": image} | many), tmp_path / "sets", "zip.too-deep")


@pytest.mark.slow
def test_many_files_of_one_name_take_no_more_time_than_others(tmp_path, image):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ["a.png"] + ["a.txt"] * 6000:
            archive.writestr(name, image if name == "a.png" else "a")
    began = time.process_time()
    assert len(tree(unpack_zip(tmp_path / "many.zip", tmp_path / "sets"))) == 6001
    assert time.process_time() - began < 6, "it took 11 s, four times as much for twice as many"


def test_links_in_a_zip_are_left_out(tmp_path, pack, image):
    path = pack({"a.png": image})
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert tree(unpack_zip(path, tmp_path / "sets")) == ["a.png"]


def test_what_is_no_zip_or_holds_no_image_is_said(tmp_path, pack):
    (tmp_path / "no.zip").write_bytes(b"no zip")
    refused(tmp_path / "no.zip", tmp_path / "sets", "zip.damaged")
    refused(pack({"a.txt": "words"}), tmp_path / "sets", "zip.no-images")
    refused(pack({"a/": ""}), tmp_path / "sets", "zip.no-images")


def test_a_damaged_zip_leaves_nothing(tmp_path, pack, image):
    path = pack({"a.png": image, "b.png": image[::-1]})
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    refused(path, tmp_path / "sets", "zip.damaged")


def test_a_zip_made_to_fill_the_disk_is_refused(tmp_path, pack):
    refused(pack({"a.png": b"\0" * (80 << 20)}), tmp_path / "sets", "zip.bomb")


def test_a_zip_of_many_small_files_made_to_fill_the_disk_is_refused(tmp_path, pack, image, monkeypatch):
    monkeypatch.setattr(archive_module, "TOTAL_FROM_BYTES", 1 << 20, raising=False)
    path = pack({"a.png": image} | {f"{n}.txt": b"\0" * (1 << 20) for n in range(10)})
    refused(path, tmp_path / "sets", "zip.bomb")


def test_a_zip_with_a_password_is_refused(tmp_path, pack, image):
    path = pack({"a.png": image})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the file's own header and in the table
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(path, tmp_path / "sets", "zip.encrypted")


def test_a_zip_larger_than_the_free_space_is_refused(tmp_path, pack, image, monkeypatch):
    monkeypatch.setattr("core.record.machine.free_disk", lambda _: 1 << 20)
    refused(pack({"a.png": image}), tmp_path / "sets", "disk.space", "sets")


def test_a_full_disk_while_unpacking_leaves_nothing(tmp_path, pack, image, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.dataset.sources.archive._copy", full)
    with pytest.raises(ProblemsError, match="disk is full"):
        unpack_zip(pack({"a.png": image}), tmp_path / "sets")
    assert not list((tmp_path / "sets").iterdir())


def test_a_cancel_leaves_nothing(tmp_path, pack, image):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        unpack_zip(pack({"a.png": image}), tmp_path / "sets", token)
    assert not list((tmp_path / "sets").iterdir())


def test_a_zip_of_thousands_of_empty_images_is_given_up_early_and_leaves_nothing(tmp_path, pack, image):
    path = pack({f"{number:05}.png": b"" for number in range(3000)})
    with pytest.raises(ProblemsError) as refusal:
        unpack_zip(path, tmp_path / "sets")
    assert "101 of the first 101" in str(refusal.value) and "empty" in str(refusal.value)
    assert tree(tmp_path / "sets") == []


def test_a_large_zip_with_some_broken_images_is_unpacked_whole(tmp_path, pack, image):
    """The scan names the broken ones; the good ones are not lost for them."""
    files = {f"{number:05}.png": image if number % 3 else b"" for number in range(450)}
    assert len(tree(unpack_zip(pack(files), tmp_path / "sets"))) == 450


def test_folders_are_32_deep_at_most(tmp_path, pack, image):
    path = pack({"a.png": image, "a/" * 32 + "b.png": image})
    assert len(tree(unpack_zip(path, tmp_path / "sets"))) == 2
    refused(pack({"a.png": image, "a/" * 33 + "b.png": image}), tmp_path / "others", "zip.too-deep")


MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("size", "packed", "of_zip", "code"),
    [
        (64 * MIB, 1, 1, None),
        (64 * MIB + 1, 1, 1, "zip.bomb"),
        (1000 * MIB, MIB, MIB, None),
        (1000 * MIB + 1, MIB, MIB, "zip.bomb"),
        (2 * GIB, GIB, 1, None),
        (2 * GIB + 1, GIB, 1, "zip.bomb"),
        (100 * GIB, GIB, GIB, None),
        (100 * GIB + 1, GIB, GIB, "zip.bomb"),
        (200 * GIB, GIB, 2 * GIB, None),
        (200 * GIB + 1, GIB, 2 * GIB, "zip.too-large"),
    ],
)
def test_a_zip_may_expand_so_far(tmp_path, monkeypatch, size, packed, of_zip, code):
    monkeypatch.setattr(archive_module, "require_space", lambda *given: None)
    entries = [
        SimpleNamespace(info=SimpleNamespace(filename="a.png", file_size=size, compress_size=packed), parts=("a.png",))
    ]
    with refusal(code) if code else nullcontext():
        archive_module._refuse_too_large(entries, of_zip, tmp_path, "a.zip")


@pytest.mark.parametrize(
    ("parts", "code"),
    [([("a",)] * 3, None), ([("a",)] * 4, "zip.too-large"), ([("a", "b", "c", "d.png")], None)]
    + [([("a", "b", "c", "d", "e.png")], "zip.too-deep"), ([("a", "b", "c.png"), ("d", "b", "c.png")], "zip.too-deep")],
)
def test_files_and_folders_are_counted(tmp_path, monkeypatch, parts, code):
    monkeypatch.setattr(archive_module, "MAX_FILES", 3)
    info = SimpleNamespace(filename="a.png", file_size=1, compress_size=1)
    with refusal(code) if code else nullcontext():
        archive_module._refuse_too_large(
            [SimpleNamespace(info=info, parts=each) for each in parts], 1, tmp_path, "a.zip"
        )
