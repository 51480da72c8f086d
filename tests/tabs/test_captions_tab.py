"""The Captions tab without a browser: nothing that is typed gets lost, and every saving can be taken back."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from work_parts import HOSTILE, answered, image, make_page, wait_until

from core.captioning.bulk import changes_of, planned
from core.dataset.captions.files import caption_change
from core.dataset.captions.history import History
from core.dataset.captions.words import comparable
from core.families import token_count as tokens
from core.settings.captioning.edits import CaptionEditSettings
from core.settings.dataset.source import Source
from tabs.captions import bulk as caption_bulk
from tabs.captions import view
from tabs.captions.tab import CaptionHandlers
from tabs.dataset import reading
from tabs.dataset.concepts import with_entries
from tabs.dataset.reading import key_of, once_per_report
from tests.refusals import refused


@pytest.fixture
def folder(tmp_path):
    for name in ("ant", "bee", "cat"):
        image(tmp_path / "set" / f"{name}.png", (200, 200), caption=f"a {name}")
    image(tmp_path / "set" / "dog.png", (200, 200))
    return tmp_path / "set"


def open_desk(folder, shared=False) -> CaptionHandlers:
    page = make_page(folder.parent, shared=shared)
    page.project.edit("dataset.folder", str(folder))
    desk = CaptionHandlers(page)
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    return desk


@pytest.fixture
def desk(folder):
    return open_desk(folder)


class Window:
    """One browser as the server sees it: the open image, what is held of each, and saves that name what they were typed over."""

    def __init__(self, desk: CaptionHandlers):
        self.desk, self.visit, self.said = desk, "one", ""
        self.ask("open", key="")

    def ask(self, act: str, **more) -> None:
        answer = answered(self.desk.answer, {"act": act, "key": getattr(self, "open", ""), **more})
        self.problems = answer.get("problems", [])
        if "items" in answer:
            self.open, self.items, self.shelf, self.said = answer["open"], answer["items"], answer, answer["said"]
            self.box = self.base = self.items[self.open]["disk"] if self.open else ""
            self.visit = f"{id(self)} {len(self.visit)}{self.visit}"[:40]

    @property
    def item(self):
        return self.items[self.open]

    def go(self, by: int) -> None:
        self.ask("follow", key=self.shelf["chain"][(self.shelf["at"] + by) % len(self.shelf["chain"])])

    def save(self, text: str | None = None, *, over=None, visit: str = "") -> dict:
        self.box = self.box if text is None else text
        said = {"key": self.open, "text": self.box, "over": over or [self.base], "visit": visit or self.visit}
        (answer,) = self.desk.answer({"act": "save", "saves": [said]})["answers"]
        self.base = answer.get("disk", self.base)
        return answer


def text(folder, name: str) -> str:
    return (folder / f"{name}.txt").read_text(encoding="utf-8").strip()


def chosen(desk: CaptionHandlers, folder) -> None:
    desk.page.project.edit("dataset.folder", str(folder))
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)


def test_the_first_image_is_open_with_its_caption_and_its_neighbors_are_here(desk):
    window = Window(desk)
    assert (
        window.box == "a ant"
        and "1 of 4" in window.item["stage"]
        and "From <code>ant.txt</code>" in window.item["notes"]
    )
    assert "3 images with a caption, 1 without" in window.shelf["tally"]
    assert window.shelf["list"].count('aria-current="true"') == 1 and "2 of 75 tokens" in window.item["meter"]
    assert [window.items[key]["disk"] for key in window.shelf["chain"]] == ["a ant", "a bee", "a cat", ""]
    assert window.shelf["ring"] and window.shelf["at"] == 0


def test_a_save_names_its_image_and_what_it_was_typed_over(desk, folder):
    window = Window(desk)
    assert window.save("a red ant")["wrote"] and text(folder, "ant") == "a red ant"
    assert window.save("a big ant", over=["a ant"])["conflict"] == "a red ant", "older than what is there"
    assert text(folder, "ant") == "a red ant" and text(folder, "bee") == "a bee"
    assert window.save("a big ant", over=["a ant", "a red ant"])["wrote"], "one of its own texts on the way is there"
    assert not window.save("a big ant", over=["a ant"])["wrote"], "a message that comes twice changes nothing"
    (answer,) = desk.answer({"act": "save", "saves": [{"key": "f" * 16, "text": "x", "over": [""]}]})["answers"]
    assert answer == {"unknown": True}


def test_random_messages_of_two_browsers_never_overwrite_a_text_that_was_not_seen(desk, folder):
    import random

    chance, window = random.Random(5), Window(desk)
    seen = {0: "a ant", 1: "a ant"}
    for number in range(60):
        who, disk = chance.randrange(2), text(folder, "ant")
        answer = window.save(f"text {number}", over=[seen[who]], visit=str(who))
        if seen[who] == disk:
            seen[who] = text(folder, "ant")
            assert seen[who] == f"text {number}"
        else:
            assert answer["conflict"] == text(folder, "ant") == disk
            seen[who] = disk if chance.random() < 0.5 else seen[who]


def test_undo_takes_back_all_that_was_typed_in_one_visit(desk, folder):
    window = Window(desk)
    for words in ("a r", "a red", "a red ant"):
        window.save(words)
    window.go(1)
    assert window.box == "a bee" and window.shelf["undo"] == "ant.png"
    window.ask("undo")
    assert text(folder, "ant") == window.box == "a ant" and "ant.png" in window.item["stage"]
    window.ask("redo")
    assert text(folder, "ant") == window.box == "a red ant"


def test_a_late_message_does_not_undo_an_undo(desk, folder):
    window = Window(desk)
    visit = window.visit
    window.save("a red ant")
    window.ask("undo")
    assert window.save("a red ant!", over=["a red ant"], visit=visit)["conflict"] == "a ant"
    assert text(folder, "ant") == "a ant"
    window.box = "a blue ant"
    assert window.save(visit=visit)["undo"] == "ant.png"
    window.ask("undo")
    assert text(folder, "ant") == "a ant", "after an undo the same visit begins a new step"


def test_two_browsers_at_one_caption_lose_nothing(desk, folder):
    one, two = Window(desk), Window(desk)
    one.save("from one")
    assert two.save("from two")["conflict"] == "from one" and text(folder, "ant") == "from one"
    assert two.save("from two", over=["from one"])["wrote"]
    two.ask("undo")
    assert text(folder, "ant") == "from one"
    two.ask("undo")
    assert text(folder, "ant") == "a ant"


def test_a_text_given_up_for_another_stands_among_the_earlier_ones_and_undo_saves_it(desk, folder):
    one, two = Window(desk), Window(desk)
    one.save("from one")
    key = two.shelf["open"]
    assert desk.answer({"act": "give_up", "key": key, "value": "from two"})["undo"] == "ant.png"
    assert text(folder, "ant") == "from one"
    assert "from two" in desk.answer({"act": "earlier", "key": key})["texts"]
    two.ask("undo")
    assert text(folder, "ant") == "from two"
    two.ask("redo")
    assert text(folder, "ant") == "from one"
    before = desk.answer({"act": "earlier", "key": key})
    desk.answer({"act": "give_up", "key": key, "value": "from one"})
    assert desk.answer({"act": "earlier", "key": key}) == before, "nothing was given up"


def test_a_filter_for_an_unknown_field_says_which_there_are_when_it_finds_nothing(desk, folder):
    window = Window(desk)
    for find, told in (("foo:bar", True), ("no such text", False), ("name:ant", False)):
        assert ("foo:" in desk.answer({"act": "find", "key": "", "value": find})["wrong"]) == told, find
    assert window.box == "a ant"


def test_the_same_text_from_two_windows_asks_nothing(desk, folder):
    one, two = Window(desk), Window(desk)
    one.save("a red ant")
    assert "conflict" not in two.save("a red ant\r\n")


def test_undo_survives_a_restart(desk, folder):
    Window(desk).save("a red ant")
    Window(open_desk(folder)).ask("undo")
    assert text(folder, "ant") == "a ant"


def test_another_folder_of_the_same_names_gets_neither_late_saves_nor_undo(desk, folder, tmp_path):
    window = Window(desk)
    window.save("a red ant")
    image(tmp_path / "elsewhere" / "set" / "ant.png", (200, 200), caption="a ant")  # the same names and words
    chosen(desk, tmp_path / "elsewhere" / "set")
    other = Window(desk)
    other.ask("undo")
    assert other.box == "a ant" and text(folder, "ant") == "a red ant"
    assert window.save("a late ant")["wrote"], "what was typed before the folder was changed"
    assert text(folder, "ant") == "a late ant" and text(tmp_path / "elsewhere" / "set", "ant") == "a ant"
    chosen(desk, folder)
    Window(desk).ask("undo")
    assert text(folder, "ant") == "a ant"


def test_looking_around_writes_nothing(desk, folder):
    window = Window(desk)
    for by in (1, 1, 1, 1, -1, -1):
        window.go(by)
        desk.answer({"act": "look", "key": window.open, "text": "half a wo"})
        window.save()
    assert not (folder / "dog.txt").exists() and not (folder / "_atelier_trash").exists()
    assert window.box == "a cat"


def test_the_folders_words_are_named_and_are_the_text_of_no_image(desk, folder):
    window = Window(desk)
    window.go(-1)
    assert window.box == "" and window.item["words"] == "set" and "class tokens" in window.item["notes"]
    assert "<b>1</b>" in window.item["meter"] or "1 of 75" in window.item["meter"], "the words are trained"
    assert not window.save()["wrote"] and not (folder / "dog.txt").exists()
    assert window.save("set")["wrote"]
    window.ask("shelf")
    assert text(folder, "dog") == "set" and "without" not in window.shelf["tally"]
    assert "From <code>dog.txt</code>" in window.item["notes"] and window.item["words"] == ""
    assert window.save("")["wrote"] and (folder / "dog.txt").read_bytes() == b"", "emptied: an empty caption"


def test_an_earlier_text_can_be_used_again(desk, folder):
    window = Window(desk)
    window.save('a "red" <ant>', visit="first")
    window.save("a blue ant", visit="second")
    shown = desk.answer({"act": "earlier", "key": window.open})["texts"]
    assert 'data-arg="a &quot;red&quot; &lt;ant&gt;"' in shown and 'data-arg="a ant"' in shown


def test_captioning_the_uncaptioned_goes_on_from_where_it_stood(folder):
    for name in ("ant", "cat"):
        (folder / f"{name}.txt").unlink()
    window = Window(open_desk(folder))
    window.ask("show", value="none")
    assert "ant.png" in window.item["stage"]
    window.save("a new ant")
    window.ask("shelf")
    assert "ant.png" in window.item["stage"] and "not in this list of 2" in window.item["stage"]
    window.go(1)
    assert "cat.png" in window.item["stage"] and "1 of 2" in window.item["stage"]
    window.save("a new cat")
    window.ask("shelf")
    window.go(-1)
    assert "dog.png" in window.item["stage"]


def test_of_a_long_list_a_part_is_sent_and_the_list_goes_round(folder, monkeypatch):
    from tabs.captions import tab as captions

    monkeypatch.setattr(captions, "REACH", 1)
    window = Window(open_desk(folder))
    names = [window.items[key]["disk"] for key in window.shelf["chain"]]
    assert names == ["", "a ant", "a bee"] and window.shelf["at"] == 1 and not window.shelf["ring"]


def test_the_list_is_filtered_by_kind_and_by_words(folder):
    (folder / "bee.txt").write_text("very " * 100, encoding="utf-8")
    window = Window(open_desk(folder))
    window.ask("show", value="long")
    listed = window.shelf["list"]
    assert "bee.png" in listed and "ant.png" not in listed and "100 tokens" in listed
    window.ask("show", value="all")
    window.ask("find", value="A CAT")
    assert "cat.png" in window.shelf["list"] and "ant.png" not in window.shelf["list"]
    window.ask("find", value=HOSTILE)
    assert "<img src=x" not in window.shelf["list"] and "No matches." in window.shelf["list"]


def test_words_of_an_expression_alone_are_searched(folder):
    (folder / "bee.txt").write_text("a black and white bee", encoding="utf-8")
    window = Window(open_desk(folder))
    window.ask("find", value="black and white")
    assert len(window.shelf["page"]) == 1 and not window.shelf["wrong"]


def test_captioners_are_for_the_selected_images_or_those_of_the_list(folder, monkeypatch):
    desk = open_desk(folder)
    window, rows = Window(desk), {row.path.stem: row for row in desk.reading.report.rows}

    def only(*selected) -> list[str]:
        return [
            Path(each).stem
            for each in desk.captioner_limits(" ".join(key_of(rows[name]) for name in selected)).get("only", [])
        ]

    assert only() == [] and window.shelf["narrowed"] is None
    assert only("bee", "cat") == ["bee", "cat"] and only(*rows) == []
    window.ask("find", value="a ant | a cat")
    assert only() == ["ant", "cat"] and window.shelf["narrowed"] == 2
    rows_of, listed = desk._rows, []
    monkeypatch.setattr(desk, "_rows", lambda: listed.append(1) or rows_of())
    assert only() == ["ant", "cat"] and len(listed) == 1  # a start does not filter the list twice
    for find, code in (("elk", "captions.none-listed"), ("tokens:x", "captions.wrong-filter")):
        window.ask("find", value=find)
        with refused(code):
            only()
    window.ask("find", value="")
    window.ask("show", value="none")
    assert only() == ["dog"]


def test_a_caption_of_two_images_names_the_other_and_is_changed_once(folder):
    image(folder / "ant.webp", (200, 200))
    desk = open_desk(folder)
    window = Window(desk)
    notes = {item["name"]: item["notes"] for item in window.items.values()}
    assert "also the caption of ant.webp." in notes["ant.png"] and "also the caption of ant.png." in notes["ant.webp"]
    assert "also" not in notes["bee.png"]
    changes = changes_of(planned(list(desk.bulk.items().values()), CaptionEditSettings(tags="x")))
    assert [each.path.name for each in changes] == ["ant.txt", "bee.txt", "cat.txt", "dog.txt"]


def test_any_tag_is_found_by_its_name_and_listed_in_the_asked_order(folder, monkeypatch):
    monkeypatch.setattr(caption_bulk, "MAX_TAGS", 3)
    for name, tags in {"ant": "b_1, a 2, c", "bee": "b 1, a 2", "cat": "b 1, rare_tag"}.items():
        (folder / f"{name}.txt").write_text(tags, encoding="utf-8")
    desk = open_desk(folder)
    ask = lambda **more: desk.answer({"act": "tags", **more})  # noqa: E731
    assert [tag for tag, _ in ask()["tags"]] == ["b 1", "a 2", "c"] and (ask()["found"], ask()["all"]) == (4, 4)
    assert ask(find="Rare tag")["tags"] == [("rare_tag", 1)] and ask(find="rare")["found"] == 1
    assert [tag for tag, _ in ask(order="rarest")["tags"]] == ["c", "rare_tag", "a 2"]
    assert [tag for tag, _ in ask(order="name")["tags"]] == ["a 2", "b 1", "c"]


def test_a_tag_list_that_cannot_be_read_is_named(desk, tmp_path, monkeypatch):
    lists = tmp_path / "models" / "tag_lists"
    lists.mkdir(parents=True)
    (lists / "bad.csv").write_text("")
    monkeypatch.setattr(desk.bulk, "_workspace", replace(desk.page.workspace, models=lists.parent))
    answer = desk.answer({"act": "complete", "value": "a"})
    assert [each["code"] for each in answer["lists"]] == ["tags.bad-list"] and answer["options"]


def test_made_up_messages_change_nothing(desk, folder):
    window = Window(desk)
    for asked in (
        {},
        {"act": "save", "saves": "x"},
        {"act": "save", "saves": [1, None, {"key": 3, "over": 4}]},
        {"act": 5, "key": []},
    ):
        assert isinstance(desk.answer(asked), dict)
    window.ask("follow", key="../x")
    assert window.box == "a ant" and not (folder / "_atelier_trash").exists()


def test_an_encoding_is_said_and_saving_makes_it_utf8(folder):
    (folder / "ant.txt").write_bytes("grüne Ameise".encode("cp1252"))
    window = Window(open_desk(folder))
    assert window.box == "grüne Ameise" and "cp1252" in window.item["notes"]
    window.save(window.box + ", rot")
    assert (folder / "ant.txt").read_bytes() == "grüne Ameise, rot\n".encode()
    assert "cp1252" not in desk_look(window)["notes"]


def desk_look(window: Window) -> dict:
    return window.desk.answer({"act": "look", "key": window.open, "text": window.box})


def test_only_the_first_line_and_the_prefix_are_said_to_be_trained(desk):
    desk.page.project.edit("captions.caption_prefix", "glyph style,")
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    window = Window(desk)
    assert "Trained as: <q>glyph style, a ant</q>" in window.item["notes"]
    window.box = "first\nsecond"
    found = desk_look(window)
    assert "Only the first line is trained: <q>glyph style, first</q>" in found["notes"]
    assert f"{tokens.count_tokens('glyph style, first')} of 75 tokens" in found["meter"]


def test_a_caption_that_cannot_be_saved_is_said_and_saved_later(desk, folder, monkeypatch):
    from core.record import atomic

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    window = Window(desk)
    monkeypatch.setattr(atomic, "write_bytes", full)
    assert window.save("a red ant")["problems"][0]["code"] == "disk.full" and text(folder, "ant") == "a ant"
    monkeypatch.undo()
    assert window.save("a red ant")["wrote"] and text(folder, "ant") == "a red ant"
    assert "1 MB" in window.save("a" * (2 << 20))["problems"][0]["what"] and text(folder, "ant") == "a red ant"


def test_half_a_character_is_saved_as_a_mark(desk, folder):
    assert Window(desk).save("a \ud83d ant")["wrote"] and text(folder, "ant") == "a ? ant"


def test_a_folder_with_a_caption_ending_of_its_own_is_saved_to_the_file_that_is_read(folder):
    (folder / "ant.caption").write_text("an ant in a sentence", encoding="utf-8")
    page = make_page(folder.parent)
    own = Source(folder=str(folder), caption_extension=".caption")
    page.project.replace(with_entries(page.project.job, [own]))
    desk = CaptionHandlers(page)
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    window = Window(desk)
    assert window.box == "an ant in a sentence"
    window.save("a red ant in a sentence")
    assert (folder / "ant.caption").read_text(encoding="utf-8").strip() == "a red ant in a sentence"
    assert text(folder, "ant") == "a ant"


@pytest.mark.parametrize(
    "entry", [{"caption": "a listed ant"}, {"tags": "ant, listed"}, {"caption": "an ant", "tags": "red"}]
)
def test_a_caption_of_a_metadata_file_is_read_only_and_says_why(folder, entry):
    listed = folder.parent / "meta.json"
    listed.write_text(json.dumps({"ant": entry, "bee": {"caption": "a listed bee"}}))
    page = make_page(folder.parent)
    page.project.replace(with_entries(page.project.job, [Source(folder=str(folder), metadata_file=str(listed))]))
    desk = CaptionHandlers(page)
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    before, window = {each.name: each.read_bytes() for each in folder.iterdir()}, Window(desk)
    assert window.item["fixed"] and "Read only" in window.item["notes"] and "meta.json" in window.item["notes"]
    (problem,) = window.save("typed over")["problems"]
    assert "meta.json" in problem["what"] and problem["fix"]
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before and not window.shelf["undo"]


def test_the_tick_only_marks_that_something_has_changed(desk):
    window = Window(desk)
    assert desk.parts("Train", {}) == {} and desk.parts("Captions", {})["captions"]["stamp"] == window.shelf["stamp"]
    desk.reading.captions_saved([desk.reading.report.rows[1].path])
    assert desk.parts("Captions", {})["captions"]["stamp"] != window.shelf["stamp"]


def test_no_images_says_what_to_do(tmp_path):
    (tmp_path / "empty").mkdir()
    window = Window(open_desk(tmp_path / "empty"))
    assert "Choose a folder in Dataset." in window.shelf["list"] and window.open == "" and window.shelf["chain"] == []
    assert window.save("lost?") == {"unknown": True}


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot exist there")
def test_names_and_captions_never_become_markup(tmp_path):
    image(tmp_path / "set" / f"{HOSTILE}.png", (200, 200), caption=f"<script>alert(1)</script> {HOSTILE}")
    window = Window(open_desk(tmp_path / "set"))
    shown = "".join(
        (window.item["stage"], window.item["meter"], window.item["notes"], window.shelf["list"], window.shelf["tally"])
    )
    assert "<img src=x" not in shown and "<script" not in shown and "alert" in shown


def test_the_address_is_answered_to_those_who_are_logged_in_and_to_json_alone(desk):
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from tabs.server.hosts import Hosts
    from tabs.server.limits import Limits
    from tabs.server.request_check import RequestCheck

    links = desk.page.links
    links.answer("captions", desk.answer)
    app, folder = Starlette(routes=links.routes()), desk.page.workspace.private
    check = RequestCheck(app, Hosts(named=("testserver",)), Limits(lambda: {"sesame": "mira"}), folder, shared=False)
    client = TestClient(check)
    assert client.post("/atelier/captions", json={"act": "shelf"}).status_code == 401
    client.cookies.set("access-token-x", "sesame")
    assert client.post("/atelier/captions", json={"act": "shelf"}).json()["chain"]
    assert client.post("/atelier/captions", content="{}", headers={"content-type": "text/plain"}).status_code == 415
    for body, status in (("[]", 400), ("{", 400), ("[" * 100_000, 400), ('"' + "x" * (9 << 20) + '"', 413)):
        assert (
            client.post("/atelier/captions", content=body, headers={"content-type": "application/json"}).status_code
            == status
        )
    assert client.get("/atelier/captions").status_code == 405


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
    assert "81 of 75 tokens: the last 6 are not trained" in shown and shown.count("notch") == 3
    assert "too-long" in shown and "too-long" not in view.meter(81, 150)
    assert "the last one is not trained" in view.meter(76, 75)


def test_what_is_cut_off_is_marked_in_the_text(desk, folder):
    words = ", ".join(f"fox{number}" for number in range(60))
    (folder / "ant.txt").write_text(words)
    desk.reading.want(now=True)
    wait_until(lambda: not desk.reading.busy)
    notes = Window(desk).item["notes"]
    cut = re.search(r"<del>(.*?)</del>", notes)[1]
    assert words.endswith(cut) and 0 < len(cut) < len(words) and "Cut after 75 tokens" in notes


def test_a_prefix_in_the_files_and_one_of_the_training_are_told_apart(desk):
    desk.answer({"act": "bulk_field", "arg": "edit", "value": "prefix"})
    assert "use one of the two" in desk.answer({"act": "bulk"})["bulk"]
    desk.page.project.edit("captions.caption_prefix", "photo of mira")
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    assert "photo of mira" in desk.answer({"act": "bulk"})["bulk"]


def test_the_list_is_sorted_by_name_length_and_date(desk, folder):
    def order(how):
        shelf = desk.answer({"act": "sort", "value": how})
        return [shelf["items"][key]["name"] for key in shelf["page"]]

    rows = {row.key[1]: row.caption for row in desk.reading.report.rows}
    assert order("name") == sorted(rows) and order("odd") == list(rows)
    assert [len(rows[name]) for name in order("long")] == sorted(map(len, rows.values()), reverse=True)
    assert order("short") == sorted(rows, key=lambda name: len(rows[name]))
    (folder / "bee.txt").write_text("a newer bee")
    desk.reading.want(now=True)
    wait_until(lambda: not desk.reading.busy)
    assert order("newest")[0] == "bee.png"


def test_a_folder_that_was_deleted_is_named(desk, folder):
    window = Window(desk)
    shutil.rmtree(folder)
    (problem,) = window.save("a late ant")["problems"]
    assert problem["code"] == "caption.image-gone"


def form(desk, **values):
    """The form of many captions, filled."""
    for field, value in values.items():
        shown = desk.answer({"act": "bulk_field", "arg": field, "value": value})["bulk"]
    return shown


def apply_shown(desk, shown=""):
    """Press the button of the preview, of the newest unless one is given."""
    shown = shown or desk.answer({"act": "bulk"})["bulk"]
    (mark,) = re.findall(r'data-act="bulk_apply" data-arg="(\w+)"', shown)
    return answered(desk.answer, {"act": "bulk_apply", "value": mark})


def test_only_the_change_that_was_shown_is_made(desk, folder):
    desk.answer({"act": "find", "value": "ant"})
    shown = form(desk, edit="add", tags="brown")
    assert "Change 1 caption<" in shown
    desk.answer({"act": "find", "value": ""})  # another window
    refused = apply_shown(desk, shown)
    assert [each["code"] for each in refused["problems"]] == ["edit.changed-meanwhile"]
    assert answered(desk.answer, {"act": "bulk_apply"})["problems"], "a page that was opened before the update"
    desk.answer({"act": "find", "value": "ant"})
    form(desk, tags="black")  # as that window fills the form
    assert apply_shown(desk, shown)["problems"]
    assert [text(folder, name) for name in ("ant", "bee")] == ["a ant", "a bee"]
    form(desk, tags="brown")
    apply_shown(desk, shown)
    assert [text(folder, name) for name in ("ant", "bee")] == ["a ant, brown", "a bee"]


def test_a_caption_saved_by_the_click_on_change_captions_does_not_stop_the_change(desk, folder):
    shown = form(desk, edit="replace", find="ant", replace_with="emu", match="text")
    Window(desk).save("a small ant")
    assert "problems" not in apply_shown(desk, shown) and text(folder, "ant") == "a small emu"
    window = Window(desk)
    shown = form(desk, find="bee")
    window.save("an emu and a bee")  # one more than the button says
    (problem,) = apply_shown(desk, shown)["problems"]
    assert "2 captions" in problem["what"] and text(folder, "bee") == "a bee"


def test_the_plan_of_a_preview_is_that_of_the_change_and_follows_the_captions(desk, monkeypatch):
    made = []
    monkeypatch.setattr(caption_bulk, "planned", lambda *given: made.append(1) or planned(*given))
    shown = form(desk, edit="add", tags="brown")
    made.clear()
    assert desk.answer({"act": "bulk"})["bulk"] == shown and not made
    window = Window(desk)
    window.save("typed meanwhile")
    assert "typed meanwhile" in desk.answer({"act": "bulk"})["bulk"]


def test_the_separator_of_the_captions_is_changed(desk, folder):
    Window(desk).save("a; b")
    form(desk, edit="separator", separator=";", new_separator=", ")
    assert "1 caption" in apply_shown(desk)["said"] and text(folder, "ant") == "a, b"
    shown = form(desk, edit="add", tags="c")
    assert 'data-arg="separator"' in shown, "one of one's own is seen wherever it counts"
    assert 'data-arg="separator"' not in form(desk, separator=", ")


def test_a_replaced_word_that_the_sample_prompts_still_have_is_named(desk, folder):
    desk.page.project.edit("samples.sample_prompts", "An ANT on a leaf\na tree")
    for field, value in (("edit", "replace"), ("match", "text"), ("find", "ant"), ("replace_with", "emmet")):
        desk.answer({"act": "bulk_field", "arg": field, "value": value})
    said = apply_shown(desk)["said"]
    assert text(folder, "ant") == "a emmet" and "sample prompts" in said and "'ant'" in said
    for field, value in (("find", "bee"), ("replace_with", "wasp")):
        desk.answer({"act": "bulk_field", "arg": field, "value": value})
    assert "prompts" not in apply_shown(desk)["said"] and text(folder, "bee") == "a wasp"


def tick(window):
    """What a browser gets of the page's tick, and the list that it asks for then."""
    if window.desk.parts("Captions", {})["captions"]["stamp"] != window.shelf["stamp"]:
        window.ask("shelf")


