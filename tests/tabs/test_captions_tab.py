"""The Captions tab without a browser: nothing that is typed gets lost, and every saving can be taken back."""

from __future__ import annotations

import sys

import pytest
from work_parts import HOSTILE, event, make_page, picture, wait_until

from core.record.problems import ProblemsError
from core.settings.source import Source
from tabs import caption_edits, tokens
from tabs import captions_view as view
from tabs.captions import Desk
from tabs.concepts import with_entries


@pytest.fixture
def folder(tmp_path):
    for name in ("ant", "bee", "cat"):
        picture(tmp_path / "set" / f"{name}.png", (200, 200), caption=f"a {name}")
    picture(tmp_path / "set" / "dog.png", (200, 200))
    return tmp_path / "set"


def open_desk(folder, shared=False) -> Desk:
    page = make_page(folder.parent, shared=shared)
    page.project.edit("dataset.folder", str(folder))
    desk = Desk(page)
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    return desk


@pytest.fixture
def desk(folder):
    return open_desk(folder)


class Window:
    """One browser: the box, the visit, and what the lists say."""

    def __init__(self, desk: Desk):
        self.desk = desk
        self.take(desk.show("", "")[1:])

    def take(self, values) -> None:
        names = ("box", "visit", "tally", "list", "stage", "meter", "state", "buttons", "notes")
        for name, value in zip(names, values, strict=True):
            if name == "box" and not isinstance(value, str):
                value = value.get("value") if isinstance(value, dict) else value.value
            if (
                not (isinstance(value, dict) and value.get("__type__") == "update" and len(value) == 1)
                and value is not None
            ):
                setattr(self, name, value)

    def act(self, act: str, arg: str = "", value: str = "") -> None:
        self.take(self.desk.act(self.box, self.visit, event(act, arg, value)))


def text(folder, name: str) -> str:
    return (folder / f"{name}.txt").read_text(encoding="utf-8").strip()


def test_the_first_picture_is_open_with_its_caption(desk):
    window = Window(desk)
    assert window.box == "a ant" and "1 of 4" in window.stage and "From <code>ant.txt</code>" in window.notes
    assert "3 pictures with a caption of their own, 1 without" in window.tally
    assert window.list.count('aria-current="true"') == 1 and "2 of 75 tokens" in window.meter


def test_going_on_saves_what_was_typed(desk, folder):
    window = Window(desk)
    window.box = "a red ant"
    window.act("next")
    assert text(folder, "ant") == "a red ant" and window.box == "a bee"
    assert "Saved to ant.txt" in window.state and "a red ant" in window.list


def test_leaving_the_box_and_pressing_next_may_arrive_in_any_order(desk, folder):
    window = Window(desk)
    visit, typed = window.visit, "a red ant"
    window.box = typed
    window.act("next")
    desk.left_box(typed, visit)  # the message of the box comes late
    desk.typed("a red ant!", visit)
    assert text(folder, "ant") == typed and text(folder, "bee") == "a bee" and window.box == "a bee"


def test_a_late_message_does_not_undo_an_undo(desk, folder):
    window = Window(desk)
    visit = window.visit
    window.box = "a red ant"
    window.act("undo")  # typed text is saved first, then taken back
    desk.left_box("a red ant", visit)
    assert text(folder, "ant") == "a ant" and window.box == "a ant"
    window.act("redo")
    assert text(folder, "ant") == "a red ant" and window.box == "a red ant"


def test_undo_takes_back_all_that_was_typed_in_one_visit(desk, folder):
    window = Window(desk)
    for words in ("a r", "a red", "a red ant"):
        desk.left_box(words, window.visit)
    window.box = "a red ant"
    window.act("next")
    window.act("undo")
    assert text(folder, "ant") == "a ant" and "ant.png" in window.stage


