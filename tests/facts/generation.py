"""What a generation is before anything is loaded: requests, stages, prompts, grids, and the texts in image files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random
from typing import Any

from core.families.prompt_weights import read_weights
from core.generation.grids.axes import axes_of, joined, read_values, setting_named, settings_of_axes, texts_of, title_of
from core.generation.grids.plan import expected_steps, grid_of
from core.generation.images.a1111 import a1111_parts, a1111_text, from_a1111_text
from core.generation.images.metadata import _from_chunk, _json_content
from core.generation.images.output import _file_stem
from core.generation.images.record import SAMPLERS, ImageRecord, names_of
from core.generation.model.sources import Hashes
from core.generation.plan.checks import problems_of
from core.generation.plan.initial import blur_of, size_from
from core.generation.plan.requests import requests_of
from core.generation.plan.stages import (
    described,
    hires_sizes,
    only_upscales,
    passes_of,
    reading_of,
    sampling_of,
    stages_of,
)
from core.generation.prompt import options, wildcards
from core.generation.prompt.analysis import Names, Parsing, findings_of
from core.generation.prompt.editing import Pass, at_steps, has_edits, malformed_edits, schedule
from core.generation.prompt.loras import split_tags, tag_of, use_of
from core.generation.prompt.runs import prompt_runs, tokens_read, weighted_parts, windows_of
from core.generation.prompt.sample_prompts import filled, read_prompts
from core.generation.prompt.styles import Style, styled_entry, styles_of_csv
from core.record.problems import ProblemsError, errors
from core.record.workspace import Workspace
from core.settings.base import declared, value_of
from core.settings.check import build
from core.settings.generation.high_resolution import unsharp_of
from core.settings.generation.regions import color_code
from core.settings.job import GenerateJob, GridJob
from core.settings.samples import SampleSettings
from tests.facts.jobs import changes
from tests.facts.store import Facts, digest, folder, plain, producer, refused

PROMPTS = (
    "a fox", "a (red:1.3) fox, [dim], ((bright))", "a {red|blue} fox --n ugly --w 768 --d 1,2", "fox AND dog :0.5 AND (cat:1.1)",
    "a fox --s 7 --l 3.5 --nl 2 --ss euler_a --t 0.4", "a [cat:dog:0.4] on [a|b|c] BREAK den", "__animal__ in {2$$ and $$a|b|c}",
    "a fox <lora:ink:0.8> <lora:line:te=0.5:unet=1:lbw=1,0,1:step=2-8>", "a fox --dsd1 2 --glr 0.5 --f name --cn x.png --c words",
    "{e$$x|y} fox --vs 5 --vst 0.2 --am 0.5,1 --ow 512 --ct 8", "(unclosed [weights:1.2.3) fox __nothing__", "{3::red|1::blue} fox",
    "a fox --zz 3 --foo bar --d -1 --w 99999 --s x", "a \\{fox\\} (a:b) \\(x\\)", "[to:10] [from::0.5] [a:b:c] [[x]]",
)  # fmt: skip
FILES = {
    "animal": ["fox", "2::cat", "0::dog", "a __color__ hen"],
    "color": ["red", "blue"],
    "loop": ["__loop__"],
    "none": ["0::a"],
}
GROUPS = (
    "model", "generate", "prompts", "image_to_image", "hires", "deep_shrink", "gradual_latent", "refiner", "perceptual", "regions",
    "sizes", "start_noise", "apg", "cfg_zero", "pag", "skip_layer", "smoothed_energy",
)  # fmt: skip
OPENING: dict[str, tuple[Any, ...]] = {
    "model.compatibility": ("none", "none", "sd-scripts-0.10"),
    "generate.count": (1, 2, 3),
    "image_to_image.image_path": (None, None, "x.png"),
    "hires.highres_fix_scale": (None, None, 0.5, 1.5, 2.0),
    "refiner.refiner_checkpoint": (None, None, "refiner"),
    "generate.sampler": tuple(dict.fromkeys(SAMPLERS.values())),
    "generate.steps": (4, 10, 20, 25),
}
PLAIN = GenerateJob()


def lines_of(name: str) -> Sequence[str]:
    return FILES[name] if name in FILES else wildcards.no_files(name)


def random_job(name: str) -> GenerateJob | ProblemsError:
    """A job of random settings without files from which prompts are read; those that the check refuses are taken back."""
    draw = Random(name)
    fixed = {path: draw.choice(choices) for path, choices in OPENING.items()}
    fixed |= {"generate.prompt": draw.choice(PROMPTS), "generate.seed": draw.choice((0, 7, 2**64 - 1))}
    fixed |= {"generate.negative_prompt": draw.choice(("", "ugly", "(bad:1.4) [x]")), "generate.variation_seed": 3}
    fixed |= {"prompts.from_file": None, "prompts.from_module": None, "prompts.styles": []}
    fixed |= {
        "generate.loras": draw.choice(
            ([], [{"file": "a", "strength": 0.5}, {"file": "b", "enabled": False}, {"file": "c"}])
        )
    }
    values = changes(GenerateJob, name, draw.choice((3, 8, 16)), GROUPS, fixed)
    first: ProblemsError | None = None
    for _ in range(3):
        try:
            return build(GenerateJob, values)
        except ProblemsError as error:
            first = first or error
            for problem in error.problems:
                group, _, setting = problem.where.partition(".")
                values.get(group, {}).pop(setting.partition(".")[0], None)
    assert first is not None
    return first


def told(job: GenerateJob, base: GenerateJob = PLAIN) -> dict[str, Any]:
    """The settings that differ, by path."""
    pairs = ((entry.path, value_of(job, entry.path), value_of(base, entry.path)) for entry in declared(GenerateJob))
    return {path: plain(value) for path, value, usual in pairs if value != usual}


@producer
def requests() -> Facts:
    """Images of random jobs: their settings, stages, sampling, and problems of both."""
    for number in range(120):
        job = random_job(f"request {number}")
        if isinstance(job, ProblemsError):
            yield str(number), {"refused": job.problems}
            continue
        try:
            found, notes = requests_of(job, lines_of, {"emb": 3}, [Style("ink", "{prompt}, ink", "color")])
        except ProblemsError as error:
            yield str(number), {"refused": error.problems, "problems": list(problems_of(job))}
            continue
        first = found[0].job
        problems = list(problems_of(first))
        sized = first.with_settings(generate={"width": 512, "height": 768})
        yield (
            str(number),
            {
                "images": [[each.seed, each.name, each.variation, each.job.generate.prompt] for each in found[:4]]
                + [len(found)],
                "settings": told(first, job),
                "notes": notes,
                "problems": list(problems_of(first)),
                "stages": [_changed(stage) for stage in stages_of(sized)],
                "sampling": digest([_changed(sampling_of(sized, "v", family)) for family in ("sd1", "sdxl")]),
                "reading": [list(vars(reading_of(sized, family)).values()) for family in ("sd1", "sdxl")],
                "passes": passes_of(sized),
                "lines": len(list(described(sized))) if not errors(problems) else 0,
                "enlarges": only_upscales(sized),
            },
        )


def _changed(settings: Any) -> dict[str, Any]:
    usual = type(settings).__dataclass_fields__
    return {name: value for name, value in vars(settings).items() if value != usual[name].default}


@producer
def texts_in_images() -> Facts:
    """A1111's text and ours for random jobs, and what is read back of them."""
    hashes = Hashes("a" * 64, {"a.safetensors": "b" * 64}, {"w": "c" * 64})
    for number in range(60):
        job = random_job(f"text {number}")
        if isinstance(job, ProblemsError):
            continue
        job = job.with_settings(generate={"width": 512, "height": 640})
        text = a1111_text(job, hashes)
        last = text.rsplit("\n", 1)[-1]
        content = _from_chunk(_json_content(job, hashes))
        yield str(number), [_parts(last), _record(from_a1111_text(text)), content.job == job, content.hashes == hashes]
    for text in TEXTS:
        yield text, [a1111_parts(text), _record(from_a1111_text(text))]
    for text in ("", "{}", "[]", '{"format": 4}', '{"format": 3, "job": {}}', '{"format": 1, "job": {"generate": {"prompt": "x"}}}',
                 '{"format": 2, "job": {"generate": {"steps": 5}}}', '{"format": 2, "job": {"generate": {"steps": -5}}}'):  # fmt: skip
        yield f"ours {text}", _record(_from_chunk(text))
    names = [
        *SAMPLERS,
        "DPM++ 2M Karras",
        "k_euler",
        "dpmpp_2m_karras",
        "euler_k",
        "sample_heun",
        "dpmpp_sde_gpu",
        "unknown",
    ]
    yield "samplers", [names_of(name) for name in names]
    yield (
        "schedules",
        [names_of("euler", each) for each in ("native", "sgm_uniform", "kl_optimal", "karras", "ddim_uniform")],
    )


