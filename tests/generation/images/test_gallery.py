"""The index of generated images: what comes, goes and changes, filters, stars, trash, and datasets made of them."""

from __future__ import annotations

import json
import os
import time
from datetime import date
from unittest.mock import Mock

import pytest
from PIL import Image

from core.generation.images import gallery as index
from core.generation.images.dataset import copy_as_dataset, plain_prompt
from core.generation.images.gallery import Filter, Gallery, facts_of, pair_key
from core.generation.images.metadata import png_info
from core.generation.model.sources import Hashes
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GenerateJob


@pytest.fixture
def space(tmp_path):
    return Workspace(outputs=tmp_path / "outputs", models=tmp_path / "models", presets=tmp_path / "presets")


def job(model="models/starter", controls=None, **generate):
    settings = {"generate": {"prompt": "a fox", "seed": 1} | generate, "model": {"base_model": model}}
    return build(GenerateJob, settings | {"controls": controls or {}})


def make(space, name, age=0.0, model="models/starter", **generate):
    """An image as generating writes it, made so many seconds ago."""
    path = space.images / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 8)).save(path, pnginfo=png_info(job(model, **generate), Hashes()))
    os.utime(path, (time.time() - age,) * 2)
    return path


def opened(space, **wanted):
    gallery = Gallery(space)
    gallery.refresh()
    gallery.read()
    return gallery, [shot.name for shot in gallery.matching(Filter(**wanted))]


def test_each_image_has_its_facts_and_the_newest_is_first(space):
    make(space, "2026-01-01/old.png", age=50)
    lora = {"file": "runs/x/ink.safetensors", "strength": 0.8}
    make(space, "2026-01-02/new.png", prompt="a cat", negative_prompt="blur", seed=7, sampler="euler", loras=[lora])
    gallery, names = opened(space)
    assert names == ["2026-01-02/new.png", "2026-01-01/old.png"]
    facts = gallery.facts(names[0])
    assert (facts.width, facts.height, facts.seed, facts.prompt, facts.negative) == (16, 8, 7, "a cat", "blur")
    assert (facts.model, facts.loras, facts.sampler, facts.source) == ("starter", ("ink",), "euler", "atelier")
    assert facts.own == "ink at 0.8" and not facts.plain


def test_a_checkpoint_of_a_run_is_called_by_the_run_and_its_step(space):
    run = space.runs / "20260102-030405_fox"
    (run / "checkpoints").mkdir(parents=True)
    (run / "about.json").write_text('{"title": "Red foxes"}')
    (run / "events.jsonl").write_text(
        '{"seq": 1, "kind": "saved", "step": 60, "file": "checkpoints/fox.safetensors"}\n'
    )
    files = [run / "checkpoints" / name for name in ("fox-step00000020.safetensors", "fox.safetensors")]
    for path in files:
        path.touch()
    loras = [{"file": str(path), "strength": 0.8} for path in files]
    make(space, "a.png", loras=loras)
    gallery, _ = opened(space)
    assert gallery.facts("a.png").own == "Red foxes, step 20 at 0.8, Red foxes, step 60 at 0.8"


def test_jpeg_and_webp_of_other_programs_are_there_too(space):
    space.images.mkdir(parents=True)
    exif = Image.Exif()
    block = "a fox\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 16x8"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + block.encode("utf-16-be")
    Image.new("RGB", (16, 8)).save(space.images / "a.webp", exif=exif)
    Image.new("RGB", (16, 8)).save(space.images / "b.JPG")
    gallery, names = opened(space)
    assert set(names) == {"a.webp", "b.JPG"}
    assert (gallery.facts("a.webp").source, gallery.facts("a.webp").seed) == ("a1111", 5)
    assert gallery.facts("b.JPG").source == "" and gallery.facts("b.JPG").width == 16


def test_what_comes_goes_and_changes_is_noticed_and_nothing_else_is_read_again(space, monkeypatch):
    read = []
    real = index.read_facts
    monkeypatch.setattr(index, "read_facts", lambda path, *more: read.append(path.name) or real(path))
    make(space, "d/a.png")
    make(space, "d/b.png")
    gallery, _ = opened(space)
    assert sorted(read) == ["a.png", "b.png"]
    version = gallery.version
    gallery.refresh()
    assert gallery.version == version and gallery.unread() == []
    make(space, "d/c.png", prompt="new")
    make(space, "e/f.png")
    (space.images / "d" / "a.png").unlink()
    make(space, "d/b.png", prompt="another fox, longer")
    read.clear()
    gallery.refresh()
    gallery.read()
    assert sorted(read) == ["b.png", "c.png", "f.png"] and gallery.version > version
    assert {shot.name for shot in gallery.newest()} == {"d/b.png", "d/c.png", "e/f.png"}
    assert gallery.facts("d/b.png").prompt == "another fox, longer"


