"""Two runs compared, without a browser: run folders made by hand, read by the real engine."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from made_runs import HELD, IMAGES, dataset, make_run
from work_parts import HOSTILE, event, wait_until

from core.record.events import CONTROL_IMAGE, WITHOUT_CONTROL
from core.record.journal import Tail
from core.record.run_folder import RunFolder
from core.record.units import loss_text
from core.settings.check import build
from core.settings.job import TrainJob
from tabs.runs import compare_view
from tabs.runs import view as runs_view
from tabs.runs.compare import Comparisons, curves
from tabs.runs.compared import (
    Row,
    _by_chance,
    _by_timestep,
    _nearest,
    checkpoint,
    differing_settings,
    fact_rows,
    image_changes,
    incomparable_reasons,
    other_prompts,
    sample_rows,
    shared_images,
    verdict,
    verdicts,
)
from tabs.runs.tab import RunHandlers

A, B = "20260101-120000_one", "20260102-130000_two"
MEASURED_A, MEASURED_B = [(0, 0.2), (20, 0.121), (40, 0.13)], [(0, 0.2), (20, 0.15), (60, 0.1344)]


@pytest.fixture
def sides(page):
    """sides(a={...}, b={...}): both runs made with these, and read."""

    def make(a=None, b=None):
        for name, given, measured in ((A, a, MEASURED_A), (B, b, MEASURED_B)):
            make_run(page.workspace.runs, name, **{"validated": measured, "about": dataset(), **(given or {})})
        found = Comparisons(page)
        return found._side("A", A), found._side("B", B)

    return make


# -- which is better


def test_what_is_said_of_several_runs_is_said_once(sides):
    a, b = sides({"validated": ()}, {"validated": ()})
    assert verdicts([a, b, b]) == [verdict(a, b)]


def test_the_same_measure_is_comparable_and_says_so(sides):
    assert verdict(*sides()) == (
        "A's best validation loss is lower: 0.1210 at step 20 against 0.1344 at step 60; both measured on the same 2 "
        "validation images with the same noise at the same timesteps, so comparable. A is lower at 4 of 4 timesteps. "
        "B's lowest loss is the last one: more steps might lower it further."
    )


def held(**changes):
    return dataset(held=[HELD[0], HELD[1] | changes])


@pytest.mark.parametrize(
    ("b", "reason"),
    [
        ({"about": held(sha256="other")}, "measured on different images"),
        ({"about": dataset(held=HELD[:1])}, "measured on different images"),
        ({"about": held(caption="an owl")}, "measured with different captions"),
        ({"about": held(bucket=[64, 64])}, "measured at different sizes"),
        ({"about": held(masked=True)}, "measured with and without masks"),
        ({"about": held(path="b/ant.png")}, "measured with other noise (it follows the names of images and folders)"),
        ({"about": dataset(seed=5)}, "measured with other noise (another validation seed)"),
        ({"settings": {"noise": {"loss_type": "l1"}}}, "measured with a different loss (Loss type)"),
        ({"settings": {"memory": {"latent_draw": "mean"}}}, "measured with a different loss (Latent sampling)"),
        ({"settings": {"model": {"base_model": "x"}}}, "measured with different base models (Base model)"),
        ({"about": dataset(held=None)}, "what B measured is not recorded"),
        ({"about": None}, "what B measured is not recorded"),
    ],
)
def test_another_measure_is_not_comparable_and_the_reason_is_named(sides, b, reason):
    a, b = sides(b=b)
    assert incomparable_reasons(a, b) == [reason]
    said = verdict(a, b)
    assert f"0.1210 at step 20 against 0.1344 at step 60; {reason}, so not comparable." in said
    assert "so comparable" not in said and "timesteps." not in said


def test_other_timesteps_are_not_comparable(sides):
    about = dataset()
    about["validation"]["timesteps"] = [100, 200, 300, 400]
    a, b = sides(b={"about": about, "settings": {"noise": {"max_timestep": 500}}})
    assert incomparable_reasons(a, b) == ["measured at different timesteps"]


def test_settings_that_only_train_leave_the_measure_the_same(sides):
    other = {
        "optimizer": {"learning_rate": 3e-4},
        "network": {"rank": 4},
        "schedule": {"seed": 5, "max_train_steps": 60},
    }
    assert incomparable_reasons(*sides(b={"settings": other, "about": dataset(images=IMAGES[:1])})) == []


@pytest.mark.parametrize(
    ("loss", "seed", "draw", "said"),
    [
        (0.1207, 5, "sample", True),
        (0.1207, 4, "sample", False),
        (0.1207, 5, "mean", False),
        (0.123, 5, "sample", False),
    ],
)
def test_a_difference_that_the_training_seed_can_make_is_called_chance(sides, loss, seed, draw, said):
    def settings(seed):
        return {"schedule": {"max_train_steps": 60, "seed": seed}, "memory": {"latent_draw": draw}}

    a, b = sides(
        a={"settings": settings(4)}, b={"settings": settings(seed), "validated": [(0, 0.2), (20, loss), (40, 0.2)]}
    )
    words = verdict(a, b)
    assert "so comparable" in words and ("can be random here" in words) is said


@pytest.mark.parametrize(("ways", "said"), [((True, True), False), ((True, False), True), ((False, False), True)])
def test_what_is_measured_with_the_validation_seed_follows_no_training_seed(sides, ways, said):
    made = [dataset() | ({"measured_with": "validation seed"} if way else {}) for way in ways]
    settings = [{"schedule": {"max_train_steps": 60, "seed": seed}} for seed in (4, 5)]
    close = {"validated": [(0, 0.2), (20, 0.1207), (40, 0.2)]}
    a, b = sides(a={"settings": settings[0], "about": made[0]}, b={"settings": settings[1], "about": made[1], **close})
    assert ("can be random here" in verdict(a, b)) is said


def measured(letter: str, loss: float, *by_timestep: float, seed: int = 1) -> SimpleNamespace:
    job = SimpleNamespace(memory=SimpleNamespace(latent_draw="sample"), schedule=SimpleNamespace(seed=seed))
    best = {"loss": loss, "by_timestep": dict(enumerate(by_timestep))}
    return SimpleNamespace(letter=letter, best=best, dataset={}, job=job)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ((0.1, 0.1, 0.2, 0.3), (0.2, 0.2, 0.2, 0.1), "A is lower at 1 of 3"),  # the same is not lower
        ((0.2, 0.2, 0.2, 0.1), (0.1, 0.1, 0.1, 0.3), "B is lower at 2 of 3"),
        ((0.1, 0.1, 0.2), (0.2, 0.2, 0.3, 0.4), "A is lower at 2 of 2"),  # at those that both measured
        ((0.1, 0.1), (0.2, 0.2), ""),
        ((0.10001, 0.1, 0.2), (0.10002, 0.2, 0.3), ""),  # shown as equal
    ],
)
def test_a_run_is_lower_at_timesteps_where_its_loss_is_less(a, b, said):
    assert [words.removesuffix(" timesteps.") for words in _by_timestep(measured("A", *a), measured("B", *b))] == (
        [said] if said else []
    )


@pytest.mark.parametrize(("low", "chance"), [(0.991, True), (0.989, False)])
def test_a_hundredth_is_what_chance_can_make(low, chance):
    runs = [measured("A", low), measured("B", 1.0, seed=2)]
    assert bool(_by_chance(*runs)) is bool(_by_chance(*runs[::-1])) is chance


def test_of_two_samples_that_are_as_near_the_earlier_is_taken():
    samples = [{"step": step} for step in (10, 20, 40)]
    assert [_nearest(samples, step)["step"] for step in (0, 14, 15, 16, 30, 31, 99)] == [10, 10, 10, 20, 20, 40, 40]


def test_order_of_the_images_does_not_matter(sides):
    assert incomparable_reasons(*sides(b={"about": dataset(held=HELD[::-1])})) == []


def test_equal_losses_and_a_best_before_the_first_step_are_said(sides):
    same = [(0, 0.1), (20, 0.15)]
    said = verdict(*sides(a={"validated": same}, b={"validated": same}))
    assert said.startswith("The best validation losses are equal: 0.1000, A at step 0, B at step 0; both measured")
    assert "A was best before the first step: training did not lower this loss." in said


def test_runs_that_measured_nothing_support_no_choice(sides):
    said = verdict(*sides(a={"validated": []}, b={"validated": []}))
    assert "do not show which is better" in said and "Compare the samples." in said


def test_one_run_that_measured_nothing_supports_no_choice(sides):
    said = verdict(*sides(a={"validated": []}))
    assert said.startswith("Only B measured validation loss: 0.1344 at step 60 at best. A measured none")


# -- facts, settings, samples


def test_the_facts_of_both(sides):
    a, b = sides(
        a={
            "preset": "starter_lora",
            "saved": (20, 60),
            "peak": 3 << 30,
            "settings": {"dataset": {"folder": "x/glyphs"}},
        },
        b={"about": dataset(images=IMAGES[:3]), "saved": (40,)},
    )
    rows = {row.title: row.values for row in fact_rows(a, b)}
    assert rows["Preset"] == ("starter_lora", "–") and rows["Dataset"] == ("glyphs", "–")
    assert rows["Training images"] == ("2 images", "3 images")
    assert rows["In both"] == ("2 images, 2 with the same caption",)
    assert rows["Steps"] == ("60 of 60", "60 of 60")
    assert rows["Best validation loss"] == ("0.1210 at step 20", "0.1344 at step 60")
    assert rows["Checkpoint at that step"] == (
        "one-step00000020.safetensors",
        "none at that step; nearest two-step00000040.safetensors, step 40",
    )
    assert rows["Last validation loss"] == ("0.1300 at step 40", "0.1344 at step 60")
    assert rows["Peak memory"] == ("3.0 GB of the GPU", "–")
    assert rows["Latest file"] == ("2.3 MB, step 60", "2.3 MB, step 40")
    assert rows["Time"][0] == "1:08"  # 69 lines, a second apart


def test_what_neither_run_tells_is_left_out_and_no_file_is_named_that_is_gone(sides):
    a, b = sides(a={"validated": [(0, 0.1)]}, b={"validated": [(20, 0.1)]})
    assert checkpoint(a) == "the base model" and checkpoint(b) == "no file left"
    average = {"name": "one-average-20-to-40.safetensors", "step": 20, "bytes": 1}
    assert checkpoint(replace(b, facts=b.facts | {"files": [average]})) == "no file left"
    assert not {"Peak memory", "Preset", "Latest file"} & {row.title for row in fact_rows(a, b)}


def test_images_in_both_are_known_by_their_content():
    renamed = [row | {"path": f"new/{row['path']}"} for row in IMAGES]
    assert shared_images(dataset(IMAGES), dataset(renamed)) == "the same images and captions"
    told = [IMAGES[0] | {"caption": "x"}, *IMAGES[1:]]
    assert shared_images(dataset(IMAGES), dataset(told)) == "the same images, 3 with the same caption"
    assert shared_images(dataset(IMAGES[:2]), dataset(IMAGES[2:])) == "no image"
    assert shared_images({}, dataset()) == ""


def test_settings_that_differ_are_shown_in_the_words_of_the_form(sides):
    a, b = sides(
        b={
            "settings": {
                "noise": {"loss_type": "huber"},
                "dataset": {"flip_aug": True},
                "schedule": {"max_train_steps": 9},
            }
        }
    )
    shown = compare_view.comparison_parts((a, b), str, str)["settings"]
    assert "3 settings" in shown and "noise.loss_type" in shown and "Huber" in shown
    assert "<td>off</td><td>on</td>" in shown and "<td>60 steps</td><td>9 steps</td>" in shown
    assert "same settings" in compare_view.comparison_parts((a, a), str, str)["settings"]


def test_samples_of_one_prompt_stand_beside_the_nearest_step(sides):
    a, b = sides(
        a={"drawn": (0, 20, 40), "prompts": ("a fox", "an owl")},
        b={"drawn": (0, 24, 60), "prompts": ("a fox", "a bee")},
    )
    (row,) = sample_rows(a, b)
    assert row.prompt == "a fox"
    assert [(x["step"], y["step"]) for x, y in row.moments] == [(0, 0), (20, 24), (40, 60)]
    assert other_prompts(a, b) == ["1 prompt only in A", "1 prompt only in B"]
    shown = compare_view.comparison_parts((a, b), lambda *_: "small", lambda *_: "whole")["samples"]
    assert shown.count("base model</span>") == 2 and "step 24" in shown and "Seed" not in shown
    a.facts["samples"].append(a.facts["samples"][0] | {"step": 60, "settings": "other size"})
    (row,) = sample_rows(a, b)
    assert [x["step"] for x, _ in row.moments] == [60], "the newest settings of a resumed run"
    a.facts["samples"].pop()
    embedding = replace(a, job=build(TrainJob, {"method": {"kind": "embedding"}, "embedding": {"token_string": "zkw"}}))
    shown = compare_view.comparison_parts((embedding, b), lambda *_: "small", lambda *_: "whole")["samples"]
    assert shown.count("base model</span>") == 1 and "step 0</span>" in shown


def test_control_images_and_images_without_the_control_net_come_first(sides):
    """Of the run that has them; the other's samples stand below its own of the same steps all the same."""
    a, b = sides(a={"drawn": (0, 40)}, b={"drawn": (0, 40)})
    first = a.facts["samples"][0]
    a.facts["samples"] += [first | {"step": step} for step in (CONTROL_IMAGE, WITHOUT_CONTROL)]
    (row,) = sample_rows(a, b)
    assert [(own["step"], other) for own, other in row.compared] == [(CONTROL_IMAGE, None), (WITHOUT_CONTROL, None)]
    assert [(x["step"], y["step"]) for x, y in row.moments] == [(0, 0), (40, 40)]
    lines = compare_view.comparison_parts((a, b), lambda *_: "small", lambda *_: "whole")["samples"].split("<tr>")[1:]
    assert [line.count("<td>") for line in lines] == [4, 4] and [line.count("<img") for line in lines] == [4, 2]


