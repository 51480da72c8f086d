"""Each kind of tagger: its label table, what its input looks like, and what its output means."""

import json

import numpy as np
import pytest
from PIL import Image

from core import extensions
from core.captioning.tagger.folder import ModelFiles, check_files, find
from core.captioning.tagger.labels import read_csv, read_mapping, read_metadata
from core.captioning.tagger.preprocess import make_prepare
from core.captioning.tagger.profile import CAMIE, CL, DEEPDANBOORU, FIX, PIXAI, PROFILES, WD, Profile
from core.captioning.tagger.session import Tagger
from core.captioning.tagger.tagging import _report_provider, check_tag
from core.captioning.tagger.tags import Label
from core.formats.onnx.profile import read_profile
from core.formats.onnx.providers import CPU, onnxruntime, providers_for
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.captioning.tagger import TagSettings
from tests.captioning.tagger.models import COLORS, LABELS, score, sigmoid, wd_folder, write_csv, write_model
from tests.refusals import refused
from tests.tasks import surroundings

pytestmark = pytest.mark.usefixtures("onnx_here")

NAMES = [name for name, *_ in LABELS]
KINDS = {"9": "rating", "0": "general", "4": "character"}


def load(profile, folder, tmp_path):
    return Tagger(ModelFiles(profile, folder, True), TagSettings(), surroundings(Workspace(tmp_path / "out")))


def scores_of(tagger, folder, color="red"):
    """{tag: score} of an image of one color."""
    path = folder / f"{color}.png"
    Image.new("RGB", (50, 50), COLORS[color]).save(path)
    (values,) = tagger.run([make_prepare(tagger.profile, tagger.size, "none")(path)])
    return {label.name: value for label, value in tagger.scored(values)}


# ---- tables


def test_a_table_is_read_by_its_columns_with_quoted_names(tmp_path):
    path = tmp_path / "selected_tags.csv"
    rows = 'count,category,NAME,ips\n1,9,general,\n1,0,"a,b ""c""",\n1,4,miku,"[""vocaloid"",""x""]"\n1,3,series,\n1,77,o,\n'
    path.write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert read_csv(path) == [
        Label("general", "rating"),
        Label('a,b "c"', "general"),
        Label("miku", "character", ("vocaloid", "x")),
        Label("series", "copyright"),
        Label("o", "77"),
    ]


def test_tables_of_json_may_have_gaps_and_three_forms(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"0": {"tag": "a", "category": "General"}, "2": {"tag": "b", "category": "Quality"}}))
    assert read_mapping(path) == [Label("a", "general"), Label("", ""), Label("b", "quality")]
    inner = {"idx_to_tag": {"1": "b", "0": "a"}, "tag_to_category": {"a": "rating", "b": "year"}}
    for values in (inner, {"dataset_info": {"tag_mapping": inner}, "model_info": {}}):
        path.write_text(json.dumps(values))
        assert read_mapping(path) == [Label("a", "rating"), Label("b", "year")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"tag_id,name,category\n",
        b"tag_id,name\n1,a\n",
        b"name,category\n\xff\xfe,0\n",
        b"name,category\na,0,\n,0\n",
        b"name,category\na\n",
        b"name,category\na,\n",
        b'name,category\n"a,0\n',
        b"name,category\n" + b"x" * 400 + b",0\n",
        b"name,category\n" + b"x" * 200_000 + b",0\n",
        b"name,category,ips\na,4,{}\n",
        b"name,category,ips\na,4,[[[[\n",
    ],
)
def test_a_csv_that_is_no_table_is_refused(tmp_path, data):
    path = tmp_path / "selected_tags.csv"
    path.write_bytes(data)
    with pytest.raises(ProblemsError) as caught:
        read_csv(path)
    assert caught.value.codes[0] in ("tagger.bad-labels", "file.not-json") and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"a": {"tag": "x", "category": "y"}}', '{"0": "a"}', '{"0": {"tag": 1, "category": "y"}}',
        '{"-1": {"tag": "x", "category": "y"}}', '{"99999999": {"tag": "x", "category": "y"}}', '{"idx_to_tag": {"0": "a"}}',
        '{"0": {"tag": "  ", "category": "y"}}', '{"idx_to_tag": {"0": []}, "tag_to_category": {}}', "[" * 10_000,
        '{"999999": {"tag": "x", "category": "y"}}',
    ],
)  # fmt: skip
def test_a_json_that_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "tag_mapping.json"
    path.write_text(text)
    with pytest.raises(ProblemsError) as caught:
        read_mapping(path)
    assert caught.value.codes[0] in ("tagger.bad-labels", "file.not-json", "file.not-json-object")