def _parts(text: str) -> list[str]:
    return [part if len(part) < 120 else plain(part) for part in text.split(", ") if not part.startswith("Version")]


def _record(found: ImageRecord) -> Any:
    if found.job is None:
        return ["none", bool(found.reason)]
    return [found.source, told(found.job), found.notes, {k: v for k, v in vars(found.hashes).items() if v}]


TEXTS = (
    "a fox\nNegative prompt: ugly\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x768, Model: a, Clip skip: 2",
    "a fox\nSteps: 8, Sampler: Euler a, Schedule type: SGM Uniform, CFG scale: 7.5, Seed: 5, Denoising strength: 0.4, Hires upscale: 2, "
    "Hires steps: 9, Hires upscaler: Latent, ENSD: 31337, Version: v1.9.0",
    "a fox\nSteps: 8, Sampler: DDIM, CFG scale: 3, Seed: -1, Hires resize: 1024x0, Size: 512x512, RNG: CPU, Emphasis: No norm",
    "a (fox:1.2) <lora:ink:2>\nSteps: 8, Sampler: Restart, CFG scale: 3, Seed: 2, Lora hashes: \"ink: 1234\", Mask blur: 9, Eta: 0.5",
    "a fox\nSteps: 8, Sampler: UniPC, CFG scale: 3, Seed: 2, VAE: x.pt, Token merging ratio: 0.5, Refiner: b [123], Refiner switch at: 0.8",
    "a fox Negative prompt: x Steps: 8, Sampler: Heun, CFG scale: 300, Seed: 2, Variation seed: 4, Variation seed strength: 0.3",
    "Steps: 20", "just words", "", '{"a": 1}', "a\nSteps: x, Sampler: Euler", "a\nSize: 512x512, Seed: 1, Foo: bar, CFG scale: 7",
    "a\nSteps: 8, ControlNet 0: \"Module: canny, Model: c [12345678], Weight: 0.5, Control Mode: Balanced, Guidance Start: 0.1\"",
    "a\nSteps: 8, Sampler: LCM, Schedule type: Karras, Zero Terminal SNR: True, Postprocess upscaler: x, Civitai resources: "
    '[{"type":"lora","weight":0.8,"modelName":"Ink"},{"type":"checkpoint","modelName":"M"}]',
)  # fmt: skip


