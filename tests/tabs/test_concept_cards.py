"""The cards of the Dataset tab: every setting a folder can have of its own, questions asked once, charts."""

from __future__ import annotations

import html
import re
import time

import pytest
from work_parts import HOSTILE, event, image, make_page, said, wait_until

from core.dataset.buckets.aspect_ratio import Size
from core.dataset.report import Question, Report, Row
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.dataset.source import Source
from core.settings.job import TrainJob
from core.settings.values import text_of
from tabs.dataset import concept_cards, plots, questions
from tabs.dataset import grid as dataset_grid
from tabs.dataset import view as dataset_view
from tabs.dataset.concepts import FolderContents, changed, entries_of, with_entries
from tabs.dataset.reading import key_of
from tabs.dataset.tab import TAB, DatasetHandlers
from tabs.form.form_values import SHARED_NAMES, SOURCE
from tabs.markup import row_of
from tests.selection import slow_unless


@pytest.fixture
def desk(tmp_path):
    return DatasetHandlers(make_page(tmp_path))


def choose(desk: DatasetHandlers, folder) -> None:
    desk.choose(str(folder))
    wait_until(lambda: not desk.reading.busy)


def card(desk: DatasetHandlers) -> str:
    job = desk.page.project.job
    return concept_cards.cards(
        job, entries_of(job), [FolderContents()] * len(entries_of(job)), [0], desk.page.thumb_url
    )


def own(desk: DatasetHandlers, name: str, text: str, number: int = 0) -> Source:
    desk.act(event("own", f"{number}:{name}", text))
    return entries_of(desk.page.project.job)[number]


# -- settings


def test_every_setting_of_a_folder_has_a_control_on_its_card(desk):
    shown = card(desk)
    assert [name for name in SOURCE if f'data-arg="0:{name}"' not in shown] == []


def one_of_each_kind():
    """A setting of each kind that a folder may have of its own."""
    return {SOURCE[name].kind: name for names in SHARED_NAMES.values() for name in names}.values()


@pytest.mark.parametrize(
    "name",
    slow_unless(list(one_of_each_kind()).__contains__, [name for names in SHARED_NAMES.values() for name in names]),
)
def test_each_own_setting_is_written_shown_and_emptied_again(desk, name):
    entry, common = SOURCE[name], concept_cards.common_values(desk.page.project.job)[name]
    other = {"caption_extension": ".caption", "alpha_color": "#102030", "face_crop_aug_range": [0.2, 0.6],
             "more_resolutions": [256, [128, 192]], "resolution": 192, "bucket_reso_steps": 32}.get(name)  # fmt: skip
    if other is None:
        wanted = {"bool": not common, "int": 128, "float": 0.5, "text": "a b", "pair": 128}
        other = next(choice for choice in entry.choices if choice != common) if entry.choices else wanted[entry.kind]
    text = str(other).lower() if entry.kind == "bool" else str(text_of(entry, other))
    found = own(desk, name, text)
    assert text_of(entry, getattr(found, name)) == text_of(
        entry,
        build(TrainJob, {"dataset": {"sources": [{"folder": "a", name: other}]}}).dataset.sources[0].model_dump()[name],
    )
    shown = card(desk)
    assert "1 setting set here" in shown and shown.count("is-own") == 1, name
    assert own(desk, name, "") == Source(folder=found.folder)  # and the short form is back
    assert desk.page.project.job.dataset.folder == found.folder


def test_an_empty_field_shows_what_holds_for_all(desk):
    desk.page.project.edit("dataset.resolution", "192")
    desk.page.project.edit("captions.shuffle_caption", True)
    shown = html.unescape(card(desk))
    assert re.search(r'data-arg="0:resolution"[^>]*value="" placeholder="192"', shown)
    assert re.search(r'data-arg="0:shuffle_caption".*?<option value="" selected>as for all: on', shown)


def test_a_folders_own_setting_that_the_method_ignores_is_grayed_out_with_the_reason(desk):
    own(desk, "caption_template", "object")
    field = r'<label class="own[^"]* is-ignored[^"]*" title="([^"]*)"><span>Caption templates<'
    assert re.search(field, card(desk))[1].startswith("Ignored: only for textual inversion. For textual inversion:")
    desk.page.project.edit("method.kind", "embedding")
    assert not re.search(field, card(desk)) and "Caption templates" in card(desk)


