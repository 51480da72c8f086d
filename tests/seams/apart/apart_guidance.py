"""A guidance that no file of the product knows: form, preset, command line, images and what they store."""

import json

import pytest
import torch

from core.cli.main import subcommand_help
from core.families import family
from core.generation.images.metadata import read_image_metadata
from core.generation.model.store import make_store
from core.generation.plan.checks import problems_of
from core.generation.run import run_generate
from core.settings.check import build
from core.settings.job import GenerateJob
from core.settings.presets.files import to_values
from tests.prompts import encode_prompts
from tests.sampling import sampled
from tests.training.conftest import STARTER

MODEL = {"base_model": str(STARTER)}
ASKED = {"prompt": "a fox", "negative_prompt": "red", "steps": 3, "seed": 4, "width": 64, "height": 64}
HOW = {"seeds": [4], "width": 64, "height": 64, "steps": 3, "guidance_scale": 4.0}


def job_of(pull=None, **generate):
    own = {} if pull is None else {"pull": {"strength": pull}}
    return build(GenerateJob, {"model": MODEL, "generate": ASKED | {"guidance_scale": 4.0} | generate, **own})


def test_form_preset_and_command_line_come_from_the_declaration():
    from tabs.generate import form

    assert ("pull", "Pull") in list(form.ENTRIES["guidance"].labels.items())
    assert form.ENTRIES["pull.strength"].path == "pull.strength" != form.ENTRIES["strength"].path
    assert "--pull.strength" in subcommand_help("generate")
    job = job_of(2.5, guidance="pull")
    assert build(GenerateJob, json.loads(json.dumps(to_values(job)))) == job


def test_the_page_shows_its_settings_and_reads_them_back():
    from core.settings.job import TrainJob
    from tabs.generate import form, panel

    values = form.start_values() | {"guidance": "pull", "pull.strength": 2.5, "strength": 0.4}
    job = form.job_of(values, TrainJob())
    assert (job.pull.strength, job.image_to_image.strength) == (2.5, 0.4)
    drawn = {row.name: row.summary for row in panel.rows_of(values, panel.SHOWN_ABOVE, lambda *names: "")}
    assert drawn["pull"] == "Pull 2.5"


def test_images_follow_its_formula_and_store_it(workspace):
    (plain,), (pulled,), (again,) = (
        run_generate(job, workspace, store=make_store())
        for job in (job_of(), job_of(2.0, guidance="pull"), job_of(2.0, guidance="pull"))
    )
    assert pulled.read_bytes() != plain.read_bytes()
    stored = read_image_metadata(pulled).job
    assert (stored.generate.guidance, stored.pull.strength) == ("pull", 2.0)
    (from_file,) = run_generate(stored, workspace, store=make_store())
    from PIL import Image

    assert len({Image.open(path).tobytes() for path in (pulled, again, from_file)}) == 1


def test_its_outputs_become_one_as_it_says():
    model = family("sd1").load(STARTER)
    states = encode_prompts(model, "a fox", "red")
    own = type(job_of().pull)

    def made(kind, **how):
        return sampled(model, states, **HOW | {"steps": 1} | how, guidance_kind=kind)

    pulled = made("pull", guidance_settings=own(strength=1.5))  # (n + p) / 2 + 4 * 1.5 (p - n) = n + 6.5 (p - n)
    torch.testing.assert_close(pulled, made("classic", guidance_scale=6.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("job", "code"),
    [
        ({"guidance": "pull", "negative_scale": 2.0}, "guidance.negative-scale"),
        ({"guidance": "pull", "guidance_scale": 1.0}, "generate.no-guidance"),
        ({"pull": 2.0}, "settings.no-effect"),
    ],
)
def test_what_does_not_fit_it_is_said(job, code):
    assert code in [problem.code for problem in problems_of(job_of(**job))]
