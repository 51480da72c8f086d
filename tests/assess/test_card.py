"""The report card of a model file: nothing personal unless included, nothing of a file is markup."""

import base64
import json
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from core.assess.card import Source, card_of, do, plan
from core.assess.card_page import page
from core.formats.hub.catalog import ALLOWS, ENTRIES
from core.record.problems import ProblemsError
from core.record.run_about import write_about
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.settings.tools.card import CardSettings
from tests.tasks import surroundings

HOSTILE = '"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>\0\u202e'
PERSONAL = {
    "modelspec.author": "Jane Roe",
    "modelspec.description": "Trained in /home/jane/sets/fox",
    "ss_tag_frequency": json.dumps({"10_janes cat": {"my sister": 9}}),
    "ss_dataset_dirs": json.dumps({"10_janes cat": {"n_repeats": 10, "img_count": 7}}),
}


class Tags(HTMLParser):
    """The elements of a page, its attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [(tag, name, value) for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")


def lora(path, **metadata):
    """A LoRA of another program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {"lora_down.weight": (4, 320), "lora_up.weight": (320, 4)}
    weights = {f"{layer}.{name}": np.full(shape, 0.1, "float32") for name, shape in tensors.items()}
    save_file(weights | {f"{layer}.alpha": np.array(4.0, "float32")}, path, metadata={**metadata})
    return path


def card(path, workspace, **settings):
    return card_of(path, CardSettings(file=str(path), **settings), workspace)


def test_of_a_foreign_lora_it_says_what_the_file_tells(tmp_path, workspace):
    entry = next(each for each in ENTRIES if each.id == "sdxl")
    stated = {"modelspec.trigger_phrase": "fxo style, sketch", "ss_new_sd_model_hash": entry.sha256}
    found = card(lora(tmp_path / "fox.safetensors", **stated, **PERSONAL), workspace).data()
    assert found["use"]["triggers"] == ["fxo style", "sketch"] and found["use"]["strength"] == 1
    assert (
        found["base"] | {"name": entry.title, "license": entry.license, "license_url": entry.license_url}
        == found["base"]
    )
    assert found["file"]["ranks"] == "4" and len(found["file"]["sha256"]) == 64 and found["training"]["images"] == 7


def test_the_recommended_strength_is_the_users_else_the_measured_one(workspace):
    run = workspace.runs / "20260101-120000_fox"
    file = lora(run / "checkpoints" / "fox.safetensors")
    measured = {"strength": {"best": 0.6, "on": "held_out", "rows": [[0.6, 0.1, 0.2], [1.2, 0.1, 0.4]]}}
    (run / "assess.json").write_text(json.dumps({"version": 1, "cells": {file.name: measured}}))
    assert [card(file, workspace, strength=given).data()["use"]["strength"] for given in (None, 0.7)] == [0.6, 0.7]
    assert "0.6" in card(file, workspace).data()["measures"]["strength"]


def test_the_card_of_a_renamed_run_has_the_new_title(workspace):
    run = RunFolder(workspace.runs / "20260101-120000_fox")
    file = lora(run.path / "checkpoints" / "fox.safetensors", **{"modelspec.title": "fox"})
    assert card(file, workspace).title == "fox"
    write_about(run, title="Fox in snow")
    assert card(file, workspace).title == "Fox in snow"
    file = lora(workspace.models / "fox.safetensors", **{"modelspec.title": "fox"})
    assert card(file, workspace).title == "fox"


def test_a_license_is_only_named_for_a_base_model_known_by_its_hash(tmp_path, workspace):
    found = card(lora(tmp_path / "fox.safetensors", ss_sd_model_name="sd_xl_base_1.0.safetensors"), workspace).data()
    assert found["base"]["name"] == "sd_xl_base_1.0.safetensors" and "license_url" not in found["base"]
    known = next(each for each in ENTRIES if each.license in ALLOWS and each.sha256)
    found = card(lora(tmp_path / "owl.safetensors", ss_new_sd_model_hash=known.sha256), workspace).data()["base"]
    assert (found["license"], found["allows"]) == (known.license, ALLOWS[known.license])


