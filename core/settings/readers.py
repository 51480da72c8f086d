"""Which other programs cannot read network files of a kind, or compute a different result with them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from core.record.problems import Problem

READ, UNREAD, REFUSED, OTHER, RENAMED = "read", "unread", "refused", "other", "renamed"
DOES = {
    UNREAD: "does not read it",
    REFUSED: "refuses the file",
    OTHER: "computes another change",
    RENAMED: "reads it under diffusers' names alone",
}
CELLS = {READ: "yes", UNREAD: "no", REFUSED: "no, refuses the file", OTHER: "wrong", RENAMED: "with diffusers' names"}
# Program -> what the name of its folder, or of one above it, contains; the first match wins
PROGRAMS = {
    "ComfyUI": ("comfyui",),
    "Forge": ("forge",),
    "A1111": ("stable-diffusion-webui", "automatic1111", "a1111"),
    "InvokeAI": ("invokeai",),
    "diffusers": ("diffusers",),
}
NAMES_OF_KOHYA = ("ComfyUI", "Forge", "A1111")
FIX = "for these programs make a LoRA of its file with Convert LoRAs on Tools (network type LoRA)"


@dataclass(frozen=True)
class Misread:
    """How other programs read files of a network kind, or only its files with a certain option.

    by       {program: READ, UNREAD, REFUSED, OTHER or RENAMED}; with `option`, replaces the programs' entries without one
    option   description of the option; "" for all files of the kind
    applies  (the kind's settings, whether 3x3 convolutions train) -> whether the file of a training will have the option
    layer    (tensors of a layer in a file) -> whether the layer has the option
    """

    by: Mapping[str, str]
    option: str = ""
    applies: Callable[[Any, bool], bool] = lambda settings, conv: True
    layer: Callable[[Mapping[str, Any]], bool] = lambda tensors: True


READ_BY_NONE = Misread(dict.fromkeys(PROGRAMS, UNREAD))


def rows(misreads: Iterable[Misread]) -> dict[str, dict[str, str]]:
    """Return {option: {program: READ, UNREAD, REFUSED, OTHER or RENAMED}} for a network kind; option "" stands for files without one."""
    by_option = {"": dict.fromkeys(PROGRAMS, READ)}
    for each in misreads:
        by_option.setdefault(each.option, {}).update(each.by)
    return {option: by_option[""] | by for option, by in by_option.items()}


def problems(
    title: str, misreads: Iterable[Misread], where: str, programs: Iterable[str] = NAMES_OF_KOHYA
) -> Iterator[Problem]:
    """Yield advice naming the programs that cannot read files of a network kind, or misread them.

    title     name of the kind
    where     the setting that the advice belongs to
    programs  the programs to consider
    """
    by_option: dict[str, dict[str, str]] = {}
    for each in misreads:
        by_option.setdefault(each.option, {}).update(each.by)
    special = {name for option, by in by_option.items() if option for name in by}
    for option, by in by_option.items():
        here = {name: how for name, how in by.items() if name in programs and (option or name not in special)}
        deviations = {name: DOES[how] for name, how in here.items() if how != READ}
        if deviations:
            what = f"{title}{f' with {option}' if option else ''}: "
            what += ", ".join(f"{name} {deviations[name]}" for name in PROGRAMS if name in deviations)
            yield Problem(what, where, FIX, "advice", code="network.misread")


def program_of(folder: PurePath) -> str | None:
    """Return the program of PROGRAMS that `folder` belongs to, by its name or those of the folders above; None for others."""
    for name in (folder.name, *(each.name for each in folder.parents)):
        for program, words in PROGRAMS.items():
            if any(word in name.lower() for word in words):
                return program
    return None
