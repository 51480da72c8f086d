"""The fields of the Train form."""

from __future__ import annotations

import re

import pytest

from core.settings.base import Settings, declared, setting
from core.settings.elsewhere import ELSEWHERE
from core.settings.job import TrainJob
from core.settings.rules import ineffective
from core.settings.values import shown_value, summary, text_of, value_from
from tabs.form import fields as form
from tabs.form.form_values import SOURCE, control_input, names_elsewhere
from tabs.form.project import FIELDS, with_value
from tabs.form.view import choices, element_id, label
from tabs.markup import esc


@pytest.mark.parametrize("entry", list(form.on_form()), ids=lambda entry: entry.path)
def test_every_setting_has_a_control_with_label_help_and_the_choices_it_is_read_by(entry):
    drawn = form.block(entry)
    assert esc(entry.title) in drawn and esc(entry.brief or entry.help) in drawn
    assert f'id="{element_id(entry.path)}"' in drawn and f'data-set="{entry.path}"' in drawn
    for value in entry.choices:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        assert f'value="{esc(text)}"' in drawn and control_input(entry, text) == value
    if entry.kind == "bool":
        assert (control_input(entry, "true"), control_input(entry, "false")) == (True, False)


FIRST = [entry for _, entries in form.first_screen() for entry in entries]


def test_the_first_screen_is_brief_and_the_note_has_the_whole_help():
    assert {entry.path for entry in FIRST} == {entry.path for entry in FIELDS.values() if entry.brief}
    for entry in FIRST:
        assert len(entry.brief) < 60 and form.facts()[entry.path]["help"] == entry.help


def test_names_of_sd_scripts_that_are_no_field_lead_somewhere():
    found = names_elsewhere()
    assert SOURCE["class_tokens"].title in found["class_tokens"] and "Dataset" in found["class_tokens"]
    assert found["max_data_loader_n_workers"] == ELSEWHERE["max_data_loader_n_workers"]
    assert not {"min_snr_gamma", "network_dim"} & set(found)


def test_ids_are_one_for_each_setting():
    assert len({element_id(path) for path in FIELDS}) == len(FIELDS)


def test_every_setting_stands_once_on_the_screen():
    below = [entry.path for entries in form.groups().values() for entry in entries]
    others = [entry.path for entry in FIELDS.values() if entry.elsewhere or entry.one_choice]
    assert sorted([*(entry.path for entry in FIRST), *others, *below]) == sorted(FIELDS)


def test_a_setting_without_a_choice_is_not_shown(monkeypatch):
    kind = FIELDS["network.kind"]
    assert not kind.one_choice and "network.kind" in form.facts()
    monkeypatch.setattr(type(kind), "one_choice", property(lambda entry: entry.path == "network.kind"))
    assert "network.kind" not in form.facts()
    assert "network.kind" not in [entry.path for entry in form.groups()["network"]]


def test_every_group_sums_itself_up_in_one_line():
    for group in form.groups():
        words = summary(TrainJob(), group)
        assert words and "\n" not in words and len(words) < 110, group


def test_summaries_say_what_was_changed():
    job = with_value(with_value(TrainJob(), "network.rank", 24), "optimizer.learning_rate", 0.0005)
    assert summary(job, "network") == "LoRA rank 24, alpha 16, U-Net"
    assert summary(job, "optimizer") == "AdamW, learning rate 5e-4"
    job = with_value(job, "validation.validation_split", 0.1)
    assert summary(job, "validation").startswith("10% of the images, measured every")
    job = with_value(job, "saving.save_every_n_steps", -1)  # negative is off, as the rule says
    chosen = {"loss_type": "huber", "min_snr_gamma": 5, "zero_terminal_snr": True, "max_timestep": 5, "min_timestep": 5}
    noisy = job
    for name, value in chosen.items():
        noisy = with_value(noisy, f"noise.{name}", value)
    assert summary(noisy, "noise") == "Huber, min-SNR 5, zero terminal SNR, timestep 5 only"
    for name, value in {"timestep_sampling": "beta", "timestep_shift": 2.0, "stratified_timesteps": True}.items():
        job = with_value(job, f"noise.{name}", value)
    assert summary(job, "noise") == "L2 loss, all timesteps, beta, shift 2, stratified"
    assert summary(job, "saving") == "at the end, training state every 10 min, fp16"