def test_what_a_task_writes_is_shown_and_one_undo_restores_it(desk, folder):
    window = Window(desk)
    window.save("a blue ant")
    tick(window)
    history = History(desk.page.workspace.captions)  # of another thread or process
    changes = [caption_change(folder / f"{name}.png", "a fox") for name in ("ant", "dog")]
    with history.open("Tag images", {"task": "tag"}) as opened:
        opened.write(changes[:1])
        tick(window)
        assert window.items[window.open]["disk"] == "a fox", "while it goes on"
        opened.write(changes[1:])
    tick(window)
    assert "4 images with a caption" in window.shelf["tally"] and window.shelf["undo"] == "Tag images"
    window.ask("undo")
    assert text(folder, "ant") == "a blue ant" and not (folder / "dog.txt").exists() and "Tag images" in window.said
    tick(window)
    assert window.shelf["undo"] == "ant.png"


def test_another_programs_change_of_the_open_caption_is_noticed(desk, folder):
    window = Window(desk)
    tick(window)
    tick(window)
    (folder / "ant.txt").write_text("from outside")
    tick(window)
    assert window.items[window.open]["disk"] == "from outside" and "from outside" in window.shelf["list"]


def test_an_empty_caption_is_called_so_everywhere(desk, folder):
    window = Window(desk)
    window.save("")
    window.ask("shelf")
    assert "empty caption" in window.shelf["list"] and window.item["notes"].count("is empty") == 1
    assert "2 images with a caption, 2 without" in window.shelf["tally"]


