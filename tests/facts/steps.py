"""What a run does at which step: batches of random datasets, saves, samples and validations, and which files expire."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from core.dataset.buckets.batches import Placed
from core.dataset.buckets.length import advised_epochs, length_of
from core.dataset.buckets.placing import place
from core.dataset.buckets.plan import Plan
from core.dataset.buckets.validation_split import automatic_count, held_out
from core.dataset.captions.files import Caption
from core.dataset.sources.image_info import ImageInfo
from core.record import best
from core.settings.check import build
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob
from core.settings.noise import NoiseSettings
from core.settings.optimization.schedule import read_step_rules, span, steps_of
from core.training.loop import timetable, validation
from core.training.loop import train as loop
from core.training.saving.checkpoints import Checkpoints, Intermediate, expired_checkpoints, planned_saves
from core.training.saving.states import expired_states
from tests.facts.store import Facts, digest, folder, producer, refused
from tests.training.test_timetable import SimulatedRun

SIDES = (320, 500, 512, 513, 640, 768, 800, 1000, 1024, 1280, 2000)
SAVING: dict[str, tuple[Any, ...]] = {
    "save_every_n_epochs": (None, 1, 2, 3),
    "save_every_n_steps": (None, 0, 3, 5, 7),
    "save_n_epoch_ratio": (None, None, 2, 3),
    "save_n_evenly": (None, None, 3, 4),
    "save_last_n": (None, None, 0, 1, 2),
    "save_last_n_epochs": (None, 1, 2),
    "save_last_n_steps": (None, 3, 6, 10),
    "save_last_n_states": (1, 2, 3),
    "save_last_n_steps_state": (None, None, 4, 9),
    "save_last_n_epochs_state": (None, None, 1, 2),
    "save_state": (True, False),
    "save_state_on_train_end": (True, False),
}


def random_values(draw: Random) -> dict[str, Any]:
    """Values of a job with one to three folders."""
    sources = [
        {
            "folder": f"f{number}",
            "role": draw.choice(("train", "train", "train", "regularization", "validation")) if number else "train",
            "samples_per_epoch": draw.choice((None, None, None, 3, 11)),
            "train_batch_size": draw.choice((None, None, 2)),
            "batch_group": draw.choice((None, None, "a")),
            "more_resolutions": draw.choice((None, None, [384])),
            "validation_split": draw.choice((None, None, 0.2)),
            "validation_images": draw.choice(([], [], ["1.png"])),
        }
        for number in range(draw.randint(1, 3))
    ]
    dataset = {
        "sources": [{name: value for name, value in each.items() if value is not None} for each in sources],
        "resolution": draw.choice((512, 512, [512, 768], 256)),
        "train_batch_size": draw.choice((1, 2, 3, 4)),
        "short_batches": draw.choice(("keep", "refill", "merge", "drop")),
        "resolution_choice": draw.choice(("each", "each", "each", "drawn")),
        "bucket_no_upscale": draw.random() < 0.3,
        "enable_bucket": draw.random() < 0.8,
    }
    schedule = {
        "max_train_steps": draw.choice((None, 7, 20, 41)),
        "max_train_epochs": draw.choice((None, 1, 3)),
        "gradient_accumulation_steps": draw.choice((1, 1, 2, 3)),
    }
    return {
        "dataset": dataset,
        "schedule": schedule,
        "memory": {"num_processes": draw.choice((1, 1, 1, 2))},
        "model": {"compatibility": draw.choice(("none", "none", "sd-scripts-0.10"))},
        "saving": {name: draw.choice(values) for name, values in SAVING.items()},
        "validation": {"best_checkpoint": draw.choice(("off", "auto")), "validation_seed": draw.choice((1, 2))},
    }


def _images(job: TrainJob, draw: Random) -> list[ImageInfo]:
    images = []
    for number, concept in enumerate(concepts_of(job)):
        for index in range(draw.choice((1, 4, 13, 45))):
            path, size = Path(f"f{number}/{index}.png"), (draw.choice(SIDES), draw.choice(SIDES))
            repeats = concept.source.num_repeats or draw.choice((1, 1, 2))
            images.append(ImageInfo(f"f{number}", path.name, path, *size, index % 7, 1, repeats, concept=number))
    return images


def _contents(images: Sequence[ImageInfo]) -> dict[tuple[str, str], str]:
    return {each.key: sha256(f"{each.relative[0]} {each.bytes}".encode()).hexdigest() for each in images}


def _name(placed: Placed) -> str:
    return "/".join(placed.key)


def random_run(name: str) -> tuple[TrainJob, list[ImageInfo], Any]:
    draw = Random(name)
    job = build(TrainJob, random_values(draw))
    images = _images(job, draw)
    out = held_out(images, concepts_of(job), _contents, job.validation.validation_seed)
    merge = job.dataset.short_batches == "merge"
    caption = Caption("a fox", "file", Path("x.txt"))
    placing = place(images, concepts_of(job), lambda image: caption, held_out=out, merge=merge,
                    processes=job.memory.num_processes)  # fmt: skip
    return job, images, placing


@producer
def epochs() -> Facts:
    """Buckets, batches, steps and held-out images of random datasets."""
    for number in range(90):
        job, images, placing = random_run(f"epochs {number}")
        plan = Plan(placing.placed, job, seed=number)
        length = length_of(job.schedule, plan.epochs)
        plan.total = length.total_steps
        buckets: dict[str, int] = {}
        for placed in placing.placed:
            key = "{} {}x{}".format(placed.bucket[0], *placed.bucket[1])
            buckets[key] = buckets.get(key, 0) + 1
        steps = [plan.epochs.steps_in(epoch) for epoch in range(4)] if length.total_steps else []
        batches = plan.epochs.batches(number, 1) if length.total_steps else []
        shown = [[_name(placed), repeat] for batch in batches[:3] for placed, repeat in batch.items]
        crops = [[*each.placement.bucket, *each.placement.crop] for each in placing.placed[:3]]
        yield (
            str(number),
            {
                "images": len(images),
                "buckets": buckets,
                "crops": crops if len(str(crops)) < 200 else digest(crops),
                "held out": sorted(map(_name, placing.validation))[:6] + [len(placing.validation)],
                "refused": len(placing.refused),
                "problems": placing.problems,
                "length": [length.steps_per_epoch, length.epochs, length.total_steps, length.chosen_by],
                "steps": steps,
                "first": [plan.epochs.first_step(epoch) for epoch in (1, 2, 5)] if steps else [],
                "batches": [len(batch) for batch in batches][:40],
                "shown": shown[:6],
                "all": digest([[_name(placed), repeat] for batch in batches for placed, repeat in batch.items]),
                "views": plan.epochs.views,
                "never": [len(plan.epochs.never_used()), len(plan.epochs.unneeded())],
                "weights": sorted({each.loss_weight(job.dataset) for each in placing.placed}),
            },
        )


@producer
def files() -> Facts:
    """Which files are saved after which steps, under which names, and what is gone after each of them."""
    for number in range(80):
        job, _, placing = random_run(f"files {number}")
        plan = Plan(placing.placed, job, seed=number)
        plan.total = total = length_of(job.schedule, plan.epochs).total_steps
        if not 0 < total < 400:
            continue
        saves = planned_saves(job.saving, plan, total)
        names = Checkpoints(job.saving, None, plan, SimpleNamespace(extension=".safetensors"), None, None)  # type: ignore[arg-type]
        present: list[Intermediate] = []
        states: list[Path] = []
        gone: dict[int, Any] = {}
        for step in sorted(saves):
            for kind in saves[step]:
                epoch = plan.epoch_of(step) if kind == "epoch" else None
                name = names.epoch_name(epoch) if epoch is not None else names.step_name(step)
                present.append(Intermediate(Path(name), step, epoch))
            states.append(Path(f"step{step:08d}"))
            lost = expired_checkpoints(job.saving, present, step)
            old = expired_states(job.saving, plan, step, states)
            present = [each for each in present if each not in lost]
            states = [each for each in states if each not in old]
            gone[step] = [[each.path.stem for each in lost], [each.name for each in old]]
        yield (
            str(number),
            {
                "total": total,
                "saved": saves if len(saves) < 12 else digest(saves),
                "gone": gone if len(gone) < 8 else digest(gone),
                "left": [*(each.path.name for each in present[-4:]), *(each.name for each in states[-3:])],
            },
        )


def _simulated(draw: Random) -> dict[str, Any]:
    return {
        "prompts": draw.choice(((), ("a fox",), ("a fox", "a cat"))),
        "holds_out_images": draw.random() < 0.5,
        "ranks_checkpoints": draw.random() < 0.5,
        "saving": {name: draw.choice(values) for name, values in SAVING.items() if "last" not in name},
        "samples": {
            "sample_at_first": draw.random() < 0.5,
            "sample_every_n_epochs": draw.choice((None, 0, 1, 2)),
            "sample_every_n_steps": draw.choice((None, 0, 2, 5)),
        },
        "validation": {
            "validate_every_n_steps": draw.choice((None, 0, 3, 4)),
            "validate_every_n_epochs": draw.choice((None, 0, 1, 2)),
        },
    }


@producer
def moments() -> Facts:
    """What the real loop does after which step of runs that compute nothing: whole, and stopped and resumed."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(loop, "optimizer_update", lambda run: None))
        stack.enter_context(patch.object(timetable.Timetable, "_write_best", lambda timetable: None))
        for number in range(60):
            draw = Random(f"moments {number}")
            with folder() as place:
                run = SimulatedRun(place, draw.choice((5, 6, 8, 9, 12)), **_simulated(draw))
                run.unmeasured_saves = frozenset(draw.sample(range(0, 10), draw.choice((0, 0, 3))))
                found = [run.live()]
                stop = draw.randint(1, 5)
                found += [run.live(stop_at=stop), run.live(step=stop)]
                yield str(number), [" ".join(f"{step} {what};" for step, what in each) for each in found]