def test_many_samples_are_thinned_and_the_last_of_both_are_kept(sides):
    a, b = sides(a={"drawn": range(0, 61, 2)}, b={"drawn": range(0, 61, 3)})
    (row,) = sample_rows(a, b)
    assert len(row.moments) == 5
    assert [pair[0]["step"] for pair in (row.moments[0], row.moments[-1])] == [0, 60] and row.moments[-1][1][
        "step"
    ] == 60


def test_the_curves_are_those_of_monitor(sides):
    found = curves(sides()[0])
    assert len(found["smooth"]["steps"]) == len(found["corrected"]["values"]) == 60
    assert found["validation"] == {"steps": [0, 20, 40], "values": [0.2, 0.121, 0.13]} and found["total"] == 60


def test_a_loss_is_told_with_four_decimals_or_three_figures():
    assert [loss_text(value) for value in (0.1344, 1.5, 0.001234, 1e30)] == ["0.1344", "1.5000", "0.00123", "1e+30"]


def test_settings_without_effect_are_no_difference(sides):
    """The Huber scale has none with either run's loss."""
    plain, other = ({"settings": {"noise": noise}} for noise in ({}, {"huber_scale": 2.0}))
    assert "noise.huber_scale" not in differing_settings(sides(a=plain, b=other))