ODD_PROMPTS = (
    "((( a )))", "[a:b:0.5:c]", "a:1.2)", "(a:1,2)", "(a:-0.5)", "(a:2000)", "\\\\(a)", "]x[", "a BREAK BREAK b", "xBREAKy", "AND a",
    "a AND  b:2", "[x:[y:z:2]:0.8]", "[a|[b|c]]", "[ : :3]", "[a:b:1.5]", "[(a:1.2):0.3]", "(x:)", ":", "<lora:x:1:2:3>", "<lora:>",
    "<lyco:y:-0.5>", "<lora:z:11>", "<lora:open", "embedding:emb x", "embb", "{a|b", "a}", "{9$$a|b}", "{1-2$$a|b}", "__loop__",
)  # fmt: skip


@producer
def prompts() -> Facts:
    """Weights, edits, windows, tags, variants and options of prompts."""
    for text in (*PROMPTS, *ODD_PROMPTS):
        yield (
            text,
            {
                "weights": read_weights(text)[0],
                "faults": [[fault.start, fault.end, fault.kind] for fault in read_weights(text)[1]],
                "parts": weighted_parts(text),
                "runs": prompt_runs(text) if "BREAK" in text else "",
                "windows": windows_of(
                    text, lambda words: 40 * len(words.split()), lambda words: read_weights(words)[0]
                ),
                "tokens": tokens_read([text], lambda words: 31 * len(words.split()), None, 150),
                "edits": [schedule(text, during) for during in (Pass(10), Pass(6, 10))] if has_edits(text) else "",
                "misses": malformed_edits(text),
                "tags": refused(split_tags, text) if "<" in text else "",
                "findings": [_finding(text, mode) for mode in MODES],
            },
        )
    yield "together", at_steps(["[a:b:0.5]", "x", "[c:3]"], Pass(8))
    for tag in (
        "<lora:a:0.5>",
        "<lora:a:te=1:unet=0.5:step=2->",
        "<lora:a:1:stop=6>",
        "<lora:a:0.2:start=3:lbw=MID>",
        "<lora:a:1:step=-5>",
    ):
        (found,) = split_tags(tag)[1]
        use = use_of(found, 10)
        yield tag, [str(found), told_item(use), str(tag_of(use, 20))]


