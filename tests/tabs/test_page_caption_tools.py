"""Tags, filters and changes of many captions in a real browser, by mouse and keyboard."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from work_parts import image, wait_until

WORDS = ("red fox", "snow", "blue sky", "smile", "tree")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "mira"
    for n in range(40):
        chosen = [word for number, word in enumerate(WORDS) if n % (number + 1) == 0]
        image(place / f"mira_{n:03}.png", (64, 64), caption=", ".join(chosen) if n % 10 else None)
    return place


@pytest.fixture
def tab(visit, served, folder):
    served.page.project.keep("Captions", {})
    served.page.project.edit("dataset.folder", str(folder))
    one = visit()
    tab = one.open("Captions")
    expect(tab.locator("#cap-label")).to_have_text("Caption of mira_000.png")
    yield tab
    assert one.errors == []


def text(folder, n):
    path = folder / f"mira_{n:03}.txt"
    try:
        return path.read_text("utf-8").strip()
    except FileNotFoundError:  # an undo may remove it at this moment
        return None


def all_texts(folder):
    return {n: text(folder, n) for n in range(40)}


def has(tab, tags):
    """Wait until the caption has these tags: a redraw may be on its way."""
    expect(tab.locator("#cap-chips .tag")).to_have_text(tags)


def press(tab, button):
    """Press a button so slowly that a save is answered meanwhile."""
    button.hover()
    tab.mouse.down()
    tab.wait_for_timeout(1500)
    tab.mouse.up()


def opened(tab, n):
    tab.locator("#cap-picks .pick", has_text=f"mira_{n:03}.png").click()
    expect(tab.locator("#cap-label")).to_have_text(f"Caption of mira_{n:03}.png")


@pytest.mark.slow
def test_tags_are_added_moved_edited_and_removed_by_keyboard_and_are_the_text(tab, folder):
    opened(tab, 2)
    has(tab, ["red fox", "snow"])
    tab.locator("#cap-tag").click()
    tab.keyboard.type("bl")
    expect(tab.locator("#cap-options [role=option]")).to_have_count(1)
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    tab.keyboard.type("a new one,")
    has(tab, ["red fox", "snow", "blue sky", "a new one"])
    tab.keyboard.press("Backspace")  # to the last chip
    tab.keyboard.press("Control+ArrowLeft")
    tab.keyboard.press("Control+ArrowLeft")
    has(tab, ["red fox", "a new one", "snow", "blue sky"])
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Delete")
    tab.keyboard.press("Enter")  # edits what has come in its place
    tab.keyboard.press("Control+a")
    tab.keyboard.type("an old one")
    tab.keyboard.press("Enter")
    has(tab, ["an old one", "snow", "blue sky"])
    expect(tab.locator("#cap-text")).to_have_value("an old one, snow, blue sky")
    tab.keyboard.press("Control+s")
    wait_until(lambda: text(folder, 2) == "an old one, snow, blue sky")
    tab.locator("#cap-chips .out-of").nth(1).click()
    has(tab, ["an old one", "blue sky"])
    for _ in range(3):  # on a busy machine the browser does not always take the first movement for a drag
        tab.mouse.move(2, 2)
        tab.locator("#cap-chips .tag").first.drag_to(tab.locator("#cap-chips .tag").nth(1))
        tab.wait_for_timeout(1000)  # a second one would move it back
        if tab.locator("#cap-chips .tag").first.inner_text() == "blue sky":
            break
    has(tab, ["blue sky", "an old one"])
    tab.get_by_role("tab", name="Captions").focus()
    tab.keyboard.press("1")  # only in the list and the editor
    tab.locator("#cap-stage").click()
    tab.keyboard.press("1")
    has(tab, ["blue sky", "an old one", "red fox"])
    tab.keyboard.press("1")
    has(tab, ["blue sky", "an old one"])
    wait_until(lambda: text(folder, 2) == "blue sky, an old one")
    tab.keyboard.press("?")
    expect(tab.locator("dialog")).to_contain_text("quick tags")
    tab.keyboard.press("Escape")


@pytest.mark.slow
def test_a_filter_narrows_the_list_and_a_wrong_one_says_why(tab, folder):
    def listed(find, number):
        tab.locator("#cap-find").fill(find)
        expect(tab.locator("#cap-picks .pick")).to_have_count(number)

    listed("is:missing", 4)
    listed("snow & !smile", 8)
    expect(tab.locator("#cap-wrong")).to_have_text("")
    listed("snow & (", 40)
    expect(tab.locator("#cap-wrong")).not_to_be_empty()
    listed("mira_01", 10)
    listed("", 40)
    tab.locator("#cap-all-tags summary").click()
    expect(tab.locator("#cap-tags .tag-row").first).to_contain_text("red fox")
    tab.get_by_label("Order of the tags").select_option("rarest first")
    expect(tab.locator("#cap-tags .tag-row").first).to_contain_text("tree")
    tab.get_by_label("Find a tag of the dataset").fill("TRE")
    expect(tab.locator("#cap-tags .tag-row")).to_have_count(1)
    expect(tab.locator("#cap-tags-says")).to_have_text("1 of 5")
    tab.locator("#cap-tags .tag-row", has_text="tree").click()
    expect(tab.locator("#cap-find")).to_have_value('"tree"')
    expect(tab.locator("#cap-picks .pick")).to_have_count(4)
    expect(tab.locator("#cap-tags .together")).to_contain_text("red fox (4)")


@pytest.mark.slow
def test_many_captions_change_at_once_are_shown_before_and_come_back(tab, folder):
    before = all_texts(folder)
    tab.locator("#cap-find").fill("snow")
    tab.locator("#cap-many summary").click()
    tab.locator("#cap-bulk-edit").select_option("replace")
    tab.locator("#cap-bulk-find").fill("snow")
    tab.locator("#cap-bulk-replace_with").fill("deep snow, winter")
    tab.keyboard.press("Tab")
    go = tab.locator("[data-act=bulk_apply]")
    expect(go).to_have_text("Change 16 captions")
    expect(tab.locator(".differences li").first).to_contain_text("deep snow, winter")
    assert all_texts(folder) == before
    opened(tab, 2)
    tab.locator("#cap-text").fill("red fox, snow, typed just now")
    press(tab, go)  # what was typed is saved meanwhile, and the button drawn anew
    wait_until(lambda: text(folder, 2) == "red fox, deep snow, winter, typed just now")
    expect(tab.locator("#cap-text")).to_have_value("red fox, deep snow, winter, typed just now")
    changed = all_texts(folder)
    assert all("deep snow, winter" in changed[n] for n, words in before.items() if words and "snow" in words)
    tab.locator("#cap-history summary").click()
    expect(tab.locator("#cap-changes li").first).to_contain_text("Find and replace")
    tab.locator("#cap-stage").click()
    tab.keyboard.press("Control+z")
    wait_until(lambda: all_texts(folder) == before | {2: "red fox, snow, typed just now"})
    tab.keyboard.press("Control+y")
    wait_until(lambda: all_texts(folder) == changed)
    expect(tab.locator("#cap-changes li").first).to_contain_text("Redo: Find and replace")
    tab.locator("#cap-changes [data-act=revert]").first.click()
    wait_until(lambda: all_texts(folder) == before | {2: "red fox, snow, typed just now"})


@pytest.mark.slow
def test_a_tag_is_renamed_and_removed_everywhere(tab, folder):
    tab.locator("#cap-all-tags summary").click()
    tab.get_by_role("button", name="Rename smile everywhere").click()
    expect(tab.locator("#cap-bulk-replace_with")).to_have_value("smile")
    expect(tab.locator("[data-act=bulk_apply]")).to_have_count(0)  # nothing is removed before a name is typed
    tab.locator("#cap-bulk-replace_with").fill("grin")
    tab.keyboard.press("Tab")
    tab.locator("[data-act=bulk_apply]").click()
    wait_until(lambda: not any("smile" in (words or "") for words in all_texts(folder).values()))
    tab.get_by_role("button", name="Remove grin everywhere").click()
    tab.locator("[data-act=bulk_apply]", has_text=re.compile("Change 8")).click()
    wait_until(lambda: not any("grin" in (words or "") for words in all_texts(folder).values()))


@pytest.mark.slow
def test_what_the_server_does_not_answer_about_a_change_of_many_captions_is_said(tab):
    lost = re.compile("bulk_field|preset_save")
    tab.route(
        "**/atelier/captions",
        lambda route: route.fulfill(status=204) if lost.search(route.request.post_data) else route.fallback(),
    )
    said = tab.locator("#said.error .problem")
    for act, *given in (("rename_all", "smile"), ("bulk_field", "edit", "remove"), ("preset_save", "", "mine")):
        tab.evaluate("([act, ...given]) => atelier.captions.own[act](...given)", [act, *given])
        expect(said).to_be_visible()
        tab.locator("#said").get_by_role("button", name="Close").click()
        expect(said).to_be_hidden()


@pytest.mark.slow
def test_keys_write_the_spelling_that_the_captions_have_and_a_new_word_of_all_gets_one(tab, served, folder):
    for n in range(40):
        (folder / f"mira_{n:03}.txt").write_text(", ".join(f"tag_{each}" for each in range(12)))
    served.page.reading.want(now=True)
    quick = tab.locator("#cap-quick [data-act=quick]")
    expect(quick.nth(0)).to_have_attribute("data-arg", "tag_0")
    (folder / "mira_039.txt").write_text("zkw, tag 0")
    for n in range(39):
        (folder / f"mira_{n:03}.txt").write_text(", ".join(["zkw", *(f"tag {each}" for each in range(12))]))
    (folder / "mira_001.txt").write_text("zkw, tag_0")
    served.page.reading.want(now=True)
    expect(quick.nth(0)).to_have_attribute("data-arg", "tag 0")
    expect(quick.nth(8)).to_have_attribute("data-arg", "zkw")
    tab.locator("#cap-all-tags summary").click()
    expect(tab.locator("#cap-tags .words", has_text="tag 0 / tag_0")).to_be_visible()


@pytest.mark.slow
def test_a_captioner_is_previewed_on_four_images_then_fills_the_others_and_an_earlier_text_is_used_again(tab, folder):
    before = all_texts(folder)
    form, works = tab.locator("#tools-captioners"), tab.locator("#tools-captioners-tasks")
    form.locator("select").first.select_option("caption_names")
    form.get_by_role("button", name="Preview 4 images").click()
    expect(works.locator(".previewed img")).to_have_count(4)
    assert all_texts(folder) == before
    form.get_by_role("button", name="Caption images").click()
    wait_until(lambda: all_texts(folder) == {n: words or "mira" for n, words in before.items()})
    expect(tab.locator("#cap-tally")).to_contain_text("40 images with a caption.")  # without leaving the tab
    expect(tab.locator("#cap-text")).to_have_value("mira")
    opened(tab, 2)
    tab.locator("#cap-text").fill("something else")
    tab.keyboard.press("Control+s")
    wait_until(lambda: text(folder, 2) == "something else")
    tab.locator("#cap-history summary").click()
    tab.get_by_role("button", name="Use this earlier text").first.click()
    expect(tab.locator("#cap-text")).to_have_value(before[2])
    tab.keyboard.press("Control+s")
    wait_until(lambda: text(folder, 2) == before[2])
    tab.locator("#cap-changes li", has_text="From names").get_by_role("button", name="Undo").click()
    wait_until(lambda: all_texts(folder) == before)


@pytest.mark.slow
def test_a_change_is_for_the_selected_images_when_there_are_some(tab, folder):
    before = all_texts(folder)
    rows = tab.locator("#cap-picks .pick")
    rows.nth(2).click(modifiers=["Control"])
    rows.nth(5).click(modifiers=["Shift"])
    rows.nth(8).focus()
    tab.keyboard.press("x")
    rows.nth(3).click(modifiers=["Control"])
    expect(tab.locator("#cap-picks .pick.selected")).to_have_count(4)
    tab.evaluate("""() => { const chosen = atelier.chosen, ask = (all, board) => {
        asking.push([board, board in all && all[board]().keys.split(" ").length]);
        return all[board];
      };
      window.asking = [];
      atelier.chosen = new Proxy(chosen, {get: ask}); }""")
    tab.locator("#tools-captioners select").first.select_option("caption_names")
    assert tab.evaluate("asking") == [["tools-captioners", 4]]  # the form's message has the keys of the selected images
    expect(tab.locator("#cap-label")).to_have_text("Caption of mira_000.png")  # selecting opens nothing
    tab.locator("#cap-many summary").click()
    tab.locator("#cap-bulk-edit").select_option("add")
    tab.locator("#cap-bulk-tags").fill("winter")
    tab.keyboard.press("Tab")
    tab.locator("[data-act=bulk_apply]", has_text="Change 4 captions").click()
    wanted = {n: f"{words}, winter" if n in (2, 4, 5, 8) else words for n, words in before.items()}
    wait_until(lambda: all_texts(folder) == wanted)
    tab.get_by_role("button", name="Clear selection").click()
    expect(tab.locator("#cap-picks .pick.selected")).to_have_count(0)


@pytest.mark.slow
def test_a_typed_tag_is_never_lost_and_goes_to_the_image_it_was_typed_for(tab, folder):
    opened(tab, 2)
    field = tab.locator("#cap-tag")
    field.fill("by tab")
    field.press("Tab")
    has(tab, ["red fox", "snow", "by tab"])
    field.fill("by save")
    tab.locator("#cap-buttons [data-act=save]").click()
    wait_until(lambda: text(folder, 2) == "red fox, snow, by tab, by save")
    field.fill("by the key")
    field.press("Alt+ArrowRight")
    expect(tab.locator("#cap-label")).to_have_text("Caption of mira_003.png")
    wait_until(lambda: text(folder, 2) == "red fox, snow, by tab, by save, by the key")
    expect(field).to_have_value("")
    field.fill("dropped")
    field.press("Escape")
    field.press("Tab")
    has(tab, ["red fox", "blue sky"])
    tab.locator("#cap-chips .tag").first.press("Enter")
    field.fill("edited")
    tab.locator("#cap-buttons [data-act=next]").click()
    wait_until(lambda: text(folder, 3) == "edited, blue sky")


@pytest.mark.slow
def test_the_folders_words_are_no_tags_one_that_is_edited_is_marked_and_several_are_trimmed(tab, folder):
    expect(tab.locator("#cap-text")).to_have_attribute("placeholder", "trained as: mira")
    has(tab, [])
    tab.locator("#cap-stage").click()
    tab.keyboard.press("1")
    has(tab, ["red fox"])
    tab.keyboard.press("ArrowRight")
    wait_until(lambda: text(folder, 0) == "red fox")
    opened(tab, 2)
    chip = tab.locator("#cap-chips .tag").first
    chip.press("Enter")
    expect(tab.locator("#cap-chips .edited")).to_have_count(1)
    expect(tab.get_by_label("Edit the tag red fox")).to_be_focused()
    tab.keyboard.press("Escape")
    expect(tab.locator("#cap-chips .edited")).to_have_count(0)
    expect(chip).to_be_focused()
    has(tab, ["red fox", "snow"])
    tab.locator("#cap-find").focus()
    tab.keyboard.press("Tab")
    expect(tab.locator("#cap-picks .pick", has_text="mira_002.png")).to_be_focused()
    tab.keyboard.press("ArrowDown")  # the list is one stop of Tab
    tab.keyboard.press("Enter")
    expect(tab.locator("#cap-label")).to_have_text("Caption of mira_003.png")
    tab.locator("#cap-tag").fill(" x ,y , z")
    tab.keyboard.press("Enter")
    has(tab, ["red fox", "blue sky", "x", "y", "z"])
    tab.get_by_role("button", name="Caption or tag with a model").press("Enter")
    expect(tab.locator("#tools-captioners")).to_be_in_viewport()
    assert tab.evaluate("document.activeElement.closest('#tools-captioners') !== null")


@pytest.mark.slow
def test_a_question_that_is_answered_late_neither_hides_nor_undoes_what_was_typed_after_it(tab, folder):
    tab.locator("#cap-many summary").click()
    tab.locator("#cap-bulk-edit").select_option("remove")
    expect(tab.locator("#cap-bulk-tags")).to_be_visible()
    tab.evaluate("""() => {
      const quick = window.fetch;
      window.held = 0;
      window.fetch = async (where, how) => {
        if (how && String(how.body).includes('"smi"')) {
          window.held += 1;
          await new Promise((go) => setTimeout(go, 1500));
          window.held -= 10;
        }
        return quick(where, how);
      };
    }""")
    tab.locator("#cap-bulk-tags").click()
    tab.keyboard.type("smi")
    tab.wait_for_function("window.held !== 0")
    tab.keyboard.type("le")
    tab.wait_for_function("window.held < 0")
    expect(tab.locator("#cap-bulk-tags")).to_have_value("smile")
    expect(tab.locator("#cap-bulk .bulk-says")).to_contain_text("8 captions of 40 would change")


@pytest.mark.slow
def test_what_is_typed_while_the_form_of_another_change_is_on_its_way_stays(tab, folder):
    tab.locator("#cap-many summary").click()
    expect(tab.locator("#cap-bulk-tags")).to_be_visible()  # of "add"
    tab.evaluate("""() => {
      const quick = window.fetch;
      window.fetch = async (where, how) => {
        const answer = await quick(where, how);
        if (how && String(how.body).includes('"remove"')) await new Promise((go) => setTimeout(go, 1500));
        return answer;
      };
    }""")
    tab.locator("#cap-bulk-edit").select_option("remove")
    tab.locator("#cap-bulk-tags").click()
    tab.keyboard.type("smi")
    expect(tab.locator("#cap-bulk-place")).to_have_count(0)
    expect(tab.locator("#cap-bulk-tags")).to_be_focused()
    tab.keyboard.type("le")
    expect(tab.locator("#cap-bulk-tags")).to_have_value("smile")
    expect(tab.locator("#cap-bulk .bulk-says")).to_contain_text("8 captions of 40 would change")


@pytest.mark.slow
def test_the_preview_of_a_change_follows_what_is_typed_and_the_button_needs_no_second_press(tab, folder):
    tab.locator("#cap-many summary").click()
    tab.locator("#cap-bulk-edit").select_option("remove")
    tab.locator("#cap-bulk-tags").click()
    tab.keyboard.type("smile, ", delay=30)
    expect(tab.locator("#cap-bulk .bulk-says")).to_contain_text("8 captions of 40 would change")
    tab.keyboard.type("snow", delay=30)
    expect(tab.locator("#cap-bulk-tags")).to_have_value("smile, snow")
    expect(tab.locator("#cap-bulk-tags")).to_be_focused()
    tab.locator("[data-act=bulk_apply]", has_text=re.compile("Change 1[0-9]|Change 2[0-9]")).click()
    wait_until(
        lambda: not any("sm" in (words or "") or "snow" in (words or "") for words in all_texts(folder).values())
    )


@pytest.mark.slow
def test_the_tags_of_the_next_image_are_those_of_the_line_that_they_change(tab, folder):
    for number, lines in ((3, "red fox, blue sky\nsnow, tree, smile"), (2, "red fox\nsnow, tree, smile")):
        opened(tab, number)
        tab.locator("#cap-text").fill(lines)
    has(tab, ["snow", "tree", "smile"])  # the caret is in the second line
    shown = tab.evaluate("""() => {
      const next = document.querySelector('#cap-buttons [data-act=next]');
      next.focus();
      next.click();
      return [...document.querySelectorAll('#cap-chips .tag')].map((tag) => tag.textContent);
    }""")
    assert shown == ["red fox", "blue sky"]
    tab.locator("#cap-chips .out-of").nth(1).click()
    expect(tab.locator("#cap-text")).to_have_value("red fox\nsnow, tree, smile")
