"""Captioners: sources, taggers, sentences, edits and filters, and what is written."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.captioning import bulk, combining, described, edits, filters, identifiers, tag_lists
from core.captioning.sentences import cleaning, profiles
from core.captioning.source import metadata, sidecars, xmp
from core.captioning.tagger import labels, preprocess, profile, score_cache, sd_scripts, tags
from core.captioning.tagger.tagging import formatter, ignored_settings
from core.families.token_count import count_tokens, word_facts
from core.record.workspace import Workspace
from core.settings.caption import CaptioningSettings
from core.settings.captioning import sentences as sentence_settings
from core.settings.captioning.edits import CaptionEditSettings
from core.settings.captioning.sources import ImageTextSettings, SidecarSettings
from core.settings.captioning.tagger import TagTextSettings
from tests.facts.running import run
from tests.facts.samples import beside, noise, smooth, write
from tests.facts.store import Facts, digest, folder, producer, refused

TEXTS = [
    "",
    "red fox, blue_eyes, (snow), Forest",
    "a, b, A, a_b, b",
    "one\ntwo, fox\n\nblue dress",
    "foxglove, fox, x (y), \\(z\\)",
    " , ,",
]
TEXTS += ["A sentence about a fox.", "dress; blue dress; 1girl"]
EDITS: list[dict[str, Any]] = [
    {"edit": "add", "tags": "new, Fox, other"},
    {"edit": "add", "tags": "new", "place": "start"},
    {"edit": "add", "tags": "new, more", "place": "after", "after": "FOX"},
    {"edit": "add", "tags": "new", "place": "after"},
    {"edit": "remove", "tags": "a b, fox"},
    {"edit": "front", "tags": "fox, b, forest"},
    {"edit": "sort"},
    {"edit": "sort", "order": "frequency", "keep_first": 1},
    {"edit": "deduplicate"},
    {
        "edit": "imply",
        "implications": ["blue dress -> dress", "fox = animal", "animal -> nature", "a -> b", "b -> a", "x"],
    },
    {"edit": "imply", "implications": ["blue dress -> dress", "dress -> clothes", "fox=animal", "a -> b", "b -> a"]},
    {"edit": "imply"},
    {"edit": "replace", "find": "fox", "replace_with": "wolf, cub"},
    {"edit": "replace", "find": "fox", "replace_with": "wolf", "match": "text"},
    {"edit": "replace", "find": r"(\w+) fox", "replace_with": r"\1 wolf", "match": "regex"},
    {"edit": "replace", "find": "(", "match": "regex"},
    {"edit": "replace", "find": "a", "replace_with": r"\2", "match": "regex"},
    {"edit": "replace"},
    {"edit": "spaces"},
    {"edit": "underscores"},
    {"edit": "escape"},
    {"edit": "unescape"},
    {"edit": "lower"},
    {"edit": "prefix", "tags": "fox"},
    {"edit": "suffix", "tags": "fox"},
    {"edit": "separator", "separator": "; ", "new_separator": ", "},
    {"edit": "separator", "new_separator": " "},
    {"edit": "one_line"},
    {"edit": "file_name"},
    {"edit": "folder_name"},
    {"edit": "add", "tags": "x", "separator": "  "},
]
FILTERS = [
    *(
        "",
        "fox",
        "red fox",
        "!fox",
        "fox & !forest",
        "fox | dress",
        "(fox | b) & a",
        "not fox and b",
        "fox forest",
        '"red fox"',
        "*fox*",
        "f*x",
    ),
    *(
        "text:fox",
        "text:f*x",
        r"re:\bfox\b",
        "name:img",
        "folder:cat",
        "bucket:512x512",
        "found:blur",
        "tokens:>3",
        "tokens:4",
        "chars:>=15",
    ),
    *(
        "tags:<2",
        "tags:>=4",
        "width:<=512",
        "height:=768",
        "date:>=2020-01-01",
        "date:<2020-01-01",
        "is:missing",
        "is:empty",
        "is:captioned",
    ),
    *(
        "is:other",
        "tokens:x",
        "date:x",
        "(fox",
        "fox)",
        '"fox',
        "fox &",
        "!",
        "x" * 2001,
        "!" * 51 + "a",
        "!" * 49 + "a",
        "saber_(fate)",
        "foo:bar",
    ),
]


def items() -> list[bulk.Item]:
    found = []
    for number, text in enumerate(TEXTS):
        named = {
            "name": f"IMG_{number}-fox.png" if number % 2 else f"{number}.png",
            "folder": "my_cat" if number % 3 else "dog",
        }
        sizes = {
            "width": 512 + 64 * (number % 3 - 1),
            "height": 768 if number % 2 else 512,
            "bucket": "512x512" if number % 2 else "",
        }
        found.append(
            bulk.Item(
                text=text,
                missing=number == 5,
                tokens=count_tokens(text),
                changed=1.6e9 - 1e7 * number * 2,
                findings=("blur",) if number == 3 else (),
                **named,
                **sizes,
            )
        )
    return found


@producer
def edited() -> Facts:
    for options in EDITS:
        yield (
            str(options),
            refused(
                lambda options=options: [each.after for each in bulk.planned(items(), CaptionEditSettings(**options))]
            ),
        )
    yield "lines", [each.line for each in bulk.planned(items()[:2], CaptionEditSettings(edit="add", tags="x"))]
    yield (
        "problems",
        [edits.edit_problems(CaptionEditSettings(edit=each)) for each in ("add", "prefix", "separator", "lower")],
    )


@producer
def filtered() -> Facts:
    known = items()
    for expression in FILTERS:
        found = refused(lambda expression=expression: [known.index(each) for each in bulk.chosen(known, expression)])
        named = filters.is_expression(expression), filters.unknown_field_in(expression)
        yield (
            f"{expression[:40]} {len(expression)}",
            [found, *named, sorted(refused(lambda expression=expression: sorted(filters.fields_in(expression))))],
        )
    yield (
        "words",
        [filters.is_expression(each) for each in ("black and white", "a AND b", "9:16", "wow!", "(!a", "name:x", "a*")],
    )
    yield "fields", filters.field_names()
    yield "counts", [bulk.tag_counts(known, 4), bulk.tags_together(known, "FOX", 3)]


@producer
def combined() -> Facts:
    """New captions joined with those of the files."""
    for existing in ("missing", "keep", "replace", "append", "prepend", "line"):
        for options in (
            {},
            {"prefix": "p", "suffix": "s"},
            {"separator": "; ", "remove_words": [r"\bfox\b", "a (?=b)"]},
        ):
            settings = CaptioningSettings(existing=existing, **options)
            pairs = [
                (old, new)
                for old in ("", "red, Fox", "line one\nnew")
                for new in ("", "new", "fox, new, NEW", " a  b ,\n fox")
            ]
            yield (
                f"{existing} {options}",
                [combining.combined(old, new, settings) for old, new in pairs]
                + [combining.cleaned("a\nb", settings, "\n")],
            )
    yield "parts", [combining.parts_of(text, mark) for text in TEXTS for mark in (", ", ";", "\n", " ")][:16]
    yield "comparable", [combining.comparable(each) for each in ("A_b  c", "x \\(y\\)", " ß ")]
    for text in ("a\x00b", "\ud800", "x" * 100_001, "x" * 100_000, " , ", "plain"):
        found = described.from_text(Path("a.png"), text, described.CaptionResult("nothing"))
        yield (
            f"text {text[:5].encode('utf-8', 'replace')!r} {len(text)}",
            [found.text[:9], found.problem, found.means_empty],
        )
    yield "scores", described.with_scores((("a", 0.125), ("b", None), ("c", 0.999)))


SCORES = [
    ("general", "safe", "rating", 0.8),
    ("explicit", "x", "rating", 0.1),
    ("best", "q", "quality", 0.3),
    ("worst", "q", "quality", 0.3),
]
NAMES = ["1girl", "long_hair", "hair", "^_^", "blue_eyes", "a_(b)", "low", "snow,ice"]


def scored(seed: int) -> list[tags.Scored]:
    draw = random.Random(seed)
    found = [(tags.Label(name, "general"), round(draw.random(), 3)) for name in NAMES]
    found += [
        (tags.Label("saber_(fate)", "character"), 0.9),
        (tags.Label("miku", "character", ("vocaloid", "idol")), round(draw.random(), 3)),
    ]
    found += [
        (tags.Label("fate", "copyright"), 0.7),
        (tags.Label("artist_x", "artist"), 0.5),
        (tags.Label("highres", "meta"), 0.36),
    ]
    return found + [(tags.Label(name, category), score) for name, _, category, score in SCORES]


TAG_OPTIONS: list[dict[str, Any]] = [
    {},
    {"thresh": 0.35},
    {"general_threshold": 0.5, "character_threshold": 0.95, "copyright_threshold": 2.0, "artist_threshold": 0.5},
    {"mcut": True},
    {"max_tags": 3, "rating_tag": "last"},
    {"undesired_tags": "hair, *eyes, 1girl"},
    {"wanted_tags": "*hair*, fate"},
    {"remove_overlap": True, "remove_underscore": False},
    {"tag_replacement": "1girl,woman;long_hair,hair"},
    {"tag_replacement": "1girl"},
    {"character_tag_expand": True, "escape_parentheses": True},
    {"tag_weights": True, "order": "score", "rating_tag": "first", "quality_tag": "last"},
    {"always_first_tags": "solo, blue eyes", "insert_always_first": True},
    {"always_first_tags": "solo, blue_eyes", "character_tags_first": True, "caption_separator": "; "},
    {"quality_tag": "first", "rating_threshold": 0.9, "quality_threshold": 0.2},
    {"caption_separator": " "},
]


@producer
def tagged() -> Facts:
    """The caption from the scores of three images under each set of options."""
    for options in TAG_OPTIONS:
        for mode in ("none", "sd-scripts-0.9"):
            settings = TagTextSettings(**options, compatibility=mode)

            def texts(settings=settings):
                form = formatter(settings, {"general": 0.35, "character": 0.6})
                return [[found.text, found.scored[:2]] for found in (form(scored(seed)) for seed in range(3))]

            yield f"{options} {mode}", [refused(texts), ignored_settings(settings)]
    yield "items", [tags.items_of(each) for each in ("", "a, b\\,c\nd,,", " x ;")]
    yield (
        "pairs",
        [refused(lambda each=each: tags.pairs_of(each)) for each in ("a,b;c\\,d,e", "a,b,c", "a,", ";\n", "a,b;")],
    )
    yield (
        "sd-scripts pairs",
        [refused(lambda each=each: sd_scripts.pairs_of(each)) for each in ("a,b;c\\,d,e", "a,b;", "", "a , b")],
    )
    yield "wildcards", [tags.wildcard_pattern(each) for each in ("a", "a*", "*a*b*", "a.b*")]
    yield "cuts", [tags.mcut(each) for each in ([0.9, 0.8, 0.2], [0.5], [0.9, 0.1])]
    yield (
        "expanded",
        [
            tags.expanded(tags.Tag(name, kind, 1.0))
            for name in ("a_(b)", "(b)", "a_()", "a(b)c")
            for kind in ("character", "general")
        ],
    )
    yield (
        "appended",
        [sd_scripts.appended(before, ("a", "b"), mark) for before in ("", "a, c\n", "b;c") for mark in (", ", ";")],
    )
    defaults = {"general": 0.4}
    yield (
        "thresholds",
        [
            tags.threshold_of(each, TagTextSettings(thresh=thresh), defaults)
            for each in ("general", "character", "rating")
            for thresh in (None, 0.7)
        ],
    )
    tagged_text = tags.Tagged("a, b", ("a", "b"), (("a", 0.5), ("b", 0.4)))
    join = sd_scripts.make_join(tagged_text, ", ")
    yield (
        "joined",
        [join("a, c", CaptioningSettings(existing=each)) for each in ("append", "prepend", "line", "replace")],
    )


@producer
def tables() -> Facts:
    """Label tables, tag lists and scores that are kept."""
    forms = {
        "csv": ("a.csv", "tag_id,name,category,count\n1,general,9,5\n2,1girl,0,5\n3,miku,4,5\n4,x,custom,1\n"),
        "ips": ("a.csv", 'name,category,ips\nmiku,4,"[""vocaloid""]"\nfox,0,\n'),
        "bad ips": ("a.csv", "name,category,ips\nmiku,4,3\n"),
        "few columns": ("a.csv", "name,category\nfox\n"),
        "no category": ("a.csv", "name,category\nfox,\n"),
        "no header": ("a.csv", "a,b\nfox,0\n"),
        "empty name": ("a.csv", "name,category\n ,0\n"),
        "long name": ("a.csv", f"name,category\n{'x' * 300},0\n{'x' * 301},0\n"),
        "none": ("a.csv", "name,category\n"),
        "latin": ("a.csv", "name,category\ncaf\xe9,0\n".encode("latin-1")),
        "mapping": ("a.json", '{"0": {"tag": "a", "category": "General"}, "2": {"tag": "b", "category": "rating"}}'),
        "camie": (
            "a.json",
            '{"dataset_info": {"tag_mapping": {"idx_to_tag": {"0": "a", "1": "b"}, "tag_to_category": {"a": "artist"}}}}',
        ),
        "bad number": ("a.json", '{"x": {"tag": "a", "category": "general"}}'),
        "no kinds": ("a.json", '{"idx_to_tag": {"0": "a"}}'),
    }
    with folder() as root:
        for name, (file, text) in forms.items():
            read = labels.read_csv if file.endswith("csv") else labels.read_mapping
            path = beside(root / file, text)
            yield (
                name,
                refused(
                    lambda read=read, path=path: [[each.name[:9], each.category, each.series] for each in read(path)]
                ),
            )
        for text in ("['a', 'rating:safe']", "('a',)", "[1]", "no", "[]", "['" + "a" * 600_000 + "']"):
            yield f"metadata {text[:20]}", refused(lambda text=text: labels.read_metadata(text, root / "m.onnx"))
        lists = root / "models" / "tag_lists"
        beside(
            lists / "a.csv", '1girl,0,6008644,"sole_female,girl"\nlong_hair,0,100\nlong_legs,0,300,\nblue_eyes,0\n\n'
        )
        beside(lists / "b.csv", "long_dress,5,50\n" + "x" * 201 + ",0,1\n")
        beside(lists / "c.csv", "")
        known, problems = tag_lists.tag_lists(Workspace(root / "outputs", root / "models"))
        yield (
            "lists",
            [
                len(known),
                problems,
                [known.complete(text, most) for text in ("long", "Long ", "g", "sole", "", "zz") for most in (1, 5)],
            ],
        )
        yield "rows", tag_lists.read_tag_list(lists / "a.csv")
        space = Workspace(root / "outputs", root / "models")
        images = [write(root / "set" / f"{number}.bmp", noise(8, 8, number)) for number in range(4)]
        states = []
        for round_ in range(3):
            cache = score_cache.ScoreCache(space, "model", {"general": 0.3 + round_ / 10})
            for number, path in enumerate(images[: 4 - round_]):
                cache.add(path, [(label, score + round_) for label, score in scored(number)[:3]])
            waiting = cache.waiting
            cache.close()
            file = cache._folder(root / "set").path
            found = [cache.find(path) for path in images]
            states.append(
                [
                    waiting,
                    cache.waiting,
                    file.read_text().count("\n"),
                    [[each and [score for _, score in each.scored], limits] for each, limits in found],
                ]
            )
        yield "scores", states
        yield "kept at", score_cache.scores_folder(space, "model").name
        with open(file, "ab") as handle:
            handle.write(b'{"image": "half')
        again = score_cache.ScoreCache(space, "model", {})
        again.add(images[3], scored(9)[:2])
        again.close()
        yield "after a cut", [each is not None for each, _ in map(again.find, images)]
        file.write_text("something else\n")
        yield "damaged", refused(lambda: score_cache.ScoreCache(space, "model").find(images[0]))["refused"][0][0]


@producer
def prepared() -> Facts:
    """An image as the input of each tagger."""
    with folder() as root:
        path = write(root / "a.png", smooth(50, 30))
        sizes = {
            "wide": path,
            "tall": write(root / "b.png", smooth(20, 45, 2)),
            "double": write(root / "c.png", noise(64, 64)),
        }
        for key, each in profile.PROFILES.items():
            if "wd-" in key and "eva02" not in key:
                continue
            for mode in ("none", "sd-scripts-0.9"):
                made = [preprocess.make_prepare(each, (32, 32), mode)(image) for image in sizes.values()]
                yield (
                    f"{key} {mode}",
                    [
                        [
                            list(values.shape),
                            *(
                                round(float(value), 1)
                                for value in (values.mean(), values[..., 0].mean(), values[0].mean(), values.std())
                            ),
                        ]
                        for values in made
                    ],
                )
        yield (
            "wanted",
            [[key, each.required_files, each.folder_name, each.page] for key, each in profile.PROFILES.items()],
        )


ANSWERS = [
    "The image shows a fox.",
    "Sure! Here is the caption: **A fox** in *snow*. It runs. It",
    "- one\n- two",
    '"A fox."',
    "<think>x</think> A fox",
    "In this image, there is a fox, a wolf; snow",
]
ANSWERS += [
    "# Title\n\n[a fox](http://x) `code` __bold__",
    "a fox a fox a fox a fox a fox",
    "A fox. And 3.5 wolves? Yes! no end here",
    "caption:",
    "with the words 'x' on it",
    "",
]


@producer
def answers() -> Facts:
    """Captions from the answers of language models, and their prompts."""
    for options in ({}, {"plain_text": False}, {"whole_sentences": False}, {"max_caption_tokens": 5}, {"openers": []}):
        settings = sentence_settings.CaptionCleaningSettings(**options)
        yield (
            str(options),
            [cleaning.clean(text, settings, cut=cut, count=count_tokens) for text in ANSWERS for cut in (False, True)],
        )
    for text in ANSWERS:
        parts = [
            cleaning.plain(text),
            cleaning.to_sentence_end(text),
            cleaning.repetition(text),
            cleaning.without_repetition(text),
        ]
        thoughts = [cleaning.without_thinking(text, opened) for opened in (False, True)]
        words = [cleaning.missing_words(text, ["Fox", "wolf", " "]), cleaning.with_words(text, ["fox", "wolf"])]
        yield (
            text[:40],
            [*parts, *thoughts, *words, [cleaning.cut_to_tokens(text, most, count_tokens) for most in (3, 8)]],
        )
    phrases = [
        " ".join(["word"] * 4),
        " ".join(["word"] * 3),
        " ".join(["a b"] * 5),
        " ".join([" ".join(map(str, range(40)))] * 4),
        " ".join([" ".join(map(str, range(41)))] * 4),
    ]
    yield "repetitions", [cleaning.repetition(each) for each in phrases]
    facts = {"tags": "a, b", "name": "fox", "folder": "cats", "trigger": "sks"}
    for options in (
        {},
        {"caption_type": "danbooru", "caption_length": "short", "caption_words": 30},
        {
            "caption_type": "casual",
            "caption_length": "long",
            "person_name": "{trigger}",
            "lighting": True,
            "keep_pg": True,
        },
        {"prompt": "Use {tags} of {name} in {folder} {x}", "caption_start": "{name}:"},
    ):
        settings = sentence_settings.VlmSettings(**options)
        yield (
            f"prompt {options}",
            [
                profiles.prompt_of(settings, facts),
                profiles.prompt_problems(settings),
                profiles.PROFILES["vlm"].texts(settings, facts),
            ],
        )
    for kind in ("blip", "blip-2", "git", "florence2", "llava", "qwen2_vl", "other"):
        found = profiles.profile_of(kind)
        yield f"profile {kind}", found and [found.task, found.chat, found.settings, found.types[:3]]
    git = profiles.PROFILES["git_caption"]
    yield (
        "invented",
        [
            git.finish(text, sentence_settings.GitSettings())
            for text in ("a fox with the word snow on it", "a sign that says 'x' on it", "a fox")
        ],
    )
    yield (
        "details",
        [
            profiles.PROFILES["florence"].texts(sentence_settings.FlorenceSettings(detail=each), {})
            for each in ("brief", "detailed", "more-detailed")
        ],
    )


@producer
def words() -> Facts:
    """What is known of trigger words."""
    for word in (
        "sks",
        "fox",
        "the",
        "zwx",
        "xjf",
        "qqq",
        "jdm",
        "ohwx",
        "mira2",
        "red fox",
        "",
        "über",
        "SKS",
        "hgtv",
        "!",
    ):
        facts = word_facts(word)
        note = identifiers.identifier_note(word)
        yield (
            f"word {word}",
            [facts.tokens, facts.rank, facts.common, identifiers.has_a_meaning(word or "x"), len(note), digest(note)],
        )
    found = identifiers.candidates()
    yield (
        "candidates",
        [
            len(found),
            found[:3],
            digest(found),
            identifiers.propose(5, 1),
            identifiers.propose(5, 2, [found[0].upper()]),
        ],
    )


A1111 = "a fox, <lora:my fox:0.8>, (snow:1.2)\nsecond line\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 1, Size: 8x8"
GRAPH = {
    "1": {
        "class_type": "KSampler",
        "inputs": {"positive": ["2", 0], "negative": ["3", 0], "seed": 1, "model": ["4", 0]},
    },
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox of comfy"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad"}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
}
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" dc:title="Mira"><dc:description><rdf:Alt>
<rdf:li xml:lang="de">ein Fuchs</rdf:li><rdf:li xml:lang="x-default">a fox</rdf:li></rdf:Alt></dc:description>
<dc:subject><rdf:Bag><rdf:li>fox</rdf:li><rdf:li> snow </rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"""
PNG_TEXTS = {
    "a1111": {"parameters": A1111},
    "comfyui": {"prompt": json.dumps(GRAPH)},
    "novelai": {
        "Software": "NovelAI",
        "Description": "a fox of novels",
        "Comment": '{"prompt": "a fox of novels", "uc": "bad", "steps": 28}',
    },
    "invokeai": {"invokeai_metadata": '{"positive_prompt": "a fox, invoked"}'},
    "older invokeai": {"sd-metadata": '{"image": {"prompt": [{"prompt": "older"}]}}'},
    "description": {"Description": "just a text"},
    "damaged": {"prompt": "{broken"},
    "none": {"Software": "x"},
}


