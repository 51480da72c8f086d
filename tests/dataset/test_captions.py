"""Captions: sd-scripts' results for the options that exist here, every encoding, and saving that can be taken back."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.dataset.captions import (
    caption_path,
    caption_variants_of_epoch,
    decode_text,
    is_random,
    plain_caption,
    read_caption,
    save_caption,
    split_tags,
    training_caption,
    undo,
)
from core.dataset.scan import Picture
from core.record.problems import ProblemsError
from core.settings.captions import CaptionSettings

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "captions_deterministic.json").read_text())["cases"]
KEY = ("folder", "a.png")


def draw(raw, epoch=1, seed=0, key=KEY, repeat=0, **options):
    return training_caption(raw, CaptionSettings(**options), seed, epoch, key, repeat)


def picture(folder, name="a.png", words="", sidecars=()):
    return Picture("folder", name, Path(folder) / name, 64, 64, 1, 1, words=words, sidecars=sidecars)


def test_captions_come_out_as_in_sd_scripts_for_every_option_that_exists_here():
    known = set(CaptionSettings.model_fields)
    cases = [case for case in VECTORS if set(case["options"]) <= known]
    assert len(cases) >= 42
    for case in cases:
        assert draw(case["caption"], epoch=case["epoch"], **case["options"]) == case["result"], case


def test_tags_are_divided_and_joined_as_in_sd_scripts():
    """There a tag dropout of 1e-12 divides and joins without changing anything, one of 1 leaves the kept tags."""
    cases = [
        (case, case["options"].get("keep_tokens", 0), case["options"].get("caption_separator", ","))
        for case in VECTORS
        if "caption_tag_dropout_rate" in case["options"]
        and not {"keep_tokens_separator", "secondary_separator"} & set(case["options"])
    ]
    assert len(cases) >= 24
    for case, keep, separator in cases:
        kept, flexible = split_tags(case["caption"], separator, keep)
        dropped = case["options"]["caption_tag_dropout_rate"] == 1.0
        assert ", ".join(kept if dropped else kept + flexible) == case["result"], case


def test_a_prefix_without_a_comma_is_one_tag_with_the_first():
    for epoch in range(20):
        assert draw("a, b, c, d", epoch, caption_prefix="trigger", shuffle_caption=True, keep_tokens=1).startswith(
            "trigger a, "
        )
        kept = draw("a, b, c, d", epoch, caption_prefix="trigger,", shuffle_caption=True, keep_tokens=1)
        assert kept.startswith("trigger, ")


def test_a_suffix_stays_on_a_caption_of_several_lines():
    """sd-scripts loses it there (it cuts to the first line afterwards)."""
    assert draw("l1\nl2", caption_prefix="PRE", caption_suffix="SUF") == "PRE l1 SUF"
    assert plain_caption("\n  \nfirst words\nsecond", CaptionSettings()) == "first words"


@given(tags=st.lists(st.text("abc xyz", min_size=1, max_size=6), min_size=1, max_size=9), keep=st.integers(0, 10))
def test_a_shuffle_keeps_every_tag_and_the_first_ones_in_place(tags, keep):
    raw = ", ".join(tags)
    out = draw(raw, shuffle_caption=True, keep_tokens=keep).split(", ")
    expected = [tag.strip() for tag in raw.strip().split(",")]
    assert Counter(out) == Counter(expected)
    assert out[:keep] == expected[:keep]


def test_a_draw_is_the_same_each_time_and_another_for_each_epoch_picture_and_repeat():
    options = {"shuffle_caption": True}
    raw = ", ".join("abcdefghijkl")
    assert draw(raw, **options) == draw(raw, **options)
    others = [draw(raw, epoch=2, **options), draw(raw, key=("folder", "b.png"), **options)]
    others += [draw(raw, repeat=1, **options), draw(raw, seed=1, **options)]
    assert len({draw(raw, **options), *others}) == 5


def test_dropout_empties_the_share_of_draws_that_was_asked_for():
    drawn = [draw("a fox", epoch=epoch, caption_dropout_rate=0.25) for epoch in range(4000)]
    assert set(drawn) == {"", "a fox"}
    # 4 standard deviations of a share of 0.25 over 4000 draws: 0.027
    assert drawn.count("") / 4000 == pytest.approx(0.25, abs=0.027)
    assert draw("a fox", caption_dropout_rate=1.0) == ""


def test_the_variants_of_an_epoch_are_exactly_the_captions_it_uses():
    settings = CaptionSettings(shuffle_caption=True, caption_dropout_rate=0.3)
    items = [(("folder", f"{n}.png"), repeat, "a, b, c") for n in range(12) for repeat in range(3)]
    used = [training_caption(raw, settings, 5, 2, key, repeat) for key, repeat, raw in items]
    variants = caption_variants_of_epoch(items, settings, 5, 2)
    assert set(variants) == set(used) and len(variants) == len(set(used)) > 3
    assert caption_variants_of_epoch(items, CaptionSettings(), 5, 2) == ["a, b, c"]
    assert is_random(settings) and not is_random(CaptionSettings())


# ---- reading


@pytest.mark.parametrize(
    ("encoding", "text", "said", "guessed"),
    [
        ("utf-8", "un café à Zürich", "utf-8", False),
        ("utf-8-sig", "un café", "utf-8 with a mark", False),
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
    assert (decoded.text, decoded.encoding, decoded.guessed) == (text, said, guessed)
    (tmp_path / "a.txt").write_bytes(data)
    caption = read_caption(picture(tmp_path), CaptionSettings())
    assert caption.text == text and caption.source == "file"
    if said.startswith("utf-8"):
        assert caption.problem is None
    else:
        assert caption.problem.level == "advice" and said in caption.problem.what and "a.txt" in caption.problem.where


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
    assert read_caption(picture(tmp_path), CaptionSettings()).text == "tags"
    assert read_caption(picture(tmp_path), CaptionSettings(caption_extension=".caption")).text == "sentence"
    (tmp_path / "a.txt").unlink()
    assert read_caption(picture(tmp_path), CaptionSettings()).text == "sentence"
    assert read_caption(picture(tmp_path, words="w"), CaptionSettings(caption_extension=".txt")).source == "words"


def test_a_caption_file_whose_name_differs_in_case_is_found(tmp_path):
    (tmp_path / "a.TXT").write_text("tags")
    assert read_caption(picture(tmp_path, sidecars=("a.TXT",)), CaptionSettings()).text == "tags"


def test_without_a_file_the_folders_words_are_used_and_without_words_nothing(tmp_path):
    assert read_caption(picture(tmp_path, words="sks fox"), CaptionSettings()).text == "sks fox"
    nothing = read_caption(picture(tmp_path), CaptionSettings())
    assert (nothing.text, nothing.source, nothing.path) == ("", "none", tmp_path / "a.txt")


@pytest.mark.parametrize("content", [b"", b" \r\n\t", b"\xef\xbb\xbf\n"])
def test_an_empty_caption_file_is_an_empty_caption_and_said(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    caption = read_caption(picture(tmp_path, words="fox"), CaptionSettings())
    assert (caption.text, caption.source) == ("", "blank")
    assert "empty" in caption.problem.what and "words" in caption.problem.fix


def test_a_caption_file_of_megabytes_is_not_taken_for_a_caption(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * (2 << 20))
    caption = read_caption(picture(tmp_path, words="fox"), CaptionSettings())
    assert caption.text == "fox" and "1 MB" in caption.problem.what


def test_windows_line_ends_are_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    assert read_caption(picture(tmp_path), CaptionSettings()).text == "one\ntwo"


# ---- saving


def test_a_save_writes_utf_8_and_undo_brings_the_earlier_bytes_back(tmp_path):
    earlier = "un café\r\n".encode("cp1252")
    (tmp_path / "a.txt").write_bytes(earlier)
    token = save_caption(tmp_path / "a.png", "naïve\r\nfox ")
    assert (tmp_path / "a.txt").read_bytes() == "naïve\nfox\n".encode()
    redo = undo(token)
    assert (tmp_path / "a.txt").read_bytes() == earlier
    undo(redo)
    assert (tmp_path / "a.txt").read_bytes() == "naïve\nfox\n".encode()


def test_undo_of_a_first_caption_removes_the_file_and_keeps_its_text(tmp_path):
    token = save_caption(tmp_path / "a.png", "a fox", trash_dir=tmp_path / "trash")
    redo = undo(token)
    assert not (tmp_path / "a.txt").exists()
    undo(redo)
    assert (tmp_path / "a.txt").read_text() == "a fox\n"


def test_saving_the_same_text_changes_nothing(tmp_path):
    save_caption(tmp_path / "a.png", "a fox")
    assert save_caption(tmp_path / "a.png", "a fox") is None


def test_a_save_goes_to_the_caption_file_that_is_there(tmp_path):
    (tmp_path / "a.caption").write_text("old")
    save_caption(tmp_path / "a.png", "new")
    assert (tmp_path / "a.caption").read_text() == "new\n" and not (tmp_path / "a.txt").exists()
    assert caption_path(tmp_path / "b.png", "auto") == tmp_path / "b.txt"
    save_caption(tmp_path / "b.png", "words", ".caption")
    assert (tmp_path / "b.caption").exists()


def test_brackets_and_foreign_letters_in_names_are_letters(tmp_path):
    (tmp_path / "[a] 狐*.txt").write_text("words")
    save_caption(tmp_path / "[a] 狐*.png", "other")
    assert (tmp_path / "[a] 狐*.txt").read_text() == "other\n"


def test_an_undo_whose_record_is_gone_says_so_and_changes_nothing(tmp_path):
    token = save_caption(tmp_path / "a.png", "a fox")
    Path(token).unlink()
    with pytest.raises(ProblemsError, match="no longer in the trash"):
        undo(token)
    assert (tmp_path / "a.txt").read_text() == "a fox\n"


def test_a_caption_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")
    write = __import__("core.record.atomic", fromlist=["write_bytes"]).write_bytes

    def full(target, data):
        if Path(target).parent == tmp_path:
            raise OSError(28, "No space left on device")
        write(target, data)

    monkeypatch.setattr("core.record.atomic.write_bytes", full)
    with pytest.raises(ProblemsError, match="No space left"):
        save_caption(tmp_path / "a.png", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
