"""What is kept of generations: the gallery's filters, pairs, stars and copies; folders of grids; class images; previews."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from core.generation import class_plan
from core.generation.grids import export
from core.generation.grids.axes import LONGEST, axes_of, read_values, texts_of
from core.generation.grids.folder import GridFolder, list_grids, name_of, position_of
from core.generation.grids.making import Unsaved, begin, reason
from core.generation.grids.plan import grid_of, with_seeds
from core.generation.grids.reuse import reuse
from core.generation.images import dataset, gallery
from core.generation.images.output import encoded_image, save_image
from core.generation.model.index import preview_of
from core.generation.model.sources import Hashes
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import ClassImagesJob, GenerateJob, GridJob
from tests.facts.library import LORA, put
from tests.facts.samples import beside, noise, smooth, write
from tests.facts.store import Facts, folder, producer, refused

DAY = (2024, 3, 5)


def at(hour: int, minute: int = 0, second: int = 0, day: int = DAY[2]) -> float:
    """Local time of a day of March 2024, so that days are the same everywhere."""
    return time.mktime((DAY[0], DAY[1], day, hour, minute, second, 0, 0, -1))


def made(root: Path, name: str, when: float, side: int = 8, **groups: Any) -> Path:
    job = build(
        GenerateJob, {"generate": {"width": 64, "height": 64, "seed": 1} | groups.pop("generate", {}), **groups}
    )
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".png": "png", ".jpg": "jpeg", ".webp": "webp"}[path.suffix]
    path.write_bytes(encoded_image(smooth(side, 8), job, Hashes(), kind))
    os.utime(path, (when, when))
    return path


TRAINED = {"base_model": "outputs/runs/x/checkpoints/mine.safetensors"}
FOX: dict[str, Any] = {"prompt": "a red fox"}
SHOTS: dict[str, tuple[float, dict[str, Any]]] = {
    "old/plain.png": (at(0), {"generate": FOX}),
    "old/before.png": (at(23, 59, 59, 4), {"generate": FOX | {"seed": 2}}),
    "lora.png": (at(12), {"generate": FOX | {"loras": [{"file": "d/ink.safetensors", "strength": 0.5}]}}),
    "two.png": (at(13), {"generate": FOX | {"loras": [{"file": "ink", "text_encoder_strength": 0.2}, {"file": "b"}]}}),
    "emb.jpg": (at(14), {"generate": FOX | {"embeddings": ["w=a.pt", "c.pt"]}}),
    "trained.png": (at(15), {"generate": FOX, "model": TRAINED}),
    "other.webp": (at(23, 59, 59), {"generate": FOX, "model": {"base_model": "models/other.safetensors"}}),
    "later.png": (at(0, day=6), {"generate": FOX}),
    "new/trained.png": (at(1, day=6), {"generate": FOX | {"width": 128}, "model": TRAINED}),
    "cat.png": (at(2, day=6), {"generate": {"prompt": "a Cat", "sampler": "ddim"}}),
}
FILTERS = [{"words": each} for each in ("FOX", "red fox", "cat", "old fox", "old cat", "")]
FILTERS += [{"day": each} for each in ("2024-03-04", "2024-03-05", "2024-03-06", "2024-03-07", "2024-3-5", "never")]
FILTERS += [{"stars": each} for each in (1, 2, 3)]
FILTERS += [
    {"model": "mine"},
    {"model": "other", "words": "fox"},
    {"lora": "ink"},
    {"lora": "in"},
    {"model": "mine", "lora": "b"},
]


@producer
def pictures() -> Facts:
    """Facts, filters, pairs, stars, trash and copies of ten images and of what is no image."""
    with folder() as root:
        space = Workspace(root / "outputs", root / "models")
        for name, (when, groups) in SHOTS.items():
            made(space.images, name, when, **groups)
        beside(space.images / "empty.png", "")
        beside(space.images / "broken.png", "no image")
        beside(space.images / "notes.txt", "x")
        beside(space.images / ".hidden" / "x.png", "x")
        write(space.images / "bare.png", noise(6, 5))
        for name in ("broken.png", "bare.png"):
            os.utime(space.images / name, (at(3), at(3)))
        shown = gallery.Gallery(space)
        yield "before", [shown.version, shown.newest(), shown.unread(), shown.matching()]
        shown.refresh()
        told: list[Any] = []
        shown.read(3, progress=lambda done, total: told.append([done, total]))
        yield "three", [len(shown.unread()), told, shown.version, [each.name for each in shown.newest()]]
        shown.read(progress=lambda done, total: told.append([done, total]))
        shown.refresh()
        yield "all", [len(shown.unread()), told, shown.version]
        shown.set_stars(["cat.png", "lora.png"], 2)
        shown.set_stars(["two.png"], 9)
        shown.set_stars(["emb.jpg"], -1)
        shown.set_stars(["lora.png"], 0)
        shown.set_stars(["trained.png"], 1)
        yield "stars", [[each.name, shown.stars(each.name)] for each in shown.newest()] + [shown.version]
        for each in shown.newest():
            facts = shown.facts(each.name)
            own = {key: getattr(facts, key) for key in type(facts).__dataclass_fields__ if key not in ("pair", "kin")}
            yield each.name, [own, shown.twin(each.name), shown.before(each.name)]
        kin = [shown.facts(name) for name in SHOTS]
        yield (
            "keys",
            [
                [
                    len(each.pair),
                    kin.index(next(one for one in kin if one.pair == each.pair)),
                    kin.index(next(one for one in kin if one.kin == each.kin)),
                ]
                for each in kin
            ],
        )
        for criteria in FILTERS:
            yield (
                str(criteria),
                refused(lambda criteria=criteria: [each.name for each in shown.matching(gallery.Filter(**criteria))]),
            )
        yield "counts", [shown.models(), shown.days(), shown.loras()]
        yield "gone", [refused(shown.shot, "nope"), refused(shown.set_stars, ["nope"], 1)]
        token = shown.put_away(["cat.png", "old/plain.png"])
        yield (
            "trash",
            [
                [each.name for each in shown.newest()],
                refused(shown.put_back, str(root / "x" / "y")),
                shown.put_back(token),
                len(shown.newest()),
                shown.stars("cat.png"),
            ],
        )
        again = gallery.Gallery(space)
        again.refresh()
        yield "again", [[each.name, again.stars(each.name)] for each in again.matching(gallery.Filter(stars=1))]
        beside(
            space.private / "stars.json", json.dumps({"stars": {"cat.png": 7, "lora.png": 0, "two.png": -1, "x": "3"}})
        )
        yield "read stars", [gallery.Gallery(space)._read_stars(), len(list(space.private.glob("stars*")))]
        beside(space.private / "stars.json", '{"stars": 3}')
        yield "damaged stars", [gallery.Gallery(space)._read_stars(), len(list(space.private.glob("stars*")))]
        yield from copies(space)


def copies(space: Workspace) -> Facts:
    paths = [space.images / name for name in ("trained.png", "new/trained.png", "cat.png", "emb.jpg")]
    prompts = ["a (red:1.2) fox <lora:x:1> --s 5", "", "a AND b BREAK c", " , "]
    for name, chosen in (("mine", 4), ("mine", 1), ("con", 1), ("none", 0)):
        steps: list[Any] = []

        def copied(name: str = name, chosen: int = chosen, steps: list[Any] = steps) -> Any:
            given = list(zip(paths[:chosen], prompts))
            found = dataset.copy_as_dataset(given, name, space.datasets, progress=lambda *each: steps.append(each[1:]))
            texts = {
                each.name: each.read_text() if each.suffix == ".txt" else each.stat().st_size > 0
                for each in sorted(found.iterdir())
            }
            return [found.name, texts, oct(found.stat().st_mode & 0o777)]

        yield f"copy {name} {chosen}", [refused(copied), steps]
    yield "left", sorted(each.name for each in space.datasets.iterdir())


@producer
def listings() -> Facts:
    """Which of ten folders are listed again by their time of change."""
    with folder() as root:
        space = Workspace(root / "outputs", root / "models")
        made(space.images, "a/x.png", at(1))
        old = time.time_ns() - 10 * gallery.SETTLED_NS
        shown = gallery.Gallery(space)
        for back in (1000, 0):
            os.utime(space.images / "a", ns=(old, old + back * gallery.SETTLED_NS))
            shown.refresh()
            before = [each.bytes for each in shown.newest()]
            path = space.images / "a" / "x.png"
            path.write_bytes(path.read_bytes() + b"\0")
            seen = []
            for full in (False, True):
                shown.refresh(full)
                seen.append(shown.newest()[0].bytes - before[0])
            yield f"changed {back}", [seen, shown.version]


@producer
def saving() -> Facts:
    """Names that are taken, folders by pattern, formats and their options."""
    with folder() as root:
        space = Workspace(root / "outputs", root / "models")
        outputs = [
            {"file_pattern": "x"},
            {"file_pattern": "x"},
            {"image_format": "jpeg", "image_quality": 40, "file_pattern": "x"},
            {"image_format": "jpeg", "image_quality": 95, "file_pattern": "x"},
            {"image_format": "webp", "file_pattern": "y"},
            {"image_format": "webp", "webp_lossless": True, "file_pattern": "y"},
            {"folder_pattern": "a/[seed]\\b", "file_pattern": "[number]"},
            {"sequential_file_name": True},
        ]
        image = smooth(40, 30)
        for number, output in enumerate(outputs):
            job = build(
                GenerateJob,
                {
                    "generate": {"seed": 3, "prompt": "p"},
                    "output": output | {"folder_pattern": output.get("folder_pattern", "f")},
                },
            )
            for name in (None, "n.webp", "n.tar"):
                path = save_image(image, job, Hashes(), space, name, number=number, stage="1")
                with Image.open(path) as opened:
                    tables = getattr(opened, "quantization", {})
                    like = [
                        opened.format,
                        opened.convert("RGB") == image,
                        [sum(each) for each in tables.values()],
                        opened.info.get("exif") is None,
                    ]
                    yield f"{number} {name}", [path, like, [each[1:3] for each in getattr(opened, "layer", ())]]


def grid_job(**more: Any) -> GridJob:
    axes = {
        "x_axis": "steps",
        "x_values": "1,2",
        "y_axis": "CFG scale",
        "y_values": "3, 5",
        "z_axis": "seed",
        "z_values": "1-2",
    }
    loras = [{"file": "ink", "strength": 0.5}]
    generate = {"prompt": "a <fox>", "width": 64, "height": 64, "seed": 7, "loras": loras}
    return with_seeds(build(GridJob, {"generate": generate, "grid": axes | {"name": "g & h"} | more}))


def content_of(each: GridFolder) -> Any:
    found = each.content()
    return [
        found.title,
        found.size,
        found.same,
        found.failed,
        found.state,
        found.steps,
        found.seconds,
        found.prompt,
        found.run,
        [[axis.letter, axis.setting, axis.title, axis.texts, axis.values, axis.notes] for axis in found.axes],
    ]


@producer
def grids() -> Facts:
    """Folders of grids: content, damage, cells, images taken over from others, the exported image and page."""
    names = ("x1_y2_z3", "x0_y1_z1", "x10_y1_z1", "x99999_y1_z1", "x1_y2", "x1_y2_z3.png", "X1_y2_z3")
    yield "names", [[position_of(each) for each in names], name_of((0, 1, 2)), name_of((9, 0, 0))]
    with folder() as root:
        space = Workspace(root / "outputs", root / "models", root / "presets")
        notes = {"x": ["low", ""], "z": ["", "n\nm"]}
        put(space.models / "loras" / "ink.safetensors", LORA, 100)
        first = begin(grid_job(), space, "run", notes)
        yield "new", [content_of(first), first.name[16:], first.job() == grid_job(), first.generated()]
        first = GridFolder(first.path.rename(first.path.with_name("20210101-000000_a")))
        second = begin(grid_job(), space, "run")
        os.rename(second.path, second.path.with_name("20200101-000000_b"))
        beside(space.outputs / "grids" / "empty" / "x", "x")
        yield "listed", [each.name for each in list_grids(space)]
        for name in ("20200101-000000_b", "empty", "../grids/empty", "a/b", "", "..", "a\\b"):
            yield f"named {name}", refused(lambda name=name: GridFolder.named(name, space).path.name)
        first.cells.mkdir()
        for number, (x, y, z) in enumerate(product((0, 1), (0, 1), (0, 1))):
            if (x, y, z) != (1, 0, 1):
                smooth(40 + 4 * x, 30 + 6 * y, number).save(first.cell((x, y, z)))
        noise(8, 8).save(first.cells / "x1.png")
        first.change(failed={(1, 0, 1): "memory <b>"}, state="stopped", steps=5, seconds=1.25)
        yield "changed", [content_of(first), sorted(first.generated())]
        yield from exported(first)
        yield from taken_over(first, space)
        good = json.loads((first.path / "grid.json").read_text())
        for key, value in (
            ("title", 5),
            ("axes", [{}]),
            ("axes", 3),
            ("same", {"x1_y1_z1": "?", "?": "x1_y1_z1"}),
            ("same", []),
            ("steps", "x"),
            ("failed", {"?": "w"}),
            ("state", None),
            ("job", {}),
            ("run", 7),
            ("axes", [{"letter": "w"}]),
        ):
            beside(first.path / "grid.json", json.dumps(good | {key: value}))
            yield f"damaged {key} {value}", refused(lambda: content_of(first)[:9])
    for error in (
        ProblemsError.one("what", "where"),
        ProblemsError.one("what"),
        RuntimeError("x" * 400),
        ValueError("a"),
    ):
        yield f"reason {type(error).__name__} {str(error)[:9]}", len(reason(error))
    for failure in (OSError(28, "full"), RuntimeError("CUDA error: x"), OSError(13, "no"), Unsaved([Problem("w")])):
        yield f"ends {failure}", refused_any(reason, failure)


def refused_any(call: Any, error: Exception) -> Any:
    try:
        return call(error)
    except Exception as raised:
        return {"raised": type(raised).__name__}


def exported(grid: GridFolder) -> Facts:
    export.export(grid)
    with Image.open(grid.png) as sheet:
        pixels = numpy.asarray(sheet.convert("RGB")).astype(int)
        paper = (pixels == 255).all(2)
        yield "sheet", [sheet.size, int((pixels == 236).all(2).sum()) // 20]
        rows = numpy.flatnonzero(~paper.all(1))
        columns = numpy.flatnonzero(~paper.all(0))
        yield "edges", [int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])]
    page = grid.html.read_text()
    marks = (
        "<table>",
        "<tr>",
        "<th scope",
        "<h2>",
        "<td></td>",
        'class="none"',
        "<button",
        "&lt;fox&gt;",
        "&amp; h",
        "low",
        "n\nm",
        "memory &lt;b&gt;",
    )
    yield "page", [page.count(mark) for mark in marks]
    content = grid.content()
    yield "labels", [[export.label(content, letter, number) for number in (0, 1)] for letter in "xyz"]
    font = export.ImageFont.load_default(size=12)
    texts = (
        "",
        "a",
        "one two three four",
        "w" * 60,
        "a\nb c",
        " ".join(["word"] * 60),
        " ".join(["wordwo"] * 8),
        " ".join(["wordwo"] * 9),
    )
    yield "wrapped", [export._wrapped(text, font, 60) for text in texts]
    sides = ((1, 1, 64, 64), (10, 1, 1600, 8), (1, 10, 8, 1601), (20, 20, 700, 900), (16, 4, 1000, 4000))
    yield "fitting", [export._scale_to_limits(*each) for each in sides]
    yield "left", [export._left_width(content, wide) for wide in (100, 159, 160, 200, 640, 641, 900)]


def taken_over(first: GridFolder, space: Workspace) -> Facts:
    """Cells of another grid of the same run that are linked into new ones, while a file that they name is older."""
    for run, axes in (
        ("run", {"x_values": "2,3"}),
        ("other", {}),
        ("run", {"z_values": "2-3"}),
        ("", {}),
        ("run", {"y_values": "5"}),
    ):
        if "y_values" in axes:
            put(space.models / "loras" / "ink.safetensors", LORA, int(time.time()) + 100)
        made_now = begin(grid_job(**axes), space, run)
        linked = reuse(made_now, grid_of(made_now.job(), space), space)
        yield (
            f"taken over {run} {axes}",
            [linked, sorted(made_now.generated()), reuse(made_now, grid_of(made_now.job(), space), space)],
        )


@producer
def class_images() -> Facts:
    """Plans, manifests and missing images of regularization."""
    with folder() as root:
        space = Workspace(root / "outputs", root / "models")
        fox = root / "fox"
        for name, size in (("a.bmp", (96, 64)), ("b.bmp", (64, 96)), ("c.bmp", (40, 40)), ("d.bmp", (96, 64))):
            write(fox / name, smooth(*size), "fox")
        usual = {"resolution": 64, "bucket_reso_steps": 32, "min_bucket_reso": 64, "max_bucket_reso": 192}
        for name, (given, dataset) in PLANS.items():
            sources = [each | {"folder": each["folder"].replace("~", root.as_posix())} for each in dataset]
            chosen = {
                key: value.replace("~", root.as_posix()) if isinstance(value, str) else value
                for key, value in given.items()
            }
            job = build(ClassImagesJob, {"class_images": chosen, "dataset": usual | {"sources": sources}})

            def planned(job: ClassImagesJob = job) -> Any:
                plan = class_plan.plan_class_images(job, space)
                return [
                    plan.folder.name,
                    plan.class_word,
                    plan.prompt,
                    plan.caption,
                    plan.number,
                    plan.views,
                    len(class_plan.sizes_by_views(plan.views, plan.number)),
                    class_plan.sizes_by_views(plan.views, plan.number)[:4],
                ]

            yield name, refused(planned)
        views = {(64, 64): 3, (96, 64): 1}
        plan = class_plan.ClassPlan(root / "c", "dog", "a dog", "dog", 6, views)
        settings = {name: name for name in class_plan.TITLES}
        manifest, advice = class_plan.manifest_for(plan, settings)
        yield "manifest", [manifest.sizes, advice]
        manifest.write(beside(root / "c" / "other.png", "x").parent)
        for number in (1, 2, 4):
            noise(8, 8).save(root / "c" / class_plan.image_name(number))
        cut = root / "c" / class_plan.image_name(4)
        cut.write_bytes(cut.read_bytes()[:-1])
        yield "missing", [class_plan.missing(root / "c", manifest, each) for each in (0, 3, 6, 9)]
        for number, changes in ((6, {}), (9, {}), (2, {}), (6, {"seed": 5}), (6, {"model": "x", "steps": 3})):
            more = class_plan.ClassPlan(root / "c", "dog", "a dog", "dog", number, {(64, 64): 1})
            yield (
                f"again {number} {changes}",
                refused(
                    lambda more=more, changes=changes: [
                        class_plan.manifest_for(more, settings | changes)[0].sizes,
                        class_plan.manifest_for(more, settings | changes)[1],
                    ]
                ),
            )
        good = json.loads((root / "c" / class_plan.MANIFEST).read_text())
        for key, value in (
            ("format", 2),
            ("sizes", [[8, 8]]),
            ("sizes", [[7, 8]]),
            ("sizes", []),
            ("at_once", {"a": 0}),
            ("at_once", {"a": 1}),
            ("settings", 3),
            ("sizes", [[8]]),
            ("class", None),
        ):
            beside(root / "c" / class_plan.MANIFEST, json.dumps(good | {key: value}))
            found = refused(partial(class_plan.read_manifest, root / "c"))
            yield (
                f"read {key} {value}",
                found if "refused" in found else [found["sizes"], found["at_once"], found["class_word"]],
            )
        os.rename(root / "c" / class_plan.MANIFEST, root / "c" / class_plan.FORMER_MANIFEST)
        yield "former", class_plan.read_manifest(root / "c") is not None
        (root / "c" / class_plan.FORMER_MANIFEST).unlink()
        yield "unlisted", refused(partial(class_plan.manifest_for, plan, settings))
        (root / "c 2").mkdir()
        yield "free", [class_plan._free_folder(root / each) for each in ("c", "d")]


PLANS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "usual": ({"class_word": " dog "}, [{"folder": "~/fox"}]),
    "number": (
        {"class_word": "dog", "number": 3, "caption": "{prompt}, {class}"},
        [{"folder": "~/fox", "num_repeats": 100}],
    ),
    "most": ({"class_word": "dog"}, [{"folder": "~/fox", "num_repeats": 51}]),
    "of the source": ({}, [{"folder": "~/fox", "class_word": "cat"}]),
    "no class": ({}, [{"folder": "~/fox"}]),
    "no class in prompt": ({"prompt": "x"}, [{"folder": "~/fox"}]),
    "no class at all": ({"prompt": "x", "caption": "y"}, [{"folder": "~/fox"}]),
    "no prompt": ({"class_word": "dog", "prompt": " "}, [{"folder": "~/fox"}]),
    "tags": ({"class_word": "dog", "negative_prompt": "<lora:x:1>"}, [{"folder": "~/fox"}]),
    "inside": ({"class_word": "dog", "folder": "~/fox/reg"}, [{"folder": "~/fox"}]),
    "file": ({"class_word": "dog", "folder": "~/fox/a.bmp"}, [{"folder": "~/fox"}]),
    "too long": ({"class_word": "dog", "folder": "~/" + "n" * 300}, [{"folder": "~/fox"}]),
    "own": ({"class_word": "dog", "folder": " ~/mine "}, [{"folder": "~/fox"}]),
    "gone": ({"class_word": "dog"}, [{"folder": "~/gone"}]),
}


@producer
def previews() -> Facts:
    """The image that stands for a model file."""
    with folder() as root:
        space = Workspace(root / "outputs", root / "models")
        for name in ("a.safetensors", "b.ckpt", "c.v1", "d.safetensors"):
            beside(space.models / name, "x")
        for name in ("a.preview.png", "a.jpg", "b.webp", "c.v1.png", "c.png", "d.gif"):
            beside(space.models / name, "x")
        run = space.runs / "r"
        for place, names in (
            (run, ("s_000010_0.png", "s_000020_0.png", "s_000020_1.png", "s_000020_2.txt")),
            (root / "elsewhere", ("a_0.png",)),
            (space.runs / "none", ()),
        ):
            beside(place / "checkpoints" / "m.safetensors", "x")
            for name in names:
                beside(place / "samples" / name, "x")
            yield f"run {place.name}", preview_of(place / "checkpoints" / "m.safetensors", space)
        yield "elsewhere in a run", preview_of(beside(run / "other" / "m.safetensors", "x"), space)
        beside(run / "checkpoints" / "m.png", "x")
        yield "next to it", preview_of(run / "checkpoints" / "m.safetensors", space)
        yield (
            "next",
            [preview_of(space.models / name, space) for name in ("a.safetensors", "b.ckpt", "c.v1", "d.safetensors")],
        )


AXES: tuple[dict[str, str], ...] = (
    {},
    {"x_values": "1"},
    {"x_axis": "steps"},
    {"x_axis": "stepz", "x_values": "1"},
    {"x_axis": "steps", "x_values": "1", "y_axis": "Sampling steps", "y_values": "2"},
    {"x_axis": "size", "x_values": "64x64", "z_axis": "width", "z_values": "64"},
    {"x_axis": "size", "x_values": "64x64", "z_axis": "steps", "z_values": "1"},
    {"x_axis": "seed", "x_values": "1-40", "y_axis": "steps", "y_values": "1-25"},
    {"x_axis": "seed", "x_values": "1-77", "y_axis": "steps", "y_values": "1-13"},
    {"x_axis": "seed", "x_values": "1-77", "y_axis": "steps", "y_values": "1-13", "z_axis": "nope", "z_values": "1"},
    {"x_axis": "prompt_sr", "x_values": "fox, dog"},
    {"x_axis": "prompt_sr", "x_values": "ugly, dog"},
    {"x_axis": "prompt_sr", "x_values": "cat, dog"},
    {"x_axis": "prompt_sr", "x_values": "cat, dog", "y_axis": "prompt", "y_values": "a cat, b"},
    {"x_axis": "prompt_sr", "x_values": "cat, dog", "y_axis": "negative_prompt", "y_values": "a cat, b"},
    {"x_axis": " steps ", "x_values": "1", "y_axis": " ", "y_values": " "},
)


@producer
def axes() -> Facts:
    """The axes of grids and everything that is wrong with them."""
    for given in AXES:
        job = build(GridJob, {"generate": {"prompt": "a fox", "negative_prompt": "ugly"}, "grid": given})

        def found(job: GridJob = job) -> Any:
            return [
                [each.letter, each.setting, each.field, [value.text for value in each.values[:3]]]
                for each in axes_of(job)
            ]

        yield str(given), refused(found)
    for length in (LONGEST, LONGEST + 1):
        yield f"text {length}", refused(lambda length=length: len(texts_of(("a," * length)[:length])))
    for values in (
        "1-1001",
        "1-2 [1000]",
        "1-2 [1001]",
        "5-1 (-2)",
        "1-1",
        "1-3 [1]",
        "1-3 [0]",
        "0.5-1 (+0.25)",
        "3-1",
        "1--1 (-1)",
    ):
        yield (
            f"range {values}",
            refused(
                lambda values=values: [value.text for value in read_values("generate.guidance_scale", values)][-3:]
            ),
        )
