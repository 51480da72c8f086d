"""Lists of tags for autocomplete: found by name and alias, the frequent first; broken files are named."""

import pytest

from core.captioning import tag_lists as tag_lists_module
from core.captioning.tag_lists import ListedTag, TagList, read_tag_list, tag_lists
from core.record.problems import ProblemsError
from core.record.workspace import Workspace

ROWS = """1girl,0,6008644,"1girls,sole_female"
long_hair,0,4350743,/lh,longhair
solo,0,5000954,
"a,b",0,12
saber_(fate),4,30000,"saber,artoria"
lone,0,1
"""


@pytest.fixture
def workspace(tmp_path):
    folder = tmp_path / "models" / "tag_lists"
    folder.mkdir(parents=True)
    (folder / "danbooru.csv").write_text(ROWS)
    return Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")


def test_tags_are_found_by_how_they_begin_the_frequent_first(workspace):
    known, problems = tag_lists(workspace)
    assert not problems
    assert [each.tag for each in known.complete("lo", 5)] == ["long_hair", "lone"]
    assert [each.tag for each in known.complete("LONG H", 5)] == ["long_hair"], "case and underscores do not count"
    assert known.complete("sole", 5) == [ListedTag("1girl", 6008644, "sole_female")]
    assert [each.tag for each in known.complete("s", 2)] == ["1girl", "solo"] and known.complete(" ", 5) == []
    assert [each.tag for each in known.complete("saber", 5)] == ["saber_(fate)"], "each once"
    assert known.complete("a,", 1)[0].tag == "a,b"


def test_a_count_has_at_most_eleven_digits_and_what_is_longer_is_none(workspace):
    rows = f"many,0,{'9' * 11}\nendless,0,{'9' * 12}\n"
    (workspace.models / "tag_lists" / "danbooru.csv").write_text(rows)
    known = tag_lists(workspace)[0]
    assert [known.complete(word, 1)[0].post_count for word in ("many", "endless")] == [10**11 - 1, 0]


def test_a_changed_list_is_read_again(workspace):
    tag_lists(workspace)
    (workspace.models / "tag_lists" / "own.csv").write_text("brabol,0,3\n")
    assert [each.tag for each in tag_lists(workspace)[0].complete("bra", 3)] == ["brabol"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b'"a' + b"x" * 300_000, b"a,0,1\n" * 60, b'a,0,1,"b,c,d"\n' * 20, b"\n" * 60],
    ids=range(6),
)
def test_a_file_that_is_no_list_is_named_and_the_others_are_read(workspace, content, monkeypatch):
    monkeypatch.setattr(tag_lists_module, "MAX_ENTRIES", 50)
    bad = workspace.models / "tag_lists" / "bad.csv"
    bad.write_bytes(content)
    with pytest.raises(ProblemsError):
        read_tag_list(bad)
    known, problems = tag_lists(workspace)
    assert [problem.code for problem in problems] == ["tags.bad-list"] and len(known) > 5


def test_aliases_that_are_too_long_or_too_many_are_left_out(tmp_path):
    aliases = [f"b{number}" for number in range(60)]
    (tmp_path / "a.csv").write_text(f'a,0,1,"{"x" * 201},{",".join(aliases)}"\n')
    assert [each.alias for each in read_tag_list(tmp_path / "a.csv")] == ["", *aliases[:49]]


def test_no_folder_is_an_empty_list(tmp_path):
    known, problems = tag_lists(Workspace(tmp_path))
    assert not problems and TagList([]).complete("a", 3) == known.complete("zzzz", 3) == []


@pytest.mark.parametrize("text", ['1girl;0;5;"a,b"\n;d;0;4', '1girl,0,5,"a,b"\n;d,0,4'])
def test_a_list_that_excel_saved_with_semicolons_is_read(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    read = read_tag_list(tmp_path / "a.csv")
    assert read[:3] == [ListedTag("1girl", 5), ListedTag("1girl", 5, "a"), ListedTag("1girl", 5, "b")]
