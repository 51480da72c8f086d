"""ControlNets and LLLites in Generate: the images of diffusers' pipelines, hints, steps, stages, and what is refused."""

from __future__ import annotations

import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core.control.controlnet import ZEROS, from_unet
from core.control.controlnet_file import to_diffusers, write_control_net
from core.control.hints import by_model
from core.control.lllite import LLLite, places_of
from core.families import family
from core.formats.hashes import LEGACY_OF_SMALL, legacy_hash
from core.generation import control_checks, controls
from core.generation.control_files import net_of_image
from core.generation.decoding import decode_pixels
from core.generation.guidance import EMPTY, PERTURBED, POSITIVE, Guidance, composed
from core.generation.guidance import NEGATIVE as AWAY
from core.generation.initial import placed
from core.generation.moment import Moment
from core.generation.plan import plan_of
from core.generation.run import ready, run_generate
from core.generation.sources import make_store
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.hints import HintSettings
from core.settings.job import GenerateJob
from tests.generation.theirs import image_of, pipeline_of, scheduler_of
from tests.models import tiny_folder, tiny_lora
from tests.selection import slow_unless
from tests.tasks import surroundings

SIZE, SEED, STEPS, GUIDANCE = (96, 64), 7, 6, 4.0
PROMPT, NEGATIVE = "a fox, flat icon", "red"
LIMIT = 1e-3  # mean absolute, of images in 0..1
PIPELINES = {
    ("sd1", "text"): diffusers.StableDiffusionControlNetPipeline,
    ("sd1", "image"): diffusers.StableDiffusionControlNetImg2ImgPipeline,
    ("sdxl", "text"): diffusers.StableDiffusionXLControlNetPipeline,
    ("sdxl", "image"): diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
}
CASES = {
    "one": ([{}], {}),
    "two": ([{"weight": 0.7}, {"weight": 0.4, "image": 1}], {"controlnet_conditioning_scale": [0.7, 0.4]}),
    "guess": ([{"mode": "guess"}], {"guess_mode": True}),
    "half": ([{"start_at": 0.2, "end_at": 0.7}], {"control_guidance_start": 0.2, "control_guidance_end": 0.7}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("controls")


@pytest.fixture(scope="module")
def hints(place):
    """Two images at the size of the result."""
    made = []
    for number in range(2):
        values = np.random.default_rng(number).integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
        made.append(place / f"hint{number}.png")
        Image.fromarray(values).resize(SIZE, Image.Resampling.NEAREST).save(made[-1])
    return made


@pytest.fixture(scope="module")
def models(place):
    """family -> (its folder, ControlNet files of it that act)"""
    made = {}

    def of(name):
        if name not in made:
            folder = place / name
            tiny_folder(name, folder)
            unet, files = family(name).load(folder).denoiser, []
            for number in range(2):
                net = from_unet(unet, number)
                draws = torch.Generator().manual_seed(number)
                with torch.no_grad():
                    for key, weight in net.named_parameters():
                        if key.startswith(ZEROS):
                            weight.copy_(0.1 * torch.randn(weight.shape, generator=draws))
                files.append(place / f"{name}_{number}.safetensors")
                write_control_net(files[-1], dict(net.state_dict()), name, {})
            made[name] = folder, files
        return made[name]

    return of


@pytest.fixture(scope="module")
def store():
    return make_store()


@pytest.fixture
def space(place):
    workspace = Workspace(place / "out", PROJECT / "models")
    workspace.runs.mkdir(parents=True, exist_ok=True)
    return workspace


def job_of(folder, nets=(), controls=None, **groups):
    generate = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "steps": STEPS}
    generate |= {"guidance_scale": GUIDANCE, "width": SIZE[0], "height": SIZE[1]}
    whole = {"model": {"base_model": str(folder)}, "generate": generate, "memory": {"mixed_precision": "no"}}
    whole |= {"controls": {"nets": list(nets)} | (controls or {})}
    return build(GenerateJob, {key: whole.get(key, {}) | groups.get(key, {}) for key in {*whole, *groups}})


def made_by(job, space, store):
    """float32 [H, W, 3] in 0..1."""
    plan = plan_of(job, space)
    with ready(plan, space, store=store, device="cpu", reports=_quiet()) as (maker, _):
        latents = maker.make(plan.requests, decoded=False).latents[-1]
        with torch.no_grad():
            pixels = decode_pixels(maker.components.vae, latents, maker.kind.decode_latents)
    return pixels[0].permute(1, 2, 0).numpy()


def _quiet():
    from core.record.context import NO_REPORTS

    return NO_REPORTS


def theirs(name, way, folder, nets, images, monkeypatch, picture, **asked):
    from core.control.controlnet_file import load_control_net

    base = pipeline_of(name, folder)
    loaded = [load_control_net(path, base.unet, name) for path in nets]
    one = len(nets) == 1
    extra = {} if name == "sdxl" else {"requires_safety_checker": False}
    kind = PIPELINES[name, way]
    parts = {key: value for key, value in base.components.items() if name != "sdxl" or key != "image_encoder"}
    pipeline = kind(**parts, controlnet=loaded[0] if one else loaded, **extra)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler_of("ddim")
    shown = images[0] if one else images
    given = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE}
    given |= {"controlnet_conditioning_scale": 1.0} | asked  # 0.8 in pipelines that begin with an image
    if way == "image":
        given |= {"image": picture, "control_image": shown, "strength": 0.6, "patch": monkeypatch}
    else:
        given["image"] = shown
    return image_of(pipeline, SIZE, SEED, STEPS, STEPS, **given)


