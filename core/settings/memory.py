"""Settings of precision, memory and speed."""

from typing import Literal

from core.settings.base import SAME, IntOrOff, Settings, kohya_setting, setting


class MemorySettings(Settings):
    """Precision, memory and speed."""

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = kohya_setting(
        "auto",
        level="shown",
        labels={"no": "fp32"},
        help="The dtype the model computes in; auto picks the best for the device. Trained weights are kept in fp32 unless their own dtype is set.",
        costs="bf16 and fp16 halve the memory of the model; fp32 is the most accurate.",
    )
    gradient_checkpointing: bool = kohya_setting(
        False,
        level="shown",
        help="Recomputes activations in the backward pass instead of storing them. The result is the same.",
        costs="Far less memory, about a third more time.",
        recorded=SAME,
    )
    checkpoint_blocks: Literal["all", "outer", "inner"] = setting(
        "all",
        needs="gradient_checkpointing",
        title="Blocks to checkpoint",
        section="Memory",
        labels={"all": "all", "outer": "outer two sizes", "inner": "inner (the others)"},
        help="For gradient checkpointing. Nearly all activation memory is in the outer blocks for SD 1.x and 2.x, in the inner blocks for SDXL; checkpointing only those saves time.",
    )
    cache_latents: Literal["auto", "disk", "memory", "device", "off"] = setting(
        "auto",
        level="shown",
        kohya="cache_latents, cache_latents_to_disk",
        labels={"auto": "auto (disk if possible)", "memory": "RAM", "device": "training device"},
        help="Encodes each image only once, when the first step needs it; before the first step where the VAE does not fit next to the model, and on several GPUs. A cache on disk is reused by later runs; in RAM or on the device nothing is written. Off encodes images at each step, as random crop and color augmentation require. Control images of a ControlNet are resized once and cached in the same way.",
        costs="Off keeps the VAE on the device and slows each step.",
    )
    fp8_base: bool = kohya_setting(
        False,
        title="fp8 base model",
        source="Micikevicius et al. 2022, arXiv:2209.05433",
        help="Stores the frozen U-Net and text encoders as 8-bit floats (float8_e4m3fn), cast up at each use. For LoRA and textual inversion. Norms and embeddings keep their precision.",
        costs="Half the memory of 16-bit weights; slightly slower and less accurate.",
        recorded=SAME,
    )
    fp8_base_unet: bool = kohya_setting(
        False,
        needs="!fp8_base",
        title="fp8 U-Net",
        help="Stores only the frozen U-Net in fp8; the text encoders keep their precision.",
        costs="Saves 2.4 GB for SDXL and 0.8 GB for SD 1.5, compared with 16 bits.",
        recorded=SAME,
    )
    full_precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32",
        title="Trained weights dtype",
        kohya="full_bf16, full_fp16",
        labels={"bf16": "bf16 (full bf16)", "fp16": "fp16 (full fp16)"},
        help="Keeps trained weights and their gradients in 16 bits; steps are computed in fp32 and rounded back. For full models; a LoRA or embedding is small enough for fp32.",
        costs="Halves the memory of weights and gradients; the smallest changes are rounded away unless stochastic rounding is on.",
    )
    stochastic_rounding: bool = setting(
        True,
        needs="full_precision=bf16; !kahan_summation",
        source="Zamirai et al. 2020, arXiv:2010.06192",
        help="Rounds bf16 weights up or down at random in proportion, so that changes smaller than a bf16 step still add up. Off rounds to nearest and loses them.",
    )
    kahan_summation: bool = setting(
        False,
        needs="full_precision=bf16",
        source="Zamirai et al. 2020, arXiv:2010.06192",
        help="Keeps what rounding a bf16 weight left out and adds it at the next step, instead of stochastic rounding: small changes add up without its noise.",
        costs="2 bytes for each trained weight.",
    )
    fused_backward_pass: bool = kohya_setting(
        False,
        help="AdaFactor updates each tensor as soon as its gradient is computed and frees the gradient, so the gradients of the model are never held all at once. Gradients are clipped per tensor.",
        costs="Saves as much memory as the weights use. No gradient accumulation.",
    )
    fused_optimizer_groups: IntOrOff = kohya_setting(
        None,
        within=(1, 100),
        unit="groups",
        hint="off",
        help="The fused backward pass for other optimizers, except D-Adaptation and Prodigy: splits the weights into this many groups and updates each as soon as its gradients are complete. 4 to 10 is usual; more groups save more memory. Empty or 0 is off.",
    )
    attention: Literal["auto", "sdpa", "xformers", "sliced", "plain"] = setting(
        "auto",
        title="Attention implementation",
        section="Computation",
        kohya="sdpa, xformers, mem_eff_attn, diffusers_xformers",
        labels={"sdpa": "SDPA", "xformers": "xFormers", "sliced": "sliced", "plain": "math"},
        help="How the U-Net computes attention. Results are the same up to rounding; SDPA is fast everywhere, sliced is for devices without an SDPA kernel.",
        costs="math takes several times the memory of SDPA at 1024 pixels, sliced a little less than math.",
    )
    torch_compile: bool = kohya_setting(
        False,
        title="torch.compile",
        help="Compiles the U-Net for this GPU and these image sizes; the result is the same up to rounding. For long runs on a GPU: compare the speed of a few steps. Needs a C++ compiler and, on a GPU, Triton.",
        costs="The first steps take minutes, and so does each new image size. Slower on a CPU.",
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
    ] = kohya_setting(
        "inductor",
        needs="torch_compile",
        help="The compiler backend of torch.compile. inductor is the default; eager and aot_eager compile nothing and help find compiler bugs; the others need extra packages and are checked before the start.",
    )
    allow_tf32: bool = kohya_setting(
        False,
        title="Allow TF32",
        help="Computes fp32 matrix products in TF32 (10-bit mantissa) on NVIDIA GPUs since Ampere (2020). In bf16 and fp16 only an fp32 VAE uses it.",
        costs="fp32 training is several times faster and less accurate.",
    )
    vae_precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        title="VAE precision",
        section="Caches",
        kohya="no_half_vae",
        labels={"auto": "auto (fp32)"},
        help="The dtype that images are encoded in. SDXL's VAE overflows in fp16 and uses bf16 instead, unless it is the fp16-fix version. Images with non-finite latents are encoded again in fp32.",
        costs="bf16 halves the memory and, on GPUs and processors that compute in it, the time. Its latents differ by 0.5 to 1.4% (RMS, of their standard deviation), those of fp16 by 0.05%. Latents are cached separately for each dtype.",
    )
    vae_batch_size: int = kohya_setting(
        1,
        within=(1, 64),
        unit="images",
        title="VAE batch size",
        help="Images encoded at once while latents are cached.",
    )
    latent_draw: Literal["sample", "mean", "frozen"] = setting(
        "sample",
        title="Latent sampling",
        labels={"sample": "resample each time", "mean": "mean", "frozen": "sample once (sd-scripts)"},
        help="The VAE encodes each image as a distribution. Resampling each time is how the base model was trained; 'sample once' repeats the same latents for the whole run.",
    )
    npz_caches: bool = setting(
        False,
        title="Use .npz caches",
        kohya="skip_existing",
        help="Loads latents from sd-scripts' .npz files next to the images if the size fits. They do not record which VAE made them or whether the image has changed since; off encodes again.",
    )
    text_cache_bytes: int = setting(
        1 << 30,
        within=(1 << 20, 1 << 40),
        unit="bytes",
        title="Text cache size",
        help="RAM for cached text encoder outputs. The cache is on disk too, up to 8 GB, so that the next run finds them: the least recently used are dropped from RAM and read from there.",
    )
    lowram: bool = kohya_setting(
        False,
        title="Low RAM",
        section="System",
        help="For machines with less RAM than VRAM, such as Colab: the VAE is reloaded for each round of samples instead of staying in RAM, and an fp8 U-Net is converted on the GPU. Other models are always loaded straight to the device.",
        costs="Delays samples by about a second.",
        recorded=SAME,
    )
    highvram: bool = kohya_setting(
        False,
        title="High VRAM",
        help="Keeps allocated VRAM between batches while latents are encoded.",
        costs="Faster encoding, more VRAM meanwhile.",
    )
    num_processes: int = kohya_setting(
        1,
        within=(1, 64),
        title="Number of GPUs",
        help="Number of GPUs to train on. Each processes its own batch, so the effective batch size is multiplied by it. accelerate launch sets it.",
        costs="Each GPU holds the whole model.",
    )
    ddp_timeout: float = kohya_setting(
        30.0,
        gt=0,
        le=10080,
        unit="minutes",
        title="DDP timeout",
        help="With several GPUs: how long a step may take on one of them before the run fails.",
    )

    @property
    def narrow_unet(self) -> bool:
        """Whether a frozen U-Net is stored in fp8."""
        return self.fp8_base or self.fp8_base_unet

    def summary(self) -> str:
        """Return mixed precision and gradient checkpointing in one line."""
        auto = self.mixed_precision == "auto"
        checkpointing = "gradient checkpointing" if self.gradient_checkpointing else "no gradient checkpointing"
        return f"{'automatic precision' if auto else self.label('mixed_precision')}, {checkpointing}"
