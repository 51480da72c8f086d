"""Drift by block: how much of the LoRA's change of other prompts, and of the dataset's, is lost when one part of it is switched off.

Measured as the distance between predictions with the whole LoRA and without this part, over the LoRA's whole change. Parts act
through each other, so the shares need not sum to 1. Each image is predicted at one of four timesteps, in rotation.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from core.assess.statistics import Interval, NotMeasured, paired_ratio, ratio_of
from core.assess.target import one_timestep_each
from core.networks.block_weights import BASE, MID, SLOTS, block_weights, slot_of

PARTS = {
    BASE: "text encoder",
    "INS": "shallow input blocks",
    "IND": "deep input blocks",
    "MID": "middle block",
    "OUTD": "deep output blocks",
    "OUTS": "shallow output blocks",
}
SETS = ("outside", "inside")
SMALL = 0.05  # share of a part whose multiple says nothing


def measure(bench: Any, subject: Any) -> dict[str, Any]:
    """Return `blocks_of` for the parts of the model that the checkpoint's LoRA trains."""
    loras, whole = subject.maker.loras, one_timestep_each(bench.changes(subject, "outside"))
    trained = {slot_of(name) for network in loras.networks for name in network.adapters}
    block_changes = {}
    for part, slots in slots_of(loras.sdxl).items():
        if slots & trained:
            weights = ",".join("0" if slot in slots else "1" for slot in range(len(SLOTS)))
            block_changes[part] = [bench.block_changes(subject, name, weights) for name in SETS]
        else:
            bench.report_predictions(len(SETS) * len(whole))
    return blocks_of(whole, block_changes)


def slots_of(sdxl: bool) -> dict[str, frozenset[int]]:
    """Return {part: its indices in SLOTS} for each of PARTS. `sdxl`: whether the model has SDXL's blocks."""
    alone = {BASE: SLOTS.index(BASE), "MID": MID}
    slots = {part: enumerate(block_weights(part, sdxl)) for part in PARTS if part not in alone}
    halves = {part: frozenset(slot for slot, weight in weights if slot and weight) for part, weights in slots.items()}
    return {part: halves.get(part) or frozenset([alone[part]]) for part in PARTS}


def blocks_of(whole: Sequence[float], block_changes: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Return {"parts": {part: {value, low, high, times}}}, the largest value first. Raises NotMeasured.

    whole              relative changes of predictions by the whole LoRA, for other prompts
    block_changes      {part: (relative changes without the part for other prompts, the same for the dataset's)}
    value, low, high   share of the whole change that depends on the part, with its 95% interval (None: too few images)
    times              change that depends on the part for other prompts over that for the dataset's; None if one of them is 0
    """
    if min(whole) <= 0:
        raise NotMeasured("the checkpoint changes nothing")
    parts = {}
    for part, (outside, inside) in block_changes.items():
        share = paired_ratio(outside, whole) if min(outside) > 0 else Interval(fmean(outside) / fmean(whole))
        times = ratio_of(outside, inside).value if min(*outside, *inside) > 0 else None
        parts[part] = share.data | {"times": times and round(times, 4)}
    return {"parts": dict(sorted(parts.items(), key=lambda row: -row[1]["value"]))}


def brief(data: Mapping[str, Any]) -> str:
    """Return the part with the largest share, and the share, for a table cell."""
    part, most = next(iter(data["parts"].items()))
    return f"{part} {most['value']:.2f}"


def sentence(data: Mapping[str, Any]) -> str:
    """Return the report's sentence for data of `measure`: each part's share of the change."""
    rows = iter(data["parts"].items())
    part, top = next(rows)
    further_parts = "; ".join(f"{PARTS[name]} ({name}) {each['value']:.2f}{_multiple(each)}" for name, each in rows)
    text = f"Its change of other prompts needs most the {PARTS[part]} ({part}): {Interval.of(top)} of the whole change{_multiple(top)}"
    return f"{text}. Then: {further_parts}." if further_parts else f"{text}."


def _multiple(part: Mapping[str, Any]) -> str:
    """Return ", N times the dataset's" for a part; "" without `times` or for a part below SMALL."""
    return "" if part["times"] is None or part["value"] < SMALL else f", {part['times']:.2f} times the dataset's"
