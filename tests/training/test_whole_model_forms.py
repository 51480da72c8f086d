"""What a training of a whole model saves in each form: the average of its weights, another VAE, the count of steps."""

import pytest
import torch

from core.families import family
from core.families.locate import family_of
from core.families.saving import save_model
from core.formats.models.whole_model import form_of
from core.generation.model.library import Scan
from core.record.run_folder import newest_state
from tests.models import tiny_folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """The same tiny SD 1 model as a folder and as a .ckpt; and another model, for its VAE."""
    root = tmp_path_factory.mktemp("sources")
    folder = tiny_folder("sd1", root / "folder")
    ckpt = root / "model.ckpt"
    save_model(family("sd1").load(folder), ckpt, ["unet", "text_encoder"], form="ckpt")
    return {"folder": folder, "ckpt": ckpt, "other": tiny_folder("sd1", root / "other", seed=5)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "source", "name", "form"),
    [
        ("diffusers", "ckpt", "t", "diffusers"),
        ("source", "ckpt", "t.ckpt", "ckpt"),
    ],
)
def test_the_average_and_the_other_vae_are_what_is_saved(train, sources, wanted, source, name, form):
    training = train(
        method={"kind": "fine_tune", "ema": True, "ema_decay": 0.5, "ema_warmup": False},
        model={"base_model": str(sources[source]), "vae": str(sources["other"])},
        dataset={"bucket_reso_steps": 32},
        schedule={"max_train_steps": 1, "seed": 7},
        saving={"save_model_as": wanted},
    )
    assert training.start() == "done"
    saved = training.file(name)
    assert form_of(saved) == form and family_of(saved) == "sd1"
    assert saved in [path for _, path in Scan(training.workspace).checkpoints()], "the Generate tab offers it"
    ours, base, other = (family("sd1").load(path) for path in (saved, sources[source], sources["other"]))
    state = torch.load(newest_state(training.folder.states) / "training.pt", weights_only=True)["weights"]
    before = dict(base.denoiser.named_parameters())
    for key, weight in ours.denoiser.named_parameters():
        average = (before[key] + state[f"unet.{key}"]) / 2
        torch.testing.assert_close(weight, average, rtol=1e-5, atol=1e-7)
    assert not torch.equal(ours.denoiser.conv_in.weight, before["conv_in.weight"])
    for ours_vae, other_vae in zip(ours.vae.parameters(), other.vae.parameters(), strict=True):
        assert torch.equal(ours_vae, other_vae)
    if form == "ckpt":
        content = torch.load(saved, weights_only=True)
        assert content["global_step"] == 1 and content["epoch"] == 0


@pytest.mark.parametrize("kind", ["lora", "embedding"])
@pytest.mark.parametrize("form", ["source", "diffusers"])
def test_a_small_file_has_no_form_of_a_model(make_job, kind, form):
    from core.settings.rules import training_problems

    job = make_job(method={"kind": kind}, embedding={"token_string": "zkw"}, saving={"save_model_as": form})
    assert "saving.save_model_as" in [problem.where for problem in training_problems(job) if problem.level == "error"]
