"""Caption files: every encoding, sidecars, and saving that can be taken back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.dataset.captions.encodings import decode_text
from core.dataset.captions.files import (
    caption_path,
    join_texts,
    read_caption,
    read_caption_file,
    rewrite_as_utf8,
    save_caption,
)
from core.dataset.captions.history import History
from core.dataset.sources.image_info import ImageInfo
from core.record.problems import ProblemsError
from core.settings.dataset.captions import CaptionSettings


def image(folder, name="a.png", words="", sidecars=(), metadata_caption=None):
    return ImageInfo(
        "folder",
        name,
        Path(folder) / name,
        64,
        64,
        1,
        1,
        class_tokens=words,
        sidecars=sidecars,
        metadata_caption=metadata_caption,
    )


# ---- reading


@pytest.mark.parametrize(
    ("encoding", "text", "said", "guessed"),
    [
        ("utf-8", "un café à Zürich", "utf-8", False),
        ("utf-8-sig", "un café", "utf-8 with a mark", False),
        ("utf-8-sig", "\ufeffun café\x1a", "utf-8 with a mark", False),
        ("utf-16", "a fox, 狐", "utf-16", False),
        ("utf-32", "a fox, 狐", "utf-32", False),
        ("utf-16-le", "a red fox", "utf-16-le", True),
        ("utf-16-be", "a red fox", "utf-16-be", True),
        ("cp1252", "un café à Zürich, Größe – “très” naïve", "cp1252", True),
        ("cp932", "1girl, 赤い髪の女の子, カメラ目線", "shift-jis", True),
        ("euc_jp", "きつねの写真、やまのなか", "euc-jp", True),
        ("gbk", "1girl, 红色头发的女孩, 看着镜头", "gbk", True),
        ("euc_kr", "빨간 머리 소녀", "euc-kr", True),
        ("cp1251", "рыжая лиса в лесу", "cp1251", True),
    ],
)
def test_captions_in_other_encodings_are_read_and_said(tmp_path, encoding, text, said, guessed):
    data = text.encode(encoding)
    decoded = decode_text(data)
    text = text.strip("\ufeff\x1a")
    assert (decoded.text, decoded.encoding, decoded.guessed) == (text, said, guessed)
    (tmp_path / "a.txt").write_bytes(data)
    caption = read_caption(image(tmp_path), CaptionSettings())
    assert caption.text == text and caption.source == "file"
    if said.startswith("utf-8"):
        assert caption.problem is None
    else:
        assert caption.problem.level == "advice" and said in caption.problem.what and "a.txt" in caption.problem.where


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        (b"a red fox, blue sky\0", "a red fox, blue sky", "utf-8"),
        (b"a\0 red fox in the snow", "a red fox in the snow", "utf-8"),
        (b"\0red fox", "red fox", "utf-8"),
        ("größe\0 mehr, grün".encode(), "größe mehr, grün", "utf-8"),
        (b"cat\0\0\0\0", "cat", "utf-8"),
        ("привет мир, лес".encode("utf-16-le"), "привет мир, лес", "utf-16-le"),
        ("あいう, え".encode("utf-16-be"), "あいう, え", "utf-16-be"),
        ("cat".encode("utf-16-le"), "cat", "utf-16-le"),
        (b"\xef\xbb\xbfred fox\0", "red fox", "utf-8 with a mark"),
        ("red fox".encode("utf-16") + b"\n", "red fox", "utf-16"),
        ("рыжий кот".encode()[:-1], "рыжий ко", "damaged utf-8"),
        ("un café à Zürich".encode() + b" \xff fox", "un café à Zürich  fox", "damaged utf-8"),
    ],
)
def test_a_stray_zero_makes_no_utf_16(data, text, encoding):
    assert (decode_text(data).text, decode_text(data).encoding) == (text, encoding)


@given(st.binary(min_size=1, max_size=60))
def test_any_bytes_are_read_without_an_error(data):
    assert isinstance(decode_text(data).text, str)


@given(st.text(max_size=40))
def test_utf_8_is_never_taken_for_something_else(text):
    if "\0" not in text and not text.startswith("\ufeff"):
        assert decode_text(text.encode("utf-8")).text == text


def test_txt_comes_before_caption_and_the_setting_chooses_one(tmp_path):
    (tmp_path / "a.txt").write_text("tags")
    (tmp_path / "a.caption").write_text("sentence")
    assert read_caption(image(tmp_path), CaptionSettings()).text == "tags"
    assert read_caption(image(tmp_path), CaptionSettings(caption_extension=".caption")).text == "sentence"
    (tmp_path / "a.txt").unlink()
    assert read_caption(image(tmp_path), CaptionSettings()).text == "sentence"
    assert read_caption(image(tmp_path, words="w"), CaptionSettings(caption_extension=".txt")).source == "words"


def test_a_caption_file_whose_name_differs_in_case_is_found(tmp_path):
    (tmp_path / "a.TXT").write_text("tags")
    assert read_caption(image(tmp_path, sidecars=("a.TXT",)), CaptionSettings()).text == "tags"


def test_without_a_file_the_folders_words_are_used_and_without_words_nothing(tmp_path):
    assert read_caption(image(tmp_path, words="sks fox"), CaptionSettings()).text == "sks fox"
    nothing = read_caption(image(tmp_path), CaptionSettings())
    assert (nothing.text, nothing.source, nothing.path) == ("", "none", tmp_path / "a.txt")


@pytest.mark.parametrize("content", [b"", b" \r\n\t", b"\xef\xbb\xbf\n"])
def test_an_empty_caption_file_is_an_empty_caption_and_said(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    caption = read_caption(image(tmp_path, words="fox"), CaptionSettings())
    assert (caption.text, caption.source) == ("", "blank")
    assert caption.problem.code == "caption.empty"


def test_a_caption_file_of_megabytes_is_not_taken_for_a_caption(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * (2 << 20))
    caption = read_caption(image(tmp_path, words="fox"), CaptionSettings())
    assert caption.text == "fox" and "1.0 MB" in caption.problem.what


def test_windows_line_ends_are_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    assert read_caption(image(tmp_path), CaptionSettings()).text == "one\ntwo"


# ---- saving


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "outputs" / "captions")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_save_writes_utf_8_with_the_files_line_ends_and_undo_brings_the_earlier_bytes_back(
    tmp_path, history, encoding, end
):
    earlier, new = f"un café{end}".encode(encoding), f"naïve{end}fox{end}".encode()
    (tmp_path / "a.txt").write_bytes(earlier)
    saved = save_caption(history, tmp_path / "a.png", "naïve\r\nfox ", over="un café").id
    assert (tmp_path / "a.txt").read_bytes() == new
    undone = history.undo(saved)
    assert (tmp_path / "a.txt").read_bytes() == earlier
    history.undo(undone.id)
    assert (tmp_path / "a.txt").read_bytes() == new


def test_undo_of_a_first_caption_removes_the_file_and_keeps_its_text(tmp_path, history):
    undone = history.undo(save_caption(history, tmp_path / "a.png", "a fox", over="").id)
    assert not (tmp_path / "a.txt").exists()
    history.undo(undone.id)
    assert (tmp_path / "a.txt").read_text() == "a fox\n"


@pytest.mark.parametrize(("stem", "extension"), [("狐" * 80, ".txt"), ("a", ".json")], ids=["long", "json"])
def test_names_of_many_bytes_and_json_captions_come_back_too(tmp_path, history, stem, extension):
    path = tmp_path / f"{stem}{extension}"
    path.write_text("old")
    history.undo(save_caption(history, tmp_path / f"{stem}.png", "new", extension, over="old").id)
    assert path.read_text() == "old"


def test_saving_the_same_text_changes_nothing(tmp_path, history):
    save_caption(history, tmp_path / "a.png", "a fox", over="")
    assert (
        save_caption(history, tmp_path / "a.png", "a fox", over="a fox").id == "" and len(list(history.entries())) == 1
    )


def test_a_save_over_another_text_than_the_one_that_is_there_changes_nothing(tmp_path, history):
    (tmp_path / "a.txt").write_text("theirs")
    done = save_caption(history, tmp_path / "a.png", "mine", over="what I saw")
    assert (done.id, done.changed_since) == ("", (tmp_path / "a.txt",)) and list(history.entries()) == []
    assert (tmp_path / "a.txt").read_text() == "theirs"


def test_a_save_goes_to_the_caption_file_that_is_there(tmp_path, history):
    (tmp_path / "a.caption").write_text("old")
    save_caption(history, tmp_path / "a.png", "new", over="old")
    assert (tmp_path / "a.caption").read_text() == "new\n" and not (tmp_path / "a.txt").exists()
    assert caption_path(tmp_path / "b.png", "auto") == tmp_path / "b.txt"
    save_caption(history, tmp_path / "b.png", "words", ".caption", over="")
    assert (tmp_path / "b.caption").exists()


def test_brackets_and_foreign_letters_in_names_are_letters(tmp_path, history):
    (tmp_path / "[a] 狐*.txt").write_text("words")
    save_caption(history, tmp_path / "[a] 狐*.png", "other", over="words")
    assert (tmp_path / "[a] 狐*.txt").read_text() == "other\n"


# ---- several files, metadata, faces


@pytest.fixture
def both(tmp_path):
    (tmp_path / "a.txt").write_text("fox, snow\nday")
    (tmp_path / "a.caption").write_text("A fox runs, fast.\nA red animal.")
    return image(tmp_path, sidecars=("a.caption", "a.txt"))


def test_one_of_two_files_is_read_unless_both_are_asked_for(both):
    assert read_caption(both, CaptionSettings()).text == "fox, snow\nday"
    assert read_caption(both, CaptionSettings(caption_extension=".caption")).text.startswith("A fox")
    assert read_caption(both, CaptionSettings()).sentence is None


def test_joined_files_give_each_line_of_the_sentence_with_the_tags(both):
    caption = read_caption(both, CaptionSettings(sidecars="joined"))
    assert caption.text == "A fox runs, fast.,fox, snow,day\nA red animal.,fox, snow,day"
    assert (caption.sentence, caption.tags) == ("A fox runs, fast.\nA red animal.", "fox, snow\nday")
    assert caption.path.name == "a.txt" and caption.source == "file"


def test_texts_are_joined_as_in_metadata_files():
    """Reference 2.3: no blank is added; lines get the tags each only when one of them is drawn."""
    same = CaptionSettings(compatibility="kohya")
    assert join_texts("a fox", "fox, snow", CaptionSettings()) == "a fox,fox, snow"
    assert join_texts("one\ntwo", "fox\nsnow", same) == "one\ntwo,fox\nsnow"
    drawn = CaptionSettings(compatibility="kohya", enable_wildcard=True)
    assert join_texts("one\ntwo", "fox\nsnow", drawn) == "one,fox,snow\ntwo,fox,snow"
    assert join_texts("one\ntwo", "fox", CaptionSettings(caption_lines="all")) == "one two,fox"
    assert join_texts("", "fox", same) == "fox" and join_texts("one", "", same) == "one"


def test_files_of_which_one_is_drawn_are_both_held(both):
    caption = read_caption(both, CaptionSettings(sidecars="drawn"))
    assert (caption.text, caption.tags) == ("fox, snow\nday", "fox, snow\nday")
    assert caption.sentence == "A fox runs, fast.\nA red animal."
    assert "A red animal" in caption.whole and "day" in caption.whole


@pytest.mark.parametrize("sidecars", ["joined", "drawn"])
def test_where_only_one_of_two_files_is_there_it_is_used(tmp_path, sidecars):
    settings = CaptionSettings(sidecars=sidecars)
    assert read_caption(image(tmp_path, words="w"), settings).source == "words"
    (tmp_path / "a.caption").write_text("A fox.")
    assert read_caption(image(tmp_path), settings).text == "A fox."
    (tmp_path / "a.txt").write_text(" ")
    assert read_caption(image(tmp_path), settings).text == "A fox."
    (tmp_path / "a.txt").write_text("fox")
    (tmp_path / "a.caption").unlink()
    assert read_caption(image(tmp_path), settings).text == "fox"
    (tmp_path / "a.caption").write_text("")
    assert (read_caption(image(tmp_path), settings).text, read_caption(image(tmp_path), settings).sentence) == (
        "fox",
        None,
    )
    (tmp_path / "a.txt").unlink()
    assert read_caption(image(tmp_path, words="w"), settings).source == "blank"


def test_a_caption_from_metadata_comes_before_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("file")
    caption = read_caption(image(tmp_path, metadata_caption=" from metadata\r\n"), CaptionSettings())
    assert (caption.text, caption.source) == ("from metadata", "metadata")
    nothing = read_caption(image(tmp_path, metadata_caption=""), CaptionSettings())
    assert (nothing.text, nothing.source) == ("", "metadata") and nothing.problem.code == "caption.empty"


def test_a_cut_out_face_has_the_caption_of_its_image_and_saves_one_of_its_own(tmp_path, history):
    (tmp_path / "foo.txt").write_text("a hero")
    face = image(tmp_path, "foo_0123_0200_0080_0080.png")
    assert read_caption(face, CaptionSettings()).text == "a hero"
    assert read_caption(image(tmp_path, "foo_bar_baz_a_b.png"), CaptionSettings()).source == "none"
    save_caption(history, face.path, "a face", over="a hero")
    assert (tmp_path / "foo.txt").read_text() == "a hero"
    assert read_caption(face, CaptionSettings()).text == "a face"


# ---- rewriting


def test_files_of_any_encoding_are_rewritten_as_utf_8_and_come_back(tmp_path, history):
    contents = {
        "a.txt": "café à Zürich\r\nfox".encode("cp1252"),
        "b.txt": "赤い髪の女の子".encode("cp932"),
        "c.txt": "a fox".encode("utf-16"),
        "d.txt": b"\xef\xbb\xbfa fox",
        "e.txt": b"plain\n",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    done = rewrite_as_utf8(history, [tmp_path / name for name in contents])
    assert len(done.written) == 4  # e.txt is UTF-8 already
    assert (tmp_path / "a.txt").read_bytes() == "café à Zürich\nfox".encode()
    assert (tmp_path / "b.txt").read_bytes() == "赤い髪の女の子".encode()
    assert (tmp_path / "c.txt").read_bytes() == (tmp_path / "d.txt").read_bytes() == b"a fox"
    assert rewrite_as_utf8(history, [tmp_path / name for name in contents]).id == ""
    history.undo(done.id)
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents


def test_a_file_that_cannot_be_read_leaves_all_as_they_are(tmp_path, history):
    (tmp_path / "a.txt").write_bytes("é".encode("utf-16"))
    with pytest.raises(ProblemsError) as caught:
        rewrite_as_utf8(history, [tmp_path / "a.txt", tmp_path / "missing.txt", tmp_path / "gone.txt"])
    assert len(caught.value.problems) == 2
    assert (tmp_path / "a.txt").read_bytes() == "é".encode("utf-16")


def test_what_is_edited_is_one_file_even_when_two_are_joined(both):
    assert read_caption_file(both).text == "fox, snow\nday"