def test_undo_of_many_stays_at_the_open_image(desk, folder):
    window = Window(desk)
    window.go(2)
    open_one = window.open
    for field, value in (("edit", "add"), ("tags", "new")):
        desk.answer({"act": "bulk_field", "arg": field, "value": value})
    apply_shown(desk)
    window.ask("undo")
    assert window.open == open_one and text(folder, "ant") == "a ant"


def test_a_file_that_was_deleted_outside_is_seen_when_its_image_is_opened(desk, folder):
    window = Window(desk)
    tick(window)
    (folder / "bee.txt").unlink()
    window.go(1)
    desk.answer({"act": "look", "key": window.open, "text": ""})
    tick(window)
    assert "2 images with a caption, 2 without" in window.shelf["tally"]


# -- thousands of images


ODD = {
    "a1.png": "Straße, ÄPFEL",
    "b2.png": "İstanbul",
    "c3.png": "first line\nSecond  line",
    "d4.png": "ﬁre",
    "e5.png": "",
}


@pytest.mark.parametrize(
    "find",
    [
        "",
        "  ",
        "strasse",
        "äpfel",
        "İ",
        "i̇stanbul",
        "FIRE",
        "second  LINE",
        "line\nsecond",
        "png\nﬁ",
        "A1.",
        "\n",
        "zzz",
        "́",
    ],
)
def test_a_search_finds_what_stands_in_a_name_or_a_caption(tmp_path, find):
    for name, caption in ODD.items():
        image(tmp_path / "set" / name, caption=caption)
    desk = open_desk(tmp_path / "set")
    rows, wanted = view.listed(desk.reading.report, "all"), comparable(find)
    for _ in range(2):
        found = desk.bulk.filtered(rows, find)
        assert found == [row for row in rows if wanted in comparable(f"{row.key[1]}\n{row.caption}")]


