"""Pieces of HTML: nothing of a person's text becomes markup, and nothing a browser sends is trusted."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from work_parts import HOSTILE, event

from core.record.problems import ProblemsError
from tabs import markup


def test_a_text_never_becomes_markup():
    shown = markup.button("open", HOSTILE, HOSTILE, title=HOSTILE, label=HOSTILE)
    assert "<img" not in shown and shown.count("<") == 2
    assert markup.esc("'") == "&#x27;" and markup.esc('"') == "&quot;"


def test_a_name_parts_at_its_signs_and_before_its_suffix_and_nothing_else_changes():
    assert markup.breakable("a_b-c.v1.pt") == "a_<wbr>b-<wbr>c.v1<wbr>.pt"
    assert markup.breakable("/x\\y") == "/<wbr>x\\<wbr>y" and markup.breakable("0.13, a_") == "0.13, a_"
    assert markup.breakable(HOSTILE).replace("<wbr>", "") == markup.esc(HOSTILE)


def test_a_name_that_is_no_utf8_is_shown_with_a_mark():
    assert markup.esc("a\udcffb") == "a?b" or "�" in markup.esc("a\udcffb")
    markup.esc("a\udcffb").encode("utf-8")


@pytest.mark.parametrize("data", [None, [], "text", {"act": 3}, {"act": {"a": 1}, "arg": ["x"]}])
def test_an_event_of_any_shape_is_read_as_texts(data):
    act, arg, value = markup.board_event(SimpleNamespace(_data=data))
    assert all(isinstance(part, str) for part in (act, arg, value))


def test_a_long_text_arrives_whole_and_one_that_is_too_long_is_refused():
    assert markup.board_event(event("field", "tags", "fox, " * 2000))[2] == "fox, " * 2000
    with pytest.raises(ProblemsError) as refused:
        markup.board_event(event("field", "tags", "x" * (markup.LONGEST + 1)))
    assert refused.value.codes == ["page.text-too-long"]


def test_an_act_on_a_row_counts_for_that_row_also_where_another_window_has_changed_the_list():
    mark = re.search('data-listed="(.*?)"', markup.row_of("b"))[1]
    pressed = SimpleNamespace(_data={"act": "remove", "arg": "1:x:y", "listed": mark})
    assert [markup.arg_now(pressed, rows) for rows in (["a", "b"], ["b"], ["a"], ["b", "c", "b"])] == [
        "1:x:y", "0:x:y", "", ""
    ]  # fmt: skip
    assert markup.arg_now(event("remove", "1"), ["a"]) == "1"


def test_a_page_number_stays_within_what_there_is():
    assert [markup.page_of(text, 5) for text in ("2", "99", "-1", "x", "", "9" * 40)] == [2, 4, 0, 0, 0, 0]
    assert [markup.page_count(total, 48) for total in (0, 1, 48, 49, 10_000)] == [1, 1, 1, 2, 209]


def test_one_page_needs_no_pager_and_many_say_where_one_is():
    assert markup.pager("page", 0, 1, 5, "images") == ""
    shown = markup.pager("page", 208, 209, 10_000, "images")
    assert "10,000 images" in shown and 'data-arg="207"' in shown and "disabled" in shown


def test_a_tick_sends_each_value_once():
    first = markup.changed_boards("", "1", {"one": "a", "two": "b"})
    assert (first["one"], first["two"]) == ("a", "b")
    then = markup.changed_boards(first["client"], "2", {"one": "a", "two": "c"})
    assert then["two"] == "c" and "one" not in then


def test_a_long_text_is_cut_to_one_line():
    assert markup.short("a\n b   c") == "a b c"
    assert len(markup.short("word " * 100, 30)) <= 30
