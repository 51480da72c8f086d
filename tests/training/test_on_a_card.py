"""What a training does with a GPU, seen on one that computes nothing (tests/card): nothing lies on the wrong
device, and no step makes the host wait."""

import json
import os
import subprocess
import sys

import pytest

from core.families.part_shapes import make_empty
from core.record.workspace import PROJECT
from core.settings.flags import merge
from tests.card.library import COMPILER
from tests.models import tiny_configs, tiny_folder
from tests.options import ADAFACTOR, NOISE

pytestmark = pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="no C++ compiler, or not Linux")

FP8 = "checkpointing and fp8"
TUNE = {"kind": "fine_tune"}
TRAINS_TEXT = {"rank": 4, "alpha": 4.0, "train_text_encoder": True}
CASES = {
    "text encoder, dropouts, a limit to the weights, options of noise and loss": {
        "noise": NOISE,
        "network": {
            **TRAINS_TEXT,
            "network_dropout": 0.1,
            "rank_dropout": 0.1,
            "module_dropout": 0.1,
            "scale_weight_norms": 1.0,
        },
        "schedule": {"max_train_steps": 3, "seed": 7},  # a module that was left out gets its state in the next step
    },
    FP8: {"memory": {"gradient_checkpointing": True, "fp8_base": True}},
    "DreamBooth with text and a prior": {
        "method": {"kind": "dreambooth", "prior": "model", "class_caption": "a drawing"},
        "network": {"train_text_encoder": True},
    },
    "fine-tune, full bf16, fused": {
        "method": TUNE,
        "memory": {"full_precision": "bf16", "fused_backward_pass": True},
        "optimizer": ADAFACTOR,
    },
    "a word": {"method": {"kind": "embedding"}, "embedding": {"token_string": "<glyph>", "init_word": "a"}},
}
MAKES_ITS_STATE = ("fine-tune, full bf16, fused",)  # in memory of the host, and copies it


@pytest.fixture(scope="module")
def found(request, tmp_path_factory, images):
    """{case: what was found} for each case that a test of this run asks for; libraries are loaded once for all."""
    here = [item for item in request.session.items if item.path == request.path]
    asked = {item.callspec.params["case"] for item in here if "case" in item.fixturenames}
    place = tmp_path_factory.mktemp("card")
    model = {"base_model": str(tiny_folder("sd1", place / "sd1"))}
    base = {
        "model": model,
        "dataset": {"folder": str(images), "resolution": 64, "enable_bucket": False, "train_batch_size": 2},
        "network": {"rank": 4, "alpha": 4.0},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"max_train_steps": 2, "seed": 7},
        "memory": {"mixed_precision": "bf16"},
        "saving": {"output_name": "t", "save_every_minutes": None},
        "logging": {"log_with": "none"},
    }
    jobs = {name: merge(base, CASES[name]) for name in CASES if name in asked | {FP8}}
    listed = place / "cases.json"
    listed.write_text(json.dumps({"outputs": str(place / "outputs"), "cases": jobs}), encoding="utf-8")
    command = [sys.executable, "-m", "tests.card.runs", str(listed)]
    done = subprocess.run(
        command, cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-3000:]
    return {line.pop("name"): line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_step_meets_on_the_card_and_never_waits_for_it(found, case):
    assert "error" not in found[case], found[case]["error"]
    first, *later = found[case]["waits"]
    assert later and not any(later), later
    assert all(case in MAKES_ITS_STATE and "copy cpu" in wait for wait in first), first


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_step_leaves_nothing_behind(found, case):
    """SidecarIndex its losses, which wait to be read back together."""
    held = found[case]["held"]
    assert held[-1] - held[-2] < 64 << 10, held


@pytest.mark.slow
def test_a_model_in_fp8_never_lies_on_the_card_in_more(found):
    """It is made narrow in RAM."""
    unet = make_empty("unet", tiny_configs("sd1")["unet"])
    assert found[FP8]["building"] < 2 * sum(weight.numel() for weight in unet.parameters())


@pytest.mark.slow
def test_the_weights_of_a_lora_are_cast_in_one_operation_a_step(found):
    """The first step casts each at its first use; all steps cast the model's weights from fp8."""
    first, second = (step["casts of LoRA"] for step in found[FP8]["operations"])
    assert second < 0.7 * first


ACTIVATION = """
from tests.card.library import load_library
load_library()
import torch
from tests.card.operations import Operations
from tests.card.watched import card
operations = Operations()
with card(listener=operations):
    output = torch.nn.functional.silu(torch.empty(4, 8, device="cuda", requires_grad=True))
    operations.begin(None)
    output.backward(torch.empty(4, 8, device="cuda"))
print(sum(operations.counts.values()))
"""


@pytest.mark.slow
def test_the_gradient_of_an_activation_is_one_operation():
    done = subprocess.run([sys.executable, "-c", ACTIVATION], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.split() == ["1"], done.stderr[-3000:]
