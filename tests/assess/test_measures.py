"""Each measure on numbers whose result is known in closed form."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from core.assess import blocks, copies, diversity, drift, fit, loss, rank, results, strength, trigger
from core.assess.measures import MEASURES, STRENGTHS
from core.assess.statistics import NotMeasured, lower_bound, mean_of, paired_ratio, ratio_of
from core.assess.target import one_timestep_each
from core.networks.adapter_file import save_lora
from core.networks.block_weights import SLOTS
from core.record.cancel import CancelToken


def test_intervals_are_those_of_students_t():
    found = mean_of([1, 2, 3, 4, 5])
    assert (found.value, found.low) == (3, pytest.approx(3 - 2.776 * 0.5**0.5, rel=2e-3))  # t of 4 degrees, published
    assert mean_of([1, 2]).low is None, "two values tell nothing"
    same = paired_ratio([2, 4, 8], [1, 2, 4])
    assert (same.value, same.low, same.high) == pytest.approx((2, 2, 2))
    apart = ratio_of([2.0, 8.0, 4.0], [1.0, 2.0, 4.0])
    assert apart.value == pytest.approx(2) and (apart.low or 9) < 1 < (apart.high or 0)
    assert ratio_of([1, 1, 1], [2, 2, 2]).high == pytest.approx(0.5)


def test_the_bound_has_the_stated_rate_of_false_alarms():
    draw = np.random.default_rng(0)
    values = np.exp(draw.normal(0, 0.3, (4000, 9)))
    for rate in (0.05, 0.01):
        alarms = np.mean([row[-1] < lower_bound(row[:-1].tolist(), rate) for row in values])
        assert alarms == pytest.approx(rate, abs=3 * (rate / 4000) ** 0.5)  # three standard errors


def smooth(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC)


def pooled(image: Image.Image) -> torch.Tensor:
    """Latents of a toy VAE: the mean of 8 x 8 pixels."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
    return torch.nn.functional.avg_pool2d(pixels[None], 8)[0]


def test_a_training_image_is_found_when_it_is_shifted_flipped_or_noisy_and_an_unrelated_image_is_not():
    images = [smooth(seed) for seed in range(12)]
    gallery = copies.Gallery(len(images), images.__getitem__, pooled)
    unrelated = [gallery.nearest_images(smooth(seed))[0][0] for seed in range(100, 112)]
    limit = copies.limit_of(gallery.typical_distances(), unrelated[:8], 12)
    pixels = np.array(images[5])
    changed = {
        "equal": pixels,
        "shifted by 2 px": np.roll(pixels, (2, 2), (0, 1)),
        "shifted by 6 px and flipped": np.roll(pixels, 6, 1)[:, ::-1],
        "noisy": (pixels + np.random.default_rng(1).normal(0, 20, pixels.shape)).clip(0, 255).astype(np.uint8),
    }
    for name, each in changed.items():
        distance, number = gallery.nearest_images(Image.fromarray(np.ascontiguousarray(each)))[0]
        assert number == 5 and distance < limit, name
    assert gallery.nearest_images(images[5])[0] == (0, 5)
    assert min(unrelated) > limit and copies.limit_of(gallery.typical_distances(), [0.1, 0.11, 0.1], 30) < 0.1
    twice = copies.Gallery(13, [*images, images[5]].__getitem__, pooled)
    assert min(twice.typical_distances()) > limit, "near duplicates of the set are no unrelated images"


def test_diversity_is_0_for_equal_images_and_1_for_unrelated_ones():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 64, 64, generator=draw)
    assert diversity.variation([noise[0], noise[0]]) == 0
    assert diversity.variation(list(noise)) == pytest.approx(1, abs=0.02)
    shared = [noise[0] + noise[1], noise[0] + noise[2]]
    assert diversity.variation(shared) == pytest.approx(0.5, abs=0.02), "half of the variance is common"


