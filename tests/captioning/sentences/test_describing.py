"""From a folder with a model to captions on disk, each option by its effect. The models are small and random, of the real
classes; a word is a token of theirs."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from core import tasks
from core.captioning import decoding
from core.captioning.decoding import decoded_ahead
from core.captioning.sentences import describing, generating, loading
from core.captioning.sentences.folder import ModelFiles
from core.captioning.sentences.generating import AddressedSampling, Answer, AnswerBudget, PromptLength
from core.captioning.sentences.profiles import FLORENCE_TASKS, PROFILES
from core.dataset.images.opening import BrokenImage
from core.engine.engine import Engine
from core.record import memory
from core.record.problems import Problem, ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.captioning.prompts import CAPTION_TYPES, TOGGLES
from core.settings.captioning.sentences import VlmSettings
from core.settings.check import build
from tests.tasks import surroundings

KINDS = ("blip", "blip2", "git", "florence", "llava", "qwen", "smol")
LONG = {"max_new_tokens": 12, "min_new_tokens": 12, "whole_sentences": False, "retry_repetition": False}


def words(run):
    return {name: text.split() for name, text in run.texts.items()}


@pytest.fixture
def scripted(monkeypatch):
    """scripted([["first", "second attempt"], ...]): the answers of the model, image by image."""

    def script(said, cut=False):
        asked = []

        def answers(model, images, settings, attempt):
            asked.append((attempt, [each.path.name for each in images]))
            return [Answer(said[each.path.name][attempt], cut) for each in images]

        monkeypatch.setattr(generating, "answers", answers)
        return asked

    return script


@pytest.mark.slow(but=("blip",))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_writes_captions_that_a_batch_does_not_change(caption, kind):
    alone = caption(kind, decoding="sample", temperature=1.0, top_p=None, **LONG)
    assert all(len(text) <= 12 for text in words(alone).values()) and len(set(alone.texts.values())) > 1
    assert alone.outcome.facts == {"images": 4, "written": 4}
    together = caption(kind, decoding="sample", temperature=1.0, top_p=None, batch_size=3, **LONG)
    assert together.texts == alone.texts


@pytest.mark.slow
def test_shortest_and_longest_are_kept(caption):
    short = caption("llava", max_new_tokens=3, min_new_tokens=3, decoding="greedy", whole_sentences=False)
    long = caption(
        "llava", max_new_tokens=20, min_new_tokens=20, decoding="greedy", whole_sentences=False, retry_repetition=False
    )
    # a comma at the end is taken off, and special tokens are no words
    assert all(1 <= len(text) <= 3 for text in words(short).values())
    assert all(17 <= len(text) <= 20 for text in words(long).values())


@pytest.mark.slow
def test_draws_follow_from_the_seed_and_the_image_alone(caption, folder):
    first = caption("llava", decoding="sample", **LONG)
    assert caption("llava", decoding="sample", **LONG).texts == first.texts
    assert caption("llava", decoding="sample", seed=43, **LONG).texts != first.texts
    for name in ("a", "b", "d"):
        (folder / f"{name}.png").unlink()
        (folder / f"{name}.txt").unlink()
    assert caption("llava", decoding="sample", **LONG).texts == {"c": first.texts["c"]}


@pytest.mark.slow
def test_certain_sampling_is_greedy_and_a_higher_temperature_is_not(caption):
    greedy = caption("smol", decoding="greedy", **LONG).texts
    for certain in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3, "top_p": None}):
        assert caption("smol", decoding="sample", **certain, **LONG).texts == greedy
    assert caption("smol", decoding="sample", temperature=2.0, top_p=None, **LONG).texts != greedy


@pytest.mark.slow
def test_one_beam_is_greedy_and_the_length_penalty_chooses_among_several(caption):
    greedy = caption("blip", decoding="greedy", **LONG).texts
    assert caption("blip", decoding="beams", num_beams=1, **LONG).texts == greedy
    free = {"max_new_tokens": 12, "min_new_tokens": 1, "whole_sentences": False, "retry_repetition": False}
    several = {
        penalty: words(caption("blip", decoding="beams", num_beams=8, length_penalty=penalty, **free))
        for penalty in (-9, 9)
    }
    assert sum(map(len, several[-9].values())) < sum(map(len, several[9].values()))


@pytest.mark.slow
def test_words_are_not_repeated_where_that_is_asked(caption):
    once = words(caption("llava", decoding="greedy", no_repeat_ngram_size=1, **LONG))
    assert all(len(set(text)) == len(text) for text in once.values())
    free = words(caption("llava", decoding="greedy", **LONG))
    penalized = words(caption("llava", decoding="greedy", repetition_penalty=9.0, **LONG))
    assert sum(len(set(text)) for text in penalized.values()) > sum(len(set(text)) for text in free.values())


@pytest.mark.slow
@pytest.mark.parametrize("decoding", ["beams", "sample"])
def test_words_to_avoid_do_not_occur(caption, decoding):
    before = {word for text in words(caption("blip", decoding=decoding, **LONG)).values() for word in text}
    avoided = sorted(before)[:8]
    after = words(caption("blip", decoding=decoding, words_to_avoid=avoided, **LONG))
    assert after and not any(set(text) & set(avoided) for text in after.values())


def test_blip_samples_with_the_penalty_of_sd_scripts(models, monkeypatch):
    config = SimpleNamespace(model_type="blip")
    model = SimpleNamespace(model=SimpleNamespace(config=config), tokenizer=SimpleNamespace(unk_token_id=0))
    options = {
        way: generating._generate_arguments(model, VlmSettings(decoding=way), 0)
        for way in ("sample", "beams", "greedy")
    }
    assert options["sample"]["repetition_penalty"] == 1.1
    assert "repetition_penalty" not in options["beams"] | options["greedy"]


@pytest.mark.slow
def test_the_prompt_reaches_the_model_and_is_not_part_of_the_caption(caption, monkeypatch):
    seen, inputs = [], generating._model_inputs

    def note(*given):
        found = inputs(*given)
        seen.append(given[0].tokenizer.batch_decode(found[0]["input_ids"]))
        return found

    monkeypatch.setattr(generating, "_model_inputs", note)
    run = caption("blip", prompt="the old tree", **LONG)
    assert all("the old tree" in text for batch in seen for text in batch)
    assert not any(text.startswith("the old tree") for text in run.texts.values())
    monkeypatch.undo()
    assert caption("blip", prompt="", **LONG).texts != run.texts
    assert caption("blip2", prompt="the old tree", **LONG).texts != caption("blip2", prompt="", **LONG).texts


@pytest.mark.slow(but=("brief-<CAPTION>",))
@pytest.mark.parametrize(("detail", "token"), FLORENCE_TASKS.items())
def test_florence_is_told_its_task_alone(caption, monkeypatch, detail, token):
    seen, answers = [], generating.answers
    monkeypatch.setattr(generating, "answers", lambda m, asked, *more: seen.extend(asked) or answers(m, asked, *more))
    caption("florence", detail=detail, **LONG)
    assert {each.prompt for each in seen} == {token}


@pytest.mark.slow
def test_a_chat_holds_the_system_prompt_the_question_and_the_start(caption, folder, monkeypatch):
    seen, text = [], generating._chat_text
    monkeypatch.setattr(generating, "_chat_text", lambda *given: seen.append(text(*given)) or seen[-1])
    (folder / "a.txt").write_text("red,\nfox")
    asked = {
        "prompt": "of {name} {tags} in {folder} by {trigger}",
        "system_prompt": "be old",
        "caption_start": "the {name}",
    }
    run = caption("llava", captions={"trigger_word": "cat"}, **asked, **LONG)
    assert seen[0] == "system: be old user: <image>of a red, fox in set by cat assistant: the a"
    assert seen[1] == "system: be old user: <image>of b  in set by cat assistant: the b"
    assert run.texts["a"].startswith("the a ") and len(run.texts["a"].split()) == 14
    seen.clear()
    caption("llava", system_prompt="", caption_type="social", lighting=True, **LONG)
    asked = CAPTION_TYPES["social"][1].format(length="", words="")
    assert seen[0] == f"user: <image>{asked} {TOGGLES['lighting'][1]} assistant: "


def test_a_template_with_the_first_token_gets_no_second_one(models, own_model, caption, monkeypatch):
    model = own_model("llava")
    template = model / "chat_template.jinja"
    template.write_text("[BOS] " + template.read_text())
    path = model / "tokenizer.json"  # a tokenizer that adds it too, as Llama's does
    import json

    settings = json.loads(path.read_text())
    bos = {"SpecialToken": {"id": "[BOS]", "type_id": 0}}
    settings["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[BOS]": {"id": "[BOS]", "ids": [2], "tokens": ["[BOS]"]}},
    }
    path.write_text(json.dumps(settings))
    seen, inputs = [], generating._model_inputs
    monkeypatch.setattr(generating, "_model_inputs", lambda *given: seen.append(inputs(*given)) or seen[-1])
    caption("llava", model=model, **LONG)
    assert {int((each["input_ids"] == 2).sum()) for each, _ in seen} == {1}


def test_words_that_stand_for_an_image_are_taken_out_of_what_a_person_writes(caption, folder):
    (folder / "a.txt").write_text("a <image> of <image>")
    assert len(caption("llava", prompt="{tags} <image>", caption_start="<image> the", **LONG).texts) == 4


def test_a_template_that_does_not_end_is_told(caption, own_model, monkeypatch):
    monkeypatch.setattr(generating, "TEMPLATE_SECONDS", 0.1)
    model = own_model("llava")
    loops = "{% for a in range(2000) %}{% for b in range(2000) %}{% endfor %}{% endfor %}"
    (model / "chat_template.jinja").write_text((model / "chat_template.jinja").read_text() + loops)
    with pytest.raises(ProblemsError) as caught:
        caption("llava", model=model, max_new_tokens=4)
    assert caught.value.codes == ["captioner.template"]


@pytest.mark.slow(but=("a picture",))
@pytest.mark.parametrize("template", ["{{ raise_exception('no system role') }}", "a picture", "{% for x %}"])
def test_a_template_that_takes_no_image_or_no_system_prompt_is_told(caption, own_model, template):
    model = own_model("llava")
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(ProblemsError) as caught:
        caption("llava", model=model)
    assert caught.value.codes == ["captioner.template"]


def test_the_answer_has_its_own_budget_behind_the_thinking():
    prompt = PromptLength()
    prompt.tokens = 2
    budget = AnswerBudget([7, 8], 3, prompt)
    rows = torch.tensor([[7, 8, 1, 7, 8, 1, 1, 1], [7, 8, 1, 1, 7, 8, 1, 1], [7, 8, 1, 1, 1, 1, 1, 1]])
    assert budget(rows, None).tolist() == [True, False, False]
    assert budget(rows[:, :6], None).tolist() == [False] * 3


@pytest.mark.slow
def test_thinking_models_are_asked_to_think_and_get_the_tokens_for_it(caption, own_model, monkeypatch):
    model = own_model("llava")
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if enable_thinking %}{{ '<think>' }}{% endif %}")
    seen, inputs = [], generating._model_inputs
    monkeypatch.setattr(generating, "_model_inputs", lambda *given: seen.append(inputs(*given)[1]) or inputs(*given))
    run = caption("llava", model=model, thinking_tokens=4, **LONG)
    assert seen[0][0].endswith("<think>")
    assert run.texts == {} and run.outcome.facts == {"images": 4, "written": 0, "skipped": 4}
    assert {event.fix for event in run.said} == {"raise thinking tokens"}
    seen.clear()
    assert len(caption("llava", model=model, **LONG).texts) == 4 and not seen[0][0].endswith("<think>")


@pytest.mark.slow
def test_a_repetition_is_generated_once_more_and_cut_if_it_stays(caption, scripted):
    good, bad = "a fox runs", "a fox a fox a fox a fox a fox"
    asked = scripted({"a.png": [good], "b.png": [bad, good], "c.png": [bad, bad], "d.png": [good]})
    run = caption("llava", batch_size=4)
    assert run.texts == {"a": good, "b": good, "c": "a fox", "d": good}
    assert asked == [(0, ["a.png", "b.png", "c.png", "d.png"]), (1, ["b.png", "c.png"])]
    scripted({f"{name}.png": [bad] for name in "abcd"})
    assert set(caption("llava", retry_repetition=False).texts.values()) == {bad}


@pytest.mark.parametrize("decoding", ["greedy", "sample"])
def test_a_second_attempt_differs_from_the_first(models, decoding):
    found = ModelFiles(PROFILES["vlm"], models("llava"), None)
    asked = VlmSettings(decoding=decoding, precision="fp32", **LONG)
    model = loading.load(found, asked, "cpu")
    image = generating.Query(Image.new("RGB", (32, 32)), Path("a.png"), "a fox")
    first, second = (generating.answers(model, [image], asked, attempt)[0].text for attempt in (0, 1))
    assert first != second


@pytest.mark.slow
def test_a_missing_required_word_is_drawn_once_more_and_then_added(caption, scripted):
    scripted({"a.png": ["a red fox"], "b.png": ["a cat", "a fox"], "c.png": ["a cat", "a dog"], "d.png": ["", "a fox"]})
    run = caption("llava", decoding="sample", required_words=["fox"])
    assert run.texts == {"a": "a red fox", "b": "a fox", "c": "a dog, fox", "d": "a fox"}
    scripted({"a.png": ["a red fox"], "b.png": ["a cat"], "c.png": ["a cat"], "d.png": ["a dog"]})
    assert caption("llava", decoding="greedy", required_words=["fox"]).texts["b"] == "a cat, fox"
    cut = caption("llava", decoding="greedy", required_words=["fox"], max_caption_tokens=3, whole_sentences=False)
    assert cut.texts["b"] == "a, fox", "as CLIP counts, with the comma"


@pytest.mark.slow
def test_answers_are_cleaned_before_they_are_written(caption, scripted):
    scripted({f"{name}.png": ["The image shows **a fox**.\nIt r"] for name in "abcd"}, cut=True)
    assert set(caption("llava").texts.values()) == {"A fox."}
    kept = caption("llava", openers=[], plain_text=False, whole_sentences=False).texts
    assert set(kept.values()) == {"The image shows **a fox**. It r"}
    assert set(caption("llava", max_caption_tokens=3, whole_sentences=False).texts.values()) == {"A fox."}


def test_an_answer_that_ends_by_itself_was_not_cut(models):
    model = loading.load(
        ModelFiles(PROFILES["florence"], models("florence"), None), VlmSettings(precision="fp32"), "cpu"
    )
    image = generating.Query(Image.new("RGB", (64, 64), (250, 250, 250)), Path("a"), "<CAPTION>")
    free = generating.answers(model, [image], VlmSettings(decoding="greedy", max_new_tokens=12), 0)[0]
    forced = generating.answers(
        model, [image], VlmSettings(decoding="greedy", max_new_tokens=12, min_new_tokens=12), 0
    )[0]
    assert not free.cut and forced.cut


@pytest.mark.slow
def test_git_removes_writing_by_its_own_list(caption, scripted):
    scripted({f"{name}.png": ['a bus with the word "stop" on it in snow'] for name in "abcd"})
    assert set(caption("git").texts.values()) == {"a bus in snow"}
    assert set(caption("git", remove_words=[r"\bin snow"]).texts.values()) == {'a bus with the word "stop" on it'}


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_batch_and_skips_an_image_that_is_too_large_alone(caption, monkeypatch):
    sizes, answers = [], generating.answers

    def short_of_memory(model, asked, *more):
        sizes.append(len(asked))
        if len(asked) > 1 or asked[0].path.name == "b.png":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answers(model, asked, *more)

    full = caption("llava", batch_size=4, **LONG).texts
    monkeypatch.setattr(generating, "answers", short_of_memory)
    run = caption("llava", batch_size=4, captions={"caption_extension": ".caption"}, **LONG)
    found = {path.stem: path.read_text().strip() for path in Path(run.folder).glob("*.caption")}
    assert found == {name: text for name, text in full.items() if name != "b"}
    assert sizes == [4, 2, 1, 1, 1, 1] and run.outcome.facts["skipped"] == 1
    assert any("b.png" in line and "memory" in line for line in run.outcome.lines)


def test_another_error_of_the_model_is_not_taken_for_lack_of_memory(caption, monkeypatch):
    def fail(*given):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(generating, "answers", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        caption("llava")


def test_an_unreadable_image_is_named_skipped_and_counted(caption, folder):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:120])
    run = caption("blip", batch_size=2, **LONG)
    assert set(run.texts) == {"a", "c", "d"}
    assert run.outcome.facts == {"images": 4, "written": 3, "skipped": 1}
    assert any("b.png" in event.text for event in run.said)


@pytest.mark.slow
def test_settings_without_effect_are_named(caption):
    run = caption("llava", decoding="greedy", seed=7, num_beams=5, **LONG)
    assert any(event.text.endswith("num_beams, seed") or event.text.endswith("seed, num_beams") for event in run.said)
    assert not caption("llava", decoding="sample", seed=7, **LONG).said


@pytest.mark.slow(but=("bf16-dtype0",))
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_is_the_dtype_of_the_weights(caption, monkeypatch, precision, dtype):
    loaded, load = [], loading.load
    monkeypatch.setattr(describing, "load", lambda *given: loaded.append(load(*given)) or loaded[-1])
    caption("llava", precision=precision, device="cpu", **LONG)
    assert {each.dtype for each in loaded[0].model.parameters()} == {dtype} and loaded[0].device == "cpu"


@pytest.mark.slow(but=("4bit-Linear4bit",))
@pytest.mark.parametrize(("precision", "kind"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_words_are_packed_and_what_looks_at_images_is_not(models, precision, kind):
    found = ModelFiles(PROFILES["vlm"], models("wide"), None)
    model = loading.load(found, VlmSettings(precision=precision), "cpu")
    kinds = {name: type(module).__name__ for name, module in model.model.named_modules()}
    packed = {name for name, each in kinds.items() if each == kind}
    assert packed and all("language_model" in name for name in packed)
    asked = generating.Query(Image.new("RGB", (32, 32)), Path("a.png"), "a fox")
    settings = VlmSettings(decoding="greedy", max_new_tokens=3, min_new_tokens=3)
    assert len(generating.answers(model, [asked], settings, 0)[0].text.split()) == 3


@pytest.mark.slow
def test_the_model_is_out_of_memory_after_the_run_and_after_a_stop(caption, monkeypatch):
    models, load = [], loading.load

    def noted(*given):
        made = load(*given)
        models.append(weakref.ref(made.model))
        return made

    monkeypatch.setattr(describing, "load", noted)
    alive, empty = [], memory.trim_heap
    monkeypatch.setattr(memory, "trim_heap", lambda: alive.append(models[-1]() is not None) or empty())
    caption("blip", **LONG)
    assert alive == [False], "it is gone before memory is returned"
    monkeypatch.setattr(generating, "answers", lambda *given: (_ for _ in ()).throw(ValueError("stop")))
    with pytest.raises(ValueError):
        caption("blip", **LONG)
    gc.collect()
    assert models[-1]() is None


@pytest.mark.slow
def test_the_model_that_generates_images_makes_room_for_a_captioner(tmp_path, folder, models):
    engine = Engine(Workspace(tmp_path / "outputs", tmp_path / "models"), "cpu", "a test")
    released: list[bool] = []
    engine.models = SimpleNamespace(release=lambda: released.append(True))
    engine.start()
    try:
        settings = {"model": str(models("git")), "precision": "fp32"} | LONG
        job = build(tasks.named("git_caption").job, {"dataset": {"folder": str(folder)}, "git_caption": settings})
        identity = engine.submit("git_caption", job)
        end = time.monotonic() + 60
        while engine.progress(identity)["state"] in ("waiting", "running") and time.monotonic() < end:
            time.sleep(0.02)
        assert engine.progress(identity)["state"] == "done" and len(list(folder.glob("*.txt"))) == 4
        assert released[0]
    finally:
        engine.close()


@pytest.mark.slow
def test_the_check_before_a_start_loads_no_torch(folder, models):
    code = (
        "import sys; from pathlib import Path; from core import tasks; from core.record.workspace import Workspace;"
        "from core.settings.check import build; task = tasks.named('vlm');"
        "job = build(task.job, {'dataset': {'folder': sys.argv[1]}, 'vlm': {'model': sys.argv[2]}});"
        "print(task.check_job(job, Workspace(Path(sys.argv[1]) / 'out')));"
        "print([name for name in ('torch', 'transformers', 'gradio') if name in sys.modules])"
    )
    given = [sys.executable, "-c", code, str(folder), str(models("llava"))]
    found = subprocess.run(given, capture_output=True, text=True, check=True, cwd=PROJECT)
    assert found.stdout.split("\n")[:2] == ["4 images to caption", "[]"]


# ---- images


def test_the_asked_threads_open_images_of_at_most_the_asked_size(caption, monkeypatch):
    pools, sizes, pool, answers = [], [], decoding.ThreadPoolExecutor, generating.answers
    monkeypatch.setattr(decoding, "ThreadPoolExecutor", lambda *words: pools.append(words[0]) or pool(*words))
    note = lambda model, asked, *more: sizes.append([each.image.size for each in asked]) or answers(model, asked, *more)  # noqa: E731
    monkeypatch.setattr(generating, "answers", note)
    caption("llava", max_image_side=32, decode_threads=7, batch_size=3, **LONG)
    assert pools == [7] and list(map(len, sizes)) == [3, 1]
    assert {max(size) for batch in sizes for size in batch} == {32}


@pytest.mark.slow(but=("auto-cuda:7",))
@pytest.mark.parametrize(("device", "used"), [("cpu", "cpu"), ("auto", "cuda:7")])
def test_the_device_is_the_jobs_unless_the_cpu_is_asked_for(folder, models, monkeypatch, device, used):
    asked = VlmSettings(model=str(models("llava")), device=device)
    context = surroundings(Workspace(folder.parent / "outputs"))
    context.device = "cuda:7"
    given: list[str] = []

    def load(found, settings, where):
        given.append(where)
        raise ProblemsError.one("enough")

    monkeypatch.setattr(describing, "load", load)
    row = SimpleNamespace(image=SimpleNamespace(path=folder / "a.png"))
    with pytest.raises(ProblemsError, match="enough"):
        next(describing.describe("vlm", [row], asked, context))
    assert given == [used]


def test_images_are_those_of_a_training(tmp_path):
    turned = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    assert describing.prepared(tmp_path / "turned.jpg", None).size == (20, 40)
    for name in ("clear.png", "deep.png", "print.jpg"):
        image = describing.prepared(tmp_path / name, None)
        assert image.mode == "RGB" and image.getpixel((4, 4)) == (255, 255, 255), name


@pytest.mark.parametrize(("side", "size"), [(None, (200, 50)), (300, (200, 50)), (100, (100, 25)), (32, (32, 8))])
def test_larger_images_are_scaled_down(tmp_path, side, size):
    Image.new("RGB", (200, 50)).save(tmp_path / "a.png")
    assert describing.prepared(tmp_path / "a.png", side).size == size


def test_threads_open_images_at_once_in_order_and_are_not_far_ahead():
    both, opened = threading.Barrier(3, timeout=60), []

    def prepare(path):
        opened.append(path)
        if len(opened) <= 3:
            both.wait()
        if path.name == "4":
            raise BrokenImage("is damaged")
        return path.name

    found = decoded_ahead([Path(str(number)) for number in range(40)], prepare, 3, 1)
    assert next(found)[1] == "0" and len(opened) <= 5
    rest = [each for _, each in found]
    assert isinstance(rest[3], Problem) and rest[3].code == "image.unreadable" and "4 is damaged" in rest[3].what
    assert rest[:3] + rest[4:] == [str(number) for number in range(40) if number not in (0, 4)]


# ---- draws


def test_a_word_is_drawn_as_often_as_it_is_likely():
    chances, draws = torch.tensor([0.5, 0.3, 0.2]), 3000
    prompt = PromptLength()
    settings = VlmSettings(temperature=1.0, top_p=None)
    sampling = AddressedSampling(settings, [f"{number}.png" for number in range(draws)], 0, prompt)
    chosen = sampling(torch.zeros(draws, 1, dtype=torch.long), chances.log().expand(draws, 3)).argmax(-1)
    shares = torch.bincount(chosen, minlength=3) / draws
    assert torch.allclose(shares, chances, atol=0.03)  # three standard deviations of a share of 3,000 draws


def test_every_model_type_is_known_to_the_library_with_the_parts_that_are_loaded():
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as known
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

    for profile in PROFILES.values():
        for name in profile.types:
            parts = processor_class_from_name(PROCESSOR_MAPPING_NAMES[name]).get_attributes()
            assert name in known and set(parts) <= {"image_processor", "tokenizer", "video_processor"}, name
