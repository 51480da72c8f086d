"""The smaller parts behind the page: checks before a start, the start itself, messages, series, tools, TensorBoard."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.engine.queue import QueueEntry
from core.record.problems import Problem, ProblemsError
from core.record.workspace import PROJECT
from core.settings.job import GenerateJob, TrainJob
from core.settings.presets.files import dump
from tabs.form.project import with_value
from tabs.markup import changed_boards, client_stamp, sent_boards
from tabs.monitor import tab as monitor
from tabs.monitor.charts import loss_series, rate_series
from tabs.pulse import all_parts, answer, changed_parts, status
from tabs.runs import details
from tabs.server.browsers import Browsers
from tabs.train.presets_bar import recipe_facts
from tabs.train.tab import ACTIONS
from tabs.wire import json_object, to_count, to_json, with_signature


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page without a server."""
    from fake_engine import FakeEngine
    from page_server import make_workspace

    from tabs.context import make_page

    workspace = make_workspace(tmp_path_factory.mktemp("parts"))
    engine = FakeEngine(workspace, step_seconds=0.01, steps=20)
    made = make_page(engine, workspace)
    yield made
    engine._light.close()


def until(true, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(true())


# -- checks


def test_the_model_is_told_by_its_contents(page, tmp_path):
    known = page.checks.model("models/starter")
    assert known["family"] == "SD 1.x" and known["evidence"] and known["problem"] == ""
    stored = sum(file.stat().st_size for file in (PROJECT / "models/starter").rglob("*.safetensors"))
    assert known["numbers"] * 2 == pytest.approx(stored, rel=0.02)  # it is stored in 16 bits
    absent = page.checks.model("someone/some-model")
    assert absent["offer"] == "someone/some-model" and "not on this machine" in absent["problem"]
    assert page.checks.model("nowhere/at/all.safetensors")["problem"]
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 20)
    assert page.checks.model(str(broken))["problem"]


@pytest.mark.parametrize(
    ("family", "key", "shape", "words"),
    [
        ("SD 2.x", "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight", (1, 1024), ""),
        ("SDXL", "label_emb.0.0.weight", (1, 2816), ""),
        ("SDXL refiner", "label_emb.0.0.weight", (1, 2560), "this job works with SD 1.x or SD 2.x or SDXL"),
    ],
)
def test_models_of_the_three_families_are_taken_and_others_named(page, tmp_path, family, key, shape, words):
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({f"model.diffusion_model.{key}": torch.zeros(shape)}, path)
    known = page.checks.model(str(path))
    assert known["family"] == family and words in known["problem"] and bool(known["problem"]) == bool(words)


def test_the_preflight_counts_and_lists_everything_wrong_at_once(page, tmp_path):
    job = with_value(TrainJob(), "dataset.folder", "models/starter/images")
    facts = page.checks.facts(job)
    assert facts["trained"] == 24 and facts["skipped"] == 0 and len(facts["images"]) == 12
    bad = with_value(with_value(job, "noise.max_timestep", 1), "noise.min_timestep", 5)
    bad = with_value(
        with_value(bad, "model.base_model", "nowhere.safetensors"), "dataset.folder", str(tmp_path / "none")
    )
    wheres = {problem["where"] for problem in page.checks.facts(bad)["problems"] if problem["level"] == "error"}
    assert {"noise.min_timestep", "model.base_model"} <= wheres and len(wheres) >= 3


def test_a_changed_job_is_looked_at_again_in_the_background(page):
    first = with_value(TrainJob(), "dataset.folder", "models/starter/images")
    assert until(lambda: page.checks.latest(first).get("trained") == 24)
    second = with_value(first, "schedule.max_train_steps", 7)
    assert page.checks.latest(second)["checking"]
    assert until(lambda: page.checks.latest(second).get("total_steps") == 7)


# -- start


def press(page, browser, how="start", token="t", open_changes=()):
    from tabs.train.starts import press as real

    real(page, browser, {"how": how, "token": token, "stamp": page.project.stamp, "open": list(open_changes)})


def test_start_lists_what_is_wrong_and_hands_nothing_over(page):
    browser = page.browsers.of("lists")
    page.project.replace(with_value(TrainJob(), "network.train_unet", False))
    press(page, browser)
    assert until(lambda: browser.message["kind"] == "error")
    words = [problem["what"] for problem in browser.message["problems"]]
    assert "Nothing would be trained" in words and any("folder" in word for word in words)
    assert page.engine.queue() == []


