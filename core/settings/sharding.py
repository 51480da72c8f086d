"""Settings of DeepSpeed ZeRO: partitioning of optimizer state, gradients and weights over processes, and offloading."""

from typing import Literal

from core.settings.base import Settings, kohya_setting

ZERO = "Rajbhandari et al. 2020, arXiv:1910.02054"
INFINITY = "Rajbhandari et al. 2021, arXiv:2104.07857"
PLACES = {"": "GPU", "cpu": "CPU (RAM)", "nvme": "NVMe disk"}  # "": label of an empty value


class ShardingSettings(Settings):
    """DeepSpeed ZeRO partitioning and offloading."""

    deepspeed: bool = kohya_setting(
        False,
        title="DeepSpeed ZeRO",
        source=ZERO,
        help="Partitions the optimizer state over the GPUs. On one GPU it is useful only with offloading. Linux only; ./launch.sh deepspeed installs it.",
        costs="Saves more memory with more GPUs; adds communication between them.",
    )
    zero_stage: int = kohya_setting(
        2,
        within=(0, 3),
        title="ZeRO stage",
        source=ZERO,
        help="1 partitions the optimizer state, 2 also the gradients, 3 also the weights, which are gathered layer by layer when needed. 0 partitions nothing.",
    )
    offload_optimizer_device: Literal["cpu", "nvme"] | None = kohya_setting(
        None,
        title="Offload optimizer state to",
        source=INFINITY,
        labels=PLACES,
        help="The optimizer then runs on the CPU. NVMe needs stage 3 and AdamW or Adam. Empty keeps it on the GPU.",
        costs="Frees 12 bytes per trained weight; steps take longer.",
    )
    offload_optimizer_nvme_path: str | None = kohya_setting(
        None,
        needs="offload_optimizer_device=nvme",
        title="Optimizer offload folder",
        widget="folder",
        help="On a fast disk with room for 16 bytes per trained weight, gradients included. The files are only used during the run.",
        names="path",
    )
    offload_param_device: Literal["cpu", "nvme"] | None = kohya_setting(
        None,
        title="Offload parameters to",
        source=INFINITY,
        labels=PLACES,
        help="Stage 3 only: weights are moved to the GPU layer by layer when needed. Empty keeps them on the GPUs.",
        costs="Hardly any weights in VRAM; every forward and backward pass waits for them.",
    )
    offload_param_nvme_path: str | None = kohya_setting(
        None,
        needs="offload_param_device=nvme",
        title="Parameter offload folder",
        widget="folder",
        help="On a fast disk with room for the model.",
        names="path",
    )
    zero3_init_flag: bool = kohya_setting(
        False,
        needs="zero_stage=3",
        title="ZeRO-3 init",
        help="Stage 3 only: loads the model into RAM and partitions it to the GPUs tensor by tensor. Off loads the whole model onto each GPU first.",
        costs="For models that do not fit on one GPU. Each process needs RAM for one model while loading.",
    )
    zero3_save_16bit_model: bool = kohya_setting(
        False,
        needs="zero_stage=3",
        title="Save 16-bit model",
        help="Stage 3 only: saves the 16-bit weights that the model computes with. Off gathers the fp32 master weights, which are more accurate.",
        costs="Saving is faster and takes half the memory.",
    )
    fp16_master_weights_and_gradients: bool = kohya_setting(
        False,
        title="fp16 master weights",
        help="With fp16, stage 2 and the optimizer offloaded to RAM: keeps master weights and gradients in fp16 too. The smallest changes are rounded away.",
        costs="Saves 4 bytes of RAM per trained weight.",
    )

    @property
    def active(self) -> bool:
        """Whether DeepSpeed runs the training: on, and not at ZeRO stage 0."""
        return self.deepspeed and self.zero_stage > 0

    @property
    def shares_weights(self) -> bool:
        """Whether weights are partitioned over processes too (ZeRO stage 3)."""
        return self.deepspeed and self.zero_stage == 3

    def summary(self) -> str:
        """Return ZeRO stage and offloading in one line."""
        if not self.deepspeed:
            return "off"
        parts = (("optimizer", self.offload_optimizer_device), ("weights", self.offload_param_device))
        off = [word for word, device in parts if device]
        return f"DeepSpeed ZeRO stage {self.zero_stage}" + (f", {' and '.join(off)} offloaded" if off else "")
