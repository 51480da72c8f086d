"""ControlNets and LLLites in Generate: the images of diffusers' pipelines, hints, steps, stages, and what is refused."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from core.control.controlnet import ZEROS, from_unet
from core.control.controlnet_file import write_control_net
from core.control.lllite import LLLite, places_of
from core.families import family
from core.generation import control_checks, controls
from core.generation.decoding import decode_pixels
from core.generation.plan import plan_of
from core.generation.run import ready, run_generate
from core.generation.sources import make_store
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.generation.theirs import image_of, pipeline_of, scheduler_of
from tests.models import tiny_folder
from tests.selection import slow_unless

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
    from core.settings.hints import HintSettings

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


def test_each_stage_of_hires_fix_sees_its_control_image(models, hints, space, store):
    """With a second stage that changes nothing of the first one's size but the weight acts in both."""
    folder, files = models("sd1")
    hires = {"highres_fix_scale": 2.0, "highres_fix_steps": 3}
    asked = {"hires": hires, "image_to_image": {"strength": 0.7}}
    use = {"file": str(files[0]), "image": str(hints[0])}
    made = made_by(job_of(folder, [use], **asked), space, store)
    assert made.shape == (2 * SIZE[1], 2 * SIZE[0], 3)
    plain = made_by(job_of(folder, **asked), space, store)
    assert np.abs(made - plain).mean() > LIMIT


def test_a_job_makes_a_control_image_once_for_each_size(models, photo, space, store, monkeypatch):
    folder, files = models("sd1")
    uses = [{"file": str(files[0]), "image": str(photo), "preprocessor": "canny", "weight": each} for each in (0.5, 1)]
    made, real = [], controls.make_hint
    monkeypatch.setattr(controls, "make_hint", lambda pixels, use: made.append(pixels.shape[:2]) or real(pixels, use))
    asked = {"hires": {"highres_fix_scale": 2.0}, "generate": {"count": 2, "batch_size": 1, "steps": 1}}
    run_generate(job_of(folder, uses, **asked, image_to_image={"strength": 1.0}), space, store=store)
    assert made == [(64, 96), (128, 192)]


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


def test_an_lllite_shifts_the_u_net_as_it_does_alone(models, hints, place, space, store):
    """One step of the loop against the U-Net called with the LLLite attached by hand."""
    from core.control.lllite_file import load_lllite

    folder, _ = models("sd1")
    path = lllite_file(folder, place)
    use = {"file": str(path), "image": str(hints[0]), "weight": 0.6}
    plan = plan_of(job_of(folder, [use], generate={"steps": 1}), space)
    seen = []
    with ready(plan, space, store=store, device="cpu", reports=_quiet()) as (maker, _):
        unet = maker.components.denoiser
        handle = unet.register_forward_hook(lambda *each: seen.append(each[1:]), with_kwargs=True)
        maker.make(plan.requests, decoded=False)
        handle.remove()
        ((given, named, out),) = seen
        places = places_of(unet, "sd1")
        net = load_lllite(path, places, "sd1").eval()
        net.attach(unet, places)
        net.multiplier = 0.6
        pixels = torch.from_numpy(np.array(Image.open(hints[0]))).permute(2, 0, 1)[None].float() / 255
        net.show(pixels)
        with torch.no_grad():
            again = unet(*given, **named)
        net.detach()
    first = lambda each: each[0] if isinstance(each, tuple) else each.sample  # noqa: E731
    assert torch.equal(first(out), first(again))


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


def test_an_image_says_what_it_was_made_with_and_is_made_again(models, hints, space, store):
    from core.generation.image_metadata import read_image_metadata

    folder, files = models("sd1")
    uses = [{"file": str(files[0]), "image": str(hints[0]), "weight": 0.5}, {"file": str(files[1]), "enabled": False}]
    (path,) = run_generate(job_of(folder, uses), space, store=store)
    (own,) = read_image_metadata(path).job.controls.nets
    assert (own.weight, own.file, own.image) == (0.5, files[0].name, hints[0].name)


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
