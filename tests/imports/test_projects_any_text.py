"""Any text is read or refused in words: mutated presets, scripts and configs, and texts of extreme size and depth."""

import json
import random
import time
from functools import cache

import pytest

from core.imports.projects.importers import MAX_BYTES, ProjectImporter, import_project, register
from core.imports.projects.importers import PROJECT_IMPORTERS as IMPORTERS
from core.imports.projects.report import Entry, Import
from core.imports.projects.shells import read_script
from core.record.problems import ProblemsError
from core.settings.job import TrainJob
from tests.imports.projects import cases

PIECES = """ \0 " ' ` $( ${ (( { } [ 1e999 -1 0,1 null “ %X% = -- """.split(" ") + [
    "\\\n",
    "^\n",
    "`\n",
    "\n",
    "é" * 40,
    "\ud83d",
]
SECONDS, MUTATED = 1.0, 150


@cache
def texts():
    found = [json.dumps(case["preset"]) for case in cases("kohya_ss")]
    found += [case["text"] for case in cases("sd_scripts") if case["text"]]
    return found + [json.dumps(case["config"]) for case in cases("onetrainer")["cases"]]


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
    begun = time.perf_counter()
    try:
        found = import_project(text, **more)
        assert isinstance(found, Import) and list(found.lines()) and found.description
    except ProblemsError as error:
        found = error.codes
        assert all(problem.fix and problem.code for problem in error.problems)
    return found, time.perf_counter() - begun


def test_mutated_texts_are_read_or_refused():
    for number in range(MUTATED):
        answer(mutated(number))


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


def test_a_package_brings_an_importer_of_its_own():
    def read(source):
        job = TrainJob()
        return Import("toy", "Toy trainer", job, [Entry("taken", "toy_rate", 1, ("optimizer.learning_rate",))])

    register(
        ProjectImporter("toy", "Toy trainer", lambda source: "toy_rate" in source.text, read, lambda: ["toy_rate"])
    )
    try:
        assert import_project("toy_rate 1").program == "toy"
        assert import_project("python train_network.py --seed 1").program == "sd_scripts"
    finally:
        del IMPORTERS["toy"]
