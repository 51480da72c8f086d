"""Hostile captions, lists, dataset configs, presets, flags and prompts, and who reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.changes import DEEP, NUMBERS, Files, said, text, written
from tests.hostile.image_files import GOOD_PNG

# ---- captions

CAPTION = "a red fox, {sitting|lying}, in the snow, ||| forest, __color__\nsecond line"
CAPTIONS = [
    ("a.txt", text("")),
    ("a.txt", text(b"\0" * 100_000)),
    ("a.txt", lambda: random.Random(1).randbytes(1_000_000)),
    ("a.txt", lambda: random.Random(1).randbytes(50_000)),
    ("a.txt", text("a, " * 3_000_000)),
    ("a.txt", text("a, " * 340_000)),
    ("a.txt", text("\n" * 1_000_000)),
    ("a.txt", text("{" * 1_000_000)),
    ("a.txt", text("{a|b}" * 200_000)),
    ("a.txt", text("{" + "a|" * 500_000 + "}")),
    ("a.txt", text("{a|" * 300_000)),
    ("a.txt", text("(" * 1_000_000)),
    ("a.txt", text("[" * 1_000_000)),
    ("a.txt", text("(" * 500_000 + ":1.2)" * 100_000)),
    ("a.txt", text("((a:1.1)" * 100_000)),
    ("a.txt", text("(a:" + "9" * 100_000 + ")")),
    ("a.txt", text("(a:1.2.3)")),
    ("a.txt", text("a " * 500_000)),
    ("a.txt", text("a" * 1_000_000)),
    ("a.txt", text("\u0300" * 500_000)),
    ("a.txt", text("\ufdd0" * 300_000)),
    ("a.txt", text(b"\xed\xa0\x80" * 1000)),
    ("a.txt", text(b"\xff\xfe" + b"\x00\xd8" * 1000)),
    ("a.txt", text(b"\xff\xfe\0\0" + b"\xff" * 4000)),
    ("a.txt", text("\x1b[2J\x1b]0;a\x07" * 1000)),
    ("a.txt", text("||| " * 200_000)),
]


def read_caption(path: Path) -> None:
    """As the folder is read, planned and shown; with each way that captions are made."""
    from core.dataset.captions.files import read_caption_file, rewrite_as_utf8
    from core.dataset.captions.history import History
    from core.dataset.captions.pipeline import caption_preview, longest_captions
    from core.dataset.sources.walk import walk
    from core.families.prompt_weights import runs_of, weight_error
    from core.record.problems import ProblemsError
    from core.settings.dataset.captions import CaptionSettings

    written(path.parent, "a.png", GOOD_PNG)
    (file,) = walk(path.parent).files
    image = _image(file)
    caption = read_caption_file(image)
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"shuffle_caption": True, "keep_tokens": 1, "caption_tag_dropout_rate": 0.5},
        {"enable_wildcard": True, "trigger_word": "fox"},
        {"shuffle_caption": True, "keep_tokens_separator": "|||", "secondary_separator": ";;;", "caption_lines": "all"},
    )
    for way in ways:
        settings = CaptionSettings.model_validate(way)
        caption_preview(caption, settings, 1, image.key, 2)
        longest_captions(caption, settings)
    if not weight_error(caption.text):
        runs_of(caption.text)
    try:
        rewrite_as_utf8(History(path.parent / "captions"), [path])
    except ProblemsError as error:
        assert all(each.fix for each in error.problems)


def _image(file: Any) -> Any:
    from core.dataset.sources.image_info import ImageInfo

    return ImageInfo(
        "a", file.relative, file.path, 64, 64, file.bytes, file.mtime_ns, sidecars=file.sidecars,
        sidecar_states=file.sidecar_states,
    )  # fmt: skip


# ---- JSON of any kind


def bad_json(name: str) -> list[tuple[str, Callable[[], bytes]]]:
    values = [
        "", "null", "1", '"a"', "[]", "{}", "[[]]", "[{}]", "[1]", "{", "[" * DEEP, '{"a":' * DEEP, "9" * 5000, "NaN",
        '{"":' * 900 + "1" + "}" * 900, "[" * 900 + "]" * 900, '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}",
        '"' + "a" * 3_000_000, "[" + "1," * 3_000_000 + "1]", "[" + "[]," * 2_000_000 + "[]]",
        "{" + ",".join(f'"k{n}":{{}}' for n in range(50_000)) + "}", '{"a": "\\ud800"}', '{"\\ud800": {}}',
        "{" + '"a": 1,' * 50_000 + '"a": 1}', "\ufeff{}", " " * 3_000_000, "{" * 3_000_000,
        '{"a": {"caption": null}}', '{"entries": null}', '{"entries": [null]}', '{"entries": {}}', '{"job": null}',
    ]  # fmt: skip
    data = [value.encode() for value in values]
    data += [b"\xff\xfe{\0}\0", b"\xff\xfe\0", b"\x80\x81", b"\0" * 1000, "{}".encode("utf-16"), "{}".encode("utf-32")]
    return [(name, text(each)) for each in data]


METADATA = json.dumps(
    {f"img{n}": {"caption": "a fox", "tags": "a, b", "train_resolution": [512, 768]} for n in range(5)}, indent=1
)
_M = [
    '{"a": {"train_resolution": [' + "9" * 30 + ", 8]}}",
    '{"a": {"train_resolution": [1e308, 8]}}',
    '{"a": {"train_resolution": [true, 8]}}',
    '{"a": {"caption": [["a"]]}}',
    '{"a": {"caption": {"a": 1}}}',
    '{"' + "a" * 5000 + '": {"caption": "a"}}',
    '{"\\u0000": {"caption": "a"}}',
    '{"../../../../etc/passwd.png": {"caption": "a"}}',
    '{"/dev/zero.png": {"caption": "a"}}',
    "{" + ",".join(f'"missing{n}.png": {{"caption": "a"}}' for n in range(30_000)) + "}",
    '{"a": {"caption": "' + "a, " * 1_000_000 + '"}}',
    '{"a": {' + ",".join(f'"k{n}": 1' for n in range(50_000)) + "}}",
]


def make_metadata(folder: Path, case: int) -> Path:
    name = "meta.json" if case % 4 else "meta.jsonl"
    good = METADATA
    if case and case % 4 == 0:
        good = "\n".join(json.dumps({"file_name": f"img{n}.png", "text": "a fox"}) for n in range(5))
    bad = [*bad_json("meta.json"), *bad_json("meta.jsonl"), *(("meta.json", text(each)) for each in _M)]
    return Files(name, text(good), bad)(folder, case)


SIDECAR = json.dumps({"post": {"id": 1, "tags": {"general": ["red_fur", "smile"], "species": ["fox"]}, "score": 2.5}})


def read_sidecar(path: Path) -> None:
    """As a caption is made of it."""
    from core.captioning.source.sidecars import _caption_of
    from core.record.problems import ProblemsError
    from core.settings.captioning.sources import SidecarSettings

    found = _caption_of(path.with_name("a.png"), SidecarSettings(), ", ")
    if found.problem:
        raise ProblemsError([found.problem])


def read_list(path: Path) -> None:
    """Scanned as a folder's list, and added to."""
    from core.dataset.sources.scan import scan
    from core.record.problems import ProblemsError
    from core.settings.dataset.captions import CaptionSettings
    from core.settings.dataset.concepts import concepts
    from core.settings.dataset.dataset import DatasetSettings
    from core.settings.dataset.validation import ValidationSettings
    from core.tools.metadata.files import entries_of

    for number in range(3):
        written(path.parent, f"img{number}.png", GOOD_PNG)
    dataset = DatasetSettings(sources=[{"folder": str(path.parent), "metadata_file": str(path)}])  # type: ignore[list-item]
    found = scan(concepts(dataset, CaptionSettings(), ValidationSettings()))
    said(found.problems)
    try:
        entries_of(path)
    except ProblemsError as error:
        said(error.problems)


