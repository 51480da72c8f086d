"""Branches and limits of captioning, of captions' encodings, of partners of images, of the check of a machine and of the command line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from core.captioning.sentences import generating, profiles
from core.captioning.tagger import tagging
from core.cli import check as check_command
from core.cli.options import commands, split_options
from core.dataset.captions import encodings
from core.dataset.images import masks, painting
from core.dataset.images.views import View
from core.dataset.sources.metadata import Finder
from core.dataset.sources.walk import walk
from core.machine_check import report
from core.machine_check.item import ABSENT, FAILED, OK, SKIPPED, SLOWER, CheckContext, Finding, Item
from core.machine_check.run import Examiner, worker_lost
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError
from core.record.worker import Gone
from core.record.workspace import Workspace
from core.settings.captioning.sentences import CaptionGenerationSettings
from core.tools.images import latent_upscaler
from core.training import probe, prove
from core.training.sharding import shards
from tests.facts.pixels import concept, placed
from tests.facts.samples import beside, quarters, smooth, write
from tests.facts.store import Facts, folder, producer, refused


class Letters:
    """A tokenizer of single letters."""

    unk_token_id, eos_token_id, pad_token_id, sep_token_id = 63, 1, 0, None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [63 if letter == "?" else ord(letter) for letter in text]


@producer
def sentences() -> Facts:
    """Arguments of generation, banned words, addressed draws, budgets of answers."""
    loaded: Any = SimpleNamespace(tokenizer=Letters(), model=SimpleNamespace(config=SimpleNamespace(model_type="blip")))
    for options in (
        {},
        {"decoding": "sample"},
        {"decoding": "beams", "num_beams": 4, "length_penalty": 0.5},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 5},
        {"min_new_tokens": 3},
        {"words_to_avoid": ["Red fox", " ", "a?", "b"]},
        {"decoding": "sample", "no_repeat_ngram_size": 5},
    ):
        for attempt in (0, 1):
            yield (
                f"{options} {attempt}",
                refused(partial(generating._generate_arguments, loaded, CaptionGenerationSettings(**options), attempt)),
            )
    other: Any = SimpleNamespace(tokenizer=Letters(), model=SimpleNamespace(config=SimpleNamespace(model_type="git")))
    yield "not blip", generating._generate_arguments(other, CaptionGenerationSettings(decoding="sample"), 0)
    prompt = generating.PromptLength()
    prompt(torch.zeros(2, 4), torch.zeros(2, 9))
    prompt(torch.zeros(2, 7), torch.zeros(2, 9))
    scores = torch.linspace(-1, 1, 18).reshape(2, 9)
    for options in ({}, {"top_k": 2}, {"top_p": 0.3}, {"temperature": 0.1}, {"seed": 9}):
        rows = []
        for attempt, length in product((0, 1), (4, 5, 6)):
            sampling = generating.AddressedSampling(
                CaptionGenerationSettings(decoding="sample", **options), ["a.png", "b.png"], attempt, prompt
            )
            rows.append(sampling(torch.zeros(2, length), scores).argmax(-1).tolist())
        yield f"drawn {options}", [prompt.tokens, rows]
    budget = generating.AnswerBudget([7, 8], 2, prompt)
    for row in ([7, 8], [7, 8, 1], [7, 8, 1, 1], [1, 7, 8, 1], [1, 7, 8, 1, 1], [8, 7, 1, 1], [1, 1, 1, 7, 8]):
        yield f"budget {row}", budget(torch.tensor([[0] * 4 + row]), None).tolist()
    model: Any = SimpleNamespace(
        tokenizer=Letters(),
        model=SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[5, 6], pad_token_id=None)),
    )
    yield "ends", sorted(generating._end_token_ids(model))
    fox = placed(Path("set/fox.png"), 64, 64)
    for source, words, trigger in product(("file", "default"), ("", "dog"), (None, "sks")):
        row: Any = SimpleNamespace(
            caption=replace(fox.caption, source=source, text="a\n b"),
            image=replace(fox.image, class_tokens=words),
            settings=SimpleNamespace(trigger_word=trigger),
        )
        yield f"names {source} {words} {trigger}", profiles.facts_of(row)
    yield "filled", [profiles.filled(text, {"a": "{b}", "b": "x"}) for text in ("{a} {b} {c}", "{{a}}", "{ a }", "{a")]


@producer
def tagged() -> Facts:
    """Batches that fail are halved; scores that are not finite."""
    for bad in ((), (2,), (0, 3), (0, 1, 2, 3, 4)):
        asked: list[int] = []

        def run(images: Sequence[Any], bad: tuple[int, ...] = bad, asked: list[int] = asked) -> list[Any]:
            asked.append(len(images))
            if any(each in bad for each in images):
                raise ProblemsError.one("memory", code="x")
            return [np.array([float(each)]) for each in images]

        found = tagging._run(SimpleNamespace(run=run), list(range(5)))
        yield f"halved {bad}", [[each if isinstance(each, Problem) else float(each[0]) for each in found], asked]
    tagger: Any = SimpleNamespace(
        run=lambda images: [np.array([1.0, np.nan]) if each else np.array([1.0, 2.0]) for each in images],
        scored=lambda values: list(values),
    )
    batch = [(Path("a"), 0), (Path("b"), Problem("p", code="p")), (Path("c"), 1)]
    yield "scores", list(tagging._scores(tagger, batch))  # type: ignore[arg-type]


TEXTS = (
    "привет мир",
    "привет мир abc def ghi jkl mno pqr",
    "あいうえお",
    "漢字だけ",
    "漢字漢字",
    "안녕하세요",
    "你好世界朋友",
    "Größe über",
    "café",
    "naïve Ä",
    "ﾊﾛｰ",
    "приветé",
    "日本",
)


@producer
def old_texts() -> Facts:
    """Texts in old encodings, and letters that are mostly Cyrillic."""
    for text in TEXTS:
        for encoding in ("cp1251", "cp932", "euc_jp", "euc_kr", "gbk", "cp1252"):
            try:
                data = text.encode(encoding)
            except UnicodeEncodeError:
                continue
            found = encodings.decode_text(data)
            yield f"{text} {encoding}", [found.text, found.encoding, found.guessed]
    yield (
        "odd",
        [
            encodings.decode_text(data).encoding
            for data in (b"\x81", b"\xff\xfe\x00", b"a\x81b", b"\xb0\xa1\xb0\xa2", b"\xb0\xa1\xb0\xa2\xb0\xa3")
        ],
    )
    yield (
        "cyrillic",
        [
            encodings._mostly_cyrillic(text)
            for text in ("я" * 9 + "é", "я" * 8 + "é", "abc", "", "яabcé", "я" * 18 + "éü", "ѐ" * 9 + "é")
        ],
    )


@producer
def partners() -> Facts:
    """Control images of each fit, filter and flip; keys of metadata files outside of the folder."""
    hint = smooth(50, 70)
    for fit, options in product(
        ("aligned", "area", "stretched"),
        ({}, {"control_interpolation": "bicubic"}, {"resize_interpolation": "lanczos"}, {"enable_bucket": False}),
    ):
        group = replace(concept(**options), control_fit=fit)
        item = placed(Path("x.png"), 320, 192, concept=group)
        row: list[Any] = [
            masks.control_filter(group),
            [masks.is_resized(size, item) for size in (item.placement.bucket, item.placement.resized, (1, 1))],
        ]
        for flip, image in product((False, True), (hint, smooth(900, 900))):
            made = masks.control_in_view(image, View(item.placement, flip), group)
            row.append([made.size, [each // 500 for each in quarters(made)]])
        yield f"{fit} {options}", row
    with folder() as root:
        write(root / "c.png", smooth(60, 40))
        write(root / "clear.png", Image.merge("RGBA", (*smooth(60, 40).split(), Image.new("L", (60, 40), 100))))
        yield (
            "samples",
            [
                masks.control_for(root / name, (32, 48), stretched)
                for name in ("c.png", "clear.png")
                for stretched in (False, True)
            ],
        )
        for name in (
            "set/a.png",
            "set/sub/b.png",
            "set/sub/a.png",
            "other/o.png",
            "other/deep/o.png",
            "other/o.txt",
            "set/x.npz",
        ):
            write(root / name, smooth(8, 8)) if name.endswith("png") else beside(root / name, "x")
        yield from found_by_keys(root)


def found_by_keys(root: Path) -> Facts:
    finder = Finder(walk(root / "set").files, root / "set", root / "set")
    outside = (
        str(root / "other" / "o.png"),
        "../other/deep/o.png",
        "../other/o.txt",
        "../other/none.png",
        "../other/o",
        str(root / "set" / "a.png"),
    )
    for key in (
        "a",
        "a.png",
        "./a.png",
        "sub/b",
        "sub\\b.png",
        "b",
        "A",
        "nope",
        "/far/away/b.png",
        "C:\\x\\b.jpg",
        "x",
        "/far/a.png",
        *outside,
    ):
        within, other = finder._in_folder(key), finder._outside_folder(key)
        yield (
            f"key {Path(key).name} {outside.index(key) if key in outside else key}",
            [
                [each.relative for each in within],
                other and [other.relative.rpartition("/")[2], other.relative.count("/")],
                [each.relative for each in finder._by_file_name(key)],
                finder._has_latents(key),
                finder.nearest(key),
            ],
        )


LINES = [
    report.Line(Item(name, f"Title {name}", group, lambda place: Finding(OK)), finding, seconds)
    for name, group, finding, seconds in (
        ("a", "one", Finding(OK, "found", facts={"x": float("nan"), "y": float("inf"), "z": 1.5}), 1.234), ("b", "one", Finding(SLOWER,
        "f", "r", "do"), 0.5),
        ("c", "two", Finding(FAILED, "", "r", "do", {}, "/home/someone/x and hf_abcdefghijklmnopqrstuvwxyz0123456789"), 2),
        ("d", "two", Finding(SKIPPED, "", "no time"), 0), ("e", "three", Finding(ABSENT, "", "r", "do"), 0), ("f", "three", None, 0),
        ("g", "three", Finding(OK, "", "", "no fix"), 0),
    )
]  # fmt: skip


class Answers:
    """A worker process that answers from a list."""

    def __init__(self, answers: list[Any], asked: list[Any]):
        self.answers, self.asked = answers, asked

    def ask(self, question: dict[str, Any], limit: float, token: Any) -> Any:
        self.asked.append([question, round(min(limit, 999))])
        return self.answers.pop(0)

    def end(self) -> None:
        self.asked.append("end")


@producer
def checks() -> Facts:
    """A report's JSON and lines; items that need others, GPUs or time; processes that are gone."""
    with folder() as root:
        space = Workspace(root / "outputs", root / "models", root / "presets")
        made = report.report_of(LINES, space, "", 12.34)
        items = [
            [each["name"], each["state"], each["seconds"], each.get("facts"), each.get("traceback")]
            for each in made["items"]
        ]
        yield (
            "report",
            [made["counts"], made["skipped"], made["device"], made["seconds"], items, report.exit_code(made)],
        )
        yield "fine", report.exit_code(report.report_of(LINES[:2], space, "cpu", 1))
        yield "lines", [len(report.table_lines(line)) for line in LINES]
        text = f"{root}/outputs/x {root}/models {root} /home/abc/d C:\\Users\\abc\\d /Users/abc"
        yield "private", report.private(text, report.replacements(space)).count("...")
        printing, out = check_command.Printing(), io.StringIO()
        with redirect_stdout(out):
            for number in range(1, len(LINES) + 1):
                printing(LINES[:number], 9)
        yield "printed", [len(out.getvalue().splitlines()), printing._printed, out.getvalue().count("\n\n")]
        answer = lambda device, **finding: {"device": device, "finding": {"state": OK, **finding}}  # noqa: E731
        look = lambda place: Finding(OK)  # noqa: E731
        items_of = [
            Item("first", "First", "g", look), Item("card", "Card", "g", look, gpu=True), Item("after", "After", "g", look, seconds=5,
            needs=("first",)),
            Item("last", "Last", "g", look, needs=("after",)),
        ]  # fmt: skip
        for name, answers, end in (
            ("cpu", [answer("cpu"), answer("", facts={"n": 1}), answer("cpu")], 1e9),
            ("cuda", [answer("cuda:0"), answer("cuda:0", state=FAILED), answer(""), answer("")], 1e9),
            ("failing", [answer("cpu", state=FAILED)], 1e9),
            ("absent", [answer("cpu", state=ABSENT)], 1e9),
            ("limited", [answer("cpu", state=SLOWER), answer("cpu"), answer("cpu")], 1e9),
            (
                "poisoned",
                [answer("cuda", facts={"poisoned": True}), answer("cuda"), answer("cuda"), answer("cuda")],
                1e9,
            ),
            ("late", [], -1.0),
        ):
            asked: list[Any] = []
            told: list[Any] = []
            examiner = Examiner(space, "", root, ["x"], CancelToken())
            with (
                patch(
                    "core.machine_check.run.Worker",
                    lambda command, folder, answers=answers, asked=asked: Answers(answers, asked),
                ),
                patch("core.machine_check.run.time.monotonic", lambda: 0.0),
            ):
                found = refused(
                    partial(
                        examiner.examine,
                        items_of,
                        end,
                        lambda lines, total, told=told: told.append([len(lines), total]),
                    )
                )
            yield (
                name,
                [
                    found,
                    [[line.item.name, line.finding and line.finding.state] for line in examiner.lines],
                    asked,
                    told,
                    examiner.device,
                ],
            )
        for hung in (False, True):
            lost = worker_lost(Gone(hung, 3, "s"), 5)
            yield f"gone {hung}", [lost.state, lost.traceback]
        yield "place", [CheckContext(device, space, root).cuda for device in ("cpu", "cuda", "cuda:1", "mps")]


