"""Where latents are kept changes no loss; what changes by chance is encoded at each step and goes on as it was."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from core.families.sd1 import FAMILY as sd1
from core.record.problems import ProblemsError, errors
from core.settings.dataset.concepts import PLAIN
from core.settings.rules.dataset import cache_problems
from core.training.building.latents import each_step_encoder, fp32_retry, posterior_device, write_npz_caches
from core.training.loop.sources import DEVICE_BYTES, Latents
from tests.damage import zero_tensors
from tests.models import tiny_folder

FOUR = {"max_train_steps": 4, "seed": 7}


@pytest.fixture
def run(train, make_job):
    """run(memory={...}, dataset={...}) -> the training, at its end."""

    def start(dataset=None, **groups):
        common = make_job().dataset.model_dump(
            include={"folder", "resolution", "bucket_reso_steps", "train_batch_size"}
        )
        training = train(dataset=common | (dataset or {}), schedule=FOUR, **groups)
        assert training.start() == "done"
        return training

    return start


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def losses(run, known):
    """As `run`, for its losses alone: of equal settings one run for all tests."""

    def of(dataset=None, **groups):
        key = json.dumps([dataset, groups])
        if key not in known:
            known[key] = run(dataset, **groups).losses()
        return known[key]

    return of


@pytest.mark.slow
def test_where_latents_are_kept_changes_no_loss(losses):
    """The device is the CPU here: below, another."""
    kept = {where: losses({"flip_aug": True}, memory={"cache_latents": where}) for where in ("disk", "memory", "off")}
    assert len(kept["disk"]) == 4
    assert all(each == kept["disk"] for each in kept.values())


@pytest.mark.slow
def test_the_ways_to_draw_from_a_latent_differ(losses):
    ways = {way: tuple(losses(memory={"latent_draw": way}).values()) for way in ("mean", "frozen")}
    ways["sample"] = tuple(losses().values())
    assert len(set(ways.values())) == 3


def test_a_cache_that_would_stop_chance_is_an_error_with_its_fix(make_job, images):
    folders = [{"folder": str(images), "random_crop": True}]
    for where in ("disk", "memory", "device"):
        job = make_job(dataset={"folder": None, "sources": folders}, memory={"cache_latents": where})
        (problem,) = errors(cache_problems(job))
        assert problem.where == "memory.cache_latents" and "set it to auto" in problem.fix
    for where in ("auto", "off"):
        assert not cache_problems(make_job(dataset={"sources": folders}, memory={"cache_latents": where}))


@pytest.mark.slow
def test_little_room_for_captions_costs_time_and_changes_no_loss(tmp_path, run, images, workspace):
    folder = tmp_path / "60_glyphs"
    shutil.copytree(images, folder)
    shuffled = {"captions": {"shuffle_caption": True, "caption_dropout_rate": 0.1}}
    roomy = run({"folder": str(folder)}, **shuffled)
    shutil.rmtree(workspace.cache / "text")
    tight = run({"folder": str(folder)}, memory={"text_cache_bytes": 1 << 20}, **shuffled)
    assert roomy.losses() == tight.losses()


@pytest.mark.slow
def test_caches_whose_tensors_became_zeros_are_computed_again_and_change_no_loss(tmp_path, run, images, workspace):
    folder = tmp_path / "own"
    shutil.copytree(images, folder)
    workspace.cache.unlink()  # not the cache of the other tests
    whole = run({"folder": str(folder)})
    for entry in workspace.cache.rglob("*.safetensors"):
        zero_tensors(entry)
    again = run({"folder": str(folder)})
    assert again.losses() == whole.losses()
    named = [line for line in again.lines("log") if line["level"] == "warning"]
    assert len(named) == 2, "one line for the latents, one for the captions"


@pytest.mark.slow
def test_caches_written_for_sd_scripts_train_as_the_frozen_draws_they_hold(tmp_path, run, images, workspace):
    from core.record.cancel import CancelToken
    from core.record.commands import CommandReader
    from core.record.context import JobContext
    from core.record.journal import Journal
    from core.training.building.inputs import read_inputs
    from core.training.building.models import Models

    folder = tmp_path / "own"
    shutil.copytree(images, folder)
    frozen = run({"folder": str(folder), "flip_aug": True}, memory={"latent_draw": "frozen"})
    with Journal(frozen.folder.path) as journal:
        place = (workspace, frozen.folder, journal, CommandReader(frozen.folder.path), "cpu", CancelToken())
        inputs = read_inputs(frozen.job, JobContext(*place))
        assert write_npz_caches(inputs, Models(inputs)).written == 5
    shutil.rmtree(workspace.cache / "latents")
    read = run({"folder": str(folder), "flip_aug": True}, memory={"npz_caches": True})
    assert any("from 5 .npz files" in line["text"] for line in read.lines("log"))
    assert not (workspace.cache / "latents").exists()
    for step, loss in frozen.losses().items():
        assert read.losses()[step] == pytest.approx(loss, rel=1e-4)  # drawn with a deviation of 3e-7


@pytest.mark.slow
def test_masks_reach_the_loss_and_are_kept(tmp_path, run, losses, images, workspace):
    from PIL import Image

    masks = tmp_path / "masks"
    masks.mkdir()
    for path in sorted(images.glob("*.png")):
        size = Image.open(path).size
        mask = Image.new("L", size, 0)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        mask.save(masks / path.name)
    masked = {"conditioning_data_dir": str(masks), "masked_loss": True}
    found = run(masked).losses()
    assert found != losses()
    assert list((workspace.cache / "masks").rglob("*.safetensors"))
    assert run(masked).losses() == found == run(masked, memory={"cache_latents": "off"}).losses()


def test_a_vae_of_16_bits_tries_an_image_again_in_32():
    class Family:
        @staticmethod
        def encode_image_latents(vae, pixels):
            return next(vae.parameters()).dtype, pixels

    vae = torch.nn.Linear(2, 2)
    assert fp32_retry(Family, vae) is None
    retry = fp32_retry(Family, vae.half())
    assert retry(torch.zeros(1))[0] == torch.float32
    assert next(vae.parameters()).dtype == torch.float16


def test_an_image_of_each_step_that_16_bits_cannot_encode_is_tried_again_in_32_alone():
    class Family:
        @staticmethod
        def encode_image_latents(vae, pixels):
            seen.append((len(pixels), next(vae.parameters()).dtype))
            lost = (pixels == 1) & (seen[-1][1] == torch.float16)
            return torch.where(lost, torch.nan, pixels), torch.zeros_like(pixels)

    seen, pixels = [], torch.arange(3.0).reshape(3, 1, 1, 1)
    context = SimpleNamespace(device="cpu")
    inputs = SimpleNamespace(context=context, job=SimpleNamespace(memory=SimpleNamespace(highvram=True)), family=Family)
    vae = torch.nn.Linear(2, 2).half()
    mean, logvar = each_step_encoder(inputs, SimpleNamespace(vae=lambda: vae))(pixels)
    assert torch.equal(mean, pixels) and not logvar.any()
    assert seen == [(3, torch.float16), (1, torch.float32)]


def test_an_image_that_goes_away_while_it_trains_is_named(tmp_path, train, make_job, images):
    folder = tmp_path / "own"
    shutil.copytree(images, folder)
    values = make_job().dataset.model_dump(include={"resolution", "bucket_reso_steps"})
    training = train(dataset=values | {"folder": str(folder), "random_crop": True}, schedule=FOUR)

    def lose_them(line):
        if line["kind"] == "stage" and line["text"] == "training":
            for path in folder.glob("*.png"):
                path.unlink()

    training.on_line = lose_them
    with pytest.raises(ProblemsError) as caught:
        training.start()
    assert caught.value.codes == ["image.unreadable"]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "batches"), [("disk", ([1, 2, 2], [2, 2])), ("off", ([2, 2],))])
def test_so_many_images_are_encoded_at_once_and_only_a_cache_on_disk_is_written(
    train, workspace, images, monkeypatch, where, batches
):
    """Of those of a cache as many as the images of a step of four lie in; where nothing is cached it encodes its own."""
    workspace.cache.unlink()  # of all tests
    seen = []

    def encode(vae, pixels):
        seen.append(len(pixels))
        return encode_image_latents(vae, pixels)

    encode_image_latents = sd1.encode_image_latents
    monkeypatch.setattr(sd1, "encode_image_latents", encode)
    dataset = {"train_batch_size": 4, "enable_bucket": False}
    memory = {"cache_latents": where, "vae_batch_size": 2}
    assert train(dataset=dataset, memory=memory, schedule={"max_train_steps": 1}).start() == "done"
    assert sorted(seen) in batches and (workspace.cache / "latents").exists() is (where == "disk")


def test_small_latents_are_held_in_memory_or_on_the_device_and_many_are_read_each_time():
    cache, many = SimpleNamespace(bytes_of=lambda placed: DEVICE_BYTES), [SimpleNamespace(concept=PLAIN)] * 2
    for where, small, large in (("memory", "cpu", None), ("device", "cuda", "cuda"), ("disk", "cuda", None)):
        assert (
            posterior_device(cache, many[:1], where, "cuda") == small
            and posterior_device(cache, many, where, "cuda") == large
        )


@pytest.mark.slow
def test_images_are_encoded_by_the_vae_that_is_set(at_first_step, tmp_path):
    one, other = (str(tiny_folder("sd1", tmp_path / name, seed=seed)) for name, seed in (("one", 1), ("other", 5)))

    def drawn(base, vae=None):
        return at_first_step(
            lambda training: training.run.passes.latents.batch(0, [(training.run.plan.placed[0], 0)]).latents,
            model={"base_model": base, "vae": vae},
            dataset={"bucket_reso_steps": 32},
            memory={"latent_draw": "mean"},
        )

    own = drawn(other)
    assert torch.equal(drawn(one, vae=other), own) and not torch.equal(drawn(one), own)


def test_what_decodes_and_encodes_ahead_ends_with_the_training():
    ended = []
    parts = [SimpleNamespace(close=lambda name=name: ended.append(name)) for name in ("views", "late")]
    Latents(None, 0, views=parts[0], late_posteriors=parts[1]).close()
    Latents(None, 0).close()
    assert ended == ["views", "late"]
