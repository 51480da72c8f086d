"""Pairs that the starter model generates from captions: images, captions and control images, ready to be trained."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from core import tasks
from core.control.hints import make_hint
from core.dataset.preflight import preflight
from core.generation.images.metadata import read_image_metadata
from core.generation.model.store import make_store
from core.record.cancel import CancelToken
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.hints import HintSettings
from core.settings.job import TrainJob
from core.tools.images import make_pairs as pairs
from tests.refusals import refused
from tests.tasks import surroundings
from tests.tools.images.test_hints import write_net

LINES = "a red (fox:1.3), flat icon\n\na blue {star|moon}, flat icon\n"
CAPTIONS = ["a red (fox:1.3), flat icon", "a blue {star|moon}, flat icon"]


@pytest.fixture(scope="module")
def store():
    return make_store()


@pytest.fixture
def space(tmp_path):
    (tmp_path / "captions.txt").write_text(LINES)
    return Workspace(tmp_path / "outputs", PROJECT / "models")


def job_of(tmp_path, **asked):
    given = {"captions": str(tmp_path / "captions.txt"), "output": str(tmp_path / "out"), "steps": 2}
    return build(tasks.named("make_pairs").job, {"make_pairs": given | asked})


def use(space, tmp_path, store, cancel=None, **asked):
    context = surroundings(space, cancel)
    context.store = store
    return tasks.named("make_pairs").start(job_of(tmp_path, **asked), context)


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_each_caption_becomes_an_image_its_caption_and_its_control_image(space, tmp_path, store):
    outcome = use(space, tmp_path, store, preprocessor="canny", edge_low=40, edge_high=90)
    out = tmp_path / "out"
    made = files(out)
    names = ("00001", "00002")
    assert set(made) == {
        "pairs.json",
        *(each.format(name) for name in names for each in ("images/{}.png", "images/{}.txt", "control/{}.png")),
    }
    assert outcome.facts["pairs"] == {"images": str(out / "images"), "control": str(out / "control")}
    for name, caption in zip(names, CAPTIONS, strict=True):
        assert made[f"images/{name}.txt"].decode() == caption + "\n"
        image, asked = out / "images" / f"{name}.png", HintSettings(edge_low=40, edge_high=90)
        assert np.array_equal(make_hint(pixels(image), asked), pixels(out / "control" / f"{name}.png"))
        own = read_image_metadata(image).job.generate
        assert (own.prompt, own.prompt_weights, own.steps) == (caption, False, 2)
    dataset = {"folder": str(out / "images"), "conditioning_data_dir": str(out / "control"), "resolution": 64}
    report = preflight(build(TrainJob, {"method": {"kind": "controlnet"}, "dataset": dataset}), space)
    assert len(report.placed) == 2 and not [each.code for each in report.problems if each.level == "error"]

    (out / "images/00002.png").unlink()
    again = use(space, tmp_path, store, preprocessor="canny", edge_low=40, edge_high=90)
    assert (again.facts["written"], again.facts["kept"]) == (1, 1)
    assert np.abs(pixels(out / "images/00002.png").astype(int) - pixels_of(made["images/00002.png"])).max() <= 1


def test_pairs_whose_control_image_shows_nothing_are_named(space, tmp_path, store):
    nothing = {"preprocessor": "canny", "edge_low": 2000, "edge_high": 2000}  # nearly the steepest step that there is
    outcome = use(space, tmp_path, store, number=1, width=64, height=64, steps=1, **nothing)
    assert outcome.facts["black"] == ["00001.png"] and not pixels(tmp_path / "out/control/00001.png").any()


def pixels_of(content):
    from io import BytesIO

    return np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int)


def test_a_cancelled_job_keeps_whole_pairs_and_captions_repeat_with_other_seeds(space, tmp_path, store, monkeypatch):
    token, write = CancelToken(), pairs._write

    def cancelled_after_one(*given):
        write(*given)
        token.cancel()

    monkeypatch.setattr(pairs, "_write", cancelled_after_one)
    asked = {"number": 3, "preprocessor": "invert", "width": 64, "height": 64, "steps": 1}
    assert use(space, tmp_path, store, token, **asked).state == "stopped"
    assert len(files(tmp_path / "out")) == 4
    monkeypatch.undo()
    for other in ({"seed": 7}, {"preprocessor": "canny"}, {"steps": 2}):  # never mixed with those that are there
        with refused("pairs.other-settings"):
            use(space, tmp_path, store, **asked | other)
    (tmp_path / "captions.txt").write_text("a green fox\n" + LINES)
    with refused("pairs.other-settings"):
        use(space, tmp_path, store, **asked)
    (tmp_path / "captions.txt").write_text(LINES)
    (tmp_path / "out/images/00001.txt").write_text("edited by hand\n")
    use(space, tmp_path, store, **asked)
    images = [pixels(path) for path in sorted((tmp_path / "out/images").glob("*.png"))]
    assert len(images) == 3 and images[0].shape == (64, 64, 3) and not np.array_equal(images[0], images[2])
    assert (tmp_path / "out/images/00003.txt").read_text() == CAPTIONS[0] + "\n"


def test_captions_of_a_folder_and_a_model_make_pairs(space, tmp_path, store):
    folder = tmp_path / "captions"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "b.caption").write_text("a green\n tree")
    (folder / "a.txt").write_bytes("ein grüner Baum".encode("latin-1"))
    net = write_net(tmp_path / "half.onnx")
    (tmp_path / "profile.json").write_text('{"values": "1", "size": 64, "multiple": 32}')
    use(
        space,
        tmp_path,
        store,
        captions=str(folder),
        preprocessor="model",
        hint_model=str(net),
        steps=1,
        width=64,
        height=64,
    )
    texts = [path.read_text() for path in sorted((tmp_path / "out/images").glob("*.txt"))]
    assert texts == ["ein grüner Baum\n", "a green tree\n"]
    red, hint = pixels(tmp_path / "out/images/00001.png")[..., 0], pixels(tmp_path / "out/control/00001.png")
    assert abs(hint[..., 0] - red / 2).max() <= 0.6


@pytest.mark.parametrize(
    ("asked", "codes"),
    [
        ({"captions": ""}, ["pairs.no-captions"]),
        ({"captions": "nowhere.txt", "preprocessor": "model", "width": 72}, ["pairs.no-captions", "hint-model.none"]),
        ({"base_model": "nowhere"}, ["model.not-found"]),
        ({"output": "captions.txt"}, ["tools.output-is-file"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_start(space, tmp_path, asked, codes):
    asked = {
        name: str(tmp_path / value) if value and name in ("captions", "output") else value
        for name, value in asked.items()
    }
    with refused(codes[0]) as caught:
        tasks.named("make_pairs").check_job(job_of(tmp_path, **asked), space)
    assert set(codes) <= set(caught.value.codes)
    assert all(problem.where.startswith("make_pairs.") for problem in caught.value.problems)
