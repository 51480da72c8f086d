"""Any valid dataset file, read and written again, means the same to sd-scripts; any job of its options comes back whole."""

import json

import pytest
import toml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.imports.dataset_config import apply_dataset_config, read_dataset_config
from core.imports.dataset_export import dataset_toml, write_dataset_config
from core.settings.check import build
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
OWN_WORDS = {  # sd-scripts' defaults, written down here once more: the test must not trust the importer's table
    "upper": {
        "batch_size": 1,
        "enable_bucket": False,
        "min_bucket_reso": 256,
        "max_bucket_reso": 1024,
        "bucket_reso_steps": 64,
        "bucket_no_upscale": False,
        "network_multiplier": 1.0,
        "validation_split": 0.0,
        "skip_image_resolution": 0,
        "resolution": None,
    },
    "any": {
        "num_repeats": 1,
        "shuffle_caption": False,
        "caption_separator": ",",
        "keep_tokens": 0,
        "keep_tokens_separator": "",
        "secondary_separator": "",
        "enable_wildcard": False,
        "caption_prefix": "",
        "caption_suffix": "",
        "caption_dropout_rate": 0,
        "caption_dropout_every_n_epochs": 0,
        "caption_tag_dropout_rate": 0,
        "token_warmup_min": 1,
        "token_warmup_step": 0,
        "color_aug": False,
        "flip_aug": False,
        "random_crop": False,
        "face_crop_aug_range": None,
        "custom_attributes": {},
        "resize_interpolation": None,
    },
    "beside": {"caption_extension": ".caption", "cache_info": False},
    "own": {"is_reg": False, "alpha_mask": False},
}


def meaning(config):
    """Every folder of a file with the value of every option, by sd-scripts' order of look-up. One list for each dataset."""
    found = []
    for dataset in config.get("datasets", []):
        subsets = dataset.get("subsets", [])
        masked = all("conditioning_data_dir" in subset for subset in subsets)
        listed = not masked and all("metadata_file" in subset for subset in subsets)
        rows = []
        for subset in subsets:
            row = {name: subset.get(name) for name in ("image_dir", "metadata_file", "conditioning_data_dir")}
            for name, default in OWN_WORDS["upper"].items():
                row[name] = look_up(name, default, dataset, config.get("general", {}))
            groups = ["any"] if listed else ["any", "beside"]
            for name, default in [pair for group in groups for pair in OWN_WORDS[group].items()]:
                row[name] = look_up(name, default, subset, dataset, config.get("general", {}))
            for name, default in OWN_WORDS["own"].items():
                row[name] = subset.get(name, default)
            if not listed and not masked:
                row["class_tokens"] = look_up("class_tokens", None, subset, dataset, config.get("general", {})) or ""
            attributes = dict(row["custom_attributes"])
            row["preserved"] = bool(attributes.pop("diff_output_preservation", False))  # as sd-scripts reads it
            rows.append(plain(row | {"custom_attributes": attributes}))
        found.append(rows)
    return found


def look_up(name, default, *levels):
    return next((level[name] for level in levels if level.get(name) is not None), default)


def plain(row):
    """Two ways to say one thing made one."""
    row["num_repeats"] = max(row["num_repeats"], 0)
    size = row["resolution"]
    row["resolution"] = size[0] if isinstance(size, list) and size[0] == size[1] else size
    row["resize_interpolation"] = {"linear": "bilinear", "cubic": "bicubic"}.get(
        row["resize_interpolation"], row["resize_interpolation"]
    )
    if "caption_extension" in row:
        row["caption_extension"] = "." + row["caption_extension"].removeprefix(".")
    return {
        name: value.replace("\\", "/") if name.endswith(("dir", "file")) and value else value
        for name, value in row.items()
    }