MODES = (
    Parsing(True, True, False, "p", (Pass(10), Pass(5, 10))),
    Parsing(False, True, True, "n", ()),
    Parsing(False, False, False, "p", (Pass(10),)),
)


def _finding(text: str, mode: Parsing) -> list[Any]:
    names = Names(lines_of, embeddings={"emb": 3})
    return [[each.start, each.end, each.problem.code, each.problem.level] for each in findings_of(text, names, mode)]


def told_item(item: Any) -> dict[str, Any]:
    return {name: value for name, value in item.model_dump().items() if value != type(item).model_fields[name].default}


@producer
def variants() -> Facts:
    """What wildcards become for three seeds, and what is wrong with them."""
    texts = (
        "{a|b|c} {d|e}", "{2$$a|b|c}", "{1-2$$ and $$a|b|c}", "{e$$a|b} {x|y}", "{e$$2$$a|b|c}", "{3::a|b|0::c}", "{a|{b|c}}",
        "__animal__",
        "{2$$__animal__}", "{2-3$$, $$__color__|x}", "\\{a|b\\}", "{9$$a|b}", "{0$$a|b}", "__loop__", "__missing__", "__none__", "{a}",
        "{|}",
        "{0::a|0::b}", "{2::a|b|c} __color__", "{5-2$$a|b|c|d|e}", "{e$$1-2$$;$$a|b|c}", "plain", "{.5::a|1.5::b}",
    )  # fmt: skip
    for text in texts:
        for weighted in (True, False):
            found = refused(wildcards.variants, text, [1, 2, 3], lines_of, weighted)
            yield f"{text} {weighted}", found
        problems = [(start, end) for start, end, _ in wildcards.problems_in(text, lines_of)]
        yield text, [problems, wildcards.has_variants(text), wildcards.braces(text)]


@producer
def options_of_prompts() -> Facts:
    """Each option with usual, extreme and wrong values."""
    for switch, option in options.OPTIONS.items():
        rows = []
        for value in (
            "-1",
            "0",
            "1",
            "7.5",
            "63",
            "64",
            "500",
            "99999",
            "1e3",
            "none",
            "x",
            "1,2",
            "euler_a",
            "Euler a",
            "",
            "0.3,-0.2",
        ):
            notes: list[Any] = []
            line = options.read_line(f"a --{switch} {value}", notes, "p")
            rows.append([line.values, [note.code for note in notes], "" if line.text == "a" else line.text])
        yield f"{switch} {option.sets}", rows
    for line in (
        "a --n x --foo y --w 8",
        "--n x",
        "a --g 1 --d 1 , 2",
        "a--n b",
        "a --N x",
        "a --d 1 --d 2",
        "x --c a --b c",
        "x -- y",
    ):
        notes = []
        taken = options.take_seeds(line)
        parts = [[part.start, part.end, part.of, part.switch] for part in options.parts_of_line(line)]
        yield line, [taken, options.read_line(taken[0], notes, "p"), notes, parts]


