"""From what is asked to the images that are made: options, wildcards, seeds, files, and what is refused before anything loads."""

from __future__ import annotations

import json
import time
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from core.generation.model.wildcard_files import wildcard_lines, wildcard_names
from core.generation.plan.checks import depth_problems, problems_of
from core.generation.plan.plan import check_task, plan_of
from core.generation.plan.requests import requests_of
from core.generation.plan.stages import hires_sizes, reading_of, stages_of
from core.generation.prompt.analysis import Names, findings_of
from core.generation.prompt.options import OPTIONS, _integer, _sampler, _seeds
from core.generation.prompt.wildcards import WildcardError, no_files, problems_in, variants
from core.generation.sample.noise import ImageNoise
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.base import declared
from core.settings.check import build
from core.settings.generation.prompts import PromptSettings
from core.settings.job import JOBS, GenerateJob
from tests.refusals import refused

VECTORS = Path(__file__).parents[2] / "vectors"
WILDCARDS = json.loads((VECTORS / "wildcards.json").read_text("utf-8"))["cases"]
PLAIN = [case for case in WILDCARDS if "{" in case["prompt"]]


def job_of(prompt="a fox", **groups):
    generate = {"prompt": prompt, "seed": 1, **groups.pop("generate", {})}
    return build(GenerateJob, {"generate": generate, **groups})


def asked(job, files=no_files):
    found, notes = requests_of(job, files)
    return found, [note.code for note in notes]


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: f"{case['prompt']} {case['images_per_prompt']}")
def test_recorded_wildcards(case):
    if "error" in case:  # sd-scripts crashes; here it is a sentence
        assert "9 of 2" in problems_in(case["prompt"])[0][2]
        return
    count, drawn = case["images_per_prompt"], Random(case["seed_random"])
    seeds = (case["seeds"] + [drawn.randint(0, 2**32 - 1) for _ in range(count)])[:count]
    found = variants(case["prompt"], seeds)
    if "{e$$" in case["prompt"]:  # each combination once, where sd-scripts repeats all
        assert found == list(zip(case["prompts"], case["seeds_out"], strict=True))[: len(found)]
        return
    assert found == list(zip(case["prompts"], case["seeds_out"], strict=True))