@pytest.mark.parametrize(
    "text",
    ["", "1", "['a', 1]", "__import__('os')", "[" * 5000, "-" * 100_000 + "1", "[]", "['']", str(["a"] * 150_000)],
)
def test_metadata_that_is_no_list_of_tags_is_refused(tmp_path, text):
    with refused("tagger.bad-labels"):
        read_metadata(text, tmp_path / "model.onnx")


# ---- models


@pytest.mark.parametrize("half", [False, True])
def test_wd(tmp_path, half):
    """NHWC, blue first, 0 to 255, probabilities."""
    found = scores_of(load(WD[0], wd_folder(tmp_path / "m", half=half), tmp_path), tmp_path)
    assert found["red_hair"] == pytest.approx(score("red_hair", COLORS["red"]), abs=2e-3 if half else 1e-6)
    assert "blue_sky" not in found and found["explicit"] < 0.05, "ratings are kept whatever their score"


def test_cl_tagger(tmp_path):
    """NCHW, blue first, -1 to 1, logits, a table with gaps."""
    folder = tmp_path / "m"
    write_model(folder / CL[0].model, layout="NCHW", scale=0.5, logits=True, outputs=len(LABELS))
    table = {str(n): {"tag": name, "category": KINDS[code]} for n, (name, code, *_) in enumerate(LABELS) if n != 7}
    (folder / CL[0].labels).write_text(json.dumps(table))
    check_files(ModelFiles(CL[0], folder, True))
    found = scores_of(load(CL[0], folder, tmp_path), tmp_path)
    assert found["red_hair"] == pytest.approx(float(sigmoid(8 * 0.5 - 4)), abs=1e-5)
    assert "solo" not in found and "" not in found


def test_camie(tmp_path):
    """The second of its heads, RGB by ImageNet's mean and deviation, padded with that mean."""
    folder = tmp_path / "m"
    write_model(folder / CAMIE[0].model, layout="NCHW", scale=1, logits=True, heads=("initial", "refined"))
    inner = {
        "idx_to_tag": {str(n): name for n, name in enumerate(NAMES)},
        "tag_to_category": {name: KINDS[code] for name, code, *_ in LABELS},
    }
    (folder / CAMIE[0].labels).write_text(json.dumps({"dataset_info": {"tag_mapping": inner}}))
    tagger = load(CAMIE[0], folder, tmp_path)
    red = (1 - 0.485) / 0.229  # the model's first channel, which is red here
    assert scores_of(tagger, tmp_path)["blue_sky"] == pytest.approx(float(sigmoid((8 * red - 4) / 2)), abs=1e-5)
    Image.new("RGB", (100, 10), "black").save(tmp_path / "wide.png")
    values = make_prepare(tagger.profile, (32, 32), "none")(tmp_path / "wide.png")
    assert abs(values[:, 0, 0]).max() < 0.02, "padding is 0 for the model"