def sources(root: Path) -> Path:
    """Images with texts inside, next to them, and in their names."""
    place = root / "set"
    for name, texts in PNG_TEXTS.items():
        info = PngInfo()
        for key, text in texts.items():
            info.add_itxt(key, text)
        write(place / f"{name}.png", noise(8, 8), pnginfo=info)
    exif = Image.Exif()
    exif[0x010E], exif[0x9C9C], exif[0x9C9E] = (
        "a description",
        "xp comment".encode("utf-16-le") + b"\0\0",
        "k1;k2".encode("utf-16-le"),
    )
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a comment"
    write(place / "exif.png", noise(8, 8), exif=exif)
    camera = Image.Exif()
    camera[0x010E] = "OLYMPUS DIGITAL CAMERA"
    write(place / "3_red_cat" / "camera 07.png", noise(8, 8), exif=camera)
    write(place / "3_red_cat" / "IMG_0231.png", noise(8, 8), "red, cat")
    for name, content in {
        "a1111.png.json": {"tags": "a b_c d", "tags_character": "miku", "tags_meta": "x"},
        "comfyui.json": [{"tag_string": "one two", "tag_string_general": "one", "tag_string_artist": "two"}],
        "novelai.json": {"post": {"tags": {"general": ["p", "q&amp;r"], "species": ["fox"], "meta": ["m"]}}},
        "invokeai.json": {"caption": "A sentence, with a comma."},
        "exif.json": {"other": 1},
    }.items():
        beside(place / name, json.dumps(content))
    beside(place / "none.json", "{broken")
    return place


