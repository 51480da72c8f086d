"""The files of a tagger: missing, downloaded, incomplete, made to do harm."""

import os
import random

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, helper

from core import extensions, tasks
from core.captioning.tagger.tagging import check_tag
from core.formats.hub.references import HubId, download_files
from core.formats.onnx.file import check_onnx
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.captioning.tagger import TagSettings
from core.settings.check import build
from tests.captioning.tagger.models import LABELS, images, wd_folder, write_model
from tests.formats.test_hub import FakeHub
from tests.local_server import as_hub, serving
from tests.offline import no_network
from tests.refusals import refused
from tests.tasks import surroundings

pytestmark = pytest.mark.usefixtures("onnx_here")

REPO = "SmilingWolf/wd-swinv2-tagger-v3"
FOLDER = REPO.replace("/", "_")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with the files of a small tagger."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    made = wd_folder(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in made.iterdir()} | {"README.md": b"words"}
    with serving(FakeHub, files=files, asked=[], status=200, cut_after=None, damaged=None) as server:
        as_hub(monkeypatch, server)
        yield server


def start(tmp_path, **asked):
    extensions.load()
    workspace = Workspace(tmp_path / "out", tmp_path / "models")
    task = tasks.named("tag")
    groups = {"dataset": {"folder": str(images(tmp_path / "set", "red"))}, "captioning": {"existing": "replace"}}
    job = build(task.job, groups | {"tag": asked})
    said = task.check_job(job, workspace)
    context = surroundings(workspace)
    return said, task.start(job, context), context.journal.events


def test_a_missing_model_says_what_to_download_and_which_setting_does_it(tmp_path):
    with refused("tagger.no-model", "model.onnx", "selected_tags.csv", REPO) as caught, no_network():
        start(tmp_path)
    (problem,) = caught.value.problems
    assert problem.remedy == "tag.download" and FOLDER in problem.where
    wd_folder(tmp_path / "models" / "captioners" / FOLDER)
    (tmp_path / "models" / "captioners" / FOLDER / "selected_tags.csv").unlink()
    with refused("tagger.no-model", "selected_tags.csv") as caught:
        start(tmp_path)
    assert "model.onnx" not in caught.value.problems[0].what


def test_everything_that_is_wrong_is_listed_at_once(tmp_path):
    task = tasks.named("tag")
    asked = {"tag_replacement": "a", "provider": "directml"}
    job = build(task.job, {"dataset": {"folder": str(tmp_path / "nowhere")}, "tag": asked})
    with pytest.raises(ProblemsError) as caught:
        task.check_job(job, Workspace(tmp_path / "out", tmp_path / "models"))
    assert {"tagger.no-model", "tagger.bad-replacement", "tagger.no-provider"} < set(caught.value.codes)
    assert len(caught.value.codes) == 4


def test_a_missing_model_is_downloaded_where_it_is_asked_for(tmp_path, hub, monkeypatch):
    _, outcome, events = start(tmp_path, download=True)
    place = tmp_path / "models" / "captioners" / FOLDER
    assert {path.name for path in place.iterdir()} == {"model.onnx", "selected_tags.csv"}
    assert outcome.facts["written"] == 1 and (tmp_path / "set" / "red.txt").read_text().startswith("red hair")
    stages = [(event.done, event.total) for event in events if event.kind == "stage" and "downloading" in event.text]
    total = sum((place / name).stat().st_size for name in ("model.onnx", "selected_tags.csv"))
    assert stages[-1] == (total, total)
    before = len(hub.asked)
    start(tmp_path, download=True)
    assert len(hub.asked) == before, "what is here is not asked for again"
    (place / "model.onnx").write_bytes(hub.files["model.onnx"][:300])
    start(tmp_path, download=True)
    assert (place / "model.onnx").read_bytes() == hub.files["model.onnx"], "half of one is"