def test_a_caption_saved_in_another_window_is_not_overwritten_unasked(desk, folder):
    one, two = Window(desk), Window(desk)
    one.box = "a red ant"
    one.act("save")
    two.box = "a blue ant"
    two.act("next")  # stays: going on would save
    assert text(folder, "ant") == "a red ant" and two.box == "a blue ant" and "a ant" not in two.state
    assert "a red ant" in two.state and 'data-act="mine"' in two.state and 'data-act="theirs"' in two.state
    desk.edits.save_drafts()  # nor does the timer decide
    assert text(folder, "ant") == "a red ant"
    two.take(desk.show(two.box, two.visit)[1:])  # another tab and back: the choice is still open
    assert two.box == "a blue ant" and 'data-act="mine"' in two.state
    two.act("mine")
    assert text(folder, "ant") == "a blue ant" and "Saved to ant.txt" in two.state
    two.act("undo")
    assert text(folder, "ant") == "a red ant"


def test_the_other_windows_caption_can_be_taken(desk, folder):
    one, two = Window(desk), Window(desk)
    two.box = "a blue ant"
    desk.typed(two.box, two.visit)
    one.box = "a red ant"
    one.act("save")
    one.act("undo")
    one.act("redo")  # a step back elsewhere does not drop what is typed here
    state = desk.left_box(two.box, two.visit)[3]
    assert "a red ant" in state and text(folder, "ant") == "a red ant"
    two.act("theirs")
    assert two.box == text(folder, "ant") == "a red ant"
    two.box = "a red and blue ant"
    two.act("next")
    assert text(folder, "ant") == "a red and blue ant" and two.box == "a bee"


def test_the_same_text_from_two_windows_or_from_another_program_asks_only_where_they_differ(desk, folder):
    one, two = Window(desk), Window(desk)
    one.box = two.box = "a red ant"
    one.act("save")
    two.act("next")
    assert two.box == "a bee"
    (folder / "bee.txt").write_text("a bee on a leaf")
    two.act("save")
    assert "a bee on a leaf" in two.state and text(folder, "bee") == "a bee on a leaf"
    two.act("theirs")
    assert two.box == "a bee on a leaf"


def test_undo_survives_a_restart(desk, folder):
    window = Window(desk)
    window.box = "a red ant"
    window.act("save")
    again = Window(open_desk(folder))
    again.act("undo")
    assert text(folder, "ant") == "a ant"


def test_undo_reaches_no_other_set_of_pictures(desk, folder, tmp_path):
    window = Window(desk)
    window.box = "a red ant"
    window.act("save")
    picture(tmp_path / "elsewhere" / "set" / "ant.png", (200, 200), caption="another ant")  # the same names
    desk.page.project.edit("dataset.folder", str(tmp_path / "elsewhere" / "set"))
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    other = Window(desk)
    other.act("undo")
    assert other.box == "another ant" and text(folder, "ant") == "a red ant"
    desk.page.project.edit("dataset.folder", str(folder))
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    Window(desk).act("undo")
    assert text(folder, "ant") == "a ant"


def test_a_draft_is_saved_when_the_browser_dies(desk, folder, monkeypatch):
    monkeypatch.setattr(caption_edits, "SAFETY_SECONDS", 0.05)
    window = Window(desk)
    desk.typed("a red ant", window.visit)
    wait_until(lambda: text(folder, "ant") == "a red ant")


def test_a_draft_is_on_the_screen_again_after_a_refresh(desk, folder):
    window = Window(desk)
    desk.typed("a red ant", window.visit)
    assert Window(desk).box == "a red ant" and text(folder, "ant") == "a red ant"


def test_looking_around_writes_nothing(desk, folder):
    window = Window(desk)
    for act in ("next", "next", "next", "next", "previous", "previous"):
        window.act(act)
    assert not (folder / "dog.txt").exists() and not (folder / "_atelier_trash").exists()
    assert window.box == "a cat"