RUNS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("caption_names", {}, {}),
    (
        "caption_names",
        {"pattern": "{folder}, {name}, {number}, {words}", "leading_numbers": True, "trailing_numbers": True},
        {"existing": "append"},
    ),
    ("caption_names", {"pattern": "{kind} x", "expression": r"(?P<kind>[a-z]+)\d*\.png"}, {"existing": "replace"}),
    ("caption_names", {"pattern": "{nope}"}, {}),
    ("caption_names", {"pattern": " ", "expression": "("}, {}),
    ("caption_sidecars", {}, {"existing": "replace"}),
    (
        "caption_sidecars",
        {"input_separator": "space", "remove_underscore": False, "category_order": ["meta"], "excluded_categories": []},
        {"existing": "line"},
    ),
    ("caption_sidecars", {"sidecar_keys": []}, {}),
    ("caption_metadata", {}, {"existing": "replace", "prefix": "p"}),
    ("caption_metadata", {"combine": "all", "remove_loras": True, "remove_weights": True}, {"existing": "prepend"}),
    (
        "caption_metadata",
        {"text_fields": ["png.Description", "exif.xp_keywords", "exif.description"]},
        {"existing": "keep"},
    ),
    ("caption_metadata", {"text_fields": ["nope", "png."]}, {}),
]


