"""Random configs of AI Toolkit and SimpleTuner as jobs, jobs as presets of kohya_ss, and texts of dataset files."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from core.generation.images.foreign import read_foreign
from core.imports import dataset_text
from core.imports.projects import ai_toolkit, kohya_export, simpletuner
from core.imports.projects.table import Table
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.job import TrainJob
from tests.facts.imports import imported
from tests.facts.jobs import changes
from tests.facts.samples import beside, figures
from tests.facts.store import Facts, folder, producer, refused

NUMBERS = (0, -1, 1, 2, 0.5, 0.05, 1e-3, 7, 100, 1500, "3", "1e-2", None, "x", True)
TEXTS = ("", "x", "fox", "1", None, [], "a/b.safetensors", "None")
SPECIAL: dict[str, tuple[Any, ...]] = {
    "train.optimizer": ("adamw8bit", "AdamW", "prodigy", "adafactor", "dadaptation", "lion", "automagic", "unheard"),
    "train.lr_scheduler": ("constant", "cosine", "constant_with_warmup", "linear", "none", "cosine_with_restarts"),
    "train.lr_scheduler_params": ({"num_warmup_steps": 50}, {"eta_min": "1e-5", "T_max": 9}, {"eta_min": 5, "x": 1}, [1]),
    "train.optimizer_params": ({"weight_decay": 0.1}, {"betas": [0.9, 0.95], "nope": 1}, {"eps": "1e-7"}, {}),
    "train.gradient_accumulation_steps": (1, 2, 4, -1), "train.gradient_accumulation": (1, 2, 3), "train.steps": (1000, 3, 0, 2001),
    "save.save_every": (250, 3, 0), "sample.sample_every": (100, 1, 0), "network.type": ("lora", "dora", "lokr", "lorm", "locon", "x"),
    "network.linear": (4, 16, 128, None), "network.rank": (8, None), "network.conv": (0, 4, 8), "network.conv_alpha": (0, 1, 2),
    "network.lokr_full_rank": (True, False), "network.network_kwargs": ({}, {"a": []}, {"only_if_contains": ["x"]}),
    "train.min_denoising_steps": (0, 100, 1000), "train.max_denoising_steps": (0, 999, 500), "train.dtype": ("bf16", "fp16", "float32",
    "tf32"),
    "train.ema_config.use_ema": (True, False), "train.ema_config.ema_decay": (0.99, 1.0, -1), "model.arch": ("sdxl", "sd1", "", "sd2:x",
    "flux"),
    "model.is_xl": (True, False), "model.is_v2": (False,), "model.name_or_path": ("/m/x.safetensors", ""), "sample.seed": (42, -1, 2**33),
    "sample.neg": (False, "bad", ""), "train.inverted_mask_prior": (True,), "train.diff_output_preservation": (True, False),
    "datasets.resolution": (512, [512, 768], [512, 512], ["x"], "640", [], 9000), "datasets.folder_path": ("/a", "/b.json", " "),
    "datasets.caption_ext": ("txt", ".caption", "", None), "datasets.num_repeats": (1, 5, 0, 20000), "datasets.is_reg": (True, False),
    "datasets.mask_min_value": (0.1, 2.0), "datasets.mask_path": ("/m", None), "datasets.random_crop": (True, False),
    "model_family": ("sdxl", "sd1x", "sd2x"), "model_type": ("lora", "full"), "max_train_steps": (0, 500, -5), "num_train_epochs": (0, 3),
    "prediction_type": ("epsilon", "v_prediction", "sample", None), "seed": (0, 5, -1), "report_to": ("wandb", "all", "none", "comet"),
    "attention_mechanism": ("diffusers", "xformers", "native-x", "sageattention"), "mixed_precision": ("no", "bf16", "fp16", "fp8"),
    "dynamo_backend": ("no", "inductor", ""), "use_ema": (True, False), "lora_type": ("standard", "lycoris"),
    "lycoris_config": ("lycoris.json", "other.json", "gone.json"), "user_prompt_library": ("library.json", "gone.json"),
    "optimizer": ("adamw_bf16", "adamw", "prodigy", "optimi-lion", "adamw_schedulefree", "unheard", "soap"),
    "optimizer_config": ("weight_decay=0.1", "betas=(0.9, 0.98),x=1", ""), "optimizer_beta1": (0.9, None), "optimizer_beta2": (0.95, None),
    "lr_scheduler": ("sine", "cosine", "polynomial", "linear", "constant", "constant_with_warmup", "x"), "lr_warmup_steps": (0, 10, -3,
    500),
    "lr_end": (0, 1e-6, 1), "grad_clip_method": ("value", "norm"), "offset_noise": (True, False, "true"),
    "noise_offset_probability": (0.5, 1.0),
    "minimum_image_size": (0, 0.5, 10, 11, 512, 1e6, None), "validation_resolution": ("1024", "1.0", "512x768,640", "x", "10,11",
    "9000x63"),
    "validation_prompt": ("a  fox", ""), "validation_seed": (None, 42, -1), "resolution": (1024, 1.0, 0.25, 10, 11, 0, "x", 1e6),
    "resolution_type": ("pixel", "area", "pixel_area"), "base_model_precision": ("no_change", "fp8-quanto", "int8-quanto"),
    "data.dataset_type": ("image", "eval", "conditioning", "text_embeds", "video", "image"), "data.type": ("local", "local", "csv"),
    "data.instance_data_dir": ("/a", "/b", " "), "data.resolution": (None, 512, 1.0, "x"), "data.resolution_type": ("pixel", "area", None),
    "data.crop": (True, False), "data.crop_aspect": ("square", "preserve", "random", "x"), "data.crop_style": ("center", "random",
    "corner"),
    "data.caption_strategy": ("textfile", "instanceprompt", "instance_prompt", "filename", None), "data.repeats": (0, 4, 20000),
    "data.minimum_image_size": (None, 0.25, 512), "data.conditioning_data": ("m", None), "data.id": ("a", "m", "b"),
    "data.instance_prompt": ("sks", None), "data.prepend_instance_prompt": (True, False),
}  # fmt: skip
PROMPTS = ["a [trigger] --m 2 --seed 7", "b --w 64 --steps x", " ", "[name] --n ugly --cfg 3", 5]
SAMPLES = [
    {"prompt": "a", "width": 640, "neg": "b"},
    {"prompt": "", "seed": 3},
    {"prompt": "c --l 2", "seed": "x", "guidance_scale": False},
    7,
]
LYCORIS: dict[str, Any] = {
    "algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 16, "multiplier": 1,
    "apply_preset": {"target_module": ["Attention", "FeedForward", "X"],
                     "module_algo_map": {"Attention": {"factor": 16}, "FeedForward": {"factor": 8}}},
}  # fmt: skip


def drawn(draw: Random, key: str, default: Any, choices: Any) -> Any:
    if key in SPECIAL:
        return draw.choice(SPECIAL[key])
    if choices:
        return draw.choice([*choices, "unheard"])
    if isinstance(default, bool):
        return draw.choice((True, False, "true", "x", None))
    return draw.choice(TEXTS if isinstance(default, str | list | dict) else NUMBERS)


def some(draw: Random, table: Table, prefix: str, number: int) -> dict[str, Any]:
    """Values for some keys below a prefix."""
    rows = list(table.rows_below(prefix))
    return {
        key.removeprefix(prefix): drawn(draw, key, row.default, row.choices)
        for key, row in draw.sample(rows, min(number, len(rows)))
    }


def of_ai_toolkit(name: str) -> str:
    draw, table = Random(name), ai_toolkit.TABLE
    process: dict[str, Any] = {"type": "sd_trainer", "trigger_word": draw.choice(("zkw", ""))}
    if draw.random() < 0.7:
        process["network"] = {"linear": 16}
    flat = {"model.name_or_path": "/m/x.safetensors"} | some(draw, table, "", 30)
    flat = {
        key: value for key, value in flat.items() if not key.startswith(("embedding.", "adapter.")) and key != "type"
    }
    for key, value in flat.items():
        *parts, last = key.split(".")
        if parts[:1] == ["network"] and "network" not in process:
            continue
        into = process
        for part in parts:
            into = into.setdefault(part, {})
        into[last] = value
    process["datasets"] = [
        {"folder_path": "/a"} | some(draw, table, "datasets.", 6) for _ in range(draw.choice((0, 1, 1, 2)))
    ]
    process.setdefault("sample", {}).update(draw.choice(({"prompts": PROMPTS}, {"samples": SAMPLES}, {})))
    return json.dumps({"job": "extension", "config": {"name": "fox", "process": [process]}})


def of_simpletuner(name: str) -> str:
    draw, table = Random(name), simpletuner.TABLE
    config: dict[str, Any] = {"model_family": "sdxl", "model_type": "lora"} | some(draw, table, "", 30)
    for key in ("model_family", "model_type"):
        config[key] = draw.choice(SPECIAL[key])
    config["data_backend_config"] = draw.choice(
        ("backend.json", [{"id": "a", "instance_data_dir": "/a"} | some(draw, table, "data.", 8) for _ in range(2)])
    )
    return json.dumps(
        {
            draw.choice(("", "--")) + key: value
            for key, value in config.items()
            if key not in ("controlnet", "model_flavour")
        }
    )


@producer
def configs() -> Facts:
    """Random configs: settings, kinds of entries, problems."""
    with folder() as root:
        beside(root / "lycoris.json", json.dumps(LYCORIS))
        beside(
            root / "other.json",
            json.dumps({"algo": "loha", "linear_dim": 8, "linear_alpha": 2, "dropout": 0.1, "apply_preset": "full"}),
        )
        beside(root / "library.json", json.dumps({"one": "a cat", "two": {"prompt": "a  dog"}, "three": 5}))
        beside(root / "backend.json", json.dumps([{"id": "b", "instance_data_dir": "/b", "crop": True}, 3]))
        for number in range(40):
            yield f"ai toolkit {number}", imported(of_ai_toolkit(f"ai toolkit {number}"), True, folder=root)
            yield f"simpletuner {number}", imported(of_simpletuner(f"simpletuner {number}"), True, folder=root)


GROUPS = (
    "network",
    "optimizer",
    "schedule",
    "noise",
    "dataset",
    "captions",
    "memory",
    "saving",
    "samples",
    "method",
    "lokr",
    "logging",
    "embedding",
)


@producer
def kohya_presets() -> Facts:
    """Random jobs as presets of kohya_ss: the fields that differ from the form's, and what is lost."""
    for number in range(60):
        values = changes(TrainJob, f"kohya {number}", 14, GROUPS, {"dataset.folder": "/data/fox"})

        def exported(values: dict[str, Any] = values) -> Any:
            job = build(TrainJob, values)
            preset = kohya_export.export_preset(job)
            form = kohya_export.form_of(preset.tab)
            return [
                preset.title,
                {key: value for key, value in preset.fields.items() if form.get(key) != value},
                sorted(preset.lost),
            ]

        try:
            yield f"{number}", refused(exported)
        except ProblemsError as error:
            yield f"{number}", error.problems


