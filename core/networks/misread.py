"""Warnings about programs that do not read a network's file, or read it differently."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from core.formats.detect import identify
from core.formats.lora.names import group_by_module
from core.networks.adapter_file import LoraFile, lora_outline
from core.networks.kinds import kind_of_keys, kinds
from core.record.problems import Problem, ProblemsError
from core.settings import readers
from core.settings.readers import CELLS, PROGRAMS, UNREAD, Misread


def misread_problems(lora: LoraFile, programs: Iterable[str] = readers.NAMES_OF_KOHYA) -> list[Problem]:
    """Return advice about programs that do not read the file, or read it differently.

    lora       may be an outline
    programs   which to consider, by the names in `readers.NAMES_OF_KOHYA`
    """
    groups: dict[str, dict[str, Misread]] = {}
    for name, layer in group_by_module(lora.tensors).items():
        kind = kind_of_keys(layer, name)
        if kind is not None:
            misreads = {f"{number}": each for number, each in enumerate(kind.misread) if each.layer(layer)}
            groups.setdefault(kind.title, {}).update(misreads)
    where = lora.path.name if lora.path else ""
    return [
        problem for title, each in groups.items() for problem in readers.problems(title, each.values(), where, programs)
    ]


def file_misread_problems(path: Path, programs: Iterable[str] = readers.NAMES_OF_KOHYA) -> list[Problem]:
    """Return `misread_problems` of the file at `path`; [] if it is not a LoRA or cannot be read."""
    with suppress(ProblemsError):
        if path.is_file() and identify(path).kind == "lora":
            return misread_problems(lora_outline(path), programs)
    return []


def table() -> list[str]:
    """Return the lines of a Markdown table for the docs: which program reads which network kind and option."""
    lines = [f"| files of | {' | '.join(PROGRAMS)} |", "|---" * (len(PROGRAMS) + 1) + "|"]
    for kind in kinds().values():
        for option, by in readers.rows(kind.misread).items():
            name = f"{kind.title} with {option}" if option else kind.title
            lines.append(f"| {name} | {' | '.join(CELLS[by[program]] for program in PROGRAMS)} |")
    norms = {"diffusers": CELLS[UNREAD], "InvokeAI": "norm layers; biases in full differences"}
    cells = [norms.get(program, CELLS[readers.READ]) for program in PROGRAMS]
    return [*lines, f"| trained norm layers and biases | {' | '.join(cells)} |"]
