"""Any text is read or refused in words: mutated presets, scripts and configs, and texts of extreme size and depth."""

import json
import random
import time
from functools import cache

import pytest
import yaml

from core.imports.projects import ai_toolkit, simpletuner
from core.imports.projects.importers import MAX_BYTES, import_project
from core.imports.projects.importers import PROJECT_IMPORTERS as IMPORTERS
from core.imports.projects.kohya_ss import FIELDS
from core.imports.projects.options import options_of
from core.imports.projects.report import Import
from core.imports.projects.shells import read_script
from core.record.problems import ProblemsError
from tests.docs.guide import DOCS, blocks_of
from tests.imports.projects import cases

PIECES = """ \0 " ' ` & * ! | > ~ : ? !!int $( ${ (( { } [ 1e999 -1 0,1 null “ %X% = -- """.split(" ") + [
    "\\\n",
    "^\n",
    "`\n",
    "\n",
    "é" * 40,
    "\ud83d",
]
SECONDS, MUTATED = 1.0, 300
YAML = """job: extension
config:
  name: fox
  process:
    - type: sd_trainer
      network: {linear: 16, conv: 4}
      save: &save
        save_every: 250
      train: {steps: 100, lr: 1e-4, ema_config: {use_ema: true}}
      datasets:
        - folder_path: "/data/fox"
          resolution: [512, 768]
      model: {name_or_path: /models/a.safetensors, is_xl: true}
      sample:
        prompts: ["a fox --n 'b' --seed 3", "[trigger]"]
"""
AI_TOOLKIT = {
    "job": "extension",
    "config": {
        "name": "fox",
        "process": [
            {
                "type": "sd_trainer",
                "trigger_word": "zkw",
                "network": {"type": "lokr", "lokr_factor": 8, "linear": 4, "linear_alpha": 1.0},
                "train": {
                    "optimizer_params": {"weight_decay": 0.1},
                    "lr_scheduler_params": {"eta_min": 1e-5},
                    "lr_scheduler": "cosine",
                },
                "datasets": [{"folder_path": "/a", "caption_ext": "txt", "mask_path": "/b", "keep_tokens": 1}],
                "model": {"name_or_path": "a", "arch": "sdxl"},
                "sample": {"samples": [{"prompt": "a", "width": 640, "neg": "b"}], "seed": 3},
            }
        ],
    },
    "meta": {"name": "[name]"},
}
BACKENDS = [
    {
        "id": "a",
        "type": "local",
        "instance_data_dir": "/a",
        "resolution": 1.0,
        "resolution_type": "area",
        "repeats": 3,
        "crop": True,
    },
    {"id": "t", "dataset_type": "text_embeds", "conditioning_data": "a"},
]
SIMPLETUNER = {
    "--model_family": "sdxl", "model_type": "lora", "--lora_rank": 8, "optimizer": "optimi-adamw", "optimizer_config": "eps=1e-6,betas=1",
    "seed": 42, "snr_gamma": 5, "validation_resolution": "1024x768,1.0", "validation_seed": 3, "lr_scheduler": "polynomial",
    "lycoris_config": "lycoris.json", "data_backend_config": BACKENDS, "minimum_image_size": 0.5, "use_ema": "true",
}  # fmt: skip
HUGE: tuple[object, ...] = (
    10**30,
    -(10**30),
    1e30,
    "9" * 90,
    "nan",
    [],
    {},
    [1],
    {"a": 1},
    None,
    True,
    "",
    "\0",
    "x" * 900,
)  # as any value


@cache
def texts():
    found = [json.dumps(case["preset"]) for case in cases("kohya_ss")]
    found += [case["text"] for case in cases("sd_scripts") if case["text"]]
    found += [json.dumps(case["config"]) for case in cases("onetrainer")["cases"]]
    return found + 3 * [
        YAML,
        yaml.safe_dump(AI_TOOLKIT),
        json.dumps(AI_TOOLKIT),
        json.dumps(SIMPLETUNER),
        json.dumps(BACKENDS),
    ]


