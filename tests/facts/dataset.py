"""Reports on folders of every kind: scans, problems, buckets, batches, findings, zips, metadata files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from core.cli.dataset_report import batch_lines, report_lines
from core.dataset.caches.contents import dataset_fingerprint
from core.dataset.caches.metadata_writing import write_metadata
from core.dataset.first import first_rows
from core.dataset.preflight import preflight
from core.dataset.report import Report
from core.dataset.sources import registered, scan, walk
from core.dataset.sources.metadata import read_metadata
from core.families.token_count import count_tokens
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from tests.facts.samples import all_figures, beside, figures, noise, smooth, write
from tests.facts.store import Facts, digest, folder, producer, refused

LONG = ", ".join(f"tag {number} of many words" for number in range(30))


def tree(root: Path) -> Path:
    """Images with sidecars of all kinds, odd names, repeats, damaged and unread files."""
    fox = root / "fox"
    write(fox / "a.bmp", smooth(96, 64), "a fox, red, running, {day|night}")
    write(fox / "b.bmp", smooth(64, 96, 1), "A sentence about a fox.", ".caption")
    beside(write(fox / "c.bmp", smooth(128, 128, 2), "tags, of, c").with_suffix(".caption"), "A sentence of c.")
    write(fox / "D.BMP", smooth(80, 80, 3))
    beside(fox / "d.txt", "lower case")
    beside(write(fox / "e.bmp", smooth(70, 50, 4)).with_name("e.bmp.txt"), "whole name")
    write(fox / "same.bmp", smooth(64, 64, 5), "shared")
    write(fox / "same.png", smooth(64, 64, 6))
    write(fox / "blank.bmp", smooth(64, 64, 7), " \n")
    write(fox / "lines.bmp", smooth(64, 64, 8), "one fox\n\ntwo {foxes|wolves}\nthree")
    write(fox / "utf16.bmp", smooth(64, 64, 9), "un café".encode("utf-16"))
    write(fox / "latin.bmp", smooth(64, 64, 10), "un café".encode("latin-1"))
    write(fox / "long.bmp", smooth(64, 64, 11), LONG)
    write(fox / "foo_0040_0030_0020_0020.bmp", smooth(90, 60, 12))
    beside(fox / "foo.txt", "of the whole")
    write(fox / "tiny.bmp", smooth(16, 16, 13), "tiny")
    write(fox / "wide.bmp", smooth(300, 20, 14), "wide")
    write(fox / "line.bmp", smooth(3, 200, 15), "line")
    exif = Image.Exif()
    exif[0x0112] = 6
    write(fox / "turned.png", smooth(90, 60, 16), "turned", exif=exif)
    write(fox / "really.png", smooth(64, 64, 17), "really", format="BMP")
    write(fox / "clear.png", noise(64, 64, 18, 4), "clear")
    write(fox / "gone.png", Image.new("RGBA", (64, 64)), "gone")
    noise(64, 64, 19).save(fox / "moving.gif", save_all=True, append_images=[noise(64, 64, 20)])
    beside(fox / "zero.png", b"")
    beside(fox / "text.png", b"<!doctype html>")
    cut = write(fox / "cut.bmp", smooth(64, 64, 21), "cut")
    cut.write_bytes(cut.read_bytes()[:3000])
    write(fox / "photo.bmp_large", smooth(64, 64, 22), format="BMP")
    for name in (
        "notes.md",
        "x.heic",
        "orphan.txt",
        ".hidden.png",
        "Thumbs.db",
        "x.npz",
        "fox.psd",
        "data.zip",
        "odd.xyz",
    ):
        beside(fox / name, "x")
    write(fox / "sub" / "1.bmp", smooth(64, 80, 23), "sub")
    write(fox / "sub" / "10_deep" / "z.bmp", smooth(80, 64, 24), "deep")
    write(fox / "_latent_cache" / "n.bmp", smooth(8, 8))
    for number in range(3):
        write(
            fox / "3_red fox" / f"{number}.bmp",
            smooth(64 + 8 * number, 64, 25 + number),
            f"fox {number}" if number else None,
        )
    write(fox / "0_skip" / "s.bmp", smooth(64, 64))
    write(fox / "500_trip" / "t.bmp", smooth(64, 64, 30), "trip")
    write(fox / "a-masklabel.png", noise(96, 64, 31, 1))
    write(fox / "b-condlabel.png", noise(64, 96, 32))
    for name, size, seed in (
        ("a.png", (96, 64), 1),
        ("c.png", (64, 64), 2),
        ("unmatched.png", (8, 8), 3),
        ("e.png", (70, 50), 4),
        ("e.bmp", (70, 50), 5),
    ):
        write(root / "masks" / name, noise(*size, seed, 1))
    write(root / "masks" / "sub" / "1.png", Image.new("L", (64, 80)))
    beside(root / "masks" / "D.png", b"no image")
    for name in "abce":
        write(root / "control" / f"{name}_edge.bmp", noise(48, 32, ord(name)), "of control")
    for number in range(5):
        write(root / "reg" / f"{number}.bmp", smooth(64, 64, 40 + number))
    write(root / "reg" / "copy.bmp", smooth(96, 64))
    write(root / "held" / "h.bmp", smooth(64, 64, 50), "held out")
    write(root / "held" / "again.bmp", smooth(64, 96, 1), "held out, again")
    (root / "empty").mkdir()
    beside(root / "others" / "a.md", "x")
    return fox


JOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decoded": {"decode": True},
    "skip broken": {"decode": True, "dataset": {"skip_broken": True}},
    "batches": {
        "dataset": {"skip_broken": True, "train_batch_size": 4, "short_batches": "merge"},
        "schedule": {"max_train_steps": 50},
    },
    "drop": {"dataset": {"skip_broken": True, "train_batch_size": 3, "short_batches": "drop", "resolution": (160, 96)}},
    "refill": {
        "dataset": {"skip_broken": True, "train_batch_size": 5, "short_batches": "refill"},
        "schedule": {"gradient_accumulation_steps": 3},
    },
    "no buckets": {"dataset": {"skip_broken": True, "enable_bucket": False, "random_crop": True, "flip_aug": True}},
    "sizes": {"dataset": {"skip_broken": True, "more_resolutions": [64, (96, 64)], "resolution_choice": "drawn"}},
    "no upscaling": {"dataset": {"skip_broken": True, "bucket_no_upscale": True, "skip_image_resolution": 64.0}},
    "joined": {
        "dataset": {"skip_broken": True},
        "captions": {"sidecars": "joined", "shuffle_caption": True, "trigger_word": "sks"},
    },
    "drawn": {
        "dataset": {"skip_broken": True, "color_aug": True},
        "captions": {"sidecars": "drawn", "caption_lines": "random"},
    },
    "captions": {
        "dataset": {"skip_broken": True},
        "captions": {"caption_extension": ".caption", "caption_prefix": "photo,"},
    },
    "masks": {
        "decode": True,
        "dataset": {"skip_broken": True, "masked_loss": True, "conditioning_data_dir": "~/masks"},
    },
    "masks strict": {"dataset": {"masked_loss": True, "conditioning_data_dir": "~/masks"}},
    "labels": {"dataset": {"skip_broken": True, "masked_loss": True}},
    "alpha": {"decode": True, "dataset": {"skip_broken": True, "alpha_mask": True, "alpha_color": "#102030"}},
    "no masks": {"dataset": {"skip_broken": True, "masked_loss": True, "conditioning_data_dir": "~/nowhere"}},
    "control": {
        "decode": True,
        "method": "controlnet",
        "dataset": {"skip_broken": True, "conditioning_data_dir": "~/control", "conditioning_suffix": "_edge"},
    },
    "condlabel": {"method": "controlnet", "dataset": {"skip_broken": True, "conditioning_suffix": "-condlabel"}},
    "kohya": {"dataset": {"skip_broken": True, "train_batch_size": 2}, "model": {"compatibility": "sd-scripts-0.10"}},
    "regularization": {
        "dataset": {
            "skip_broken": True,
            "reg_data_dir": "~/reg",
            "prior_loss_weight": 0.5,
            "sources": [{"folder": "~/held", "role": "validation"}],
        }
    },
    "several": {
        "dataset": {
            "skip_broken": True,
            "sources": [
                {"folder": "~/fox/sub", "num_repeats": 2, "recursive": False, "class_word": "fox", "identifier": "sks"},
                {"folder": "~/fox"},
                {"folder": "~/reg", "samples_per_epoch": 3, "resolution": 64, "class_tokens": "a dog"},
                {"folder": "~/gone"},
                {"folder": "~/empty"},
                {"folder": "~/others"},
                {"folder": "~/fox/a.txt"},
                {"folder": "~/fox/data.zip"},
                {"folder": ""},
            ],
        }
    },
    "split": {"dataset": {"skip_broken": True}, "validation": {"validation_split": 0.2, "validation_seed": 3}},
    "nothing": {"dataset": {"folder": "~/empty"}},
    "none": {"dataset": {"folder": None}},
    "too high": {"dataset": {"max_bucket_reso": 64, "skip_broken": True}},
}


def below(values: Any, root: Path) -> Any:
    """The settings with paths below the folder in place of ~."""
    if isinstance(values, Mapping):
        return {key: below(each, root) for key, each in values.items()}
    if isinstance(values, list):
        return [below(each, root) for each in values]
    return values.replace("~", root.as_posix(), 1) if isinstance(values, str) and values.startswith("~") else values


def job_of(root: Path, dataset: Mapping[str, Any] | None = None, **groups: Any) -> TrainJob:
    usual = {"folder": "~/fox", "resolution": 128, "bucket_reso_steps": 32, "min_bucket_reso": 64}
    if isinstance(method := groups.pop("method", None), str):
        groups["method"] = {"kind": method}
    return TrainJob.model_validate(below({"dataset": usual | dict(dataset or {}), **groups}, root))


def in_short(report: Report) -> Iterator[tuple[str, Any]]:
    """A report's numbers and rows, and its problems."""
    summary = report.summary()
    del summary["problems"]
    yield "summary", {name: figures(value) if isinstance(value, str) else value for name, value in summary.items()}
    yield (
        "folders",
        [[each.id, each.repeats, each.class_tokens, each.named, each.images, each.concept] for each in report.folders],
    )
    yield "problems", [figures_of(each) for each in report.problems]
    rows = {}
    for row in report.rows:
        marks = (
            "".join(mark for mark in ("trains", "mask", "transparent", "readable") if getattr(row, mark))
            + row.actual_format
        )
        frame = row.frame and [round(each, 3) for each in row.frame]
        text = [row.caption[:30], row.caption_path and row.caption_path.name, row.source, row.tokens]
        rows["/".join(row.key)] = [
            row.size,
            row.bucket,
            frame,
            row.scale,
            row.repeats,
            text,
            figures(row.why),
            row.role,
            row.concept,
            row.more,
            marks,
        ]
    yield "rows", rows