@pytest.mark.parametrize(
    "case",
    slow_unless(
        {("sd1", "text", "two"), ("sdxl", "text", "guess")}.__contains__,
        [(name, way, case) for name, way in PIPELINES for case in CASES],
    ),
    ids="-".join,
)
def test_an_image_is_that_of_diffusers(case, models, hints, place, space, store, monkeypatch):
    name, way, kind = case
    folder, files = models(name)
    uses, asked = CASES[kind]
    nets = [
        {"file": str(files[number]), "image": str(hints[use.get("image", 0)])}
        | {k: v for k, v in use.items() if k != "image"}
        for number, use in enumerate(uses)
    ]
    picture = Image.open(hints[1])
    begin = {"image_to_image": {"image_path": str(hints[1]), "strength": 0.6}} if way == "image" else {}
    mine = made_by(job_of(folder, nets, **begin), space, store)
    plain = made_by(job_of(folder, **begin), space, store)
    images = [Image.open(hints[use.get("image", 0)]) for use in uses]
    other = theirs(name, way, folder, files[: len(uses)], images, monkeypatch, picture, **asked)
    assert np.abs(mine - other).mean() < LIMIT
    assert np.abs(mine - plain).mean() > 10 * LIMIT


@pytest.fixture(scope="module")
def photo(place):
    """A soft image with one sharp disc, at another size than the result."""
    y, x = np.mgrid[0:128, 0:192]
    values = np.stack([x / 192, y / 128, np.full(x.shape, 0.4)], axis=-1)
    values[(x - 96) ** 2 + (y - 64) ** 2 < 900] = 0.9
    Image.fromarray((values * 255).astype(np.uint8)).save(place / "photo.png")
    return place / "photo.png"


def codes(job, space):
    with pytest.raises(ProblemsError) as refused:
        plan_of(job, space)
    return {problem.code for problem in refused.value.problems}


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


def test_an_onnx_model_makes_the_control_image_once_for_each_size(models, photo, place, space, store, monkeypatch):
    from tests.tools.test_hints import write_net

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
    from core.generation.image_metadata import read_image_metadata

    assert read_image_metadata(path).job.controls.nets[0].hint_model == "half/model.onnx"
    own.write_bytes(own.read_bytes()[:-40])
    assert "hint-model.bad-model" in codes(job_of(folder, [live]), workspace)
    assert "hint-model.none" in codes(job_of(folder, [live | {"hint_model": "other"}]), workspace)
    assert "hint-model.none" in codes(job_of(folder, [live | {"hint_model": ""}]), workspace)


def test_a_pose_model_makes_the_control_image_and_one_of_nobody_is_said(models, place, space, store):
    from core.generation.image_metadata import read_image_metadata
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
    made = np.array(placed(Image.fromarray(whole), fit, (40, 40), None, lambda image: image))
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
    made = np.array(placed(Image.fromarray(whole), "fill", (80, 80), None, edges))
    assert made[:20].max() == made[60:].max() == 0 and made[22:58, 30:50].max() == 255
    none = placed(Image.fromarray(whole), "fill", (80, 80), None, lambda image: image)
    assert none.getpixel((3, 3)) == none.getpixel((70, 75)) == (90, 140, 30)
    part = placed(Image.fromarray(whole), "fill", (40, 40), ((80, 80), (0, 0, 40, 40)), edges)
    assert np.array_equal(np.array(part), made[:40, :40])  # of "only masked"


