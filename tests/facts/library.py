"""Lists of models by name, texts of other programs in images, class images, words of the command line, places to save."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from core.cli.main import main
from core.cli.options import commands, job_from, split_options
from core.engine.view import RunView
from core.formats.models.whole_model import write_model
from core.generation import class_plan
from core.generation.images.foreign import read_foreign
from core.generation.model import library, wildcard_files
from core.methods.lllite import attached_lllite
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.settings.control import LLLiteSettings
from core.settings.dataset.dataset import DatasetSettings
from core.settings.job import TrainJob
from core.settings.presets.files import differences
from tests.facts.samples import beside, figures, noise, write
from tests.facts.store import Facts, digest, folder, producer, refused
from tests.models import tiny_folder


def put(path: Path, tensors: dict[str, torch.Tensor], at: int, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    os.utime(path, (at, at))
    return path


LORA = {f"lora_unet_x.lora_{each}.weight": torch.ones(4, 4) for each in ("up", "down")}


@producer
def listed() -> Facts:
    """Models folders: what is listed under which names, in which order, and what is found by a name."""
    with folder() as root:
        space = Workspace(root / "outputs", root / "models", root / "presets")
        for number, name in enumerate(("b", "A", "sub/c", "sub/A", "old")):
            put(
                space.models / "loras" / f"{name}.safetensors",
                LORA,
                100 - number if name != "old" else 500,
                ss_base_model_version="sd_v1",
            )
        put(space.runs / "20250101-000000_fox" / "checkpoints" / "fox.safetensors", LORA, 300)
        put(space.runs / "20250101-000000_fox" / "checkpoints" / "fox-step5.safetensors", LORA, 200)
        put(space.models / "embeddings" / "word.safetensors", {"emb_params": torch.ones(2, 768)}, 7)
        put(space.models / "embeddings" / "two.safetensors", {"<a>": torch.ones(768), "<b>": torch.ones(2, 768)}, 8)
        put(space.models / "vae" / "v.safetensors", {"encoder.conv_in.weight": torch.ones(1)}, 9)
        put(space.models / "vae" / "B.safetensors", {"decoder.conv_in.weight": torch.ones(1)}, 9)
        put(
            space.models / "up" / "u.safetensors",
            {
                "conv1.weight": torch.ones(1),
                "resblock20.conv2.weight": torch.ones(1),
                "conv_final.weight": torch.ones(1),
            },
            9,
        )
        put(
            space.models / "z.safetensors",
            {"model.diffusion_model.x": torch.ones(1), "cond_stage_model.transformer.y": torch.ones(1)},
            9,
        )
        put(
            space.models / "Y.safetensors",
            {"model.diffusion_model.x": torch.ones(1), "cond_stage_model.transformer.y": torch.ones(1)},
            9,
        )
        beside(space.models / "broken.safetensors", "<html>")
        beside(space.models / "d" / "model_index.json", "{}")
        beside(space.models / "d" / "unet" / "config.json", '{"cross_attention_dim": 768}')
        for name, list_of in {
            "loras": library.Scan.loras,
            "embeddings": library.Scan.embeddings,
            "models": library.Scan.checkpoints,
            "vaes": library.Scan.vaes,
            "upscalers": library.Scan.upscalers,
        }.items():
            yield name, list_of(library.Scan(space))
        for kind in ("controlnet", "controlnet_lllite"):
            yield kind, library.Scan(space).control(kind)
        for name in ("b", "a", "A", "sub/A", "c", "FOX", "fox-step5", "nope", "bb", "b.safetensors", "", "../x"):
            yield f"found {name}", [refused(partial(library.find, "lora", name, space)), library.find_file(name, space)]
        yield (
            "portable",
            [
                library.portable_name(each, space)
                for each in (space.models / "loras" / "b.safetensors", space.outputs / "x", root / "y")
            ],
        )
        yield (
            "unread",
            [bool(library.why_unreadable(space.models / each)) for each in ("broken.safetensors", "z.safetensors")],
        )
        yield (
            "kinds",
            [
                library.facts_of_file(space.models / each).kind
                for each in ("loras/b.safetensors", "z.safetensors", "vae/v.safetensors", "d")
            ],
        )
        yield (
            "words",
            [
                library.embedding_vectors(space),
                sorted({name for name, *_ in library._local_embeddings(space)}),
                [each.code for each in library.ambiguity_advice("lora", "x", [root / "a", root / "b"])],
            ],
        )
        for name, text in {"animals": "fox\n# no\n\ncat\n", "deep/colors": "red\nblue", "pets": "__animals__"}.items():
            beside(space.models / "wildcards" / f"{name}.txt", text)
        yield (
            "wildcards",
            [
                wildcard_files.wildcard_names(space),
                [
                    refused(partial(wildcard_files.wildcard_lines, space, name))
                    for name in ("animals", "colors", "deep/*", "*", "nope")
                ],
            ],
        )


INVOKE = {
    "positive_prompt": "p", "negative_prompt": "n", "steps": 9, "cfg_scale": 3.5, "seed": 2, "width": 64, "height": 128,
    "scheduler": "euler_a", "loras": [{"lora": {"model_name": "x"}, "weight": 0.5}],
}  # fmt: skip
NOVEL = {
    "prompt": "a fox", "uc": "bad", "steps": 28, "scale": 11, "seed": 5, "sampler": "k_euler_ancestral", "width": 8, "height": 16,
}  # fmt: skip
FOOOCUS = {
    "prompt": "p",
    "negative_prompt": "n",
    "steps": 30,
    "guidance_scale": 4.0,
    "sampler": "dpmpp_2m_sde_gpu",
    "seed": "7",
}
SWARM = {"sui_image_params": {"prompt": "p", "steps": 20, "cfgscale": 7, "seed": 3, "width": 512, "height": 512}}
THINGS = '<rdf:li> {"c": "p", "uc": "n", "steps": 8, "scale": 2, "seed": 1, "size": "512x768"} </rdf:li>'
FOREIGN_TEXTS: dict[str, tuple[dict[str, str], str]] = {
    "dream": ({"Dream": '"a fox [bad]" -s 30 -S 42 -W 512 -H 768 -C 7.5 -A k_euler_a'}, ""),
    "dream odd": ({"Dream": '"unpaired -s 3'}, ""),
    "dream last": ({"Dream": '"a -s 5 fox" -s 20 -S-1'}, ""),
    "novelai": ({"Software": "NovelAI", "Description": "a fox", "Comment": json.dumps(NOVEL)}, ""),
    "invoke": ({"invokeai_metadata": json.dumps(INVOKE)}, ""),
    "fooocus": ({"parameters": json.dumps(FOOOCUS)}, ""),
    "swarm": ({"parameters": json.dumps(SWARM)}, ""),
    "draw things": ({"XML:com.adobe.xmp": THINGS}, ""),
    "comment": ({}, '{"prompt": "p", "steps": 4}'),
    "none": ({"Title": "x"}, "hello"),
    "damaged": ({"invokeai_metadata": "{"}, "{"),
}


@producer
def foreign() -> Facts:
    """Settings in images of other programs."""
    for name, (texts, comment) in FOREIGN_TEXTS.items():
        yield name, refused(partial(read_foreign, texts, comment, (64, 128)))


@producer
def class_images() -> Facts:
    """Sizes, seeds and names of regularization images."""
    yield "seeds", [class_plan.seed_of(seed, number) for seed in (0, 7) for number in range(4)]
    yield "names", [class_plan.image_name(number) for number in (0, 8, 9998, 9999)]
    views = {(512, 512): 10, (512, 768): 5, (768, 512): 1}
    yield (
        "sizes",
        [
            class_plan.sizes_by_views(views, number, begun)
            for number in (0, 1, 7, 16)
            for begun in ((), ((768, 512),) * 2)
        ],
    )
    words = [
        {"folder": "/a"},
        {"sources": [{"folder": "/a", "class_word": " dog "}]},
        {"sources": [{"folder": "/a", "role": "regularization", "class_word": "x"}]},
    ]
    yield "words", [class_plan.first_class_word(DatasetSettings(**each)) for each in words]
    with folder() as root:
        space = Workspace(root / "outputs", root / "models")
        yield "folders", [class_plan.class_folder(chosen, "a dog", space) for chosen in (None, str(root / "mine"))]
        for name in ("class_0001.png", "class_0002.png", "other.png", "x.txt"):
            write(root / "c" / name, noise(8, 8)) if name.endswith("png") else beside(root / "c" / name, "x")
        yield "others", sorted(each.name for each in class_plan.other_images(root / "c"))


LINES = [
    {"kind": "state", "state": "running", "message": "", "fix": ""},
    {"kind": "planned", "total": 20, "epochs": 2, "images": 5, "sentence": "5 images"},
    {"kind": "stage", "text": "training", "done": 2, "total": 8},
    {
        "kind": "steps",
        "steps": [1, 2, 3],
        "epoch": 1,
        "losses": [0.5, 0.4, 0.3],
        "rates": [{"unet": 1e-4}] * 3,
        "seconds_per_step": 0.5,
    },
    {"kind": "saved", "step": 3, "file": "checkpoints/a.safetensors", "bytes": 9},
    {"kind": "state", "state": "paused", "message": "m", "fix": "f"},
    {"kind": "state", "state": "failed", "message": "m", "fix": "f", "code": "x.y"},
]


@producer
def views() -> Facts:
    """A run as the page shows it, after each line of its journal."""
    with folder() as root:
        run = RunFolder.create(root, "fox", {"kind": "job"}, now=1.6e9)
        view = RunView(run)
        for number, line in enumerate(LINES, 1):
            view.apply({"v": 1, "seq": number, "time": 1000.0 + 10 * number, **line})
            for held in (True, False):
                shown = view.snapshot(held)
                left_out = ("run", "title", *(["seconds"] if held else []))  # those of a run that goes on are up to now
                yield f"{number} {held}", {key: value for key, value in shown.items() if key not in left_out}


@producer
def saved() -> Facts:
    """Where a model may not be written, and an LLLite that a forecast shows its hint to."""
    with folder() as root:
        beside(root / "foreign" / "x", "x")
        (root / "empty").mkdir()
        beside(root / "model" / "model_index.json", "{}")
        beside(root / "file.safetensors", "x")

        def target(name: str, form: str, source: str | None = None) -> Any:
            from core.families import family

            return write_model(
                root / name,
                {},
                family="sd1",
                form=form,
                published=family("sd1").layout.published,
                source=source and root / source,
            )

        for name, form, source in (
            ("foreign", "diffusers_safetensors", None),
            ("file.safetensors", "safetensors", "file.safetensors"),
            ("empty", "safetensors", None),
            ("file.safetensors", "diffusers", None),
        ):
            yield f"{name} {form}", refused(partial(target, name, form, source))
        tiny_folder("sd1", root / "tiny")
        with torch.device("meta"):
            from diffusers import UNet2DConditionModel

            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(root / "tiny" / "unet"))
        attached = attached_lllite(unet, LLLiteSettings())
        seen: list[Any] = []
        attached.net.set_control = seen.append

        class Conditioning:
            control = torch.ones(1)

        yield (
            "lllite",
            [attached(torch.ones(1), torch.ones(1), Conditioning()), len(seen), len(list(attached.net.parameters()))],
        )


COMMANDS = (
    "train",
    "generate",
    "grid",
    "caption",
    "tag",
    "import",
    "export",
    "check",
    "prepare",
    "inspect",
    "merge_loras",
)
WORDS = (
    "--network.rank 8 --optimizer.learning_rate=1e-4|preset.json --dataset.folder x|--nope 1|--network.rank"
    "|--network.rank x|--noise.min_snr_gamma 5 FOLDER|--dataset.flip_aug|--no-dataset.flip_aug|--outputs o --models m"
    "|--lora a --lora b|-x|--dataset.resolution 512,768|--schedule.max_train_steps 10 --schedule.max_train_steps 20"
).split("|")


@producer
def commanded() -> Facts:
    """What words of the command line become; what the commands print."""
    known = commands()
    yield (
        "commands",
        [[name, len(options), digest(sorted(options))] for name, options in sorted(known.items()) if name in COMMANDS],
    )
    for text in WORDS:

        def read(text=text):
            options = split_options(text.split(), known["train"], task="train")
            job = job_from("train", options)
            return [sorted(vars(options))[:3], {path: mine for path, (mine, _) in differences(job, TrainJob()).items()}]

        yield text, refused(read)
    for words in (
        ["--help"],
        ["train", "--help"],
        ["nope"],
        ["train", "--nope"],
        ["import"],
        ["caption", "--help"],
        ["tools"],
    ):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main(words)
            except SystemExit as error:
                code = error.code
        shown = figures(out.getvalue()).split()
        yield f"run {words}", [code, len(shown), len(err.getvalue().splitlines())]