def test_the_folders_words_are_named_and_saving_writes_a_file(desk, folder):
    window = Window(desk)
    window.act("previous")
    assert window.box == "set" and "these are the folder&#x27;s words" in window.notes.replace("'", "&#x27;")
    window.act("save")
    assert text(folder, "dog") == "set" and "0 without" not in window.tally
    assert "From <code>dog.txt</code>" in window.notes


def test_captioning_the_uncaptioned_goes_on_from_where_it_stood(folder):
    for name in ("ant", "cat"):
        (folder / f"{name}.txt").unlink()
    window = Window(open_desk(folder))
    window.act("show", value="none")
    assert "ant.png" in window.stage
    window.box = "a new ant"
    window.act("next")
    assert "cat.png" in window.stage and "1 of 2" in window.stage


def test_the_list_is_filtered_by_kind_and_by_words(folder):
    (folder / "bee.txt").write_text("very " * 100, encoding="utf-8")
    window = Window(open_desk(folder))
    window.act("show", value="long")
    assert "bee.png" in window.list and "ant.png" not in window.list and "100 tokens" in window.list
    window.act("show", value="all")
    window.act("find", value="A CAT")
    assert "cat.png" in window.list and "ant.png" not in window.list
    window.act("find", value=HOSTILE)
    assert "<img src=x" not in window.list and "None of these." in window.list


def test_a_made_up_choice_opens_nothing_else(desk):
    window = Window(desk)
    for arg in ("99", "-1", "../x", ""):
        window.act("pick", arg)
        assert window.box == "a ant"
    window.act("pick", "2")
    assert window.box == "a cat"


def test_an_encoding_is_said_and_saving_makes_it_utf8(folder):
    (folder / "ant.txt").write_bytes("grüne Ameise".encode("cp1252"))
    window = Window(open_desk(folder))
    assert window.box == "grüne Ameise" and "cp1252" in window.notes
    window.box += ", rot"
    window.act("save")
    assert (folder / "ant.txt").read_bytes() == "grüne Ameise, rot\n".encode() and "cp1252" not in window.notes


def test_only_the_first_line_and_the_prefix_are_said_to_be_learnt(desk):
    desk.page.project.edit("captions.caption_prefix", "glyph style,")
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    window = Window(desk)
    assert "Learnt as: <q>glyph style, a ant</q>" in window.notes
    meter, _, notes = desk.typed("first\nsecond", window.visit)
    assert "Only the first line is learnt: <q>glyph style, first</q>" in notes
    assert f"{tokens.count_tokens('glyph style, first')} of 75 tokens" in meter


def test_a_caption_that_cannot_be_saved_stays_in_the_box(desk, folder, monkeypatch):
    from core.record import atomic

    def full(*_):
        raise OSError(28, "No space left on device")

    window = Window(desk)
    monkeypatch.setattr(atomic, "write_bytes", full)
    window.box = "a red ant"
    with pytest.raises(ProblemsError, match="could not be saved"):
        window.act("next")
    assert window.box == "a red ant" and text(folder, "ant") == "a ant"
    monkeypatch.undo()
    window.act("next")
    assert text(folder, "ant") == "a red ant"


def test_a_folder_with_a_caption_ending_of_its_own_is_saved_to_the_file_that_is_read(folder):
    (folder / "ant.caption").write_text("an ant in a sentence", encoding="utf-8")
    page = make_page(folder.parent)
    own = Source(folder=str(folder), caption_extension=".caption")
    page.project.replace(with_entries(page.project.job, [own]))
    desk = Desk(page)
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    window = Window(desk)
    assert window.box == "an ant in a sentence"
    window.box = "a red ant in a sentence"
    window.act("save")
    assert (folder / "ant.caption").read_text(encoding="utf-8").strip() == "a red ant in a sentence"
    assert text(folder, "ant") == "a ant"


