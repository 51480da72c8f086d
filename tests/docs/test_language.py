"""One glossary for settings, messages, page and guides: words that the field does not use occur in none of them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.record.workspace import PROJECT
from core.settings.base import declared
from core.settings.job import JOBS

# What not to write (ignoring case) -> what to write.
NOT = {
    r"\bpictures?\b": "image",
    r"\bdraw(s|n|ing|ings)?\b": "generate, sample",
    r"\bgraphics cards?\b|\b(video|a|your|small|two|several|each) cards?\b": "GPU",
    r"\bmain memory\b": "RAM",
    r"\bpass(es)? over (each|every|the) images?\b|\b\d+ passes\b": "epoch",
    r"\bcurves?\b": "learning rate scheduler",
    r"\blearn(s|ed)? by heart\b": "overfit",
    r"\bwhat learns\b|\bstays as it is\b": "trained, frozen",
    r"\bnew words?\b|\bwords? to begin with\b": "token, initializer",
    r"\bwhat keeps the class\b": "prior preservation",
    r"\bshare (is |are )?held out\b": "validation split",
    r"\bfiles? for people\b": "checkpoint",
    r"\bgo(es)? on\b|\bgoing on\b": "resume, continue",
    r"\bblocks that compute twice\b": "gradient checkpointing",
    r"\bstep within the backward pass\b": "fused backward pass",
    r"\blongest weight change\b": "max weight norm",
    r"\bleaves? out a share\b": "dropout",
    r"\bby chance\b|\brecolou?r(ed|s)?\b": "random, color augmentation",
    r"\bshort memory\b": "EMA warmup",
    r"\bwhere c falls\b": "Huber schedule",
    r"\bmemory lies in\b": "offload optimizer state to",
    r"\b(is|are|was|were) told\b|\bto mend\b": "reported, fix",
    r"\bof (one's|its|their|your) own making\b|\bof one's own\b": "own",
    r"(?<!there )\b(is|are) no (lora|vae|model|number|file|folder|image|embedding|whole|mask|zip|device|way)\b": "is not a",
    r"\b\w*(colour|favour|behaviour|neighbour|harbour|flavour)\w*\b": "American spelling",
    r"\b\w*(regularis|normalis|initialis|optimis(e|ing)|recognis|labell)\w*\b|\bgrey(ed|s)?\b": "American spelling",
}
MEANT = (  # where such a word is the right one
    "loss curve",
    "smoothed curve",
    "full curve",  # of validation losses
    "drawn faces",  # in drawings, as opposed to photos
    "drawing or photo",
    '"picture" is "image"',  # the changelog names the former term
    "a cartoon picture -> a picture",  # words that captions have
    "a cartoon anime drawing -> a drawing",
    "a cartoon drawing -> a drawing",
    "a picture of",  # the beginning of captions that BLIP continues
    "Whole picture",  # A1111's name of an inpaint area
    "Draw Things",  # a program
    "class picture",  # the address of random numbers, which keeps seeds valid
)
# Everything is to be checked; these are not clean yet.
LATER = (
    "core/cli",
    "tabs",
)
PATTERNS = {re.compile(found, re.IGNORECASE): instead for found, instead in NOT.items()}
EXCEPTIONS = re.compile("|".join(map(re.escape, MEANT)), re.IGNORECASE)
CODE = re.compile(r"^```.*?^```|`[^`]*`", re.MULTILINE | re.DOTALL)


def misused(text: str) -> list[str]:
    """["picture: write image"] for a text."""
    text = EXCEPTIONS.sub("", text)
    return [f"{hit[0]}: write {instead}" for found, instead in PATTERNS.items() for hit in found.finditer(text)]


def checked(*patterns: str) -> list[str]:
    """Files of the project, relative to it, without those of LATER."""
    found = sorted(path.relative_to(PROJECT).as_posix() for pattern in patterns for path in PROJECT.glob(pattern))
    return [name for name in found if not any(name == later or name.startswith(f"{later}/") for later in LATER)]


def strings_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the string literals with a space, docstrings excepted."""
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr):
            docstrings.add(node.body[0].value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            if node not in docstrings:
                yield node.lineno, node.value


@pytest.mark.parametrize("text", ["Pictures", "a LoRA is no model", "drawn images", "colour", "the run goes on"])
def test_a_misused_word_is_found(text):
    assert misused(text)


@pytest.mark.parametrize("text", ["drawn faces", "there is no folder", "a GPU", "a withdrawal", "the loss curve"])
def test_a_right_word_is_not(text):
    assert not misused(text)


@pytest.mark.parametrize("job", sorted({model.__name__: model for model in JOBS.values()}.values(), key=str))
def test_titles_helps_and_choices_of_settings_use_the_glossary(job):
    found = [
        f"{entry.path}: {each}"
        for entry in declared(job)
        for text in (entry.title, entry.help, entry.unit, entry.costs, *entry.labels.values())
        for each in misused(str(text))
    ]
    assert not found


@pytest.mark.slow
def test_messages_use_the_glossary():
    found = [
        f"{name}:{line}: {each}"
        for name in checked("core/**/*.py", "tabs/**/*.py", "webui.py")
        for line, text in strings_of(PROJECT / name)
        for each in misused(text)
    ]
    assert not found


def test_guides_use_the_glossary():
    found = [
        f"{name}: {each}"
        for name in checked("docs/*.md", "*/README.md", "core/*/README.md", "README.md", "CHANGELOG.md")
        if name != "docs/settings.md"  # written from the declarations, which are checked
        for each in misused(CODE.sub("", (PROJECT / name).read_text("utf-8")))
    ]
    assert not found