def test_start_waits_for_changes_that_are_still_on_their_way(page, monkeypatch):
    # A slow machine may take seconds between two presses
    monkeypatch.setattr("tabs.server.browsers.DOUBLE_PRESS_SECONDS", 600)
    monkeypatch.setattr("tabs.train.starts.LATE_SECONDS", 0.3)
    browser = page.browsers.of("late")
    page.project.replace(with_value(TrainJob(), "dataset.folder", "models/starter/images"))
    began = time.monotonic()
    press(page, browser, open_changes=[5])
    assert time.monotonic() - began > 0.2 and browser.message["title"] == "Not started"
    page.browsers.mark_handled(browser, 5)
    press(page, browser, how="queue", open_changes=[5])
    assert until(lambda: len(page.engine.queue()) == 1)
    press(page, browser, how="queue", token="second of a double click")
    time.sleep(0.3)
    assert len(page.engine.queue()) == 1
    press(page, page.browsers.of("another browser"), how="queue")
    assert until(lambda: len(page.engine.queue()) == 2)
    page.project.edit("network.rank", "3")
    press(page, browser, how="queue", token="another job right after")
    assert until(lambda: len(page.engine.queue()) == 3)


def test_start_wakes_a_queue_that_only_waits_for_it(page):
    for entry in page.engine.queue():
        page.engine.cancel(entry.id)
    page.engine.pause_queue()
    press(page, page.browsers.of("wake"))
    assert until(lambda: not page.engine.queue_paused)
    page.engine.pause_queue()
    press(page, page.browsers.of("wait"))
    assert until(lambda: "paused" in str(page.browsers.of("wait").message))
    assert page.engine.queue_paused
    page.engine.resume_queue()


def test_a_start_that_fails_for_a_reason_of_the_machine_says_so(page, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page.engine, "submit", full)
    browser = page.browsers.of("full")
    press(page, browser)
    assert until(lambda: browser.message["kind"] == "error")
    assert "disk" in browser.message["problems"][0]["what"].lower()


# -- presets


def test_a_file_that_is_no_preset_is_said_by_its_own_name(page):
    before = page.project.job
    for text, words in (
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        (json.dumps(dump(TrainJob()) | {"schema_version": 99}), "schema version 99"),
        (json.dumps(dump(TrainJob()) | {"task": "generate"}), "no setting"),
        ("\udcff", "UTF-8"),
        ("x" * (2 << 20), "too large"),
    ):
        with pytest.raises(ProblemsError) as told:
            page.project.take_file("../../evil.json", text)
        assert words in str(told.value) and "tmp" not in str(told.value)
        assert "evil.json" in told.value.problems[0].where
    assert page.project.job == before and not page.presets.user.is_dir()


def test_an_opened_file_is_kept_under_a_free_name_and_loaded(page):
    text = json.dumps(dump(with_value(TrainJob(), "network.rank", 3)))
    for name in ("opened", "opened-2"):
        page.project.take_file("opened.json", text)
        assert page.project.preset == f"user/{name}" and page.project.job.network.rank == 3
        assert page.project.changed() == {}
    for name in ("opened", "opened-2"):
        page.project.delete(f"user/{name}")


def test_an_opened_recipe_keeps_its_reasons_and_tells_them(page):
    recipe = {
        "kind": "recipe",
        "schema_version": 2,
        "title": "Small",
        "description": "For a test.",
        "network": {"rank": 3},
    }
    recipe |= {"dataset": {"resolution": 640}, "reasons": {"network.rank": "Small."}}
    page.project.take_file("small.json", json.dumps(recipe))
    assert page.project.preset == "user/small" and page.project.changed() == {}
    facts = recipe_facts(page)
    assert [(each["field"], each["value"], each["why"]) for each in facts["sets"]] == [
        ("dataset.resolution", "640", ""),
        ("network.rank", "3", "Small."),
    ]
    page.project.choose("starter_lora")
    assert recipe_facts(page) is None
    page.project.delete("user/small")