def test_an_option_holds_for_its_own_line_only(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("cat --w 768 --n dog, ugly --d 1,2 --s 7\n# a comment\n\na hat --dsd1 2 --t 0.3\nplain\n", "utf-8")
    found, codes = asked(job_of(prompts={"from_file": str(file)}, generate={"count": 3}))
    assert codes == ["prompts.idle-option"] and len(found) == 9  # --t without an initial image
    first = [each.job.generate for each in found[:3]]
    assert [each.seed for each in first] == [1, 2, 2]
    assert {(each.width, each.negative_prompt, each.steps, each.prompt) for each in first} == {
        (768, "dog, ugly", 7, "cat")
    }
    assert found[3].job.deep_shrink.ds_depth_1 == 2 and found[3].job.image_to_image.strength == 0.3
    assert found[6].job.deep_shrink.ds_depth_1 is None and found[6].job.generate.width is None
    assert [each.job.generate.seed for each in found[3:]] == [1, 2, 3, 4, 5, 6], "counted up from the job's"


def test_a_file_of_a1111s_script_for_prompts_is_read(tmp_path):
    file = tmp_path / "prompts.txt"
    options = '--negative_prompt "bad, hat" --seed 7 --steps 3 --cfg_scale 5.5 --sampler_name "Euler a" --width 64 --height 72'
    lines = [
        f'--prompt "a fox, red" {options}',
        "--prompt it's a fox --batch_size 2",
        '--steps 5 --sampler_name "DPM++ 2M Karras" --prompt "a cat"',
    ]
    file.write_text("\n".join(lines), "utf-8")
    found, codes = asked(job_of(prompts={"from_file": str(file)}))
    made = [each.job.generate for each in found]
    assert codes == ["prompts.unknown-option"]
    assert [(each.prompt, each.steps) for each in made[1:]] == [("it's a fox", 20), ("a cat", 5)]
    assert (made[0].prompt, made[0].negative_prompt, made[0].steps, made[0].guidance_scale, made[0].sampler) == (
        "a fox, red",
        "bad, hat",
        3,
        5.5,
        "euler_a",
    )
    assert (found[0].seed, made[0].width, made[0].height) == (7, 64, 72)
    assert [(each.sampler, each.schedule_type) for each in made[::2]] == [("euler_a", "own"), ("dpmsolver++", "karras")]


def test_a_file_of_comments_is_named(tmp_path):
    (tmp_path / "later.txt").write_text("# a fox\n\n", "utf-8")
    with refused("prompts.none", "later.txt"):
        asked(job_of(prompts={"from_file": str(tmp_path / "later.txt")}))


def test_strengths_of_a_prompt_are_those_of_the_loras_in_their_order():
    loras = [{"file": "a", "strength": 0.7, "text_encoder_strength": 0.1}, {"file": "b"}, {"file": "c"}]
    (found,) = asked(job_of("x --am 0.5,-0.3", generate={"loras": loras}))[0]
    assert [(use.strength, use.text_encoder_strength) for use in found.job.generate.loras] == [
        (0.5, None),
        (-0.3, None),
        (-0.3, None),
    ]
    merged = {"loras": loras, "network_merge_n_models": 1}
    (found,) = asked(job_of("x --am 0.5", generate=merged))[0]
    assert [use.strength for use in found.job.generate.loras] == [0.7, 0.5, 0.5]


def test_an_unknown_switch_is_advice_and_never_lost_text():
    (found,), codes = asked(job_of("a fox --foo bar --d 5 --zz 3"))
    assert found.job.generate.prompt == "a fox --foo bar" and found.seed == 5
    assert codes == ["prompts.unknown-option"] * 2


def test_what_a_request_says_makes_it_again_whatever_its_words_are():
    (found,), _ = asked(job_of(r"a \{red\} {fox|fox} --n x --d 7"))
    assert found.job.generate.prompt == "a {red} fox"
    (again,), _ = asked(found.job)
    assert again == found


def test_every_option_keeps_to_the_limits_of_its_setting_so_that_the_image_can_be_read_again():
    for switch, option in OPTIONS.items():
        for value in ("-1", "0", "60", "99999", "500.5", f"{2**64}") if option.read not in (str, _sampler) else ("x",):
            if (option.read in (_integer, _seeds) and "." in value) or (option.read is _seeds and value == "-1"):
                continue
            (found,), _ = asked(job_of(f"x --{switch} {value}", generate={"loras": [{"file": "a"}]}))
            GenerateJob.model_validate(found.job.model_dump(mode="json"))
    (found,), codes = asked(job_of("x --l 60 --nl 60 --w 500"))
    kept = found.job.generate
    assert (kept.guidance_scale, kept.negative_scale, kept.width) == (60, 60, 496) and codes == ["prompts.out-of-range"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--t 0.3", ["prompts.idle-option"]),
        ("--vs 5 --vst 0", ["prompts.idle-option"]),
        ("--vs 5 --vst 0.5", []),
        ("--dsr 0.3", []),  # turns Deep Shrink on
        ("--g 2", ["prompts.unsupported-option"]),
    ],
)
def test_options_without_effect_are_told_once(options, said):
    assert asked(job_of(f"a fox {options}", generate={"count": 3}))[1] == said


