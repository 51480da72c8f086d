"""Searches jobs that reach rules which no recorded job reaches, and lists them in seeds.txt: `python -m tests.facts.search`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests import conftest  # noqa: F401
from tests.facts import settings
from tests.facts.store import plain

TRIES = 60  # numbers for each method, family and topic
TWICE = 2  # times that each answer is wanted, in different jobs


def reached(found: object) -> Iterator[str]:
    """What tells a job's answers apart: codes with their settings, and the settings without effect."""
    for kind, rows in plain(found).items():
        yield from (kind + json.dumps(row[:3] if kind != "far" else row[:2]) for row in rows)


def main() -> None:
    gray = {method: settings.usually_gray(method) for method in settings.METHODS}
    seen: dict[str, int] = {}
    settings.SEEDS.write_text("")
    for name in settings.names():
        for key in reached(settings.answers(settings.random_job(name), gray[name.split()[0]])):
            seen[key] = seen.get(key, 0) + 1
    chosen = []
    for number in range(1, TRIES):
        for method in settings.METHODS:
            for family in settings.FAMILIES:
                for topic in settings.TOPICS:
                    name = f"{method} {family} {topic} {number}"
                    keys = set(reached(settings.answers(settings.random_job(name), gray[method])))
                    if any(seen.get(key, 0) < TWICE for key in keys):
                        chosen.append(name)
                        seen |= {key: seen.get(key, 0) + 1 for key in keys}
    settings.SEEDS.write_text("\n".join(chosen) + "\n", newline="\n")
    print(f"{len(chosen)} jobs, {len(seen)} answers")


if __name__ == "__main__":
    main()
