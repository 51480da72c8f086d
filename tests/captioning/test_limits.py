"""Limits and tables of captioning, each at its edge."""

import pytest

from core.captioning.bulk import caption_history
from core.captioning.captioners import Tally
from core.captioning.filters import Facts, test_of
from core.captioning.identifiers import propose
from core.captioning.sentences.cleaning import plain, repetition, without_repetition
from core.captioning.sentences.folder import files_to_download
from core.captioning.sentences.profiles import FLORENCE_TASKS, profile_of
from core.captioning.tag_lists import ListedTag, TagList, read_tag_list
from core.captioning.tagger import score_cache as kept_module
from core.captioning.tagger import sd_scripts
from core.captioning.tagger.labels import read_csv
from core.captioning.tagger.profile import PROFILES
from core.captioning.tagger.score_cache import FolderScores, ImageScores
from core.captioning.tagger.tagging import formatter
from core.captioning.tagger.tags import Label, mcut, threshold_of
from core.dataset.captions.history import Change, History
from core.families.token_count import clip_tokenizer, word_facts
from core.record.workspace import Workspace
from core.settings.captioning.edits import CaptionHistorySettings
from core.settings.captioning.tagger import TagSettings
from tests.refusals import refused
from tests.tasks import surroundings

test_of.__test__ = False

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# repository -> layout, size, channels, largest input, (mean, std), how it is padded and resized, sigmoid, thresholds
INPUTS = {
    "SmilingWolf/": ("NHWC", 448, "BGR", "255", None, "square", "bicubic", False, (0.35, 0.85)),
    "cella110n/cl_tagger": ("NCHW", 448, "BGR", "1", (HALF, HALF), "square", "bicubic", True, (0.55, 0.6)),
    "Camais03/camie-tagger-v2": ("NCHW", 512, "RGB", "1", IMAGENET, "square", "lanczos", True, (0.5, 0.6)),
    "Camais03/camie-tagger": ("NCHW", 512, "RGB", "1", None, "square", "lanczos", True, (0.35, 0.6)),
    "deepghs/pixai": ("NCHW", 448, "RGB", "1", (HALF, HALF), "stretch", "bilinear", False, (0.3, 0.85)),
    "skytnt/deepdanbooru": ("NHWC", 512, "RGB", "1", None, "edge", "area", False, (0.5, None)),
}