def test_an_image_written_over_in_place_is_found_by_a_whole_look(space, monkeypatch):
    monkeypatch.setattr(index, "SETTLED_NS", -(10**12))
    path = make(space, "d/a.png")
    gallery, _ = opened(space)
    folder = os.stat(path.parent)
    path.write_bytes(make(space, "e/b.png", prompt="a longer prompt than that").read_bytes())
    os.utime(path.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    gallery.refresh()
    assert "d/a.png" not in [shot.name for shot in gallery.unread()]
    gallery.refresh(full=True)
    gallery.read()
    assert gallery.facts("d/a.png").prompt == "a longer prompt than that"


def test_the_index_is_warm_at_the_next_start(space, monkeypatch):
    make(space, "a.png", prompt="kept")
    opened(space)
    monkeypatch.setattr(index, "read_facts", lambda path: pytest.fail("read again"))
    gallery, _ = opened(space)
    assert gallery.facts("a.png").prompt == "kept"


def test_held_names_unfinished_files_links_and_the_trash_are_not_listed(space):
    make(space, "a.png")
    (space.images / "b.png").write_bytes(b"")
    (space.images / ".tmp-c.png").write_bytes(b"half")
    (space.images / "d.png").symlink_to(space.images / "nowhere")
    (space.images / "note.txt").write_text("x")
    make(space, "_atelier_trash/now/files/e.png")
    assert opened(space)[1] == ["a.png"]


def test_damaged_and_hostile_files_are_listed_with_what_there_is(space):
    make(space, "whole.png")
    (space.images / "cut.png").write_bytes((space.images / "whole.png").read_bytes()[:60])
    (space.images / "text.png").write_text("no image")
    from PIL.PngImagePlugin import PngInfo

    for number, text in enumerate(("{", "[1]", '{"format": 3, "job": ' + "[" * 5000, '{"format": "x"}', "x" * 300_000)):
        info = PngInfo()
        info.add_text("atelier", text)
        info.add_text("parameters", "<img src=x onerror=alert(1)>\nSteps: 1e9, Seed: -5, Size: 9x9x9")
        Image.new("RGB", (4, 4)).save(space.images / f"{number}.png", pnginfo=info)
    gallery, names = opened(space)
    assert len(names) == 8 and gallery.unread() == []
    assert all(gallery.facts(f"{number}.png").width == 4 for number in range(5))
    assert gallery.facts("text.png") == index.UNREAD


def test_an_image_that_another_program_has_open_is_read_again(space, monkeypatch):
    make(space, "a.png", prompt="kept")
    with monkeypatch.context() as held:
        held.setattr(Image, "open", Mock(side_effect=PermissionError))
        gallery, names = opened(space)
    assert names == ["a.png"] and gallery.unread() == []
    gallery.refresh(full=True)
    gallery.read()
    assert gallery.facts("a.png").prompt == opened(space)[0].facts("a.png").prompt == "kept"


def test_a_damaged_index_costs_only_time(space):
    make(space, "a.png", prompt="kept")
    opened(space)
    (space.private / "index.sqlite").write_bytes(b"no database" * 100)
    gallery, _ = opened(space)
    assert gallery.facts("a.png").prompt == "kept"


def test_filters_by_words_model_lora_day_and_stars(space):
    ink = [{"file": "models/loras/ink.safetensors", "strength": 1}]
    make(space, "a.png", prompt="A red Fox in snow", loras=ink)
    make(space, "b.png", prompt="a fox", age=3 * 86400, model="models/other.safetensors", seed=2)
    oldest = make(space, "c.png", prompt="a red barn", age=30 * 86400, seed=3)
    gallery, _ = opened(space)
    gallery.set_stars(["b.png"], 3)

    def found(**wanted):
        return [shot.name for shot in gallery.matching(Filter(**wanted))]

    assert (
        found(words="fox RED") == ["a.png"] and found(words="fox") == ["a.png", "b.png"] and found(words="nope") == []
    )
    assert found(model="other") == ["b.png"] and found(lora="ink") == ["a.png"]
    assert found(day="today") == ["a.png"] and found(day="week") == ["a.png", "b.png"]
    assert found(day=date.fromtimestamp(oldest.stat().st_mtime).isoformat()) == ["c.png"]
    assert found(stars=3) == ["b.png"] and found(stars=4) == [] and found(words="fox", stars=1) == ["b.png"]
    assert gallery.models() == {"starter": 2, "other": 1} and gallery.loras() == {"ink": 1}
    assert gallery.days()[date.today().isoformat()] == 1 and sum(gallery.days().values()) == 3
    with pytest.raises(ProblemsError) as error:
        found(day="31.12.")
    assert error.value.problems[0].code == "gallery.bad-day"


def test_an_image_stands_beside_the_one_of_the_base_model_alone(space):
    ink = [{"file": "ink.safetensors", "strength": 1}]
    make(space, "base.png", age=9)
    make(space, "ink.png", loras=ink, age=8)
    make(space, "other_seed.png", loras=ink, seed=2)
    gallery, names = opened(space)
    assert names == ["other_seed.png", "ink.png"]
    assert gallery.twin("ink.png") == "base.png" and gallery.twin("base.png") == gallery.twin("other_seed.png") == ""
    # Where its image is not found
    assert [shot.name for shot in gallery.matching(Filter(words="base"))] == ["base.png"]
    gallery.put_away(["ink.png"])
    assert [shot.name for shot in gallery.matching()] == ["other_seed.png", "base.png"]


def test_only_the_base_images_of_comparisons_and_of_earlier_times_are_hidden(space):
    ink = [{"file": "ink.safetensors", "strength": 1}]
    make(space, "early.png", age=99, seed=3)
    make(space, "early_ink.png", loras=ink, age=98, seed=3)
    opened(space)
    make(space, "ink.png", loras=ink, age=-8)
    alone = make(space, "alone.png", age=-9)
    gallery, names = opened(space)
    assert names == ["alone.png", "ink.png", "early_ink.png"] and gallery.twin("ink.png") == "alone.png"
    base = make(space, "base.png", age=-10, seed=2)
    make(space, "compared.png", loras=ink, age=-11, seed=2)
    gallery.add_bases([base, alone.parent.parent / "elsewhere.png"])
    assert opened(space)[1] == ["compared.png", "alone.png", "ink.png", "early_ink.png"]


def test_each_of_two_equal_comparisons_has_its_own_base_image(space):
    ink = [{"file": "ink.safetensors", "strength": 1}]
    for number in (1, 2):
        make(space, f"base{number}.png", age=9 - 2 * number)
        make(space, f"ink{number}.png", loras=ink, age=8 - 2 * number)
    gallery, names = opened(space)
    assert names == ["ink2.png", "ink1.png"]
    assert [gallery.twin(name) for name in names] == ["base2.png", "base1.png"]


def test_an_image_with_a_controlnet_stands_beside_the_one_without_it(space):
    ink, canny = [{"file": "ink.safetensors", "strength": 1}], {"nets": [{"file": "canny", "image": "edges.png"}]}
    make(space, "base.png", age=9)
    make(space, "canny.png", age=8, controls=canny)
    make(space, "both.png", loras=ink, age=7, controls=canny)
    gallery, names = opened(space)
    assert gallery.twin("both.png") == "canny.png" and gallery.twin("canny.png") == "base.png"
    assert names == ["both.png", "base.png"], "the base image of one that is hidden itself stays in the list"


def test_an_image_of_a_trained_model_stands_beside_its_bases_and_other_models_are_compared(space):
    trained = "outputs/runs/r/checkpoints/fox.safetensors"
    make(space, "base.png", model="models/a", age=9)
    make(space, "fox.png", model=trained, age=8, guidance_scale=4, width=72)
    make(space, "other.png", model="models/b", age=7)
    make(space, "seed.png", model=trained, seed=2, age=6)
    gallery, names = opened(space)
    assert names == ["seed.png", "other.png", "fox.png"] and gallery.twin("fox.png") == "base.png"
    assert gallery.twin("other.png") == gallery.twin("seed.png") == gallery.before("base.png") == ""
    assert gallery.before("other.png") == "fox.png" and gallery.before("fox.png") == "base.png"


def test_a_pair_differs_in_loras_and_embeddings_alone():
    plain = pair_key(job())
    assert pair_key(job(loras=[{"file": "x", "strength": 1}], embeddings=["y"], count=4)) == plain
    assert len({plain, pair_key(job(seed=2)), pair_key(job(steps=9)), pair_key(job("models/b"))}) == 4
    assert facts_of(job(embeddings=["zkw=outputs/zkw.safetensors"])).own == "zkw"


def test_an_image_has_0_to_5_stars(space):
    make(space, "a.png")
    gallery, _ = opened(space)
    for given, kept in ((4, 4), (5, 5), (6, 5), (-1, 0)):
        gallery.set_stars(["a.png"], given)
        assert gallery.stars("a.png") == kept


def test_stars_survive_the_loss_of_the_index_and_the_trash(space):
    make(space, "a.png")
    make(space, "b.png", seed=2)
    gallery, _ = opened(space)
    gallery.set_stars(["a.png", "b.png"], 4)
    gallery.set_stars(["b.png"], 0)
    for path in space.private.glob("index.sqlite*"):
        path.unlink()
    gallery, _ = opened(space)
    assert (gallery.stars("a.png"), gallery.stars("b.png")) == (4, 0)
    gallery.put_back(gallery.put_away(["a.png"]))
    assert gallery.stars("a.png") == 4
    with pytest.raises(ProblemsError):
        gallery.set_stars(["../x.png"], 3)


def test_a_damaged_file_of_stars_is_put_aside(space):
    make(space, "a.png")
    space.private.mkdir(parents=True)
    (space.private / "stars.json").write_text('{"stars": {"a.png": "many"}}')
    gallery, _ = opened(space)
    assert gallery.stars("a.png") == 0
    gallery.set_stars(["a.png"], 2)
    assert json.loads((space.private / "stars.json").read_text())["stars"] == {"a.png": 2}
    assert "many" in next(space.private.glob("stars-damaged-*")).read_text()


def test_images_go_to_the_trash_and_back_but_only_this_folders(space, tmp_path):
    files = [make(space, f"d/{name}.png", seed=n) for n, name in enumerate("abc")]
    content = files[0].read_bytes()
    gallery, _ = opened(space)
    token = gallery.put_away(["d/a.png", "d/b.png"])
    assert [shot.name for shot in gallery.newest()] == ["d/c.png"] and not files[0].exists()
    assert sorted(gallery.put_back(token)) == ["d/a.png", "d/b.png"] and files[0].read_bytes() == content
    for bad in (token, str(tmp_path / "_atelier_trash" / "x" / "put_away.json"), "x", f"{space.images}/../x/y/z"):
        with pytest.raises(ProblemsError):
            gallery.put_back(bad)
    with pytest.raises(ProblemsError) as error:
        gallery.put_away(["d/c.png", "d/gone.png"])
    assert error.value.problems[0].code == "gallery.gone" and files[2].exists()


def test_a_dataset_of_images_has_their_prompts_as_captions_and_overwrites_nothing(space):
    one, two = make(space, "d/a.png"), make(space, "e/a.png", seed=2)
    first = copy_as_dataset([(one, "a fox,\nrunning"), (two, "")], "mine", space.datasets)
    assert sorted(path.name for path in first.iterdir()) == ["a-2.png", "a.png", "a.txt"]
    assert (first / "a.txt").read_text() == "a fox, running" and one.exists()
    assert copy_as_dataset([(one, "")], "mine", space.datasets).name == "mine-2"
    for name, images, code in (("a/b", [(one, "")], "gallery.bad-dataset-name"), ("x", [], "gallery.nothing-selected")):
        with pytest.raises(ProblemsError) as error:
            copy_as_dataset(images, name, space.datasets)
        assert error.value.problems[0].code == code
    with pytest.raises(ProblemsError):
        copy_as_dataset([(one, ""), (space.images / "gone.png", "")], "half", space.datasets)
    assert sorted(path.name for path in space.datasets.iterdir()) == ["mine", "mine-2"]


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("a purple (flower:1.2), simple drawing", "a purple flower, simple drawing"),
        ("a [cat] AND a dog :0.5 <lora:ink:0.8> --n ugly --s 20", "a cat, a dog"),
        ("fox \\(animal\\), ((blue)) BREAK red", "fox (animal), blue, red"),
        ("a fox,\nat 12:30", "a fox, at 12:30"),
    ],
)
def test_captions_of_generated_images_are_plain_words(prompt, caption):
    assert plain_prompt(prompt) == caption


@pytest.mark.slow
def test_two_thousand_images_are_listed_filtered_and_looked_at_again_in_no_time(space):
    content = make(space, "d/first.png").read_bytes()
    for number in range(2000):
        (space.images / f"d/{number}.png").write_bytes(content)
    gallery, names = opened(space)
    assert len(names) == 2001
    begin = time.thread_time()
    for _ in range(10):
        gallery.refresh()
        gallery.matching(Filter(words="fox"))
    assert time.thread_time() - begin < 3  # a hundredth of reading them all again each time