@producer
def styles() -> Facts:
    """Prompts with styles, and styles of A1111's file."""
    chosen = [Style("a", "ink of {prompt}", "bad"), Style("b", "wide", "{prompt}, low"), Style("c")]
    for entry in (
        "a fox",
        "a fox --n ugly --w 5",
        "",
        {"prompt": "x", "negative_prompt": "y"},
        {"prompt": "x"},
        "a --n b --zz 1",
    ):
        yield str(entry), [styled_entry(entry, chosen), styled_entry(entry, chosen, options=False)]
    for text in (
        "name,prompt,negative_prompt\na,b,c\nd,,\n",
        "name,text\na,b",
        "x",
        "",
        '\ufeffname,prompt\na,"b,\nc"\n,d',
    ):
        yield f"csv {text}", refused(styles_of_csv, text)


@producer
def samples() -> Facts:
    """Sample prompts of a training with all values set."""
    typed = [text for text in PROMPTS if not any(part in text for part in ("(unclosed", "zz", "<lora", "--cn"))]
    for values in (
        {"sample_prompts": typed}, {"sample_prompts": [*PROMPTS]}, {"sample_prompts": typed, "prompt_weights": False, "seed": 2**64 - 1},
        {"sample_prompts": typed[:3], "negative_prompt": "(x:1.2.3)", "width": 504, "height": 104}, {"sample_prompts": ["", "# x", "a"]},
        {"sample_prompts": typed[:5], "sample_sampler": "dpmsolver++", "guidance_scale": 3, "sample_steps": 9, "negative_prompt": "ugly"},
    ):  # fmt: skip
        for control in (False, True):
            key = f"{digest(values)} {control}"
            settings = SampleSettings.model_validate(values)
            try:
                found, notes = read_prompts(settings, control)
            except ProblemsError as error:
                yield key, {"refused": error.problems}
                continue
            rows = [list(vars(each).values()) for each in filled(found, settings, size=(512, 768), guidance=7.0)]
            yield key, [rows, notes]


AXES = (
    ("steps", "1-5 (+2), 3"), ("CFG Scale", "1-10 [4]"), ("generate.sampler", "Euler a, ddim, k_lms"), ("size", "512x768, 64x64, 1x1"),
    ("prompt_sr", 'fox, "big, dog"'), ("lora", "none, a.safetensors, b"), ("lora_strength: a", "0-1 [3]"), ("lora_strength", "-11, 0.5"),
    ("generate.seed", "1-3"), ("Denoising", "0.1, 2"), ("generate.guidance", "classic, apg"), ("model.base_model", "x/y-1.5.ckpt"),
    ("generate.prompt", '"a fox --s 3", b'), ("control_net", "a, none"), ("control_weight", "0.1-0.3 (+0.1)"), ("nonsense", "1"),
    ("generate.prompt_weights", "on, off, maybe"), ("model.clip_skip", "none, 1-2"), ("generate.width", "64, 63"), ("steps", ""), ("", "5"),
    ("steps", "5-1"), ("generate.seed", "none"), ("steps", "1-5 (0)"), ("steps", "1-5 (-1)"), ("steps", "1-2000"),
    ("generate.embeddings", "none, w=a.pt; b.pt"),
)  # fmt: skip


@producer
def grids() -> Facts:
    """Axes by their texts, and the cells of random grids."""
    for name, text in AXES:
        setting = setting_named(name)
        title = "" if setting is None else title_of(setting)
        values = "" if setting is None else refused(read_values, setting, text)
        yield f"{name}: {text}", [setting, title, values]
    yield "settings", digest(list(settings_of_axes()))
    yield (
        "texts",
        [refused(texts_of, text) for text in ('a, "b, c"\nd', '"', ",,", 'a "b"', '"a""b"')]
        + [joined(["a", "b, c", 'd"'])],
    )
    with folder() as place:
        workspace = Workspace(place / "outputs", place / "models", place / "presets")
        for number in range(40):
            yield f"grid {number}", _grid(Random(f"grid {number}"), workspace)