# ---- dataset configs

TOML = """[general]
shuffle_caption = true
keep_tokens = 1
[[datasets]]
resolution = [512, 768]
batch_size = 2
  [[datasets.subsets]]
  image_dir = 'C:/train/fox'
  num_repeats = 10
  class_tokens = "sks fox"
"""
CONFIG = {
    "general": {"shuffle_caption": True, "keep_tokens": 1},
    "datasets": [{"resolution": 512, "batch_size": 2, "subsets": [{"image_dir": "/a", "num_repeats": 2}]}],
}
_T = [
    "",
    "a",
    "=",
    "[[",
    "[" * DEEP,
    "a = " + "[" * DEEP,
    "a = " + "[" * 400 + "]" * 400,
    "a = " + "{a=" * 5000,
    "a." * 5000 + "a = 1",
    "[" + "a." * 5000 + "a]",
    "a = " + "9" * 5000,
    "a = 1e999",
    "a = nan",
    "a = 9999-99-99",
    "a = 1979-05-27T07:32:00Z",
    'a = "' + "\\" * 10_001,
    'a = "\\ud800"',
    'a = """' + "a" * 1_000_000,
    "a = '''" + "'" * 10_000,
    "\n".join(f"k{n} = 1" for n in range(3000)),
    "\n".join(f"[t{n}]" for n in range(3000)),
    "[general]\n" + "\n".join(f"k{n} = 1" for n in range(3000)),
    "[[datasets]]\n" * 3000,
    "[[datasets]]\nresolution = 1e999\n[[datasets.subsets]]\nimage_dir = 'a'",
    "[[datasets]]\nresolution = " + "9" * 400 + "\n[[datasets.subsets]]\nimage_dir = 'a'",
    "[[datasets]]\nresolution = [512, nan]\n[[datasets.subsets]]\nimage_dir = 'a'",
    "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = " + "9" * 100,
    "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nmetadata_file = '/dev/zero'",
    "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = '" + "a" * 50_000 + "'",
    '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "' + "\\a" * 50_000 + '"',
    "[[datasets]]\nresolution = 512\n" + "[[datasets.subsets]]\nimage_dir = 'a'\n" * 3000,
    "# " + "a" * 2_000_000,
    "\r" * 1000,
    "a = [\n" + "1,\n" * 20_000 + "]",
    "datasets = 1\ngeneral = []",
    "[datasets]\na = 1",
    "[[general]]\n[[datasets]]\n[datasets.subsets]\n",
    "[[datasets]]\nsubsets = [1, 2, [], {}]",
]