@pytest.mark.parametrize(
    ("tick", "word"), [("author", "Jane"), ("names", "/home/jane"), ("names", "10_janes"), ("captions", "sister")]
)
def test_personal_data_stay_out_unless_ticked_and_are_listed(tick, word, tmp_path, workspace):
    file = lora(tmp_path / "fox.safetensors", **PERSONAL)
    for ticked in (False, True):
        found = card(file, workspace, **({tick: True} if ticked else {}))
        assert (word in page(found), word in json.dumps(found.data())) == (ticked, ticked)
    assert word.startswith("/") or word in "\n".join(card(file, workspace).lines())


def test_hostile_metadata_are_text(tmp_path, workspace):
    names = "modelspec.title modelspec.description modelspec.trigger_phrase modelspec.author ss_sd_model_name ss_steps ss_optimizer"
    metadata = dict.fromkeys(names.split(), HOSTILE) | {
        "modelspec.license": "x" * 10_000_000,
        "ss_tag_frequency": '{"a": {"<script>": 1e999, "b": [[[[1]]]]}}',
        "ss_dataset_dirs": '{"a": {"img_count": "<b>"}, "b": 3}',
        "modelspec.thumbnail": "data:image/svg+xml;base64,PHN2Zz4=",
    }
    file = lora(tmp_path / f"{'<b>' * 9}.safetensors", **metadata)
    text = page(card(file, workspace, captions=True, names=True, author=True))
    read = Tags(text)
    assert "script" not in read.tags and not read.tags & {"img", "b", "iframe", "link", "form"} and read.links == []
    assert "<script>alert(1)</script>" in read.text and "\0" not in text and "\u202e" not in text and len(text) < 50_000


def test_only_an_image_becomes_the_thumbnail_and_it_is_encoded_again(tmp_path, workspace):
    Image.new("RGB", (2000, 1000), "red").save(png := BytesIO(), "PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    found = card(lora(tmp_path / "fox.safetensors", **{"modelspec.thumbnail": url}), workspace)
    assert Tags(page(found)).links == [("img", "src", found.samples[0].url)]
    assert found.samples[0].url.startswith("data:image/jpeg;base64,")
    assert not card(tmp_path / "fox.safetensors", workspace, samples=0).samples


def test_a_second_card_gets_a_name_of_its_own_and_a_named_one_is_never_overwritten(tmp_path, workspace):
    settings = CardSettings(file=str(lora(tmp_path / "fox.safetensors")))
    for name in ("fox_card", "fox_card_2"):
        do(settings, plan(settings, workspace), surroundings(workspace))
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert content["file"]["sha256"] in (tmp_path / f"{name}.html").read_text()
    with pytest.raises(ProblemsError) as refused:
        plan(settings.model_copy(update={"output": str(tmp_path / "fox_card.html")}), workspace)
    assert refused.value.problems[0].code == "tools.output-exists"
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "fox_card.json").touch()
    inside = plan(settings.model_copy(update={"output": str(tmp_path / "cards")}), workspace)
    assert inside.target == tmp_path / "cards" / "fox_card_2.html"
    preview = settings.model_copy(update={"preview": True})
    assert do(preview, plan(preview, workspace), surroundings(workspace)).facts["card"]["title"] == "fox"
    assert len(list(tmp_path.glob("*.html"))) == 2


@pytest.mark.parametrize(("name", "step", "shown"), [("fox", 3, 0), ("fox", 9, 1), ("fox-average-4-to-8", 8, 0)])
def test_no_sample_of_the_base_model_and_none_of_a_checkpoint_for_an_average(name, step, shown, tmp_path, workspace):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    samples = [
        {"step": each, "file": tmp_path / "a.png", "prompt": "a fox", "seed": 1} for each in (0, 8)[: 1 + step // 8]
    ]
    source = Source(
        tmp_path / f"{name}.safetensors",
        CardSettings(),
        workspace,
        {},
        {},
        RunFolder(workspace.runs / "r"),
        None,
        {"samples": samples, "step": step},
        None,
    )
    assert len(source.samples()) == shown