@producer
def measured() -> Facts:
    """What validation measures, within which budget, and which checkpoint is then best."""
    for number in range(40):
        draw = Random(f"measured {number}")
        job, _, placing = random_run(f"epochs {number}")
        saves = sorted(draw.sample(range(1, 200), draw.choice((1, 2, 5, 12))))
        views = draw.choice((10, 100, 500, 3000, 20000))
        pairs = validation.pairs_within(views, len(saves))
        budget = validation.Budget(views, saves, pairs)
        report = SimpleNamespace(placed=placing.placed, validation=placing.validation)
        made = validation.Validation(job, report, budget)  # type: ignore[arg-type]
        batches = [
            [*(f"{_name(placed)}@{at}" for (placed, _), at in zip(each.batch.items, each.timestep_indices))]
            for each in made.batches
        ]
        yield (
            str(number),
            {
                "pairs": pairs,
                "left out": sorted(budget.unmeasured_saves(pairs))[:12],
                "flags": [
                    made.holds_out_images,
                    made.ranks_checkpoints,
                    made.measured_on,
                    made.is_quick,
                    bool(made.limit_message),
                    made.pairs_hash,
                ],
                "batches": [len(batches), digest(batches), batches[:2]],
                "training": [_name(each) for each in validation.pick_evenly(placing.placed, 5)],
            },
        )
    for low, high in ((0, 1000), (0, 999), (100, 900), (500, 501), (0, 7)):
        settings = NoiseSettings(min_timestep=low, max_timestep=high)
        yield f"timesteps {low} {high}", validation.timesteps_of(settings)
    yield "thinned", [validation.thinned(range(count), most) for count, most in ((10, 3), (9, 3), (2, 5), (7, 7))]
    for number in range(30):
        yield f"best {number}", _best(Random(f"best {number}"))


