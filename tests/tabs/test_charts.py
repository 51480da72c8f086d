"""Series for the charts."""

from __future__ import annotations

from tabs.monitor.charts import rate_series, validation_points, value_series


def test_points_without_a_value_are_left_out():
    assert value_series([[1, 0.5, None], [2, 0.25, 3.0]], 2) == {"steps": [2], "values": [3.0]}
    assert value_series([[1, float("nan")], [2, 0.1234567]]) == {"steps": [2], "values": [0.12346]}


def test_validation_is_told_by_step_with_its_gap():
    point = {"step": 20, "loss": 0.2, "train_loss": 0.15, "gap": 0.05, "by_timestep": {}, "images": 3, "effect": 0.125}
    assert validation_points([point]) == {
        "steps": [20],
        "loss": [0.2],
        "train": [0.15],
        "gap": [0.05],
        "effect": [0.125],
        "images": 3,
        "on": "held_out",
    }
    assert validation_points([])["steps"] == []


def test_parts_are_named_as_people_name_them():
    drawn = rate_series([[1, {"unet": 1.0, "text_encoder_2": 0.5, "unet plus": 16.0}]])
    assert [line["name"] for line in drawn["lines"]] == ["U-Net", "second text encoder", "U-Net plus"]