def test_shipped_presets_are_never_changed(page):
    form = page.project
    for act in (lambda: form.delete("starter_lora"), lambda: form.rename("starter_lora", "mine")):
        with pytest.raises(ProblemsError):
            act()
    for name in ("../up", "a/b", "", "con"):
        with pytest.raises(ProblemsError):
            form.save(name)


def test_a_preset_of_another_task_is_refused_on_every_way_into_the_form(page):
    browser, before = page.browsers.of("files"), page.project.job
    form, text = page.project, json.dumps(dump(GenerateJob(), task="generate"))
    name = page.presets.save("foxes", GenerateJob(), task="generate")
    for way in (lambda: form.choose(name), lambda: form.take_file("foxes.json", text)):
        with pytest.raises(ProblemsError) as refused:
            way()
        assert refused.value.codes == ["preset.other-task"]
    ACTIONS["json"](page, {"text": text, "token": "sent"}, browser)
    assert [each["code"] for each in browser.json_problems] == ["preset.other-task"] and not browser.json_applied
    assert page.project.job == before
    page.presets.delete(name)


# -- messages


def test_the_tick_sends_only_what_changed(page):
    browser = page.browsers.of("tick")
    asked = {"have": {}, "tab": "Monitor", "run": ""}
    first = json.loads(answer(page, asked, browser))
    asked["have"] = {name: part["sig"] for name, part in first.items()}
    again = answer(page, asked, browser)
    news = json.loads(again or "{}")
    assert set(news) <= {"status", "run", "loss", "rates", "log", "samples", "files", "queue", "runs"} - {
        "queue",
        "runs",
    }
    page.browsers.say(browser, "done", "hello")
    assert "said" in json.loads(answer(page, asked, browser))


def test_the_queue_says_that_the_program_ended_and_offers_to_continue_the_training(page, monkeypatch):
    shown, pressed = monitor.queue(page), []
    assert (shown["why"], shown["interrupted"]) == ("", [])
    monkeypatch.setattr(page.engine, "why_paused", "the program ended unexpectedly while 'fox' trained")
    monkeypatch.setattr(page.engine, "interrupted", [SimpleNamespace(title="fox")])
    monkeypatch.setattr(page.engine, "continue_first", lambda: pressed.append("fox"), raising=False)
    shown = monitor.queue(page)
    assert shown["why"] == page.engine.why_paused and shown["interrupted"] == ["fox"]
    monitor._command(page, "continue_first", {}, page.browsers.of("first"))
    assert pressed == ["fox"]


def test_the_header_names_a_tool_that_runs_next_to_the_trainings(page, monkeypatch):
    entries = [QueueEntry(title, "", title, {}, state, lane="light")
               for title, state in (("Hashes", "done"), ("Merge LoRAs", "running"), ("Resize", "waiting"))]  # fmt: skip
    assert status(page)["tool"] == ""
    monkeypatch.setattr(page.engine, "queue", lambda: entries)
    assert status(page)["tool"] == "Merge LoRAs"


def test_a_tab_is_due_until_the_browser_shows_all_of_what_there_is_now(page):
    browser, now = page.browsers.of("due"), ["first", "second"]
    page.stamps["Toy"] = [lambda: now[0], lambda: now[1]]

    def due(*clients, tab="Toy"):
        shown = [client_stamp(client) for client in clients]
        return "due" in json.loads(answer(page, {"have": {}, "tab": tab, "shown": shown}, browser))

    one, two = (sent_boards({}, stamp)["client"] for stamp in now)
    assert due() and due("") and due(one) and due(one, sent_boards({})["client"]) and not due(two, "", one)
    now[1] = "third"
    assert due(one, two) and not due(one, changed_boards(two, "third", {})["client"]) and not due(tab="Monitor")
    asked = {"have": {}, "tab": "Toy"}
    asked["have"] = {name: part["sig"] for name, part in json.loads(answer(page, asked, browser)).items()}
    assert "due" in json.loads(answer(page, asked, browser)), "its answer may have been lost"


def test_nonsense_from_a_browser_is_answered_like_an_empty_message(page):
    browser = page.browsers.of("nonsense")
    for text in (
        "",
        "{",
        "[]",
        "null",
        '{"have": 3, "tab": [], "filled": "x", "run": {}}',
        '{"tab": "Tools", "shown": {"a": 1}}',
        None,
        7,
    ):
        assert set(json.loads(answer(page, json_object(text), browser))) >= {"status", "names"}
    assert [to_count(value) for value in (True, -1, 2.0, "3", 4, None)] == [0, 0, 0, 0, 4, 0]