def test_drift_is_the_change_outside_over_that_inside_by_band():
    inside, outside = [0.2, 0.4, 0.4, 0.2] * 3, [0.1, 0.1, 0.2, 0.2] * 3
    data = drift.drift_of(inside, outside)
    assert data["bands"] == [0.5, 0.25, 0.5, 1.0] and data["value"] == pytest.approx(0.5)
    assert not drift.warning(data) and drift.warning(drift.drift_of(inside, inside))
    assert "750 to 999" in drift.sentence(data)
    with pytest.raises(NotMeasured):
        drift.drift_of([0.0] * 12, outside)


def test_the_parts_of_the_model_are_the_26_block_weights():
    for sdxl in (False, True):
        slots = blocks.slots_of(sdxl)
        assert sorted(slot for part in slots.values() for slot in part) == list(range(26))
        assert list(slots) == list(blocks.PARTS)
    assert blocks.slots_of(False)["OUTS"] == {SLOTS.index(f"OUT{n:02}") for n in range(7, 12)}


def test_drift_by_block_is_what_depends_on_a_part_as_a_share_of_the_whole_change():
    whole, half = [0.2, 0.4, 0.1], [0.1, 0.2, 0.05]
    data = blocks.blocks_of(whole, {"BASE": [[0.0] * 3, [0.0] * 3], "MID": [half, half], "OUTS": [whole, half]})
    assert list(data["parts"]) == ["OUTS", "MID", "BASE"] and blocks.brief(data) == "OUTS 1.00"
    values = [tuple(part.values()) for part in data["parts"].values()]
    assert (
        values[0][:3] == pytest.approx((1, 1, 1))
        and values[1][:3] == pytest.approx((0.5, 0.5, 0.5))
        and values[2] == (0, None, None, None)
    )
    assert values[0][3] == pytest.approx(2) and values[1][3] == pytest.approx(1)
    assert all(part in blocks.sentence(data) for part in ("shallow output blocks (OUTS)", "(MID) 0.50", "(BASE) 0.00"))
    with pytest.raises(NotMeasured):
        blocks.blocks_of([0.0] * 3, {})
    assert one_timestep_each(list(range(24))) == [0, 5, 10, 15, 16, 21]


def test_a_checkpoint_that_fits_its_own_training_images_worse_than_the_base_model_is_named():
    for factor, named in ((0.7, False), (1.0, False), (3.0, True)):
        base = [0.1, 0.2, 0.1, 0.4] * 2 + [0.3, 0.2, 0.1, 0.3]
        losses = {"base": base, "trained": [loss * factor for loss in base]}
        bench = SimpleNamespace(losses=lambda one, name, losses=losses: losses[one], base="base")
        data = fit.measure(bench, "trained")
        assert data["value"] == pytest.approx(factor) and bool(fit.warning(data)) == named


def test_the_trigger_is_the_share_of_the_effect_without_the_word():
    effects = {"plain": [0.2] * 4 + [0.1] * 4 + [0.05] * 4, "inside": [0.4] * 4 + [0.2] * 4 + [0.1] * 4}
    bench = SimpleNamespace(changes=lambda subject, name: effects[name], target=SimpleNamespace(trigger="zkw"))
    data = trigger.measure(bench, None)
    assert data["value"] == pytest.approx(0.5) and "zkw" in trigger.sentence(data)
    assert trigger.without_word("a fox, glyph style, black", "glyph style") == "a fox, black"
    assert trigger.without_word("zkw fox", "zkw") == "fox" and trigger.without_word("zkwer fox", "zkw") == "zkwer fox"
    assert (trigger.with_word("a fox", "zkw"), trigger.with_word("ZKW fox", "zkw")) == ("zkw, a fox", "ZKW fox")


def losses_at(best: float, noise: float = 0.001) -> tuple[list[float], dict[float, list[float]]]:
    """Losses that a strength lowers by 2 best s - s^2, by pairs with common and own noise."""
    draw = np.random.default_rng(3)
    base = draw.uniform(1, 2, 16)
    each = {s: (base - 0.2 * (2 * best * s - s * s) + draw.normal(0, noise, 16)).tolist() for s in STRENGTHS}
    return base.tolist(), each


