"""Every tool on tiny files: what is planned, found and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file, save_file

from core.dataset.sources.files import TRASH_FOLDER
from core.families import family
from core.families.loading import load
from core.formats.tensors.header import read_header
from core.formats.tensors.reading import TensorFile
from core.networks.adapter_file import save_lora
from core.tools.metadata.rules import (
    TagRules,
    clean_tags,
    clean_tags_as_sd_scripts,
    read_replacements,
)
from tests.facts.running import run
from tests.facts.samples import beside, noise, quarters, smooth, write
from tests.facts.store import Facts, digest, folder, plain, producer, refused
from tests.models import tiny_folder, tiny_lora

VECTORS = Path(__file__).parents[1] / "vectors"
A, B, C = (str(VECTORS / f"mr_{each}.safetensors") for each in "abc")
LAYER = "lora_unet_mid_block_attentions_0_proj_in"
CONV = "lora_unet_mid_block_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
METADATA = {"ss_base_model_version": "sd_v1", "ss_tag_frequency": '{"fox": {"a": 2}}', "modelspec.title": "glyph"}
OF_ALL = ("base", "tuned", "folder", "fit")
OF_THE_MOMENT = ("modelspec.date", "atelier_version", "sshs_model_hash", "sshs_legacy_hash")


def contents(path: Path) -> Any:
    """A model file: its tensors' names and types, magnitudes of the whole and of three, and its metadata."""
    if path.suffix not in (".safetensors", ".ckpt", ".bin", ".pt"):
        return len(path.read_bytes()) if path.suffix in (".png", ".md") else digest(path.read_text("utf-8", "replace"))
    entries, said = read_header(path)
    with TensorFile(path) as file:
        names = sorted(entries)
        values = {name: file.read(name) for name in names}
    sizes = [float(each.double().abs().mean()) for each in values.values() if each.numel() and each.is_floating_point()]
    types = sorted({entry.dtype for entry in entries.values()})
    shapes = digest([[name, entries[name].shape] for name in names])
    kept = {key: value for key, value in sorted(said.items()) if key not in OF_THE_MOMENT}
    return [
        len(names),
        shapes,
        types,
        sum(sizes),
        [values[name] for name in names[:: max(1, len(names) // 3)][:3]],
        {key: value if len(value) < 40 else len(value) for key, value in list(kept.items())[:20]},
    ]


def below(root: Path) -> dict[str, Any]:
    return {path.relative_to(root).as_posix(): contents(path) for path in sorted(root.rglob("*")) if path.is_file()}


@contextmanager
def models() -> Iterator[Path]:
    """A folder with a tiny checkpoint, one that was trained on it, and the model's folder."""
    with folder() as root:
        tiny_folder("sd1", root / "folder")
        base = {"file": str(root / "folder"), "save_model_as": "safetensors", "output": str(root / "base.safetensors")}
        run("convert_model", root, {"convert_model": base})
        draws = torch.Generator().manual_seed(0)
        tensors = load_file(root / "base.safetensors")
        changed = {
            name: value + 0.05 * torch.randn(value.shape, generator=draws) if value.is_floating_point() else value
            for name, value in tensors.items()
        }
        save_file(changed, root / "tuned.safetensors", read_header(root / "base.safetensors")[1])
        tiny_lora(
            load(family("sd1").layout, root / "folder", parts=("text_encoders", "denoiser")), root / "fit.safetensors"
        )
        yield root


def lora(path: Path, rank: int = 4, seed: int = 0, **more: torch.Tensor) -> Path:
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, outs, ins in ((LAYER, 32, 32), (CONV, 64, 64), (TEXT, 32, 32)):
        kernel = (3, 3) if name == CONV else ()
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, ins, *kernel, generator=draw)
        tensors[f"{name}.lora_up.weight"] = torch.randn(outs, rank, *(1 for _ in kernel), generator=draw)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    return save_lora(path, tensors | more, METADATA)


LORA_TOOLS: list[tuple[str, dict[str, Any]]] = [
    ("resize_lora", {"file": A, "new_rank": 2}),
    (
        "resize_lora",
        {"file": A, "new_rank": 3, "dynamic_method": "sv_ratio", "dynamic_param": 3.0, "save_precision": "fp16"},
    ),
    ("resize_lora", {"file": A, "new_rank": 8, "dynamic_method": "sv_fro", "dynamic_param": 0.7}),
    (
        "resize_lora",
        {"file": A, "new_rank": 8, "dynamic_method": "sv_cumulative", "dynamic_param": 0.6, "new_conv_rank": 1},
    ),
    ("resize_lora", {"file": A, "new_rank": 2, "compatibility": "sd-scripts"}),
    ("resize_lora", {"file": A, "new_rank": 5000}),
    ("merge_loras", {"models": [A, B], "method": "concat"}),
    ("merge_loras", {"models": [A, B, C], "method": "svd", "ratios": "0.5, 1, -0.5", "new_rank": 3}),
    ("merge_loras", {"models": [A, B], "method": "plain", "ratios": "0.3, 0.7", "save_precision": "bf16"}),
    ("merge_loras", {"models": [A, B], "method": "svd", "new_rank": 2, "clamp_quantile": 0.9, "no_metadata": True}),
    ("merge_loras", {"models": [A, B], "method": "concat", "shuffle": True, "seed": 3}),
    ("merge_loras", {"models": [A]}),
    ("merge_loras", {"models": [A, B], "ratios": "1"}),
    ("split_dylora", {"model": A, "unit": 2}),
    ("split_dylora", {"model": A, "unit": 3}),
    ("convert_lora", {"file": A, "names": "diffusers"}),
    ("convert_lora", {"file": A, "names": "diffusers_folded"}),
    ("convert_lora", {"file": A, "save_precision": "fp16"}),
    ("convert_lora", {"file": "{lora}", "names": "diffusers", "drop_norms": True}),
    ("convert_lora", {"file": "{lora}"}),
    ("check_weights", {"file": "{damaged}"}),
    ("check_weights", {"file": A}),
    ("singular_values", {"file": A, "keep": 0.8}),
    ("singular_values", {"file": "{lora}", "keep": 0.99}),
    ("compare_loras", {"file": A, "other": B}),
    ("compare_loras", {"file": A, "other": A}),
    ("compare_loras", {"file": A, "other": "{lora}"}),
    ("extract_lora", {"model_org": "{base}", "model_tuned": "{tuned}", "dim": 2}),
    (
        "extract_lora",
        {
            "model_org": "{base}",
            "model_tuned": "{tuned}",
            "dim": 3,
            "conv_dim": 2,
            "clamp_quantile": 0.95,
            "save_precision": "fp16",
            "min_diff": 0.5,
        },
    ),
    ("extract_lora", {"model_org": "{base}", "model_tuned": "{base}"}),
    ("merge_lora_to_model", {"file": "{base}", "models": ["{fit}"], "ratios": "0.5"}),
    (
        "merge_lora_to_model",
        {"file": "{base}", "models": ["{fit}", "{fit}"], "ratios": "1, -0.25", "save_precision": "fp16"},
    ),
    ("interrogate_lora", {"file": "{fit}", "base_model": "{base}", "top": 5}),
    ("resize_lora", {"file": "{loha}", "new_rank": 2}),
    ("merge_loras", {"models": ["{loha}", "{lora}"], "method": "svd", "ratios": "1, 0.5", "new_rank": 2}),
    ("singular_values", {"file": "{loha}", "keep": 0.9}),
]


def filled(value: Any, root: Path, shared: Path) -> Any:
    if isinstance(value, list):
        return [filled(each, root, shared) for each in value]
    if value in (A, B, C):  # tools write next to what they read
        return shutil.copy(value, root)
    if isinstance(value, str) and value.startswith("{"):
        name = value[1:-1]
        return str((shared if name in OF_ALL else root) / (name if name == "folder" else f"{name}.safetensors"))
    return value


def used(task: str, given: dict[str, Any], root: Path, shared: Path, ending: str = ".safetensors") -> Any:
    options = {key: filled(value, root, shared) for key, value in given.items()}
    if ending:
        options["output"] = str(root / "out" / f"made{ending}")
    return run(task, root, {task: options})


@producer
def loras() -> Facts:
    with models() as shared:
        for number, (task, given) in enumerate(LORA_TOOLS):
            yield lora_tool(number, task, given, shared)


def lora_tool(number: int, task: str, given: dict[str, Any], shared: Path) -> tuple[str, Any]:
    with folder() as root:
        lora(root / "lora.safetensors", **{"lora_unet_conv_norm_out.w_norm": torch.ones(32)} if number % 2 else {})
        if "{loha}" in str(given):
            draw = torch.Generator().manual_seed(5)
            sides = {"w1_a": (32, 2), "w1_b": (2, 32), "w2_a": (32, 2), "w2_b": (2, 32)}
            factors = {f"{LAYER}.hada_{part}": torch.randn(*shape, generator=draw) for part, shape in sides.items()}
            save_lora(root / "loha.safetensors", factors | {f"{LAYER}.alpha": torch.tensor(1.0)}, METADATA)
        odd = {
            f"{LAYER}.lora_up.weight": torch.full((32, 4), float("nan")),
            f"{TEXT}.lora_up.weight": torch.zeros(32, 4),
            f"{CONV}.alpha": torch.tensor(7e4),
        }
        save_file(
            {key: value for key, value in lora_tensors(root).items()} | odd, root / "damaged.safetensors", METADATA
        )
        reads = task in ("check_weights", "singular_values", "compare_loras", "interrogate_lora")
        if reads and number % 2 == 0 and task != "interrogate_lora":
            given = given | {"png": str(root / "out" / "plot.png")}
        found = used(
            task,
            given,
            root,
            shared,
            "" if reads else ".safetensors" if task not in ("split_dylora", "convert_lora") else "",
        )
        made = below(root / "out") if (root / "out").is_dir() else {}
        return f"{number} {task} {short(given)}", [found, made]


def lora_tensors(root: Path) -> dict[str, torch.Tensor]:
    with TensorFile(root / "lora.safetensors") as file:
        return {name: file.read(name) for name in read_header(root / "lora.safetensors")[0]}


def short(given: dict[str, Any]) -> str:
    return " ".join(f"{key}={str(value).rpartition('/')[2]}" for key, value in given.items())


MODEL_TOOLS: list[tuple[str, dict[str, Any], str]] = [
    ("convert_model", {"file": "{base}", "save_precision": "fp16", "weights_hash": True}, ".safetensors"),
    ("convert_model", {"file": "{base}", "save_model_as": "ckpt", "no_metadata": True}, ".ckpt"),
    (
        "convert_model",
        {"file": "{base}", "save_model_as": "diffusers_safetensors", "variant": "fp16", "save_precision": "fp16"},
        "",
    ),
    (
        "convert_model",
        {"file": "{folder}", "save_model_as": "safetensors", "prediction": "v", "no_vae": True},
        ".safetensors",
    ),
    ("convert_model", {"file": "{lora}"}, ".safetensors"),
    ("bake_vae", {"file": "{base}", "vae": "{tuned}"}, ".safetensors"),
    ("extract_vae", {"file": "{base}", "save_precision": "bf16"}, ".safetensors"),
    ("extract_vae", {"file": "{base}", "layout": "diffusers"}, ""),
    ("merge_models", {"models": ["{base}", "{tuned}"], "ratios": "0.25, 0.75"}, ".safetensors"),
    (
        "merge_models",
        {"models": ["{base}", "{tuned}"], "method": "sigmoid", "unet_only": True, "saving_precision": "fp16"},
        ".safetensors",
    ),
    (
        "merge_models",
        {"models": ["{base}", "{tuned}", "{base}"], "method": "add_difference", "multiplier": 0.5},
        ".safetensors",
    ),
    ("merge_models", {"models": ["{base}", "{tuned}"], "block_weights": "IN00-IN05=0.2, MID=1"}, ".safetensors"),
    ("merge_models", {"models": ["{base}"]}, ".safetensors"),
    ("inspect", {"file": "{base}"}, ""),
    ("inspect", {"file": "{folder}"}, ""),
    ("inspect", {"file": "{lora}"}, ""),
    ("inspect", {"file": A}, ""),
    ("hashes", {"file": "{lora}"}, ""),
    ("edit_metadata", {"file": "{lora}"}, ""),
    (
        "edit_metadata",
        {
            "file": "{lora}",
            "metadata_title": "new",
            "metadata_tags": "a, b",
            "set_keys": ["x=1", "y=z=2"],
            "remove_keys": ["ss_tag_frequency"],
        },
        ".safetensors",
    ),
    ("edit_metadata", {"file": "{lora}", "set_keys": ["x"], "remove_keys": ["nope"]}, ".safetensors"),
    ("edit_metadata", {"file": "{lora}", "metadata_author": "me", "in_place": True}, ""),
    ("strip_metadata", {"file": "{lora}", "remove": "training"}, ".safetensors"),
    ("strip_metadata", {"file": "{lora}", "remove": "minimum"}, ".safetensors"),
    ("strip_metadata", {"file": "{lora}", "remove": "all"}, ".safetensors"),
    ("download", {"hub_id": "no id"}, ""),
]


@producer
def checkpoints() -> Facts:
    with models() as shared:
        for number, (task, given, ending) in enumerate(MODEL_TOOLS):
            yield model_tool(number, task, given, ending, shared)


def model_tool(number: int, task: str, given: dict[str, Any], ending: str, shared: Path) -> tuple[str, Any]:
    with folder() as root:
        lora(root / "lora.safetensors")
        writes = task in ("convert_model", "extract_vae") and not ending
        options = given | ({"output": str(root / "out" / "made")} if writes else {})
        found = used(task, options, root, shared, ending)
        place = root / "out"
        made = (
            {name: value for name, value in below(place).items() if "tokenizer" not in name} if place.is_dir() else {}
        )
        if given.get("in_place"):
            made = [
                contents(root / "lora.safetensors"),
                used(task, {"file": "{lora}", "undo": True, "in_place": True}, root, shared, ""),
            ]
        return f"{number} {task} {short(given)}", [found, made]


IMAGE_TOOLS: list[tuple[str, dict[str, Any]]] = [
    ("resize", {"max_resolution": [64, (48, 96)], "divisible_by": 8}),
    ("resize", {"max_resolution": [32], "divisible_by": 1, "recursive": False, "copy_captions": False}),
    ("crop", {"crop_size": (32, 48)}),
    ("crop", {"crop_size": (32, 48), "crop_scaled": True}),
    ("convert", {"format": "png", "recursive": False}),
    ("number", {"number_prefix": "fox_", "number_start": 7, "number_digits": 3}),
    ("number", {"number_in_place": True}),
    ("make_hints", {"preprocessor": "canny", "edge_low": 50, "edge_high": 120}),
    ("make_hints", {"preprocessor": "tile", "hint_resolution": 64}),
    ("make_hints", {"preprocessor": "blur", "preview": 1}),
    ("resize", {"folder": "~/gone"}),
    ("undo_number", {}),
]


def pictures(root: Path) -> Path:
    place = root / "set"
    write(place / "wide.png", smooth(100, 60), "a wide one")
    write(place / "sub" / "small.png", noise(30, 40, 1), "small")
    write(place / "tall.bmp", smooth(50, 110, 2))
    write(place / "wide-masklabel.png", noise(100, 60, 3, 1))
    beside(place / "broken.png", b"no image")
    beside(place / "notes.md", "x")
    return place


def shown(root: Path) -> dict[str, Any]:
    """Images as size and rough sums, other files by their text."""
    found: dict[str, Any] = {}
    for path in sorted(each for each in root.rglob("*") if each.is_file() and TRASH_FOLDER not in each.parts):
        name = path.relative_to(root).as_posix()
        if path.suffix in (".png", ".bmp", ".jpg") and path.name != "broken.png":
            with suppress(UnidentifiedImageError), Image.open(path) as image:
                found[name] = [image.size, image.mode, [each // 1000 for each in quarters(image)]]
        else:
            found[name] = path.read_text("utf-8", "replace")[:40] if path.suffix != ".json" else "json"
    return found


@producer
def images() -> Facts:
    for number, (task, given) in enumerate(IMAGE_TOOLS):
        with folder() as root:
            place = pictures(root)
            options = {"folder": str(place)} | {
                key: str(root / value[2:]) if str(value).startswith("~") else value for key, value in given.items()
            }
            if task not in ("undo_number",) and not given.get("number_in_place"):
                options["output"] = str(root / "out")
            found = run(task, root, {task: options})
            made = shown(root / "out") if (root / "out").is_dir() else shown(place) if "in_place" in str(given) else {}
            undone = (
                [run("undo_number", root, {"undo_number": {"folder": str(place)}}), sorted(shown(place))]
                if given.get("number_in_place")
                else []
            )
            yield f"{number} {task} {given}", [found, made, undone]


TAGS = (
    "2girls, long hair, blue hair, red hair, blue eyes, smile|2boys, bob cut, hime cut, sleeveless, hat|1girl, blue eyes, red eyes"
    "|shirt, white shirt, hair ornament, flower hair ornament|eyes, closed eyes, t-shirt, white t-shirt|shirt, shirt, skirt"
    "|smile, rating:safe, ratings|^_^, a_b, >_<|3girls, ponytail, double bun, sidelocks, x|cowboys, blue eyes, red eyes|a,  b, , c|"
).split("|")


@producer
def metadata() -> Facts:
    """Fine-tuning metadata: merged, cleaned and written back; the rules of cleaning."""
    for options in ({}, {"underscores": False, "ratings": False}, {"people": False, "contained": False}):
        rules = TagRules(**options)
        yield f"tags {options}", [[clean_tags(text, rules), clean_tags_as_sd_scripts(text, rules)] for text in TAGS]
    with folder() as root:
        place = pictures(root)
        beside(place / "wide.caption", "an anime girl with a sword")
        beside(place / "tall.txt", "2girls, blue_eyes, red eyes, rating:safe, shirt, white shirt")
        beside(place / "sub" / "small.caption", "a painting of a girl")
        meta, clean = root / "meta.json", root / "clean.json"

        def step(task: str, **given: Any) -> Any:
            return run(task, root, {task: given})

        folders = [str(place)]
        yield (
            "captions",
            [
                step("merge_captions", folders=folders, out_json=str(meta)),
                meta.read_text().replace(root.as_posix(), "~"),
            ],
        )
        yield (
            "tags",
            [
                step("merge_tags", folders=folders, out_json=str(meta)),
                digest(json.loads(meta.read_text().replace(root.as_posix(), "~"))),
            ],
        )
        yield (
            "paths",
            [
                step("merge_tags", folders=folders, out_json=str(root / "p.json"), full_path=True, recursive=False),
                sorted(key.replace(root.as_posix(), "~") for key in json.loads((root / "p.json").read_text())),
            ],
        )
        for rules in ("words", "sd-scripts"):
            given = {"in_json": str(meta), "out_json": str(clean), "clean_rules": rules}
            yield f"previewed {rules}", step("clean_metadata", **given, preview=2)
            yield f"cleaned {rules}", [step("clean_metadata", **given), json.loads(clean.read_text())]
            clean.unlink()
        replaced = beside(root / "r.txt", "# words\nanime girl -> person\na sword\n")
        given = {
            "in_json": str(meta),
            "out_json": str(clean),
            "replacements": ["girl -> woman"],
            "replacements_file": str(replaced),
        }
        yield "replaced", [step("clean_metadata", **given), json.loads(clean.read_text()) if clean.exists() else None]
        yield (
            "back",
            [
                step("metadata_to_captions", in_json=str(meta), folders=folders, captions_to=".cap", tags_to=".tags"),
                sorted(path.name for path in place.rglob("*")),
            ],
        )
        yield (
            "back again",
            [
                step(
                    "metadata_to_captions",
                    in_json=str(meta),
                    folders=folders,
                    captions_to=".cap",
                    tags_to=".tags",
                    existing=each,
                    preview=3,
                )
                for each in ("keep", "replace")
            ],
        )
        yield (
            "refused",
            [
                step("merge_captions", folders=[], out_json=""),
                step("merge_tags", folders=["/nowhere"], out_json=str(root / "x.txt")),
                step("clean_metadata", in_json=str(root / "none.json"), out_json=str(clean)),
            ],
        )
        yield (
            "wrong rules",
            [
                refused(lambda text=text: plain(read_replacements([("here", text)])))
                for text in ("a -> b", "(", "a ->", "-> b", "", "# x")
            ],
        )