TOML = '[general]\nflip_aug = true\n[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "{}"\n'
TEXTS_OF_FILES: dict[str, tuple[str, str | bytes]] = {
    "windows": (".toml", TOML.format("C:\\new\\table")), "windows escaped": (".toml", TOML.format("C:\\\\new")),
    "windows end": (".toml", TOML.format("C:\\new\\")), "windows quote": (".toml",
    TOML.format("D:\\it's\\x")), "hex": (".toml", TOML.format("C:\\users\\x41")),
    "comment": (".toml", '# image_dir = "C:\\new"\n' + TOML.format("a")), "json windows": (".json",
    '{"datasets": [{"subsets": [{"image_dir": "C:\\new"}]}]}'),
    "json ended": (".json", '{"datasets": [{"subsets": [{"image_dir": "C:\\\\new\\\\"}]}]}'), "json broken": (".json",
    '{"a": 1,\n "b" 2}'), "json nan": (".json", '{"a": NaN}'),
    "json twice": (".json", '{"a": 1,\n"a": 2}'), "json list": (".json", "[1]"), "bom": (".toml",
    b"\xef\xbb\xbf" + TOML.format("a").encode()),
    "utf16": (".toml", TOML.format("a").encode("utf-16")), "crlf": (".toml", TOML.format("a").replace("\n", "\r\n").encode()),
    "latin": (".toml", TOML.format("caf\xe9").encode("latin-1")), "latin json": (".json", '{"a":\n"caf\xe9"}'.encode("latin-1")),
    "empty": (".toml", ""),
    "comma": (".toml", "resolution = [512,]\nx = {a = 1,}\n"), "mixed": (".toml", "a = [1, 'x']\n"), "dotted": (".toml",
    "a.b = 1\n[c.'d e']\nf = 2\n"),
    "twice": (".toml", "a = 1\na = 2\n"), "open text": (".toml",
    'a = "x\n'), "no key": (".toml", "= 1\n"), "many lines": (".toml", 'a = """x\n# b = 1\n"""\nc = 1 # d = 2\n'),
    "long line": (".toml", "a = '" + "x" * 20_000 + "'\n"), "deep": (".toml", "a = " + "[" * 200 + "]" * 200), "date": (".toml",
    "a = 1979-05-27\n"),
}  # fmt: skip