def figures_of(each: Any) -> Any:
    """A problem with the names in its text."""
    return [each, figures(each.what)]


@producer
def reports() -> Facts:
    """The report on a folder with each set of settings; rows are in full where they differ from the first."""
    with folder() as root:
        fox = tree(root)
        first: dict[str, Any] = {}
        for name, given in JOBS.items():
            options = dict(given)
            decode = options.pop("decode", False)
            job = job_of(root, **options)
            space = Workspace(root / "outputs" / ("cold" if decode else name), root / "models")
            report = preflight(job, space, count_tokens=count_tokens, decode=decode)
            found = dict(in_short(report))
            rows = found.pop("rows")
            first = first or rows
            yield (
                name,
                found | {"rows": {key: row for key, row in rows.items() if rows is first or first.get(key) != row}},
            )
            if report.placed:
                lines = all_figures(report_lines(job, report))
                batches = all_figures(batch_lines(job, report, 2))
                yield (
                    f"{name}, lines",
                    [len(lines), lines[-12:], digest(lines), batches[:9], len(batches), digest(batches)],
                )
            if name in ("plain", "masks"):
                yield (
                    f"{name}, first",
                    [[each.key, each.size, each.source, each.readable] for each in first_rows(job, 12)],
                )
            if name == "skip broken":
                print_ = dataset_fingerprint(report.placed[:5], memo_path=space.private / "index.sqlite")
                yield (
                    "fingerprint",
                    [print_["count"], [{**each, "sha256": len(each["sha256"] or "")} for each in print_["images"]]],
                )
                yield (
                    "recognized",
                    [
                        figures(scan.describe_layout(root / each))
                        for each in ("fox", "reg", "empty", "others", "fox/sub", "gone")
                    ],
                )
                yield from metadata_of(report, root)
        found = walk.walk(fox)
        yield (
            "walk",
            [
                found.folders,
                sorted(found.others.items()),
                found.unread,
                found.ignored,
                found.orphans,
                [len(each.sidecars) for each in found.files],
            ],
        )