def make_config(folder: Path, case: int) -> Path:
    bad = [*(("a.toml", text(each)) for each in _T), *bad_json("a.json"), ("a.exe", text("a"))]
    if case % 2:
        return Files("a.toml", text(TOML), bad)(folder, case)
    return Files("a.json", text(json.dumps(CONFIG, indent=1)), bad)(folder, case)


def read_config(path: Path) -> None:
    from core.imports.dataset_config import read_dataset_config

    found = read_dataset_config(path)
    said(found.problems)
    assert found.values or found.problems


# ---- presets and flags


def preset_bytes() -> bytes:
    from core.settings.job import TrainJob
    from core.settings.presets.files import dump

    return json.dumps(dump(TrainJob()), indent=1).encode()


def _preset_with(group: str, value: str) -> bytes:
    return ('{"schema_version": 1, "kind": "job", "task": "train", "' + group + '": ' + value + "}").encode()


_P = [
    _preset_with("noise", "{" + ",".join(f'"min_snr_gama{n}": 1' for n in range(3000)) + "}"),
    _preset_with("noise", "{" + ",".join(f'"x{n}": 1' for n in range(30_000)) + "}"),
    _preset_with("noise", "{" + f'"{"min_snr_gamma" * 50_000}": 1' + "}"),
    _preset_with("noise", '{"min_snr_gamma": ' + "9" * 5000 + "}"),
    _preset_with("noise", '{"min_snr_gamma": 1e400}'),
    _preset_with("noise", '{"min_snr_gamma": NaN}'),
    _preset_with("noise", '{"max_timestep": ' + "9" * 300 + "}"),
    _preset_with("noise", '{"max_timestep": 9223372036854775808}'),
    _preset_with("noise", '{"min_snr_gamma": ' + "[" * 900 + "]" * 900 + "}"),
    _preset_with("noise", '{"min_snr_gamma": ' + "[" * 90 + "]" * 90 + "}"),
    _preset_with("dataset", '{"sources": [' + "{}," * 100_000 + "{}]}"),
    _preset_with("dataset", '{"sources": ' + '[{"folder": ' * 40 + "1" + "}]" * 40 + "}"),
    _preset_with("dataset", '{"folder": "\\ud800"}'),
    _preset_with("dataset", '{"folder": "' + "a" * 1_000_000 + '"}'),
    _preset_with("dataset", '{"resolution": [' + "1," * 200_000 + "1]}"),
    _preset_with("dataset", '{"resolution": [1e308, 1e308]}'),
    _preset_with("optimizer", '{"learning_rate": 1e-400, "optimizer_args": {"a": ' + "[" * 80 + "]" * 80 + "}}"),
    _preset_with("optimizer", '{"optimizer_args": {' + ",".join(f'"k{n}": 1' for n in range(20_000)) + "}}"),
    _preset_with("samples", '{"sample_prompts": [' + '"a",' * 200_000 + '"a"]}'),
    _preset_with("samples", '{"sample_prompts": ["' + "(" * 1_000_000 + '"]}'),
    _preset_with("method", "[]"),
    _preset_with("method", '{"kind": "' + "a" * 100_000 + '"}'),
    _preset_with("a" * 100_000, "1"),
    ('{"schema_version": 1' + "".join(f', "g{n}": {{"a": 1}}' for n in range(3000)) + "}").encode(),
    ('{"schema_version": 1' + "".join(f', "noise{n}": {{}}' for n in range(3000)) + "}").encode(),
    ('{"schema_version": ' + "9" * 5000 + "}").encode(),
    b'{"schema_version": 1e999}',
    ('{"schema_version": 1, "title": ' + "[" * 90 + "]" * 90 + "}").encode(),
    b'{"schema_version": 1, "kind": {"a": 1}, "task": []}',
    b'{"schema_version": 1, "task": "tool"}',
    b'{"schema_version": 1, "kind": "recipe", "model": {}, "dataset": 1}',
    b'{"schema_version": 2, "kind": "recipe", "family": [], "vram_gb": 1e9, "reasons": {"a": {}}}',
]


