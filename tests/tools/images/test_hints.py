"""Control images of a folder: by a preprocessor, and by an ONNX model."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from core import tasks
from core.cli.main import main
from core.control.hints import make_hint
from core.control.hints.pose.drawing import COLORS
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.hints import HintSettings
from core.settings.presets.files import parse
from core.tools.images import hints
from tests.refusals import refused
from tests.tasks import surroundings

pytestmark = pytest.mark.usefixtures("onnx_here")


def picture(height=60, width=90, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((10, 10, 1), np.uint8))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    (root / "sub" / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.v2.webp", "sub/c.bmp", "sub/deep/a.png")):
        Image.fromarray(picture(seed=number)).save(root / name, **({"lossless": True} if name.endswith("webp") else {}))
    (root / "a.txt").write_text("a caption")
    Image.new("L", (90, 60)).save(root / "a-masklabel.png")
    (root / "broken.png").write_bytes(b"no image")
    return root


def job_of(folder, task="make_hints", /, **asked):
    given = {"folder": str(folder), "output": str(folder.parent / "out")} | asked
    return build(tasks.named(task).job, {task: given})


def use(folder, task="make_hints", /, cancel=None, **asked):
    context = surroundings(Workspace(folder.parent / "outputs", folder.parent / "models"), cancel)
    return tasks.named(task).start(job_of(folder, task, **asked), context), context


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


ALL = {"a.png", "b.v2.png", "sub/c.png", "sub/deep/a.png"}


def test_each_image_gets_a_lossless_hint_of_its_name_in_mirrored_folders(folder, tmp_path):
    before = files(folder)
    outcome, _ = use(folder, preprocessor="blur", blur_radius=2.0)
    assert files(tmp_path / "out") == ALL and files(folder) == before
    for number, name in enumerate(sorted(ALL)):
        wanted = make_hint(picture(seed=number), HintSettings(preprocessor="blur", blur_radius=2.0))
        assert np.array_equal(pixels(tmp_path / "out" / name), wanted)
    (skipped,) = outcome.facts["skipped"]
    assert skipped["path"] == "broken.png" and len(outcome.facts["written"]) == 4
    use(folder, preprocessor="canny", output=str(tmp_path / "lines"))
    with Image.open(tmp_path / "lines" / "a.png") as image:
        assert image.mode == "L"  # a third of the size


def test_only_missing_hints_are_made_unless_all_are_asked_for(folder, tmp_path):
    use(folder, preprocessor="grayscale")
    (tmp_path / "out" / "a.png").unlink()
    outcome, _ = use(folder, preprocessor="invert")
    assert outcome.facts["kept"] == 3 and [path.split("/")[-1] for path in outcome.facts["written"]] == ["a.png"]
    assert np.array_equal(pixels(tmp_path / "out" / "a.png"), 255 - picture())
    assert not np.array_equal(pixels(tmp_path / "out/sub/c.png"), 255 - picture(seed=2))
    outcome, _ = use(folder, preprocessor="invert", existing="replace")
    assert (len(outcome.facts["written"]), outcome.facts["kept"]) == (4, 0)
    assert np.array_equal(pixels(tmp_path / "out/sub/c.png"), 255 - picture(seed=2))


def test_a_cancelled_job_leaves_whole_files_and_resumes_with_the_others(folder, tmp_path, monkeypatch):
    token, write = CancelToken(), hints.write_hint

    def cancelled_after_two(hint, target):
        write(hint, target)
        if len(files(tmp_path / "out")) == 2:
            token.cancel()

    monkeypatch.setattr(hints, "write_hint", cancelled_after_two)
    outcome, _ = use(folder, cancel=token, preprocessor="invert")
    assert outcome.state == "stopped" and files(tmp_path / "out") < ALL
    for path in (tmp_path / "out").rglob("*.png"):
        assert pixels(path).shape == (60, 90, 3)
    outcome, _ = use(folder, preprocessor="invert")
    assert (len(outcome.facts["written"]), outcome.facts["kept"]) == (2, 2) and files(tmp_path / "out") == ALL


def test_a_disk_that_is_full_leaves_no_part_of_a_file(folder, tmp_path, monkeypatch):
    def full(image, file, *_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ProblemsError):
        use(folder, preprocessor="invert")
    assert files(tmp_path / "out") == set()


def test_two_images_of_one_name_are_named(folder, tmp_path):
    Image.fromarray(picture(seed=9)).save(folder / "a.jpg")
    outcome, _ = use(folder)
    assert {each["path"] for each in outcome.facts["skipped"]} == {"a.png", "broken.png"}
    assert files(tmp_path / "out") == ALL


def test_a_preview_shows_pairs_and_writes_nothing(folder, tmp_path):
    outcome, _ = use(folder, preprocessor="invert", preview=2)
    assert not (tmp_path / "out").exists()
    first, second = outcome.facts["previews"]
    assert first["image"] == str(folder / "a.png") and np.array_equal(pixels(first["hint"]), 255 - picture())
    assert second["name"] == "b.v2.webp"


def test_hints_are_made_at_the_resolution(folder, tmp_path):
    use(folder, preprocessor="grayscale", hint_resolution=64)  # smaller images are not enlarged
    assert pixels(tmp_path / "out" / "a.png").shape == (60, 90, 3)
    Image.fromarray(picture(200, 320)).save(folder / "large.png")
    use(folder, preprocessor="grayscale", hint_resolution=64)
    assert pixels(tmp_path / "out" / "large.png").shape == (64, 102, 3)


def test_each_image_has_random_numbers_of_its_own_that_come_again(folder, tmp_path):
    for name in ("a.png", "sub/deep/a.png"):
        Image.new("RGB", (90, 60), "white").save(folder / name)
    for place in ("out", "again"):
        use(folder, preprocessor="inpaint", output=str(tmp_path / place))
    one, other = (pixels(tmp_path / "out" / name) for name in ("a.png", "sub/deep/a.png"))
    assert not np.array_equal(one, other) and np.array_equal(one, pixels(tmp_path / "again" / "a.png"))


def test_transparent_parts_are_the_mask_of_inpainting(folder, tmp_path):
    image = Image.fromarray(picture()).convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([0] * 30 + [255] * 60)[None], 60, axis=0)))
    image.save(folder / "a.png")
    use(folder, preprocessor="inpaint")
    wanted = picture()
    wanted[:, :30] = 0
    assert np.array_equal(pixels(tmp_path / "out" / "a.png"), wanted)


def test_a_setting_that_the_preprocessor_does_not_read_is_named(folder):
    _, context = use(folder, preprocessor="blur", edge_low=3)
    said = [event.text for event in context.journal.events if getattr(event, "level", "") == "warning"]
    assert any("Canny low threshold" in text for text in said)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"folder": ""}, "tools.no-folder-chosen"),
        ({"folder": "nowhere"}, "tools.no-such-folder"),
        ({"output": "set/hints"}, "tools.output-inside-folder"),
    ],
)
def test_what_cannot_be_is_refused_before_the_start(folder, tmp_path, asked, code):
    asked = {name: str(tmp_path / value) if value else "" for name, value in asked.items()}
    task = tasks.named("make_hints")
    with refused(code):
        task.check_job(job_of(folder, **asked), Workspace(tmp_path / "outputs"))


def test_without_an_output_each_preprocessor_has_a_folder(folder, tmp_path):
    for name in ("blur", "tile"):
        use(folder, preprocessor=name, output=None)
    assert files(tmp_path / "outputs/datasets/control") == {
        f"set_{name}/{each}" for name in ("blur", "tile") for each in ALL
    }


def test_the_former_tool_for_edges_is_a_preprocessor(folder, tmp_path, capsys):
    former = {"kind": "job", "schema_version": 2, "task": "edges", "edges": {"folder": str(folder), "edge_high": 300}}
    now = parse(former, "job.json")
    assert now.task == "make_hints"
    asked = build(tasks.named("make_hints").job, now.values).make_hints
    assert (asked.preprocessor, asked.edge_low, asked.edge_high) == ("canny", 32, 300)
    atomic.write_json(tmp_path / "job.json", former)
    words = [str(tmp_path / "job.json"), "--edges.edge_low", "4", "--outputs", str(tmp_path / "o"), "--check"]
    assert main(["edges", *words]) == 0 and "Canny edges: from" in capsys.readouterr().out


# ---- ONNX models


def write_net(
    path, *, inputs=1, shape=("N", 3, "H", "W"), output=("N", 1, "H", "W"), names=("hint",), scale=0.5, kind=TensorProto.FLOAT
):  # fmt: skip
    """`scale` times the image's first channel (or all of them), as a model of this contract gives it."""
    channel = 1 if shape[1] == 3 else 3
    values = helper.make_tensor_value_info
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    constants = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([scale], dtype), "scale"),
    ]
    nodes = [helper.make_node("Mul", ["image", "scale"], ["scaled"])]
    if len(output) == 3:
        nodes += [
            helper.make_node("Gather", ["scaled", "zero"], ["one"], axis=channel),
            helper.make_node("Squeeze", ["one", "axis"], [names[0]]),
        ]
        constants.append(numpy_helper.from_array(np.array([channel], np.int64), "axis"))
    elif output[channel] == 1:
        nodes.append(helper.make_node("Gather", ["scaled", "zero"], [names[0]], axis=channel))
    elif output[channel] == 3:
        nodes.append(helper.make_node("Identity", ["scaled"], [names[0]]))
    else:
        nodes.append(helper.make_node("Concat", ["scaled", "scaled", "scaled"], [names[0]], axis=channel))
    nodes += [helper.make_node("Identity", ["scaled"], [name]) for name in names[1:]]
    given = [values("image", kind, shape), *(values(f"more{n}", kind, shape) for n in range(inputs - 1))]
    graph = helper.make_graph(nodes, "net", given, [values(name, kind, None) for name in names], constants)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def by_model(folder, profile=None, **asked):
    if profile is not None:
        (folder.parent / "models/preprocessors/net/profile.json").write_text(json.dumps(profile))
    outcome, _ = use(folder, "hints_by_model", **{"hint_model": "net", "hint_resolution": None} | asked)
    return outcome