@producer
def written() -> Facts:
    """Whole runs of the captioners that need no model: what they write, skip and count."""
    for number, (task, options, captioning) in enumerate(RUNS):
        with folder() as root:
            place = sources(root)
            groups = {"dataset": {"folder": str(place)}, task: options, "captioning": captioning}
            preview = run(task, root, groups | {"captioning": captioning | {"preview": 3}})
            yield (
                f"{number} {task} {options} {captioning}",
                [
                    preview.get("facts", preview),
                    run(task, root, groups),
                    {path.relative_to(place).as_posix(): path.read_text() for path in sorted(place.rglob("*.txt"))},
                ],
            )
            if number == 8:
                for ending in ("json", "jsonl", "md"):
                    file = root / f"all.{ending}"
                    found = run(task, root, groups | {"captioning": captioning | {"output_path": str(file)}})
                    yield (
                        f"{task} {ending}",
                        [found, file.read_text().replace(root.as_posix(), "~") if file.exists() else None],
                    )
                edit = {
                    "dataset": {"folder": str(place)},
                    "edit_captions": {"edit": "add", "tags": "new", "filter": "fox | tokens:>3"},
                }
                yield (
                    "edit",
                    [
                        run("edit_captions", root, edit | {"edit_captions": edit["edit_captions"] | {"preview": True}}),
                        run("edit_captions", root, edit),
                    ],
                )
                yield (
                    "only on the page",
                    run("edit_captions", root, edit | {"edit_captions": {"edit": "lower", "filter": "bucket:8x8"}}),
                )
                yield (
                    "history",
                    [
                        run("caption_history", root, {"caption_history": {"undo": undo}}, lines=0)
                        for undo in (None, "last", "nope")
                    ],
                )
                report = run("caption", root, {"dataset": {"folder": str(place)}})
                yield (
                    "report",
                    [
                        report,
                        run(
                            "caption", root, {"dataset": {"folder": str(place)}, "caption": {"write_missing": "a fox"}}
                        ),
                    ],
                )