def lllite_file(folder, place, name="sd1", number=0):
    unet = family(name).load(folder).denoiser
    net = LLLite.create(places_of(unet, name), 8, 16, number)
    draws = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for key, weight in net.named_parameters():
            if ".up." in key:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=draws))
    from core.control.files import write_tensors

    path = place / f"lllite_{name}_{number}.safetensors"
    write_tensors(path, {key: value.detach() for key, value in net.state_dict().items()}, {}, None)
    return path


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_lllites_act_while_their_steps_last_and_leave_the_model_as_it_was(models, hints, place, space, store, name):
    folder, files = models(name)
    path = lllite_file(folder, place, name)
    plain = made_by(job_of(folder), space, store)
    use = {"file": str(path), "image": str(hints[0])}
    whole = made_by(job_of(folder, [use]), space, store)
    half = made_by(job_of(folder, [use | {"end_at": 0.5}]), space, store)
    twice = made_by(job_of(folder, [use, use | {"image": str(hints[1])}]), space, store)
    both = made_by(job_of(folder, [use, {"file": str(files[0]), "image": str(hints[1])}]), space, store)
    images = [plain, whole, half, twice, both]
    odd = {"generate": {"width": 72, "height": 88}}
    uneven, followed = (made_by(job_of(folder, nets, **odd), space, store) for nets in ([], [use]))
    assert uneven.shape == (88, 72, 3) and np.abs(uneven - followed).mean() > 1e-4
    assert all(np.abs(a - b).mean() > 1e-4 for n, a in enumerate(images) for b in images[:n])
    assert np.array_equal(plain, made_by(job_of(folder), space, store))
    assert np.array_equal(plain, made_by(job_of(folder, [use | {"weight": 0.0}]), space, store))