@pytest.fixture
def net(folder):
    return folder.parent / "models/preprocessors/net/model.onnx"


PLAIN = {"values": "1", "size": 60, "multiple": 30}


@pytest.mark.parametrize(
    "contract",
    [
        {},
        {"output": ("N", "H", "W")},
        {"output": ("N", 3, "H", "W")},
        {"shape": ("N", "H", "W", 3), "output": ("N", "H", "W", 1)},
        {"shape": (1, "H", "W", 3), "output": (1, "H", "W", 3)},
        {"shape": (4, 3, 60, 90), "output": (4, 1, 60, 90)},
        {"kind": TensorProto.FLOAT16},
    ],
    ids=str,
)
def test_a_model_of_one_image_to_one_image_makes_hints(folder, net, tmp_path, contract):
    write_net(net, **contract)
    by_model(folder, PLAIN)
    assert files(tmp_path / "out") == ALL
    image = picture()
    channels = image if 3 in contract.get("output", ())[1:] else np.repeat(image[..., :1], 3, axis=2)
    assert abs(pixels(tmp_path / "out" / "a.png") - channels / 2).max() <= 0.6


@pytest.mark.parametrize(
    ("profile", "wanted"),
    [
        ({"values": "range"}, lambda x: (x - x.min()) / (x.max() - x.min()) * 255),
        ({"values": "1", "invert": True}, lambda x: 255 - x),
        ({"values": "-1"}, lambda x: (x / 255 + 1) * 127.5),
        ({"values": "255", "scale": "255"}, lambda x: x),
        ({"values": "1", "mean": [0.5, 0, 0], "std": [0.5, 1, 1]}, lambda x: ((x / 255 - 0.5) / 0.5 * 255).clip(0)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "levels",
)
def test_a_profile_says_what_numbers_mean(folder, net, tmp_path, profile, wanted):
    write_net(net, scale=1.0)
    by_model(folder, {"size": 60, "multiple": 30} | profile)
    red = picture()[..., 0].astype(float)
    assert abs(pixels(tmp_path / "out" / "a.png")[..., 0] - wanted(red)).max() <= 0.6


def test_bgr_models_are_given_blue_first(folder, net, tmp_path):
    write_net(net, scale=1.0)
    by_model(folder, PLAIN | {"channels": "BGR"})
    assert np.array_equal(pixels(tmp_path / "out" / "a.png")[..., 0], picture()[..., 2])


def test_images_of_other_sizes_come_back_at_their_size(folder, net, tmp_path):
    write_net(net, shape=(1, 3, 32, 32), output=(1, 1, 32, 32))
    by_model(folder)
    assert {pixels(tmp_path / "out" / name).shape for name in ALL} == {(60, 90, 3)}


@pytest.mark.parametrize(
    ("contract", "code", "fact"),
    [
        ({"names": ("paf", "heat")}, "hint-model.model", "paf, heat"),
        ({"output": ("N", 9, "H", "W")}, "hint-model.model", "9 channels"),
        ({"inputs": 2}, "hint-model.model", "inputs"),
        ({"shape": ("N", 4, "H", "W"), "output": ("N", 3, "H", "W")}, "hint-model.model", "3 colors"),
        ({"scale": float("nan")}, "hint-model.not-finite", "NaN"),
    ],
    ids=str,
)
def test_other_models_are_refused_by_name(folder, net, tmp_path, contract, code, fact):
    write_net(net, **contract)
    with refused(code, "net", fact):
        by_model(folder)
    assert not (tmp_path / "out").exists()


def test_files_and_profiles_are_checked_before_a_library_opens_them(folder, net, tmp_path):
    task, space = tasks.named("hints_by_model"), Workspace(tmp_path / "outputs", tmp_path / "models")

    def look(**asked):
        task.check_job(job_of(folder, "hints_by_model", **{"hint_model": "net"} | asked), space)

    with refused("hint-model.none"):
        look()
    write_net(net)
    look()
    look(hint_model=str(net))
    net.write_bytes(net.read_bytes()[:-40])
    with refused("hint-model.bad-model"):
        look()
    (net.parent / "profile.json").write_text('{"values": "2", "std": [0, 1, 1]}')
    with refused("hint-model.bad-profile", "values", "std"):
        look()
    with refused("tools.no-folder-chosen") as caught:
        look(folder="", hint_model="none")
    assert "hint-model.none" in caught.value.codes


@pytest.fixture
def people(folder):
    """a.png shows a person, the others nobody; a folder of a pose model and a detector. Returns the person's keypoints."""
    from tests.control.hints import pose_models

    models = folder.parent / "models/preprocessors/net"
    pose_models.write_estimator(models / "dw-ll_ucoco_384.onnx", size=(96, 128))
    pose_models.write_detector(models / "yolox_l.onnx", box=(90, 120))
    for name in ("a.png", "b.v2.webp", "sub/c.bmp", "sub/deep/a.png"):
        image = np.zeros((320, 240, 3), np.uint8)
        if name == "a.png":
            points = pose_models.person(image, (120, 160), 280, mark=True)
        Image.fromarray(image).save(folder / name)
    return points


def test_the_two_models_of_dwpose_make_poses_and_images_with_nobody_are_named(folder, people, tmp_path):
    outcome, context = use(folder, "hints_by_model", hint_model="net")
    assert files(tmp_path / "out") == ALL
    assert outcome.facts["black"] == ["b.v2.webp", "sub/c.bmp", "sub/deep/a.png"]
    said = [event.text for event in context.journal.events if getattr(event, "level", "") == "warning"]
    assert any("b.v2.webp" in text and "sub/deep/a.png" in text for text in said)
    pose = pixels(tmp_path / "out" / "a.png")
    assert not pixels(tmp_path / "out" / "sub/c.png").any() and pose.shape == (320, 240, 3)
    for number, color in enumerate(COLORS):
        if number != 1:  # the neck is between the shoulders
            x, y = people[number].astype(int)
            near = pose[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
            assert (near == color).all(axis=1).any(), number
    outcome, _ = use(folder, "hints_by_model", hint_model="net", preview=1, output=str(tmp_path / "none"))
    assert np.array_equal(pixels(outcome.facts["previews"][0]["hint"]), pose) and not (tmp_path / "none").exists()
