"""The forecast next to the form: the plan, the slider, the try."""

from __future__ import annotations

import importlib
import json
import re
import sys
from types import SimpleNamespace

import pytest
from work_parts import wait_until

from core.record.problems import ProblemsError
from core.settings.base import declared, value_of
from core.settings.job import TrainJob
from core.settings.presets.levels import level_of
from core.training.memory import store
from core.training.memory.store import FILE, store_forecast, stored_forecast
from tabs.form.project import with_value
from tabs.server.browsers import Browser
from tabs.train.forecast import Forecast, _outside_gpu, plan_key


def facts(page):
    return page.forecast.facts(page.project.job)


def test_nothing_is_counted_before_torch_is_there_or_wanted(page, monkeypatch):
    monkeypatch.setattr("tabs.train.forecast.sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(page.engine, "light", lambda *work, **more: pytest.fail("torch would be loaded unasked"))
    found = facts(page)
    assert not found["wanted"] and not found["fresh"] and len(found["levels"]) >= 4
    assert found["level"] == 1


@pytest.mark.slow
def test_the_plan_adds_up_and_says_what_each_place_saves(page, monkeypatch):
    monkeypatch.setattr("core.record.machine.default_device", lambda: "cpu")
    page.forecast.request({}, Browser(""))
    facts(page)
    wait_until(lambda: facts(page)["fresh"], 120)
    found = facts(page)
    assert "problem" not in found and "torch" in sys.modules
    assert found["total"] == pytest.approx(sum(part["bytes"] for part in found["parts"]), abs=6e6)
    assert found["saved"]["1"] == 0 and found["saved"]["2"] > 0  # checkpointing
    hints = page.forecast.hints(page.project.job)
    assert re.fullmatch(r"In this job: [\d.]+ [MG]B less\.", hints["memory.gradient_checkpointing"])
    assert re.fullmatch(r"In this job: [\d.]+ [MG]B less with bf16\.", hints["memory.mixed_precision"]), (
        "of several choices"
    )
    assert re.search(r"\d+ of \d+ layers", hints["network.layers"])
    page.project.edit("dataset.resolution", "256")
    assert not facts(page)["fresh"] and page.forecast.hints(page.project.job) == {}
    wait_until(lambda: facts(page)["fresh"], 120)  # a thread in the middle of torch's work would abort the exit


def test_what_another_server_has_computed_is_read_until_what_it_depends_on_changes(page, monkeypatch):
    computed = []
    monkeypatch.setattr("core.record.machine.default_device", lambda: "cpu")
    monkeypatch.setattr(
        "tabs.train.forecast._computed",
        lambda job, facts: computed.append(job) or {"facts": {"total": len(computed)}, "hints": {}},
    )

    def shown(job):
        """Total of a forecast of a new server."""
        own = Forecast(page.engine, page.workspace, page.project, page.roots, page.checks)
        own._plan(job, plan_key(job), None)
        return own._facts["total"]

    job, file = page.project.job, page.workspace.private / FILE
    wider = with_value(job, "dataset.resolution", 256)
    assert [shown(job), shown(job), shown(wider), shown(job), shown(wider)] == [1, 1, 2, 1, 2]
    monkeypatch.setattr("core.record.machine.memory", lambda device: (1, 2))
    assert shown(job) == 3, "another machine"
    for damaged in ("{", "[]", json.dumps({key: {} for key in json.loads(file.read_text())})):
        file.write_text(damaged)
        assert shown(job) == len(computed), "computed again"
    assert len(computed) == 6 and shown(job) == 6
    monkeypatch.setattr("core.training.memory.store._code_stamp", lambda: "of another version")
    assert shown(job) == 7


def test_a_forecast_is_no_longer_valid_after_a_change_of_code_also_of_other_packages(tmp_path, monkeypatch):
    store._code_stamp.cache_clear()
    before = store.forecast_key(1)
    assert store.forecast_key(1) == before != store.forecast_key(2)
    package = tmp_path / "package.py"
    package.write_text("")
    monkeypatch.setitem(sys.modules, "some_package", SimpleNamespace(__file__=str(package)))
    monkeypatch.setattr(store.extensions, "EXTENSIONS", (*store.extensions.EXTENSIONS, "some_package"))
    store._code_stamp.cache_clear()
    assert store.forecast_key(1) != before
    store._code_stamp.cache_clear()


def test_the_fifty_newest_forecasts_are_stored(page):
    for number in range(51):
        store_forecast(f"{number}", {"facts": {}}, page.workspace)
    store_forecast("1", {"facts": {"total": 1}}, page.workspace)
    store_forecast("51", {}, page.workspace)
    kept = [number for number in range(52) if stored_forecast(f"{number}", page.workspace) is not None]
    assert kept == [1, *range(3, 52)] and len(kept) == 50
    assert stored_forecast("1", page.workspace) == {"facts": {"total": 1}}


def test_it_is_counted_again_only_after_a_change_of_what_it_depends_on(page, monkeypatch):
    counted = []
    monkeypatch.setattr("core.record.machine.default_device", lambda: "cpu")
    monkeypatch.setattr(
        page.forecast, "_plan", lambda job, key, task: counted.append(setattr(page.forecast, "_key", key))
    )
    page.forecast.request({}, Browser(""))

    def counts(path: str, text: str) -> int:
        page.project.edit(path, text)
        facts(page)
        wait_until(lambda: facts(page)["fresh"], 20)
        return len(counted)

    assert counts("network.rank", "5") == 1
    for path, text in (
        ("saving.output_name", "other"),
        ("optimizer.learning_rate", "3e-4"),
        ("network.alpha", "7"),
        ("samples.sample_prompts", "a fox"),
        ("memory.text_cache_bytes", "2 GB"),
        ("embedding.token_string", "zkw"),
    ):
        assert counts(path, text) == 1, path
    assert counts("embedding.token_string", "zkw, qvx") == 2
    assert counts("dataset.train_batch_size", "3") == 3
    assert counts("network.kind", "lokr") == 4 and counts("lokr.factor", "8") == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "fine_tune", "embedding"])