def test_seeds_of_64_bits_are_kept_in_settings_options_and_when_counted_up():
    seed = 2**64 - 1
    (found,) = asked(job_of(f"x --d {seed}"))[0]
    assert found.seed == seed and ImageNoise(seed, (1, 2, 2), 1).start.shape == (1, 2, 2)
    assert [each.seed for each in asked(job_of(generate={"seed": seed, "count": 2}))[0]] == [seed, 0]
    declared_seeds = {
        entry.path: entry.bounds for job in JOBS.values() for entry in declared(job) if "seed" in entry.name
    }
    ranged = {path: bounds for path, bounds in declared_seeds.items() if "le" in bounds}
    assert len(ranged) >= 8 and min(bounds["le"] for bounds in ranged.values()) >= 2**63 - 1


def test_an_image_made_as_sd_scripts_makes_it_is_repeated_by_its_own_settings():
    job = job_of("a {red|blue} fox", model={"compatibility": "sd-scripts-0.10"}, generate={"count": 3, "seed": 7})
    found, _ = asked(job)
    drawn = Random(7)
    assert [each.seed for each in found] == [drawn.randint(0, 2**32 - 1) for _ in range(3)]
    assert [asked(each.job)[0] for each in found] == [[each] for each in found]


def test_repetitions_shuffles_and_one_seed_for_all(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"p{number}" for number in range(9)), "utf-8")
    groups = {"from_file": str(file), "n_iter": 2, "shuffle_prompts": True, "iter_same_seed": True}
    found, _ = asked(job_of(prompts=groups))
    order = [each.job.generate.prompt for each in found]
    assert sorted(order[:9]) == sorted(order[9:]) != order[:9] and order[:9] != order[9:]
    assert {each.seed for each in found[:9]} == {1} and {each.seed for each in found[9:]} == {2}


def test_wildcard_files_are_read_below_their_folder_only(tmp_path):
    space = Workspace(tmp_path / "outputs", tmp_path / "models")
    folder = space.models / "wildcards"
    (folder / "animals").mkdir(parents=True)
    (folder / "color.txt").write_text("red\n# no color\n\nblue\n", "utf-8")
    (folder / "animals" / "small.txt").write_text("mouse", "utf-8")
    (folder / "loop.txt").write_text("a __loop__", "utf-8")
    (tmp_path / "models" / "secret.txt").write_text("secret", "utf-8")
    read = lambda name: wildcard_lines(space, name)  # noqa: E731
    assert read("color") == ["red", "blue"] and read("*/*") == ["mouse"]
    (folder / "cafe\u0301.txt").write_text("latte", "utf-8")  # as macOS writes it
    assert read("caf\u00e9") == read("caf\u00e9*") == ["latte"]
    found, _ = asked(job_of("__color__ __animals/small__", generate={"count": 8}), read)
    assert {each.job.generate.prompt for each in found} == {"red mouse", "blue mouse"}
    (folder / "_odd.txt").write_text("one", "utf-8")
    (folder / "hair (long).txt").write_text("braid", "utf-8")
    assert asked(job_of("___odd__ __hair*__"), read)[0][0].job.generate.prompt == "one braid"
    assert "hair (long)" not in wildcard_names(space) and "_odd" in wildcard_names(space)
    for name, words in (("colour", "did you mean 'color'"), ("../secret", "no wildcard")):
        with pytest.raises(WildcardError, match=words):
            read(name)
    for prompt, words in (
        ("__loop__", "contains itself"),
        ("{9$$a|b}", "9 of 2"),
        ("{e$$" + "0|1|" * 5 + "} " * 3, ""),
    ):
        if words:
            with pytest.raises(ProblemsError) as error:
                asked(job_of(prompt), read)
            assert [problem.code for problem in error.value.problems] == ["prompt.bad-wildcard"]
            assert words in error.value.problems[0].what
    many = " ".join(["{e$$" + "|".join(map(str, range(100))) + "}"] * 5)  # 10^10 combinations
    assert "10,000,000,000" in problems_in(many)[0][2]


YAML = """
clothes:
  hats: [2::fedora, {text: cap, weight: 3}, {content: beret}, 7, "", ~, "__clothes/odd__"]
  deep: {colors: [red]}
  odd: [{red|blue}]
  heavy: [{text: cap, weight: much}]
  none: []
"""


