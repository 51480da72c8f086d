"""What textual inversion asks of the other settings, said before anything loads."""

from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.rules import training_problems


def said(**groups):
    job = build(TrainJob, {"method": {"kind": "embedding"}, **groups})
    return {problem.where: problem for problem in training_problems(job)}


def test_a_file_that_nobody_named_is_advised_the_word_it_is_read_by():
    advice = said(embedding={"token_string": "zkw, zkx"}, saving={"output_name": "my_lora"})["saving.output_name"]
    assert advice.level == "advice" and "by its file's name" in advice.what and "zkw" in advice.fix
    for name in ("zkw", "foxes"):
        assert "saving.output_name" not in said(embedding={"token_string": "zkw"}, saving={"output_name": name})