WORDS = (
    "", "--check", "--check=1", "--device", "--device cpu", "--device=cpu", "--device --check", "--allow-module a --allow-module b c",
    "--dataset_config x.toml",
    "--network.rank 8 9", "--network.rank=8 9", "--network_args a=1 b=2 --check", "x.json y.json", "folder", "folder other",
    "--dataset.sources a b", "x.json folder --check",
    "--outputs o --outputs p", "--nope", "--probe --prove 3 --continue r", "--", "-x",
)  # fmt: skip


@producer
def words() -> Facts:
    """Words of the command line as options, settings, presets and arguments of tasks."""
    known = commands()
    for task, text in product(("train", "generate", "tag", "inspect"), WORDS):

        def split(task: str = task, text: str = text) -> Any:
            with patch("core.cli.options.allow", lambda name: None):
                found = split_options(text.split(), known[task], task=task)
            return [found.values, found.settings, found.preset, found.argument, found.argument_setting, found.problems]

        yield f"{task} {text}", refused(split)


@producer
def small_parts() -> Facts:
    """Where a painted mask starts, images that an upscaler leaves out, times of a probe, partitions that do not fit."""
    with folder() as root:
        write(root / "a.png", smooth(16, 12))
        write(root / "clear.png", Image.merge("RGBA", (*smooth(16, 12).split(), Image.new("L", (16, 12), 90))))
        for name, level in (("painted", 10), ("masks/a", 20), ("a-masklabel", 30), ("small", 40)):
            write(root / f"{name}.png", Image.new("L", (16, 12) if name != "small" else (8, 6), level))
        beside(root / "bad.png", "x")
        label = root / "a-masklabel.png"
        for image, painted, paired, closed in (
            ("a", None, None, ""),
            ("a", "painted", None, ""),
            ("a", "painted", "masks/a", "painted"),
            ("a", None, "masks/a", ""),
            ("a", None, "a-masklabel", ""),
            ("a", "gone", "small", ""),
            ("a", "bad", "masks/a", ""),
            ("clear", None, None, ""),
            ("a", None, None, "a-masklabel"),
            ("bad", None, None, ""),
            ("a", None, "masks/a", "masks/a"),
        ):
            info = replace(placed(root / f"{image}.png", 16, 12).image, conditioning=paired and root / f"{paired}.png")
            start = painting.initial_mask(
                info, painted and root / f"{painted}.png", lambda path, closed=closed: path.stem != Path(closed).name
            )
            yield (
                f"painting {image} {painted} {paired} {closed}",
                [start.origin, start.mask and [start.mask.size, start.mask.getpixel((3, 3))], bool(start.unread)],
            )
        label.unlink()
        plan: Any = SimpleNamespace(
            images=[root / f"{name}.png" for name in ("a", "bad", "masks/a")], targets=["x", "y", "z"]
        )
        for width, height in ((7, 9), (9, 7), (8, 8), (17, 23)):
            write(root / "a.png", smooth(width, height))
            skipped: list[str] = []
            found = [[image.size, target] for image, target in latent_upscaler._cropped_images(plan, skipped)]
            yield f"upscaled {width} {height}", [found, len(skipped)]
        images = [
            (Image.new("RGB", (8 * each, 8)), Path(str(number))) for number, each in enumerate((1, 1, 1, 2, 1, 1))
        ]
        yield (
            "batches",
            [[len(batch) for batch in latent_upscaler._batches(iter(images), size)] for size in (1, 2, 3, 9)],
        )  # type: ignore[arg-type]
    losses = ({1: 0.5, 2: 0.25}, {1: 0.5, 2: 0.2}, {1: 0.5}, {}, {1: 0.0, 2: 0.0})
    yield "apart", [str(prove._largest_difference(one, other)) for one in losses for other in losses[:2]]
    proofs = [prove.Proof(8, 4, "a", *each) for each in product("ab", (True, False), ((), ("x",) * 11))]
    yield "proofs", [[each.equal, len(each.report().splitlines()), each.report().count("x")] for each in proofs]
    yield (
        "between",
        [
            probe._interpolated_seconds(measured, pixels)
            for measured in ([(100, 2.0), (50, 1.0)], [(100, 2.0), (100, 1.0)], [(100, 1.0), (50, 3.0)])
            for pixels in (0, 50, 75, 100, 200)
        ],
    )
    parts = object.__new__(shards.Shards)
    parts._zero = SimpleNamespace(single_partition_of_fp32_groups=[torch.arange(3.0), torch.arange(2.0)])
    parts._optimizer = SimpleNamespace(
        state={parts.masters[0]: {"step": torch.tensor(3.0), "mean": torch.ones(3)}}, defaults={}
    )
    state = parts.state_dict()
    yield "state", [state, state[0]["master"] is parts.masters[0]]
    for number, given in enumerate(
        (
            state,
            state[:1],
            [{"master": torch.ones(4), "memory": {}}, state[1]],
            [{"master": torch.ones(3), "memory": {"x": 5, "step": torch.tensor(1.0)}}, state[1]],
        )
    ):
        yield (
            f"loaded {number}",
            [refused(parts.load, given), parts.masters, [parts._optimizer.state.get(each) for each in parts.masters]],
        )
