"""Precision, memory and speed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from core.settings.base import Settings, setting, zero_is_off


class MemorySettings(Settings):
    """What the machine is asked for."""

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = setting(
        "auto",
        title="Precision",
        level="shown",
        kohya="mixed_precision",
        labels={"auto": "as the machine allows", "no": "fp32", "bf16": "bf16", "fp16": "fp16"},
        help="The type that the model computes in. What trains is kept in fp32, unless its own type says otherwise.",
        costs="bf16 and fp16 halve the memory of the model; fp32 is the most exact.",
    )
    gradient_checkpointing: bool = setting(
        False,
        title="Gradient checkpointing",
        level="shown",
        kohya="gradient_checkpointing",
        help="Computes parts of the model twice rather than remembering them. The result is the same.",
        costs="Far less memory, about a third more time.",
    )
    checkpoint_blocks: Literal["all", "outer", "inner"] = setting(
        "all",
        title="Blocks that compute twice",
        labels={"all": "all", "outer": "the two largest sizes", "inner": "the others"},
        help="With gradient checkpointing. In SD 1.x and 2.x nearly all memory is in the outer blocks, in SDXL in the inner ones: leaving the others out saves time.",
    )
    cache_latents: Literal["auto", "disk", "memory", "device", "off"] = setting(
        "auto",
        title="Latent cache",
        level="shown",
        kohya="cache_latents, cache_latents_to_disk",
        labels={
            "auto": "on disk where possible",
            "disk": "on disk",
            "memory": "in memory",
            "device": "on the training device",
            "off": "none",
        },
        help="Images are encoded once. On disk they are found again by the next run; in memory or on the device nothing is written. Off encodes at each step, which chance crops and colors need.",
        costs="Off keeps the VAE on the device and makes each step slower.",
    )
    fp8_base: bool = setting(
        False,
        title="Whole base model in fp8",
        kohya="fp8_base",
        source="Micikevicius et al. 2022, arXiv:2209.05433",
        help="Keeps the frozen U-Net and text encoders as 8-bit numbers (float8_e4m3fn), widened at each use. For LoRA and textual inversion. Norms and embeddings stay as they are.",
        costs="Half the memory of 16-bit weights; a little slower and less exact.",
    )
    fp8_base_unet: bool = setting(
        False,
        title="U-Net in fp8",
        kohya="fp8_base_unet",
        help="The same for the U-Net alone: the text encoder stays exact.",
        costs="SDXL: 2.4 GB less than in 16 bits, SD 1.5: 0.8 GB.",
    )
    full_precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32",
        title="Type of what trains",
        kohya="full_bf16, full_fp16",
        labels={"fp32": "fp32", "bf16": "bf16 (full bf16)", "fp16": "fp16 (full fp16)"},
        help="What trains in bf16 or fp16, and its gradients, take half the memory. Each step is computed in fp32 and rounded back. For whole models; a LoRA or new words are so small that fp32 is better.",
        costs="Weights and gradients take half; the smallest changes are rounded away, or by chance with stochastic rounding.",
    )
    stochastic_rounding: bool = setting(
        True,
        title="Stochastic rounding",
        source="Zamirai et al. 2020, arXiv:2010.06192",
        help="Rounds bf16 weights up or down by chance, in proportion: changes smaller than a bf16 step then count on average. Off rounds to the nearest, where they are lost.",
    )
    fused_backward_pass: bool = setting(
        False,
        title="Step within the backward pass",
        kohya="fused_backward_pass",
        help="AdaFactor moves each tensor as soon as its gradient is there and frees that at once: the gradients of the whole model are never held together. Clipping then counts each tensor by itself.",
        costs="Saves as much memory as the weights take. No gradient accumulation.",
    )
    fused_optimizer_groups: int | None = setting(
        None,
        ge=1,
        le=100,
        unit="groups",
        title="Step in groups within the backward pass",
        kohya="fused_optimizer_groups",
        help="The same for any optimizer that keeps the rate it is given: tensors in so many groups, each moved when all its gradients are there. 4 to 10; more saves more. Empty or 0 is off.",
    )
    attention: Literal["auto", "sdpa", "xformers", "sliced", "plain"] = setting(
        "auto",
        title="Attention",
        kohya="sdpa, xformers, mem_eff_attn, diffusers_xformers",
        labels={
            "auto": "the best there is",
            "sdpa": "torch's own (SDPA)",
            "xformers": "xformers",
            "sliced": "some heads at a time",
            "plain": "plain products",
        },
        help="How the U-Net compares each place with all others. All give the same but for rounding; SDPA is fast everywhere. Slices are for devices where it has no kernel.",
        costs="Plain products take several times the memory at 1024 pixels; slices a little less.",
    )
    torch_compile: bool = setting(
        False,
        title="Compile the U-Net",
        kohya="torch_compile",
        help="Writes code for this very card and these sizes (torch.compile) and steps with it; the result is the same but for rounding. For long trainings on a GPU: try some steps of both. Needs a C++ compiler and, for a GPU, triton.",
        costs="The first steps take minutes, and so does each new size of images. On a CPU slower.",
    )
    dynamo_backend: Literal[
        "inductor",
        "eager",
        "aot_eager",
        "cudagraphs",
        "openxla",
        "tvm",
        "onnxrt",
        "ipex",
        "aot_ts_nvfuser",
        "nvprims_nvfuser",
        "ofi",
        "fx2trt",
        "tensort",
    ] = setting(
        "inductor",
        title="Compiler",
        kohya="dynamo_backend",
        help="Who writes the code. inductor is torch's own. eager and aot_eager write none, and show whether a fault is the compiler's; the others need packages of their own, and which of them work is told before the start.",
    )
    allow_tf32: bool = setting(
        False,
        title="TF32 products",
        kohya="allow_tf32",
        help="On Nvidia cards from 2020 on, fp32 products with 10 binary digits instead of 23. Changes nothing in bf16 and fp16.",
        costs="fp32 training several times faster, less exact.",
    )
    vae_precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        title="Precision of the VAE",
        kohya="no_half_vae",
        labels={"auto": "as usual: fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16"},
        help="What images are encoded in. SDXL's VAE overflows fp16 and gets bf16 instead, unless it is a repaired one. An image whose latents are not finite is encoded again in fp32.",
        costs="16 bits are faster and take half, and cost visible precision. Latents are cached for each apart.",
    )
    vae_batch_size: int = setting(
        1,
        ge=1,
        le=64,
        unit="images",
        title="Images encoded at once",
        kohya="vae_batch_size",
        help="While latents are cached.",
    )
    latent_draw: Literal["sample", "mean", "frozen"] = setting(
        "sample",
        title="Draw from the latent",
        labels={"sample": "anew each time", "mean": "its mean", "frozen": "once, as sd-scripts"},
        help="The VAE gives each image a mean and a spread. Anew is what the model was trained with; frozen repeats one draw for the whole run.",
    )
    npz_caches: bool = setting(
        False,
        title="Use .npz caches of sd-scripts",
        kohya="skip_existing",
        help="Takes latents from .npz files beside the images where they fit in size. They do not say which VAE made them or whether the image changed since; off encodes anew.",
    )
    text_cache_bytes: int = setting(
        1 << 30,
        ge=1 << 20,
        le=1 << 40,
        unit="bytes",
        title="Room for encoded captions",
        help="Encoded captions kept in memory; the least recently used make room.",
    )
    lowram: bool = setting(
        False,
        title="Little RAM",
        kohya="lowram",
        help="For machines with less RAM than graphics memory, such as Colab: the VAE does not wait in RAM, but is read again whenever samples are drawn. A U-Net in fp8 comes to the GPU in 16 bits and is made narrow there; as a rule that is done in RAM. Other models are loaded straight to the device in any case.",
        costs="A second or so before samples.",
    )
    highvram: bool = setting(
        False,
        title="Much graphics memory",
        kohya="highvram",
        help="Keeps what was set aside on the GPU from one batch of images to the next while latents are encoded.",
        costs="Faster encoding, more graphics memory meanwhile.",
    )
    num_processes: int = setting(
        1,
        ge=1,
        le=64,
        title="GPUs",
        kohya="num_processes",
        help="How many train together, each on its share of a batch, which grows as many times. Under accelerate launch it follows the number launched.",
        costs="Each card holds the whole model.",
    )
    ddp_timeout: float = setting(
        30.0,
        gt=0,
        le=10080,
        unit="minutes",
        title="Patience with the others",
        kohya="ddp_timeout",
        help="With several GPUs: how long one of them may take for a step before the run is taken for broken.",
    )

    @field_validator("fused_optimizer_groups", mode="before")
    @classmethod
    def _zero_is_off(cls, value: Any) -> Any:
        return zero_is_off(value)

    @property
    def narrow_unet(self) -> bool:
        """Whether the U-Net lies in 8 bits where it does not train."""
        return self.fp8_base or self.fp8_base_unet
