"""The image tools' form."""

from __future__ import annotations

import pytest
from work_parts import event, image, make_page, wait_until

from core.record.problems import ProblemsError
from tabs import image_tools
from tabs.image_tools import FIELDS, ImageTools, asked_by
from tabs.tools import Tools


@pytest.fixture
def both(tmp_path):
    page = make_page(tmp_path)
    tools = Tools(page)
    return tools, ImageTools(page, tools.use_on_images)


def test_every_setting_is_asked_for_by_a_tool_and_every_tool_for_its_folder():
    assert set(FIELDS) == set().union(*(asked_by(action) for action in FIELDS["action"].choices))
    assert set(image_tools.ASKS) == set(FIELDS["action"].choices) and image_tools.CLAIMED <= set(FIELDS)
    assert all("folder" in asked_by(action) for action in FIELDS["action"].choices)


@pytest.mark.parametrize("action", FIELDS["action"].choices)
def test_the_form_shows_what_the_chosen_tool_asks_for(both, action):
    _, form = both
    shown = form.act(event("images", "action", action))
    assert all(f'data-arg="{name}"' in shown for name in asked_by(action))
    assert not any(f'data-arg="{name}"' in shown for name in set(FIELDS) - set(asked_by(action)))
    assert form._about(form.values()) or action == "undo_number"  # whose name says it all


def test_copies_are_made_and_the_images_stay(both, tmp_path):
    tools, form = both
    file = image(tmp_path / "set" / "a.png", (400, 300), caption="a fox")
    before = file.read_bytes()
    form.act(event("images", "folder", str(tmp_path / "set")))
    form.act(event("images", "output", str(tmp_path / "small")))
    form.act(event("images", "max_resolution", "128"))
    form.act(event("go"))
    work = tools._works[-1]
    wait_until(lambda: work.task.done)
    assert work.facts()["state"] == "done", work.facts()
    assert list((tmp_path / "small").rglob("*.png")) and file.read_bytes() == before
    assert work.lines


def test_what_cannot_be_is_refused_at_once(both):
    tools, form = both
    for name, text in (("quality", "200"), ("max_resolution", "large"), ("action", "melt")):
        with pytest.raises(ProblemsError):
            form.act(event("images", name, text))
    form.page.project.edit("dataset.folder", "")
    with pytest.raises(ProblemsError, match="No folder"):
        form.act(event("go"))
    assert not tools._works and form.values() == {}


@pytest.mark.parametrize("name", ["folder", "output"])
def test_a_shared_page_works_on_no_folder_outside(tmp_path, name):
    page = make_page(tmp_path, shared=True)
    form = ImageTools(page, Tools(page).use_on_images)
    with pytest.raises(ProblemsError) as refused:
        form.act(event("images", name, str(tmp_path)))
    assert refused.value.codes == ["shared.path-closed"]
    page.project.keep("Tools", {"images": {name: str(tmp_path)}})  # an earlier, unshared page
    with pytest.raises(ProblemsError) as refused:
        form.act(event("go"))
    assert refused.value.codes == ["shared.path-closed"]
