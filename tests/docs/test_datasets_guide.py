"""The guides say what happens: their examples are run, and what they print is what the guides show."""

import pytest

from core.record import allowed
from tests.docs.guide import DOCS, Guide, blocks_of, forget_modules

WITH_EXAMPLES = sorted(path.name for path in DOCS.glob("*.md") if blocks_of(path))


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_guide_run_and_print_what_it_shows(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(allowed, "_by_flag", set())
    monkeypatch.syspath_prepend(str(tmp_path))
    guide = Guide(name, tmp_path, capsys)
    try:
        guide.run()
    finally:
        forget_modules("my_pictures")
    assert guide.ran == len(guide.blocks) > 0


def test_the_guides_that_have_examples_are_run():
    assert {"datasets.md", "class_pictures.md"} <= set(WITH_EXAMPLES)
    kinds = {block.kind for block in blocks_of(DOCS / "datasets.md")}
    assert kinds == {"text layout", "sh", "text output", "text captions", "toml", "json", "python"}