def test_lists_in_yaml_files_are_wildcards_as_in_dynamic_prompts_and_impact_pack(tmp_path):
    space = Workspace(tmp_path / "outputs", tmp_path / "models")
    (folder := space.models / "wildcards" / "pack").mkdir(parents=True)
    read = partial(wildcard_lines, space)
    (folder / "a.yaml").write_text(YAML, "utf-8")
    (folder / "trees.yml").write_text("- oak", "utf-8")
    assert read("clothes/hats") == ["2::fedora", "3::cap", "beret", "7", "__clothes/odd__"]
    assert read("clothes/deep/colors") == read("*/deep/**") == ["red"] and read("trees") == ["oak"]
    assert wildcard_names(space) == [
        *(f"clothes/{name}" for name in ("deep/colors", "hats", "heavy", "none", "odd")),
        "trees",
    ]
    (folder.parent / "trees.txt").write_text("elm", "utf-8")
    assert read("trees") == read("tr*") == ["elm"]
    (folder / "b.yaml").write_text("x: [", "utf-8")
    (folder / "c.yaml").write_bytes(b"\xff")
    for name, words in (
        ("clothes/odd", "quotes"),
        ("clothes/none", "empty"),
        ("clothes", "mean"),
        ("q", "'b.yaml' is not"),
    ):
        with pytest.raises(WildcardError, match=words):
            read(name)
    (folder / "d.txt").write_text("red", "utf-16-le")
    with pytest.raises(WildcardError, match="UTF-8"):
        read("pack/d")
    (folder / "b.yaml").write_text("hues:\n- red\nhues:\n- blue\nsizes: [big]", "utf-8")
    with pytest.raises(WildcardError, match=r"'hues' in 'b\.yaml' twice"):
        read("hues")
    assert read("sizes") == ["big"]