def test_a_model_is_downloaded_again_where_it_is_asked_for(tmp_path, hub, monkeypatch):
    place = wd_folder(tmp_path / "models" / "captioners" / FOLDER)
    table = (place / "selected_tags.csv").read_bytes()
    hub.files["selected_tags.csv"] = table.replace(b"red_hair", b"red_hats")  # of the same size
    start(tmp_path, download=True)
    assert (place / "selected_tags.csv").read_bytes() == table, "what is there is taken"
    start(tmp_path, force_download=True)
    assert (place / "selected_tags.csv").read_bytes() == hub.files["selected_tags.csv"]
    assert (tmp_path / "set" / "red.txt").read_text().startswith("red hats")
    assert {path.name for path in place.iterdir()} == {"model.onnx", "selected_tags.csv"}
    monkeypatch.setattr("core.formats.hub.fetch.FIRST_WAIT", 0.0)
    monkeypatch.setattr("core.formats.hub.fetch.TRIES", 1)
    before, hub.files["selected_tags.csv"], hub.cut_after = (place / "model.onnx").read_bytes(), table, 100
    with refused("model.download-failed"):
        start(tmp_path, force_download=True)
    assert (place / "model.onnx").read_bytes() == before and b"red_hats" in (place / "selected_tags.csv").read_bytes()
    _, _, events = start(tmp_path, force_download=True, model_dir=str(place))
    assert [event.text for event in events if event.kind == "log" and "Download again" in event.text]


def test_an_interrupted_download_resumes_and_shows_no_half_file(tmp_path, hub, monkeypatch):
    monkeypatch.setattr("core.formats.hub.fetch.FIRST_WAIT", 0.0)
    monkeypatch.setattr("core.formats.hub.fetch.TRIES", 1)
    hub.files["model.onnx"] = random.Random(1).randbytes(3_000_000)
    hub.cut_after = 2_000_000
    names = ["selected_tags.csv", "model.onnx"]
    place = tmp_path / "place"
    with refused("model.download-failed"):
        download_files(HubId("a", "b"), names, place, lambda done, total: None)
    assert not (place / "model.onnx").exists() and (place / "model.onnx.part").stat().st_size > 0
    have = (place / "model.onnx.part").stat().st_size
    hub.cut_after = None
    download_files(HubId("a", "b"), names, place, lambda done, total: None)
    assert (place / "model.onnx").read_bytes() == hub.files["model.onnx"]
    assert f"bytes={have}-" in {reach for _, reach, _ in hub.asked}


def test_offline_or_without_the_file_it_says_how_by_hand(tmp_path, hub, monkeypatch):
    with refused("model.download-failed", "other.onnx", tmp_path / "place"):
        download_files(HubId("a", "b"), ["other.onnx"], tmp_path / "place", lambda *words: None)
    with no_network(allow_attempts=True), refused("model.download-failed", "model.onnx", REPO):
        start(tmp_path, download=True)
    assert not (tmp_path / "set" / "red.txt").exists()


# ---- files that are incomplete or hostile


def tried(folder):
    """What the check says of a folder; None for nothing."""
    try:
        check_tag(TagSettings(model_dir=str(folder)), Workspace(folder))
    except ProblemsError as error:
        return error.codes[0]
    return None


def test_a_cut_model_is_recognized_before_it_is_loaded(tmp_path):
    folder = wd_folder(tmp_path / "m")
    data = (folder / "model.onnx").read_bytes()
    assert tried(folder) is None
    for length in (0, 1, 10, len(data) // 2, len(data) - 1):
        (folder / "model.onnx").write_bytes(data[:length])
        assert tried(folder) == "tagger.bad-model", length
    for other in (
        b"<!doctype html><html>login",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
        b"\0" * 100,
    ):
        (folder / "model.onnx").write_bytes(other)
        assert tried(folder) == "tagger.bad-model"


def with_external(folder, location):
    model = onnx.load(str(write_model(folder / "model.onnx")))
    tensor = model.graph.initializer[2]
    external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../x", "C:\\x", "..\\secret", "\\\\host\\x"])
def test_numbers_outside_the_folder_are_refused(tmp_path, location):
    (tmp_path / "secret").write_bytes(b"\0" * 1000)
    with refused("tagger.bad-model", "outside"):
        check_onnx(with_external(tmp_path / "m", location))


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_that_leads_outside_is_refused(tmp_path):
    path = with_external(tmp_path / "m", "data.bin")
    with refused("tagger.bad-model", "data.bin"):
        check_onnx(path)
    (tmp_path / "secret").write_bytes(b"\0" * 1000)
    (tmp_path / "m" / "data.bin").symlink_to(tmp_path / "secret")
    with refused("tagger.bad-model", "outside"):
        check_onnx(path)


def test_numbers_inside_the_folder_and_in_attributes_are_followed(tmp_path):
    folder = wd_folder(tmp_path / "m")
    model = onnx.load(str(folder / "model.onnx"))
    external_data_helper.convert_model_to_external_data(model, location="data.bin", size_threshold=0)
    onnx.save(model, str(folder / "model.onnx"))
    assert (folder / "data.bin").stat().st_size > 0 and tried(folder) is None
    (folder / "data.bin").unlink()
    assert tried(folder) == "tagger.bad-model"
    hidden = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "x")
    external_data_helper.set_external_data(hidden, "../secret")
    inner = helper.make_graph([], "then", [], [], [hidden])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=helper.make_graph([], "else", [], []))
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with refused("tagger.bad-model", "outside"):
        check_onnx(folder / "model.onnx")