def test_where_a_setting_has_an_effect_in_one_run_the_other_says_that_it_has_none(sides):
    both = sides(a={}, b={"settings": {"noise": {"loss_type": "huber", "huber_scale": 2.0}}})
    assert differing_settings(both)["noise.huber_scale"] == [(1.0, False), (2.0, True)]
    shown = compare_view.comparison_parts(both, str, str)["settings"]
    assert "no effect" in shown and "<td>2</td>" in shown


def test_training_images_are_compared_one_by_one_by_name_and_by_content():
    fox, owl, bee, ant = IMAGES
    told = owl | {"caption": "an old owl"}
    edited, renamed = bee | {"sha256": "other"}, ant | {"path": "b/ant.png"}
    found = image_changes(dataset(IMAGES), dataset([told, edited, renamed, fox | {"path": "new.png", "sha256": "new"}]))
    assert found.added == ["glyphs/new.png"] and found.removed == ["glyphs/fox.png"]
    assert found.changed == [
        ("glyphs/owl.png", "caption"),
        ("glyphs/bee.png", "image"),
        ("glyphs/b/ant.png", "was glyphs/ant.png"),
    ]
    assert not image_changes(dataset(IMAGES), dataset(IMAGES[::-1])) and image_changes({}, dataset()) is None


def test_four_runs_are_compared_at_once(page, sides):
    sides(a={"drawn": (0, 20)}, b={"drawn": (0, 24)})
    more = ["20260103-120000_three", "20260104-120000_four"]
    for name in more:
        make_run(page.workspace.runs, name, about=dataset(images=IMAGES), drawn=(0, 10, 30), validated=[(20, 0.1)])
    found = Comparisons(page).parts("Runs", {"wants": {"compare": [A, B, *more]}})["compare"]
    assert len(found["curves"]) == 4 and found["html"]["words"].count("<p") == 3
    assert found["html"]["facts"].count('scope="col"') == 4 and found["html"]["samples"].count("<img") == 4 * 3
    assert not Comparisons(page).parts("Runs", {"wants": {"compare": [A, B, *more, A]}})