def test_pixai(tmp_path):
    """An output chosen by name, stretched RGB of -1 to 1, series of characters in the table."""
    folder = tmp_path / "m"
    write_model(folder / "model.onnx", layout="NCHW", scale=1, heads=("embedding", "prediction"))
    series = {"4": '"[""gems""]"'}
    rows = "\n".join(f"{name},{code},{series.get(code, '')}" for name, code, *_ in LABELS)
    (folder / "selected_tags.csv").write_text(f"name,category,ips\n{rows}\n")
    tagger = load(PIXAI, folder, tmp_path)
    assert scores_of(tagger, tmp_path)["blue_sky"] == pytest.approx(float(sigmoid(8 - 4)) / 2, abs=1e-5)
    assert tagger.labels[-1].series == ("gems",)
    Image.new("RGB", (100, 10), "white").save(tmp_path / "wide.png")
    assert (make_prepare(tagger.profile, (32, 32), "none")(tmp_path / "wide.png") == 1).all()


def test_deepdanbooru(tmp_path):
    """Tags in the model's metadata, RGB 0 to 1, fitted with its edge repeated."""
    folder = tmp_path / "m"
    names = ["rating:safe" if name == "general" else name for name in NAMES]
    write_model(folder / "deepdanbooru.onnx", scale=1, metadata={"tags": repr(names)}, size="side")
    tagger = load(DEEPDANBOORU, folder, tmp_path)
    assert tagger.size == (512, 512) and tagger.labels[0] == Label("rating:safe", "rating")
    assert scores_of(tagger, tmp_path)["blue_sky"] == pytest.approx(float(sigmoid(4)), abs=1e-5)
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (0, 0, 45, 30))
    image.save(tmp_path / "wide.png")
    values = make_prepare(tagger.profile, (32, 32), "none")(tmp_path / "wide.png")
    assert values[0, 0].tolist() == [0, 0, 1] and values[-1, -1].tolist() == [1, 0, 0]


def test_every_known_model_can_be_chosen_and_lies_in_a_folder_of_its_name(tmp_path):
    extensions.load()
    workspace = Workspace(tmp_path / "out", tmp_path / "models")
    for name, profile in PROFILES.items():
        found = find(TagSettings(repo_id=name), workspace)
        assert found.folder == tmp_path / "models" / "captioners" / profile.repo.replace("/", "_")
        assert profile.title and profile.license and profile.megabytes and "general" in profile.thresholds
        assert not profile.labels or profile.label_kind != "metadata"
    assert len(PROFILES) == len({profile.title for profile in PROFILES.values()}) == 18


# ---- a person's own


def test_an_own_profile_is_read_and_checked(tmp_path):
    folder = tmp_path / "m"
    write_model(folder / "net.onnx", layout="NCHW", scale=1, logits=True)
    write_csv(folder / "tags.csv")
    own = {
        "title": "Mine", "model": "net.onnx", "labels": "tags.csv", "layout": "NCHW", "channels": "RGB", "scale": "1",
        "sigmoid": True, "thresholds": {"general": 0.9}, "pad_color": [0, 0, 0], "mean": [0, 0, 0], "std": [0.5, 1, 1],
    }  # fmt: skip
    (folder / "profile.json").write_text(json.dumps(own))
    found = find(TagSettings(model_dir=str(folder)), Workspace(tmp_path / "out"))
    assert found.title == "Mine" and found.profile.thresholds == {"general": 0.9}
    assert scores_of(load(found.profile, folder, tmp_path), tmp_path)["blue_sky"] == pytest.approx(
        float(sigmoid(8 * 2 - 4)), abs=1e-5
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "../x.onnx"}, {"labels": "/etc/passwd"}, {"files": ["C:x"]}, {"size": 0}, {"std": [0, 1, 1]}, {"extra": 1},
        {"layout": "HWC"}, {"thresholds": {"general": 0}}, {"thresholds": {"tail": 0.5}}, {"mean": [1]}, {"pad_color": [0, 0, 300]},
        {"std": [float("nan"), 1, 1]},
    ],
)  # fmt: skip
def test_a_bad_profile_is_refused(tmp_path, changed):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(ProblemsError) as caught:
        read_profile(path, Profile, FIX, "tagger.bad-profile")
    assert caught.value.codes[0] in ("tagger.bad-profile", "file.not-json")
    assert "Value error" not in str(caught.value)


