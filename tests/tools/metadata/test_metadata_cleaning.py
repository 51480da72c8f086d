"""Tags and captions cleaned: sd-scripts' results to the letter, and by whole words."""

from __future__ import annotations

import json

import pytest

from core.record.problems import ProblemsError
from core.settings.tools.metadata import REPLACEMENTS
from core.tools.metadata.rules import (
    TagRules,
    clean_tags,
    clean_tags_as_sd_scripts,
    cleaner_of_captions,
    read_replacements,
)
from tests.tools.metadata.metadata_cases import codes, files, undo, use

# (tags, what clean_captions_and_tags 0.9 makes of them, what whole words make of them); the second column comes from running it.
TAGS = [
    ("2girls, long hair, blue hair, red hair, blue eyes, smile", "2girls, long hair, blue eyes, smile", None),
    ("2girls, blue_eyes, red_eyes, short_hair, long_hair, blonde_hair", "2girls, blonde hair", None),
    ("2boys, bob cut, hime cut, long sleeves, sleeveless, hat", "2boys, hat", None),
    ("3girls, ponytail, double bun, single hair bun, sidelocks, two tails, x", "3girls, x", None),
    ("2girls, side ponytail, ponytail, braid", "2girls, side ponytail", None),
    ("1girl, blue eyes, red eyes", "1girl, blue eyes, red eyes", None),
    ("shirt, white shirt, hair ornament, flower hair ornament, ornament", "white shirt, flower hair ornament", None),
    ("eyes, closed eyes, t-shirt, white t-shirt, white (shirt)", "closed eyes, white t-shirt, white (shirt)", None),
    ("shirt, shirt, skirt", "shirt, shirt, skirt", None),
    ("smile, rating:safe", "smile", None),
    ("^_^, a_b, ^_^_^", "^_^, a b, ^_^ ^", "^_^, a b"),
    ("1girl, >_<, o_o", "1girl, > <, o o", "1girl, >_<, o_o"),
    ("rating:safe, smile", "rating:safe, smile", "smile"),
    ("smile, rating:safe, hat, ratings", "smile", "smile, hat, ratings"),
    ("cowboys, blue eyes, red eyes", "cowboys", "cowboys, blue eyes, red eyes"),
    ("girls_und_panzer, blue eyes, red eyes", "girls und panzer", None),
    ("shirt,white shirt", "shirt,white shirt", "white shirt"),
    ("a,  b, , c", "a,  b, , c", "a, b, c"),
    ("", "", None),
    (", ", "", ""),
]


@pytest.mark.parametrize(("text", "as_sd_scripts", "by_word"), TAGS)
def test_tags(text, as_sd_scripts, by_word):
    assert clean_tags_as_sd_scripts(text, TagRules()) == as_sd_scripts
    if text != "^_^, a_b, ^_^_^":  # not a tag that exists
        assert clean_tags(text, TagRules()) == (as_sd_scripts if by_word is None else by_word)


@pytest.mark.parametrize(
    ("rule", "text", "on", "off"),
    [
        ("underscores", "a_b", "a b", "a_b"),
        ("ratings", "a, rating:safe", "a", "a, rating:safe"),
        ("people", "2girls, blue eyes, red eyes", "2girls", "2girls, blue eyes, red eyes"),
        ("contained", "hat, red hat", "red hat", "hat, red hat"),
    ],
)
@pytest.mark.parametrize("rules", ["words", "sd-scripts"])
def test_each_group_of_rules_has_a_switch(tmp_path, rule, text, on, off, rules):
    source = tmp_path / "in.json"
    source.write_text(json.dumps({"a": {"tags": text}}))
    for switched, expected in ((True, on), (False, off)):
        out = tmp_path / f"{switched}.json"
        use("clean_metadata", in_json=source, out_json=out, clean_rules=rules, **{f"clean_{rule}": switched})
        assert json.loads(out.read_text()) == {"a": {"tags": expected}}


CAPTIONS = [  # likewise
    ("a young anime anime girl with a cartoon woman", "a girl with a girl", None),
    ("a personal layperson", "a girlal laygirl", "a personal layperson"),
    ("a cartoon figure of young people", "a figure of girls", None),
    ("a cartoon anime drawing of women", "a drawing of girls", None),
    ("anime cartoon female", "anime girl", "girl"),  # only a second pass finds it
    ("girl girl girl girl", "girl", None),
    ("a youngster, young", "a youngster, young", None),
    ("firewoman\nwomen", "firegirl\ngirls", "firewoman\ngirls"),
]


@pytest.mark.parametrize(("text", "as_sd_scripts", "by_word"), CAPTIONS)
def test_captions(text, as_sd_scripts, by_word):
    replacements, wrong = read_replacements(("", line) for line in REPLACEMENTS)
    assert not wrong and len(replacements) == 27
    assert cleaner_of_captions(replacements, by_word=False)(text) == as_sd_scripts
    assert cleaner_of_captions(replacements, by_word=True)(text) == (as_sd_scripts if by_word is None else by_word)


