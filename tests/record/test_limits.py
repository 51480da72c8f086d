"""Limits and tables of what is read and written, each at its edge."""

import os
import time

import pytest

from core.record import atomic, journal, machine, secrets
from core.record.best import clearly_lower, student_t
from core.record.bounded_json import parse_json
from core.record.bounded_toml import parse_toml
from core.record.former import with_current_names
from core.record.journal import Tail, cut_torn_line, read_lines
from core.record.kept import keep, read_kept
from core.record.patterns import Pattern
from core.record.problems import Problem, ProblemsError, errors_first, limited
from core.record.run_about import read_about, write_about
from core.record.run_folder import RunFolder
from core.record.space import require_space
from core.record.units import clock, count, memory_text, number_text, parameters_text, size_text, with_article
from tests.refusals import refused


@pytest.mark.parametrize(("number", "shown"), [(199, 199), (200, 200), (201, 201), (205, 201)])
def test_200_problems_are_listed_and_the_rest_is_counted(number, shown):
    listed = limited([Problem("a", str(n), code="a") for n in range(number)])
    assert len(listed) == shown and [each.where for each in listed[:200]] == [str(n) for n in range(min(200, number))]
    if number > 200:
        assert (listed[-1].code, listed[-1].where) == ("problems.more", "200")


def test_texts_of_a_problem_are_cut_in_the_middle():
    for name, limit in (("what", 1500), ("where", 1000), ("fix", 1500)):
        whole, long = "a" * (limit - 1) + "b", "a" * limit + "b"
        assert getattr(Problem(**{"what": "", name: whole}), name) == whole
        cut = getattr(Problem(**{"what": "", name: long}), name)
        assert cut == "a" * (limit // 2) + " ... " + "a" * (limit // 2 - 1) + "b"


def test_line_breaks_and_steering_signs_of_strangers_are_shown_as_signs():
    problem = Problem("a\r\nb\x1b[2J", "x\n  fix: y.png", "c\u2028d\u202ee\tf\u3000g")
    assert (problem.what, problem.where) == ("a\u23ceb\ufffd[2J", "x\u23ce  fix: y.png")
    assert problem.fix == "c\u23ced\ufffde\tf\u3000g"
    assert str(problem).count("\n") == 2


def test_errors_come_first_then_warnings_then_advice_each_once():
    given = [Problem(level, level=level, code=level) for level in ("advice", "warning", "error", "advice", "error")]
    assert [each.level for each in errors_first(given)] == ["error", "warning", "advice"]
    first, again = Problem("a", "x", "one", code="c"), Problem("a", "x", "two", code="c")
    assert errors_first([first, again, Problem("a", "y", code="c")]) == [first, Problem("a", "y", code="c")]


@pytest.mark.parametrize(("seconds", "gone"), [(3500, False), (3700, True)])
def test_what_is_half_written_is_removed_after_an_hour(tmp_path, seconds, gone):
    names = [".tmp-abcdefgh", ".tmp-abc_1234.txt"]
    others = [".tmp-abcdefg", ".tmp-abcdefghi", ".tmp-ABCDEFGH", "tmp-abcdefgh", "a.txt"]
    for name in names + others:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - seconds,) * 2)
    atomic.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(others if gone else names + others)


def test_a_folder_gets_the_first_name_that_is_free(tmp_path):
    (tmp_path / "sets").mkdir()
    for expected in ("fox", "fox-2", "fox-3"):
        (tmp_path / "new").mkdir()
        assert atomic.rename_to_unused(tmp_path / "new", tmp_path / "sets", "fox").name == expected


@pytest.mark.parametrize(("left", "seconds"), [(20.0, 1.0), (0.5, 0.5), (0.0, 0.001)])
def test_a_pattern_has_a_second_a_text_and_what_is_left_of_all(left, seconds):
    pattern = Pattern("a", "x")
    assert pattern._left == 20.0
    pattern._left = left
    assert pattern._with_timeout(lambda given: given) == seconds


@pytest.mark.parametrize(("key", "masked"), [("1234567", False), ("12345678", True)])
@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"])
def test_keys_of_8_characters_are_masked_from_every_variable(monkeypatch, variable, key, masked):
    monkeypatch.setenv(variable, key)
    assert secrets.mask(f"<{key}>") == ("<***>" if masked else f"<{key}>")


def test_of_two_variables_the_first_that_is_set_counts(monkeypatch):
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "second-key")
    assert secrets.secret("huggingface_token") == "second-key"
    monkeypatch.setenv("HF_TOKEN", "first-key")
    assert secrets.secret("huggingface_token") == "first-key"
    assert secrets.mask("second-key") == "***", "also the one that does not count"


def test_numbers_of_40_digits_and_a_million_values_are_read():
    assert parse_json("[" + "9" * 40 + "]", "") == [10**40 - 1]
    with refused("file.not-json"):
        parse_json("[" + "9" * 41 + "]", "")
    assert len(parse_json("[" + "1," * 999_998 + "1]", "")) == 999_999
    with refused("file.not-json"):
        parse_json("[" + "1," * 1_000_000 + "1]", "")


def test_a_toml_key_of_20_parts_is_read():
    assert parse_toml(".".join("a" * 20) + " = 1", "x", "fix")
    with refused("file.not-toml"):
        parse_toml(".".join("a" * 21) + " = 1", "x", "fix")


def test_names_and_kinds_of_earlier_versions_are_read():
    assert with_current_names({"kind": "picture", "pictures": 3, "pictures_seen": 4, "other": 5}) == {
        "kind": "image",
        "images": 3,
        "images_seen": 4,
        "other": 5,
    }
    assert with_current_names({"kind": "steps", "picture": 1}) == {"kind": "steps", "picture": 1}