@pytest.mark.parametrize("name", PROFILES)
def test_each_tagger_gets_its_images_as_its_authors_prepare_them(name):
    it = PROFILES[name]
    *shape, norm, pad, resample, sigmoid, thresholds = INPUTS[
        max((begin for begin in INPUTS if it.repo.startswith(begin)), key=len)
    ]
    assert [it.layout, it.size, it.channels, it.scale] == shape
    assert (it.mean, it.std) == (norm or ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert (it.pad, it.resample, it.sigmoid) == (pad, resample, sigmoid)
    assert (it.thresholds["general"], it.thresholds.get("character")) == thresholds
    assert it.output == {"Camais03/camie-tagger-v2": 1, "deepghs/pixai-tagger-v0.9-onnx": "prediction"}.get(it.repo, 0)


@pytest.mark.parametrize(
    ("code", "category"),
    [("0", "general"), ("1", "artist"), ("3", "copyright"), ("4", "character"), ("5", "meta"), ("9", "rating")]
    + [("10", "year"), ("quality", "quality"), ("2", "2")],
)
def test_each_code_of_a_label_table_is_a_category(tmp_path, code, category):
    path = tmp_path / "tags.csv"
    path.write_text(f"tag_id,name,category,count\n1,a,{code},2\n")
    assert read_csv(path) == [Label("a", category)]


def test_a_table_of_as_many_labels_as_the_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("core.captioning.tagger.labels.MAX_LABELS", 3)
    path = tmp_path / "tags.csv"
    path.write_text("name,category\n" + "a,0\n" * 3)
    assert len(read_csv(path)) == 3
    path.write_text("name,category\n" + "a,0\n" * 4)
    with refused("tagger.bad-labels"):
        read_csv(path)


def test_the_threshold_of_a_category_is_its_own_else_the_common_one_else_the_models():
    common, models = TagSettings(thresh=0.4), {"general": 0.3, "character": 0.8}
    assert threshold_of("general", common, models) == threshold_of("character", common, models) == 0.4
    assert threshold_of("character", TagSettings(thresh=0.4, character_threshold=0.5), models) == 0.5
    assert [threshold_of(each, TagSettings(), models) for each in ("general", "character", "meta")] == [0.3, 0.8, 0.3]
    assert threshold_of("general", TagSettings(), {}) == 0.35
    assert threshold_of("rating", common, models) == threshold_of("quality", common, models) == 0.0


def test_the_automatic_threshold_is_the_middle_of_the_largest_gap_and_the_first_of_equals():
    assert mcut([0.9, 0.8, 0.2]) == pytest.approx(0.5)
    assert mcut([1.0, 0.6, 0.2]) == pytest.approx(0.8)


def test_as_in_sd_scripts_a_score_of_035_is_kept_and_names_of_three_letters_keep_their_underscore():
    options = TagSettings(remove_underscore=True, compatibility="sd-scripts-0.9")
    scored = [(Label("^_^", "general"), 0.35), (Label("a_bc", "general"), 0.9), (Label("low", "general"), 0.349)]
    assert sd_scripts.formatter(options)(scored).tags == ("^_^", "a bc")


@pytest.mark.parametrize("most", [1, 2])
def test_scores_of_so_many_folders_are_held_in_memory(tmp_path, monkeypatch, most):
    monkeypatch.setattr(kept_module, "INDEXES", most)
    monkeypatch.setattr(kept_module, "_indexes", {})
    for name in "abc":
        folder = FolderScores(Workspace(tmp_path / "out"), "m", tmp_path / name)
        folder.append({"x.png": ImageScores((1, 2), ((Label(name, "general"), 0.5),))}, {"general": 0.35})
        assert folder.find(tmp_path / name / "x.png")[0].scored == ((Label(name, "general"), 0.5),)
        assert len(kept_module._indexes) <= most and folder.path in kept_module._indexes


@pytest.mark.parametrize(("outdated", "shorter"), [(3, False), (4, True)])
def test_a_file_of_scores_is_written_anew_when_more_than_half_is_outdated(tmp_path, outdated, shorter):
    """Of three images: of six lines three are outdated, of seven four."""
    folder = FolderScores(Workspace(tmp_path / "out"), "m", tmp_path)
    one = ImageScores((1, 2), ((Label("a", "general"), 0.5),))
    folder.append({f"{n}.png": one for n in range(3)}, {})
    for number in range(outdated):
        folder.append({f"{number % 3}.png": one}, {})
    before = folder.path.stat().st_size
    folder.compact()
    assert (folder.path.stat().st_size < before) == shorter
    assert all(folder.find(tmp_path / f"{n}.png")[0] == one for n in range(3))


def test_a_tag_has_50_aliases_and_names_200_letters(tmp_path):
    path = tmp_path / "tags.csv"
    path.write_text(f'a,0,5,"{",".join(f"x{n}" for n in range(51))}"\n{"b" * 200},0,4\n{"c" * 201},0,3\n')
    known = read_tag_list(path)
    assert [each.alias for each in known if each.tag == "a"] == ["", *(f"x{n}" for n in range(50))]
    assert [each.tag[:1] for each in known if each.tag != "a"] == ["b"]


def test_the_most_frequent_tags_are_proposed_and_a_name_of_its_own_before_an_alias():
    tags = TagList([ListedTag("aa", 5), ListedTag("ab", 9), ListedTag("x", 9, "ac"), ListedTag("ad", 1)])
    assert [each.tag for each in tags.complete("a", 2)] == ["ab", "x"]
    assert [each.tag for each in tags.complete("a", 9)] == ["ab", "x", "aa", "ad"]


@pytest.mark.parametrize(("times", "cut"), [(3, False), (4, True)])
@pytest.mark.parametrize("words", [1, 40])
def test_a_phrase_of_up_to_40_words_repeats_at_the_fourth_time(times, cut, words):
    phrase = " ".join(f"w{n}" for n in range(words))
    assert without_repetition(" ".join([phrase] * times)) == (phrase if cut else " ".join([phrase] * times))
    assert repetition(" ".join([" ".join(f"w{n}" for n in range(41))] * 4)) is None


@pytest.mark.parametrize("pair", ['""', "''", "“”", "‘’", "«»"])
def test_each_kind_of_quotes_around_a_whole_caption_goes(pair):
    assert plain(f"{pair[0]}a fox{pair[1]}") == "a fox"
    assert plain(f"{pair[0]}a fox") == f"{pair[0]}a fox"


def test_each_task_of_florence_and_each_type_of_model_has_its_captioner():
    assert FLORENCE_TASKS == {
        "brief": "<CAPTION>",
        "detailed": "<DETAILED_CAPTION>",
        "more-detailed": "<MORE_DETAILED_CAPTION>",
    }
    of_types = {"blip": "blip", "blip-2": "blip", "git": "git_caption", "florence2": "florence", "llava": "vlm"}
    of_types |= dict.fromkeys(("qwen2_5_vl", "qwen3_vl", "gemma3", "internvl", "vipllava", "aya_vision"), "vlm")
    assert {name: profile_of(name).task for name in of_types} == of_types and profile_of("bert") is None


def test_of_a_repository_its_small_files_and_safetensors_are_downloaded_and_the_config_last():
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "README.md", "tokenizer.json", "merges.txt"]
    names += ["chat_template.jinja", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "a/b.json"]
    names += ["pytorch_model.bin.index.json", "flax_model.msgpack", "other.safetensors"]
    assert files_to_download(names) == [
        "tokenizer.json",
        "merges.txt",
        "chat_template.jinja",
        "model.safetensors.index.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "config.json",
    ]