def mutated(number):
    """A text that is no longer what it was: pieces put in, cut out and moved."""
    draws = random.Random(number)
    text = draws.choice(texts())
    for _ in range(draws.randint(1, 6)):
        at, length = draws.randrange(len(text) + 1), draws.choice((0, 1, 1, 5, 40))
        kind = draws.choice((*PIECES, text[at : at + length]))
        text = text[:at] + kind + text[at + length :]
    return text


def answer(text, **more):
    """The import or the codes of the refusal, and how long it took. Anything else fails the test."""
    begun = time.thread_time()
    try:
        found = import_project(text, **more)
        assert isinstance(found, Import) and list(found.lines()) and found.description
    except ProblemsError as error:
        found = error.codes
        assert all(problem.fix and problem.code for problem in error.problems)
    return found, time.thread_time() - begun


def test_mutated_texts_are_read_or_refused():
    for number in range(MUTATED):
        answer(mutated(number))


@pytest.mark.parametrize("program", [ai_toolkit, simpletuner], ids=["ai_toolkit", "simpletuner"])
def test_any_value_of_any_key_is_read_or_refused(program):
    """Each key with each of the values; those of parts and of lists in their place."""
    rows, at = [key.replace("*", "any") for key in program.keys()], 0
    for value in HUGE:
        for part in range(0, len(rows), 12):  # some keys at a time, since one can be refused
            at += 1
            config = json.loads(json.dumps(AI_TOOLKIT if program is ai_toolkit else SIMPLETUNER))
            process = config["config"]["process"][0] if program is ai_toolkit else config
            for key in rows[part : part + 12]:
                _put(process, key, value)
            answer(json.dumps(config))


def test_any_value_of_any_key_of_sd_scripts_and_kohya_ss_has_an_entry():
    preset, script = {"LoRA_type": "Standard", "network_dim": 4}, "network_module = 'networks.lora'\n"
    values = {key: HUGE[number % len(HUGE)] for number, key in enumerate([*FIELDS, *options_of()])}
    for part in range(0, len(values), 11):
        some = {key: value for key, value in list(values.items())[part : part + 11] if value != {}}
        toml = [f"{key} = {'false' if value is None else json.dumps(value)}" for key, value in some.items()]
        lines = "\n".join(toml)
        for text in (json.dumps(preset | some), script + lines, f"[a_args.args]\n{lines}\n[b_args.args]\nsdxl = true"):
            result, _ = answer(text)
            assert not isinstance(result, Import) or some.keys() <= {entry.key for entry in result.report}, text


def _put(config, key, value):
    """Set the key of a part ("train.lr") or of an item of a list ("data.crop")."""
    *parts, name = key.split(".")
    for word in parts:
        place = config.setdefault({"data": "data_backend_config"}.get(word, word), {})
        place = place[0] if isinstance(place, list) and place else place
        if not isinstance(place, dict):
            return
        config = place
    config[name] = json.loads(json.dumps(value))


@pytest.mark.slow
def test_two_thousand_mutated_texts_are_read_or_refused_within_a_second_each():
    for number in range(2000):
        _, seconds = answer(mutated(number))
        assert seconds < SECONDS, number


