"""The benchmark of a tagger measures what it says: small here."""

from __future__ import annotations

import importlib.util

import pytest

from workshop.bench import tagger


@pytest.mark.slow
def test_tagging_is_compared_with_its_model(monkeypatch):
    monkeypatch.setattr(tagger, "SIDE", 64)
    monkeypatch.setattr(tagger, "PHOTO", (152, 104))
    found = tagger.measure_tagger(True, print)
    assert found["images"] == 24 and found["model_seconds_per_image"] > 0
    assert 0 < found["share_of_model_speed"] < 10
    assert "of its model's own speed" in tagger.tagger_rows(found)[0][1]


def test_without_the_package_that_writes_models_it_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tagger.measure_tagger(True, print) == {}
    assert "pip install onnx" in tagger.tagger_rows({})[0][1]