@pytest.mark.parametrize(
    ("expression", "matches"),
    [("tokens:>7", False), ("tokens:>=7", True), ("tokens:<7", False), ("tokens:<=7", True), ("tokens:7", True)]
    + [("tokens:=6", False), ("width:<512", False), ("width:512", True), ("height:512", False), ("height:>767.5", True)]
    + [("tags:2", True), ("tags:>2", False), ("chars:6", True), ("chars:<6", False), ("tags:1", False)],
)
def test_numbers_of_a_filter_at_their_edge(expression, matches):
    assert test_of(expression)(Facts("a.png", "x", "ab, cd", False, tokens=7, width=512, height=768)) is matches


def test_a_filter_has_2000_letters():
    assert test_of("a" * 2000)
    with refused("filter.bad-expression"):
        test_of("a" * 2001)


def test_rare_words_come_from_the_last_quarter_of_the_vocabulary_and_common_ones_from_its_first_half():
    ids = clip_tokenizer().get_vocab()
    for word in propose(20, 1):
        assert ids[f"{word}</w>"] >= 0.75 * len(ids)
    of_half = sorted((n, word) for word, n in ids.items() if word.endswith("</w>") and word[:-4].isascii())
    below = [word[:-4] for n, word in of_half if n < 0.5 * len(ids) and word[:-4].isalpha()][-1]
    above = next(word[:-4] for n, word in of_half if n >= 0.5 * len(ids) and word[:-4].isalpha())
    assert word_facts(below).common and not word_facts(above).common and word_facts(above).rank is not None
    assert len(propose(20, 1)) == 20 and propose(1, 1) == propose(20, 1)[:1]


@pytest.mark.parametrize(("changes", "listed"), [(30, 30), (31, 30)])
def test_the_newest_30_changes_are_listed(tmp_path, changes, listed):
    about = surroundings(Workspace(tmp_path / "outputs"))
    history = History(about.workspace.captions)
    for number in range(changes):
        history.apply(
            f"Edit <{number}>",
            [Change(tmp_path / "a.txt", str(number - 1).encode() if number else None, str(number).encode())],
        )
    outcome = caption_history(CaptionHistorySettings(), about)
    assert [line.partition("<")[2].partition(">")[0] for line in outcome.lines] == [
        str(number) for number in range(changes - 1, changes - 1 - listed, -1)
    ]


@pytest.mark.parametrize(("kinds", "more"), [(200, 0), (201, 1)])
def test_200_tags_are_listed_the_most_frequent_first(kinds, more):
    tally = Tally(images=1)
    tally.counts.update({f"t{number}": number + 1 for number in range(kinds)})
    outcome = tally.outcome("replace")
    assert list(outcome.facts["counts"]) == [f"t{number}" for number in range(kinds - 1, kinds - 201, -1)]
    assert len(outcome.lines) == 200 + more + 1


@pytest.mark.parametrize(
    ("options", "scores", "kept"),
    [
        ({"thresh": 0.5}, [("a", 0.5), ("b", 0.499)], "a"),
        ({"mcut": True}, [("a", 0.9), ("b", 0.5), ("c", 0.4)], "a"),
        ({"mcut": True, "general_threshold": 1.0}, [("a", 0.9), ("b", 0.3)], "a"),
        ({"mcut": True, "general_threshold": 1.1}, [("a", 0.9), ("b", 0.3)], ""),
        ({"thresh": 0.1, "max_tags": 2}, [("a", 0.2), ("b", 0.9), ("c", 0.5)], "b, c"),
        ({"thresh": 0.1, "max_tags": 2, "order": "score"}, [("a", 0.2), ("b", 0.5), ("c", 0.9)], "c, b"),
        (
            {"thresh": 0.1, "remove_overlap": True},
            [("hair", 0.9), ("long_hair", 0.5), ("hairpin", 0.5)],
            "long hair, hairpin",
        ),
        ({"thresh": 0.1, "tag_weights": True}, [("a", 0.126), ("b", 0.9)], "(a:0.13), (b:0.90)"),
    ],
)
def test_tags_are_chosen_at_these_scores(options, scores, kept):
    scored = [(Label(name, "general"), score) for name, score in scores]
    assert formatter(TagSettings(**options), {"general": 0.35})(scored).text == kept


def test_the_automatic_threshold_of_characters_is_015_at_least():
    scored = [(Label("a", "character"), 0.15), (Label("b", "character"), 0.149)]
    assert formatter(TagSettings(mcut=True), {"general": 0.35})(scored).text == "a"