# -- the page's part


def asked(a, b):
    return {"wants": {"compare": [a, b]}}


def test_the_part_is_sent_on_the_runs_tab_alone_and_only_for_two_names(page, sides):
    sides()
    found = Comparisons(page)
    assert set(found.parts("Runs", asked(A, B))) == {"compare"}
    assert (
        found.parts("Train", asked(A, B))
        == found.parts("Runs", {})
        == found.parts("Runs", {"wants": {"compare": [A]}})
        == {}
    )
    assert found.parts("Runs", {"wants": [1]}) == {}


def test_a_run_that_is_gone_or_made_up_is_said(page, sides):
    sides()
    for name in ("20260101-000000_gone", "../one", "", "\0"):
        found = Comparisons(page).answer(A, name)
        assert "There is no such run" in found["gone"][0]["what"] and "html" not in found


def test_what_a_person_wrote_never_becomes_markup(page):
    settings = {
        "saving": {"output_name": HOSTILE},
        "dataset": {"folder": HOSTILE},
        "samples": {"sample_prompts": [HOSTILE]},
    }
    make_run(page.workspace.runs, A, settings=settings, drawn=(0,), prompts=(HOSTILE,), preset=HOSTILE)
    make_run(page.workspace.runs, B, drawn=(0,), prompts=(HOSTILE,))
    found = Comparisons(page).answer(A, B)
    assert "<img src=x" not in "".join(found["html"].values()) + found["head"]
    assert HOSTILE[:4] not in found["head"] and "&lt;img src=x" in found["html"]["samples"]