@pytest.mark.parametrize(
    "text",
    [
        "python train_network.py " + "A=$A$A " * 60,
        "A=xxxxxxxxxx\n" + "A=$A$A$A\n" * 60 + "python train_network.py --output_name $A",
        "python train_network.py --network_alpha $((" + "9*" * 90 + "9))",
        "python train_network.py --network_alpha $((9**9**9**9))",
        "python train_network.py " + "(" * 5000,
        "python train_network.py " + '"' * 5001,
        "python train_network.py " + "--seed " * 3000,
        "a = " + "[" * 3000,
        "network_module = 'a'\nseed = 0x" + "f" * 5000,
        "python train_network.py --network_module a --optimizer_args 'x={1: b\"a\"}' 'y=1e999' 'z=((('",
        '{"LoRA_type":' + "[" * 3000,
        json.dumps(
            {"LoRA_type": ["x"], "network_dim": {"a": 1}, "lr_warmup": [1], "sdxl": {}, "optimizer": 5, "epoch": 10**38}
        ),
        json.dumps(
            {"network_dim": 1, "max_train_steps": 0, "epoch": 10**39, "train_batch_size": -1, "train_data_dir": "\0"}
        ),
        json.dumps({"training_method": "LORA", "concepts": [{}] * 100_000, "samples": [{"prompt": "a"}] * 20_000}),
        json.dumps({"training_method": "LORA", "resolution": "512," * 100_000, "layer_filter": "a," * 100_000}),
        json.dumps({"training_method": "LORA", **{f"key{number}": number for number in range(40_000)}}),
        json.dumps(
            {
                "training_method": [],
                "model_type": {},
                "optimizer": 5,
                "unet": [1],
                "concepts": {"a": 1},
                "epochs": "9" * 90,
            }
        ),
        json.dumps(
            {
                "training_method": "LORA",
                "base_model_name": "\0",
                "concepts": [{"path": "\0" * 9}],
                "batch_size": -(10**38),
            }
        ),
        json.dumps(
            {
                "job": "a",
                "config": {
                    "process": [{"type": [], "train": 5, "datasets": {"a": 1}, "model": [], "sample": {"prompts": "x"}}]
                },
            }
        ),
        json.dumps(
            {
                "job": "a",
                "config": {"process": [{"datasets": [{}] * 50_000, "sample": {"prompts": ["a --n b"] * 20_000}}]},
            }
        ),
        json.dumps(
            {
                "job": "a",
                "config": {"process": [{"type": "sd_trainer", **{f"key{number}": 1 for number in range(20_000)}}]},
            }
        ),
        json.dumps(
            {"model_family": {}, "lora_rank": [1], "data_backend_config": [{}] * 1000, "optimizer_config": "=," * 1000}
        ),
        json.dumps(
            {
                "model_family": "sdxl",
                "data_backend_config": [{"instance_data_dir": "/a"}] * 8000,
                "validation_resolution": "x," * 1000,
            }
        ),
        json.dumps([{"instance_data_dir": "/a", "id": []}] * 6000),
        "config:\nprocess: " + "[" * 3000,
        "config:\nprocess:\n" + "- " * 3000,
        "config: {a: &a [1]}\nprocess: [" + "*a, " * 50_000 + "]",
        "config: 1\nprocess:\n" + "".join(f"{'  ' * number}a:\n" for number in range(500)),
        "config: 1\nprocess: [" + "1, " * 90_000 + "]",
        "config: 1\nprocess: " + "9" * 200_000,
        "config: 1\nprocess: |\n" + " x\n" * 90_000,
        "config: 1\nprocess: " + "1:" * 100_000,
        "config:\n process: {" + "a: 1, " * 40_000 + "}",
        "config:\nprocess:\n" + "#" * 250_000,
        "config:\nprocess: " + " " * 250_000 + ":",
        "config :" * 30_000,
        "x" * (MAX_BYTES + 1),
        'pretrained_model_name_or_path = "a"\nnetwork_module = "' + "x" * 100_000 + '"',
    ],
)
def test_extreme_texts_are_answered_within_a_second(text, tmp_path):
    _, seconds = answer(text, folder=tmp_path)
    assert seconds < SECONDS


def test_variables_do_not_grow_without_end():
    words = read_script("A=xxxxxxxxxx\n" + "A=$A$A$A\n" * 60 + "echo $A").commands
    assert sum(len(word) for command in words for word in command) < 10_000_000


def test_the_importer_of_the_guide_reads_its_texts_and_leaves_others_alone(tmp_path):
    (block,) = (block for block in blocks_of(DOCS / "extending_imports.md") if block.kind == "python")
    exec(compile("\n".join(block.lines), block.file, "exec"), {"__name__": "fox_trainer"})
    try:
        found = import_project('{"fox_version": 1, "steps": -5, "images": "/gone", "wing": 2}', folder=tmp_path)
        assert (found.program, found.job.schedule.max_train_steps, found.job.dataset.folder) == (
            "fox_trainer",
            1,
            "/gone",
        )
        kinds = {"fox_version": "idle", "steps": "changed", "images": "taken", "wing": "unavailable", "rate": "default"}
        assert {entry.key: entry.kind for entry in found.report} == kinds
        assert [problem.code for problem in found.problems] == ["import.missing-path"]
        assert import_project("python train_network.py --seed 1").program == "sd_scripts"
    finally:
        del IMPORTERS["fox_trainer"]
