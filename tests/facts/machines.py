"""The builds that are installed on every kind of machine, and dataclasses by what they allow."""

from __future__ import annotations

from dataclasses import is_dataclass
from itertools import product
from typing import Any

from core.machine_check.items import all_items
from core.setup import choose
from tests.facts.store import Facts, digest, producer
from tests.facts.tables import modules

PINS = choose.Pins("2.9", "0.1", "1.2", "1.3")
SYSTEMS = (
    ("Linux", "x86_64"),
    ("Linux", "aarch64"),
    ("Windows", "AMD64"),
    ("Windows", "ARM64"),
    ("Linux", "armv7l"),
    ("FreeBSD", "x86_64"),
)
CARDS = (
    (),
    ("3.5",),
    ("4.9", "5.0"),
    ("5.0",),
    ("6.1", "8.6"),
    ("7.0",),
    ("7.4",),
    ("7.5",),
    ("8.6",),
    ("9.0",),
    ("9.1",),
    ("10.0", "9.0"),
    ("12.0",),
)
DRIVERS = (None, "525.59", "525.60", "528.32", "528.33", "579.99", "580", "580.65.06")


def built(facts: choose.MachineFacts, want: str | None = None) -> list[Any]:
    build = choose.choose_build(facts, PINS, want)
    fallback = choose.on_default_index(build, facts, PINS)
    row = [
        build.name,
        build.title,
        build.index_url,
        build.torch,
        build.xformers,
        build.onnxruntime,
        len(build.notes),
        bool(build.problem),
    ]
    return [*row, fallback.index_url, fallback.xformers, fallback.onnxruntime, len(fallback.notes)]


@producer
def builds() -> Facts:
    """Builds by system, driver and GPUs, with the note count of each, and as wanted by hand."""
    for (system, machine), driver in product(SYSTEMS, DRIVERS):
        for cards in CARDS if driver else CARDS[:1]:
            facts = choose.MachineFacts(system, machine, driver, cards, glibc="2.28")
            yield f"{system} {machine} {driver} {' '.join(cards)}", built(facts)
    for nvidia, amd, (system, machine) in product((False, True), (False, True), SYSTEMS[:3]):
        yield (
            f"no driver {nvidia} {amd} {system} {machine}",
            built(choose.MachineFacts(system, machine, None, (), nvidia, amd, glibc="2.36")),
        )
    for glibc in ("", "2.27", "2.28", "2.9", "3.0"):
        yield f"glibc {glibc}", built(choose.MachineFacts("Linux", "x86_64", glibc=glibc))
    for machine, macos, translated in product(("arm64", "x86_64"), ("", "13.9", "14", "14.5"), (False, True)):
        yield (
            f"mac {machine} {macos} {translated}",
            built(choose.MachineFacts("Darwin", machine, macos=macos, translated=translated)),
        )
    for want, (system, machine) in product(choose.TITLES, SYSTEMS[:3]):
        yield (
            f"wanted {want} {system} {machine}",
            built(choose.MachineFacts(system, machine, "580", ("8.6",), glibc="2.36"), want),
        )


@producer
def classes() -> Facts:
    """Which dataclasses are frozen, compare, have slots or an order."""
    for module in modules():
        found = {}
        for name, kind in vars(module).items():
            if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__:
                params = kind.__dataclass_params__  # type: ignore[attr-defined]
                marks = [mark for mark in ("frozen", "eq", "order", "unsafe_hash") if getattr(params, mark)]
                found[name] = [*marks, *(["slots"] if "__slots__" in vars(kind) else [])]
        if found:
            text = {name: " ".join(marks) for name, marks in found.items()}
            yield module.__name__.removeprefix("core."), text if len(str(text)) < 400 else digest(text)


@producer
def checked() -> Facts:
    """Each item of the machine check: its group, longest seconds, what it needs and whether it is for a GPU alone."""
    for each in all_items():
        yield each.name, [each.group, each.seconds, each.needs, each.gpu]