def test_all_that_is_wrong_in_a_profile_is_listed(tmp_path):
    (tmp_path / "profile.json").write_text('{"size": 0, "scale": "9", "huh": 1}')
    with pytest.raises(ProblemsError) as caught:
        read_profile(tmp_path / "profile.json", Profile, FIX, "tagger.bad-profile")
    assert len(caught.value.problems) == 3


# ---- preparing


def test_the_input_is_a_white_square_with_blue_first(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (60, 40), (10, 20, 30)).save(path)
    for compatibility in ("none", "sd-scripts-0.9"):
        values = make_prepare(WD[0], (448, 448), compatibility)(path)
        assert values.shape == (448, 448, 3) and values.dtype == np.float32
        assert values[0, 0].tolist() == [255, 255, 255] and values[224, 224].tolist() == [30, 20, 10]


def test_an_odd_pixel_of_padding_goes_below(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 29), "black").save(path)
    column = make_prepare(WD[0], (32, 32), "none")(path)[:, 0, 0]
    assert (column == 255).nonzero()[0].tolist() == [0, 30, 31]


def test_larger_images_are_antialiased_except_with_compatibility(tmp_path):
    """Every other column is black: the mean is half. Bilinear at an eighth looks at two columns of sixteen."""
    path = tmp_path / "a.png"
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::16] = stripes[:, 1::16] = 255
    Image.fromarray(stripes).save(path)
    assert make_prepare(WD[0], (32, 32), "none")(path).mean() == pytest.approx(255 / 8, abs=3)
    old = make_prepare(WD[0], (32, 32), "sd-scripts-0.9")(path)
    assert old.max() == 0, "the columns between are never looked at"