def metadata_of(report: Report, root: Path) -> Facts:
    for name, full_path in {"stems": False, "paths": True}.items():
        path = root / f"{name}.json"
        written = refused(
            partial(
                write_metadata,
                path,
                [each for each in report.placed if each.image.path.suffix != ".png"],
                full_path=full_path,
            )
        )
        content = json.loads(path.read_text()) if path.exists() else {}
        yield (
            f"metadata {name}",
            [
                written,
                {
                    key.replace(root.as_posix(), "~"): [value.get("train_resolution"), len(str(value))]
                    for key, value in content.items()
                },
            ],
        )


METADATA: dict[str, Any] = {
    "stems": {
        "a": {"caption": "A fox.", "tags": "red, fox"},
        "sub/b": {"tags": "x"},
        "c": {"caption": ["one", "two"]},
        "gone": {"caption": "g"},
    },
    "buckets": {
        each: {"caption": each, "train_resolution": [128, 64 * (1 + number)], "image_size": [96, 60]}
        for number, each in enumerate(("a.bmp", "c.bmp"))
    },
    "some buckets": {
        "a": {"caption": "a", "train_resolution": [128, 64]},
        "c": {"caption": "", "train_resolution": [100, 64]},
        "sub/b": {},
    },
    "wrong": {
        "a": {"caption": 3, "tags": {"x": 1}},
        "c": [],
        "sub/b": {"train_resolution": [1, -1], "conditioning_image": 5},
        "d": None,
    },
    "list": [
        {"image_path": "a.bmp", "caption": "x"},
        {"file_name": "sub/b.bmp", "text": "y"},
        {"path": "./c", "tags": ["p", "q"]},
    ],
    "no path": [{"caption": "x"}],
    "elsewhere": {
        "/other/machine/a.png": {"caption": "x"},
        "C:\\data\\sub\\b.bmp": {"caption": "y"},
        "B": {"tags": "by name"},
        "same": {"tags": "t"},
    },
    "text": "no json",
    "number": 3,
    "empty": {},
    "control": {"a": {"caption": "x", "conditioning_image": "../masks/a.bmp"}, "c": {"control_path": "masks/none.bmp"}},
}