def test_the_note_about_a_field_holds_default_range_and_the_sd_scripts_name():
    facts = form.facts()["network.rank"]
    assert (facts["default"], facts["range"], facts["kohya"]) == ("16", "1 to 1024", "network_dim")
    assert form.facts()["noise.min_snr_gamma"]["default"] == "empty"


def test_a_choice_that_may_be_empty_can_be_made_empty_again():
    entry = FIELDS["sharding.offload_param_device"]
    assert choices(entry)[0] == (entry.labels[""], "")
    assert shown_value(entry, None) == entry.labels[""] and shown_value(entry, "cpu") == entry.labels["cpu"]
    assert value_from(entry, text_of(entry, None)) is None and value_from(entry, "cpu") == "cpu"


def test_a_problem_leads_to_every_field_that_it_names():
    assert form.paths_of("memory.fp8_base, fp8_base_unet") == ["memory.fp8_base", "memory.fp8_base_unet"]
    assert form.paths_of("memory.torch_compile, sharding.deepspeed") == ["memory.torch_compile", "sharding.deepspeed"]
    assert form.paths_of("dataset 'mira', mira_07.txt") == []


def test_summaries_tell_a_vector_for_each_layer():
    assert summary(with_value(TrainJob(), "embedding.extended", True), "embedding").endswith("one per layer (XTI)")


def test_reasons_for_graying_name_fields_of_the_form():
    job = with_value(TrainJob(), "schedule.max_train_steps", 5)
    assert set(ineffective(job)) <= set(FIELDS)


def test_a_new_setting_needs_no_word_in_the_page():
    class Group(Settings):
        """A group."""

        weight: float | None = setting(None, ge=0, le=1, title="Weight", unit="parts", help="How much.")
        way: str = setting("a", title="Way", help="Which.")
        on: bool = setting(True, title="On", help="Whether.")

    class Job(Settings):
        """A job."""

        group: Group = Group()

    drawn = [form.block(entry) for entry in declared(Job)]
    assert [re.findall("<(?:input|select|textarea)[^>]*", each) for each in drawn] == [
        [found] for found in [re.search("<input[^>]*", each)[0] for each in drawn]
    ]
    assert ['type="checkbox"' in each for each in drawn] == [False, False, True]


def test_long_groups_are_divided_by_headings():
    groups = form.groups()
    for group, entries in groups.items():
        shown = [entry.path for entry in entries if entry.level == "shown"]
        more = [entry for entry in entries if entry.level != "shown"]
        below = form.sections(more)
        assert [entry for _, entries in below for entry in entries] == more
        if shown:
            assert max(len(entries) for _, entries in below) <= 12, f"{group} needs a heading"
    folded = {entry.path for entries in groups.values() for entry in entries if entry.level != "shown"}
    assert {entry.path for entry in FIELDS.values() if entry.section} <= folded


def test_a_unit_that_the_title_says_already_is_not_said_again():
    for path in ("resume.initial_step", "schedule.lr_warmup_steps"):
        entry = FIELDS[path]
        told = entry.unit.removesuffix("s") in entry.title.lower()
        assert label(entry) == (entry.title if told else f"{entry.title} ({entry.unit})")
    assert "(" not in label(FIELDS["resume.initial_step"])


def test_what_is_chosen_is_read_whole_in_a_narrow_list():
    for path, entry in FIELDS.items():
        if entry.kind == "choice" and not entry.first:
            too_long = [words for words, _ in choices(entry) if len(words) > 24]
            assert not too_long, f"{path}: {too_long} is cut off"


def test_an_explanation_that_is_long_has_the_whole_width():
    assert "field-wide" in form.block(FIELDS["captions.sidecars"])
    assert "field-wide" not in form.block(FIELDS["noise.huber_c"])
