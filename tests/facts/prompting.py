"""Prompts as Generate shows them and as files and modules give them; embeddings that fit a model; what fills memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from core.families import family
from core.formats.embedding_file import LAYERS
from core.generation.model import embeddings
from core.generation.model.parts import Parts
from core.generation.model.sources import HookFile, Sources, tensors_sha256
from core.generation.plan.forecast import forecast_batch_size, needs_of
from core.generation.prompt import analysis, files
from core.generation.sample.canvas import images_at_once
from core.record.problems import Problem
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.facts.generation import MODES, ODD_PROMPTS, PROMPTS, lines_of
from tests.facts.library import LORA, put
from tests.facts.samples import beside
from tests.facts.store import Facts, folder, producer, refused
from tests.models import tiny_folder, tiny_lora


@producer
def analyzed() -> Facts:
    """Parts, joints and findings of prompts in each way of reading, and the most that is read and found."""
    names = analysis.Names(lines_of, embeddings={"emb": 3})
    for text in (*PROMPTS, *ODD_PROMPTS):
        rows = []
        for mode in MODES:
            found = analysis.analyze(text, names, mode)
            rows.append(
                [[[each.weight, each.windows] for each in found.parts], found.joints, found.drawn, len(found.findings)]
            )
        yield text, rows
    for length in (analysis.LONGEST, analysis.LONGEST + 1):
        found = analysis.analyze("a " * (length // 2) + "b" * (length % 2), names, MODES[2])
        yield f"longest {length}", [len(found.parts), [each.problem.code for each in found.findings]]
    many = analysis.analyze("(a:1.2.3) " * (analysis.MOST_FINDINGS + 1), names, MODES[0])
    yield "most", [len(many.findings), many.findings[-1].start]


FILES: dict[str, str | bytes] = {
    "a.txt": "a fox --w 64\n\n# comment\n # not one\nb", "mark.txt": b"\xef\xbb\xbfa", "latin.txt": "caf\xe9".encode("latin-1"),
    "A.TXT": "x",
    "a.toml": '[prompt]\nwidth = 64\nsteps = 5\n[[prompt.subset]]\nprompt = "a"\nwidth = 128\n[[prompt.subset]]\nprompt = "b"\nseed = 3\n',
    "none.toml": "a = 1\n", "table.toml": "prompt = 3\n", "list.toml": "[prompt]\nsubset = 3\n",
    "wrong.toml": "[prompt]\nsubset = [1]\n", "bad.toml": "a =",
    "a.json": '["a --s 5", {"prompt": "b", "seed": [1, 2], "nope": 1}, {"width": 64}]', "table.json": "{}", "number.json": "[1]",
    "bad.json": "[",
    "a.md": "a",
    "keys.json": '[{"prompt": "a", "negative_prompt": "b", "sample_steps": 4, "scale": 3.5, "width": "x", "guidance_scale": 2}]',
}  # fmt: skip


@producer
def prompt_files() -> Facts:
    """Entries of files and modules, and prompts of them; the most of each."""
    with folder() as root:
        for name, text in FILES.items():
            path = beside(root / name, text)
            entries = refused(files.read_entries, path, "prompts.from_file")
            rows = []
            for each in [] if isinstance(entries, dict) else files.read_entries(path, "x"):
                notes: list[Problem] = []
                rows.append([refused(files.parse_entry, each, notes, "x"), notes])
            yield name, [entries, rows]
        path = beside(root / "many.txt", "a\n" * 4)
        for most in (3, 4):
            with patch.object(files, "MAX_PROMPTS", most):
                yield f"most {most}", refused(lambda: len(files.read_entries(path, "x")))
        notes = []
        yield "seeds", [files.line_of_table({"prompt": "a", "seed": 5}, notes, "x"), notes]
        yield "prompts", [files.is_prompt(each) for each in ("a", "", " ", "#a", " #a", "a#")]
        yield from modules()


def modules() -> Facts:
    def endless(job: GenerateJob) -> Any:
        while True:
            yield "a"

    def prompter(args: Any, pipe: Any, networks: Any) -> Any:
        said = [
            args.W,
            args.H,
            args.scale,
            args.steps,
            args.seed,
            args.images_per_prompt,
            args.prompt,
            args.sampler,
            args.ckpt,
        ]

        def ask(args: Any, pipe: Any, seeds: Any, iter_seed: int, number: int, images: int) -> str | None:
            return (
                None
                if number > 2
                else f"{said if not number else ''} {iter_seed} {number} {images} {seeds.randint(0, 9)}"
            )

        return ask

    made = {
        "listed": {"prompts": lambda job: ["a", "", "# b", {"prompt": "c"}, job.generate.prompt]}, "wrong": {"prompts": lambda job: ["a",
        3]},
        "endless": {"prompts": endless}, "failing": {"prompts": lambda job: 1 / 0}, "leaving": {"prompts": lambda job: sys.exit(3)},
        "prompter": {"get_prompter": prompter}, "empty": {"prompts": 3}, "both": {"prompts": lambda job: ["p"], "get_prompter": prompter},
    }  # fmt: skip
    names = {f"atelier_prompts_{name}": values for name, values in made.items()}
    loaded: dict[str, ModuleType] = {}
    for name, values in names.items():
        loaded[name] = ModuleType(name)
        vars(loaded[name]).update(values)
    allowed_names = frozenset([*names, "atelier_prompts_gone"])
    with (
        patch.dict(sys.modules, loaded),
        patch.object(files, "allowed_modules", lambda: allowed_names),
        patch.object(files, "MAX_PROMPTS", 5),
    ):
        for name in (*names, "atelier_prompts_gone", "atelier_other", "a b", "atelier_prompts_listed.py", ""):
            generate = {
                "prompt": "fox",
                "seed": 7,
                "count": 2,
                "width": 64,
                "height": 128,
                "steps": 9,
                "guidance_scale": 3,
            }
            job = build(GenerateJob, {"generate": generate, "prompts": {"from_module": name or None}})
            yield f"module {name}", refused(files.module_entries, job)


WORDS: dict[str, dict[str, torch.Tensor]] = {
    "kohya": {"emb_params": torch.ones(3, 32)}, "wide": {"emb_params": torch.ones(3, 33)}, "sdxl": {"clip_l": torch.ones(2, 32),
    "clip_g": torch.ones(2, 64)},
    "unequal": {"clip_l": torch.ones(2, 32), "clip_g": torch.ones(3, 64)}, "tokens": {"<fox>": torch.ones(32), "cat": torch.ones(2, 32)},
    "layers": {name: torch.ones(1, 32) for name in LAYERS}, "turned": {"clip_l": torch.ones(2, 64), "clip_g": torch.ones(2, 32)},
    "lora": LORA,
    "of sd2": {"emb_params": torch.ones(1, 1024)}, "of sd1": {"emb_params": torch.ones(1, 768)},
    "bundled": {"bundle_emb.fox.emb_params": torch.ones(2, 32), "lora_unet_x.alpha": torch.tensor(1.0)},
}  # fmt: skip


@producer
def words() -> Facts:
    """Which embeddings are found by a text, and which fit which model."""
    with folder() as root:
        space = Workspace(root / "outputs", root / "models", root / "presets")
        for name, tensors in WORDS.items():
            put(space.models / "embeddings" / f"{name}.safetensors", tensors, 100)
        for text in (
            "kohya",
            "w=kohya",
            "a=b=kohya",
            "tokens",
            "cat=tokens",
            "dog=tokens",
            "x/y=kohya",
            " w =kohya",
            "nope",
            "embeddings/sdxl",
            "layers",
        ):
            yield (
                f"found {text}",
                [refused(embeddings.find_embeddings, text, space), refused(embeddings.find_embedding, text, space)],
            )
        models = {name: tiny_folder(name, root / name) for name in ("sd1", "sdxl")}
        yield "widths", [embeddings.token_widths(each) for each in (*models.values(), root)]
        for name in WORDS:
            path = space.models / "embeddings" / f"{name}.safetensors"
            tokens = {"tokens": "cat", "bundled": "fox"}
            word = embeddings.Embedding("w", path, tokens.get(name, ""))
            for kind in ("sd1", "sdxl"):
                yield f"{name} in {kind}", refused(embeddings.check_token, word, (), kind, models[kind])
            yield f"said {name}", [word.setting(space), embeddings.Embedding(name, path).setting(space)]
        twice = embeddings.Embedding("W", root / "x")
        yield (
            "twice",
            refused(
                embeddings.check_token,
                embeddings.Embedding("w", space.models / "embeddings" / "kohya.safetensors"),
                (twice,),
                "sd1",
                models["sd1"],
            ),
        )
        yield from encoders(models["sd1"], space)


def encoders(model: Any, space: Workspace) -> Facts:
    """Texts with the words of embeddings, which are missing, and the encoders afterwards."""
    components = family("sd1").load(model)
    tables = [encoder.get_input_embeddings() for encoder in components.text_encoders]
    paths = {name: space.models / "embeddings" / f"{name}.safetensors" for name in WORDS}
    chosen = [
        embeddings.Embedding("fox", paths["kohya"]),
        embeddings.Embedding("Cat", paths["tokens"], "cat"),
        embeddings.Embedding("lay", paths["layers"]),
    ]
    for number in range(4):
        with embeddings.embeddings_attached(components, chosen[:number]) as encoder:
            states = encoder.encode_each(["a FOX, cat lay", "a"], others=["b " * 80])
            spelled = [encoder._with_tokens("a FOX, foxes cat lay", suffix, True) for suffix in ("", f"_{LAYERS[0]}")]
            missing = [
                encoder.missing("a Fox"),
                encoder.missing("cat", "lay"),
                [each.code for each in embeddings.unused(encoder, chosen[:number], "fox")],
            ]
            yield (
                f"words {number}",
                [[[each.context.shape, float(each.context.abs().mean())] for each in states], spelled, missing],
            )
    yield (
        "afterwards",
        [encoder.get_input_embeddings() is table for encoder, table in zip(components.text_encoders, tables)],
    )
    yield (
        "together",
        [
            images_at_once(components, *size)
            for size in ((512, 512), (512, 520), (256, 256), (64, 64), (360, 360), (1024, 1024))
        ],
    )


MEMORY: tuple[Mapping[str, Any], ...] = (
    {}, {"mixed_precision": "bf16"}, {"mixed_precision": "fp16", "fp8_base": True}, {"fp8_base": True, "fp8_base_unet": True},
    {"vae_precision": "bf16"},
)  # fmt: skip
NEEDS: tuple[Mapping[str, Any], ...] = (
    {}, {"generate": {"batch_size": 2, "count": 3}}, {"hires": {"highres_fix_scale": 2.0}}, {"generation_memory": {"vae_slices": 4}},
    {"perceptual": {"clip_guidance_scale": 1.0}},
)  # fmt: skip


@producer
def memory() -> Facts:
    """Bytes of the parts of tiny models by precision, of their files, and what generations need."""
    with folder() as root:
        model = tiny_folder("sd1", root / "tiny")
        lora = tiny_lora(family("sd1").load(model), root / "lora.safetensors")
        sources = Sources(model, "sd1", None, {"a": lora, "b": lora}, hook_files={"x": HookFile(root / "x", 77)})
        for options in MEMORY:
            for device in ("cpu", "cuda"):
                job = build(GenerateJob, {"memory": dict(options)})

                def sized(job: GenerateJob = job, device: str = device) -> Any:
                    parts = Parts(job.memory, sources, device)
                    row = [
                        str(parts.dtype),
                        str(parts.vae_dtype),
                        parts.sizes,
                        parts.stored,
                        parts.encoding_size,
                        parts.lora_size,
                        parts.control_size,
                    ]
                    parts.offload = "parts"
                    return [*row, parts.hook_size, parts.text_encoder_names, parts.rest_device == device]

                with patch("core.record.machine.bf16_is_fast", lambda device: True):
                    yield f"{options} {device}", refused(sized)
        for number, groups in enumerate(NEEDS):
            given = {"width": 256, "height": 256, **groups.get("generate", {})}
            job = build(GenerateJob, {**groups, "generate": given, "memory": {"mixed_precision": "no"}})
            needs = partial(needs_of, job, Parts(job.memory, sources, "cpu"))
            together = [
                forecast_batch_size(job, device, sides, 8)
                for device in ("cpu", "cuda")
                for sides in ((256, 256), (512, 512), (512, 513))
            ]
            yield f"needs {number}", [refused(needs), together]
        tensors = {"a": torch.ones(3)}
        save_file(tensors, root / "one.safetensors", {"x": "1"})
        save_file(tensors, root / "two.safetensors", {"x": "12345678901"})
        hashes = [tensors_sha256(root / f"{name}.safetensors") for name in ("one", "two")]
        yield (
            "hashes",
            [hashes[0] == hashes[1], hashes[0][:12], tensors_sha256(beside(root / "p.ckpt", b"\x80abc"))[:12]],
        )