@producer
def metadata() -> Facts:
    """Folders whose images a metadata file lists, in each form, and the list of sd-scripts' cache."""
    with folder() as root:
        fox = root / "fox"
        for number, name in enumerate(("a.bmp", "sub/b.bmp", "c.bmp", "unlisted.bmp", "same.bmp", "same.png")):
            write(fox / name, smooth(96, 64, number), "of the file" if number % 2 else None)
        write(root / "masks" / "a.bmp", smooth(96, 64))
        for name, content in METADATA.items():
            text = content if name == "text" else json.dumps(content)
            path = beside(root / f"{name}.json", text)
            read = read_metadata(path)
            yield f"{name}, read", [read.entries, read.problems, read.buckets]
            method = {"method": "controlnet"} if name == "control" else {}
            options = {"captions": {"sidecars": "joined"}} if name == "stems" else {}
            job = job_of(
                root,
                {"sources": [{"folder": "~/fox", "metadata_file": str(path)}], "folder": None},
                **method,
                **options,
            )
            found = dict(in_short(preflight(job, Workspace(root / "outputs", root / "models"))))
            yield name, [found["problems"], found["rows"]]
        lines = beside(
            root / "lines.jsonl",
            '{"file_name": "a.bmp", "text": "x"}\n\n{"image_path": "c.bmp"}\n{"file_name": "a.bmp"}',
        )
        yield "lines", read_metadata(lines)
        beside(root / "lines.jsonl", '{"file_name": "a.bmp"}\n{broken')
        yield "broken lines", read_metadata(lines).problems
        yield (
            "latin",
            read_metadata(
                beside(root / "latin.json", '{"a": {"caption": "caf\xe9 \xe9t\xe9"}}'.encode("latin-1"))
            ).problems,
        )
        for round_ in range(3):
            job = job_of(root, {"sources": [{"folder": "~/fox", "cache_info": True}], "folder": None})
            found = dict(in_short(preflight(job, Workspace(root / "outputs", root / "models"))))
            listed = json.loads((fox / "metadata_cache.json").read_text())
            yield (
                f"cache {round_}",
                [found["problems"], list(found["rows"]), {Path(key).name: value for key, value in listed.items()}],
            )
            if round_ == 0:
                beside(fox / "c.txt", "edited")
                beside(fox / "unlisted.txt", "edited, too")


