"""The pages on other trainers: the names used most first, each name that the importer knows once."""

import re

import pytest

from workshop import trainer_docs


@pytest.mark.parametrize("page", trainer_docs.PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_names_of_its_importer_once_each_and_those_used_most_first(page):
    text = page.read_text("utf-8")
    assert text == trainer_docs.render(page), "run ./launch.sh docs"
    program = trainer_docs.PROGRAMS[page.stem.removeprefix("coming_from_")]
    first_cells = re.findall(r"^\| ((?:`[^`]+` ?)+)\|", text, re.MULTILINE)
    listed = [name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)]
    most = program.used_most.split()
    assert listed[: len(most)] == most and 40 <= len(most) <= 50
    assert sorted(listed) == sorted({name for row in program.rows() for name in row.names})
