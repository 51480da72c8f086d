"""Every setting is declared once, and everything that is read from the declaration is there."""

import re
from pathlib import Path

import pytest

from core.networks.kinds import kinds
from core.record.workspace import pasted_path
from core.settings.base import declared, every, item_settings
from core.settings.check import build
from core.settings.dataset.source import Source
from core.settings.flags import help_text
from core.settings.job import JOBS, TrainJob
from core.settings.methods import methods
from core.settings.presets.files import to_values
from workshop import docs

ALL = [(task, entry) for task, model in JOBS.items() for entry in declared(model)]


def test_a_setting_has_title_help_and_a_flag():
    shown = {task: help_text(model) for task, model in JOBS.items()}
    assert [f"{task} {entry.path}" for task, entry in ALL if not entry.title] == []
    assert [f"{task} {entry.path}" for task, entry in ALL if not entry.help.strip().endswith((".", "?"))] == []
    assert [f"{task} {entry.path}" for task, entry in ALL if f"--{entry.path} " not in shown[task]] == []
    assert {entry.level for _, entry in ALL} == {"shown", "more"}


def test_every_choice_has_a_name_to_show_or_speaks_for_itself():
    for task, entry in ALL:
        unnamed = [choice for choice in entry.choices if entry.labels.get(choice, choice) == ""]
        empty = {""} if entry.optional else set()  # what an empty value is called
        unknown = set(entry.labels) - set(entry.choices) - empty
        assert not unnamed and not unknown, f"{task} {entry.path}"


def test_only_plain_words_are_choices_without_a_label_beside_labelled_ones():
    plain = "drop keep constant linear cosine polynomial uniform beta disk off fill original auto replace prepend append fp32 fp16 bf16"
    for task, entry in ALL:
        labelled = set(entry.labels) & set(entry.choices)
        assert not labelled or set(entry.choices) - labelled <= set(plain.split()), f"{task} {entry.path}"


def test_the_groups_are_those_that_presets_lean_on():
    of_kinds = " ".join(name for name, kind in kinds().items() if kind.settings is not None)
    of_methods = " ".join(spec.group for spec in methods().values() if spec.settings is not None)
    groups = f"method {of_methods} model dataset captions network {of_kinds} embedding optimizer schedule noise memory"
    groups += " sharding saving resume hub samples validation logging"
    assert list(TrainJob.model_fields) == groups.split()


def test_the_settings_page_of_the_docs_is_fresh():
    assert docs.TARGET.read_text("utf-8") == docs.render(), "run ./launch.sh docs"


def test_the_docs_have_a_row_for_every_setting():
    rows = set(re.findall(r"^\| `([^`]+)` \|", docs.render(), re.M))
    assert [entry.path for _, entry in ALL if entry.path not in rows] == []


@pytest.mark.parametrize(("value", "wanted"), [(None, None), (0, None), (-3, None), (5, 5), (0.5, 0.5)])
def test_an_every_n_field_is_off_when_empty_zero_or_negative(value, wanted):
    assert every(value) == wanted


def test_kinds_and_ranges_are_read_from_the_types():
    by_path = {entry.path: entry for entry in declared(TrainJob)}
    assert (by_path["samples.width"].kind, by_path["samples.width"].bounds["multiple_of"]) == ("int", 8)
    assert by_path["dataset.resolution"].kind == "pair"
    assert by_path["memory.num_processes"].range_text == "1 to 64"
    assert by_path["noise.huber_c"].range_text == "above 0, up to 100", "0 itself is refused"
    assert by_path["method.ema_decay"].range_text == "0 or more, below 1"
    assert by_path["saving.save_precision"].choices == ["fp32", "fp16", "bf16"]
    assert by_path["noise.min_snr_gamma"].optional and not by_path["network.rank"].optional


@pytest.mark.slow(only=("presets.levels", "job", "rules"))
@pytest.mark.parametrize(
    "name", ["dataset.concepts", "optimization.rates", "optimization.usual_rates", "rules", "presets.levels", "job"]
)
def test_any_module_of_settings_can_be_the_first_that_is_loaded(name):
    """Methods register while settings load, and themselves load settings."""
    import subprocess
    import sys

    code = f"import core.settings.{name}"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=300)


def test_what_a_folder_has_alone_is_in_the_docs_and_the_help():
    text, said = docs.render(), help_text(TrainJob)
    for entry in declared(TrainJob):
        for own in item_settings(entry):
            assert f"| `{own.path}` |" in text and f"  {own.path}  [" in said
    (sources,) = (entry for entry in declared(TrainJob) if entry.path == "dataset.sources")
    own = [entry.name for entry in item_settings(sources)]
    # A setting of all folders
    assert "num_repeats" in own and "diff_output_preservation" in own and "flip_aug" not in own
    assert {name for name in Source.model_fields if name not in own} == set(Source.__base__.model_fields)


def test_every_setting_has_a_title_and_a_help():
    for _, entry in ALL:
        for each in (entry, *item_settings(entry)):
            assert each.title and each.help, each.path


def test_output_preservation_among_the_custom_attributes_is_read_as_the_setting():
    for attributes, on in (({"diff_output_preservation": True}, True), ({"diff_output_preservation": False}, False)):
        job = build(TrainJob, {"dataset": {"sources": [{"folder": "a", "custom_attributes": attributes | {"b": 1}}]}})
        (source,) = job.dataset.sources
        assert (source.diff_output_preservation, source.custom_attributes) == (on, {"b": 1})
        again = build(TrainJob, to_values(job))
        assert again == job and to_values(again) == to_values(job)


FILE = r"C:\my models\base.safetensors"


@pytest.mark.parametrize(
    "typed, meant",
    [
        (f'"{FILE}"', FILE),
        (f" '{FILE}' ", FILE),
        (f"\u202a{FILE}\u200b ", FILE),
        (f'\ufeff"\u202a{FILE}\u202c"', FILE),
        ("file:///C:/my%20models/base.safetensors", "C:/my models/base.safetensors"),
        ("FILE://localhost/my%20models/%C3%A9.pt", "/my models/é.pt"),
        ("file:///%22a%22", '/"a"'),
        ("file://server/share/a", "//server/share/a"),
        ("/a/👩\u200d🎨/b", "/a/👩\u200d🎨/b"),
        ('"' * 9_999, '"'),
        ("\u202a" * 20_000, "\u202a" * 20_000),
    ],
)
def test_a_path_is_kept_without_what_copying_puts_around_it(typed, meant):
    assert pasted_path(typed) == pasted_path(meant) == meant
    job = build(TrainJob, {"model": {"base_model": typed}, "dataset": {"sources": [{"folder": typed}]}})
    assert (job.model.base_model, job.dataset.sources[0].folder) == (meant, meant)
    assert build(JOBS["inspect"], {"inspect": {"file": typed}}).inspect.file == meant


def test_quotation_marks_that_belong_to_a_name_stay():
    job = build(
        TrainJob, {"dataset": {"sources": [{"folder": "/photos/the 'kids'"}]}, "captions": {"caption_prefix": '"a"'}}
    )
    assert job.dataset.sources[0].folder == "/photos/the 'kids'" and job.captions.caption_prefix == '"a"'