def test_a_number_that_is_none_does_not_make_an_answer_that_browsers_refuse():
    parts = {"loss": [math.nan, math.inf, 0.5], "text": "1:NaN", "path": Path("a")}
    assert json.loads(to_json(parts), parse_constant=pytest.fail) == {
        "loss": [None, None, 0.5],
        "text": "1:NaN",
        "path": "a",
    }


def test_a_fault_of_our_own_is_told_once(page, monkeypatch, capsys):
    monkeypatch.setattr(page.engine, "status", lambda: 1 / 0)
    browser = page.browsers.of("fault")
    said = json.loads(changed_parts(page, {"have": {}}, browser))["said"]
    assert "ZeroDivisionError" in said["data"]["text"]
    assert changed_parts(page, {"have": {"said": said["sig"]}}, browser) == ""
    assert capsys.readouterr().err.count("Traceback") == 1


def test_the_same_content_has_the_same_signature():
    assert (
        with_signature({"a": 1, "b": [2]})["sig"]
        == with_signature({"b": [2], "a": 1})["sig"]
        != with_signature({"a": 1})["sig"]
    )


def test_a_late_change_of_a_field_does_not_undo_a_newer_one():
    browsers = Browsers()
    browser = browsers.of("s")
    assert browsers.is_newest(browser, "network.rank", 2)
    assert not browsers.is_newest(browser, "network.rank", 1)
    assert browsers.is_newest(browser, "network.alpha", 1)


def test_browsers_not_heard_of_for_longest_are_forgotten():
    browsers = Browsers()
    for number in range(300):
        browsers.of(str(number))
    assert browsers.of("299").arrived.maxlen and len(browsers._all) <= 201


# -- monitor


def test_actions_are_those_that_make_sense_in_the_state(page):
    got = {
        state: monitor.actions(page, state, None, {"resumable_step": 5})
        for state in ("running", "paused", "interrupted", "done")
    }
    assert got["running"][:4] == ["sample", "save", "pause", "stop"]
    assert "resume" in got["paused"] and "pause" not in got["paused"]
    assert got["interrupted"][0] == "continue" and "stop" not in got["interrupted"]
    assert "continue" not in got["done"]


def test_samples_are_prompts_by_steps_with_the_base_model_first(page, tmp_path):
    drawn = [
        {"step": step, "index": index, "prompt": f"p{index}", "file": str(tmp_path / "a.png"), "seed": index}
        for step in (20, 0)
        for index in (1, 0)
    ]
    table = monitor.samples(page, drawn)
    assert (
        table["names"] == {0: "base model", 20: "step 20"}
        and table["steps"] == [0, 20]
        and [row["prompt"] for row in table["rows"]] == ["p0", "p1"]
    )
    assert set(table["rows"][0]["cells"]) == {"0", "20"}
    assert monitor.samples(page, drawn, at_base=False)["names"][0] == "step 0"
    resumed = [drawn[0] | {"step": 40, "index": 0}, drawn[0] | {"step": 40, "settings": "other size"}]
    rows = monitor.samples(page, [*drawn, *resumed])["rows"]
    assert [(row["prompt"], [*row["cells"]]) for row in rows[2:]] == [("p1", ["40"])] * 2, "other prompts or settings"
    assert details._samples([*drawn, *resumed], str.format, str).count("<tr>") == 1 + 4


def test_a_run_that_is_gone_is_said_and_the_rest_still_shown(page):
    parts = all_parts(page, {"tab": "Monitor", "run": "../../etc"}, page.browsers.of("gone"))
    assert parts["run"] is None and parts["gone"] and "queue" in parts


def test_problems_of_a_command_are_said_in_the_panel(page):
    browser = page.browsers.of("command")
    monitor.command(page, {"name": "pause", "run": "no such run"}, browser)
    assert browser.message["problems"][0]["what"] == "There is no such run"
    monitor.command(page, {"name": "__class__", "run": "x"}, browser)


