"""What the prompt box says of a prompt: its windows, and each fault with its place and code."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from core.families.token_count import WINDOW, count_tokens
from core.generation.model.wildcard_files import wildcard_lines
from core.generation.plan.plan import check_task
from core.generation.plan.requests import requests_of
from core.generation.prompt.analysis import Names, Parsing, analyze, findings_of
from core.generation.prompt.runs import placed_parts, prompt_runs, weighted_parts, windows_of
from core.generation.prompt.states import AS_WRITTEN
from core.generation.prompt.styles import LONGEST as LONGEST_TEXT
from core.generation.prompt.styles import (
    LONGEST_NAME,
    MOST,
    PROMPT_FIELD,
    Style,
    chosen_styles,
    read_styles,
    style_file,
    styled,
    styles_of_csv,
    write_styles,
)
from core.generation.prompt.wildcards import LONGEST
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.generation.prompts import PromptSettings
from core.settings.job import GenerateJob
from tests.refusals import refused


def job_of(prompt="a fox", negative="", **groups):
    generate = {"prompt": prompt, "negative_prompt": negative, "seed": 1}
    return build(GenerateJob, {"generate": generate, "model": {"base_model": "models/starter"}, **groups})


def lines(name):
    return {"colors": ["red", "blue"], "self": ["a __self__"], "a": ["__b__"], "b": ["__a__"]}[name]


def no_lora(name):
    raise ProblemsError.one(f"The lora '{name}' does not exist", "loras", "choose ink", "lora.not-found")


KNOWN = Names(lines, no_lora, {"easynegative": 8, "zunk": 2})


def told(text, **mode):
    """(what is marked, its code) of a prompt."""
    return [(text[each.start : each.end], each.problem.code) for each in findings_of(text, KNOWN, Parsing(**mode))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (fox:1.2), [b] \\( c", []),
        ("a (fox", [("(", "prompt.open-bracket")]),
        ("a fox] b", [("]", "prompt.extra-bracket")]),
        ("fox:1.2) b", [(")", "prompt.extra-bracket")]),
        ("(fox:1.2.3)", [("1.2.3", "prompt.bad-weight")]),
        ("(fox: 1.2)", [(": 1.2", "prompt.no-weight")]),
        ("(fox:high)", [(":high", "prompt.no-weight")]),
        ("at noon (12:30), (fox:13), (fox:-1), (cat:5)", [("30", "prompt.high-weight"), ("13", "prompt.high-weight")]),
        (
            'a sign "ROCK AND ROLL" or MAN AND DOG',
            [('"ROCK AND ROLL"', "prompt.split-text"), ("MAN AND DOG", "prompt.split-text")],
        ),
        ('"a fox" AND "a dog" --n LOW AND BAD', []),
        ("(fox:{1.1|1.2})", []),
        ("(a fox AND b)", [("(", "prompt.open-bracket"), (")", "prompt.extra-bracket")]),
        ("{red|blue} \\{ fox", []),
        ("{red|blue fox", [("{", "prompt.open-brace")]),
        ("red} fox {a|b}", [("}", "prompt.open-brace")]),
        ("__colors__ __self__", [("__self__", "prompt.bad-wildcard")]),
        ("x __a__", [("__a__", "prompt.bad-wildcard")]),
        ("x \\__a\\__ b", []),
        ("{9$$a|b} c", [("{9$$a|b}", "prompt.bad-wildcard")]),
        ("<lora:ink:0.8>", [("<lora:ink:0.8>", "lora.not-found")]),
        ("<lora:{ink|wet}:0.8>", []),
        ("<lora:a__ink__b:0.8>", [("<lora:a__ink__b:0.8>", "lora.not-found")]),
        ("a <lora:ink:x> b", [("<lora:ink:x>", "prompt.bad-lora")]),
        ("a <lora:ink b", [("<lora:ink", "prompt.open-lora")]),
        ("a easynegativ b", [("easynegativ", "prompt.unknown-embedding")]),
        ("a embedding:zunk", [("embedding:zunk", "prompt.unknown-embedding")]),
        ("EasyNegative masterpiece", []),
        ("a --foo bar --w 64 --zz 3", [("--foo bar", "prompts.unknown-option"), ("--zz 3", "prompts.unknown-option")]),
        ("a --w x", [("--w x", "prompts.bad-number")]),
        ("a --n b (c --w 64", [("(", "prompt.open-bracket")]),
        ("a --n <lora:b:1>", [("<lora:b:1>", "prompt.lora-in-negative")]),
        ("{a --w 64|b --w 128} c", []),
        ("{2$$__colors__} fox", []),
        ("{9$$__colors__} fox", [("{9$$__colors__}", "prompt.bad-wildcard")]),
        ("<setvar[a]:b> <break>", [("<setvar[a]:b>", "prompt.unknown-tag"), ("<break>", "prompt.unknown-tag")]),
        *(
            (text, [(part, "prompt.other-notation")])
            for text, part in [
                ("${a=red} fox", "${a=red}"),
                ("a __~colors__", "__~colors__"),
                ("{@red|blue} fox", "{@"),
                ("{2-$$red|blue|old} fox", "{2-$$"),
                ("{-2$$red|blue|old} fox", "{-2$$"),
                ("{2$$ | $$red|blue} fox", "{2$$ | $$"),
                ("__colors(a=1)__ fox", "__colors(a=1)__"),
                ("__hair (long)__ fox", "__hair (long)__"),
                ("fox\n# in snow\nred", "# in snow"),
                ("a 1.5::red:: fox", "1.5::red::"),
                ("a -2::red:: fox", "-2::red::"),
                ("a (red)1.5 fox", ")1.5"),
                ("a (red)++, fox", ")++"),
                ('("a", "b").and()', ").and("),
                ("a fox AND_SALT b", "AND_SALT"),
                ("a fox ADDCOMM b", "ADDCOMM"),
                ("a \uff08fox\uff1a1.2\uff09", "\uff08fox\uff1a1.2\uff09"),
            ]
        ),
        ("{2::red|3::blue} (fox) 18+, c++ (a)-(b) \uff08\uff09 #1 <3", []),
    ],
)
def test_each_fault_is_told_at_its_place(text, expected):
    assert told(text) == expected
    for each in findings_of(text, KNOWN):
        assert each.problem.what and each.problem.fix


def test_a_lora_named_as_an_embedding_is_told_with_its_tag():
    known = Names(lines, lambda name: [] if name == "ink" else no_lora(name), {"inks": 2, "Zunk": 2})
    for name, fix in (("ink", "<lora:ink:1>"), ("zunk", "Zunk"), ("in", "inks"), ("fox", "models/embeddings")):
        (finding,) = findings_of(f"a embedding:{name}", known)
        assert finding.problem.code == "prompt.unknown-embedding" and fix in finding.problem.fix


def test_break_and_and_are_words_of_their_own():
    """As in A1111: also at the end of a line, and not within another word."""
    assert len(prompt_runs("a BREAKFAST, BREAKING news")) == 1 and len(prompt_runs("a, BREAK, b")) == 3
    assert weighted_parts("a fox\nAND a dog :0.5\nAND red") == [("a fox", 1.0), ("a dog", 0.5), ("red", 1.0)]
    assert weighted_parts("an AND_SALT fox, SAND AND sun") == [("an AND_SALT fox, SAND", 1.0), ("sun", 1.0)]
    assert weighted_parts("cat,AND dog AND,bird, AND") == [("cat,", 1.0), ("dog", 1.0), (",bird,", 1.0), ("", 1.0)]
    assert list(placed_parts("a\nAND  b AND c")) == [(0, "a"), (6, " b"), (13, "c")]


def test_what_is_not_read_is_not_wrong():
    assert told("a (fox --foo {b", dynamic=False, weighted=False) == []
    assert told("a --foo {b __x__ AND (c", negative=True, dynamic=False) == [("(", "prompt.open-bracket")]
    assert told("<lora:ink:1>", negative=True, dynamic=False) == [("<lora:ink:1>", "prompt.lora-in-negative")]


def test_windows_are_those_that_are_encoded():
    long = " ".join(["fox"] * 80)
    (part,) = analyze(f"(a:1.2) b BREAK {long}").parts
    assert part.windows == (2, WINDOW, 5)
    for text in (long, f"a BREAK {long} BREAK", "", "BREAK a", f"(a b) [c BREAK {long}"):
        windows = windows_of(text, count_tokens)
        assert WINDOW * len(windows) == AS_WRITTEN.tokens([text], count_tokens)
        assert all(0 <= number <= WINDOW for number in windows)


def test_parts_between_and_are_counted_alone_with_their_weights():
    found = analyze("a red fox AND a dog :0.5 --w 64 <lora:ink:1>")
    assert [(part.weight, part.windows) for part in found.parts] == [(1.0, (3,)), (0.5, (2,))]
    assert found.joints == ((9, 14),)


def test_embeddings_count_by_their_vectors_and_variants_as_one_image_draws_them():
    assert analyze("a easynegative, zunk", KNOWN).parts[0].windows == (1 + 8 + 1 + 2,)
    found = analyze("{red|blue} fox", KNOWN)
    assert found.drawn and found.parts[0].windows == (2,)


HOSTILE = {
    "megabyte": "a" * 1_000_000,
    "opened": "(" * LONGEST,
    "closed": ")" * LONGEST,
    "braces": "{" * LONGEST,
    "combinations": " ".join("{e$$" + "|".join(map(str, range(10))) + "}" for _ in range(9)),
    "twos": "{e$$a|b}" * 12_000,
    "choose": "{1-40000$$" + "a|" * 40_000 + "b}",
    "tags": "<lora:" * 16_000,
    "long tag": "<lora:" + "a" * 99_000 + ">",
    "spaces": " " * LONGEST,
    "switches": " --" * 33_000,
    "files": "__self__" * 12_000,
    "names": "embedding:" * 9_999,
    "nearly": "easynegativ " * 8_000,
    "notations": "__" * 16_000 + "${a" * 5_000 + "1::" * 5_000 + "\uff08a:1" * 5_000 + "<a[" * 5_000,
}


@pytest.mark.slow(only=("closed", "switches", "names", "nearly", "braces"))
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_prompts_answer_soon(name):
    many = Names(lines, no_lora, {f"easynega{number}": 2 for number in range(500)})
    count_tokens("warm")
    begun = time.thread_time()
    found = analyze(HOSTILE[name], many)
    assert time.thread_time() - begun < 5 and len(found.findings) <= 100
    if name in ("megabyte", "combinations", "twos", "files"):
        assert {each.problem.level for each in found.findings} == {"error"}


def test_ten_to_the_nine_combinations_are_said_in_numbers():
    (found,) = findings_of(HOSTILE["combinations"])
    assert found.problem.code == "prompt.bad-wildcard" and "1,000,000,000" in found.problem.what
    assert PromptSettings.title_of("dynamic_prompts") in found.problem.fix  # __name__ has no braces to escape


# -- the same before a start


def test_a_start_says_what_the_box_says(tmp_path):
    space = Workspace(tmp_path / "outputs")
    with pytest.raises(ProblemsError) as error:
        requests_of(job_of("(a:1.2.3) __none__", "<lora:ink:1>"), lambda name: wildcard_lines(space, name))
    assert set(error.value.codes) == {"prompt.bad-weight", "prompt.bad-wildcard", "prompt.lora-in-negative"}
    found, notes = requests_of(job_of("a (fox --zz 3", "b)"), lines, KNOWN.embeddings)
    assert found[0].job.generate.prompt == "a (fox"
    assert {each.code for each in notes} == {
        "prompt.open-bracket",
        "prompt.extra-bracket",
        "prompts.unknown-option",
    }
    said = check_task(job_of("a (fox --foo bar"), Workspace(tmp_path / "outputs", PROJECT / "models"))
    assert "not closed" in said and "'--foo bar' is not an option" in said


# -- styles


def test_styles_wrap_or_are_appended():
    assert styled("a fox", ["ink of {prompt}", "b/w"]) == "ink of a fox, b/w"
    assert styled("", ["b/w"]) == "b/w" and styled("a fox", ["", "  "]) == "a fox"


def test_styles_of_a_job_are_in_what_its_images_store():
    styles = [Style("ink", "ink of {prompt}", "color"), Style("big", "huge", "")]
    (found,), _ = requests_of(job_of("a fox --w 64", "blurry", prompts={"styles": ["ink", "big"]}), lines, {}, styles)
    asked = found.job.generate
    assert (asked.prompt, asked.negative_prompt, asked.width) == ("ink of a fox, huge", "blurry, color", 64)
    assert found.job.prompts.styles == []
    (found,), _ = requests_of(job_of("a fox --n bad --w 64"), lines, {}, styles[:1])
    assert (found.job.generate.prompt, found.job.generate.negative_prompt) == ("ink of a fox", "bad, color")


def test_styles_hold_for_the_lines_of_a_file(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("cat --n dog\nhat\n", "utf-8")
    found, _ = requests_of(
        job_of("x", "bad", prompts={"from_file": str(file)}), lines, {}, [Style("s", "ink", "color")]
    )
    assert [(each.job.generate.prompt, each.job.generate.negative_prompt) for each in found] == [
        ("cat, ink", "dog, color"),
        ("hat, ink", "bad, color"),
    ]


def test_styles_are_kept_and_unknown_ones_refused_with_the_nearest(tmp_path):
    space = Workspace(tmp_path)
    write_styles(space, [Style("ink", "b/w", "color"), Style("<b>", "x")])
    assert list(read_styles(space)) == ["ink", "<b>"]
    assert chosen_styles(["ink"], space) == [Style("ink", "b/w", "color")]
    with pytest.raises(ProblemsError) as error:
        chosen_styles(["inc"], space)
    assert error.value.codes == ["styles.not-found"] and "ink" in error.value.problems[0].fix
    style_file(space).write_text("[]", "utf-8")
    with refused("file.not-json-object"):
        read_styles(space)


def test_styles_are_saved_up_to_their_limits(tmp_path):
    space = Workspace(tmp_path)
    longest = Style("n" * LONGEST_NAME, "p" * LONGEST_TEXT, "q" * LONGEST_TEXT)
    for most in ([longest], [Style(str(number)) for number in range(MOST)]):
        write_styles(space, most)
        assert [*read_styles(space).values()] == most
    for code, over in (
        ("styles.bad-name", [replace(longest, name=longest.name + "n")]),
        ("styles.bad-name", [Style("ink"), Style(" ")]),
        ("styles.too-long", [replace(longest, prompt=longest.prompt + "p")]),
        ("styles.too-long", [Style("ink", "", longest.negative_prompt + "q")]),
        ("styles.too-many", [*most, Style("one more")]),
    ):
        with refused(code):
            write_styles(space, over)
    assert [*read_styles(space).values()] == most


def test_styles_of_a1111_are_read():
    text = 'name,prompt,negative_prompt\nInk,"b/w, {prompt}",color\n----,,\nBig,"a, ""b""",\n'
    assert styles_of_csv("\ufeff" + text) == [Style("Ink", f"b/w, {PROMPT_FIELD}", "color"), Style("Big", 'a, "b"', "")]
    with refused("styles.bad-csv"):
        styles_of_csv("1,2\n")
    with refused("styles.bad-csv"):
        styles_of_csv("")


@pytest.mark.parametrize(
    "text",
    [
        'name, prompt, negative_prompt\nInk, "b/w, sharp", "color, blur"\n',
        "name;prompt;negative_prompt\nInk;b/w, sharp;color, blur\n",
    ],
)
def test_styles_of_a_spreadsheet_are_read_with_blanks_after_commas_and_with_semicolons(text):
    assert styles_of_csv(text) == [Style("Ink", "b/w, sharp", "color, blur")]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("Ink,masterpiece, best quality,blur", "The style 'Ink' has more columns than the header"),
        ('Ink,"b/w,blur\nBig,a,b', "The styles cannot be read: unexpected end of data"),
    ],
)
def test_styles_of_which_a_part_would_be_lost_are_refused(row, what):
    with pytest.raises(ProblemsError) as error:
        styles_of_csv(f"name,prompt,negative_prompt\n{row}\n")
    assert error.value.problems[0].what == what
