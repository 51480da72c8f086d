"""An upscaler that no file of the product knows: form, JSON, command line, and what the second stage begins with."""

import json

import torch

from core.cli.main import subcommand_help
from core.generation import making
from core.generation.model.store import make_store
from core.generation.run import run_generate
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from core.settings.presets.files import to_values


def job():
    return build(
        GenerateJob,
        {
            "model": {"base_model": str(PROJECT / "models" / "starter")},
            "memory": {"mixed_precision": "no"},
            "generate": {"prompt": "a fox", "seed": 3, "width": 64, "height": 64, "steps": 2},
            "hires": {"highres_fix_scale": 2, "highres_fix_steps": 2, "highres_fix_upscaler": "tiles"},
        },
    )


def test_form_json_and_command_line_come_from_the_declaration():
    from tabs.form.view import choices
    from tabs.generate import form

    assert ("Repeated", "tiles") in choices(form.OF_JOB["highres_fix_upscaler"])
    assert "tiles" in subcommand_help("generate")
    assert build(GenerateJob, json.loads(json.dumps(to_values(job())))) == job()


def test_the_second_stage_begins_with_what_it_made(tmp_path, monkeypatch):
    seen = []
    encode = making.encoded
    monkeypatch.setattr(
        making, "encoded", lambda vae, kind, pixels, noise: seen.append(pixels) or encode(vae, kind, pixels, noise)
    )
    space = Workspace(tmp_path, PROJECT / "models")
    space.runs.mkdir(parents=True)
    run_generate(job(), space, store=make_store())
    (large,) = seen
    assert large.shape == (1, 3, 128, 128)
    assert torch.equal(large[..., :64, :64], large[..., 64:, 64:])