def test_two_stars_in_a_wildcard_are_every_file_below(tmp_path):
    space = Workspace(tmp_path / "outputs", tmp_path / "models")
    folder = space.models / "wildcards"
    for name in ("x", "x/a", "x/deep/b", "x/deep/er/a", "y/a"):
        (folder / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(name, "utf-8")
    read = lambda name: wildcard_lines(space, name)  # noqa: E731
    assert read("x/**") == ["x/a", "x/deep/b", "x/deep/er/a"]
    assert read("**/a") == ["x/a", "x/deep/er/a", "y/a"] and read("x/**/a") == ["x/a", "x/deep/er/a"]
    assert read("**") == read("**/**/**") == ["x", "x/a", "x/deep/b", "x/deep/er/a", "y/a"]
    assert read("*") == ["x"] and read("x/*") == ["x/a"] and read("x/de**/b") == ["x/deep/b"]
    long = ("__" + "**/" * 5000 + "a__", "__" + "a*" * 5000 + "__", "__" + "a" * 5000 + "__", "__a " * 20_000)
    for prompt in ("__x/**__", *long):
        begin = time.thread_time()
        findings_of(prompt, Names(read))
        assert time.thread_time() - begin < 2
    with pytest.raises(WildcardError):
        read("a" * 5000)


def test_variants_and_lines_have_weights_as_in_dynamic_prompts():
    def drawn(text, weighted=True):
        return Counter(words for words, _ in variants(text, range(2000), lambda name: ["3::red", "blue"], weighted))

    for text, share in (("{3::a|b}", 0.75), ("{0.5::a|b}", 1 / 3), ("{.5::a|1.5::b}", 0.25), ("{a|b}", 0.5)):
        assert set(drawn(text)) == {"a", "b"} and abs(drawn(text)["a"] / 2000 - share) < 0.05
    assert abs(drawn("__colors__")["red"] / 2000 - 0.75) < 0.05
    assert drawn("{0::a|b}").keys() == {"b"} and drawn("{2$$ and $$5::a|b|0::c}").keys() == {"a and b", "b and a"}
    assert [words for words, _ in variants("{e$$2::a|b}", [1])] == ["a", "b"]
    assert drawn("{3::a|b}", weighted=False).keys() == {"3::a", "b"}
    assert drawn("__colors__", weighted=False).keys() == {"3::red", "blue"}
    with pytest.raises(WildcardError):
        variants("{0::a|0::b}", [1])


@pytest.mark.parametrize("name", ["hair color", "髪色", "été/v1.5_a-b", "a b/c d"])
def test_names_of_wildcard_files_have_spaces_and_letters_of_any_alphabet(name):
    assert variants(f"a __{name}__ fox, __{name}__", [1], lambda asked: [f"<{asked}>"]) == [
        (f"a <{name}> fox, <{name}>", 1)
    ]
    assert problems_in(f"__{name}__")[0][:2] == (0, len(name) + 4)
    assert not problems_in(f"snake__ {name} __case, __{name}, x__")


def test_two_underscores_within_a_loras_name_are_no_wildcard():
    name, line = "<lora:a__x__c___y__2:1>", "<lyco:B__x__c:{1|1}>"
    assert variants(f"__l__ {name} {{{name}|{name}}}", [1], lambda asked: [{"x": "wrong", "l": line}[asked]]) == [
        (f"<lyco:B__x__c:1> {name} {name}", 1)
    ]
    assert not problems_in(name)
    drawn = variants("<lora:__x__:1> <lora:a/__x__:1> <lora:v__x__:1> un__x__ed", [1], lambda asked: ["ink"])
    assert drawn == [("<lora:ink:1> <lora:a/ink:1> <lora:vink:1> uninked", 1)]


def test_two_underscores_within_an_embeddings_name_are_no_wildcard():
    names = {"a__x__c": 1, "__x__": 1}
    drawn = variants("(A__x__c:1.1) __x__, a__x__cd", [1], lambda asked: ["ink"], embeddings=names)
    assert drawn == [("(A__x__c:1.1) ink, ainkcd", 1)]
    (request,), notes = requests_of(job_of("a__x__c", generate={"negative_prompt": "a__x__c"}), no_files, names)
    assert (request.job.generate.prompt, request.job.generate.negative_prompt, notes) == ("a__x__c", "a__x__c", [])


def test_variants_of_the_negative_prompt_and_of_the_detailers_prompts_are_chosen_by_the_images_seed():
    asked_for = {"count": 30, "negative_prompt": "{blur|noise}, __x__ --w 64 \\{"}
    detailer = {"ad_model": "face", "ad_prompt": "{old|young} face", "ad_negative_prompt": "__x__"}
    groups = {"generate": asked_for, "detailer": detailer}
    found, _ = asked(job_of(**groups), lambda name: ["red"])
    texts = {(each.job.generate.negative_prompt, each.job.detailer.ad_prompt) for each in found}
    assert {negative for negative, _ in texts} == {"blur, red --w 64 {", "noise, red --w 64 {"}
    assert {prompt for _, prompt in texts} == {"old face", "young face"}
    assert {each.job.detailer.ad_negative_prompt for each in found} == {"red"}
    again = asked(job_of(generate=asked_for | {"count": 1, "seed": found[9].seed}), lambda name: ["red"])[0][0]
    assert again.job.generate.negative_prompt == found[9].job.generate.negative_prompt
    kept = asked(job_of(**groups, prompts={"dynamic_prompts": False}))[0][0].job
    assert (kept.generate.negative_prompt, kept.detailer.ad_prompt) == (
        asked_for["negative_prompt"],
        "{old|young} face",
    )
    found, _ = asked(job_of("a --n {x|y}", generate={"negative_prompt": "__x__"}), lambda name: ["red"])
    assert found[0].job.generate.negative_prompt in ("x", "y")
    for group, setting, texts in (("generate", "negative_prompt", {}), ("detailer", "ad_prompt", {"ad_model": "face"})):
        with refused("prompt.bad-wildcard", f"{group}.{setting}"):
            asked(job_of(**{group: texts | {setting: "__none__"}}))
        found, codes = asked(job_of(**{group: texts | {setting: "{e$$a|b}"}}))
        assert getattr(getattr(found[0].job, group), setting) == "a" and codes == ["prompt.first-combination"]


def test_several_lines_of_a_file_are_different_ones():
    def files(name):
        return ["a", "b", "0::never", "c"]

    drawn = [words for words, _ in variants("{2$$ and $$__x__}", range(60), files)]
    assert {tuple(sorted(words.split(" and "))) for words in drawn} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert {len(words.split(", ")) for words, _ in variants("{1-3$$__x__}", range(60), files)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("size", "scale", "sizes"),
    [
        ((1024, 1152), 0.5, ((512, 576), (1024, 1152))),
        ((832, 1216), 0.5, ((416, 608), (832, 1216))),
        ((1000, 1000), 0.5, ((480, 480), (1000, 1000))),
        ((512, 768), 2, ((512, 768), (1024, 1536))),
        ((512, 512), 1.5, ((512, 512), (768, 768))),
    ],
)
def test_sizes_of_hires_fix(size, scale, sizes):
    assert hires_sizes(size, scale) == sizes


def test_hires_fix_is_two_stages_of_which_the_second_has_the_next_seed():
    job = job_of(generate={"width": 256, "height": 256, "steps": 9}, hires={"highres_fix_scale": 0.5})
    first, second = stages_of(job)
    assert (first.size, first.steps, first.run, first.begins, first.seed_offset) == ((128, 128), 9, None, "noise", 0)
    assert (second.size, second.steps, second.run, second.begins, second.seed_offset) == (
        (256, 256),
        11,
        9,
        "previous image",
        1,
    )


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize(
    ("asked", "compatibility", "steps"),
    [(None, "none", 9), (28, "none", 28), (None, "sd-scripts-0.10", 28), (12, "sd-scripts-0.10", 12)],
)
def test_the_first_stage_of_hires_fix_has_the_sampling_steps_or_its_own_or_sd_scripts_28(
    scale, asked, compatibility, steps
):
    hires = {"highres_fix_scale": scale} | ({} if asked is None else {"highres_fix_steps": asked})
    size = {"width": 256, "height": 256, "steps": 9}
    job = job_of(generate=size, hires=hires, model={"compatibility": compatibility})
    assert [stage.steps for stage in stages_of(job)] == [steps, 9 if compatibility != "none" else 11]


def test_hires_steps_are_those_of_the_second_stage_as_in_a1111():
    hires = {"highres_fix_scale": 2.0, "hires_steps": 4}
    job = job_of(generate={"width": 256, "height": 256, "steps": 9}, hires=hires, image_to_image={"strength": 0.5})
    assert [(stage.steps, stage.run) for stage in stages_of(job)] == [(9, None), (8, 4)]


@pytest.mark.parametrize(
    ("skip", "compatibility", "layer"),
    [(None, "none", None), (3, "none", 3), (2, "none", 2), (1, "none", 2), (1, "sd-scripts-0.10", 1)],
)
def test_clip_skip_chooses_the_layer_of_sdxl_and_1_is_its_usual_one_as_in_forge(skip, compatibility, layer):
    job = job_of(model={"clip_skip": skip, "compatibility": compatibility})
    assert reading_of(job, "sdxl").layer == layer
    assert reading_of(job, "sd1").layer is None


def test_with_a_variation_strength_its_seed_counts_up_and_the_seed_stays():
    generate = {"count": 3, "variation_seed": 2**64 - 2, "variation_strength": 0.4}
    found, _ = asked(job_of(generate=generate))
    assert [each.seed for each in found] == [1, 1, 1]
    assert [each.variation.seed for each in found] == [2**64 - 2, 2**64 - 1, 0]
    again, _ = asked(found[1].job)
    assert [(each.seed, each.variation) for each in again] == [(1, found[1].variation)]
    assert [each.variation for each in asked(job_of(generate={"variation_seed": 5}))[0]] == [None]
    random, _ = asked(job_of(generate={"variation_strength": 0.4}))
    assert random[0].job.generate.variation_seed is not None


def test_a_line_may_have_a_variation_of_its_own(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("cat --d 7 --vs 9 --vst 0.25\nplain\n", "utf-8")
    found, codes = asked(job_of(prompts={"from_file": str(file)}))
    assert not codes and [each.seed for each in found] == [7, 1]
    assert [each.variation and (each.variation.seed, each.variation.strength) for each in found] == [(9, 0.25), None]


@pytest.mark.parametrize(
    ("groups", "code"),
    [
        ({"image_to_image": {"image_path": "x.png", "strength": 0}}, "generate.no-steps"),
        ({"image_to_image": {"mask_path": "x.png"}}, "generate.mask-alone"),
        ({"gradual_latent": {"gradual_latent_timesteps": 700}}, "generate.no-gradual-latent"),
        ({"gradual_latent": {"gradual_latent_unsharp_params": "3,x"}}, "generate.bad-unsharp"),
        ({"gradual_latent": {"gradual_latent_unsharp_params": "4,1,1"}}, "generate.bad-unsharp"),
        ({"gradual_latent": {"gradual_latent_unsharp_params": "3,nan,0.5"}}, "generate.bad-unsharp"),
        ({"gradual_latent": {"gradual_latent_unsharp_params": "inf,1,1"}}, "generate.bad-unsharp"),
        ({"deep_shrink": {"ds_depth_1": 4}}, "generate.ds-depth"),
        ({"hires": {"highres_fix_scale": 1}}, "generate.hires-scale"),
        (
            {"hires": {"highres_fix_scale": 1.01}, "generate": {"width": 512, "height": 512}},
            "generate.hires-scale",
        ),
        ({"hires": {"highres_fix_scale": 2, "highres_fix_steps": 9, "hires_steps": 9}}, "generate.hires-steps"),
        ({"regions": {"region_map": "x.png"}}, "generate.no-regions"),
        ({"regions": {"region_map": "x.png"}, "generate": {"prompt": "a AND b :0.5"}}, "generate.region-weights"),
        ({"generate": {"guidance_scale": 1, "negative_scale": 2}}, "generate.no-guidance"),
        (
            {"image_to_image": {"image_path": "x.png"}, "start_noise": {"pyramid_noise_prob": 1}},
            "generate.seed-noise",
        ),
        ({"output": {"image_format": "webp"}, "generate": {"prompt": "a" * 21_000}}, "output.exif-limit"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_loads(groups, code):
    four = SimpleNamespace(input_blocks=lambda model: [None] * 4, make_empty=str, denoiser="unet")

    def codes(job):
        return [problem.code for problem in (*problems_of(job), *depth_problems([job], four))]

    assert code in codes(job_of(**groups)) and not codes(job_of())


def test_the_check_says_what_will_be_made(tmp_path):
    space = Workspace(tmp_path / "outputs", PROJECT / "models")
    model = {"base_model": str(PROJECT / "models" / "starter")}
    job = job_of("a {e$$red|blue} fox --w 256 --h 256", model=model, hires={"highres_fix_scale": 0.5})
    told = check_task(job, space)
    assert "2 images" in told and "128 x 128 from noise" in told and "256 x 256 from the image before" in told
    with refused("image.missing"):
        plan_of(job_of(model=model, image_to_image={"image_path": str(tmp_path / "none.png")}), space)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "damaged.png").write_bytes(b"no image either")
    with refused("image.unreadable") as error:
        folder = {"image_path": str(tmp_path)}
        plan_of(job_of(model=model, image_to_image=folder, generate={"count": 5}), space)
    assert len(error.value.problems) == 2, "each damaged image of a folder once"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(text) -> the name of a module with it, which nobody allowed."""

    def write(text):
        name = f"prompts_of_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return write


PROMPTS = """
def prompts(job):
    for color in job.prompts.prompter_module_args.split():
        yield f"a {color} fox --w 128"
"""
PROMPTER = """
def get_prompter(args, pipe, networks):
    words = [f"{args.prompter_module_args} {args.W}", f"{args.images_per_prompt} --s 3"]
    def prompter(args, pipe, seed_random, iter_seed, prompt_index, global_step):
        return words[prompt_index] if prompt_index < len(words) else None
    return prompter
"""


def test_a_module_that_the_owner_allowed_makes_prompts(module, monkeypatch):
    name = module(PROMPTS)
    job = job_of(prompts={"from_module": name, "prompter_module_args": "red blue", "n_iter": 2})
    with refused("module.not-allowed"):
        asked(job)
    monkeypatch.setattr("core.generation.prompt.files.allowed_modules", lambda: {name})
    found, _ = asked(job)
    words = [(one.job.generate.prompt, one.job.generate.width) for one in found]
    assert words == [("a red fox", 128), ("a blue fox", 128)] * 2
    assert found[0].job.prompts.from_module is None, "an image says its own prompt"


def test_a_module_for_sd_scripts_makes_prompts_too(module, monkeypatch):
    name = module(PROMPTER)
    monkeypatch.setattr("core.generation.prompt.files.allowed_modules", lambda: {name})
    groups = {"from_module": name, "prompter_module_args": "a fox"}
    found, _ = asked(job_of(prompts=groups, generate={"width": 192, "count": 2}))
    assert [one.job.generate.prompt for one in found] == ["a fox 192", "a fox 192", "2", "2"]
    assert found[2].job.generate.steps == 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "prompts.module-empty"),
        ("def prompts(job): return [1 / 0]", "prompts.module-failed"),
        ("def prompts(job): return [3]", "prompts.module-failed"),
        ("def prompts(job): return ['# nothing']", "prompts.none"),
        ("def prompts(job):\n    while True: yield 'a'", "prompts.too-many"),
        ("import not_here_at_all", "module.import"),
    ],
)
def test_what_is_wrong_with_a_module_is_said(text, code, module, monkeypatch):
    name = module(text)
    monkeypatch.setattr("core.generation.prompt.files.allowed_modules", lambda: {name})
    with refused(code):
        asked(job_of(prompts={"from_module": name}))


def test_a_module_is_named_as_python_does_and_alone(module):
    with refused("prompts.module-name"):
        asked(job_of(prompts={"from_module": "folder/mine.py"}))
    with refused("prompts.two-sources"):
        asked(job_of(prompts={"from_module": "mine", "from_file": "x.txt"}))


def test_everything_wrong_with_the_model_is_said_at_once(tmp_path):
    space = Workspace(tmp_path / "outputs", PROJECT / "models")
    job = job_of(
        "a fox",
        model={"base_model": str(PROJECT / "models" / "starter")},
        generate={"guidance": "pag"},
        pag={"pag_layers": "up.99"},
        hires={"highres_fix_scale": 2, "highres_fix_upscaler_file": "missing"},
    )
    with pytest.raises(ProblemsError) as refused:
        plan_of(job, space)
    assert set(refused.value.codes) == {"guidance.layers", "upscaler.not-found"}
    job = job.model_copy(update={"prompts": PromptSettings(from_module="mine", from_file="x.txt")})
    with pytest.raises(ProblemsError) as refused:
        plan_of(job, space)
    assert set(refused.value.codes) == {"prompts.two-sources", "guidance.layers", "upscaler.not-found"}
