"""Settings of other programs as jobs, and jobs as theirs: reports, problems, dataset files."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from functools import partial
from typing import Any

from core.imports.dataset_config import apply_dataset_config
from core.imports.dataset_export import dataset_text, toml_table, written_path
from core.imports.dataset_text import json_lines, toml_lines
from core.imports.importers import endings
from core.imports.projects.export import export_project
from core.imports.projects.importers import PROJECT_IMPORTERS, import_project
from core.imports.projects.kohya_ss import TABS
from core.imports.projects.onetrainer_config import resolve
from core.imports.projects.shells import read_script
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import differences
from tests.facts.samples import beside, figures, noise, write
from tests.facts.store import Facts, digest, folder, plain, producer, refused
from tests.imports.projects import cases, pasted

SUFFIX = {"bash": ".sh", "cmd": ".bat", "powershell": ".ps1", "toml": ".sh"}


def job_in_short(job: TrainJob) -> dict[str, Any]:
    return plain({path: mine for path, (mine, _) in differences(job, TrainJob()).items()})


def in_short(found: Any, *, whole: bool = False) -> list[Any]:
    """An import: entries by kind, problems, changed settings; the digits of the report, or the report."""
    report = [[entry.key, entry.kind, entry.settings, figures(entry.sentence)] for entry in found.report]
    kinds = dict(sorted(Counter(entry.kind for entry in found.report).items()))
    changed = job_in_short(found.job)
    return [
        found.choice,
        found.choices[:2],
        kinds,
        [each.code for each in found.problems],
        report if whole else digest(report),
        changed if whole else digest(changed),
    ]


def imported(text: str, whole: bool = False, **more: Any) -> Any:
    return refused(lambda: in_short(import_project(text, **more), whole=whole))


@producer
def scripts() -> Facts:
    """Recorded command lines and scripts."""
    with folder() as root:
        for number, case in enumerate(cases("sd_scripts")):
            text = case["text"] if case["style"] != "toml" else shlex.join(case["argv"])
            for name, content in (case["files"] or {}).items():
                beside(root / name, content)
            words = refused(lambda text=text, case=case: digest(read_script(text, SUFFIX[case["style"]]).commands))
            yield (
                f"{number} {case['name']}",
                [words, imported(text, number % 25 == 0, name=f"x{SUFFIX[case['style']]}", folder=root)],
            )


@producer
def presets() -> Facts:
    """Recorded presets of kohya_ss and OneTrainer, and LoRA files' metadata."""
    for number, case in enumerate(cases("kohya_ss")):
        yield f"kohya_ss {number}", imported(json.dumps(case["preset"]), number % 40 == 0, choice=case["tab"])
    known = cases("onetrainer")
    for number, case in enumerate(known["cases"]):
        yield f"onetrainer {number}", imported(json.dumps(case["config"]), number % 40 == 0)
    yield "onetrainer defaults", digest(refused(lambda: resolve(pasted(json.dumps(known["defaults"]))).values))
    yield (
        "tabs",
        [TABS, sorted(PROJECT_IMPORTERS), [len(list(each.keys())) for each in PROJECT_IMPORTERS.values()], endings()],
    )
    for text in (
        "",
        "hello",
        "{}",
        "[1",
        '{"x": 1}',
        "learning_rate = 1",
        "python train_network.py",
        "python x.py --a",
    ):
        yield f"text {text}", imported(text)


@producer
def exported() -> Facts:
    """Jobs as command lines and files of sd-scripts."""
    for number, options in enumerate(
        (
            {},
            {"network": {"rank": 8, "kind": "locon"}, "schedule": {"max_train_epochs": 3, "lr_warmup_steps": "10%"}},
            {
                "method": {"kind": "fine_tune"},
                "memory": {"mixed_precision": "bf16", "cache_latents": "off"},
                "noise": {"min_snr_gamma": 5},
            },
            {
                "model": {"family": "sdxl"},
                "dataset": {
                    "resolution": 1024,
                    "train_batch_size": 4,
                    "sources": [{"folder": "/a"}, {"folder": "/b", "role": "regularization"}],
                },
            },
            {"method": {"kind": "embedding"}, "captions": {"shuffle_caption": True, "caption_template": "object"}},
            {"method": {"kind": "controlnet"}, "dataset": {"conditioning_data_dir": "/c"}},
            {
                "optimizer": {"optimizer_type": "Prodigy", "optimizer_args": {"d_coef": 2}},
                "schedule": {"lr_scheduler": "cosine"},
            },
        )
    ):
        job = build(TrainJob, options)

        def written(job=job):
            made = export_project(job)
            return [made.script, made.command, digest(made.toml), len(made.toml.splitlines())]

        yield (
            f"{number}",
            [refused(written), refused(lambda job=job: len(str(export_project(job))))],
        )