@pytest.mark.parametrize(("free", "fits"), [(256_000_100, True), (256_000_099, False)])
def test_256_mb_of_the_disk_stay_free(tmp_path, monkeypatch, free, fits):
    monkeypatch.setattr(machine, "free_disk", lambda folder: free)
    if fits:
        return require_space(tmp_path, 100, "x", "y")
    with refused("disk.space"):
        require_space(tmp_path, 100, "x", "y")


def test_titles_notes_and_names_have_limits(tmp_path):
    folder = RunFolder.create(tmp_path, "x", {})
    assert write_about(folder, title="t" * 80, note="n" * 2000) == read_about(folder)
    assert (len(read_about(folder).title), len(read_about(folder).note)) == (80, 2000)
    for too_long in ({"title": "t" * 81}, {"note": "n" * 2001}):
        with pytest.raises(ProblemsError):
            write_about(folder, **too_long)
    file = folder.path / "a.safetensors"
    file.write_text("")
    keep(folder.path, file, "k" * 80)
    assert read_kept(folder.path) == {"a.safetensors": "k" * 80}
    with refused("kept.name-too-long"):
        keep(folder.path, file, "k" * 81)
    keep(folder.path, file, "")
    assert read_kept(folder.path) == {"a.safetensors": "a"}
    keep(folder.path, file, None)
    assert read_kept(folder.path) == {}


def test_a_line_longer_than_the_limit_ends_what_is_read_of_a_journal(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MAX_LINE", 100)
    path = tmp_path / "events.jsonl"
    line = '{"seq": %d, "kind": "log", "time": 1.0, "text": "%s"}\n'
    sound, longest = line % (1, "x"), line % (2, "y" * (100 - len(line % (2, ""))))
    assert len(longest) == 100
    path.write_text(sound + longest + line % (3, "z"))
    assert [each["seq"] for each in read_lines(path)] == [each["seq"] for each in Tail(path).lines()] == [1, 2, 3]
    path.write_text(sound + longest.replace("yy", "yyyy") + line % (3, "z"))
    assert [each["seq"] for each in read_lines(path)][:1] == [1] and 2 not in [e["seq"] for e in read_lines(path)]


@pytest.mark.parametrize(("text", "left"), [("", ""), ("a\n", "a\n"), ("a\nb", "a\n"), ("b", ""), ("a\n\nb", "a\n\n")])
def test_only_the_torn_end_of_a_journal_is_cut(tmp_path, text, left):
    (tmp_path / "a").write_text(text)
    cut_torn_line(tmp_path / "a")
    assert (tmp_path / "a").read_text() == left


def test_four_pairs_of_losses_can_be_compared_and_three_cannot():
    assert clearly_lower([1.0] * 3, [2.0] * 3) is None and clearly_lower([1.0] * 4, [2.0] * 4) is True
    assert clearly_lower([1.0] * 4, [2.0] * 5) is None


@pytest.mark.parametrize(
    ("ratio", "compared", "lower"), [(2.0, 1, False), (2.1, 1, True), (2.3, 2, False), (2.4, 2, True)]
)
def test_checkpoints_differ_from_the_quantile_of_30_pairs_on(ratio, compared, lower):
    """Tables: t of 29 degrees is 2.045 at 0.975 (one comparison) and 2.364 at 0.9875 (two)."""
    noise = [1.0, -1.0] * 15  # spread: 30 / 29
    mean = ratio * (30 / 29 / 30) ** 0.5
    assert clearly_lower([0.0] * 30, [each + mean for each in noise], compared) is lower


@pytest.mark.parametrize(
    ("freedom", "probability", "expected"),  # tables of Student's t
    [(5, 0.975, 2.5706), (10, 0.975, 2.2281), (10, 0.995, 3.1693), (30, 0.95, 1.6973), (4, 0.9, 1.5332)],
)
def test_quantiles_of_students_t(freedom, probability, expected):
    """A sign or factor of any of its terms moves one of these by more than its own error."""
    assert student_t(probability, freedom) == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (count(1, "entry"), "1 entry"),
        (count(0, "entry"), "0 entries"),
        (count(10_000, "image"), "10,000 images"),
        (count(2, "batch", "batches"), "2 batches"),
        (with_article("SD 1.x model"), "an SD 1.x model"),
        (with_article("LoRA"), "a LoRA"),
        (number_text(1e-4), "1e-4"),
        (number_text(0.001), "0.001"),
        (number_text(0.00099), "9.9e-4"),
        (number_text(16.0), "16"),
        (number_text(True), "True"),
        (parameters_text(99_999_999), "100.0 M"),
        (parameters_text(100_000_000), "100 M"),
        (parameters_text(999_999), "999,999"),
        (parameters_text(1_000_000), "1.0 M"),
        (memory_text(2**29), "0.5 GB"),
        (memory_text(2**29 - 2**20), "511 MB"),
        (memory_text(1), "1 MB"),
        (size_text(999), "999 bytes"),
        (size_text(1000), "1.0 kB"),
        (size_text(99_900), "99.9 kB"),
        (size_text(100_000), "100 kB"),
        (size_text(999_499), "999 kB"),
        (size_text(999_500), "1.0 MB"),
        (size_text(1.5e12), "1.5 TB"),
        (clock(59.4), "0:59"),
        (clock(59.5), "1:00"),
        (clock(3599), "59:59"),
        (clock(3600), "1:00:00"),
        (clock(-1), "–"),
    ],
)
def test_words_at_the_edges_of_their_units(made, expected):
    assert made == expected