def test_two_quotes_stand_for_none_where_all_others_have_something(desk):
    desk.page.project.edit("captions.caption_prefix", "photo of")
    assert own(desk, "caption_prefix", '""').caption_prefix == ""
    assert "Write &quot;&quot; for none" in card(desk)
    assert own(desk, "caption_prefix", "").caption_prefix is None


@pytest.mark.parametrize(
    ("name", "text"),
    [("resolution", "large"), ("resolution", "12"), ("num_repeats", "0"), ("loss_weight", ""), ("loss_weight", "nan"),
     ("role", "nothing"), ("custom_attributes", "[1]"), ("custom_attributes", "{"), ("alpha_color", "white"),
     ("caption_lines", "last"), ("folder", ""), ("no_such_setting", "1")],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_a_fix_and_changes_nothing(desk, name, text):
    before = desk.page.project.job
    with pytest.raises(ProblemsError) as told:
        own(desk, name, text)
    assert desk.page.project.job == before and all(problem.fix for problem in told.value.problems)


def test_a_folder_that_moved_keeps_its_settings(desk):
    own(desk, "num_repeats", "3")
    found = own(desk, "folder", "moved")
    assert (found.folder, found.num_repeats) == ("moved", 3)


def test_all_as_for_all_empties_only_what_folders_share(desk):
    for name, text in (("resolution", "192"), ("flip_aug", "true"), ("identifier", "sks"), ("num_repeats", "3")):
        own(desk, name, text)
    desk.act(event("clear", "0"))
    found = entries_of(desk.page.project.job)[0]
    assert (found.resolution, found.flip_aug, found.identifier, found.num_repeats) == (None, None, "sks", 3)


def test_custom_attributes_are_json(desk):
    found = own(desk, "custom_attributes", '{"kept": true}')
    assert found.custom_attributes == {"kept": True}
    assert '{"kept": true}' in html.unescape(card(desk))


def test_a_regularization_folder_given_shortly_is_a_card_and_stays_short():
    job = build(TrainJob, {"dataset": {"folder": "a", "reg_data_dir": "r", "sources": [{"folder": "b"}]}})
    entries = entries_of(job)
    assert [(entry.folder, entry.role) for entry in entries] == [
        ("a", "train"),
        ("r", "regularization"),
        ("b", "train"),
    ]
    assert with_entries(job, entries) == job
    longer = with_entries(job, [entries[0], entries[1].model_copy(update={"loss_weight": 0.5}), entries[2]])
    assert longer.dataset.reg_data_dir is None and longer.dataset.sources[0].loss_weight == 0.5
    assert [source.folder for source in longer.dataset.all_sources()] == ["a", "r", "b"]


def test_a_removed_folder_comes_back_by_undo_on_its_own_tab(desk, tmp_path):
    for name in ("a", "b"):
        image(tmp_path / name / "x.png", (64, 64))
    project = desk.page.project
    project.replace(with_entries(project.job, [Source(folder=str(tmp_path / name)) for name in ("a", "b")]))
    before = entries_of(project.job)
    desk.act(event("remove", "1"))
    assert len(entries_of(project.job)) == 1
    shown = desk.act(event("undo"))
    assert entries_of(project.job) == before and 'data-act="redo"' in shown["sources"]
    desk.act(event("redo"))
    assert len(entries_of(project.job)) == 1


def test_the_unfolded_cards_stay_with_their_folders_when_one_is_removed(desk, tmp_path):
    job = with_entries(desk.page.project.job, [Source(folder=name, num_repeats=2) for name in "abc"])
    desk.page.project.replace(job)
    for act in ("more", "class"):
        desk.act(event(act, "2"))
    desk.act(event("remove", "0"))
    assert desk.page.project.tab_state(TAB)["open"] == [1] and desk.class_form.open_on == 1
    desk.act(event("more", "1"))
    assert desk.page.project.tab_state(TAB)["open"] == []


def event_on(row: str, act: str, arg: str, value: str = ""):
    """What a board reports of a row that stands for this."""
    reported = event(act, arg, value)
    reported._data["listed"] = re.search('data-listed="(.*?)"', row_of(row))[1]
    return reported


def test_a_window_that_shows_an_older_list_changes_the_folder_that_was_pressed(desk):
    job = with_entries(desk.page.project.job, [Source(folder=name, num_repeats=2) for name in "abcd"])
    desk.page.project.replace(job)
    assert all(row_of(name) in desk.boards()["sources"] for name in "abcd")
    desk.act(event("remove", "0"))
    desk.act(event_on("c", "own", "2:num_repeats", "7"))
    desk.act(event_on("b", "remove", "1"))
    desk.act(event_on("b", "remove", "1"))  # it is gone
    desk.act(event_on("a", "own", "0:num_repeats", "9"))
    desk.act(event_on("a", "class", "0"))
    assert [(each.folder, each.num_repeats) for each in entries_of(desk.page.project.job)] == [("c", 7), ("d", 2)]
    assert desk.class_form.open_on is None


def test_a_path_of_a_card_outside_the_open_folders_is_refused_when_shared(tmp_path):
    page = make_page(tmp_path, shared=True)
    for name in ("metadata_file", "conditioning_data_dir", "folder"):
        with pytest.raises(ProblemsError) as refused:
            changed(Source(folder="models/starter/images"), name, str(tmp_path / "secret"), page.roots)
        assert refused.value.codes == ["shared.path-closed"]
    inside = str(page.workspace.outputs / "masks")
    assert changed(Source(folder="a"), "conditioning_data_dir", inside, page.roots)["conditioning_data_dir"] == inside


def test_a_mask_folder_from_a_preset_is_not_read_by_a_shared_page(tmp_path):
    desk = DatasetHandlers(make_page(tmp_path, shared=True))
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    assert "24 images" in desk.boards()["doctor"] and "24 images" in desk.boards()["sources"]
    desk.page.project.edit("dataset.conditioning_data_dir", str(tmp_path / "secret"))
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    assert desk.reading.report is None and desk.reading.problems[0].code == "shared.path-closed"
    # Nothing was read: neither what was there before, nor that there is nothing
    shown = "".join(desk.boards().values())
    assert "24 images" not in shown and "no images" not in shown


def test_a_shared_page_does_not_check_a_job_with_a_mask_folder_outside(tmp_path):
    page = make_page(tmp_path, shared=True)
    source = Source(folder=str(page.workspace.outputs), metadata_file=str(tmp_path / "secret.json"))
    for job in (
        build(TrainJob, {"dataset": {"reg_data_dir": str(tmp_path)}}),
        build(TrainJob, {"dataset": {"folder": str(page.workspace.outputs), "conditioning_data_dir": str(tmp_path)}}),
        with_entries(TrainJob(), [source]),
    ):
        assert page.checks.facts(job)["problems"][0]["code"] == "shared.path-closed"


def test_names_on_cards_never_become_markup(desk):
    source = Source(
        folder=HOSTILE, identifier=HOSTILE, class_word=HOSTILE, class_tokens=HOSTILE, caption_prefix=HOSTILE
    )
    desk.page.project.replace(with_entries(desk.page.project.job, [source]))
    assert "<img src=x" not in card(desk)


# -- questions


QUESTIONS = (
    Question("transparency", 12, ("a.png", HOSTILE), {"with transparent parts": 12}),
    Question("sidecars", 3, ("b.png",), {".caption": 212, ".txt": 240}),
    Question("lines", 2, ("c.png",), {"several lines": 2}),
)


def test_a_question_is_asked_until_answered_and_only_for_these_folders(desk):
    job = desk.page.project.job
    shown = questions.cards(job, QUESTIONS, questions.answered({}, job))
    assert shown.count('class="ask"') == 3 and "240 .txt" in shown and "<img src=x" not in shown
    desk.act(event("answer", "sidecars:joined"))
    job, state = desk.page.project.job, desk.page.project.tab_state(TAB)
    assert job.captions.sidecars == "joined"
    done = questions.answered(state, job)
    shown = questions.cards(job, QUESTIONS, done, done)
    assert shown.count('class="ask"') == 3 and shown.count('aria-pressed="true"') == 1  # it keeps its place
    shown = questions.cards(job, QUESTIONS, done)
    assert shown.count('class="ask"') == 2 and "both, joined" in shown
    desk.act(event("ask", "sidecars"))
    assert questions.answered(desk.page.project.tab_state(TAB), job) == []
    desk.act(event("answer", "lines:all"))
    desk.page.project.edit("dataset.folder", "elsewhere")
    assert questions.answered(desk.page.project.tab_state(TAB), desk.page.project.job) == []


def test_an_answer_says_how_many_images_it_leaves_without_a_caption(desk):
    job = desk.page.project.job
    shown = questions.cards(job, QUESTIONS, ())
    assert "237 images with a .txt alone would be without a caption" in shown
    assert shown.count("without a caption") == 1


def test_what_is_said_to_hold_now_changes_nothing_when_it_is_chosen(desk):
    before = desk.page.project.job.captions
    for kind in ("sidecars", "lines"):
        desk.act(event("answer", f"{kind}:{questions.current_choice(desk.page.project.job, kind)}"))
    assert desk.page.project.job.captions == before


def test_answers_stay_when_a_folder_is_added_to_the_dataset(desk):
    desk.act(event("answer", "lines:all"))
    listed = entries_of(desk.page.project.job)
    desk._set_sources([*listed, Source(folder="another")], "adding a folder")
    assert questions.answered(desk.page.project.tab_state(TAB), desk.page.project.job) == ["lines"]


@pytest.mark.slow
def test_a_tick_after_a_click_sends_what_the_click_had_replaced(desk, tmp_path):
    for number in range(2):
        image(tmp_path / "pics" / f"{number}.png", (64, 64), caption="a fox\na red fox")
    choose(desk, tmp_path / "pics")
    wait_until(lambda: desk.reading.findings is not None and not desk.reading.busy)
    desk.tick("")
    browser = desk.act(event("answer", "lines:all"))  # comes while the folder is read anew
    wait_until(lambda: not desk.reading.busy)
    browser |= desk.tick(browser["client"])
    shown = desk.boards()
    assert {name: browser[name] for name in shown} == shown


def test_checks_do_not_call_a_dataset_good_while_they_go_on(desk):
    shown = dataset_view.checks(desk.page.project.job, None, (), True)
    assert "Checking" in shown and "Nothing to complain about" not in shown


@pytest.mark.parametrize("kind", questions.QUESTIONS)
def test_every_answer_is_what_then_holds(desk, kind):
    for choice in questions.QUESTIONS[kind][1]:
        desk.act(event("answer", f"{kind}:{choice.name}"))
        assert questions.current_choice(desk.page.project.job, kind) == choice.name


def test_a_color_behind_transparency_is_chosen(desk):
    desk.act(event("answer", "transparency:color", "#204060"))
    assert desk.page.project.job.dataset.alpha_color == "#204060"
    assert questions.current_choice(desk.page.project.job, "transparency") == "color"
    with pytest.raises(ProblemsError):
        desk.act(event("answer", "transparency:color", "blue"))
    with pytest.raises(ProblemsError):
        desk.act(event("answer", "lines:none"))


# -- the grid


@pytest.mark.slow
def test_an_image_is_held_out_and_let_train_again(desk, tmp_path):
    for number in range(3):
        image(tmp_path / "set" / f"{number}.png", (200, 200))
    choose(desk, tmp_path / "set")
    desk.act(event("hold", "1", "true"))
    wait_until(lambda: not desk.reading.busy)
    report = desk.reading.report
    assert entries_of(desk.page.project.job)[0].validation_images == ["1.png"]
    assert [row.role for row in report.rows] == ["train", "validation", "train"] and report.trained == 2
    shown = dataset_grid.grid(
        report, "held", 0, desk.page.thumb_url, False, dataset_grid.validation_states(entries_of(desk.page.project.job))
    )
    assert (
        shown.count("<img") == 1 and "held out</span>" in shown and "left out" not in shown.replace("left out or", "")
    )
    desk.act(event("hold", "1", "false"))
    wait_until(lambda: not desk.reading.busy)
    assert desk.reading.report.trained == 3 and desk.page.project.job.dataset.folder  # the short form again
    desk.act(event_on(key_of(desk.reading.report.rows[2]), "hold", "0", "true"))  # of a list before another reading
    assert entries_of(desk.page.project.job)[0].validation_images == ["2.png"]


# -- charts


def rows(number: int) -> tuple[Row, ...]:
    from pathlib import Path

    path = Path("a.png")
    return tuple(
        Row(("s", f"{n}.png"), path, (400 + n * 7 % 1900, 300 + n * 13 % 1700), (512, 512), (0, 0, 1, 1), 1.0, 1, "a", None,
            "file", n % 140, True)
        for n in range(number)
    )  # fmt: skip


def report_of(number: int, buckets: dict[Size, tuple[int, int]]) -> Report:
    from core.dataset.buckets.length import Length

    length = Length(**{name: 1 for name in Length.__dataclass_fields__})
    return Report((), (), (), rows(number), (), buckets, {0: number}, number, 1, length, "", 139, 75)


def test_charts_of_ten_thousand_images_are_small_and_quick():
    report = report_of(10_000, {(512, 512): (10_000, 10_000)})
    begin = time.thread_time()  # of this thread alone: what else runs does not count
    drawn = plots.sizes_plot(TrainJob(), report) + plots.lengths_plot(report)
    assert len(drawn) < 120_000 and time.thread_time() - begin < 2
    marks, longest = plots.size_marks([row.size for row in report.rows])
    assert sum(number for _, _, number in marks) == 10_000 and len(marks) <= plots.MOST_MARKS
    assert longest == max(max(row.size) for row in report.rows)


def test_the_length_chart_counts_every_caption_once_and_names_the_cut():
    bins, size = plots.length_bins([0, 4, 5, 74, 75, 76, 400])
    assert sum(bins) == 7 and bins[0] == 2 and bins[1] == 1 and size == 5
    report = report_of(140, {})
    shown = plots.lengths_plot(report)
    assert f"{sum(n > 75 for n in range(140))} captions truncated at 75" in shown
    assert shown.count("captions&quot;, true]") == sum(place * 5 > 75 for place in range(28))


def test_views_by_folder_are_shares_of_the_whole():
    shown = plots.balance(["fox", "dogs"], ["train", "regularization"], [30, 10])
    assert "75%" in shown and "25%" in shown and "40 in all" in shown
    assert plots.balance(["fox"], ["train"], [30]) == ""


# -- words, and the doctor


def test_rare_words_are_proposed_and_one_is_taken(desk):
    assert ">Less</button>" in card(desk) and ">Suggest rare words</button>" in card(desk)
    desk.act(event("propose", "0"))
    first = desk._proposed[0][1]
    assert len(first) == 6 and f'data-arg="0:{first[0]}"' in desk.boards()["sources"]
    desk.act(event("propose", "0"))
    assert desk._proposed[0][1] != first
    word = desk._proposed[0][1][0]
    desk.act(event("word", f"0:{word}"))
    assert entries_of(desk.page.project.job)[0].identifier == word
    assert f"{word}&#x27; is 1 token" in desk.boards()["sources"]


def copies(folder) -> None:
    from PIL import Image

    for number in range(3):
        path = image(folder / f"{number}.png", (200, 200), caption=f"image {number}")
        Image.effect_noise((200, 200), 90 + 40 * number).convert("RGB").save(path)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "copy.txt").write_text("a copy")