SIDE = st.sampled_from([256, 512, 640, 1024])
UPPER = {
    "batch_size": st.integers(1, 16),
    "enable_bucket": st.booleans(),
    "min_bucket_reso": st.sampled_from([64, 128, 200, 256]),
    "max_bucket_reso": st.sampled_from([1024, 1500, 2048]),
    "bucket_reso_steps": st.sampled_from([8, 32, 64, 128]),
    "bucket_no_upscale": st.booleans(),
    "network_multiplier": st.floats(-2, 2),
    "validation_split": st.floats(0, 1),
    "skip_image_resolution": st.integers(0, 2048) | st.sampled_from([[1, 7], [1, 300001]]),
}
CAPTIONS = {
    "shuffle_caption": st.booleans(),
    "caption_separator": st.sampled_from([",", ";", ". ", "#", "'", '"', "\\"]),
    "keep_tokens": st.integers(0, 9),
    "keep_tokens_separator": st.sampled_from(["", "|||", "'''", "\t"]),
    "secondary_separator": st.sampled_from(["", ";;;"]),
    "enable_wildcard": st.booleans(),
    "caption_prefix": TEXT,
    "caption_suffix": TEXT,
    "caption_dropout_rate": st.floats(0, 1) | st.integers(0, 1),
    "caption_dropout_every_n_epochs": st.integers(0, 5),
    "caption_tag_dropout_rate": st.floats(0, 1),
    "token_warmup_min": st.integers(0, 5),
    "token_warmup_step": st.floats(0, 0.9) | st.integers(0, 500),
}
ANY = {
    **CAPTIONS,
    "num_repeats": st.integers(-1, 40),
    "color_aug": st.booleans(),
    "flip_aug": st.booleans(),
    "face_crop_aug_range": st.tuples(st.floats(0.1, 0.4), st.floats(0.5, 1.0)).map(list),
    "resize_interpolation": st.sampled_from("lanczos nearest bilinear linear bicubic cubic area box".split()),
    "custom_attributes": st.dictionaries(
        st.sampled_from(["diff_output_preservation", "b", "c d"]), st.booleans() | st.integers(-5, 5) | TEXT, max_size=2
    ),
}
BESIDE = {"caption_extension": st.sampled_from([".txt", "txt", ".caption", ".c1"]), "cache_info": st.booleans()}
NOT_MASKED = {"random_crop": st.booleans()}


def some(options):
    """A few of the options."""
    return st.lists(st.sampled_from(sorted(options)), max_size=6, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: options[name] for name in names})
    )


@st.composite
def files(draw):
    """A dataset file without mistakes, as its tables."""
    config = {"general": draw(some({**UPPER, **ANY, **BESIDE, "class_tokens": TEXT})), "datasets": []}
    for number in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["beside", "listed", "masked"]))
        here = {"beside": {**ANY, **BESIDE, **NOT_MASKED, "class_tokens": TEXT}, "listed": {**ANY, **NOT_MASKED}}.get(
            kind, {**ANY, **BESIDE}
        )
        own = {
            "beside": {"is_reg": st.booleans(), "alpha_mask": st.booleans()},
            "listed": {"alpha_mask": st.booleans()},
        }
        dataset = {**draw(some({**UPPER, **here})), "resolution": draw(SIDE | st.lists(SIDE, min_size=2, max_size=2))}
        dataset["subsets"] = []
        for index in range(draw(st.integers(1, 3))):
            place = f"X:\\set {number}\\it's {index}" if draw(st.booleans()) else f"/sets/{number}/{index}"
            subset = {**draw(some({**here, **own.get(kind, {})})), "image_dir": place}
            if kind == "listed":
                subset["metadata_file"] = f"{place}.json"
                if draw(st.booleans()):
                    del subset["image_dir"]
            if kind == "masked":
                subset["conditioning_data_dir"] = f"{place} masks"
            dataset["subsets"].append(subset)
        config["datasets"].append(dataset)
    return config