TOGETHER = {  # family, nets in their order (lllite or the number of a ControlNet), what else is asked
    "sd1-lllite": ("sd1", ["lllite"], ""),
    "sd1-two-lllites": ("sd1", ["lllite", "lllite"], ""),
    "sd1-lllite-and-net": ("sd1", ["lllite", 0], ""),
    "sd1-lora": ("sd1", [0], "lora"),
    "sd1-inpaint": ("sd1", [0], "inpaint"),
    "sd2-odd": ("sd2", [0], "odd"),
    "sdxl-net-and-lllite": ("sdxl", [1, "lllite"], ""),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_one_step_is_that_of_nets_attached_by_hand(case, models, hints, photo, place, space, store):
    """The U-Net called again with what the nets say, read from their files by diffusers and attached by hand."""
    from core.control.controlnet_file import load_control_net
    from core.control.lllite_file import load_lllite

    name, kinds, more = TOGETHER[case]
    folder, files = models(name)
    paths = [
        lllite_file(folder, place, name, number) if kind == "lllite" else files[kind]
        for number, kind in enumerate(kinds)
    ]
    size = (72, 88) if more == "odd" else SIZE
    hint = place / "own.png"
    Image.open(hints[0]).resize(size).save(hint)
    weights = [0.6, 0.9][: len(kinds)]
    uses = [
        {"file": str(path), "image": str(hint), "weight": weight} for path, weight in zip(paths, weights, strict=True)
    ]
    loras = [{"file": str(tiny_lora(family(name).load(folder), place / "own.safetensors"))}] if more == "lora" else []
    asked = {"generate": {"steps": 1, "loras": loras, "width": size[0], "height": size[1]}}
    if more == "inpaint":
        asked["image_to_image"] = {"image_path": str(photo), "mask_path": str(photo), "strength": 1.0}
    plan = plan_of(job_of(folder, uses, **asked), space)
    seen = []
    with ready(plan, space, store=store, device="cpu", reports=_quiet()) as (maker, _), torch.no_grad():
        unet = maker.components.denoiser
        handle = unet.register_forward_hook(lambda *each: seen.append(each[1:]), with_kwargs=True)
        maker.make(plan.requests, decoded=False)
        handle.remove()
        ((given, named, out),) = seen
        pixels = torch.from_numpy(np.array(Image.open(hint))).permute(2, 0, 1)[None].float() / 255
        places, attached, said = places_of(unet, name), [], None
        for path, kind, weight in zip(paths, kinds, weights, strict=True):
            if kind == "lllite":
                net = load_lllite(path, places, name).eval()
                net.attach(unet, places)
                net.multiplier = weight
                net.show(pixels)
                attached.append(net)
            else:
                own = {
                    key: named[key]
                    for key in ("encoder_hidden_states", "added_cond_kwargs")
                    if named.get(key) is not None
                }
                down, mid = load_control_net(path, unet, name, folder).eval()(
                    given[0],
                    given[1],
                    controlnet_cond=pixels.expand(len(given[0]), -1, -1, -1),
                    conditioning_scale=weight,
                    return_dict=False,
                    **own,
                )
                said = down, mid
        if said is not None:
            for mine, other in zip(
                [*named["down_block_additional_residuals"], named["mid_block_additional_residual"]],
                [*said[0], said[1]],
                strict=True,
            ):
                assert other.abs().max() > 1e-3 and torch.allclose(mine, other, atol=1e-6)
        again = unet(*given, **named)
        for net in attached:
            net.detach()
    first = lambda each: each[0] if isinstance(each, tuple) else each.sample  # noqa: E731
    assert torch.equal(first(out), first(again))


@pytest.mark.parametrize("count", [13, 10])
def test_soft_weights_by_block_are_those_of_their_programs(count):
    """A1111: 0.825^(n - i) inwards; diffusers: 13 values from 0.1 to 1, evenly by their logarithms."""
    found = controls.Residuals(tuple(torch.ones(1, 2, 2, 2) for _ in range(count - 1)), torch.ones(1, 2, 2, 2))
    wanted = {
        "balanced": [1.0] * count,
        "prompt": [0.825 ** (count - 1 - each) for each in range(count)],
        "control": [0.825 ** (count - 1 - each) for each in range(count)],
        "guess": [10 ** (each / (count - 1) - 1) for each in range(count)],
    }
    for mode, weights in wanted.items():
        use = build(GenerateJob, {"controls": {"nets": [{"file": "a", "mode": mode, "weight": 0.5}]}}).controls.nets[0]
        made = controls._weighted(found, use)
        assert [float(each.mean()) for each in (*made.down, made.mid)] == pytest.approx(
            [0.5 * each for each in weights]
        )


def test_an_image_with_a_difference_net_does_not_depend_on_what_was_made_before(models, hints, place, space):
    """The net stays in the store, also where it was first used with a LoRA merged into the U-Net."""
    folder, files = models("sd1")
    loaded = family("sd1").load(folder)
    base, named = dict(loaded.denoiser.named_parameters()), {}
    for key, value in load_file(files[0]).items():
        own = base.get(to_diffusers(key.removeprefix("control_model."), "sd1"))
        named[key] = value if own is None else value - own.detach().reshape(value.shape)
    save_file({**named, "difference": torch.zeros(1)}, place / "delta.safetensors")
    lora = {"file": str(tiny_lora(loaded, place / "lora.safetensors")), "strength": 1.0}
    use = {"file": str(place / "delta.safetensors"), "image": str(hints[0])}
    after, one_step = make_store(), {"steps": 1}
    made_by(job_of(folder, [use], generate={"loras": [lora], "network_pre_calc": True} | one_step), space, after)
    one, other = (made_by(job_of(folder, [use], generate=one_step), space, each) for each in (after, make_store()))
    assert np.array_equal(one, other)
    whole = made_by(job_of(folder, [use | {"file": str(files[0])}], generate=one_step), space, after)
    assert np.abs(one - whole).mean() < 1e-4


@pytest.mark.parametrize("mode", ["balanced", "control"])
def test_control_images_act_with_regions_and_with_several_images_at_once(models, hints, photo, space, store, mode):
    folder, files = models("sd1")
    use = {"file": str(files[0]), "image": str(hints[0]), "mode": mode}
    both = {
        "generate": {"prompt": "a fox AND a dog", "count": 2, "batch_size": 2},
        "regions": {"region_map": str(photo)},
    }
    plan = plan_of(job_of(folder, [use], **both), space)
    with ready(plan, space, store=store, device="cpu", reports=_quiet()) as (maker, _):
        together = maker.make(plan.requests, decoded=False).latents[-1]
        alone = torch.cat([maker.make([one], decoded=False).latents[-1] for one in plan.requests])
    assert (together - alone).abs().max() < 1e-3 and together.std() > 0.1


ROWS = [  # sides, and those of two images that a net sees whose mode is not balanced, of n prompts joined by AND
    ((AWAY, POSITIVE), lambda n: [*range(2, 2 + 2 * n)]),
    ((AWAY, POSITIVE, EMPTY), lambda n: [*range(2, 2 + 2 * n)]),
    ((POSITIVE,), lambda n: [*range(2 * n)]),
    ((AWAY, POSITIVE, PERTURBED), lambda n: [*range(2, 2 + 4 * n)]),
    ((POSITIVE, PERTURBED), lambda n: [*range(4 * n)]),
    ((AWAY, POSITIVE, EMPTY, PERTURBED), lambda n: [*range(2, 2 + 2 * n), *range(4 + 2 * n, 4 + 4 * n)]),
]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_rows_of_the_prompt_are_found_with_every_guidance_and_with_and(parts):
    for sides, wanted in ROWS:
        guidance = Guidance(sides, lambda outputs, at: outputs[POSITIVE])
        guidance = composed(guidance, [1] * parts) if parts > 1 else guidance
        at = Moment(None, [None] * 2, 0, 1, torch.tensor(0), torch.zeros(2, 4, 8, 8), guidance.sides)
        assert controls.Controls._prompt_rows(at, torch.device("cpu")).tolist() == wanted(parts), sides


@pytest.mark.parametrize("negative_scale", [None, 2.0])
def test_at_steps_without_guidance_every_prompt_joined_by_and_is_controlled(
    negative_scale, models, hints, space, store, monkeypatch
):
    folder, files = models("sd1")
    seen, real = [], controls.ControlNet.residuals
    spy = lambda net, noisy, *more: seen.append(len(noisy)) or real(net, noisy, *more)  # noqa: E731
    monkeypatch.setattr(controls.ControlNet, "residuals", spy)
    use = {"file": str(files[0]), "image": str(hints[0]), "mode": "control"}
    asked = {"prompt": "a fox AND a dog :0.5", "steps": 2, "guidance_end": 0.5, "negative_scale": negative_scale}
    made_by(job_of(folder, [use], generate=asked), space, store)
    assert seen == [2, 2]


def test_of_a_folder_each_image_takes_the_next_one_and_prompts_set_it_too(models, hints, place, space, monkeypatch):
    folder, files = models("sd1")
    (place / "turns").mkdir()
    for number, path in enumerate(hints):
        Image.open(path).save(place / "turns" / f"{number}.png")
    use = {"file": str(files[0])}
    decoded, real = [], control_checks.opened
    monkeypatch.setattr(control_checks, "opened", lambda path, where: decoded.append(path.name) or real(path, where))
    (place / "turns" / "2.png").write_bytes(b"no image")  # whose turn does not come
    for _ in range(2):
        plan_of(job_of(folder, [use], {"control_image": str(place / "turns")}, generate={"count": 2}), space)
    assert decoded == ["0.png", "1.png"]
    (place / "turns" / "2.png").unlink()
    job = job_of(folder, [use], {"control_image": str(place / "turns")}, generate={"count": 3})
    shown = [request.job.controls.used[0].image for request in plan_of(job, space).requests]
    assert [path.rpartition("/")[2] for path in shown] == ["0.png", "1.png", "0.png"]
    job = job_of(folder, [use], generate={"prompt": f"a fox --cn {hints[1]}"})
    assert plan_of(job, space).requests[0].job.controls.used[0].image == str(hints[1])


def test_several_control_nets_take_images_of_folders_of_their_own_or_are_dealt_those_of_one(
    models, hints, place, space
):
    """Of one folder the same image for all; with sd-scripts compatibility one for each net, as its generator deals them."""
    folder, files = models("sd1")
    for name, number in (("many", 5), ("few", 2)):
        (place / name).mkdir()
        for each in range(number):
            shutil.copy(hints[0], place / name / f"{name[0]}{each}.png")

    def shown(nets, shared, compatibility, number=3):
        model = {"base_model": str(folder), "compatibility": compatibility}
        nets = [{"file": str(files[0])} | each for each in nets]
        job = job_of(folder, nets, {"control_image": str(place / shared)}, model=model, generate={"count": number})
        jobs = [request.job for request in plan_of(job, space).requests]
        return ["".join(use.image[-6:-4] for use in each.controls.used) for each in jobs]

    own, none, kohya = {"image": str(place / "few")}, "none", "sd-scripts-0.10"
    assert shown([{}, own], "many", none) == shown([{}, own], "many", kohya) == ["m0f0", "m1f1", "m2f0"]
    assert shown([{}, {}], "many", none) == ["m0m0", "m1m1", "m2m2"]
    assert shown([{}, {"enabled": False}, {}], "many", kohya) == ["m0m1", "m2m3", "m0m1"]
    assert shown([{}, own, {}], "many", kohya) == ["m0f0m1", "m2f1m3", "m0f0m1"]
    assert shown([{}, {}], "many/m4.png", kohya, 1) == ["m4m4"]
    with pytest.raises(ProblemsError) as refused:
        shown([{}, {}, {}], "few", kohya)
    assert refused.value.codes == ["controls.too-few-images"]


@pytest.mark.parametrize(
    ("compatibility", "nets", "number", "told"),
    [
        ("sd-scripts-0.10", [{}, {}], 2, True),
        ("sd-scripts-0.10", [{}, {}, {"enabled": False}], 9, True),
        ("sd-scripts-0.10", [{}, {}], 1, False),  # whose turn does not come
        ("sd-scripts-0.10", [{}], 9, False),
        ("sd-scripts-0.10", [{}, {"image": 0}], 9, False),
        ("sd-scripts-0.10", [{}] * 5, 9, False),
        ("none", [{}, {}], 9, False),
    ],
)
def test_control_images_that_are_dealt_to_no_net_are_said(
    compatibility, nets, number, told, models, hints, tmp_path, space
):
    folder, files = models("sd1")
    for each in range(5):
        shutil.copy(hints[0], tmp_path / f"{each}.png")
    nets = [{"file": str(files[0])} | each | ({"image": str(hints[0])} if "image" in each else {}) for each in nets]
    model = {"base_model": str(folder), "compatibility": compatibility}
    job = job_of(folder, nets, {"control_image": str(tmp_path)}, model=model, generate={"count": number})
    notes = [note for note in plan_of(job, space).notes if note.code == "controls.left-over-images"]
    assert [("4.png" in note.fix, note.level) for note in notes] == [(True, "advice")] * told


def test_the_control_net_of_an_image_is_found_by_its_hash_where_its_name_does_not_say(models, tmp_path):
    _, files = models("sd1")
    space = Workspace(tmp_path / "out", tmp_path / "models")
    folder = space.models / "controlnet"
    folder.mkdir(parents=True)
    one, other = (shutil.copy(file, folder / f"{name}.safetensors") for name, file in zip("ab", files, strict=True))
    digests = [legacy_hash(file) for file in files]
    assert digests[0] != digests[1] and LEGACY_OF_SMALL not in digests
    assert net_of_image("a", digests[0], space) == (one, True)
    assert net_of_image("a", digests[1], space) == net_of_image("renamed", digests[1], space) == (other, True)
    assert net_of_image("a", "0123abcd", space) == (one, False)
    assert net_of_image("a", "", space) == net_of_image("a", LEGACY_OF_SMALL, space) == (one, True)
    with pytest.raises(ProblemsError) as refused:
        net_of_image("renamed", "0123abcd", space)
    assert refused.value.codes == ["controls.not-found"]


def test_with_sd_scripts_compatibility_control_nets_of_sd1_act_in_turn(models, hints, space, store, monkeypatch):
    """Recorded of its generator: the second of two is past its ratio at the last step that is its turn, which is plain."""
    asked, real = [], controls.Controls._residuals
    spy = lambda self, use, net, at, *more: asked.append((at.index, use.weight)) or real(self, use, net, at, *more)  # noqa: E731
    monkeypatch.setattr(controls.Controls, "_residuals", spy)
    for name, compatibility, wanted in (
        ("sd1", "sd-scripts-0.10", [(0, 0.7), (1, 0.3), (2, 0.7), (4, 0.7)]),
        ("sd1", "none", [(0, 0.7), (0, 0.3), (1, 0.7), (1, 0.3), (2, 0.7), (3, 0.7), (4, 0.7)]),
        ("sdxl", "sd-scripts-0.10", [(0, 0.7), (0, 0.3), (1, 0.7), (1, 0.3), (2, 0.7), (2, 0.3), (3, 0.7), (4, 0.7)]),
    ):
        folder, files = models(name)
        nets = [{"weight": 0.7}, {"weight": 0.3, "end_at": 0.4}]
        nets = [{"file": str(file), "image": str(hints[0])} | own for file, own in zip(files, nets, strict=True)]
        model = {"base_model": str(folder), "compatibility": compatibility}
        made_by(job_of(folder, nets, model=model, generate={"steps": 5}), space, store)
        assert asked == wanted
        asked.clear()


def test_an_image_says_what_it_was_made_with_and_is_made_again(models, hints, space, monkeypatch):
    from diffusers.models import modeling_utils

    from core.generation.image_metadata import read_image_metadata

    warned = []
    monkeypatch.setattr(modeling_utils.logger, "warning", warned.append)
    folder, files = models("sd1")
    first = {"file": str(files[0]), "image": str(hints[0]), "weight": 0.5, "fit": "fill"}
    job = job_of(folder, [first, {"file": str(files[1]), "enabled": False}])
    (path,) = run_generate(job, space, store=make_store())
    record = read_image_metadata(path)
    assert record.hashes.controls == {files[0].name: legacy_hash(files[0])} and warned == []
    (own,) = record.job.controls.nets
    assert (own.weight, own.file, own.image, own.fit) == (0.5, files[0].name, hints[0].name, "fill")


BAD = {
    "controls.no-image": {},
    "controls.not-found": {"file": "nowhere", "image": 0},
    "image.missing": {"image": "nowhere.png"},
    "image.unreadable": {"image": "file"},
    "controls.step-range": {"image": 0, "start_at": 0.5, "end_at": 0.5},
    "control.not-a-controlnet": {"file": "model", "image": 0},
    "control.other-family": {"file": "other", "image": 0},
}


@pytest.mark.parametrize("code", BAD)
def test_what_is_wrong_is_said_before_anything_is_loaded(code, models, hints, space):
    folder, files = models("sd1")
    use = {"file": str(files[0])} | BAD[code]
    named = {"model": str(folder), "other": str(models("sdxl")[1][0])}
    use["file"] = named.get(use["file"], use["file"])
    use["image"] = (
        str(hints[0]) if use.get("image") == 0 else str(files[0]) if use.get("image") == "file" else use.get("image")
    )
    assert code in codes(job_of(folder, [use]), space)


def test_what_a_net_cannot_be_combined_with_is_refused(models, hints, place, space):
    folder, files = models("sd1")
    use = {"file": str(files[0]), "image": str(hints[0])}
    assert "controls.deep-shrink" in codes(job_of(folder, [use], deep_shrink={"ds_depth_1": 1}), space)
    own = {"file": str(lllite_file(folder, place)), "image": str(hints[0])}
    notes = plan_of(job_of(folder, [own | {"mode": "guess"}]), space).notes
    assert "controls.lllite-mode" in {note.code for note in notes}


def test_a_black_control_image_is_said(models, place, space):
    folder, files = models("sd1")
    Image.new("RGB", SIZE).save(place / "black.png")
    use = {"file": str(files[0]), "image": str(place / "black.png")}
    assert "controls.all-black" in {note.code for note in plan_of(job_of(folder, [use]), space).notes}
    edges = use | {"preprocessor": "canny"}
    assert "controls.all-black" not in {note.code for note in plan_of(job_of(folder, [edges]), space).notes}


def test_the_forecast_counts_the_nets(models, hints, space):
    from core.generation.forecast import forecast

    folder, files = models("sd1")
    uses = [{"file": str(file), "image": str(hints[0])} for file in files]
    without, one, two = (forecast(job_of(folder, uses[:number]), space, "cpu").peak for number in range(3))
    size = files[0].stat().st_size
    assert 0.95 * size < one - without < 1.15 * size and 0.95 * size < two - one < 1.15 * size
