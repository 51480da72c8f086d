"""Record what the producers yield: `python -m tests.facts.write [MODULE ...]`. Prints what changed."""

import sys

from tests import conftest  # noqa: F401  the surroundings of tests: one thread, no keys
from tests.facts.store import changes, modules, produced, record, recorded


def main(names: list[str]) -> None:
    for module in names or modules():
        found = produced(module)
        changed = list(changes(recorded(module), found))
        record(module, found)
        print(f"{module}: {sum(map(len, found.values()))} entries, {len(changed)} values changed")
        for line in changed[:20]:
            print(f"  {line}".encode("utf-8", "backslashreplace").decode())


if __name__ == "__main__":
    main(sys.argv[1:])