@producer
def read() -> Facts:
    """Texts in XMP and JSON, prompts without weights."""
    for name, packet in {
        "whole": XMP,
        "bytes": XMP.encode("utf-16"),
        "no xml": "<a",
        "doctype": "<!DOCTYPE a><a/>",
        "deep": "<a>" * 101,
        "empty": "<a/>",
    }.items():
        yield f"xmp {name}", refused(lambda packet=packet: xmp.read_xmp(packet))
    many = XMP.replace("<rdf:li>fox</rdf:li>", "<rdf:li>fox</rdf:li>" * 1000)
    yield "xmp many", refused(lambda: len(xmp.read_xmp(many)["subject"]))
    yield "xmp most", refused(lambda: len(xmp.read_xmp(many.replace("<rdf:li> snow </rdf:li>", ""))["subject"]))
    for options in ({}, {"remove_loras": True, "remove_weights": True}):
        settings = ImageTextSettings(**options)
        yield (
            f"prompts {options}",
            [
                metadata.plain_prompt(text, settings)
                for text in (A1111, "<lora:a:1>, b, <lyco:c:1>,d", "((a)), [b], (c:0.5", "")
            ],
        )
    for value in ({"tags": "a, b"}, {"tags": ["a", 1, " "]}, {"tags": "a\nb c"}, {"post": [{"tags": "x"}]}, [], 3):
        yield f"json {value}", sidecars.tags_in(value, SidecarSettings())
    yield "fields", list(metadata.FIELDS)
    moved = [replace(each, fixed=True) for each in items()]
    yield "fixed", bulk.planned(moved, CaptionEditSettings(edit="lower"))
