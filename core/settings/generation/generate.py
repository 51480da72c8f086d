"""Settings of a generation: prompt, size, sampler, guidance, LoRAs and embeddings."""

from typing import Literal

from core.settings.base import SEED_RANGE, Seed, Settings, follows_compatibility, kohya_setting, setting
from core.settings.samples import SAMPLER_LABELS, SAMPLERS, Side, guidance_setting, steps_setting


class LoraUse(Settings):
    """A LoRA with its strengths, block weights and range of steps."""

    file: str = setting(
        title="LoRA", help="A LoRA file, or the name of one in models/ or in a run.", names="path or name"
    )
    strength: float = setting(
        1.0, within=(-10, 10), help="1 is the trained strength, 0 is off, negative values invert the effect."
    )
    text_encoder_strength: float | None = setting(
        None,
        within=(-10, 10),
        hint="same as strength",
        help="Strength on the text encoder. Empty is the same as for the U-Net.",
    )
    block_weights: str | None = setting(
        None,
        widget="block weights",
        blocks_of="file",
        hint="1 everywhere",
        help="Strength by U-Net block: a name (INALL, MIDD, OUTALL, OUTS ...) or 12, 17, 20 or 26 numbers as in the LBW extension.",
    )
    start_at: float = setting(
        0.0, within=(0, 1), help="Share of the steps after which it begins: 0.2 leaves it out of the first fifth."
    )
    end_at: float = setting(
        1.0,
        within=(0, 1),
        help="Share of the steps after which it ends. The text encoder keeps it for the whole image.",
    )
    enabled: bool = setting(True, title="On", help="Off keeps it in the list without using it.")

    @property
    def used(self) -> bool:
        """Whether the LoRA is enabled with a strength other than 0."""
        return self.enabled and bool(self.strength or self.text_encoder_strength)

    @property
    def always(self) -> bool:
        """Whether the LoRA acts at every step."""
        return (self.start_at, self.end_at) == (0.0, 1.0)