@producer
def texts() -> Facts:
    """What is read of dataset files: content, lines of keys, notes and problems."""
    with folder() as root:
        (root / "new").mkdir()
        for name, (suffix, text) in TEXTS_OF_FILES.items():
            path = beside(root / f"set{suffix}", text)

            def read(path: Path = path) -> Any:
                found = dataset_text.read_document(path)
                return [
                    found.raw,
                    found.lines,
                    len(found.notes),
                    [[each, figures(each.fix)] for each in found.problems],
                ]

            yield name, refused(read)


@producer
def single() -> Facts:
    """Seeds of SimpleTuner's prompts, and images that sd-scripts or Easy Diffusion made by their texts."""
    for seed in (None, 0, 5, -1, 2**33):
        config = {"model_family": "sdxl", "model_type": "lora", "validation_prompt": "a fox", "validation_seed": seed}
        yield f"seed {seed}", imported(json.dumps(config), True)
    texts: tuple[dict[str, str], ...] = (
        {"prompt": "p"}, {"prompt": "p", "seed": "3"}, {"seed": "3"}, {"prompt": "p", "scale": "7", "steps": "9"},
        {"prompt": "p", "x": "1"},
        {"prompt": "p", "guidance_scale": "5"}, {"prompt": "", "seed": "3"}, {"negative_prompt": "n", "prompt": "p"},
    )  # fmt: skip
    for each in texts:
        yield f"image {sorted(each.items())}", refused(read_foreign, each, "", (64, 96))
