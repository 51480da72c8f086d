"""Sample prompts as sd-scripts writes them: lines with switches, .txt, .toml and .json."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from core.diffusion.text_states import TextStates
from core.generation.prompt.files import parse_entry
from core.generation.prompt.sample_prompts import SamplePrompt, control_image, filled, read_prompts, sample_of
from core.settings.samples import SampleSettings
from core.training.loop.samples import TrainedPromptTexts
from tests.refusals import refused


def parsed(line):
    notes = []
    found = parse_entry(line, notes, "here")
    return found and sample_of(found, notes, "here"), notes


def test_a_line_holds_the_prompt_and_its_switches():
    found, notes = parsed("a fox, red -- fur --n blurry, bad --W 768 --h 512 --d 42 --s 28 --l -1.5 --ss k_euler_a")
    assert [note.code for note in notes] == ["prompts.unknown-option"] or found.prompt == "a fox, red"
    found, notes = parsed("a fox --n blurry, bad --W 768 --h 512 --d 42 --s 28 --l -1.5 --ss K_Euler_A")
    assert found == SamplePrompt("a fox", "blurry, bad", 768, 512, 42, 28, -1.5, "euler_a") and not notes


@pytest.mark.parametrize(
    ("entry", "fixes"),
    [
        ("a fox --steps 20 --cfg 5 --seed 3 --zz 3", ["--s 20", "--l 5", "--d 3", "remove it"]),
        ("a fox --steps=20 --s=20 --w", ["--s 20", "--s 20", "remove it"]),
        ("a fox --negative_prompt old, bad --sampler_name Euler a", ["--n old, bad", "--ss Euler a"]),
        ({"prompt": "a fox", "cfg": 5, "sampler": "euler"}, ["scale for cfg and sample_sampler for sampler"]),
        ({"prompt": "a fox", "steps": 5, "mood": 1}, ["sample_steps for steps; remove it"]),
        ({"prompt": "a fox", "mood": 1}, ["remove it"]),
    ],
)
def test_an_option_of_another_program_is_named_as_it_is_here(entry, fixes):
    _, notes = parsed(entry)
    assert {note.code for note in notes} == {"prompts.unknown-option"}
    assert [note.fix.removeprefix("write ") for note in notes] == fixes


@pytest.mark.parametrize("line", ["a {red|blue} fox", "a __color__ fox", "a fox AND a dog"])
def test_what_samples_read_as_text_is_named(line):
    (prompt,), notes = read_prompts(SampleSettings(sample_prompts=[line]))
    assert prompt.prompt == line and [note.code for note in notes] == ["prompts.text"]


def test_an_option_in_the_text_of_a_table_is_named_as_text():
    found, notes = parsed({"prompt": "a fox --w 64 --am 1", "width": 128})
    assert (found.prompt, found.width) == ("a fox --w 64 --am 1", 128)
    assert [(note.code, note.fix.split()[-3:-2]) for note in notes] == [
        ("prompts.option-in-table", ["width"]),
        ("prompts.option-in-table", []),
    ]


def test_a_hyphen_inside_a_prompt_is_no_switch():
    assert parsed("a well-made, semi--transparent fox")[0] == SamplePrompt("a well-made, semi--transparent fox")


def test_comments_and_empty_lines_are_no_prompts():
    assert parsed("# a fox")[0] is None and parsed("   ")[0] is None
    assert parsed(" # 1 fan")[0] == SamplePrompt("# 1 fan"), "only at the line's beginning, as in sd-scripts"


def test_what_is_out_of_bounds_is_brought_within_and_said():
    found, notes = parsed("a --s 5000 --w 10 --h 9999 --l 500")
    assert (found.steps, found.width, found.height, found.guidance) == (1000, 64, 4096, 100) and len(notes) == 4
    assert all(note.level == "advice" for note in notes)


def test_what_is_no_number_is_an_error_and_what_is_not_followed_is_said():
    assert parsed("a --s many")[1][0].level == "error" and parsed("a --l strong")[1][0].level == "error"
    found, notes = parsed("a --ss dpm_fast --cn pose.png --ctr x --fs 3 --rcfg 2 --g 3 --zz 1 --i fox.png")
    assert (
        found == SamplePrompt("a", control="pose.png")
        and len(notes) == 7
        and all(note.level == "advice" for note in notes)
    )


def test_a_control_image_is_needed_or_ignored_as_the_training_reads_them(tmp_path):
    with_one, without = (SampleSettings(sample_prompts=[line]) for line in (f"a --cn {tmp_path / 'a.png'}", "a"))
    (prompt,), notes = read_prompts(with_one)
    assert prompt.control is None and [note.code for note in notes] == ["prompts.unsupported-option"]
    with refused("prompts.no-control-image"):
        read_prompts(without, control=True)
    (prompt,), notes = read_prompts(with_one, control=True)
    prompt = replace(prompt, width=64, height=32)
    with refused("prompts.bad-control-image"):
        control_image(prompt)
    Image.new("RGB", (100, 100), (255, 0, 51)).save(tmp_path / "a.png")
    found = control_image(prompt)
    assert not notes and found.shape == (3, 32, 64) and found[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])


def test_a_weight_that_is_no_number_is_an_error_in_both_texts():
    assert read_prompts(SampleSettings(sample_prompts=["a (red:1.2) fox --n (dull:0.5)"]))[1] == []
    for line in ("a (red:1.2.3) fox", "a fox --n (dull:..)"):
        with refused("prompts.bad-weight"):
            read_prompts(SampleSettings(sample_prompts=[line]))
        assert read_prompts(SampleSettings(sample_prompts=[line], prompt_weights=False))[1] == []
    with refused("prompts.bad-weight", "samples.negative_prompt"):
        read_prompts(SampleSettings(negative_prompt="(bad:1.2.)"))


def test_edits_are_read_at_their_steps_and_their_weights_checked():
    line = "(a:[1.2:1.2.3:2])"
    with refused("prompts.bad-weight"):
        read_prompts(SampleSettings(sample_prompts=[line], sample_steps=5))
    assert read_prompts(SampleSettings(sample_prompts=[line], sample_steps=2))[1] == []
    asked = []

    def encode(texts):
        asked.append(list(texts))
        return TextStates(torch.tensor([[float(sum(map(ord, text)))] for text in texts])[..., None])

    prompt = SamplePrompt("[a|b] [c:2]", "[d::1]", steps=4)
    states = TrainedPromptTexts(encode).states(prompt)
    assert sorted(asked[0]) == ["", "a ", "a c", "b ", "b c", "d"]
    for done, both in enumerate([("a ", "d"), ("b ", ""), ("a c", ""), ("b c", "")]):
        now = states.at(done)
        assert [now.positive.context.item(), now.negative.context.item()] == [sum(map(ord, text)) for text in both]
    TrainedPromptTexts(encode, edited=False).states(prompt)
    assert asked[1] == ["[a|b] [c:2]", "[d::1]"]


def test_everything_left_open_comes_from_the_settings_and_seeds_count_up():
    settings = SampleSettings(negative_prompt="bad", seed=5, sample_steps=9, guidance_scale=3.0, sample_sampler="lms")
    first, second, third = filled(
        [SamplePrompt("a"), SamplePrompt("b", seed=77, negative="", width=100), SamplePrompt("c")], settings, (650, 512)
    )
    assert first == SamplePrompt("a", "bad", 648, 512, 5, 9, 3.0, "lms")
    assert (second.seed, second.negative, second.width) == (77, "", 96)
    assert third.seed == 7, "a prompt's seed does not hang on those of the others"


def read(path, text):
    path.write_text(text, encoding="utf-8")
    return read_prompts(SampleSettings(sample_prompts=["typed --d 3"], sample_prompts_file=str(path)))


@pytest.mark.parametrize(
    ("name", "text"), [("p.txt", "# a\n\n"), ("p.json", "[]"), ("p.toml", "[prompt]\nsubset = []")]
)
def test_a_file_without_prompts_is_named(tmp_path, name, text):
    found, notes = read(tmp_path / name, text)
    assert [each.prompt for each in found] == ["typed"] and [each.code for each in notes] == ["prompts.none"]


def test_text_files_hold_a_prompt_a_line(tmp_path):
    found, notes = read(tmp_path / "p.txt", "\ufeffa fox --d 1\n\n# no\n狐 --n x\n")
    assert [(each.prompt, each.seed, each.negative) for each in found] == [
        ("typed", 3, None),
        ("a fox", 1, None),
        ("狐", None, "x"),
    ]
    assert not notes


def test_toml_files_hold_defaults_and_subsets(tmp_path):
    text = """