def test_the_best_strength_is_the_lowest_within_noise_of_the_lowest_loss():
    moved = [0.1 * s for s in STRENGTHS]
    for best in (0.6, 0.8, 1.0):
        data = strength.strength_of(*losses_at(best), moved)
        assert data["best"] == data["lowest"] == data["most"] == best
        assert max(data["rows"], key=lambda row: row[1])[0] == best
    base, each = losses_at(1.0)
    none = strength.strength_of(base, {s: [loss + s for loss in base] for s in STRENGTHS}, moved)
    assert none["best"] is None and strength.warning(none | {"on": "held_out"}) and strength.brief(none) == "none"
    flat = {s: each[0.8] for s in STRENGTHS}
    assert strength.strength_of(base, flat, moved)["best"] == 0.4, "equally good: the one that drifts least"
    assert strength.strength_of(base, flat, moved)["most"] == 1.2
    data = strength.strength_of(*losses_at(0.8, noise=0.02), moved)
    assert data["best"] < data["lowest"] <= data["most"] < 1.2, "noise widens it on both sides"
    assert f"up to {data['most']:g}" in strength.sentence(data | {"on": "held_out"})
    first = {name: value for name, value in data.items() if name != "most"}
    assert "up to" not in strength.sentence(first | {"on": "held_out"}), "an assessment before 0.4.20"


def test_the_used_rank_is_that_of_the_product(tmp_path):
    """Two of eight directions: singular values 3 and 1, so 95% of the norm in the first and all in both."""
    up, down = torch.zeros(16, 8), torch.zeros(8, 16)
    up[0, 0], up[1, 1], down[0, 0], down[1, 1] = 3.0, 1.0, 1.0, 1.0
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(8.0)}
    path = save_lora(tmp_path / "a.safetensors", tensors, {"ss_base_model_version": "sd_v1"})
    bench = SimpleNamespace(context=SimpleNamespace(cancel=CancelToken()))
    subject = SimpleNamespace(checkpoint=SimpleNamespace(path=path), maker=SimpleNamespace(components=None))
    data = rank.measure(bench, subject)
    assert (data["used"], data["resize"], data["lost"], data["rank"]) == (1, 2, 0, 8)
    assert data["norm"] == pytest.approx(10**0.5, rel=1e-3) and list(data["layers"]) == [name]
    with pytest.raises(NotMeasured):
        rank.rank_of({})


def line(step: int, losses: list[float], on: str = "held_out") -> dict:
    mean = sum(losses) / len(losses)
    return {
        "kind": "validated",
        "step": step,
        "loss": mean,
        "images": 2,
        "each": losses,
        "each_of": "x",
        "measured_on": on,
    }


def test_the_loss_is_compared_with_the_lowest_by_pairs():
    base = np.linspace(0.1, 0.4, 8)
    lines = {at: line(at, (base + more).tolist()) for at, more in ((0, 0.1), (20, 0.0), (40, 0.01))}
    assert "above" not in loss.loss_of(lines, 20) and "lowest" in loss.sentence(loss.loss_of(lines, 20))
    assert loss.loss_of(lines, 40)["above"]["value"] == pytest.approx(0.01)
    assert "noise" not in loss.sentence(loss.loss_of(lines, 40))
    noisy = lines | {40: line(40, (base + 0.01 + 0.1 * (-1) ** np.arange(8)).tolist())}
    assert "noise" in loss.sentence(loss.loss_of(noisy, 40))
    for missing in ({**lines}, 60), ({20: line(20, [0.1] * 4, "training")}, 20):
        with pytest.raises(NotMeasured):
            loss.loss_of(*missing)


def test_an_average_has_no_loss_of_its_own(tmp_path):
    average = SimpleNamespace(path=tmp_path / "t-average-20-to-40.safetensors", step=40)
    with pytest.raises(NotMeasured):
        loss.recorded(None, average)


COPY = {"distance": 0.1, "limit": 0.5, "typical": 0.8, "near": 2, "images": 8, "name": "fox.png", "files": ["a", "b"]}


