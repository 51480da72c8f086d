"""A preset is whole: loading gives exactly the saved job."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.job import GenerateJob, TrainJob
from core.settings.presets.files import PresetStore, apply, content, differences, dump, parse, read, to_values
from tests.refusals import refused

SHIPPED = Path(__file__).parents[2] / "presets"
VERSIONS = Path(__file__).parent / "versions"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_preset_loads_and_is_written_back_the_same(path):
    preset = read(path)
    job = apply(preset)
    assert preset.title and preset.description
    again = dump(job, task=preset.task, title=preset.title, description=preset.description)
    again = content(preset) if preset.kind == "recipe" else again
    kept = json.loads(path.read_text("utf-8"))
    missing, unknown = leaves(again) - leaves(kept), leaves(kept) - leaves(again)
    where = f"presets/{path.name}"
    assert not missing and not unknown, (
        f"{where}: add {sorted(missing)} (with their defaults), remove {sorted(unknown)}"
    )
    assert again == kept


def leaves(values, path=""):
    """The dotted name of every value, those in lists by their number."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    found = {leaf for name, value in inner for leaf in leaves(value, f"{path}.{name}")}
    return found or {path.removeprefix(".")}


@pytest.mark.parametrize("path", sorted(VERSIONS.glob("*.json")), ids=lambda path: path.stem)
def test_a_preset_of_every_version_ever_written_still_loads(path):
    assert isinstance(apply(read(path)), TrainJob)


def test_dora_of_version_2_keeps_its_magnitude_per_output():
    for kind in ("dora", "dora_loha", "dora_lokr"):
        for stated, kept in (({}, True), ({"wd_on_output": False}, False)):
            raw = {"schema_version": 2, "network": {"kind": kind}, kind: stated}
            job = apply(parse(raw, "old"))
            assert getattr(job, kind).wd_on_output is kept
            assert getattr(apply(parse(raw | {"schema_version": 3}, "new")), kind).wd_on_output is False
    whole = apply(parse({"schema_version": 2, "network": {"kind": "dora"}}, "old"))
    assert whole.dora.wd_on_output
    assert not apply(parse({"schema_version": 2, "network": {"kind": "lora"}}, "old")).dora.wd_on_output


job_values = st.fixed_dictionaries(
    {},
    optional={
        "network": st.fixed_dictionaries(
            {}, optional={"rank": st.integers(1, 1024), "conv_rank": st.none() | st.integers(1, 99)}
        ),
        "optimizer": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(0, 10),
                "betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)).map(list),
            },
        ),
        "dataset": st.fixed_dictionaries(
            {}, optional={"folder": st.none() | st.text(), "resolution": st.integers(64, 8192) | st.just([512, 768])}
        ),
        "samples": st.fixed_dictionaries({}, optional={"sample_prompts": st.lists(st.text(max_size=20), max_size=3)}),
        "schedule": st.fixed_dictionaries({}, optional={"seed": st.none() | st.integers(0, 2**32 - 1)}),
    },
)


@settings(max_examples=60, deadline=None)
@given(values=job_values)
def test_saving_and_loading_gives_exactly_the_job(values, tmp_path_factory):
    store = PresetStore(tmp_path_factory.mktemp("presets"))
    job = build(TrainJob, values)
    name = store.save("mine", job)
    assert apply(store.load(name), current=TrainJob()) == job


def test_loading_never_mixes_with_what_the_form_held(tmp_path):
    store = PresetStore(tmp_path)
    saved = build(TrainJob, {"network": {"rank": 4}})
    form = build(TrainJob, {"network": {"rank": 64, "conv_rank": 8}, "dataset": {"folder": "elsewhere"}})
    assert apply(store.load(store.save("small", saved)), form) == saved


def test_a_recipe_leaves_model_dataset_prompts_and_name_alone(tmp_path):
    store = PresetStore(tmp_path)
    recipe = parse(
        {"kind": "recipe", "schema_version": 3, "network": {"rank": 4}, "saving": {"save_last_n": 2}}, "r.json"
    )
    form = build(
        TrainJob,
        {
            "dataset": {"folder": "b"},
            "model": {"base_model": "m"},
            "saving": {"output_name": "b"},
            "samples": {"sample_prompts": ["p"], "sample_steps": 5},
        },
    )
    got = apply(store.load(store.save_copy("r", recipe)), form)
    assert (got.dataset.folder, got.model.base_model, got.saving.output_name, got.samples.sample_prompts) == (
        "b",
        "m",
        "b",
        ["p"],
    )
    assert (got.network.rank, got.saving.save_last_n, got.samples.sample_steps) == (4, 2, 20)


def test_a_recipe_that_names_a_dataset_is_refused(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"kind": "recipe", "schema_version": 1, "dataset": {"folder": "a"}}))
    with pytest.raises(ProblemsError) as caught:
        read(path)
    assert caught.value.codes == ["preset.not-in-a-recipe"]


