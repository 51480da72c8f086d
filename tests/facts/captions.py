"""The caption pipeline, caption files and their encodings, names, the history of captions."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from unittest.mock import patch

from core.dataset.captions import encodings, files, pipeline, words
from core.dataset.captions import history as history_file
from core.dataset.captions.files import Caption
from core.dataset.captions.history import Change, History
from core.dataset.captions.memo import captions_of
from core.dataset.sources.image_info import ImageInfo
from core.settings.dataset.captions import CaptionSettings
from tests.facts.samples import beside
from tests.facts.store import Facts, digest, folder, producer, refused

TAGS = (
    "red fox, forest, {summer|winter|}, running, blue eyes, 1girl, snow;;;ice, [trigger], looking at viewer, a_b".split(
        ", "
    )
)
SENTENCE = "A red fox runs through the {green|white} forest, at dawn."
OPTIONS = [
    {},
    {"shuffle_caption": True},
    {"shuffle_caption": True, "keep_tokens": 1},
    {"shuffle_caption": True, "keep_tokens": 2, "caption_separator": ";"},
    {"shuffle_caption": True, "keep_tokens_separator": "|||"},
    {"shuffle_caption": True, "keep_tokens": 3, "trigger_word": "sks"},
    {"keep_tokens_separator": "|||"},
    {"secondary_separator": ";;;"},
    {"shuffle_caption": True, "secondary_separator": ";;;", "trigger_word": "fox"},
    {"enable_wildcard": True},
    {"enable_wildcard": True, "caption_lines": "all"},
    {"caption_lines": "random"},
    {"caption_lines": "all"},
    {"caption_prefix": "photo of", "caption_suffix": "end, [name]", "trigger_word": "sks"},
    {"caption_prefix": "photo of,", "shuffle_caption": True, "keep_tokens": 1},
    {"caption_dropout_rate": 0.4},
    {"caption_dropout_rate": 1.0},
    {"caption_dropout_every_n_epochs": 2},
    {"caption_dropout_every_n_epochs": 1},
    {"caption_tag_dropout_rate": 0.4},
    {"caption_tag_dropout_rate": 0.4, "keep_tokens": 2, "trigger_word": "forest"},
    {"caption_tag_dropout_rate": 0.5, "tag_dropout_mode": "all", "keep_tokens": 1},
    {"token_warmup_step": 10.0, "token_warmup_min": 2},
    {"token_warmup_step": 0.5, "shuffle_caption": True},
    {"token_warmup_step": 0.1, "token_warmup_min": 3, "keep_tokens": 1},
    {"caption_template": "object", "trigger_word": "sks"},
    {"caption_template": "style"},
    {"trigger_word": "forest"},
    {"trigger_word": "  "},
    {"sidecars": "joined"},
    {"sidecars": "joined", "shuffle_caption": True, "enable_wildcard": True},
    {"sidecars": "joined", "caption_lines": "all", "keep_tokens": 1, "shuffle_caption": True, "trigger_word": "sks"},
    {"sidecars": "drawn"},
    {"sidecars": "drawn", "sentence_share": 0.2, "shuffle_caption": True},
    {"sidecars": "drawn", "sentence_share": 0.0, "trigger_word": "sks", "keep_tokens_separator": "|||"},
    {"sidecars": "drawn", "sentence_share": 1.0, "caption_tag_dropout_rate": 0.5},
]


def drawn_captions() -> list[Caption | str]:
    """Texts of all forms: few and many tags, lines, separators, both files, empty ones."""
    draw, found = random.Random(0), list[Caption | str]()
    for number in range(30):
        tags = draw.sample(TAGS, number % len(TAGS))
        text = ", ".join(tags)
        if number % 5 == 1:
            text = text.replace(", ", " ||| ", 1).replace(", ", " ||| " if number % 2 else ", ", 1)
        if number % 7 == 3:
            text = f"{text}\n\n  {SENTENCE}\nthird {{{{line}}}} of {{a|b|c}}, x"
        if number % 3 == 2:
            found.append(Caption(text, "file", Path("a.txt"), sentence=SENTENCE, tags=text))
        else:
            found.append(text.replace(", ", ";") if number % 11 == 4 else text)
    return [*found, "", " , ,", "}a{b|c", "{a|b}}", "Forest of SKS, fox", "[name] here"]


@producer
def drawn() -> Facts:
    """Every caption of three epochs under each set of options."""
    captions = drawn_captions()
    for number, (options, mode) in enumerate(product(OPTIONS, ("none", "kohya"))):
        settings = CaptionSettings(**options, compatibility=mode)
        found = [
            pipeline.training_caption(
                pipeline.ImageUse(
                    ("fox", f"{n}.png"), repeat, each, settings, "fox" if n % 2 else "", epoch * 7 + repeat
                ),
                5,
                epoch,
                40,
            )
            for n, each in enumerate(captions)
            for epoch, repeat in product(range(3), range(2))
        ]
        wholes = [each for each in captions if isinstance(each, Caption)]
        yield (
            f"{number} {options} {mode}",
            [
                pipeline.is_random(settings),
                pipeline.needs_steps(settings),
                digest(found),
                found[46:49],
                digest([pipeline.plain_caption(each, settings, "fox") for each in captions if isinstance(each, str)]),
                [digest([pipeline.longest_captions(each, settings, "fox") for each in wholes])],
                pipeline.caption_preview(wholes[1], settings, 3, ("a", "b"), 2, repeats=2, class_tokens="fox")[-1],
                pipeline.caption_preview(
                    wholes[2], settings, 3, ("a", "b"), 3, total_steps=9, step_of=lambda e, r: 3 * e + r
                )[-1],
            ],
        )
    uses = [pipeline.ImageUse(("a", "b"), n % 3, "{x|y}, z", CaptionSettings(enable_wildcard=True)) for n in range(6)]
    yield "variants", pipeline.caption_variants_of_epoch(uses, 1, 0)


@producer
def split() -> Facts:
    for text in ("", "a", " a , b,,c ", "a;b", "a, b, c, d"):
        yield f"tags {text!r}", [pipeline.split_tags(text, mark, keep) for mark in ",;" for keep in (0, 1, 2, 9)]
    yield "lines", [files.lines_of(text) for text in ("", " a \n\n b", "a\r\nb", "\n", "x")]
    for options in ({}, {"caption_lines": "all"}, {"enable_wildcard": True}, {"caption_separator": ";"}):
        for mode in ("none", "kohya"):
            settings = CaptionSettings(**options, compatibility=mode)
            pairs = (("a b.", "c, d"), ("a\nb", "c\nd"), ("", "c"), ("a", ""), ("", ""))
            yield (
                f"joined {options} {mode}",
                [files.join_texts(*pair, settings) for pair in pairs] + [files.join_texts("a", "b", settings, "+")],
            )


TEXTS = (
    "a red fox, running",
    "Größe übel naïve café",
    "лиса в лесу и снег",
    "赤い狐、森の中で走る",
    "빨간 여우 숲 속",
    "红色的狐狸在森林里",
    "“curly” – dash",
)
CODECS = "utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 cp932 euc_jp euc_kr gbk cp1251 cp1252 latin-1".split()


@producer
def encoded() -> Facts:
    """Texts in each encoding that has their letters, whole, cut off, with zeros and with wrong bytes."""
    for text in TEXTS:
        found = {}
        for codec in CODECS:
            try:
                data = text.encode(codec)
            except UnicodeEncodeError:
                continue
            forms = (
                data,
                data[:-1],
                data + b"\0",
                data[:5] + b"\0" + data[5:],
                data[:4] + b"\xff" + data[4:],
                data * 3,
                data[:3],
            )
            results = [encodings.decode_text(each) for each in forms]
            found[codec] = [[each.encoding, each.guessed, digest(each.text)] for each in results]
        yield text, found
    odd = (
        b"",
        b"\0",
        b"\0\0\0",
        b"\xff\xfe",
        b"\xff\xfea",
        b"\xef\xbb\xbf",
        b"\x80",
        b"abc\xe4",
        b"a\0b\0",
        b"\0a\0b",
        b"\xff" * 9,
    )
    yield "odd", [encodings.decode_text(each) for each in odd]


NAMES = "fox_01 IMG_0231 a-b_c.d 0001 red_fox (2) __x__ 12_fox 2024-01-02 fox12_3 名前_1 a v1.2 x.y.z-7 _9".split() + [
    "a  b",
    "",
]


@producer
def named() -> Facts:
    for name in NAMES:
        yield (
            f"name {name}",
            [
                words.name_words(name),
                words.name_words(name, leading=False),
                words.name_words(name, trailing=False, replaced="_"),
                words.number_of(name),
                words.tag_words(name),
            ],
        )
    pattern = words.word_pattern(["fox", "red fox", "a+b"])
    yield (
        "pattern",
        [[match.span() for match in pattern.finditer(text)] for text in ("a red fox", "foxes fox", "a+b, FOX")],
    )


def image(path: Path, **more) -> ImageInfo:
    return ImageInfo("fox", path.name, path, 8, 8, 1, 1, class_tokens=" fox ", **more)


@producer
def read() -> Facts:
    """The caption of an image next to files of all kinds, and where an edit goes."""
    layouts = {
        "none": {},
        "txt": {"a.txt": "tags, x\r\n"},
        "caption": {"a.caption": "A sentence."},
        "both": {"a.txt": "tags", "a.caption": "A sentence.\nAnother."},
        "blank txt": {"a.txt": " \n", "a.caption": "A sentence."},
        "blank both": {"a.txt": "", "a.caption": ""},
        "blank caption": {"a.txt": "tags", "a.caption": ""},
        "whole name": {"a.png.txt": "whole"},
        "upper": {"A.TXT": "upper"},
        "utf-16": {"a.txt": "café".encode("utf-16")},
        "latin": {"a.txt": "café".encode("latin-1"), "a.caption": "naïve".encode("cp1252")},
        "other": {"a.tags": "other"},
    }
    for name, beside_it in layouts.items():
        with folder() as root:
            for file, text in beside_it.items():
                beside(root / file, text)
            found = {}
            info = image(root / "a.png", sidecars=tuple(sorted(beside_it)), sidecar_states=((1, 1),) * len(beside_it))
            for extension, sidecars in product(("auto", ".caption", ".tags"), ("one", "joined", "drawn")):
                settings = CaptionSettings(caption_extension=extension, sidecars=sidecars)
                found[f"{extension} {sidecars}"] = each = files.read_caption(info, settings)
                memo = root / "memo.sqlite"
                again = [captions_of([info], [settings], memo)[info.key] for _ in range(2)]
                assert again == [each, each] and each.missing == (each.source in ("words", "none"))
            found["edited"] = [files.editable_caption(info, CaptionSettings(sidecars="joined")).text, each.whole]
            changes = [files.caption_change(info.path, " new\r\n", ending) for ending in ("auto", ".caption")]
            yield name, found | {"change": changes, "over": files.caption_change(info.path, "b", over="tags, x")}
    with folder() as root:
        beside(root / "foo.txt", "of the whole image")
        face = image(root / "foo_0040_0030_0020_0020.png")
        yield "face", [files.read_caption_file(face), files.read_caption_file(face, ".caption")]
        metadata = image(root / "b.png", metadata_caption="a\r\nb", metadata_texts=("a", "b"))
        for mode in ("one", "joined", "drawn"):
            yield f"metadata {mode}", files.read_caption(metadata, CaptionSettings(sidecars=mode))
        yield "metadata empty", files.read_caption(image(root / "c.png", metadata_caption=""), CaptionSettings())
        for name in ("x.png", "x.jpg", "X.txt", "x.png.txt", "x.caption", "y.png", "y.png.txt", "y.txt"):
            beside(root / name, name)
        index = files.SidecarIndex()
        yield "index", [index.of(root / name) for name in ("x.png", "x.jpg", "y.png", "z.png")]
        yield "as file", [files.caption_bytes(text) for text in ("", " ", "a\rb", "ü ")]


@producer
def histories() -> Facts:
    """A change, an edit, an undo and a redo of five files, with one changed by others."""
    with folder() as root:
        names = [beside(root / f"{n}.txt", f"old {n}") for n in range(5)]
        history = History(root / "history")
        states = []

        def note(title: str, done) -> None:
            entry = history.entry(done.id) if done.id else None
            about = {key: value for key, value in entry.about.items() if key != "undoes"} if entry else None
            texts = [path.read_bytes().decode("latin-1") if path.exists() else None for path in names]
            states.append([title, done.written, done.changed_since, entry and entry.title, about, texts])

        edit = [Change(path, path.read_bytes(), f"new {path.stem}".encode()) for path in names[:3]]
        first = history.apply("Edit", [*edit, Change(names[3], b"another", b"x")], about={"task": "tag"})
        note("edit", first)
        note("delete", second := history.apply("Delete", [Change(names[4], b"old 4", None)]))
        note("nothing", history.apply("Nothing", [Change(names[0], b"a", b"a")]))
        beside(names[1], "by others")
        note("undo", third := history.undo(first.id))
        note("redo", history.undo(third.id))
        note("undo delete", history.undo(second.id))
        more = history.apply("More", [Change(names[3], b"old 3", b"caf\xe9")], resume=first.id)
        note("more", more)
        note("utf-8", files.rewrite_as_utf8(history, names))
        states.append(["one", files.save_caption(history, root / "0.png", "saved", over="new 0").written])
        yield "states", states
        yield (
            "changes",
            [[each.title, len(history.changes(each.id)), history.file_count(each.id)] for each in history.entries()],
        )
        yield "of", [[entry.title, change.old, change.new] for entry, change in history.changes_of(names[0], 3)]
        yield "gone", refused(lambda: history.undo("123"))
        yield "ended", [history.is_settled(first.id), history.unfinished({"files": 1}), history.damaged_lines(first.id)]


@producer
def pruned() -> Facts:
    """The changes that are left of eight, by the limits of their number and of their size in changes."""
    for every, most, size in product((1, 3), (20, 6, 3), (60.0, 2.5, 0.5)):
        with folder() as root:
            file, changes = beside(root / "a.txt", "0"), History(root / "history")
            changes.apply("Edit 0", [Change(file, b"0", b"1")])
            each = next((root / "history").rglob("*.jsonl")).stat().st_size
            limits = {"MAX_CHANGES": most, "MAX_HISTORY_BYTES": int(size * each), "LARGE_CHANGE": 10 * each}
            with patch.multiple(history_file, PRUNE_EVERY=every, **limits):
                for n in range(1, 8):
                    text = str(n + 1).encode() * (1 if n % 3 else 10 * each)
                    changes.apply(f"Edit {n}", [Change(file, file.read_bytes(), text)])
            yield f"{every} {most} {size}", " ".join(entry.title[5:] for entry in changes.entries())