def test_two_browsers_at_one_caption_lose_nothing(desk, folder):
    one, two = Window(desk), Window(desk)
    one.box, two.box = "from one", "from two"
    one.act("save")
    two.act("save")
    assert text(folder, "ant") == "from one"
    two.act("mine")
    assert text(folder, "ant") == "from two"
    two.act("undo")
    assert text(folder, "ant") == "from one"
    two.act("undo")
    assert text(folder, "ant") == "a ant"


def test_an_open_caption_is_not_replaced_by_a_tick(desk):
    window = Window(desk)
    desk.typed("half a wo", window.visit)
    desk.reading.caption_saved(("set", "bee.png"))
    _, box, visit, _, pictures, _, meter, state, _, notes = desk.tick({}, "half a wo", window.visit)
    assert box == visit == meter == state == notes == {"__type__": "update"} and "bee.png" in pictures


def test_late_typing_does_not_wipe_away_that_it_was_saved(desk):
    window = Window(desk)
    desk.typed("a red ant", window.visit)
    window.box = "a red ant"
    window.act("save")
    assert "Saved to ant.txt" in window.state
    assert desk.typed("a red ant", window.visit)[1] == {"__type__": "update"}
    assert "Not saved yet" in desk.typed("a red an", window.visit)[1]
    assert "Not saved yet" not in desk.typed("a red ant", window.visit)[1], "typed back to what is saved"


def test_a_tick_does_not_overtake_the_answer_to_a_click(desk, monkeypatch):
    window = Window(desk)
    old = window.visit
    window.box = "a red ant"
    window.act("next")
    assert desk.tick({}, "a red ant", old) == {"__type__": "update"}, "sent before the browser heard of the next one"
    monkeypatch.setattr("tabs.caption_edits.ANSWER_SECONDS", 0.0)
    assert len(desk.tick({}, "a red ant", old)) > 1, "a lost answer is made up for"


def test_a_folder_chosen_elsewhere_opens_its_first_picture(desk, tmp_path):
    window = Window(desk)
    picture(tmp_path / "other" / "owl.png", (200, 200), caption="an owl")
    desk.page.project.edit("dataset.folder", str(tmp_path / "other"))
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    window.take(desk.tick({}, window.box, window.visit)[1:])
    assert window.box == "an owl"


def test_no_pictures_says_what_to_do(tmp_path):
    (tmp_path / "empty").mkdir()
    window = Window(open_desk(tmp_path / "empty"))
    assert "Choose a folder in Dataset." in window.list and window.box == ""
    window.act("next")
    window.act("save")


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot exist there")
def test_names_and_captions_never_become_markup(tmp_path):
    picture(tmp_path / "set" / f"{HOSTILE}.png", (200, 200), caption=f"<script>alert(1)</script> {HOSTILE}")
    window = Window(open_desk(tmp_path / "set"))
    window.box += "!"
    window.act("save")
    shown = "".join((window.tally, window.list, window.stage, window.meter, window.state, window.buttons, window.notes))
    assert "<img src=x" not in shown and "<script" not in shown and "alert" in shown


# -- tokens


def test_tokens_are_counted_as_the_text_encoder_counts_them():
    from transformers import CLIPTokenizer

    from core.families.token_count import VOCABULARY

    tokenizer = CLIPTokenizer.from_pretrained(str(VOCABULARY.parent))
    captions = [
        "a bear, glyph style",
        "",
        "  two   spaces ",
        "Ünïcode “quotes” 日本語\nline\ttab",
        "don't :) 12345",
        HOSTILE,
    ]
    captions += ["word " * 80, "<|endoftext|> x"]
    for caption in captions:
        assert tokens.count_tokens(caption) == len(tokenizer(caption, truncation=False, verbose=False)["input_ids"]) - 2


def test_the_meter_marks_75_150_and_225_and_what_is_cut():
    shown = view.meter(81, 75)
    assert "81 of 75 tokens: the last 6 are not learnt" in shown and shown.count("notch") == 3
    assert "too-long" in shown and "too-long" not in view.meter(81, 150)
    assert "the last one is not learnt" in view.meter(76, 75)