def test_a_file_is_cleaned_and_the_rest_of_it_stays(tmp_path):
    path = tmp_path / "meta.json"
    entries = {
        "b": {"n": [1, 2.5], "tags": "hat, red_hat", "caption": "a woman, é", "train_resolution": [8, 16]},
        "a": {"tags": "x"},
        "c": {"caption": None},
    }
    path.write_text(json.dumps(entries))
    before = path.read_bytes()
    facts, lines = use("clean_metadata", out_json=path)
    entries["b"] |= {"tags": "red hat", "caption": "a girl, é"}
    assert path.read_bytes() == json.dumps(entries, indent=2).encode()  # as sd-scripts writes it
    assert facts["changed"] == {"tags": 1, "caption": 1} and facts["without"] == {"tags": 1, "caption": 2}
    assert "tags of 1 and captions of 1 of 3 entries changed (1 have no tags, 2 have no caption)" in lines[-1]
    undo(facts["undo"])
    assert path.read_bytes() == before


def test_the_list_of_replacements_is_ones_own_and_a_file_adds_to_it(tmp_path):
    source, out, more = tmp_path / "in.json", tmp_path / "out.json", tmp_path / "more.txt"
    source.write_text('{"a": {"caption": "a  woman in a red coat, in redwood; v1.5 (x)"}}')
    more.write_text('coat -> cloak\n\n"(x)" -> "[y] "\n', "utf-16")
    use("clean_metadata", in_json=source, out_json=out, replacements=['"  " -> " "', "red -> blue"])
    assert json.loads(out.read_text())["a"]["caption"] == "a woman in a blue coat, in redwood; v1.5 (x)"
    use("clean_metadata", in_json=source, out_json=out, replacements=["v1.5 ->"], replacements_file=more)
    assert json.loads(out.read_text())["a"]["caption"] == "a  woman in a red cloak, in redwood;  [y] "
    use("clean_metadata", in_json=source, out_json=out, replacements=[])
    assert json.loads(out.read_text()) == json.loads(source.read_text())


def test_a_preview_shows_changes_and_counts_and_writes_nothing(tmp_path):
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({f"k{n}": {"tags": "x" if n == 0 else "a_b", "caption": "a\nb"} for n in range(5)}))
    before = files(tmp_path)
    facts, lines = use("clean_metadata", out_json=path, preview=2)
    assert lines[:6] == [
        "k1, tags", "  before: a_b", "  after:  a b",
        "k2, tags", "  before: a_b", "  after:  a b",
    ]  # fmt: skip
    assert "tags of 4 and captions of 0 of 5 entries changed; nothing was written" in lines[-1]
    assert files(tmp_path) == before and "file" not in facts


@pytest.mark.parametrize("rules", ["words", "sd-scripts"])
def test_a_list_that_never_settles_is_refused_before_the_start(tmp_path, rules):
    path = tmp_path / "meta.json"
    path.write_text('{"a": {"caption": "a girl"}}')
    before = files(tmp_path)
    with pytest.raises(ProblemsError) as refused:
        use(
            "clean_metadata",
            out_json=path,
            clean_rules=rules,
            replacements=["girl -> cute girl", "no arrow", '"" -> x'],
        )
    assert refused.value.codes == [
        "metadata.bad-replacement", "metadata.bad-replacement", "metadata.endless-replacement",
    ]  # fmt: skip
    assert "line 2" in refused.value.problems[0].where and files(tmp_path) == before


def test_lines_that_undo_each_other_or_grow_without_end_are_found_in_the_caption(tmp_path):
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"q": {"tags": "x"}, "k": {"caption": "a cat" + " a b" * 25}}))
    before = files(tmp_path)
    for lines, rules in ((["cat -> dog", "dog -> cat"], "words"), (["a b -> b b a a"], "sd-scripts")):
        with pytest.raises(ProblemsError) as refused:
            use("clean_metadata", out_json=path, clean_rules=rules, replacements=lines)
        (problem,) = refused.value.problems
        assert problem.code == "metadata.endless-replacement" and problem.where.endswith("caption of k")
        assert files(tmp_path) == before
    use("clean_metadata", out_json=path, clean_rules="sd-scripts", replacements=["cat -> dog", "dog -> cat"])


def test_what_is_no_text_or_no_file_is_refused(tmp_path):
    path, out = tmp_path / "meta.json", tmp_path / "out.json"
    for content, code in (('{"a": {"tags": ["x"]}}', "metadata.invalid-values"), ("[]", None), ("{", "json.invalid")):
        path.write_text(content)
        if code is None:
            assert use("clean_metadata", in_json=path, out_json=out)[0]["entries"] == 0
            out.unlink()
            continue
        with pytest.raises(ProblemsError) as refused:
            use("clean_metadata", in_json=path, out_json=out)
        assert refused.value.codes == [code] and not out.exists()
    with pytest.raises(ProblemsError) as refused:
        use("clean_metadata", out_json=out, replacements_file=tmp_path / "none.txt")
    assert refused.value.codes == ["metadata.missing-file", "file.missing"]


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "meta.json"
    path.write_bytes('{"a": {"caption": "Größe"}}'.encode("cp1252"))
    facts, _ = use("clean_metadata", out_json=path)
    assert codes(facts) == ["metadata.not-utf8"] and json.loads(path.read_text())["a"]["caption"] == "Größe"


def test_a_file_that_something_else_changes_during_the_work_stays(tmp_path, monkeypatch):
    from core.tools.metadata import clean_metadata as module

    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"a": {"caption": "anime girl"}}))
    theirs = json.dumps({"a": {"caption": "anime girl"}, "b": {"caption": "new"}})
    whole = module._clean

    def clean(*given):
        path.write_text(theirs)
        return whole(*given)

    monkeypatch.setattr(module, "_clean", clean)
    with pytest.raises(ProblemsError) as caught:
        use("clean_metadata", out_json=path)
    assert caught.value.codes == ["metadata.changed-since"] and path.read_text() == theirs