@pytest.mark.parametrize("find", ["long hair", "long_hair", '"long hair"', "mychar (series)", r"mychar \(series\)"])
def test_a_search_finds_a_tag_however_it_is_spelled(tmp_path, find):
    for name, caption in (
        ("a.png", r"long_hair, mychar \(series\)"),
        ("b.png", "long hair, mychar_(series)"),
        ("c.png", "x"),
    ):
        image(tmp_path / "set" / name, caption=caption)
    desk = open_desk(tmp_path / "set")
    found = desk.bulk.filtered(view.listed(desk.reading.report, "all"), find)
    assert [row.key[1] for row in found] == ["a.png", "b.png"]


def test_a_search_knows_a_caption_from_the_moment_it_is_saved_and_reads_no_other_again(desk):
    window = Window(desk)
    window.ask("find", value="new words")
    assert not window.shelf["page"]
    before = dict(desk.bulk._searched[1])
    window.ask("find", value="")
    window.save("the new WORDS")
    window.ask("find", value="new words")
    assert window.shelf["page"] == [window.open]
    after = desk.bulk._searched[1]
    assert after.keys() == before.keys() and sum(after[key] is not before[key] for key in after) == 1


def test_rows_of_an_older_report_are_searched_by_their_own_words(desk):
    rows = view.listed(desk.reading.report, "all")
    assert [row.key[1] for row in desk.bulk.filtered(rows, "a bee")] == ["bee.png"]
    desk.reading.report = replace(desk.reading.report, rows=())
    assert [row.key[1] for row in desk.bulk.filtered(rows, "a bee")] == ["bee.png"]


