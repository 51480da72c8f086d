"""Embeddings, hashes, copies and metadata of files; hub pages and the catalog."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial

import torch
from safetensors.torch import save_file

from core.formats import copies, embedding_file, hashes, model_spec
from core.formats.hub import catalog, references, upload
from core.formats.lora import metadata
from core.formats.tensors import header
from core.settings.hub import HubSettings
from core.settings.job import TrainJob
from tests.facts.formats import DAMAGED
from tests.facts.samples import beside
from tests.facts.store import Facts, folder, plain, producer, refused


@producer
def embeddings() -> Facts:
    """Files of embeddings in each form, hashes of files."""
    with folder() as root:
        forms = {
            "kohya": {"emb_params": torch.ones(3, 8)},
            "sdxl": {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 12)},
            "tokens": {"<fox>": torch.arange(8.0), "cat": torch.ones(2, 8)},
            "layers": {name: torch.full((1, 8), float(number)) for number, name in enumerate(embedding_file.LAYERS)},
            "bundled": {
                "bundle_emb.fox.emb_params": torch.ones(2, 8),
                "bundle_emb.a.b.string_to_param.*": torch.ones(1, 8),
                "lora_unet_x.alpha": torch.tensor(1.0),
            },
            "none": {"a": torch.zeros(2, 2, 2)},
        }
        for name, tensors in forms.items():
            path = root / f"{name}.safetensors"
            save_file(tensors, path)
            tokens = embedding_file.tokens_in(path)
            yield (
                name,
                [
                    tokens,
                    [refused(partial(embedding_file.read_embedding, path, token)) for token in ("", *tokens, "nope")],
                    refused(partial(embedding_file.read_shapes, path)),
                ],
            )
        for ending, dtype in ((".safetensors", torch.float16), (".pt", torch.float32)):
            embedding_file.write_embedding(root / f"w{ending}", forms["sdxl"], {"ss_x": "1"}, dtype)
            yield (
                f"written {ending}",
                [embedding_file.read_embedding(root / f"w{ending}"), header.read_header(root / f"w{ending}")[1]],
            )
        yield (
            "infinite",
            refused(
                partial(
                    embedding_file.write_embedding,
                    root / "x.pt",
                    {"emb_params": torch.tensor([[float("inf")]])},
                    {},
                    torch.float32,
                )
            ),
        )
        small, large = beside(root / "small", b"abc"), beside(root / "large", b"\1" * (0x100000 + 70000))
        yield (
            "hashes",
            [
                [hashes.legacy_hash(path), hashes.file_sha256(path)[:9], hashes.file_sha256(path, start=2)[:9]]
                for path in (small, large)
            ],
        )
        yield "models", [[each[:12] for each in hashes.model_hashes(path)] for path in (small, root, root / "gone")]
        memo, calls = hashes.HashMemo(root / "memo.json"), list[int]()
        answers = [
            memo.get("p", [small], lambda number=number: calls.append(number) or str(number)) for number in range(2)
        ]
        beside(small, "changed")
        answers += [hashes.HashMemo(root / "memo.json").get(each, [small], lambda: "new") for each in ("p", "q", "p")]
        yield "memo", [answers, calls]
        place = root / "place"
        place.mkdir()
        done = [copies.copy_into(each, place) for each in (small, small, large)]
        beside(root / "other" / "small", "another")
        done += [
            copies.copy_into(root / "other" / "small", place),
            copies.copy_into(root / "other", place),
            copies.copy_into(root / "other", place),
        ]
        yield "copies", [done, sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))]
        yield (
            "copies refused",
            [
                refused(partial(copies.copy_into, *pair))
                for pair in ((small, root / "gone"), (small, large), (root, place), (root / "gone", place))
            ],
        )


FACTS = model_spec.SaveFacts(
    42, 1000.0, 2000.5, seed=7, num_train_images=24, num_batches_per_epoch=6, num_epochs=10, epoch=3, step=18, max_train_steps=60,
    mixed_precision="bf16", resolution=(128, 192), base_model_name="starter", base_model_hash="e3b0c442", vae_name="v", vae_sha256="cd",
    dataset_dirs={"10_fox": {"n_repeats": 10, "img_count": 24}}, tag_frequency={"10_fox": {"a fox": 1}}, network_args={"conv_dim": "4"},
    extra={"modelspec.author": "x", "ss_y": "z"},
)  # fmt: skip
OF_THE_MOMENT = ("modelspec.date", "atelier_version")


def lasting(values: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if key not in OF_THE_MOMENT}


@producer
def said() -> Facts:
    """The metadata of files by settings and facts of the run, and what is read of them."""
    first = metadata.lora_metadata(TrainJob(), FACTS)
    yield "plain", lasting(first)
    for options, facts in (
        (
            {
                "network": {"rank": 8, "alpha": 4, "network_dropout": 0.1},
                "memory": {"cache_latents": "off", "full_precision": "fp16"},
            },
            {"family": "sdxl", "prediction": "v"},
        ),
        (
            {
                "optimizer": {"optimizer_type": "AdaFactor", "optimizer_args": {"relative_step": True}},
                "captions": {"max_token_length": 150},
            },
            {"family": "sd2", "prediction": "v"},
        ),
        (
            {
                "optimizer": {"optimizer_type": "AdamW8bit", "weight_decay": 0.1, "unet_lr": 1e-5},
                "noise": {"max_timestep": 900},
                "model": {"clip_skip": 2},
            },
            {"total_batch_size": 12},
        ),
        (
            {
                "dataset": {"train_batch_size": 3, "resize_interpolation": "area"},
                "schedule": {"gradient_accumulation_steps": 2, "lr_scheduler": "cosine"},
            },
            {"seed": None},
        ),
    ):
        job = TrainJob.model_validate(options)
        found = lasting(
            metadata.lora_metadata(
                job,
                model_spec.SaveFacts(
                    **{**{each: getattr(FACTS, each) for each in ("started_at", "saved_at")}, **facts}
                ),
            )
        )
        yield str(options), {key: value for key, value in found.items() if value != first.get(key)}
    for family in ("sd1", "sd2", "sdxl", "sdxl_refiner", "other", None):
        for prediction in ("epsilon", "v"):
            spec = [model_spec.architecture(family, prediction, kind) for kind in model_spec.SUFFIXES] if family else []
            yield (
                f"{family} {prediction}",
                [
                    metadata.version_metadata(family, prediction),
                    spec,
                    [model_spec.implementation(family or "sd1", kind) for kind in model_spec.SUFFIXES],
                ],
            )
    yield (
        "of a model",
        [
            lasting(model_spec.model_spec_of({"a": "b", "modelspec.title": "old"}, "sd1", each, "model", "new", 768))
            for each in (None, "v")
        ],
    )
    with folder() as root:
        beside(root / "job.json", '{"captions": {"trigger_word": " sks "}}')
        tags = json.dumps(
            {
                "a": {"fox": 3, "cat": 9, "x" * 81: 99, "x" * 80: 1},
                "b": {"fox": 8, "n": "x"} | {f"t{n}": n for n in range(10)},
            }
        )
        for said_ in (
            {},
            {"modelspec.trigger_phrase": "one, two", "modelspec.usage_hint": "three"},
            {"ss_tag_frequency": tags},
            {"ss_tag_frequency": "{x"},
        ):
            yield (
                f"triggers {sorted(said_)} {len(str(said_))}",
                [metadata.trigger_words(root / place / "l.safetensors", said_) for place in ("checkpoints", "")],
            )


REFERENCES = (
    "sd15|SDXL|sd 1.5|v1-5-pruned-emaonly.safetensors|runwayml/stable-diffusion-v1-5|owner/name|owner/name/sub/file.ckpt"
    "|stabilityai/stable-diffusion-xl-base-1.0|models/x|folder/file.safetensors|../x|.hidden/x|a/b/../c|"
    "|https://huggingface.co/a/b/resolve/main/c.safetensors|https://x.org/m/file.safetensors?key=1|https://x.org/page"
    "|ftp://x.org/a.ckpt|https://u@x.org/a.ckpt|https://x.org/a%20b.ckpt"
).split("|")
DIFFUSERS = (
    "model_index.json unet/config.json unet/diffusion_pytorch_model.safetensors vae/diffusion_pytorch_model.bin README.md"
    " unet/diffusion_pytorch_model.fp16.safetensors vae/config.json text_encoder/model-00001-of-00002.safetensors"
    " text_encoder/model.safetensors.index.json tokenizer/vocab.json tokenizer/merges.txt safety_checker/config.json"
)
LISTINGS: dict[str, list[str]] = {
    "diffusers": DIFFUSERS.split(),
    "part": ["config.json", "diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.bin", "sub/x.safetensors"],
    "single": ["README.md", "m.safetensors", "sub/n.safetensors"],
    "several": [f"m{n}.safetensors" for n in range(7)],
    "none": ["README.md", "m.ckpt"],
}


@producer
def hub() -> Facts:
    """What references mean, which files of a listing are needed, and the catalog."""
    with folder() as root:
        models = root / "models"
        beside(models / "owner--name" / "model.safetensors", DAMAGED["good"])
        beside(models / "loras" / "x.safetensors", DAMAGED["good"])
        beside(models / "x.ckpt", "x")
        for text in REFERENCES:
            source = refused(lambda text=text: str(references.parse_source(text)))
            where = refused(lambda text=text: references.installed_path(references.parse_source(text), models))
            found = refused(lambda text=text: str(references.resolve(text, models, root / "outputs")))
            known = references.parse_hub_id(text)
            yield text, [source, where, found, known and [known.folder_name, known.repository, known.file]]
        link = references.Link("https://x.org/a/b%20c.ckpt?k=v")
        yield "link", [str(link), link.file, link.query, references.Link("https://x.org/a").query]
        for name, files in LISTINGS.items():
            remote = [references.RemoteFile(file, 10 + number) for number, file in enumerate(files)]
            chosen = [
                refused(
                    lambda file=file, remote=remote: [
                        each.name for each in references.choose_files(references.HubId("o", "n", file), remote)
                    ]
                )
                for file in (None, files[1], "nope")
            ]
            yield f"listing {name}", chosen
        entry = catalog.ENTRIES[0]
        state = catalog.state(entry, models)
        yield (
            "catalog",
            [
                [each.id, each.family, each.size, each.page, each.place, each.use, catalog.named(each.id) == each]
                for each in catalog.ENTRIES
            ],
        )
        yield "state", {key: value for key, value in state.items() if key not in ("title", "purpose")}
        target = catalog.target(entry, models)
        beside(target.with_name(target.name + ".part"), "12345")
        yield "partial", [catalog.state(entry, models)["have"], catalog.installed_path(entry, models)]
        beside(target, "whole")
        catalog.record(target, models, "somewhere", entry.sha256, "q")
        yield (
            "recorded",
            [
                catalog.recorded(models),
                catalog.installed_path(entry, models),
                catalog.named("nope"),
                catalog.of_hub("o/n", None),
            ],
        )
        references.forget(references.parse_source(entry.id), models)
        yield "forgotten", catalog.partial_bytes(target) if hasattr(catalog, "partial_bytes") else None
        unsafe = [
            refused(lambda name=name: str(references._safe_name(references.HubId("o", "n"), name)))
            for name in ("a/b.json", "../a", "/a", "a:b", "a\\b")
        ]
        yield "unsafe", unsafe
        yield "names", catalog.known_names()
    for path in ("", "/a/b/", "a\\b", "a"):
        yield f"upload {path}", upload.path_in_repo(HubSettings(huggingface_path_in_repo=path), "m.safetensors")
    yield (
        "keys",
        [
            upload.missing_token_problem(HubSettings(huggingface_repo_id=repo), token)
            for repo in (None, "o/n")
            for token in (None, "t")
        ],
    )
    who = {"name": "me", "orgs": [{"name": "Org"}], "auth": {"accessToken": {"role": "read"}}}
    yield (
        "owners",
        [
            upload._creation_problem(repo, each)
            for repo in ("me/x", "ORG/x", "you/x")
            for each in (who, {**who, "auth": {}})
        ],
    )
    if os.name == "posix":
        yield "home", str(references.open_home("~/x")) == os.path.expanduser("~/x")
    yield "shown", plain(references.WEIGHT_SUFFIXES)
