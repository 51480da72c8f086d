"""What a setting needs of others is declared once: the reason, the greyed field and what a tool's form leaves out follow."""

from dataclasses import replace

import pytest

from core import tasks
from core.record.context import JobContext
from core.record.workspace import Workspace
from core.settings.base import Settings, fields_of, setting
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.needs import unmet_needs, without_effect
from core.settings.rules import ineffective, set_without_effect
from tests.tasks import surroundings


class Toy(Settings):
    """Each kind of need."""

    on: bool = setting(False, help="A switch.")
    strength: float | None = setting(None, hint="off", help="A number.")
    file: str | None = setting(None, help="A file.")
    kind: str = setting("a", labels={"b": "B", "c": "C"}, help="A choice.")
    of_switch: int = setting(1, needs="on", help="")
    of_number: int = setting(1, needs="strength", help="")
    of_file: int = setting(1, needs="file", help="")
    without: int = setting(1, needs="!on", help="")
    of_choice: int = setting(1, needs="kind=b, c", help="")
    of_two: int = setting(1, needs="on; kind=b", help="")


MET = {
    "of_switch": {"on": True},
    "of_number": {"strength": 0.1},
    "of_file": {"file": "a"},
    "without": {"on": False},
    "of_choice": {"kind": "c"},
    "of_two": {"on": True, "kind": "b"},
}
UNMET = {
    "of_switch": {"on": False},
    "of_number": {"strength": 0.0},
    "of_file": {"file": ""},
    "without": {"on": True},
    "of_choice": {"kind": "a"},
    "of_two": {"on": True, "kind": "c"},
}


@pytest.mark.parametrize("name", MET)
def test_a_setting_has_an_effect_only_where_what_it_needs_is_there(name):
    assert name not in unmet_needs(Toy, MET[name]) and name in unmet_needs(Toy, UNMET[name])


def test_values_that_are_not_given_are_the_defaults():
    assert unmet_needs(Toy, {}).keys() == {"of_switch", "of_number", "of_file", "of_choice", "of_two"}


def test_only_what_was_set_is_named():
    assert list(without_effect(Toy(), "toy")) == []
    (problem,) = without_effect(Toy(of_choice=2, without=2), "toy")
    assert (problem.where, problem.level, problem.code) == ("toy.of_choice", "advice", "tools.no-effect")
    assert "B or C" in problem.what


def test_what_is_needed_is_a_setting_of_the_group_with_these_choices():
    tools = [task.job.model_fields[task.own].annotation for task in tasks.tasks().values() if task.own]
    groups = {info.annotation for info in TrainJob.model_fields.values()} | set(tools)
    needing = 0
    for group in groups:
        known = {entry.name: entry for entry in fields_of_group(group)}
        for entry in known.values():
            for need in filter(None, entry.needs.split("; ")):
                name, _, choices = need.partition("=")
                needed = known[name.removeprefix("!")]
                assert needed.name != entry.name
                if choices and needed.choices:
                    assert set(choices.split(", ")) <= set(map(str, needed.choices)), entry.name
                needing += 1
    assert needing > 30


def fields_of_group(group):
    from core.settings.base import Declared

    return [Declared(name, "", name, info) for name, info in fields_of(group).items()]


@pytest.mark.parametrize(
    ("path", "groups"),
    [
        ("noise.noise_offset_random_strength", {"noise": {"noise_offset": 0.1}}),
        ("noise.huber_c", {"noise": {"loss_type": "huber"}}),
        ("memory.dynamo_backend", {"memory": {"torch_compile": True}}),
        ("network.rank_dropout_scale", {"network": {"rank_dropout": 0.1}}),
        ("resume.resume_from_huggingface", {"resume": {"resume": "a"}}),
        ("logging.wandb_run_name", {"logging": {"log_with": "all"}}),
        ("sharding.zero3_init_flag", {"sharding": {"deepspeed": True, "zero_stage": 3}}),
        ("method.ema_decay", {"method": {"kind": "fine_tune", "ema": True}}),
    ],
)
def test_a_training_says_what_is_ignored_for_lack_of_another_setting(path, groups):
    assert path in ineffective(TrainJob()) and path not in ineffective(build(TrainJob, groups))


def test_the_command_line_names_a_setting_that_was_set_in_vain():
    job = build(TrainJob, {"noise": {"multires_noise_discount": 0.5}})
    assert [problem.where for problem in set_without_effect(job)] == ["noise.multires_noise_discount"]


@pytest.mark.parametrize(
    ("tool", "values", "unused"),
    [
        ("convert_lora", {}, {"base_model", "new_rank", "new_conv_rank", "drop_norms"}),
        ("convert_lora", {"network_type": "full", "names": "diffusers"}, {"new_rank", "new_conv_rank"}),
        ("convert_model", {}, {"variant"}),
        ("convert_model", {"save_model_as": "diffusers"}, {"weights_hash"}),
        ("convert_model", {"no_metadata": True, "no_vae": True}, {"variant", "weights_hash", "vae"}),
        ("convert_model", {"save_model_as": "ckpt"}, {"variant", "weights_hash"}),
        ("check_weights", {}, set()),
        ("resize_lora", {}, {"dynamic_param"}),
        ("merge_loras", {}, {"new_rank", "new_conv_rank", "seed"}),
        ("merge_loras", {"method": "svd", "shuffle": True}, set()),
        ("faces", {}, {"crop_size", "resize_face_size"}),
        ("faces", {"face_crop": "size", "face_resize": "face"}, {"face_crop_ratio"}),
        ("convert", {}, {"quality"}),
    ],
)
def test_the_form_of_a_tool_leaves_out_what_has_no_effect(tool, values, unused):
    assert tasks.named(tool).unused(values) == unused


@pytest.mark.parametrize(
    ("tool", "values", "named"),
    [
        ("convert_lora", {"new_rank": 4}, ["convert_lora.new_rank"]),
        ("resize_lora", {"dynamic_param": 0.9}, ["resize_lora.dynamic_param"]),
        ("resize_lora", {"dynamic_param": 0.9, "dynamic_method": "sv_fro"}, []),
        ("merge_models", {}, []),
    ],
)
def test_every_tool_names_a_setting_that_was_set_in_vain(tool, values, named, tmp_path, monkeypatch):
    seen, task = [], tasks.named(tool)
    task = replace(task, run=lambda settings, context: None, check=lambda settings, workspace: "planned")
    monkeypatch.setattr(JobContext, "warn", lambda self, problem: seen.append(problem.where))
    job = build(task.job, {tool: values})
    task.start(job, surroundings(Workspace(tmp_path)))
    assert seen == named
    assert task.check_job(job, Workspace(tmp_path)).count("has no effect") == len(named)