class GenerateSettings(Settings):
    """Prompt, size and sampler."""

    prompt: str = setting(
        "a fox, glyph style",
        level="shown",
        widget="prompt",
        help="What to generate. <lora:name:0.8> applies a LoRA with this strength; <lora:name:0.5:0.8> has text encoder 0.5 and U-Net 0.8, as in A1111.",
    )
    negative_prompt: str = setting("", level="shown", widget="prompt", help="What the image should not show.")
    width: Side | None = setting(
        None, unit="pixels", hint="model's own", level="shown", kohya="W", help="Empty uses the model's native size."
    )
    height: Side | None = setting(
        None, unit="pixels", hint="model's own", level="shown", kohya="H", help="Empty uses the model's native size."
    )
    steps: int = steps_setting(20, level="shown")
    guidance_scale: float | None = guidance_setting(hint="model's own", level="shown", kohya="scale")
    guidance: Literal["classic"] = setting(
        "classic",
        help="How the outputs for the prompt and the negative prompt are combined. PAG, SLG and SEG take one more evaluation per step.",
    )
    guidance_start: float = setting(
        0.0,
        within=(0, 1),
        source="Kynkaanniemi et al. 2024, arXiv:2404.07724",
        help="Share of the steps before guidance begins. 0.1 to 0.2 gives more varied images. Steps without guidance take half the time.",
    )
    guidance_end: float = setting(
        1.0, within=(0, 1), help="Share of the steps after which guidance ends. 0.8 is faster and changes little."
    )
    negative_scale: float | None = kohya_setting(
        None,
        within=(-100, 100),
        hint="off",
        help="Guides away from the negative prompt with a scale of its own, and towards the prompt from an empty one. Takes three evaluations per step. Blank: off.",
    )
    guidance_rescale: float = setting(
        0.0,
        within=(0, 1),
        source="Lin et al. 2023, arXiv:2305.08891",
        help="Keeps a high guidance scale from overexposing images: 0.7 is usual for models trained with zero terminal SNR. 0 is off.",
    )
    seed: Seed = setting(
        None,
        within=SEED_RANGE,
        hint="random",
        level="shown",
        help="The same seed generates the same image. Empty or -1 picks a random seed; it is saved with the image.",
    )
    variation_seed: Seed = setting(
        None,
        within=SEED_RANGE,
        hint="random",
        source="A1111",
        help="Seed of the noise that is mixed into the seed's own. Empty or -1 picks a random one. With a variation strength it increases by 1 for each image, and the seed stays.",
    )
    variation_strength: float = setting(
        0.0,
        within=(0, 1),
        source="A1111",
        help="How much of the variation seed's noise is mixed in: 0.1 changes details, 1 is the other image. 0 is off.",
    )
    count: int = setting(
        1,
        within=(1, 1000),
        unit="images",
        title="Number of images",
        level="shown",
        kohya="images_per_prompt",
        help="The seed increases by 1 for each image.",
    )
    batch_size: int | None = kohya_setting(
        None,
        within=(1, 64),
        title="Images at once",
        hint="as many as fit",
        unit="images",
        help="Images generated in one batch. Each is the same as alone, up to rounding. Empty uses what fits into memory.",
    )
    sampler: SAMPLERS = setting(
        "ddim",
        level="shown",
        labels=SAMPLER_LABELS,
        help="The sampling method. CFG++ samplers need a guidance scale of 0.5 to 2.",
    )
    schedule_type: Literal[
        "own", "uniform", "karras", "exponential", "sgm", "simple", "normal", "kl_optimal", "beta", "ays"
    ] = setting(
        "own",
        level="shown",
        labels={
            "own": "Automatic",
            "uniform": "Uniform",
            "karras": "Karras",
            "exponential": "Exponential",
            "sgm": "SGM uniform",
            "simple": "Simple",
            "normal": "Normal",
            "kl_optimal": "KL Optimal",
            "beta": "Beta",
            "ays": "AYS",
        },
        source="Karras et al. 2022, arXiv:2206.00364; Lee et al. 2024, arXiv:2407.12173; AYS: Sabour et al. 2024, arXiv:2404.14507",
        help="How noise levels are spread over the steps. Karras gives more steps to the small ones; AYS (Align Your Steps) is made for 10 to 20 steps.",
    )
    prompt_weights: bool = setting(
        True,
        level="shown",
        help="Reads (word:1.3), (word) and [word] as prompt weights, and [cat:dog:0.5] and [cat|dog] as prompt editing; write \\( and \\) for literal brackets. Off reads brackets as text.",
    )
    emb_normalize_mode: Literal["none", "original", "abs"] = kohya_setting(
        "none",
        title="Prompt weight scaling",
        labels={
            "none": "as written",
            "original": "original mean (A1111, sd-scripts)",
            "abs": "mean of absolute values",
        },
        help="How a prompt's text states are rescaled after weighting. As written is how weighted captions are trained.",
    )
    max_embeddings_multiples: int | None = kohya_setting(
        None,
        within=(1, 100),
        title="Max prompt windows",
        hint="as many as it has",
        unit="windows",
        help="Prompts are read up to this many windows of 75 tokens. Empty reads all.",
    )
    long_prompts: Literal["whole", "trained"] = setting(
        "whole",
        labels={"whole": "whole windows (A1111, ComfyUI)", "trained": "as captions are trained"},
        help="How the windows of a long prompt are joined: each with its own BOS and EOS, or with one of each.",
    )
    force_scheduler_zero_steps_offset: bool = kohya_setting(
        False,
        title="No step offset",
        help="With sd-scripts compatibility, noises initial images for the first step that runs, without the scheduler's steps_offset.",
    )
    zero_terminal_snr: Literal["auto", "on", "off"] = setting(
        "auto",
        title="Zero terminal SNR",
        level="shown",
        labels={"auto": "auto (from metadata)", "on": "on"},
        source="Lin et al. 2023, arXiv:2305.08891",
        help="Starts from pure noise, for models, LoRAs and embeddings trained with zero terminal SNR. auto reads it from their metadata.",
    )
    loras: list[LoraUse] = setting(
        default_factory=list,
        title="LoRAs",
        level="shown",
        widget="loras",
        kohya="network_weights, network_mul",
        help="Any number of LoRAs, each with its own strength.",
    )
    network_merge: bool = kohya_setting(
        False,
        title="Merge LoRAs",
        help="Merges the LoRAs into the model while images are made, which is faster. Prompts cannot change their strengths then.",
    )
    network_merge_n_models: int | None = kohya_setting(
        None,
        within=(0, 100),
        title="Merge the first LoRAs",
        hint="all or none",
        help="Merges only this many LoRAs, the first in the list; the others stay unmerged.",
    )
    network_pre_calc: bool = kohya_setting(
        False,
        title="Merge LoRAs for each batch",
        help="Merges the LoRAs with the strengths that each prompt asks for. Needs memory for a copy of the weights that they change.",
    )
    embeddings: list[str] = setting(
        default_factory=list,
        level="shown",
        kohya="textual_inversion_embeddings, XTI_embeddings",
        help="Textual inversion files. Use the file name without extension in the prompt; `word=file` assigns another word.",
        names="word=path",
    )
    compatibility: Literal["none", "kohya"] = follows_compatibility("none", "kohya")