def test_nothing_else_changes_the_plan(page, kind):
    from core.training.memory.plan import facts_of, memory_plan

    def plan(job):
        return memory_plan(job, facts_of(job, page.workspace, "cpu"))

    page.project.edit("method.kind", kind)
    job, changed = page.project.job, 0
    other = job
    for entry in declared(TrainJob):
        each = with_another(other, entry)
        if plan_key(each) == plan_key(job):
            changed += each != other
            other = each
    assert changed > 100 and plan(other) == plan(job)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"down_lr_weight": ",".join(["0"] * 12)},
        {"up_lr_weight": ",".join(["0.1"] * 12), "block_lr_zero_threshold": 0.2},
        {"base_weights": ["a.safetensors"]},
        {"layers": ["attn2"]},
        {"exclude_layers": ["attn2"]},
        {"layer_dims": ["attn2=32"]},
    ],
    ids=", ".join,
)
def test_what_changes_the_layers_changes_the_plan(page, changes):
    from core.training.memory.plan import facts_of, memory_plan

    job = page.project.job
    if "base_weights" in changes:  # as sd-scripts, merging adds layers
        job = with_value(job, "model.compatibility", "sd-scripts-0.10")
    other = job.with_settings(network=changes)
    facts = facts_of(job, page.workspace, "cpu")
    assert memory_plan(other, facts) != memory_plan(job, facts) and plan_key(other) != plan_key(job)


def test_little_main_memory_is_what_a_plan_may_depend_on(page):
    """A model in fp8 is made narrow on the card then: tests/training/test_memory_plan.py has what that takes."""
    job = with_value(page.project.job, "memory.fp8_base_unet", True)
    assert plan_key(with_value(job, "memory.lowram", True)) != plan_key(job)


def with_another(job, entry):
    """The job with another value of a setting, where its kind has one that needs no file."""
    value, bounds = value_of(job, entry.path), entry.bounds
    numbers = [bounds.get("le", bounds.get("lt", 100) / 2), bounds.get("ge", 0), min(1, bounds.get("lt", 4) / 4)]
    if entry.kind == "bool":
        return with_value(job, entry.path, not value)
    if entry.kind == "choice":
        return with_value(job, entry.path, next((choice for choice in entry.choices if choice != value), value))
    if entry.kind in ("int", "float"):
        whole = int if entry.kind == "int" else float
        return with_value(job, entry.path, next(whole(each) for each in numbers if each > 0 and each != value))
    return job


def test_a_model_that_is_not_there_is_said_instead_of_a_number(page):
    page.project.edit("model.base_model", "models/none.safetensors")
    page.forecast.request({}, Browser(""))
    facts(page)
    wait_until(lambda: facts(page)["fresh"], 60)
    assert facts(page)["problem"] and "parts" not in facts(page)


def test_the_slider_sets_the_group_and_undo_takes_it_back(page):
    before = page.project.job
    page.forecast.set_level({"level": 2})
    assert page.project.job.memory.gradient_checkpointing and level_of(page.project.job) == 2
    page.project.undo()
    assert page.project.job == before
    for wrong in (9, None, "x"):
        with pytest.raises(ProblemsError) as refused:
            page.forecast.set_level({"level": wrong})
        assert refused.value.codes == ["forecast.bad-level"]


@pytest.mark.slow
def test_a_try_waits_in_the_queue_once(page):
    page.forecast.queue_test({}, Browser(""))
    assert [entry.task for entry in page.engine.queue()] == ["probe"]
    assert (facts(page)["tried"]["state"], facts(page)["tried"]["old"]) == ("waiting", False)
    page.project.edit("dataset.train_batch_size", "3")
    assert facts(page)["tried"]["old"]  # its result is of other settings
    with pytest.raises(ProblemsError) as refused:
        page.forecast.queue_test({}, Browser(""))
    assert refused.value.codes == ["forecast.already-queued"]


def test_what_lies_beside_the_card_is_said():
    assert _outside_gpu(0, 0) == []
    memory, disk = _outside_gpu(10**18, 2 << 30)
    assert memory.startswith("RAM takes about") and memory.endswith("besides: does not fit")
    assert disk == "the fast disk takes about 2.1 GB"


def test_the_card_shows_what_the_run_needs_on_the_disk_until_the_job_changes(page, monkeypatch):
    importlib.import_module("torch")  # without it no device is known
    monkeypatch.setattr(page.engine, "find_device", lambda: "cpu")
    monkeypatch.setattr(page.engine, "light", lambda *work, **more: SimpleNamespace(done=True))
    job = page.project.job
    assert facts(page)["disk"] == ""
    page.checks._started = (job, 0.0)
    page.checks._publish(job, page.checks.facts(job, decode=True))
    assert facts(page)["disk"].endswith("B")
    page.project.edit("network.rank", "5")
    assert facts(page)["disk"] == ""