def test_rotation_and_depth_are_those_of_the_trainer(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    image.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    values = make_prepare(WD[0], (40, 40), "none")(tmp_path / "a.jpg")
    assert values[5, 20].argmax() == 0 and values[35, 20].argmax() == 2, "blue (first) above red (last)"
    Image.fromarray(np.full((20, 20), 32768, np.uint16)).save(tmp_path / "b.png")
    assert make_prepare(WD[0], (20, 20), "none")(tmp_path / "b.png")[10, 10].tolist() == [128, 128, 128]


# ---- what is wrong with a model


def test_a_table_of_another_length_names_both_numbers(tmp_path):
    folder = wd_folder(tmp_path / "m", outputs=12)
    with refused("tagger.model", 12, 10):
        load(WD[0], folder, tmp_path)


@pytest.mark.slow(only=("profile1-asked1", "profile3-asked3"))
@pytest.mark.parametrize(
    ("profile", "asked"),
    [
        (WD[0], {"layout": "NCHW"}),
        (WD[0], {"logits": True, "scale": 1.0}),
        (Profile(output=3), {}),
        (Profile(output="refined"), {}),
        (WD[0], {"size": 5000}),
    ],
)
def test_a_model_that_does_not_fit_its_profile_is_refused_before_any_image(tmp_path, profile, asked):
    with refused("tagger.model", "m"):
        load(profile, wd_folder(tmp_path / "m", **asked), tmp_path)


def test_models_of_other_libraries_are_recognized(tmp_path):
    for name in ("saved_model.pb", "keras_metadata.pb", "project.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(b"x")
        with refused("tagger.tensorflow", "model.onnx"):
            check_files(find(TagSettings(model_dir=str(folder)), Workspace(tmp_path)))


def test_the_own_folder_of_a_known_model_keeps_its_profile(tmp_path):
    (tmp_path / CAMIE[0].folder_name).mkdir()
    found = find(TagSettings(model_dir=str(tmp_path / CAMIE[0].folder_name)), Workspace(tmp_path))
    assert found.profile == CAMIE[0] and found.is_users
    with refused("tagger.no-folder"):
        find(TagSettings(model_dir=str(tmp_path / "none")), Workspace(tmp_path))


# ---- providers


CUDA = "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("asked", "device", "available", "wanted"),
    [
        ("auto", "cpu", [CUDA, CPU], [CPU]),
        ("auto", "cuda:1", [CUDA, CPU], [CUDA, CPU]),
        ("auto", "cuda", ["ROCMExecutionProvider", "MIGraphXExecutionProvider", CPU], ["MIGraphXExecutionProvider", CPU]),
        ("auto", "cpu", ["DmlExecutionProvider", CPU], ["DmlExecutionProvider", CPU]),
        ("auto", "cpu", ["OpenVINOExecutionProvider", CPU], ["OpenVINOExecutionProvider", CPU]),
        ("auto", "mps", ["CoreMLExecutionProvider", "AzureExecutionProvider", CPU], ["CoreMLExecutionProvider", CPU]),
        ("cpu", "cuda", [CUDA, CPU], [CPU]),
        ("cuda", "cpu", [CUDA, CPU], [CUDA, CPU]),
    ],
)  # fmt: skip
def test_the_gpu_is_taken_where_it_can_be_with_the_cpu_behind_it(asked, device, available, wanted):
    assert providers_for(asked, device, available) == wanted


def test_a_provider_that_is_not_installed_is_said_before_the_start(tmp_path):
    folder = wd_folder(tmp_path / "m")
    check_tag(TagSettings(model_dir=str(folder)), Workspace(tmp_path))
    if "DmlExecutionProvider" not in onnxruntime().get_available_providers():
        with refused("tagger.no-provider", CPU):
            check_tag(TagSettings(model_dir=str(folder), provider="directml"), Workspace(tmp_path))


def test_a_gpu_build_that_falls_back_is_said(tmp_path, monkeypatch):
    from core.captioning.tagger import session

    folder = wd_folder(tmp_path / "m")
    context = surroundings(Workspace(tmp_path / "out"))
    monkeypatch.setattr(session, "providers_for", lambda *words: [CUDA, CPU])
    tagger = Tagger(ModelFiles(WD[0], folder, True), TagSettings(), context)
    assert (tagger.wanted, tagger.provider) == (CUDA, CPU)
    assert said(tagger, "auto", context) == ["info", "warning"]


def said(tagger, provider, context):
    """The levels of what a person hears about where the tagger runs."""
    context.journal.events.clear()
    _report_provider(tagger, TagSettings(provider=provider), context)
    return [event.level for event in context.journal.events if event.kind == "log"]


def test_a_library_without_gpu_support_beside_a_gpu_is_said(tmp_path):
    context = surroundings(Workspace(tmp_path / "out"))
    tagger = Tagger(ModelFiles(WD[0], wd_folder(tmp_path / "m"), True), TagSettings(provider="cpu"), context)
    assert said(tagger, "auto", context) == ["info"]
    context.device = "cuda"
    assert said(tagger, "auto", context) == ["info", "warning"]
    assert said(tagger, "cpu", context) == ["info"], "as it was asked for"


def test_the_threads_are_those_of_the_product(tmp_path, monkeypatch):
    from core.record import machine

    monkeypatch.setattr(machine, "threads", lambda: 3)
    tagger = load(WD[0], wd_folder(tmp_path / "m"), tmp_path)
    assert tagger._model.facts["threads"] == 3


def test_a_folder_below_the_captioners_is_chosen_by_its_name(tmp_path):
    space = Workspace(tmp_path / "out", tmp_path / "models")
    folder = wd_folder(space.captioners / "mine")
    assert find(TagSettings(model_dir="mine"), space).folder == folder
    wd_folder(space.models / "outside")
    refused(lambda: find(TagSettings(model_dir="../outside"), space), "tagger.no-folder")
