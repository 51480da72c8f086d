"""ControlNets and LLLites in Generate: the images of diffusers' pipelines, steps, rows of the prompt, and what is refused."""

from __future__ import annotations

import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core.control.controlnet_file import to_diffusers
from core.control.lllite import LLLite, lllite_targets
from core.families import family
from core.formats.hashes import LEGACY_OF_SMALL, legacy_hash
from core.generation.effects.controls import checks as control_checks
from core.generation.effects.controls import hook as controls
from core.generation.model.other_files import net_of_image
from core.generation.model.store import make_store
from core.generation.plan.plan import plan_of
from core.generation.run import loaded_maker, run_generate
from core.generation.sample.guidance import EMPTY, PERTURBED, POSITIVE, Guidance, Moment, composed
from core.generation.sample.guidance import NEGATIVE as AWAY
from core.record.context import NO_REPORTS
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.generation.effects.controls.parts import (
    GUIDANCE,
    LIMIT,
    NEGATIVE,
    PROMPT,
    SEED,
    SIZE,
    STEPS,
    codes,
    job_of,
    made_by,
)
from tests.generation.theirs import image_of, pipeline_of, scheduler_of
from tests.models import tiny_lora
from tests.selection import slow_unless

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
        as_many = (int(STEPS * 0.6) + 1) / STEPS  # A1111's strength of 0.6 runs one step more than diffusers'
        given |= {"image": picture, "control_image": shown, "strength": as_many, "patch": monkeypatch}
    else:
        given["image"] = shown
    return image_of(pipeline, SIZE, SEED, STEPS, STEPS, **given)


@pytest.mark.slow(only=("sd1-text-two", "sdxl-text-guess"))
@pytest.mark.parametrize(
    "case",
    slow_unless(
        {("sd1", "text", "two"), ("sdxl", "text", "guess")}.__contains__,
        [(name, way, case) for name, way in PIPELINES for case in CASES if way == "text" or case == "half"],
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


def lllite_file(folder, place, name="sd1", number=0):
    unet = family(name).load(folder).denoiser
    net = LLLite.create(lllite_targets(unet, name), 8, 16, number)
    draws = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for key, weight in net.named_parameters():
            if ".up." in key:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=draws))
    from core.control.files import write_tensors

    path = place / f"lllite_{name}_{number}.safetensors"
    write_tensors(path, {key: value.detach() for key, value in net.state_dict().items()}, {}, None)
    return path


@pytest.mark.slow
def test_lllites_act_while_their_steps_last_and_leave_the_model_as_it_was(models, hints, place, space, store):
    folder, files = models("sd1")
    path = lllite_file(folder, place)
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


@pytest.mark.slow(but=("sd1-lllite-and-net", "sd1-inpaint"))
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
    with loaded_maker(plan, space, store=store, device="cpu", reports=NO_REPORTS) as (maker, _), torch.no_grad():
        unet = maker.components.denoiser
        handle = unet.register_forward_hook(lambda *each: seen.append(each[1:]), with_kwargs=True)
        maker.make(plan.requests, decoded=False)
        handle.remove()
        ((given, named, out),) = seen
        pixels = torch.from_numpy(np.array(Image.open(hint))).permute(2, 0, 1)[None].float() / 255
        places, attached, said = lllite_targets(unet, name), [], None
        for path, kind, weight in zip(paths, kinds, weights, strict=True):
            if kind == "lllite":
                net = load_lllite(path, places, name).eval()
                net.attach(unet, places)
                net.multiplier = weight
                net.set_control(pixels)
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["balanced", "control"])
def test_control_images_act_with_regions_and_with_several_images_at_once(models, hints, photo, space, store, mode):
    folder, files = models("sd1")
    use = {"file": str(files[0]), "image": str(hints[0]), "mode": mode}
    both = {
        "generate": {"prompt": "a fox AND a dog", "count": 2, "batch_size": 2},
        "regions": {"region_map": str(photo)},
    }
    plan = plan_of(job_of(folder, [use], **both), space)
    with loaded_maker(plan, space, store=store, device="cpu", reports=NO_REPORTS) as (maker, _):
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


@pytest.mark.slow(only=("None",))
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_image_says_what_it_was_made_with_and_is_made_again(models, hints, space, monkeypatch):
    from diffusers.models import modeling_utils

    from core.generation.images.metadata import read_image_metadata

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


@pytest.mark.slow(only=("controls.no-image", "control.other-family"))
@pytest.mark.parametrize("code", BAD)
def test_what_is_wrong_is_said_before_anything_is_loaded(code, models, hints, space):
    folder, files = models("sd1")
    use = {"file": str(files[0])} | BAD[code]
    if use["file"] == "model":
        use["file"] = str(folder)
    if use["file"] == "other":
        use["file"] = str(models("sdxl")[1][0])
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


def test_two_nets_of_one_name_are_said(models, hints, tmp_path):
    folder, files = models("sd1")
    space = Workspace(tmp_path / "out", tmp_path / "models")
    for name, file in zip("ab", files, strict=True):
        (space.models / "controlnet" / name).mkdir(parents=True)
        shutil.copy(file, space.models / "controlnet" / name / "net.safetensors")

    def told(file):
        return {note.code for note in plan_of(job_of(folder, [{"file": file, "image": str(hints[0])}]), space).notes}

    assert "controls.several" in told("net") and "controls.several" not in told("a/net")


def test_a_black_control_image_is_said(models, place, space):
    folder, files = models("sd1")
    Image.new("RGB", SIZE).save(place / "black.png")
    use = {"file": str(files[0]), "image": str(place / "black.png")}
    assert "controls.all-black" in {note.code for note in plan_of(job_of(folder, [use]), space).notes}
    edges = use | {"preprocessor": "canny"}
    assert "controls.all-black" not in {note.code for note in plan_of(job_of(folder, [edges]), space).notes}


@pytest.mark.slow
def test_the_forecast_counts_the_nets(models, hints, space):
    from core.generation.plan.forecast import forecast

    folder, files = models("sd1")
    uses = [{"file": str(file), "image": str(hints[0])} for file in files]
    without, one, two = (forecast(job_of(folder, uses[:number]), space, "cpu").peak for number in range(3))
    size = files[0].stat().st_size
    assert 0.95 * size < one - without < 1.15 * size and 0.95 * size < two - one < 1.15 * size