def _grid(draw: Random, workspace: Workspace) -> Any:
    axes = dict(zip("xyz", draw.sample(AXES[:19], draw.choice((1, 2, 3)))))
    grid = {f"{letter}_axis": name for letter, (name, _) in axes.items()}
    grid |= {f"{letter}_values": text for letter, (_, text) in axes.items()}
    grid |= {f"vary_seeds_{letter}": draw.random() < 0.4 for letter in "xyz"}
    generate = {
        "prompt": draw.choice(("a fox", "a fox --s 4", "{a|b} fox", "{e$$a|b} fox", "big, dog")),
        "seed": 9,
        "variation_seed": 3,
    }
    generate["loras"] = draw.choice(([], [{"file": "a"}, {"file": "b", "strength": 0.3}]))
    generate["count"] = draw.choice((1, 2))
    job = build(GridJob, {"generate": generate, "grid": grid})
    try:
        found = grid_of(job, workspace)
        cells = [[*cell.position, told(cell.request.job, job)] for cell in found.cells]
        parts = [[len(part.cells), part.loads] for part in found.parts]
        same = [[*one, *other] for one, other in found.same.items()]
        steps = expected_steps(job, axes_of(job))
        return [
            grid,
            parts,
            same,
            found.notes,
            steps,
            len(cells),
            *cells[:3],
            digest(cells),
            digest(found.stored_axes({}, workspace)),
        ]
    except ProblemsError as error:
        return [grid, error.problems]


@producer
def numbers() -> Facts:
    """Sizes, blur, unsharp masks, color codes and file names."""
    sides = [(512, 512), (513, 770), (1000, 100), (3000, 2000)]
    yield "hires", [hires_sizes(size, scale) for size in sides for scale in (0.5, 0.33, 1.5, 2)]
    for values, compatibility in zip(({}, {"width": 512}, {"height": 640}, {"width": 512, "height": 512}, {}), "nnnns"):
        name = "none" if compatibility == "n" else "sd-scripts-0.10"
        job = build(GenerateJob, {"generate": values, "model": {"compatibility": name}})
        yield f"size {values} {name}", [size_from(job, size, step) for size in sides for step in (8, 64)]
    yield "blur", [blur_of(build(GenerateJob, {"image_to_image": values})) for values in BLURS]
    yield (
        "unsharp",
        [
            refused(unsharp_of, text)
            for text in (None, "3,0.5,0.5,1", "3,0.5,0.5,0", "4,1,1,1", "3,1", "x", "5,-1,0.2,1", "1,0,0,0", "")
        ],
    )
    now = time.struct_time((2024, 1, 2, 3, 4, 5, 1, 2, 0))
    for pattern in (
        "[date] [time]",
        "[seed]-[prompt]",
        "[model]_[sampler]_[steps]_[cfg]_[width]x[height]",
        "[number]",
        "[x]",
        "a/b:c",
        "con",
    ):
        job = build(
            GenerateJob, {"generate": {"prompt": "a (fox):/ <x>" * 9, "seed": 5}, "output": {"file_pattern": pattern}}
        )
        yield f"name {pattern}", [_file_stem(name, job, now, 7, "") for name in (None, "x/y.png", "a.b", "nul", "..")]
    for values in ({"sequential_file_name": True}, {"use_original_file_name": True}):
        job = build(GenerateJob, {"image_to_image": {"image_path": "d/e.webp"}, "output": values})
        yield f"name {values}", [_file_stem(name, job, now, 7, "2_") for name in (None, "x")]
    yield "colors", [color_code(number) for number in range(1, 9)]


BLURS: tuple[dict[str, Any], ...] = ({}, {"mask_blur": 0}, {"mask_blur": 9})
