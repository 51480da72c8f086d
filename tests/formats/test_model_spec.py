"""Stability's metadata, in the words that A1111 and ComfyUI managers look for."""

from datetime import datetime

import pytest

from core import __version__
from core.formats.lora.metadata import lora_metadata
from core.formats.model_spec import GENERATIVE_MODELS, SaveFacts, architecture, model_spec
from core.settings.job import TrainJob


@pytest.mark.parametrize(
    ("family", "prediction", "kind", "expected"),
    [
        ("sd1", "epsilon", "model", "stable-diffusion-v1"),
        ("sd1", "v", "lora", "stable-diffusion-v1/lora"),
        ("sd2", "epsilon", "model", "stable-diffusion-v2-512"),
        ("sd2", "v", "folder", "stable-diffusion-v2-768-v"),
        ("sd2", "v", "lora", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "epsilon", "model", "stable-diffusion-xl-v1-base"),
        ("sdxl", "v", "embedding", "stable-diffusion-xl-v1-base/textual-inversion"),
        ("sdxl", "epsilon", "lllite", "stable-diffusion-xl-v1-base/control-net-lllite"),
        ("sd1", "epsilon", "controlnet", "stable-diffusion-v1/controlnet"),
        ("sdxl_refiner", "epsilon", "folder", "stable-diffusion-xl-v1-refiner"),
    ],
)
def test_architectures_are_named_as_sd_scripts_names_them(family, prediction, kind, expected):
    assert architecture(family, prediction, kind) == expected


@pytest.mark.parametrize(
    ("family", "kind", "expected"),
    [
        ("sd1", "lora", "diffusers"),
        ("sdxl", "lora", GENERATIVE_MODELS),
        ("sd1", "model", GENERATIVE_MODELS),
        ("sd1", "embedding", GENERATIVE_MODELS),
        ("sdxl", "folder", "diffusers"),
    ],
)
def test_the_implementation_is_whose_names_the_tensors_have(family, kind, expected):
    spec = model_spec(TrainJob(), SaveFacts(family=family), kind)
    assert spec["modelspec.implementation"] == expected


def test_a_whole_model_says_what_it_is_and_nothing_of_its_training():
    facts = SaveFacts(
        family="sd2",
        prediction="v",
        resolution=(768, 512),
        saved_at=1_700_000_000.7,
        extra={"modelspec.author": "Mira", "ss_other": "1"},
    )
    spec = model_spec(TrainJob.model_validate({"saving": {"output_name": "fox"}}), facts, "model")
    assert spec == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v2-768-v",
        "modelspec.implementation": GENERATIVE_MODELS,
        "modelspec.title": "fox",
        "modelspec.resolution": "768x512",
        "modelspec.date": datetime.fromtimestamp(1_700_000_000).isoformat(),
        "modelspec.prediction_type": "v",
        "modelspec.author": "Mira",
        "atelier_version": __version__,
    }


def test_a_lora_carries_the_same_words():
    facts = SaveFacts(family="sdxl", saved_at=1000.0)
    metadata = lora_metadata(TrainJob(), facts)
    spec = model_spec(TrainJob(), facts, "lora")
    assert spec.items() <= metadata.items()