@settings(max_examples=25, deadline=None)
@given(config=files(), kind=st.sampled_from(["toml", "json"]))
def test_a_file_read_and_written_again_means_the_same(tmp_path_factory, config, kind):
    folder = tmp_path_factory.mktemp("config")
    (folder / "in.json").write_text(json.dumps(config), "utf-8")
    job, _ = apply_dataset_config(TrainJob(), folder / "in.json")
    written = write_dataset_config(job, folder / "out", kind)
    text = written.path.read_text("utf-8")
    assert meaning(toml.loads(text) if kind == "toml" else json.loads(text)) == meaning(config)
    again, report = apply_dataset_config(TrainJob(), written.path)
    assert [parts(concept) for concept in concepts_of(again)] == [parts(concept) for concept in concepts_of(job)]
    assert not [problem for problem in report.problems if problem.level == "error"]


def parts(concept):
    """What matters of a folder, with one way of writing paths."""
    source = concept.source
    return (
        source.folder.replace("\\", "/"),
        (source.metadata_file or "").replace("\\", "/"),
        (concept.images.conditioning_data_dir or "").replace("\\", "/"),
        source.role,
        source.enabled,
        source.num_repeats,
        source.class_tokens,
        source.cache_info,
        source.custom_attributes,
        source.diff_output_preservation,
        source.recursive,
        concept.images.model_dump(exclude={"conditioning_data_dir"}),
        concept.captions.model_dump(exclude={"caption_extension"} if source.metadata_file else set()),
        concept.validation.validation_split,
    )


@st.composite
def jobs(draw):
    """A job that uses only what sd-scripts has, with settings in common and others of single folders."""
    ours = {"train_batch_size": UPPER["batch_size"], **{name: UPPER[name] for name in UPPER if name != "batch_size"}}
    images = {name: ours[name] for name in ours if name != "validation_split"}
    images |= {"skip_image_resolution": st.sampled_from([0, 300, 2.64576])}
    images |= {"flip_aug": st.booleans(), "color_aug": st.booleans(), "alpha_mask": st.booleans(), "resolution": SIDE}
    filled = TEXT.filter(bool)
    captions = CAPTIONS | {name: filled for name in ("caption_prefix", "caption_suffix")}
    captions |= {"keep_tokens_separator": st.just("|||"), "secondary_separator": st.just(";;;")}
    captions |= {"caption_extension": st.sampled_from([".txt", ".caption"])}
    sources = []
    for number in range(draw(st.integers(1, 4))):
        own = draw(some({**images, **captions, "validation_split": st.floats(0, 1)}))
        source = {"folder": f"/sets/{number}", "recursive": False, "num_repeats": draw(st.integers(1, 9))}
        source |= {"class_tokens": draw(TEXT), "role": draw(st.sampled_from(["train", "regularization"]))}
        sources.append({**own, **source})
    common = {"caption_extension": ".txt", **draw(some(captions))}
    dataset = {"max_bucket_reso": 2048, **draw(some(images)), "sources": sources}
    return build(TrainJob, {"dataset": dataset, "captions": common})


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(job=jobs(), kind=st.sampled_from(["toml", "json"]))
def test_a_job_written_and_read_again_trains_the_same_folders_in_the_same_way(tmp_path_factory, job, kind):
    written = write_dataset_config(job, tmp_path_factory.mktemp("config") / "set", kind)
    again, _ = apply_dataset_config(TrainJob(), written.path)
    after, before = ({each.source.folder: parts(each) for each in concepts_of(one)} for one in (again, job))
    for folder in before:
        assert after.pop(folder) == before[folder]
    assert not after
    lost = [problem for problem in written.problems if problem.code.startswith("dataset-config.lost.")]
    assert not lost


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(config=files(), cut=st.integers(0, 400), junk=st.sampled_from(["", '"', "[", "\\", "x = ", "}", "\0", "true"]))
def test_broken_files_are_told_and_never_raise(tmp_path_factory, config, cut, junk):
    folder = tmp_path_factory.mktemp("config")
    for name, text in (("a.toml", dataset_toml(config)), ("a.json", json.dumps(config, indent=1))):
        (folder / name).write_text(text[:cut] + junk + text[cut + 7 :], "utf-8")
        found = read_dataset_config(folder / name)
        assert bool(found.values) != any(problem.level == "error" for problem in found.problems)
        assert all(problem.what and problem.fix and str(folder) in problem.where for problem in found.problems)
