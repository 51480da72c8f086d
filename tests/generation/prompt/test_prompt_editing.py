"""Prompt editing: the texts of each step, and images made by them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from core.generation.images.metadata import read_image_metadata
from core.generation.model import embeddings
from core.generation.plan.files import weight_problems
from core.generation.plan.requests import requests_of
from core.generation.prompt.analysis import Parsing, analyze, findings_of
from core.generation.prompt.editing import Pass, at_steps, schedule, texts_of
from core.generation.prompt.wildcards import LONGEST, no_files
from core.generation.run import run_generate
from core.generation.sample import loop
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob


def told(text, steps=10, before=None):
    return [[last, words] for last, words in schedule(text, Pass(steps, before))]


# The examples of `get_learned_conditioning_prompt_schedules` in A1111, at 10 steps.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [[10, "test"]]),
        ("a [b:3]", [[3, "a "], [10, "a b"]]),
        ("a [b: 3]", [[3, "a "], [10, "a b"]]),
        ("a [[[b]]:2]", [[2, "a "], [10, "a [[b]]"]]),
        ("[(a:2):3]", [[3, ""], [10, "(a:2)"]]),
        ("a [b : c : 1] d", [[1, "a b  d"], [10, "a  c  d"]]),
        ("a[b:[c:d:2]:1]e", [[1, "abe"], [2, "ace"], [10, "ade"]]),
        ("a [unbalanced", [[10, "a [unbalanced"]]),
        ("a [b:.5] c", [[5, "a  c"], [10, "a b c"]]),
        ("a [{b|d{:.5] c", [[5, "a  c"], [10, "a {b|d{ c"]]),
        ("((a][:b:c [d:3]", [[3, "((a][:b:c "], [10, "((a][:b:c d"]]),
        ("[a|(b:1.1)]", [[step, ["(b:1.1)", "a"][step % 2]] for step in range(1, 11)]),
        ("[fe|]male", [[step, ["male", "female"][step % 2]] for step in range(1, 11)]),
        ("[fe|||]male", [[step, "female" if step % 4 == 1 else "male"] for step in range(1, 11)]),
        # and what follows from them
        ("[cat::0.5] x", [[5, "cat x"], [10, " x"]]),
        ("[:dog:8]", [[8, ""], [10, "dog"]]),
        ("[a:[b|c]:8]", [*([step, "a"] for step in range(1, 9)), [9, "b"], [10, "c"]]),
        ("[cat:dog:0]", [[10, "dog"]]),
        ("[cat:dog:99]", [[10, "cat"]]),
        ("[cat:dog:1]", [[1, "cat"], [10, "dog"]]),
        ("[cat:dog:1.0]", [[10, "cat"]]),
        (r"\[cat:dog:3\]", [[10, r"\[cat:dog:3\]"]]),
        (r"[a\]b:c\:d:3]", [[3, r"a\]b"], [10, r"c\:d"]]),
        ("[a:b:c:3] [a:b:c] [a] [a:b]", [[10, "[a:b:c:3] [a:b:c] [a] [a:b]"]]),
        ("[a (b:c:3]", [[10, "[a (b:c:3]"]]),
    ],
)
def test_the_text_of_each_step_is_that_of_a1111(text, expected):
    assert told(text) == expected


def test_the_second_pass_goes_on_from_the_first():
    assert told("a [b:.5] c", before=10) == [[10, "a b c"]]
    assert told("a [b:1.5] c", before=10) == [[5, "a  c"], [10, "a b c"]]
    assert told("a [b:13]", before=10) == [[3, "a "], [10, "a b"]]
    assert told("a [b:13]") == [[10, "a "]]


def test_several_texts_change_together():
    assert at_steps(("[a:b:1]", "c", "[d:e:3]"), Pass(5)) == [
        (0, ("a", "c", "d")),
        (1, ("b", "c", "d")),
        (3, ("b", "c", "e")),
    ]
    assert at_steps(("[a:b:1]",), None) == [(0, ("[a:b:1]",))]
    assert texts_of("[a|b]", [Pass(100)]) == ["a", "b"]


@pytest.mark.slow(but=("[(]",))
@pytest.mark.parametrize("part", ["[", "[a|", "[a:", "(", "[(]", "[a|b]", "[a:b:1]", "]"])
def test_no_text_takes_long(part):
    text, begin = part * (LONGEST // len(part)), time.thread_time()
    analyze(text)
    schedule(text, Pass(2))
    assert time.thread_time() - begin < 30
    schedule(part * 300 + "x" + ":1]" * 300, Pass(5))


# -- what is said of them


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a [cat:dog:0.5] hat, [cat::3] [:dog:4] [a|b] [x:[y|z]:2] [fe|]male [artist:name] [less]", []),
        ("a [cat:dog:0.5s] b", [("[cat:dog:0.5s]", "prompt.no-edit")]),
        ("a fox AND [a:b:c:3]", [("[a:b:c:3]", "prompt.no-edit")]),
        ("a [word:1.2]", [("[word:1.2]", "prompt.idle-edit")]),
        ("a [b:c:20] [b:c:0]", [("[b:c:20]", "prompt.idle-edit"), ("[b:c:0]", "prompt.idle-edit")]),
        ("[{a|b}:c:5] [{a|b}] [a:b:{3|4}]", []),
        ("[<lora:ink:1>cat:3] a", [("<lora:ink:1>", "prompt.edited-lora")]),
        ("a fox AND [<lora:ink:1>cat:3] a", [("<lora:ink:1>", "prompt.edited-lora")]),
        ("a fox, [cat:3] AND <lora:ink:1> a", []),
        ("a <hypernet:ink:1> b", [("<hypernet:ink:1>", "prompt.unknown-tag")]),
        ("a [cat:dog:0.5", [("[", "prompt.open-bracket")]),
        ("a cat:dog:0.5]", [("]", "prompt.extra-bracket")]),
        ("a --n [b:c:d:3]", [("[b:c:d:3]", "prompt.no-edit")]),
    ],
)
def test_what_is_no_edit_is_said_at_its_place(text, expected):
    found = findings_of(text, parsing=Parsing(passes=(Pass(20),)))
    assert [(text[each.start : each.end], each.problem.code) for each in found] == expected
    assert all(each.problem.level == "advice" for each in found)


def test_with_the_second_pass_of_hires_fix_later_steps_are_sound():
    assert not findings_of("[a:b:1.5] [a:b:25]", parsing=Parsing(passes=(Pass(20), Pass(10, 20))))


def test_tokens_are_those_of_the_longest_text():
    long = "fox " * 80
    assert analyze(f"a [cat:{long}:0.5]").parts[0].windows == analyze(f"a {long}").parts[0].windows
    assert analyze("[cat:dog:0.5]").parts[0].windows == (1,)


# -- images


def job_of(prompt, negative="", steps=4, **more):
    groups = {name: more.pop(name) for name in ("hires", "image_to_image", "regions") if name in more}
    generate = {"prompt": prompt, "negative_prompt": negative, "steps": steps, "seed": 7, "width": 64, "height": 64}
    model = {"base_model": "models/starter", "compatibility": more.pop("compatibility", "none")}
    generate |= {"guidance_scale": 4.0} | more
    return build(GenerateJob, {"generate": generate, "model": model} | groups)


@pytest.fixture
def made(tmp_path, store, monkeypatch):
    """A function that generates: (the pixels of each image, the texts that were encoded, what was read at each step)."""
    encoded: list[str] = []
    read: list[tuple[float, ...]] = []
    plain, guided = embeddings.encode_texts, loop._guided

    def spy(components, texts, *given):
        encoded.extend(texts)
        return plain(components, texts, *given)

    def seen(model, guidance, given, at, hooks):
        read.append(tuple(row.double().sum().item() for row in given.texts.context))
        return guided(model, guidance, given, at, hooks)

    monkeypatch.setattr(embeddings, "encode_texts", spy)
    monkeypatch.setattr(loop, "_guided", seen)

    def make(*given, **more):
        encoded.clear(), read.clear()
        store.texts._entries.clear()
        workspace = Workspace(tmp_path / "outputs", PROJECT / "models")
        files = run_generate(job_of(*given, **more), workspace, store=store)
        return [np.asarray(Image.open(file)) for file in files], list(encoded), list(read)

    return make


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True))


def test_each_step_reads_its_text_and_each_text_is_encoded_once(made):
    before, after, edited = made("a fox"), made("a bee"), made("a [fox:bee:0.5]")
    assert edited[2] == [*before[2][:2], *after[2][2:]] and before[2][0] != after[2][0]
    assert sorted(edited[1]) == ["", "a bee", "a fox"]
    turns = made("a [fox|bee]")
    assert turns[2] == [before[2][0], after[2][0]] * 2 and sorted(turns[1]) == sorted(edited[1])
    assert not same(edited, before) and not same(edited, after) and not same(edited, turns)


def test_the_negative_prompt_weights_and_parts_change_too(made):
    first, second = made("a fox", "red", 2)[2], made("a fox", "(blue:1.4)", 2)[2]
    assert made("a fox", "[red:(blue:1.4):1]", 2)[2] == [first[0], second[1]]
    first, second = made("a fox AND a bee :0.5", steps=2)[2], made("a fox AND a rose :0.5", steps=2)[2]
    assert made("a fox AND a [bee:rose:1] :0.5", steps=2)[2] == [first[0], second[1]]


def test_a_text_of_two_windows_and_one_of_one_take_turns(made):
    long = "red " * 100
    states = made(f"a [fox|{long}]")
    assert states[2][0] == states[2][2] != states[2][1] == states[2][3]


def test_images_made_together_have_their_own_texts(made):
    together = made("a [{fox|bee}:rose:2], red", count=4, batch_size=4)
    assert len({image.tobytes() for image in together[0]}) == 4
    assert {"a fox, red", "a bee, red", "a rose, red"} <= set(together[1])
    assert len(together[1]) == len(set(together[1]))


def test_an_evaluation_twice_in_a_step_has_the_text_of_the_step(made):
    heun = {"sampler": "heun", "steps": 2}
    first, second = made("a fox", **heun)[2], made("a bee", **heun)[2]
    assert made("a [fox:bee:1]", **heun)[2] == [*first[:2], *second[2:]]


@pytest.mark.slow
def test_the_second_pass_of_hires_fix_reads_its_own_steps(made):
    hires = {"highres_fix_scale": 2.0, "highres_fix_steps": 4}  # the second runs 4 steps too
    given = {"hires": hires, "image_to_image": {"strength": 0.5}}
    fox, bee = made("a fox", **given)[2], made("a bee", **given)[2]
    assert len(fox) == 8
    assert made("a [fox:bee:0.5]", **given)[2] == [*fox[:2], *bee[2:]]
    assert made("a [fox:bee:5]", **given)[2] == [*fox[:5], *bee[5:]]


def test_regions_have_edits_of_their_own(made, tmp_path):
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.paste((0, 255, 0), (0, 0, 32, 64))
    image.save(tmp_path / "map.png")
    given = {"regions": {"region_map": str(tmp_path / "map.png")}, "steps": 2}
    first, second = made("a fox AND a bee", **given)[2], made("a fox AND a rose", **given)[2]
    assert made("a fox AND a [bee:rose:1]", **given)[2] == [first[0], second[1]]


def test_as_sd_scripts_and_without_weights_they_are_text(made):
    assert made("a [fox:bee:0.5]", compatibility="sd-scripts-0.10")[1] == ["a [fox:bee:0.5]", ""]
    assert sorted(made("a [fox:bee:0.5]", prompt_weights=False)[1]) == ["", "a [fox:bee:0.5]"]
    kohya = job_of("a [fox:bee:0.5]", compatibility="sd-scripts-0.10")
    notes = requests_of(kohya, no_files)[1]
    assert [(note.code, note.level) for note in notes] == [("prompt.unread-edit", "advice")]
    assert not requests_of(job_of("a [fox:bee:0.5]"), no_files)[1]


def test_a_prompt_comes_back_as_it_was_typed(tmp_path, store):
    job = job_of("a [fox|bee], [red:0.5]", "[blue::2]", steps=1)
    file = run_generate(job, Workspace(tmp_path / "outputs", PROJECT / "models"), store=store)[0]
    again = read_image_metadata(file).job.generate
    assert (again.prompt, again.negative_prompt) == (job.generate.prompt, job.generate.negative_prompt)
    with Image.open(file) as image:
        assert image.text["parameters"].startswith("a [fox|bee], [red:0.5]\nNegative prompt: [blue::2]\n")


def test_a_weight_that_is_none_at_some_step_is_refused_before_the_start():
    problems = list(weight_problems(job_of("(a:[1.2:1.3:2])")))
    assert not problems
    assert [each.code for each in weight_problems(job_of("(a:[1.2:1.2.3:2])"))] == ["prompt.bad-weight"]
    assert not list(weight_problems(job_of("(a:[1.2:1.2.3:2])", prompt_weights=False)))