@pytest.mark.slow
def test_copies_are_put_away_and_put_back_from_the_page(desk, tmp_path):
    copies(tmp_path / "set")
    desk.page.project.edit("dataset.resolution", "192")  # so that none is enlarged
    choose(desk, tmp_path / "set")
    finding = next(each for each in desk.reading.findings if each.kind == "copy")
    shown = desk.doctor.html(entries_of(desk.page.project.job))
    assert "Move 1 to trash" in shown and shown.count('class="seen goes"') == 1
    desk.act(event("away", finding.id))
    wait_until(lambda: not desk.reading.busy)
    assert len(list((tmp_path / "set").glob("*.png"))) == 3 and desk.reading.report.trained == 3
    desk.act(event("away", finding.id))  # a double click: nothing is wrong
    assert not [each for each in desk.reading.findings if each.kind == "copy"]
    removals = desk.doctor.removals(entries_of(desk.page.project.job))
    assert "1 image removed" in desk.doctor.html(entries_of(desk.page.project.job)) and len(removals) == 1
    desk.act(event("back", removals[0].token))
    wait_until(lambda: not desk.reading.busy)
    assert (tmp_path / "set" / "copy.txt").read_text() == "a copy" and desk.reading.report.trained == 4
    with pytest.raises(ProblemsError):
        desk.act(event("back", removals[0].token))