def _best(draw: Random) -> Any:
    steps = draw.sample(range(1, 30), draw.randint(1, 6))
    saved = [(step, f"checkpoints/{step}") for step in steps if draw.random() < 0.9]
    noise = draw.choice((0.0, 0.001, 0.05))
    pairs = draw.choice((2, 4, 16))
    each = [draw.uniform(0.05, 0.2) for _ in range(pairs)]
    lines = []
    for step in steps:
        drift = draw.uniform(-0.02, 0.02)
        losses = [loss + drift + draw.uniform(-noise, noise) for loss in each]
        mean = sum(losses) / len(losses) if draw.random() < 0.95 else float("nan")
        which = draw.choice(("a", "a", "a", "b"))
        lines.append(
            {"step": step, "loss": mean, "images": 4, "each_of": which, "each": losses if draw.random() < 0.9 else []}
        )
    return best.best_checkpoint(saved, lines)


@producer
def numbers() -> Facts:
    """Recommended epochs, images held out, spans and step rules."""
    yield (
        "advised",
        [
            [views, advised_epochs(views), advised_epochs(views, 4)]
            for views in (0, 1, 15, 16, 40, 100, 299, 300, 301, 5000)
        ],
    )
    yield (
        "automatic",
        [[count, automatic_count(count)] for count in (0, 1, 39, 40, 41, 60, 83, 84, 100, 500, 533, 549, 5000)],
    )
    yield "t", [best.student_t(probability, freedom) for probability in (0.9, 0.975, 0.999) for freedom in (3, 5, 30)]
    for value in (
        0,
        1,
        100,
        100.0,
        0.1,
        0.999,
        1.5,
        -1,
        "10%",
        " 7.5 %",
        "100%",
        "101%",
        "5",
        "0.2",
        ".5",
        "1e-2",
        "x",
        True,
        1e8,
    ):
        found = refused(span, value)
        yield f"span {value!r}", [found, steps_of(found, 250)] if not isinstance(found, dict) else found
    for rules in (
        "1:10,0.1:20,0.005",
        "1",
        "1:5,1:5,2",
        "0.5:10,x",
        "a:1,1",
        "1:20,0.1:10,1",
        "inf:1,1",
        "1:2.5,1",
        "",
    ):
        yield f"rules {rules}", refused(read_step_rules, rules)
