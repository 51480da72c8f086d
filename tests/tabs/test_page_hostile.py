"""The page over a models folder and a run that hold the worst files there are."""

import os
import shutil
import urllib.request

import pytest

from core.generation.model.library import Scan
from core.record.workspace import PROJECT, Workspace
from tests.hostile.changes import SPECIAL, special, written
from tests.hostile.model_files import PICKLES, SAFETENSORS


def hostile_workspace(folder):
    """The worst files next to the starter, among the LoRAs, and among the results of a run; thirty and more in all."""
    own = Workspace(outputs=folder / "outputs", models=folder / "models", presets=folder / "presets")
    shutil.copytree(PROJECT / "presets", own.presets)
    shutil.copytree(PROJECT / "models" / "starter", own.models / "starter", copy_function=os.link)
    made: dict[str, bytes] = {}
    for place in (own.models, own.models / "loras", own.runs / "2026-01-01_fox" / "checkpoints"):
        place.mkdir(parents=True, exist_ok=True)
        for files in (SAFETENSORS, PICKLES):
            for kind in SPECIAL:
                special(place, kind + files.ending, kind)
            for name, data in list(files.bad)[:: 5 if place == own.models else 15]:
                made[name] = made.get(name) or data()
                written(place, name, made[name])
    return own


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    import page_server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_server, "make_workspace", hostile_workspace)
        page = page_server.Served(tmp_path_factory.mktemp("hostile"))
    yield page
    page.close()


@pytest.mark.slow
def test_the_page_starts_and_its_lists_say_why_a_file_is_unreadable(hostile_page):
    with urllib.request.urlopen(hostile_page.url) as answer:
        assert answer.status == 200
    # Those of the run are listed next to the one file of theirs that can be read, an embedding.
    for listed, least in ((Scan.checkpoints, 30), (Scan.loras, 20), (Scan.embeddings, 20)):
        labels = [label for label, _ in listed(Scan(hostile_page.workspace))]
        told = [label for label in labels if "(unreadable: " in label]
        assert len(told) >= least and all(len(label) < 300 and label.isprintable() for label in told)
    assert "starter" in [label for label, _ in Scan(hostile_page.workspace).checkpoints()]