def test_series_are_rounded_and_equal_rates_share_a_line():
    assert loss_series([[1, 0.123456789, float("nan")]]) == {"steps": [1], "raw": [0.12346], "smooth": [None]}
    series = rate_series([[1, {"unet": 1e-4, "text_encoder": 1e-4}], [2, {"unet": 5e-5, "text_encoder": 5e-5}]])
    assert series == {"steps": [1, 2], "lines": [{"name": "U-Net and text encoder", "values": [1e-4, 5e-5]}]}
    assert len(rate_series([[1, {"unet": 1e-4, "text_encoder": 5e-5}]])["lines"]) == 2


def test_problems_are_escaped_in_html():
    from tabs.markup import problems_html

    shown = problems_html([Problem("<b>bold</b>", "a&b", '"fix"')])
    assert "<b>bold" not in shown and "&lt;b&gt;" in shown and "a&amp;b" in shown


# -- tools and TensorBoard


def test_a_tool_tells_what_a_file_is_and_refuses_what_is_not_there(page):
    tools, browser = page.works, page.browsers.of("tools")
    tools.use({"tool": "inspect", "about": "models/starter"}, browser)
    assert until(lambda: tools.parts("Tools", {})["works"][0]["state"] == "done", 30)
    work = tools.parts("Tools", {})["works"][0]
    assert any("SD 1.x" in line for line in work["lines"])
    for data in ({"tool": "inspect", "about": "nothing-here"}, {"tool": "inspect"}, {"tool": "download", "about": ""}):
        with pytest.raises(ProblemsError):
            tools.use(data, browser)
    tools.use({"tool": "rm", "about": "x"}, browser)
    tools.use({"tool": "train", "about": "x"}, browser)
    assert len(tools.parts("Tools", {})["works"]) == 1
    tools.close({"work": "another"}, browser)
    assert len(tools.parts("Tools", {})["works"]) == 1
    tools.close({"work": work["id"]}, browser)
    assert tools.parts("Tools", {})["works"] == []
    assert tools.parts("Generate", {}) == {}


def test_tensorboard_without_files_says_what_to_set(page, tmp_path):
    with pytest.raises(ProblemsError) as told:
        page.tensorboard.open("run", tmp_path)
    assert "Also write" in str(told.value)


@pytest.mark.slow
def test_tensorboard_answers_under_this_machines_names_alone(page, tmp_path):
    import http.client

    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("loss", 0.5, 1)
    address = page.tensorboard.open("run", tmp_path)
    try:
        assert until(lambda: page.tensorboard.ready, 120)
        found = {}
        for host in ("127.0.0.1", "localhost:6006", "evil.example", ""):
            connection = http.client.HTTPConnection("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/")), timeout=60)
            connection.putrequest("GET", "/data/runs", skip_host=True)
            connection.putheader("Host", host)
            connection.endheaders()
            found[host] = connection.getresponse().status
            connection.close()
        assert found == {"127.0.0.1": 200, "localhost:6006": 200, "evil.example": 403, "": 403}
    finally:
        page.tensorboard.close()


def test_monitor_lists_the_newest_file_first_and_marks_the_final_one(page, tmp_path):
    names = ["fox-step00000010.safetensors", "fox-average-10-to-20.safetensors", "fox.safetensors"]
    files = [
        {"name": name, "path": str(tmp_path / name), "bytes": 9, "step": 10 * n} for n, name in enumerate(names, 1)
    ]
    listed = monitor.saved_files(page, files, {names[1]})
    assert [each["kept"] for each in listed] == [False, True, False]
    assert [(each["name"], each["final"]) for each in listed] == [
        (names[2], True),
        (names[1], False),
        (names[0], False),
    ]


@pytest.mark.parametrize("output", ["fox", "fox-261104"])
def test_monitor_calls_no_checkpoint_of_an_epoch_or_a_step_final(page, tmp_path, output):
    # The second token of an embedding has a file of its own
    ends = ["-000001", "-step00000110", "-step00000110-token", ""]
    files = [
        {"name": f"{output}{end}.safetensors", "path": str(tmp_path / f"{n}"), "bytes": 9, "step": 110 * n}
        for n, end in enumerate(ends, 1)
    ]
    listed = monitor.saved_files(page, files, (), output)
    assert [each["name"] for each in listed if each["final"]] == [f"{output}.safetensors"]