@pytest.mark.slow
def test_models_changed_by_chance_never_end_in_a_raw_error(tmp_path, monkeypatch):
    """Whatever bytes a file has: it tags, or the problem is of this product."""
    monkeypatch.undo()  # the model in a process of its own: it may crash it
    folder = wd_folder(tmp_path / "m")
    good = bytearray((folder / "model.onnx").read_bytes())
    random.seed(5)
    (tmp_path / "set").mkdir()
    seen = set()
    for _ in range(60):
        data = bytearray(good)
        for _ in range(random.choice([1, 3, 20])):
            data[random.randrange(len(data))] = random.randrange(256)
        (folder / "model.onnx").write_bytes(data)
        try:
            start(tmp_path, model_dir=str(folder))
            seen.add("tags")
        except ProblemsError as error:
            seen.add(error.codes[0])
    assert (
        {"tagger.bad-model", "tagger.model"}
        <= seen
        <= {"tagger.bad-model", "tagger.model", "tagger.bad-labels", "tags"}
    )


@pytest.mark.skipif(os.name == "nt", reason="no named pipes")
def test_pipes_and_folders_in_place_of_files_are_refused(tmp_path):
    folder = wd_folder(tmp_path / "m")
    (folder / "selected_tags.csv").unlink()
    os.mkfifo(folder / "selected_tags.csv")
    assert tried(folder) == "tagger.no-model"
    os.mkfifo(folder / "profile.json")
    assert tried(folder) == "file.is-pipe"


def test_a_graph_that_computes_another_shape_is_refused(tmp_path):
    folder = wd_folder(tmp_path / "m", labels=LABELS)
    model = onnx.load(str(folder / "model.onnx"))
    model.graph.node.append(helper.make_node("ReduceSum", ["output"], ["sum"], keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, []))
    onnx.save(model, str(folder / "model.onnx"))
    with refused("tagger.model"):
        start(tmp_path, model_dir=str(folder))


# ---- a model that asks for more than there is


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"batch": 20_000, "size": 448}, "tagger.bad-model"),
        ({"batch": 257}, "tagger.bad-model"),
        ({"batch": 256}, None),
        ({"batch": 40, "size": 2048}, "tagger.bad-model"),
        ({"batch": 10, "size": 2048}, None),
        ({"outputs": 1_000_001}, "tagger.bad-model"),
    ],
)
def test_the_check_refuses_a_batch_or_outputs_that_no_memory_holds(tmp_path, layout, asked, wanted):
    assert tried(wd_folder(tmp_path / "m", layout=layout, **asked)) == wanted


def test_weights_that_are_listed_as_inputs_are_no_images(tmp_path):
    folder = wd_folder(tmp_path / "m")
    model = onnx.load(str(folder / "model.onnx"))
    weights = onnx.numpy_helper.from_array(np.zeros((300, 2, 1, 1), np.float32), "kernel")
    model.graph.initializer.append(weights)
    model.graph.input.append(helper.make_tensor_value_info("kernel", onnx.TensorProto.FLOAT, [300, 2, 1, 1]))
    onnx.save(model, str(folder / "model.onnx"))
    assert tried(folder) is None
    del model.graph.initializer[-1]
    onnx.save(model, str(folder / "model.onnx"))
    assert tried(folder) == "tagger.bad-model"


def test_what_the_file_does_not_say_is_refused_before_any_image(tmp_path, monkeypatch):
    """A side that the model leaves open is that of the profile."""
    opened = []
    monkeypatch.setattr("core.captioning.tagger.tagging.make_prepare", lambda *words: opened.append(words))
    folder = wd_folder(tmp_path / "m", batch=200, size="side")
    (folder / "profile.json").write_text('{"size": 4096}')
    assert tried(folder) is None
    with refused("tagger.model", "GB"):
        start(tmp_path, model_dir=str(folder))
    wd_folder(folder, size="side")
    with refused("tagger.batch"):
        start(tmp_path, model_dir=str(folder), batch_size=64)
    assert not opened
