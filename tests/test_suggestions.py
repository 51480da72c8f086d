"""Each name that a message suggests for a mistyped one is accepted: a table of what suggests names and what takes them."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from core.cli.options import JOB, commands, preset_path, split_options
from core.cli.page import run
from core.generation.grids.axes import _nearest as nearest_axis
from core.generation.grids.axes import read_values, setting_named, settings_of_axes
from core.generation.model.library import ambiguity_advice, find, find_all
from core.generation.model.wildcard_files import wildcard_lines
from core.generation.plan.checks import output_problems
from core.generation.prompt.analysis import Names, analyze
from core.generation.prompt.styles import Style, chosen_styles, write_styles
from core.generation.prompt.wildcards import WildcardError
from core.imports.projects.options import options_of, unknown
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.flags import read_flags
from core.settings.generation.output import OutputSettings
from core.settings.job import GenerateJob, TrainJob
from core.settings.optimization import optimizers, torch_curves
from core.setup import start

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
LORA = {f"{LAYER}.lora_down.weight": torch.zeros(4, 768), f"{LAYER}.lora_up.weight": torch.zeros(32, 4)}
CONTROL = {"controlnet_cond_embedding.conv_in.weight": torch.zeros(1)}


@pytest.fixture
def space(tmp_path):
    space = Workspace(outputs=tmp_path / "outputs", models=tmp_path / "models")
    run_folder = space.runs / "2026-01-31_hana" / "checkpoints"
    for path, tensors in {
        **{run_folder / f"hana_three-step{step:08}.safetensors": LORA for step in (50, 61, 75)},
        space.models / "loras" / "fox.v1.safetensors": LORA,
        space.models / "loras" / "owl.pt.safetensors": LORA,
        space.models / "embeddings" / "brabol.safetensors": {"emb_params": torch.zeros(1, 768)},
        space.models / "upscalers" / "deep" / "sharp.pth": {"a": torch.zeros(1)},
        space.models / "controlnet" / "canny-1.1" / "diffusion_pytorch_model.safetensors": CONTROL,
        space.models / "controlnet" / "depth.safetensors": CONTROL,
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
    (space.models / "controlnet" / "canny-1.1" / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    (space.models / "wildcards" / "animals").mkdir(parents=True)
    (space.models / "wildcards" / "animals" / "cats.txt").write_text("tom")
    space.outputs.mkdir(exist_ok=True)
    write_styles(space, [Style("watercolor", "a")])
    return space


def fix_of(function, *arguments, **named):
    """The fix, or the message itself, of what refuses a name."""
    try:
        function(*arguments, **named)
    except ProblemsError as error:
        return error.problems[0].fix
    except WildcardError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def suggested(fix):
    """The names in a message."""
    begins = ("did you mean ", "for example ", "such as ", "the preset ", "write ")
    listed = next(fix.partition(begin)[2] for begin in begins if begin in fix)
    listed = re.sub(r"\?.*|, or rename one| for the embedding", "", listed)
    return [name.strip("'[]").removeprefix("--") for name in re.split(", | or ", listed)]


@pytest.mark.parametrize(
    ("kind", "wrong", "names"),
    [
        ("lora", "hana_three", [f"hana_three-step{step:08}" for step in (75, 61, 50)]),
        ("lora", "fox.v2", ["fox.v1"]),
        ("lora", "owll", ["owl.pt.safetensors"]),
        ("lora", "zzzzzz", None),
        ("embedding", "brabl", ["brabol"]),
        ("upscaler", "shap", ["sharp"]),
        ("controlnet", "cany-1.1", ["canny-1.1"]),
        ("controlnet", "zzzzzz", None),
    ],
)
def test_names_that_are_suggested_for_a_file_are_found(space, kind, wrong, names):
    found = suggested(fix_of(find, kind, wrong, space))
    assert found == (names or found)
    assert all(find_all(kind, name, space) for name in found)


def test_the_name_suggested_for_another_file_of_the_same_name_is_that_of_no_other(space):
    """Two runs have the same folder of checkpoints; two files in one folder differ in their ending alone."""
    files = [space.runs / name / "checkpoints" / "wolf.safetensors" for name in ("2026_a", "2026_b")]
    files.append(files[1].with_suffix(".pt"))
    for number, path in enumerate(files, 2):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(LORA | {"x": torch.zeros(number)}, path)
    for pair, name in ((files[:2], "2026_b/checkpoints/wolf"), (files[1:], str(files[2]))):
        (note,) = ambiguity_advice("lora", "wolf", pair)
        (typed,) = suggested(note.fix)
        assert typed == name
        assert pair[1] in find_all("lora", typed, space) and pair[0] not in find_all("lora", typed, space)
    (note,) = ambiguity_advice("embedding", "wolf", files[:2])  # whose names in prompts have no folder
    assert note.fix == "choose the other in Embeddings, or rename one"


def pattern_problems(pattern, space):
    return list(output_problems(GenerateJob(output=OutputSettings(file_pattern=pattern)), space))


def nested(path):
    group, name = path.split(".")
    return {group: {name: 1.0}}


def no_preset(space, word):
    options = split_options([word, f"--presets={PROJECT / 'presets'}"], JOB, task="train")
    return options.problems[0].fix


ADAM = optimizers.find("AdamW").arguments
# what suggests: (wrong name, space) -> message; what takes: (name, space) -> whether it does
CASES = {
    "grid axis": ("layer", lambda name, space: nearest_axis(name), lambda name, space: setting_named(name)),
    "choice of a grid": (
        "euler b",
        lambda name, space: fix_of(read_values, "generate.sampler", name),
        lambda name, space: read_values("generate.sampler", name),
    ),
    "wildcard": (
        "animals/cat",
        lambda name, space: fix_of(wildcard_lines, space, name),
        lambda name, space: wildcard_lines(space, name),
    ),
    "style": (
        "watercolour",
        lambda name, space: fix_of(chosen_styles, [name], space),
        lambda name, space: chosen_styles([name], space),
    ),
    "file pattern": (
        "[sed]",
        lambda name, space: pattern_problems(name, space)[0].fix,
        lambda name, space: not pattern_problems(f"[{name}]", space),
    ),
    "embedding in a prompt": (
        "easynegativ",
        lambda name, space: analyze(name, Names(embeddings={"EasyNegative": 1})).findings[0].problem.fix,
        lambda name, space: not analyze(name, Names(embeddings={"EasyNegative": 1})).findings,
    ),
    "optimizer": (
        "AdmW",
        lambda name, space: optimizers.type_problem(name).fix,
        lambda name, space: optimizers.type_problem(name) is None,
    ),
    "argument": (
        "weight_decy",
        lambda name, space: optimizers.argument_problems({name: 0.1}, ADAM, "AdamW", "here")[0].fix.partition(" It takes")[0],
        lambda name, space: not optimizers.argument_problems({name: 0.1}, ADAM, "AdamW", "here"),
    ),
    "scheduler": (
        "StepLr",
        lambda name, space: torch_curves.type_problems(name, {})[0].fix,
        lambda name, space: not [each for each in torch_curves.type_problems(name, {}) if each.code.startswith("scheduler")],
    ),
    "setting": (
        "optimizer.learning_rat",
        lambda name, space: fix_of(build, TrainJob, nested(name)),
        lambda name, space: build(TrainJob, nested(name)),
    ),
    "group": (
        "optimzer",
        lambda name, space: fix_of(build, TrainJob, {name: {}}).replace("the group ", ""),
        lambda name, space: build(TrainJob, {name: {}}),
    ),
    "flag": (
        "--optimizer.learning_rat",
        lambda name, space: read_flags(TrainJob, [name, "1"])[1][0].fix,
        lambda name, space: not read_flags(TrainJob, [f"--{name}", "1"])[1],
    ),
    "command": ("generat", lambda name, space: fix_of(run, [name]), lambda name, space: name in commands()),
    "command of the launcher": (
        "chekc",
        lambda name, space: start.unknown_command(str(space.models), name),
        lambda name, space: not start.unknown_command(str(space.models), name),
    ),
    "preset": ("sd15_loar", lambda name, space: no_preset(space, name), lambda name, space: preset_path(name, space).is_file()),
    "option of sd-scripts": (
        "netwrok_dim",
        lambda name, space: unknown(name, options_of()),
        lambda name, space: name in options_of(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_suggested_name_is_accepted(space, case):
    (space.models / "docs").mkdir()
    (space.models / "docs" / "command_line.md").write_bytes((PROJECT / "docs" / "command_line.md").read_bytes())
    wrong, suggests, takes = CASES[case]
    names = suggested(suggests(wrong, space))
    assert names and all(takes(name, space) for name in names), names


def test_the_title_suggested_for_a_setting_of_a_grid_is_its_own_also_where_others_have_the_same():
    for path in settings_of_axes():
        title = re.fullmatch(r"did you mean (.*)\?", nearest_axis(f"{path}x"))[1]
        assert setting_named(title) == path, title
