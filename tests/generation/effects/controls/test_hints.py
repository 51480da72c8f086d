"""Control images in Generate: preprocessors, resize modes, and those of each stage."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from core.control.hints import by_model
from core.families import family
from core.generation.effects.controls import hook as controls
from core.generation.effects.controls.hook import Controls, hook_of
from core.generation.run import run_generate
from core.generation.sample.canvas import control_image_for
from core.generation.sample.loop import Stage
from core.record.cancel import CancelToken
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.hints import HintSettings
from core.settings.job import GenerateJob
from tests.generation.effects.controls.parts import LIMIT, SIZE, codes, job_of, made_by
from tests.tasks import surroundings


@pytest.mark.slow
def test_a_preprocessor_makes_the_control_image_at_the_size_of_the_result(models, photo, place, space, store):
    from core.control.hints import make_hint

    folder, files = models("sd1")
    small = np.array(Image.open(photo).resize(SIZE, Image.Resampling.LANCZOS))
    Image.fromarray(make_hint(small, HintSettings(edge_low=50))).save(place / "edges.png")
    live = {"file": str(files[0]), "image": str(photo), "preprocessor": "canny", "edge_low": 50}
    made = {"file": str(files[0]), "image": str(place / "edges.png")}
    one, other = (made_by(job_of(folder, [use]), space, store) for use in (live, made))
    assert np.array_equal(one, other)


def test_every_preprocessor_can_be_chosen():
    from core.control.hints import preprocessors

    for name in ("none", *preprocessors()):
        use = {"file": "a", "image": "b", "preprocessor": name}
        assert build(GenerateJob, {"controls": {"nets": [use]}}).controls.nets[0].preprocessor == name


@pytest.mark.slow
def test_each_stage_of_hires_fix_sees_its_control_image(models, hints, space, store, monkeypatch):
    folder, files = models("sd1")
    shown, real = [], controls.ControlNet.residuals
    spy = lambda net, noisy, at, given: shown.append(given.control) or real(net, noisy, at, given)  # noqa: E731
    monkeypatch.setattr(controls.ControlNet, "residuals", spy)
    hires = {"highres_fix_scale": 2.0, "highres_fix_steps": 3}
    asked = {"hires": hires, "image_to_image": {"strength": 0.7}}
    use = {"file": str(files[0]), "image": str(hints[0])}
    made = made_by(job_of(folder, [use], **asked), space, store)
    assert made.shape == (2 * SIZE[1], 2 * SIZE[0], 3)
    for each in shown:
        wide = each.shape[-1]
        pixels = np.array(Image.open(hints[0]).resize((wide, wide * SIZE[1] // SIZE[0]), Image.Resampling.LANCZOS))
        assert (each[0].permute(1, 2, 0).numpy() * 255 - pixels).__abs__().max() < 1.5
    assert {each.shape[-1] for each in shown} == {SIZE[0], 2 * SIZE[0]}
    plain = made_by(job_of(folder, **asked), space, store)
    assert np.abs(made - plain).mean() > LIMIT


@pytest.mark.parametrize(("another", "off", "acts"), [(0, True, True), (1, False, True), (1, True, False)])
def test_they_act_in_a_stage_unless_it_is_the_second_and_turned_off_there(another, off, acts):
    use = {"file": "a.safetensors", "image": "a.png"}
    job = job_of("m", [use], hires={"highres_fix_scale": 2.0, "highres_fix_disable_control_net": off})
    making = SimpleNamespace(job=job, stage=Stage((64, 64), seed_offset=another))
    assert (hook_of(making) is not None) == acts


@pytest.mark.parametrize(("program", "wanted"), [("none", [0, 1, 1, 0, 0]), ("sd-scripts-0.10", [0, 1, 1, 1, 0])])
def test_one_acts_from_its_first_share_of_the_steps_up_to_its_last(program, wanted):
    """In sd-scripts also at a step within which its share ends."""
    use = {"file": "a.safetensors", "image": "a.png", "start_at": 0.2, "end_at": 0.6}
    making = SimpleNamespace(job=job_of("m", [use], model={"compatibility": program}), family=family("sdxl"))
    acting = [Controls(making)._acting(SimpleNamespace(index=n, steps=5)) for n in range(5)]
    assert acting == [[bool(on)] for on in wanted]


@pytest.mark.slow
def test_the_second_stage_of_hires_fix_may_be_without_them(models, hints, space, store):
    folder, files = models("sd1")
    use = {"file": str(files[0]), "image": str(hints[0])}

    def made(nets, strength, off):
        hires = {"highres_fix_scale": 2.0, "highres_fix_steps": 3, "highres_fix_disable_control_net": off}
        job = job_of(folder, nets, hires=hires, image_to_image={"strength": strength}, generate={"steps": 3})
        return made_by(job, space, store)

    plain = made([], 1.0, off=True)  # at this strength hardly anything is left of the first stage
    both, one = (np.abs(made([use], 1.0, off=off) - plain).mean() for off in (False, True))
    assert one < both / 4
    first = made([use], 0.7, off=True)
    assert np.abs(first - made([], 0.7, off=True)).mean() > LIMIT, "they act in the first stage"
    assert np.abs(first - made([use], 0.7, off=False)).mean() > LIMIT


@pytest.mark.slow
def test_a_job_makes_a_control_image_once_for_each_size(models, photo, space, store, monkeypatch):
    folder, files = models("sd1")
    uses = [{"file": str(files[0]), "image": str(photo), "preprocessor": "canny", "weight": each} for each in (0.5, 1)]
    made, real = [], by_model.make_hint
    monkeypatch.setattr(by_model, "make_hint", lambda pixels, use: made.append(pixels.shape[:2]) or real(pixels, use))
    asked = {"hires": {"highres_fix_scale": 2.0}, "generate": {"count": 2, "batch_size": 1, "steps": 1}}
    run_generate(job_of(folder, uses, **asked, image_to_image={"strength": 1.0}), space, store=store)
    assert made == [(64, 96), (128, 192)]


@pytest.mark.parametrize(("size", "ratio", "unsharp"), [((96, 64), 0.5, None), ((64, 64), 0.1, "3,1,1,0")])
def test_latents_of_small_images_grow_too(size, ratio, unsharp, models, space, store):
    folder, _ = models("sd1")
    growing = {"gradual_latent_timesteps": 999, "gradual_latent_ratio": ratio, "gradual_latent_unsharp_params": unsharp}
    generate = {"sampler": "euler_a", "steps": 3, "width": size[0], "height": size[1]}
    made = made_by(job_of(folder, generate=generate, gradual_latent=growing), space, store)
    assert made.shape == (size[1], size[0], 3) and np.isfinite(made).all()


@pytest.mark.slow(only=("sd-scripts-0.10",))
@pytest.mark.parametrize("compatibility", ["none", "sd-scripts-0.10"])
def test_latents_that_grow_see_the_control_image_at_their_size_and_it_is_made_once(
    compatibility, models, photo, space, store, monkeypatch
):
    """sd-scripts resizes the embedding of the whole control image."""
    folder, files = models("sd1")
    use = {"file": str(files[0]), "image": str(photo), "preprocessor": "canny"}
    made, seen, real, residuals = [], [], by_model.make_hint, controls.ControlNet.residuals

    def spy(net, noisy, timesteps, given):
        seen.append((tuple(noisy.shape[-2:]), tuple(given.control.shape[-2:])))
        return residuals(net, noisy, timesteps, given)

    monkeypatch.setattr(by_model, "make_hint", lambda pixels, use: made.append(pixels.shape[:2]) or real(pixels, use))
    monkeypatch.setattr(controls.ControlNet, "residuals", spy)
    growing = {"gradual_latent_timesteps": 900, "gradual_latent_ratio": 0.5, "gradual_latent_every_n_steps": 1}
    growing |= {"gradual_latent_ratio_step": 0.25}
    generate = {"sampler": "euler_a", "steps": 5, "width": 256, "height": 128}
    model = {"base_model": str(folder), "compatibility": compatibility}
    run_generate(job_of(folder, [use], generate=generate, gradual_latent=growing, model=model), space, store=store)
    assert made == [(128, 256)]
    assert {latents for latents, _ in seen} == {(8, 16), (8, 24), (16, 32)}
    kohya = compatibility != "none"
    assert all(shown == ((128, 256) if kohya else (8 * high, 8 * wide)) for (high, wide), shown in seen)


@pytest.mark.slow
def test_an_onnx_model_makes_the_control_image_once_for_each_size(models, photo, place, space, store, monkeypatch):
    from tests.tools.images.test_hints import write_net

    folder, files = models("sd1")
    workspace = Workspace(space.outputs, place / "models")
    own = write_net(workspace.preprocessors / "half/model.onnx")
    (own.parent / "profile.json").write_text('{"values": "1", "size": 64, "multiple": 32}')
    asked, made = [], by_model.HintModel.make
    monkeypatch.setattr(by_model.HintModel, "make", lambda self, image: asked.append(self) or made(self, image))
    live = {"file": str(files[0]), "image": str(photo), "preprocessor": "model", "hint_model": "half"}
    one = made_by(job_of(folder, [live, live | {"weight": 0.5}]), workspace, store)
    assert len(asked) == 1 and asked[0]._model._worker._process.poll() is not None  # its process has ended with the job
    red = np.array(Image.open(photo).resize(SIZE, Image.Resampling.LANCZOS))[..., 0]
    Image.fromarray(np.rint(red / 255 / 2 * 255).astype(np.uint8)).save(place / "half.png")
    shown = {"file": str(files[0]), "image": str(place / "half.png")}
    assert np.abs(one - made_by(job_of(folder, [shown, shown | {"weight": 0.5}]), workspace, store)).mean() < 1e-4
    (path,) = run_generate(job_of(folder, [live | {"hint_model": str(own)}]), workspace, store=store)
    from core.generation.images.metadata import read_image_metadata

    assert read_image_metadata(path).job.controls.nets[0].hint_model == "half/model.onnx"
    own.write_bytes(own.read_bytes()[:-40])
    assert "hint-model.bad-model" in codes(job_of(folder, [live]), workspace)
    assert "hint-model.none" in codes(job_of(folder, [live | {"hint_model": "other"}]), workspace)
    assert "hint-model.none" in codes(job_of(folder, [live | {"hint_model": ""}]), workspace)


@pytest.mark.slow
def test_a_pose_model_makes_the_control_image_and_one_of_nobody_is_said(models, place, space, store):
    from core.generation.images.metadata import read_image_metadata
    from tests.control.hints import pose_models

    folder, files = models("sd1")
    workspace = Workspace(space.outputs, place / "models")
    pose_models.write_estimator(workspace.preprocessors / "poses/dw.onnx", size=(96, 128))
    pose_models.write_detector(workspace.preprocessors / "poses/yolox.onnx")
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pose_models.person(image, (SIZE[0] // 2, SIZE[1] // 2 + 1), SIZE[1] - 6, mark=True, reach=1)
    Image.fromarray(image).save(place / "person.png")
    live = {"file": str(files[0]), "image": str(place / "person.png"), "preprocessor": "model", "hint_model": "poses"}
    seen, said = [], surroundings(workspace)

    def generated(use):
        (path,) = run_generate(job_of(folder, [use], generate={"steps": 1}), workspace, store=store, reports=said)
        return path

    def warned():
        return [event.text for event in said.journal.events if getattr(event, "level", "") == "warning"]

    with by_model.HintMaker(workspace, "controls.nets", CancelToken()) as maker:
        seen.append(maker.make(image, job_of(folder, [live]).controls.nets[0]))
    assert seen[0].any()
    Image.fromarray(seen[0]).save(place / "pose.png")
    path = generated(live)
    assert not warned() and read_image_metadata(path).job.controls.nets[0].hint_model == "poses"
    same = generated({"file": str(files[0]), "image": str(place / "pose.png")})
    assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(same)))
    Image.new("RGB", SIZE, (9, 9, 9)).save(place / "nobody.png")
    other = generated(live | {"image": str(place / "nobody.png")})
    assert any("nobody.png" in text for text in warned())
    assert not np.array_equal(np.array(Image.open(path)), np.array(Image.open(other)))


WAYS = {  # a white frame around black on (80, 40) at (40, 40): where the result is white
    "resize": lambda x, y: (x < 5) | (x > 34) | (y < 10) | (y > 29),
    "crop": lambda x, y: (y < 10) | (y > 29),
    "fill": lambda x, y: (x < 5) | (x > 34) | (y < 15) | (y > 24),
}


@pytest.mark.parametrize("fit", WAYS)
def test_resize_modes_stretch_crop_or_fill(fit):
    whole = np.full((40, 80, 3), 255, np.uint8)
    whole[10:30, 10:70] = 0
    made = np.array(control_image_for(Image.fromarray(whole), fit, (40, 40), None, lambda image: image))
    y, x = np.mgrid[:40, :40]
    wanted = WAYS[fit](x, y)
    edge = np.zeros_like(wanted)  # within two pixels of a change, resampling decides
    for axis in (0, 1):
        for step in (-2, -1, 1, 2):
            edge |= np.roll(wanted, step, axis) != wanted
    assert edge.mean() < 0.5 and np.array_equal(made[~edge][:, 0] > 127, wanted[~edge])


def test_what_is_filled_around_an_image_is_no_edge_of_it():
    """The control image is made before: gray, with a line, on a gray border of another color than edges have."""
    whole = np.full((40, 80, 3), (90, 140, 30), np.uint8)
    whole[:, 38:42] = 255
    edges = lambda image: Image.fromarray(by_model.make_hint(np.array(image), HintSettings(edge_low=50)))  # noqa: E731
    made = np.array(control_image_for(Image.fromarray(whole), "fill", (80, 80), None, edges))
    assert made[:20].max() == made[60:].max() == 0 and made[22:58, 30:50].max() == 255
    none = control_image_for(Image.fromarray(whole), "fill", (80, 80), None, lambda image: image)
    assert none.getpixel((3, 3)) == none.getpixel((70, 75)) == (90, 140, 30)
    part = control_image_for(Image.fromarray(whole), "fill", (40, 40), ((80, 80), (0, 0, 40, 40)), edges)
    assert np.array_equal(np.array(part), made[:40, :40])  # of "only masked"
