"""Images put away and put back: nothing is lost, nothing overwritten, all or nothing."""

import json
import os
import shutil

import pytest

from core.dataset.doctor import trash
from core.dataset.sources.files import TRASH_FOLDER
from core.dataset.sources.scan import scan_dataset
from core.record.problems import ProblemsError
from core.settings.dataset.dataset import DatasetSettings
from tests.refusals import refused


def tree(folder):
    """{relative name: bytes} of everything outside the trash."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and TRASH_FOLDER not in path.parts
    }


def test_an_image_leaves_with_its_captions_mask_and_caches_and_comes_back(add, tmp_path):
    image = add("sub/a.png")
    add("sub/a_b.png")
    belongs = ("a.txt", "a.caption", "a.npz", "a_flip.npz", "a_te_outputs.npz", "a_0512x0768_sdxl.npz")
    stays = ("a_b.npz", "a_b_flip.npz", "ab.txt", "notes.md")
    for name in (*belongs, "a-masklabel.png", *stays):
        (tmp_path / "sub" / name).write_bytes(name.encode())
    before = tree(tmp_path)
    token = trash.put_away([image], tmp_path, "blurred")
    left = tree(tmp_path)
    assert set(before) - set(left) == {f"sub/{name}" for name in ("a.png", "a-masklabel.png", *belongs)}
    assert [p.relative for p in scan_dataset(DatasetSettings(folder=str(tmp_path))).images] == ["sub/a_b.png"]
    (lately,) = trash.undoable_actions(tmp_path)
    assert (lately.token, lately.reason, lately.images, lately.files) == (token, "blurred", ("sub/a.png",), 8)
    restored = trash.put_back(token)
    assert len(restored) == 8 and tree(tmp_path) == before and not (tmp_path / TRASH_FOLDER).exists()


def test_a_caption_that_another_image_uses_stays(add, tmp_path):
    png, jpg = add("a.png"), add("a.jpg")
    (tmp_path / "a.txt").write_text("a")
    trash.put_away([png], tmp_path, "twice")
    assert set(tree(tmp_path)) == {"a.jpg", "a.txt"}
    trash.put_away([jpg], tmp_path, "twice")
    assert not tree(tmp_path) and len(trash.undoable_actions(tmp_path)) == 2


def test_equal_names_of_sub_folders_and_two_actions_do_not_meet(add, tmp_path):
    paths = [add("one/a.png"), add("two/a.png")]
    before = tree(tmp_path)
    first = trash.put_away(paths, tmp_path, "1")
    shutil.copytree(tmp_path / TRASH_FOLDER, tmp_path / "elsewhere")
    add("one/a.png", 32, 32)
    second = trash.put_away([tmp_path / "one/a.png"], tmp_path, "2")
    assert [each.reason for each in trash.undoable_actions(tmp_path)] == ["2", "1"]
    shutil.rmtree(tmp_path / "elsewhere")
    trash.put_back(first)
    assert tree(tmp_path) == before
    with pytest.raises(ProblemsError) as caught:
        trash.put_back(second)
    assert caught.value.codes == ["trash.name-taken"]
    assert tree(tmp_path) == before and len(trash.undoable_actions(tmp_path)) == 1


def test_a_file_in_the_way_of_one_keeps_all_in_the_trash(add, tmp_path):
    token = trash.put_away([add("a.png"), add("b.png")], tmp_path, "")
    add("b.png", 20, 20)
    before = tree(tmp_path)
    with pytest.raises(ProblemsError) as caught:
        trash.put_back(token)
    assert caught.value.codes == ["trash.name-taken"]
    assert tree(tmp_path) == before
    (tmp_path / "b.png").unlink()
    assert len(trash.put_back(token)) == 2


def test_an_error_half_way_moves_everything_back(add, tmp_path, monkeypatch):
    paths = [add("a.png"), add("b.png"), add("c.png")]
    (tmp_path / "a.txt").write_text("a")
    before = tree(tmp_path)
    real = trash.atomic.replace

    def refuse(source, target):
        if os.path.basename(source) == "c.png":
            raise PermissionError(13, "in use", str(source))
        real(source, target)

    monkeypatch.setattr(trash.atomic, "replace", refuse)
    with pytest.raises(ProblemsError, match=r"in use.*\n.*c\.png"):
        trash.put_away(paths, tmp_path, "")
    assert tree(tmp_path) == before and not trash.undoable_actions(tmp_path)
    assert not (tmp_path / TRASH_FOLDER).exists()


def test_a_cut_off_action_can_be_undone(add, tmp_path, monkeypatch):
    """A power cut: the record is there and one of two files was moved."""
    paths = [add("a.png"), add("b.png")]
    before = tree(tmp_path)
    real = trash._move

    def cut(source, target):
        if source.name == "b.png":
            raise SystemExit
        real(source, target)

    monkeypatch.setattr(trash, "_move", cut)
    with pytest.raises(SystemExit):
        trash.put_away(paths, tmp_path, "")
    monkeypatch.undo()
    (lately,) = trash.undoable_actions(tmp_path)
    assert trash.put_back(lately.token) == (paths[0],) and tree(tmp_path) == before


def test_a_mask_of_another_folder_goes_along_and_the_dataset_may_move(add, tmp_path):
    image, mask = add("set/a.png"), add("masks/a.png")
    trash.put_away([image], tmp_path / "set", "", extra={image: [mask]})
    assert not tree(tmp_path)
    (tmp_path / "set").rename(tmp_path / "moved")
    (lately,) = trash.undoable_actions(tmp_path / "moved")
    trash.put_back(lately.token)
    assert set(tree(tmp_path)) == {"moved/a.png", "masks/a.png"}


def test_another_disk_gets_a_whole_copy(add, tmp_path, monkeypatch):
    image = add("a.png")
    before, stamp = tree(tmp_path), image.stat().st_mtime_ns
    real = os.replace

    def rename(source, target):
        if not os.path.basename(source).startswith(".tmp-") and os.path.basename(target) == "a.png":
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "replace", rename)
    token = trash.put_away([image], tmp_path, "")
    assert not tree(tmp_path)
    trash.put_back(token)
    assert tree(tmp_path) == before and image.stat().st_mtime_ns == stamp


def test_emptying_is_for_good_and_spares_earlier_captions(add, tmp_path):
    token = trash.put_away([add("a.png")], tmp_path, "")
    (tmp_path / TRASH_FOLDER / "b.1.txt").write_text("an earlier caption")
    assert trash.empty(tmp_path)[0] == 1
    assert (tmp_path / TRASH_FOLDER / "b.1.txt").exists() and not trash.undoable_actions(tmp_path)
    with pytest.raises(ProblemsError) as caught:
        trash.put_back(token)
    assert caught.value.codes == ["trash.missing-record"]


@pytest.mark.parametrize("token", ["/etc/passwd", "put_away.json", "x/_atelier_trash/../y/put_away.json", ""])
def test_only_records_of_a_trash_folder_are_read(token):
    with pytest.raises(ProblemsError) as caught:
        trash.put_back(token)
    assert caught.value.codes == ["trash.missing-record"]


@pytest.mark.parametrize(
    "name", ["../out.png", "/out.png/../../x.png", "{}/.bashrc", "{}/script.py", "a/../../out.png"]
)
def test_a_record_of_elsewhere_puts_nothing_outside_of_its_folder(add, tmp_path, name):
    add("data/a.png")
    token = trash.put_away([tmp_path / "data/a.png"], tmp_path / "data", "")
    record = json.loads(open(token).read())
    record["files"][0]["from"] = name.format(tmp_path)
    with open(token, "w") as file:
        json.dump(record, file)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ProblemsError) as caught:
        trash.put_back(token)
    assert caught.value.codes == ["trash.missing-record"] and not trash.undoable_actions(tmp_path / "data")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_image_is_named_before_anything_moves(add, tmp_path):
    image = add("a.png")
    with pytest.raises(ProblemsError, match=r"no longer exists[^\0]*b\.png"):
        trash.put_away([image, tmp_path / "b.png"], tmp_path, "")
    assert set(tree(tmp_path)) == {"a.png"}


@pytest.mark.parametrize(
    ("name", "restored"),
    [("sub/a.png", True), ("../a.png", False), ("sub/../../a.png", False), ("{out}/a.png", True), ("{out}/a.txt", True)]
    + [("{out}/.cache/a.npz", True), ("{out}/a", True), ("{out}/a.sh", False), ("{out}/.bashrc", False)]
    + [("{out}/.ssh/keys", False), ("{out}/../a.png", False), (5, False)],
)
def test_a_record_of_a_downloaded_dataset_restores_only_into_it_or_an_images_files(tmp_path, name, restored):
    """Each file begins like an image if it has no extension, as one that is also a shell script may."""
    record, out = tmp_path / "set" / TRASH_FOLDER / "now" / trash.RECORD, tmp_path / "out"
    (record.parent / "files").mkdir(parents=True)
    name = name.format(out=out) if isinstance(name, str) else name
    (record.parent / "files" / "a").write_bytes(b"" if str(name).endswith(".sh") else b"\x89PNG\r\n\x1a\n")
    files = [{"from": name, "to": "a"}]
    record.write_text(json.dumps({"v": 1, "when": 1.0, "reason": "", "images": ["a"], "files": files}))
    assert bool(trash.undoable_actions(tmp_path / "set")) == restored
    if restored:
        assert trash.put_back(str(record)) == (tmp_path / "set" / name,)
    else:
        with refused("trash.missing-record"):
            trash.put_back(str(record))
        assert list(tree(tmp_path)) == [] and (record.parent / "files" / "a").is_file()