def make_preset(folder: Path, case: int) -> Path:
    return Files("a.json", preset_bytes, [*bad_json("a.json"), *(("a.json", text(each)) for each in _P)])(folder, case)


def read_preset(path: Path) -> None:
    """Loaded, and then checked as before a training."""
    from core.record.problems import ProblemsError
    from core.settings.job import TrainJob
    from core.settings.presets.files import apply, read
    from core.settings.rules import training_problems

    try:
        job = apply(read(path))
    except ProblemsError as error:
        said(error.problems)
        return
    if isinstance(job, TrainJob):
        said(training_problems(job))


_VALUES = [
    "9" * 5000, "-" + "9" * 400, "1e999", "-1e999", "nan", "NaN", "Infinity", "[" * DEEP, "[" * 900 + "]" * 900,
    "[" * 80 + "]" * 80, "{" * DEEP, '{"a":' * 900 + "1" + "}" * 900, "\ud800", "\0", "", " ", "null", "true", "a" * 100_000,
    "1," * 100_000, "1x" * 50_000, "x", ",", "[1,", '"', "'", "a=" * 50_000, "1e5", "0x10", "1_000", "²", "٣", "--", "=",
    "a=" + "9" * 5000, "betas=" + "[" * DEEP, "9223372036854775808", "-9223372036854775809", '["\\ud800"]', "1e308,1e308",
    "[" + "[]," * 500_000 + "[]]",
]  # fmt: skip


