"""The optimizers as people look through them: the searchable list of the page, and docs/optimizers.md.

`python -m core.settings.optimizer_list` writes the second. A test fails when it is stale.
"""

from __future__ import annotations

from pathlib import Path

from core.settings.optimizers import SHORT, Entry, catalog

TARGET = Path(__file__).resolve().parents[2] / "docs" / "optimizers.md"
TRAITS = {
    "adapts": "finds the step size itself: rate 1",
    "one_rate": "one rate for all parts",
    "averages": "saves and draws its averaged weights",
    "draws": "draws random numbers, by seed",
    "eight_bit": "memory of gradients in 8 bits",
}


def choices(device: str = "") -> list[tuple[str, str]]:
    """[(label, name)] for a list with search, sd-scripts' names first: those offered, and with a device ("cpu",
    "cuda:0") those that it runs."""
    kind = device.partition(":")[0]
    return [
        (label(entry), name)
        for name, entry in catalog().items()
        if entry.offered and (not kind or not entry.only_on or kind in entry.only_on)
    ]


def label(entry: Entry) -> str:
    """ "CAME (pytorch_optimizer)"; a name of sd-scripts stands alone."""
    return entry.name if entry.name in SHORT else f"{entry.path.rsplit('.', 1)[-1]} ({entry.path.rsplit('.', 1)[0]})"


def refused() -> list[tuple[str, str]]:
    """[(path, reason)] of those that are not offered."""
    return [(entry.path, entry.reason) for entry in catalog().values() if not entry.offered]


def about(entry: Entry) -> str:
    """What is special about it, in a few words; "" for most."""
    words = [text for trait, text in TRAITS.items() if trait in entry.traits]
    return "; ".join([*words, *([f"on {', '.join(entry.only_on)} only"] if entry.only_on else [])])


def render() -> str:
    offered = [entry for entry in catalog().values() if entry.offered]
    lines = [
        "# Optimizers",
        "",
        "Written by `python -m core.settings.optimizer_list`. Each of these trained a small net for three steps, was saved, and went",
        "on from its state as if it had never stopped, to the bit. `optimizer.optimizer_type` takes the name in the first column;",
        "names of sd-scripts in any case. Arguments go into `optimizer.optimizer_args`, one `name=value` a line.",
        "",
        "Code outside this list runs only if the owner of the machine allows its module: `--allow-module NAME`, or a line in",
        "`allowed_modules.txt`. A preset can name it, and cannot allow it.",
        "",
        f"## Offered ({len(offered)})",
        "",
        "| name | class | arguments | |",
        "|---|---|---|---|",
    ]
    for entry in offered:
        arguments = ", ".join(f"`{name}`" for name in entry.arguments)
        lines.append(f"| `{entry.name}` | {entry.path} | {arguments} | {about(entry)} |")
    rest = refused()
    lines += ["", f"## Not offered ({len(rest)})", "", "| class | why |", "|---|---|"]
    lines += [f"| {path} | {reason.replace('|', ' ')} |" for path, reason in rest]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from core.record.atomic import write_text

    write_text(TARGET, render())
    print(f"wrote {TARGET.name}")