def found_by_doctor(problems):
    return [problem for problem in problems if problem.code.startswith("doctor.")]


@pytest.mark.slow
def test_an_image_that_trains_and_validates_is_an_error_for_the_start(desk, tmp_path):
    copies(tmp_path / "set")
    image(tmp_path / "held" / "same.png").write_bytes((tmp_path / "set" / "1.png").read_bytes())
    sources = [Source(folder=str(tmp_path / "set")), Source(folder=str(tmp_path / "held"), role="validation")]
    job = with_entries(desk.page.project.job, sources)
    checks = desk.page.checks
    report = checks.report(job, decode=True)
    assert not found_by_doctor(checks.problems(job, report))  # nobody has looked yet
    told = found_by_doctor(checks.problems(job, report, find_copies=True))
    assert len(told) == 1 and told[0].level == "error"
    desk.page.project.replace(job)
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    assert told == found_by_doctor(checks.problems(job, report))
    without = job.with_settings(dataset={"sources": []})
    assert not found_by_doctor(checks.problems(without, checks.report(without), find_copies=True))


@pytest.mark.slow
def test_only_trash_of_the_chosen_folders_is_put_back(desk, tmp_path):
    copies(tmp_path / "set")
    copies(tmp_path / "other")
    choose(desk, tmp_path / "set")
    from core.dataset.doctor.trash import put_away

    token = put_away([tmp_path / "other" / "1.png"], tmp_path / "other", "by hand")
    with pytest.raises(ProblemsError):
        desk.act(event("back", token))
    with pytest.raises(ProblemsError):
        desk.act(event("away", "copy-unknown"))
    assert not (tmp_path / "other" / "1.png").exists()