def make_flags(folder: Path, case: int) -> list[str]:
    """Every setting with every value, in turn; some unknown names."""
    from core.settings.base import declared
    from core.settings.job import TrainJob

    paths = [entry.path for entry in declared(TrainJob)]
    rng = random.Random(case)
    if case == 0:
        return ["--noise.min_snr_gamma", "5"]
    if case == 1:
        return [f"--noise.min_snr_gama{number}=1" for number in range(3000)]
    if case == 2:
        return ["--" + "a" * 100_000, "1", "--", "-", "", "--=", "--no-", "x" * 100_000]
    if case == 3:
        return [f"--{path}" for path in paths] * 3
    chosen = rng.sample(paths, 12) if case % 2 else [paths[case // 2 % len(paths)]]
    chosen += [rng.choice(paths)[: rng.randint(1, 20)]] if case % 5 == 0 else []
    return [word for path in chosen for word in (f"--{path}", rng.choice(_VALUES))]


def read_flag_words(words: list[str]) -> None:
    from core.record.problems import ProblemsError
    from core.settings.check import build
    from core.settings.flags import read_flags
    from core.settings.job import TrainJob
    from core.settings.rules import training_problems

    values, problems = read_flags(TrainJob, words)
    said(problems)
    try:
        job = build(TrainJob, values, "command line")
    except ProblemsError as error:
        said(error.problems)
        return
    said(training_problems(job))


# ---- sample prompts

PROMPTS = "a red fox --n blurry --w 768 --h 512 --d 42 --s 20 --l 7.5 --ss euler_a\n# a comment\na (blue:1.3) fox\n"
_LINES = [f"a --{switch} {number.decode('latin-1')}" for number in NUMBERS for switch in ("w", "d", "l", "s")]
_TOML_PROMPTS = '[prompt]\nwidth = 512\n[[prompt.subset]]\nprompt = "a fox"\nseed = 3\nscale = 7.5\n'
_JSON_PROMPTS = json.dumps([{"prompt": "a fox", "width": 512, "seed": 3}, "a line --d 1"], indent=1)
_PROMPT_FILES = [
    ("a.txt", "\n".join(_LINES)),
    ("a.txt", "(" * 1_000_000),
    ("a.txt", "[(" * 200_000 + "a"),
    ("a.txt", "(a" * 100_000 + ":1.1)" * 100_000),
    ("a.txt", "(a:" + "9" * 5000 + ")"),
    ("a.txt", "a --w ²³ --h ٣ --d 1_0 --l .. --s +"),
    ("a.txt", "a " + "--n b " * 100_000),
    ("a.txt", "a " + "--q b " * 100_000),
    ("a.txt", "a\n" * 100_000),
    ("a.txt", "--" * 100_000),
    ("a.txt", " --" * 100_000),
    ("a.txt", "a --w " + " " * 100_000 + "1"),
    ("a.txt", "a --l " + "1" * 100_000 + "x"),
    ("a.toml", "prompt = 1"),
    ("a.toml", "[prompt]\nsubset = 1"),
    ("a.toml", "[prompt]\nsubset = [1, [], {}]"),
    ("a.toml", "[[prompt.subset]]\nprompt = 1"),
    ("a.toml", "[[prompt.subset]]\nprompt = 'a'\nwidth = 1e999"),
    ("a.toml", "[[prompt.subset]]\nprompt = 'a'\nwidth = " + "9" * 5000),
    ("a.toml", "[[prompt.subset]]\nprompt = 'a'\nscale = nan"),
    ("a.toml", "[[prompt.subset]]\nprompt = 'a'\nseed = 1979-05-27T07:32:00Z"),
    ("a.toml", "a = " + "[" * DEEP),
    ("a.toml", "a = " + "[" * 400 + "]" * 400),
    ("a.toml", "a." * 3000 + "a = 1"),
    ("a.toml", "[[prompt.subset]]\nprompt = 'a'\n" + "\n".join(f"k{n} = 1" for n in range(3000))),
    ("a.toml", "[[prompt.subset]]\nprompt = 'a'\n" * 3000),
    ("a.json", '[{"prompt": "a", "width": ' + "9" * 5000 + "}]"),
    ("a.json", '[{"prompt": "a", "scale": 1e999}]'),
    ("a.json", '[{"prompt": "a", "scale": NaN}]'),
    ("a.json", '[{"prompt": "a", "seed": [1]}]'),
    ("a.json", '[{"prompt": "a", "sample_sampler": {"a": ' + "[" * 80 + "]" * 80 + "}}]"),
    ("a.json", '[{"prompt": "\\ud800"}]'),
    ("a.json", "[" + '{"prompt": "a"},' * 50_000 + '{"prompt": "a"}]'),
    ("a.json", '[{"prompt": "a", ' + ",".join(f'"k{n}": 1' for n in range(50_000)) + "}]"),
    ("a.pdf", "a"),
]


def make_prompts(folder: Path, case: int) -> Path:
    name, good = (("a.txt", PROMPTS), ("a.toml", _TOML_PROMPTS), ("a.json", _JSON_PROMPTS))[case % 3]
    bad = [*bad_json("a.json"), *((given, text(each)) for given, each in _PROMPT_FILES)]
    bad += [("a.txt", data) for _, data in CAPTIONS]
    return Files(name, text(good), bad)(folder, case)


def read_prompts(path: Path) -> None:
    """Read, filled in and weighed, as samples are."""
    from core.families.prompt_weights import runs_of
    from core.generation.prompt.sample_prompts import filled, read_prompts
    from core.record.problems import ProblemsError
    from core.settings.samples import SampleSettings

    settings = SampleSettings(sample_prompts_file=str(path))
    try:
        prompts, notes = read_prompts(settings)
    except ProblemsError as error:
        said(error.problems)
        return
    said(notes)
    for each in filled(prompts, settings, (512, 512)):
        assert 64 <= (each.width or 0) <= 4096 and 1 <= (each.steps or 0) <= 1000
        assert abs(each.guidance or 0) < 1e6
        assert all(abs(weight) < 1e300 for _, weight in runs_of(each.prompt))


FAMILIES = {
    "captions": (Files("a.txt", text(CAPTION), CAPTIONS), lambda: {"read": read_caption}),
    "metadata": (make_metadata, lambda: {"read": read_list}),
    "sidecars": (Files("a.json", text(SIDECAR), bad_json("a.json")), lambda: {"read": read_sidecar}),
    "dataset configs": (make_config, lambda: {"read": read_config}),
    "presets": (make_preset, lambda: {"read": read_preset}),
    "flags": (make_flags, lambda: {"read": read_flag_words}),
    "prompts": (make_prompts, lambda: {"read": read_prompts}),
}
