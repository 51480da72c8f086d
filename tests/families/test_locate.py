"""What the settings of a model are told before anything is loaded."""

import pytest

from core.families.locate import model_problems
from core.record.workspace import PROJECT, Workspace
from core.settings.model import ModelSettings
from tests.models import tiny_folder


@pytest.mark.parametrize(("name", "words"), [("sdxl", "no effect"), ("sd2", "one before its last already")])
def test_clip_skip_is_advised_against_where_the_family_leaves_out_layers_itself(tmp_path, name, words):
    workspace = Workspace(tmp_path / "outputs", PROJECT / "models", PROJECT / "presets")
    base = str(tiny_folder(name, tmp_path / name))
    (found,) = model_problems(ModelSettings(base_model=base, clip_skip=2), workspace)
    assert found.level == "advice" and words in found.what and found.where == "model.clip_skip"
    assert model_problems(ModelSettings(base_model=base), workspace) == []
    assert model_problems(ModelSettings(base_model="models/starter", clip_skip=2), workspace) == []