# -- the config of sd-scripts


def upload(tmp_path, text: str, name: str = "dataset.toml") -> str:
    file = tmp_path / "upload" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_a_config_is_imported_with_its_own_settings_and_undone(desk, tmp_path):
    image(tmp_path / "fox" / "a.png")
    before = desk.page.project.job
    file = upload(
        tmp_path,
        f"""[[datasets]]
resolution = 192
[[datasets.subsets]]
image_dir = '{tmp_path / "fox"}'
num_repeats = 4
class_tokens = "sks fox"
flip_aug = true
""",
    )
    desk.import_config(file)
    entry = entries_of(desk.page.project.job)[0]
    assert (entry.folder, entry.num_repeats, entry.class_tokens) == (str(tmp_path / "fox"), 4, "sks fox")
    assert "dataset.toml: 1 folder with their settings" in said(desk)
    desk.page.project.undo()
    assert desk.page.project.job == before


def test_what_is_wrong_in_a_config_is_listed_with_its_place_and_nothing_changes(desk, tmp_path):
    before = desk.page.project.job
    desk.import_config(upload(tmp_path, "[general]\nno_such_option = 1\n[[datasets]]\nresolution = 'big'\n"))
    shown = said(desk)
    assert "was not imported" in shown and "no_such_option" in shown and "resolution" in shown
    assert desk.page.project.job == before and str(tmp_path / "upload") not in shown