def test_what_follows_from_a_report_is_found_once_for_each_report(desk):
    asked, report = [], desk.reading.report
    counted = once_per_report(lambda report, *more: asked.append(more) or len(report.rows))
    assert [counted(report), counted(report), counted(report, "a"), counted(report, "a")] == [4] * 4
    other = replace(report, rows=report.rows[:1])
    assert [counted(other), counted(report)] == [1, 4] and asked == [(), ("a",), (), ()]


def test_a_sorted_list_follows_a_saved_caption(desk):
    window = Window(desk)
    window.ask("sort", value="long")
    longest = window.shelf["page"][0]
    window.ask("follow", key=window.shelf["page"][-1])
    window.save("a caption that is the longest of all by far")
    window.ask("follow")
    assert window.shelf["page"][0] == window.open != longest


def test_the_first_images_are_listed_while_all_are_read(folder, monkeypatch):
    go, real = threading.Event(), reading.preflight
    monkeypatch.setattr(reading, "preflight", lambda *given, **more: go.wait(60) and real(*given, **more))
    monkeypatch.setattr(reading, "FIRST_ROWS", 2)
    page = make_page(folder.parent)
    page.project.edit("dataset.folder", str(folder))
    desk = CaptionHandlers(page)
    shown = desk.answer({"act": "open"})
    assert (shown["list"].count('class="pick"'), shown["list"].count(" disabled")) == (2, 2)
    assert "a bee" in shown["list"] and shown["page"] == [] and not shown["open"]
    go.set()
    wait_until(lambda: not desk.reading.busy)
    shown = desk.answer({"act": "open"})
    assert shown["list"].count('class="pick"') == 4 and " disabled" not in shown["list"]