def test_journals_are_read_beside_and_a_large_one_holds_up_no_answer(page, sides, monkeypatch):
    sides()
    monkeypatch.setattr(runs_view, "PATIENCE", 0.1)
    real, read = Tail.lines, threading.Event()
    monkeypatch.setattr(Tail, "lines", lambda tail: read.wait(60) and real(tail))
    found, desk = Comparisons(page), RunHandlers(page)
    first = found.answer(A, B)
    assert first["reading"] and "html" not in first
    assert desk._main({}).startswith('<p class="hint" role="status">Loading runs')
    read.set()
    wait_until(lambda: not found.answer(A, B)["reading"])
    assert found.answer(A, B)["html"]["words"]
    wait_until(lambda: "table" in desk._main({}))


def test_nothing_is_made_anew_while_neither_run_tells_anything_new(page, sides, monkeypatch):
    sides()
    found, made, real = Comparisons(page), [], compare_view.comparison_parts
    monkeypatch.setattr(compare_view, "comparison_parts", lambda *given: made.append(1) or real(*given))
    first = found.answer(A, B)
    assert found.answer(A, B) == first and len(made) == 1
    line = {"v": 1, "seq": 9000, "time": time.time(), "kind": "saved", "step": 60, "file": "x.pt", "bytes": 1}
    with open(page.workspace.runs / B / "events.jsonl", "a", encoding="utf-8") as journal:
        journal.write(json.dumps(line) + "\n")
    found.answer(A, B)
    assert len(made) == 2