def test_a_shared_page_imports_no_folder_outside(tmp_path):
    desk = DatasetHandlers(make_page(tmp_path, shared=True))
    before = desk.page.project.job
    desk.import_config(
        upload(tmp_path, f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{tmp_path}'\n")
    )
    assert desk.page.project.job == before and "shared.path-closed" in said(desk)


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_an_exported_config_comes_back_the_same(desk, tmp_path, kind):
    for name in ("fox", "reg"):
        image(tmp_path / name / "a.png")
    sources = [
        Source(folder=str(tmp_path / "fox"), num_repeats=3, flip_aug=True, keep_tokens=2),
        Source(folder=str(tmp_path / "reg"), role="regularization"),
    ]
    desk.page.project.replace(with_entries(desk.page.project.job, sources))
    left = desk.page.workspace.private / "export-of-an-earlier-process"
    left.mkdir(parents=True)
    desk.export(event("export", kind))
    (file,) = left.parent.glob("export-*/*")
    assert f"dataset.{kind}" in said(desk) and file.is_file() and not left.exists()
    again = DatasetHandlers(make_page(tmp_path / "other"))
    again.import_config(upload(tmp_path, file.read_text("utf-8"), f"dataset.{kind}"))
    found = {entry.folder: entry for entry in entries_of(again.page.project.job)}
    fox, reg = found[str(tmp_path / "fox")], found[str(tmp_path / "reg")]
    common = again.page.project.job
    assert fox.num_repeats == 3 and reg.role == "regularization"
    assert (fox.flip_aug if fox.flip_aug is not None else common.dataset.flip_aug) is True
    desk.export(event("export", kind))
    assert len(list(left.parent.glob("export-*/*"))) == 1 and not file.exists()


# -- regularization images


def queue_of(desk: DatasetHandlers) -> list:
    """Instead of an engine: what was submitted."""
    from types import SimpleNamespace

    from core.settings.presets.files import to_values

    made: list = []

    def submit(task, job, title=""):
        made.append(
            SimpleNamespace(id=f"e{len(made)}", task=task, job=to_values(job), state="waiting", message="", title=title)
        )

    desk.page.engine.submit, desk.page.engine.queue = submit, lambda: list(made)
    return made


def test_class_images_are_asked_for_on_a_card_and_their_folder_becomes_one(desk):
    made = queue_of(desk)
    own(desk, "class_word", "fox")
    assert 'data-act="class" data-arg="-1"' in desk.boards()["sources"]
    desk.act(event("class", "-1"))
    assert 'data-arg="negative_prompt"' in desk.boards()["sources"]
    desk.act(event("class_field", "number", "12"))
    desk.act(event("class_field", "prompt", "a drawing of a {class}"))
    with pytest.raises(ProblemsError):
        desk.act(event("class_field", "number", "0"))
    with pytest.raises(ProblemsError):
        desk.act(event("class_make", "-1"))
    desk.act(event("class_field", "number", "12"))
    desk.act(event("class_make", "-1"))
    asked = made[0].job["class_images"]
    assert made[0].task == "class_images" and (asked["number"], asked["class_word"]) == (12, "fox")
    entry = entries_of(desk.page.project.job)[-1]
    assert entry.role == "regularization" and entry.folder == asked["folder"] and "fox" in entry.folder
    assert f'data-waits="{made[0].id}"' in desk.boards()["sources"]
    before, _ = desk.reading.version, setattr(made[0], "state", "done")
    desk.tick("")
    assert desk.reading.version > before  # the folder is read again


def test_class_images_without_a_class_are_refused_with_the_fix(desk):
    made = queue_of(desk)
    desk.act(event("class", "-1"))
    with pytest.raises(ProblemsError) as refused:
        desk.act(event("class_make", "-1"))
    assert refused.value.codes == ["class-images.no-class"] and not made
    assert 'id="class-class_word" aria-invalid="true"' in desk.boards()["sources"]


def test_regularization_images_have_presets_of_their_own(desk):
    desk.act(event("class", "-1"))
    desk.act(event("class_field", "steps", "12"))
    desk.act(event("preset_save", "", "quick"))
    desk.act(event("class_field", "steps", "40"))
    assert desk.class_form.form.changed() == {"steps": 12}
    desk.act(event("preset_load", "", "user/quick"))
    assert desk.class_form.form.values()["steps"] == 12 and desk.page.presets.names("class_images") == ["user/quick"]
    desk.act(event("preset_undo"))
    assert desk.class_form.form.values()["steps"] == 40