class Listed:
    rows: list[Any] = []

    def __init__(self, settings):
        self.folder = settings["folder"]

    def images(self):
        return iter(self.rows)


@producer
def classes() -> Facts:
    """Datasets that a registered class lists."""
    with folder() as root:
        paths = [
            write(root / "s" / name, smooth(64, 64, number)).as_posix()
            for number, name in enumerate(("a.bmp", "b/a.bmp", "c.bmp"))
        ]
        forms = {
            "good": [
                {"path": paths[0], "caption": "x", "repeats": 3},
                {"path": paths[1], "words": "fox"},
                {"path": paths[0]},
            ],
            "regularization": [{"path": paths[0]}, {"path": paths[2], "is_reg": True}],
            "wrong": [
                3,
                {"path": ""},
                {"path": paths[0], "repeats": 0},
                {"path": paths[0], "caption": 1, "words": 2, "is_reg": "x", "more": 1},
            ],
            "gone": [{"path": "nowhere.png"}],
            "empty": [],
        }
        for name, rows in forms.items():
            Listed.rows = rows
            registered.SOURCES["facts.Listed"] = registered.DatasetSource("facts.Listed", "Facts", Listed)
            try:
                found = scan.scan_dataset(job_of(root, {"folder": "~", "dataset_class": "facts.Listed"}).dataset)
            finally:
                del registered.SOURCES["facts.Listed"]
            yield (
                name,
                [
                    [
                        [each.key, each.repeats, each.class_tokens, each.metadata_caption, each.concept]
                        for each in found.images
                    ],
                    found.problems,
                ],
            )
        for name in ("Bad", "no.such.module.Class", "os.x y"):
            yield f"class {name}", scan.scan_dataset(job_of(root, {"dataset_class": name}).dataset).problems
