"""docs/optimizers.md: every optimizer that is offered, and why others are not."""

from core.record.workspace import PROJECT
from core.settings.optimization.optimizers import Entry, catalog

TARGET = PROJECT / "docs" / "optimizers.md"
TRAITS = {
    "adapts": "finds the step size itself: use learning rate 1",
    "one_rate": "one learning rate for all parts",
    "averages": "saves and samples with averaged weights",
    "draws": "uses random numbers, by seed",
    "eight_bit": "8-bit optimizer state",
}


def refused() -> list[tuple[str, str]]:
    """[(path, reason)] of optimizers that are not offered."""
    return [(entry.path, entry.reason) for entry in catalog().values() if not entry.offered]


def about(entry: Entry) -> str:
    """Its special properties in a few words; "" for most."""
    texts = [text for trait, text in TRAITS.items() if trait in entry.traits]
    return "; ".join([*texts, *([f"on {', '.join(entry.only_on)} only"] if entry.only_on else [])])


def render() -> str:
    offered = [entry for entry in catalog().values() if entry.offered]
    lines = [
        "# Optimizers",
        "",
        "Written by `./launch.sh docs`. Each of these trained a small net for three steps, was saved, and",
        "resumed bit for bit. `optimizer.optimizer_type` takes the name in the first column or the class, in upper or lower",
        "case. Arguments go into `optimizer.optimizer_args`, one `name=value` per line.",
        "",
        "Code outside this list runs only if the owner of the machine allows its module with `--allow-module NAME` or a line in",
        "`allowed_modules.txt`. A preset can name such a module but not allow it.",
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
    lines += ["", f"## Not offered ({len(rest)})", "", "| class | reason |", "|---|---|"]
    lines += [f"| {path} | {reason.replace('|', ' ')} |" for path, reason in rest]
    return "\n".join(lines) + "\n"