[prompt]
width = 768
scale = 7
negative_prompt = "bad"
sample_sampler = "k_lms"
[[prompt.subset]]
prompt = "a --n is part of the text"
seed = 4
[[prompt.subset]]
prompt = "b"
width = 512
sample_steps = 12
controlnet_image = "x.png"
"""
    found, notes = read(tmp_path / "p.toml", text)
    assert found[1] == SamplePrompt("a --n is part of the text", "bad", 768, None, 4, None, 7.0, "lms")
    assert found[2] == SamplePrompt("b", "bad", 512, None, None, 12, 7.0, "lms")
    assert [note.code for note in notes] == ["prompts.option-in-table", "prompts.unsupported-option"]
    assert "ControlNet" in notes[1].what


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a fox -w 512 -h 640", ["-w 512", "-h 640"]),
        ("a fox --n blurry \u2014s 20", ["\u2014s 20"]),
        ("a t-s 5, 2-w, -n, semi-w 5 --w 512 --d -1", []),
    ],
)
def test_options_with_one_dash_are_named_as_text(line, words):
    found, notes = parsed(line)
    assert [note.code for note in notes] == ["prompts.one-dash"] * len(words)
    assert all(f"'{each}'" in note.what for each, note in zip(words, notes, strict=True))
    assert found.prompt.startswith(line.partition(" --")[0])


def test_json_files_hold_texts_and_tables(tmp_path):
    entries = ["a --d 2", {"prompt": "b", "scale": 1.5, "height": 640, "mood": "x"}]
    found, notes = read(tmp_path / "p.json", json.dumps(entries))
    assert found[1:] == [SamplePrompt("a", seed=2), SamplePrompt("b", height=640, guidance=1.5)]
    assert [note.code for note in notes] == ["prompts.unknown-option"] and "mood" in notes[0].what


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("p.yaml", "a", "prompts.unknown-format"),
        ("p.toml", "a = ", "file.not-toml"),
        ("p.toml", "[prompt]\nprompt = 'a'", "prompts.none"),
        ("p.json", "{", "file.not-json"),
        ("p.json", "{}", "prompts.none"),
        ("p.json", "[3]", "prompts.not-a-prompt"),
        ("p.json", '[{"width": 3}]', "prompts.no-text"),
        ("p.json", '[{"prompt": "a", "width": "wide"}]', "prompts.bad-number"),
        ("p.json", '[{"prompt": "a", "seed": true}]', "prompts.bad-number"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, name, text, code):
    with refused(code) as caught:
        read(tmp_path / name, text)
    assert all(problem.fix for problem in caught.value.problems)


def test_a_missing_file_and_one_in_another_encoding_are_said(tmp_path):
    with refused("file.missing"):
        read_prompts(SampleSettings(sample_prompts_file=str(tmp_path / "none.txt")))
    settings = SampleSettings(sample_prompts_file=str(tmp_path / "a.txt"))
    for encoding in ("cp1252", "utf-16-le"):  # without a mark, a zero follows each letter
        (tmp_path / "a.txt").write_text("a café", encoding)
        with refused("file.not-utf8"):
            read_prompts(settings)
    (tmp_path / "a.txt").write_text("a café", "utf-16")
    assert [each.prompt for each in read_prompts(settings)[0]] == ["a café"]