# -- the table


def test_the_table_tells_the_best_validation_and_ticks_two_runs(page, sides):
    sides(b={"validated": []})
    make_run(page.workspace.runs, "20260103-130000_three", validated=[(10, 0.5)])
    desk = RunHandlers(page)
    shown = desk._main({})
    assert '<td class="num lowest">0.1210 @ 20</td>' in shown and '<td class="num lowest"></td>' in shown
    assert "Select two to four runs" in shown and 'href="#Runs/' not in shown
    place = {}
    shown = desk.act(place, event("pick", A, "true"))["main"]
    assert "Select another run" in shown and shown.count(" checked ") == 1
    shown = desk.act(place, event("pick", B, "true"))["main"]  # with the state of before: it may already be under way
    assert f'href="#Runs/{A}/{B}"' in shown and shown.count(" checked ") == 2
    shown = desk.act(place, event("pick", "20260103-130000_three", "true"))["main"]
    assert shown.count(" checked ") == 3 and f'href="#Runs/{A}/{B}/20260103-130000_three"' in shown
    shown = desk.act(place, event("pick", A, "false"))["main"]
    assert f'href="#Runs/{B}/20260103-130000_three"' in shown
    shown = desk.act(place, event("unpick"))["main"]
    assert place["picked"] == [] and " checked " not in shown


def test_several_runs_are_deleted_at_once_and_one_that_trains_stays(page, sides):
    sides()
    make_run(page.workspace.runs, "20260103-130000_three")
    desk, place = RunHandlers(page), {}
    for name in (A, B, "20260103-130000_three"):
        shown = desk.act(place, event("pick", name, "true"))["main"]
    assert "3 selected runs" in shown and "data-sure" not in shown
    held = RunFolder(page.workspace.runs / "20260103-130000_three")
    held.lock()
    try:
        desk.act(place, event("delete-picked"))
    finally:
        held.unlock()
    assert place["picked"] == ["20260103-130000_three"]
    assert {path.name for path in page.workspace.runs.iterdir()} == {"20260103-130000_three"}
    assert len(list(page.workspace.trash.iterdir())) == 2


def test_one_run_alone_is_not_offered_for_comparison(page):
    make_run(page.workspace.runs, A)
    assert "to compare" not in RunHandlers(page)._main({})
    shown = RunHandlers(page)._main({"picked": [A]})
    assert "to compare" not in shown and "delete-picked" in shown


def test_facts_that_stand_for_both_fill_one_row(sides):
    assert Row("In both", ("the same images and captions",)) in fact_rows(*sides())
