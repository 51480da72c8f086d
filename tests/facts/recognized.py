"""What files of other programs are taken for: weights by their keys, settings in images and presets, caches next to images."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file

from core.dataset.caches import npz
from core.dataset.caches.encoding import Side
from core.formats import other_files
from core.formats.hub import references
from core.formats.tensors.entry import TensorEntry
from core.generation.images import foreign
from core.generation.images.record import ForeignSettings
from core.settings.presets.foreign import foreign_problem
from tests.facts.caches import images
from tests.facts.samples import beside, figures
from tests.facts.store import Facts, folder, producer, refused

IP, T2I = "ip_adapter.1.to_k_ip.weight", "body.0.block1.x"
DENSE, SWIN = "body.0.rdb1.conv5.weight", "layers.0.residual_group.blocks.0.attn.qkv.weight"
KEYS: dict[str, dict[str, tuple[int, ...]]] = {
    **{f"image prompts {width}": {"image_proj.x": (1,), IP: (4, width)} for width in (768, 1024, 2048, 1280)},
    "image prompts of faces": {"image_proj.x": (1,), IP: (4, 768), "ip_adapter.1.to_q_lora.down.weight": (4, 4)},
    "image prompts without keys": {"image_proj.x": (1,), "ip_adapter.1.to_v_ip.weight": (4, 768)},
    "keys without the projection": {IP: (4, 768)},
    "projection alone": {"image_proj.x": (1,)},
    **{f"hint {channels}": {"conv_in.weight": (4, channels, 3, 3), T2I: (1,)} for channels in (192, 64, 768, 256, 3)},
    "hint, older": {"adapter.conv_in.weight": (4, 192, 3, 3), "adapter.body.0.in_conv.x": (1,)},
    "hint, diffusers": {"adapter.conv_in.weight": (4, 64, 3, 3), "adapter.body.0.resnets.0.block1.x": (1,)},
    "hint, mixed prefixes": {"adapter.conv_in.weight": (4, 64, 3, 3), T2I: (1,)},
    "hint without a body": {"conv_in.weight": (4, 64, 3, 3), "body.1.block1.x": (1,)},
    "dense": {"conv_first.weight": (1,), DENSE: (1,)},
    "dense, older": {"model.0.weight": (1,), "model.1.sub.0.RDB1.conv5.0.weight": (1,)},
    "dense, wrapped": {"params.conv_first.weight": (1,), f"params.{DENSE}": (1,)},
    "dense, average first": {"params_ema.conv_first.weight": (1,), f"params_ema.{DENSE}": (1,), "params.x": (1,)},
    "dense, mixed": {"params_ema.conv_first.weight": (1,), f"params.{DENSE}": (1,)},
    "dense without the first": {DENSE: (1,)},
    "dense without the fifth": {"conv_first.weight": (1,), "body.0.rdb1.conv4.weight": (1,)},
    "latents": {name: (1,) for name in other_files.LATENT_UPSCALER},
    "latents and more": {name: (1,) for name in (*other_files.LATENT_UPSCALER, "x")},
    "latents, too few": {name: (1,) for name in sorted(other_files.LATENT_UPSCALER)[1:]},
    "windows": {"conv_first.weight": (1,), SWIN: (1,)},
    "windows without the first": {SWIN: (1,)},
    "windows of another layer": {"conv_first.weight": (1,), SWIN.replace("layers.0", "layers.1"): (1,)},
    "plain": {"body.0.weight": (1,), "body.1.bias": (1,)},
    "plain, deeper": {"body.0.weight": (1,), "body.1.x.bias": (1,)},
    "plain and more": {"body.0.weight": (1,), "tail.0.weight": (1,)},
    "plain without the first": {"body.1.weight": (1,)},
    "widths": {"768.0.x": (1,), "1280.1.y": (1,)},
    "widths and more": {"768.0.x": (1,), "512.1.y": (1,)},
    "nothing": {},
}


@producer
def weights() -> Facts:
    """Files that are neither models nor LoRAs."""
    for name, shapes in KEYS.items():
        found = other_files.recognize({key: TensorEntry("F16", shape, 0, 0) for key, shape in shapes.items()})
        yield name, found and found[:3]


XMP = "XML:com.adobe.xmp"
LINE = '"a hat [blur] x [two]" -s 50 -S 7 -W 512 -H 640 -C 7.5 -A k_lms -f 0.5 -x 3'
EASY = {"prompt": "a", "negative_prompt": "b", "seed": "5", "width": "512", "height": "640", "sampler_name": "euler_a"}
NOVEL = {
    "prompt": "a",
    "uc": "b",
    "steps": 9,
    "scale": 5,
    "seed": 3,
    "sampler": "k_euler_ancestral",
    "width": 64,
    "height": 32,
}
TEXTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "line": {"Dream": LINE},
    "line, longest": {"Dream": f'"{"a" * 9987}" -s 5 -x'},
    "line, too long": {"Dream": f'"{"a" * 9999}" -s 5'},
    "line, unpaired": {"Dream": '"a'},
    "line without a prompt": {"Dream": " "},
    "easy": EASY | {"num_inference_steps": "9"},
    "easy, one mark": {"prompt": "a", "guidance_scale": "5"},
    "easy without a mark": {"prompt": "a", "other": "b"},
    "easy without a prompt": {"negative_prompt": "a", "num_inference_steps": "5"},
    "easy, LoRAs": EASY | {"use_lora_model": "a.safetensors, b", "lora_alpha": "0.5, x, 3"},
    "easy, LoRAs in a list": EASY | {"Lora model": "['a', 'b']", "Lora strength": "[0.5, 1]"},
    "sd-scripts": {"prompt": "a", "negative_prompt": "b", "seed": "1", "steps": "5", "x": "y"},
    **{f"sd-scripts by {name}": {"prompt": "a", name: "3"} for name in ("seed", "steps", "scale", "sampler")},
    "sd-scripts without a prompt": {"prompt": "", "seed": "1"},
    "sd-scripts without a mark": {"prompt": "a", "height": "4"},
    "swarm": {"parameters": {"sui_image_params": {"prompt": "a", "seed": 2, "loras": ["x/y.safetensors", "z"], "loraweights": ["0.5"]}}},
    "novel": {"Comment": NOVEL, "Software": "NovelAI", "Description": "c"},
    "novel without its own prompt": {"Comment": {"uc": "b", "steps": 3}, "Software": "NovelAI", "Description": "c"},
    "novel by its source": {"Comment": NOVEL, "Source": "NovelAI Diffusion"},
    "novel of another": {"Comment": NOVEL, "Source": "Another", "Software": "x"},
    "novel by its source alone": {"Comment": {"uc": "b", "steps": 3}, "Source": "NovelAI Diffusion"},
    "graph": {"parameters": {"3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 9, "positive": ["4", 0]}},
                             "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a"}}}},
    "novel inside": {"parameters": {"Comment": json.dumps(NOVEL), "Source": "NovelAI x", "Description": "c"}},
    "novel inside, broken": {"parameters": {"Comment": "[", "Software": "NovelAI", "Description": "c"}},
    "fooocus": {"parameters": {"prompt": "a", "guidance_scale": 4, "resolution": "(512, 640)", "lora_combined_1": "x.safetensors : 0.5",
                               "lora_2": "y : z", "lora_123": "w : 1", "sampler": "dpmpp_2m", "scheduler": "karras"}},
    "fooocus, listed": {"parameters": {"Prompt": "a", "Guidance Scale": 4, "lora_1": "z : 1",
                                       "loras": [["x", 0.5, "h"], ["w", 0.75], ["y"], {"model": {"name": "m"}, "weight": 2}]}},
    "draw things": {XMP: '<rdf:li xml:lang="x">{&quot;c&quot;: &quot;a&quot;, &quot;strength&quot;: 1}</rdf:li>'},
    "draw things without a text": {XMP: "<rdf:li>x</rdf:li>"},
    "invoke": {"invokeai_metadata": {"positive_prompt": "a", "width": 64, "height": 32, "clip_skip": 0, "scheduler": "euler_k",
                                     "loras": [{"model": {"model_name": "q"}, "weight": 0.25}], "new": 1, "off": "none"}},
    "invoke, half a size": {"invokeai_metadata": {"positive_prompt": "a", "width": 64, "clip_skip": 1}},
    "invoke, older": {"sd-metadata": {"model_weights": "m", "image": {
        "prompt": [{"prompt": "a [b] c", "weight": 1}, {"x": 1}, {"prompt": "d"}], "steps": 4, "sampler": "k_euler"}}},
    "invoke, older, a text": {"sd-metadata": {"image": {"prompt": "a [b]"}}},
    "invoke, older, none": {"sd-metadata": {"image": 3}},
    "unknown": {"parameters": {"a": 1}},
    "a list": {"parameters": "[1]"},
    "first of two": {"parameters": {"c": "", "C": "b", "seed": 1}},
}  # fmt: skip


@producer
def images_of_others() -> Facts:
    """Settings in images of other programs."""
    for name, texts in TEXTS.items():
        written = {key: value if isinstance(value, str) else json.dumps(value) for key, value in texts.items()}
        yield name, told(foreign.read_foreign(written, "", (96, 48)))
    yield "comment", told(foreign.read_foreign({}, json.dumps({"c": "a", "size": "64x32"}), (1, 1)))
    yield (
        "longest",
        [foreign._json_object('{"a": "' + "x" * (foreign.LONGEST - 9 + more) + '"}') is not None for more in (0, 1)],
    )
    yield "numbers", [foreign._number(each) for each in ("0.5", 2, None, "x", [])]
    yield "texts", [foreign._texts(each) for each in (None, "a", ["a", 1], "[ 'a', \"b\" ]")]
    yield (
        "names",
        [foreign._name_or_value(each) for each in ({"name": 1, "model_name": "b"}, {"prompt": "c"}, {"x": "y"}, "d")],
    )
    yield "limits", [len(foreign._list([0] * 101)), len(foreign._texts([0] * 101)), foreign._list("ab")]


def told(found: ForeignSettings | None) -> Any:
    return found and [found.source, found.prompt, found.negative, found.pairs, found.loras, found.unread]


@producer
def presets_of_others() -> Facts:
    """Presets of other trainers, by three of their names."""
    three = {"output_dir": "x", "output_name": "y", "epoch": 1}
    for name, raw in (
        ("no table", [1]),
        ("of Atelier", three | {"schema_version": 3}),
        ("datasets", {"datasets": []}),
        ("datasets, another", {"datasets": {}}),
        ("three", three),
        ("two", {"output_dir": "x", "epoch": 1}),
        ("options", {"--output_dir": "x", "--output_name": "y", "-epoch": 1}),
        ("in a table", {"a": three}),
        ("in a deeper table", {"a": {"b": three}}),
        ("tables", {"job": {"x": 1}, "config": {"name": "x", "process": [1]}}),
        ("tables with a table", {"job": 1, "config": {"name": {"y": 1}, "process": [1]}}),
        ("job", {"job": "x", "config": {"name": "x", "process": [1]}}),
    ):
        yield name, [foreign_problem(raw, "p", toml=toml) for toml in (False, True)]
        problem = foreign_problem(raw, "p")
        yield f"{name}, program", problem and problem.what.partition(" of ")[2]


@producer
def caches_of_others() -> Facts:
    """Which cache files next to images are used, and why others are not."""
    with folder() as root:
        items = images(root, flip_aug=True)
        first, others = items[2], [*items[:2], *items[3:]]
        width, height = (length // npz.LATENT_PIXELS for length in first.placement.bucket)
        whole = np.arange(4 * height * width, dtype=np.float32).reshape(4, height, width) / 7
        stem = npz._stem(first)
        size = np.array([first.image.width, first.image.height])

        def written(**arrays: Any) -> Any:
            caches = npz.NpzCaches(items)
            np.savez(npz.with_ending(stem, ".npz"), **arrays)
            return [
                [caches(Side(first, flipped)) is not None for flipped in (False, True)],
                _why(caches),
                len(caches.log_lines()),
            ]

        both = {"latents": whole, "latents_flipped": -whole}
        keyed = {f"{key}_{height}x{width}": value for key, value in both.items()}
        for name, arrays in (
            ("both", both),
            ("keyed", keyed),
            ("keyed for another", {f"latents_{height}x{width + 1}": whole}),
            ("one", {"latents": whole}),
            ("size", both | {"original_size": size}),
            ("another size", both | {"original_size": size + 1}),
            ("size and more", both | {"original_size": np.append(size, 9)}),
            ("half a size", both | {"original_size": size[:1]}),
            ("size keyed", keyed | {f"original_size_{height}x{width}": size + 1}),
            ("longer", {**both, "latents": np.concatenate([whole, whole[:1]])}),
            ("turned", {**both, "latents": whole.transpose(0, 2, 1)}),
            ("double", {**both, "latents": whole.astype(np.float64)}),
            ("whole numbers", {**both, "latents": whole.astype(np.int32)}),
            ("texts", {**both, "latents": np.array(["x"])}),
            ("not finite", {**both, "latents": whole * np.float32("nan")}),
            ("bare", {"arr_0": whole}),
            ("other", {"x": whole}),
        ):
            yield name, refused(partial(written, **arrays))
        for turned, was in ((size, size), (size[::-1], size), (size[:1].repeat(2), size[:1].repeat(2))):
            image = replace(first.image, rotated=True, width=int(turned[0]), height=int(turned[1]))
            np.savez(npz.with_ending(stem, ".npz"), **both, original_size=was)
            caches = npz.NpzCaches(items)
            caches(Side(replace(first, image=image)))
            yield f"rotated {turned} {was}", [len(caches.refused), *("EXIF" in why for why in caches.refused.values())]
        for more in (-1, 0, 1):
            with patch.object(npz, "HEADER_BYTES", 128 + more):
                yield f"longest {more}", refused(partial(written, latents=whole.astype(np.float64)))
        np.savez(npz.with_ending(stem, "_flip.npz"), arr_0=-whole)
        yield "bare with its mirror image", refused(partial(written, arr_0=whole))
        np.savez(npz.with_ending(stem, "_flip.npz"), arr_0=-whole[:3])
        yield "bare with another mirror image", refused(partial(written, arr_0=whole))
        caches = npz.NpzCaches(items, "sdxl")
        sized = stem.parent / f"{stem.name}_{size[0]:04d}x{size[1]:04d}_sdxl.npz"
        np.savez(sized, **keyed)
        yield "names", [path.name for path in caches._candidates(first)]
        yield "second name", [caches(Side(first)) is not None, _why(caches)]
        for placed in others:
            np.savez(npz.with_ending(npz._stem(placed), ".npz"), x=whole)
            caches(Side(placed))
        for lines in (caches.log_lines(), npz.NpzCaches(items).log_lines()):
            yield f"lines {len(lines)}", [[line.count(".npz"), line.count(";"), "more" in line] for line in lines]
        alike = beside(stem.parent / f"{stem.name}.webp", first.image.path.read_bytes())
        twins = [first, replace(first, image=replace(first.image, path=alike))]
        caches = npz.NpzCaches(twins)
        yield "of two images", [caches(Side(first)), _why(caches)]


def _why(caches: npz.NpzCaches) -> Any:
    return {name: [why.split()[0], figures(why)] for name, why in caches.refused.items()}


@producer
def names_of_models() -> Facts:
    """Where a model is looked for, and which file of a folder it is."""
    with folder() as root:
        models, outputs = root / "models", root / "outputs"
        for text in (
            "fox",
            "models/fox",
            "models\\fox",
            "outputs/a/b",
            "outputs/../b",
            "../fox",
            str(root / "x"),
            "a\0b",
            ".",
        ):
            found = references._candidates(text, models, outputs)
            yield f"{text.replace(root.as_posix(), '')!r}", found[1:]
        yield "without outputs", references._candidates("outputs/a", models, None)[1:]
        for number, files in enumerate(
            (
                (),
                ("a.safetensors",),
                ("a.safetensors", "b.CKPT"),
                ("a.CKPT", "b.txt"),
                ("a.ckpt", "config.json"),
                ("a.ckpt", "model_index.json"),
            )
        ):
            place = root / str(number)
            place.mkdir()
            for name in files:
                beside(place / name, "x")
            yield f"{files}", references._model_in(place)
        for name in ("owner--m", "m"):
            beside(models / name / "v1.safetensors", "x")
            known = [
                references._downloaded(references.HubId("owner", "m", file), models)
                for file in (None, "v1.safetensors", "v2.ckpt")
            ]
            yield f"downloaded {name}", known
        for text in (
            "http://x.org/a.ckpt", "ftp://x.org/a.ckpt", "https://me@x.org/a.ckpt", "https:///a.ckpt", "https://[x/a.ckpt",
            "HTTPS://x.org/a%20b.CKPT?k=1", f"https://x.org/{'a' * 146}.ckpt", f"https://x.org/{'a' * 147}.ckpt", "https://x.org/.ckpt",
            "https://huggingface.co/o/m/blob/main/a.ckpt", "https://huggingface.co/o/m/tree/main/a.ckpt", "https://x.org/o/m/blob/main/a.ckpt",
            "https://HuggingFace.co/o/m/resolve/main/s/a.ckpt", "", "o/m.ckpt", "o/m.ckpt/x", "models/m", "o/../m", "o/m/../x",
            f"{'o' * 96}/m", f"{'o' * 97}/m",
        ):  # fmt: skip
            source = refused(partial(references.parse_source, text))
            yield f"source {text[:40]} {len(text)}", source


@producer
def downloads() -> Facts:
    """What is fetched of a model, what is there already, and what a message says to do by hand."""
    asked: list[Any] = []

    def fetched(remote: Any, target: Path, on_progress: Any, cancel: Any) -> str:
        asked.append([remote.url, remote.size, target.name])
        beside(target, "x" * (remote.size or 3))
        on_progress(1, 9)
        return hashlib.sha256(target.read_bytes()).hexdigest()

    with folder() as root, ExitStack() as stack:
        listed = [
            references.RemoteFile(name, 4 + number)
            for number, name in enumerate(("model_index.json", "unet/config.json", "v1.ckpt"))
        ]
        room = partial(_room, asked)
        for name, value in (
            ("fetch", fetched),
            ("_listing", lambda *given: listed),
            ("require_room", room),
            ("secret", lambda name: None),
        ):
            stack.enter_context(patch.object(references, name, value))
        address = "http://e/{repo_id}/resolve/{revision}/{filename}"
        stack.enter_context(patch("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address))
        link = references.Link("https://x.org/a.safetensors?k=1")
        sources = (link, references.HubId("o", "m"), references.HubId("o", "m", "v1.ckpt"))
        for number, source in enumerate(sources):
            models = root / str(number)
            for again in (False, True):
                asked.clear()
                done: list[Any] = []
                answer = refused(
                    partial(references.download, source, models, lambda *each, done=done: done.append(each))
                )
                yield (
                    f"{number} {again}",
                    [answer, list(asked), done, sorted(path.relative_to(models) for path in models.rglob("*.*"))],
                )
            part = references._partial_folder(source, models) if number else models / "b.safetensors.part"
            beside(part / "x" if number else part, "x")
            references.forget(source if number else references.Link("https://x.org/b.safetensors"), models)
            yield f"forgotten {number}", part.exists()
            for error in (
                OSError(13, "denied", "/x"),
                OSError(28, "full"),
                OSError(104, "reset"),
                ValueError("x"),
                references.FetchError("why", "so"),
            ):
                problem = references._failed(source, models, error).problems[0]
                yield (
                    f"failed {number} {error!r}",
                    [problem.code, problem.where, problem.fix.partition(" ")[0], "by hand" in problem.fix],
                )
        for name, status in product(("GatedRepoError", "RepositoryNotFoundError", "Other"), (None, 401, 404, 500)):
            response = None if status is None else SimpleNamespace(status_code=status)
            error = type(name, (Exception,), {"response": response})("first\nsecond")
            yield f"reason {name} {status}", [len(text.split()) for text in references._reason(error)]
        partly = root / "partly"
        beside(partly / "v1.ckpt", "x" * 6)
        beside(partly / "model_index.json", "x")
        asked.clear()
        references.download_files(sources[1], ["v1.ckpt", "model_index.json"], partly, lambda *each: asked.append(each))
        yield "the rest", list(asked)
        yield (
            "gone",
            refused(partial(references.download_files, sources[1], ["v1.ckpt", "z"], partly, lambda *each: None)),
        )
        good = weights_file(root / "0" / link.file)
        for number, (facts, text) in enumerate(
            (
                ({}, None),
                ({"sha256": "0"}, None),
                ({"source": "x"}, None),
                ({"query": "x"}, None),
                ({"sha256": None}, None),
                ({}, "<html>"),
            )
        ):
            path = beside(root / "0" / link.file, text if text else good)
            known = {
                "source": str(link),
                "query": link.query,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            } | facts
            with patch.object(references.catalog, "recorded", lambda models, known=known: {link.file: known}):
                yield f"here {number}", refused(partial(references.installed_path, link, root / "0"))


def _room(asked: list[Any], place: Path, size: int, name: str) -> None:
    asked.append(["room", size, name])


def weights_file(path: Path) -> bytes:
    """The bytes of a small safetensors file."""
    save_file({"a": torch.zeros(2)}, path)
    return path.read_bytes()