EXAMPLE = r"""
[general]
caption_extension = ".txt"
shuffle_caption = true
keep_tokens = 1
[[datasets]]
resolution = [1024, 512]
batch_size = 2
max_bucket_reso = 2048
validation_split = 0.1
validation_seed = 3
  [[datasets.subsets]]
  image_dir = 'D:\train\hero'
  class_tokens = "sks hero"
  num_repeats = 10
  keep_tokens = 0
  [[datasets.subsets]]
  is_reg = true
  image_dir = '~/reg'
[[datasets]]
resolution = 768
shuffle_caption = false
  [[datasets.subsets]]
  image_dir = '~/ft'
  metadata_file = '~/ft/meta.json'
"""
CONFIGS = {
    "example": EXAMPLE,
    "json": '{"datasets": [{"resolution": 512, "subsets": [{"image_dir": "~/a", "flip_aug": true, "color_aug": "x"}]}]}',
    "control": "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = '~/a'\nconditioning_data_dir = '~/c'",
    "wrong values": "[[datasets]]\nresolution = 'x'\nbatch_size = 0\nenable_bucket = 1\n"
    "[[datasets.subsets]]\nimage_dir = 3\nnum_repeats = -1",
    "unknown": "[general]\nnope = 1\n[[datasets]]\nresolutio = 512\n"
    "[[datasets.subsets]]\nimage_dir = '~/a'\nkeep_token = 1\nlearning_rate = 1",
    "no folder": "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nnum_repeats = 2",
    "no datasets": "[general]\nflip_aug = true",
    "broken": "[[datasets]\nresolution = 512",
    "escapes": '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "C:\\train\\new"',
    "twins": "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = '~/a'\n[[datasets.subsets]]\nimage_dir = '~/a'",
    "sides": "[[datasets]]\nresolution = 512\nmin_bucket_reso = 1024\nmax_bucket_reso = 256\n"
    "bucket_reso_steps = 7\n[[datasets.subsets]]\nimage_dir = '~/a'",
    "empty": "",
}


@producer
def datasets() -> Facts:
    """Dataset files of sd-scripts as folders of a job, and back."""
    with folder() as top:
        root = top / "set"
        for name in ("a", "ft", "reg", "c"):
            write(root / name / "1.png", noise(8, 8), "x")
        beside(root / "ft" / "meta.json", '{"1": {"caption": "x"}}')
        for name, text in CONFIGS.items():
            for ending in (".json",) if text.startswith("{") else (".toml", ".json")[: 2 if name == "empty" else 1]:
                path = beside(root / f"set{ending}", text.replace("~", root.as_posix()))

                def read(path=path):
                    job, report = apply_dataset_config(TrainJob(), path)
                    texts = [dataset_text(job, kind, "dataset") for kind in ("toml", "json")]
                    again = [[each[0].splitlines()[:40], [problem.code for problem in each[2]]] for each in texts]
                    return [job_in_short(job), report.problems if hasattr(report, "problems") else plain(report), again]

                yield f"{name}{ending}", refused(read)
        for encoding in ("utf-16", "utf-8-sig", "latin-1"):
            path = beside(
                root / "e.toml", CONFIGS["control"].replace("~", root.as_posix()).replace("/a", "/é").encode(encoding)
            )
            yield (
                encoding,
                refused(lambda path=path: [each.code for each in apply_dataset_config(TrainJob(), path)[1].problems]),
            )
        for number, options in enumerate(
            (
                {
                    "dataset": {"folder": str(root / "a"), "flip_aug": True, "resolution": 768},
                    "captions": {"keep_tokens": 2, "caption_prefix": "x"},
                },
                {
                    "dataset": {
                        "sources": [
                            {"folder": str(root), "num_repeats": 3, "resolution": 64},
                            {"folder": str(root / "reg"), "role": "regularization"},
                        ]
                    }
                },
                {
                    "dataset": {
                        "folder": str(root / "a"),
                        "more_resolutions": [256],
                        "masked_loss": True,
                        "skip_broken": True,
                    },
                    "validation": {"validation_split": 0.2},
                },
                {"dataset": {"folder": None}},
            )
        ):
            job = build(TrainJob, options)
            yield f"job {number}", [refused(partial(dataset_text, job, kind)) for kind in ("toml", "json")]
    yield "lines", [toml_lines(EXAMPLE), json_lines('{\n"a": {\n"b": 1,\n"b": 2}}')]
    yield "paths", [written_path(each) for each in ("a/b", "C:\\x", "~/x", "")]
    yield "table", toml_table({"a": 1, "b": [1, 2], "c d": "x'\"", "e": True, "f": 0.5, "g": "a\\b"}, "x", "  ")