def test_a_trigger_word_that_does_nothing_in_any_checkpoint_is_named_once():
    labels = {"a": "step 1", "b": "step 2"}

    def sentence(*lows):
        cells = {
            file: {"trigger": {"value": 1.0, "low": low, "high": 1.1, "word": "sks"}}
            for file, low in zip(labels, lows, strict=False)
        }
        return results.with_warnings("x.", labels, cells, labels)

    assert "The trigger word 'sks' does next to nothing. Nothing else" in sentence(0.95, 0.91)
    assert sentence(0.95).count("sks") == 1, "of those that were measured"
    for lows in ((0.95, 0.9), (0.95, None), ()):
        assert "sks" not in sentence(*lows)


def test_warnings_join_the_sentence_about_the_losses():
    cells = {"a": {"copies": COPY | {"near": 0}}, "b": {"copies": COPY}, "c": {"copies": COPY}}
    labels = {"a": "step 180", "b": "step 250", "c": "step 300"}
    said = results.with_warnings("Steps 180 and 250 cannot be told apart.", labels, cells, ())
    assert said.startswith("Steps 180 and 250 cannot be told apart; ") and "step 250, step 300" in said
    assert "step 250 nearly copies" in results.with_warnings("x.", {"b": "step 250"}, cells, ())
    assert said.count("fox.png") == 1 and "step 180" not in said
    assert results.with_warnings("Nothing.", labels, {}, {*labels}) == "Nothing."
    for good, named in (({"b", "c"}, False), ({"a", "b"}, True), ({*labels}, True)):
        last = results.with_warnings("x.", labels, cells, good).partition(". ")[2]
        assert ("step 180" in last) is named and "step 250" not in last
    many = {str(n): f"step {n}" for n in range(6)}
    last = results.with_warnings("x.", many, {key: {"drift": {"why": "x"}} for key in many}, {*many} - {"0"})
    assert "5 of 6" in last and "all but step 0," in last and "step 1" not in last
    best = {"step": 20, "as_good": (30,), "unknown": (40,)}
    assert results.not_worse(best, {"a": 10, "b": 20, "c": 30, "d": 40, "e": None}) == {"b", "c", "d"}
    assert results.not_worse(None, {"a": 10}) == {"a"}
    header, *rows = results.table_lines(labels, cells)
    assert header.split() == ["checkpoint", "copies"] and ["COPY" in row for row in rows] == [False, True, True]


@pytest.mark.parametrize("content", ["", "[]", '{"cells": 3}', '{"cells": {"a": {"copies": 3, "gone": {}}}}'])
def test_a_damaged_file_counts_as_nothing_measured(tmp_path, content):
    (tmp_path / results.FILE).write_text(content)
    assert results.read_results(tmp_path) == {}
    assert results.rows_of({"copies": {"near": "x"}})[0]["warning"] == ""


def test_every_measure_says_its_result_or_why_it_has_none():
    for one, other in pairwise(MEASURES.values()):
        assert one.title != other.title
    for measure in MEASURES.values():
        words = [measure.text(name, {"why": "x"}) for name in ("brief", "sentence", "warning")]
        assert words[0] == "-" and "x" in words[1] and words[2] == "" and measure.meaning.endswith(".")
        module = import_module(f"core.assess.{measure.name}")
        assert all(
            callable(getattr(module, name)) for name in ("recorded" if measure.recorded else "measure", "sentence")
        )


def test_losses_that_a_resumed_run_measured_again_replace_the_later_ones_too(monkeypatch):
    lines = [line(20, [0.3] * 4), line(40, [0.1] * 4), line(20, [0.2] * 4)]
    monkeypatch.setattr(loss, "read_lines", lambda file: lines)
    run = SimpleNamespace(run=SimpleNamespace(journal_file=None))
    data = loss.recorded(run, SimpleNamespace(path=Path("fox-step00000020.safetensors"), step=20))
    assert (data["loss"], data["lowest"]) == (0.2, 20)