def test_a_recipe_that_states_a_trigger_word_or_a_size_sets_it_and_one_that_does_not_leaves_it(tmp_path):
    """Recipes of earlier versions state every setting but those of the user."""
    form = build(TrainJob, {"dataset": {"resolution": 768}, "captions": {"trigger_word": "mira"}})
    for stated in ({}, {"dataset": {"resolution": 1024}, "captions": {"trigger_word": None}}):
        path = tmp_path / "r.json"
        path.write_text(json.dumps({"kind": "recipe", "schema_version": 2, "network": {"rank": 4}, **stated}))
        got = apply(read(path), form)
        assert isinstance(got, TrainJob) and got.network.rank == 4
        assert (got.dataset.resolution, got.captions.trigger_word) == ((1024, None) if stated else (768, "mira"))


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        ("{", "file.not-json", "p.json"),
        ("[]", "preset.not-an-object", "p.json"),
        ("{}", "preset.bad-version", "schema_version is missing"),
        ('{"schema_version": 99}', "preset.newer-version", "99"),
        ('{"schema_version": "1"}', "preset.bad-version", 'schema_version is "1"'),
        ('{"schema_version": 1, "kind": "thing"}', "preset.bad-header", 'kind is "thing"'),
        ('{"schema_version": 1, "network": {"rank": 1, "rank": 2}}', "preset.duplicate-key", "p.json"),
        ('{"schema_version": 1, "network": 3}', "settings.bad-value", "'network' is 3"),
    ],
)
def test_a_damaged_preset_says_what_is_wrong(tmp_path, text, code, fact):
    path = tmp_path / "p.json"
    path.write_text(text)
    with refused(code, fact):
        read(path)


def test_a_preset_in_utf16_is_read_and_one_in_no_unicode_says_so(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes('{"schema_version": 1}'.encode("utf-16"))
    assert read(path).values == {}
    path.write_bytes(b'{"title": "\xff"}')
    with pytest.raises(ProblemsError, match="UTF-8"):
        read(path)


def test_everything_wrong_in_a_preset_is_listed_at_once(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(
        json.dumps({"schema_version": 1, "network": {"rank": 0, "rnk": 1}, "noise": {"min_snr_gamma": "x"}})
    )
    with pytest.raises(ProblemsError) as caught:
        read(path)
    assert len(caught.value.problems) == 3


def test_presets_are_saved_renamed_and_deleted_by_name(tmp_path):
    store = PresetStore(tmp_path)
    name = store.save("one", TrainJob())
    with refused("preset.exists"):
        store.save("one", TrainJob())
    store.save("one", TrainJob(), replace=True)
    new = store.rename(name, "zwei ü")
    assert store.names() == ["user/zwei ü"] == [new]
    store.delete(new)
    assert store.names() == []


def test_shipped_presets_are_never_changed(tmp_path):
    (tmp_path / "shipped.json").write_text(json.dumps(dump(TrainJob())))
    store = PresetStore(tmp_path)
    for action in (lambda: store.delete("shipped"), lambda: store.rename("shipped", "x")):
        with refused("preset.shipped"):
            action()


@pytest.mark.parametrize("name", ["../x", "user/../../x", "a/b", "C:\\x", "nul", ""])
def test_a_preset_name_cannot_leave_its_folder(tmp_path, name):
    store = PresetStore(tmp_path)
    for action in (lambda: store.load(name), lambda: store.save(name, TrainJob()), lambda: store.delete(name)):
        with pytest.raises(ProblemsError):
            action()


def test_differences_name_each_setting_with_both_values():
    assert differences(build(TrainJob, {"network": {"rank": 4}}), TrainJob()) == {"network.rank": (4, 16)}


def test_a_generate_job_is_a_preset_too():
    job = GenerateJob()
    assert apply(parse(dump(job, task="generate"), "x.json")) == job
    assert "generate" in to_values(job)


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "recipe", "schema_version": 1, "samples": null}',
        '{"kind": "job", "schema_version": 1, "task": ["train"]}',
        '{"kind": "job", "schema_version": 1, "schedule": {"max_train_steps": ' + "9" * 5000 + "}}",
        "[" * 100000,
    ],
    ids=["a group that is null", "a task that is a list", "a number of 5000 digits", "brackets without end"],
)
def test_odd_presets_are_problems_and_no_crash(tmp_path, text):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ProblemsError):
        read(path)


def test_presets_are_listed_by_name_with_numbers_in_their_order(tmp_path):
    for name in ("lora_12gb", "lora_8gb", "lora_b_8gb", "9", "a"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert PresetStore(tmp_path).names() == ["9", "a", "lora_8gb", "lora_12gb", "lora_b_8gb"]


def test_a_preset_that_is_being_written_is_not_listed(tmp_path):
    (tmp_path / "user").mkdir()
    for name in ("a", ".tmp-x"):
        (tmp_path / "user" / f"{name}.json").write_text("{}")
    assert PresetStore(tmp_path).names() == ["user/a"]
