"""DeepSpeed: what trains is cut into parts, one for each process, and may lie beside the GPU."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting

ZERO = "Rajbhandari et al. 2020, arXiv:1910.02054"
INFINITY = "Rajbhandari et al. 2021, arXiv:2104.07857"
PLACES = {"": "the GPU", "cpu": "RAM", "nvme": "a fast disk (NVMe)"}  # "": of an empty value


class ShardingSettings(Settings):
    """How several GPUs share one model rather than each holding all of it."""

    deepspeed: bool = setting(
        False,
        title="Share what trains (DeepSpeed)",
        kohya="deepspeed",
        source=ZERO,
        help="Each GPU keeps a part of what the optimizer remembers, instead of all of it. With one card it is worth it for what can be put into RAM. Linux only; ./launch.sh deepspeed installs it.",
        costs="Saves memory, the more the more cards; costs exchanges between them.",
    )
    zero_stage: int = setting(
        2,
        ge=0,
        le=3,
        title="ZeRO stage",
        kohya="zero_stage",
        source=ZERO,
        help="What is shared: 1 the optimizer's memory, 2 the gradients too, 3 the weights too, gathered layer by layer when they are needed. 0 shares nothing and trains the plain way.",
    )
    offload_optimizer_device: Literal["cpu", "nvme"] | None = setting(
        None,
        title="Optimizer's memory lies in",
        kohya="offload_optimizer_device",
        source=INFINITY,
        labels=PLACES,
        help="The optimizer then computes on the CPU. A disk needs stage 3 and AdamW or Adam. Empty leaves it on the GPU.",
        costs="Frees 12 bytes for each number that trains; the step takes longer.",
    )
    offload_optimizer_nvme_path: str | None = setting(
        None,
        title="Folder for the optimizer's memory",
        kohya="offload_optimizer_nvme_path",
        widget="folder",
        help="On a fast disk with room for 16 bytes for each number that trains, gradients included. Its files are of use while the run lasts.",
        names="path",
    )
    offload_param_device: Literal["cpu", "nvme"] | None = setting(
        None,
        title="Weights lie in",
        kohya="offload_param_device",
        source=INFINITY,
        labels=PLACES,
        help="Stage 3 only: each layer's weights come to the GPU when they are needed. Empty leaves the parts on the cards.",
        costs="Hardly any weights on the card; every pass waits for them.",
    )
    offload_param_nvme_path: str | None = setting(
        None,
        title="Folder for weights",
        kohya="offload_param_nvme_path",
        widget="folder",
        help="On a fast disk with room for the model.",
        names="path",
    )
    zero3_init_flag: bool = setting(
        False,
        title="Load the model in parts",
        kohya="zero3_init_flag",
        help="Stage 3 only: the model is read into RAM and goes to the GPUs in parts from there, tensor by tensor. Off reads it whole onto each card before it is cut.",
        costs="For models that do not fit one card. RAM for one model a process while it loads.",
    )
    zero3_save_16bit_model: bool = setting(
        False,
        title="Save the 16-bit weights",
        kohya="zero3_save_16bit_model",
        help="Stage 3 only: files are made of the 16-bit weights that the model computes with. Off gathers the fp32 ones that train, which are more exact.",
        costs="Saving is faster and takes half the memory.",
    )
    fp16_master_weights_and_gradients: bool = setting(
        False,
        title="Master weights in fp16",
        kohya="fp16_master_weights_and_gradients",
        help="With fp16, stage 2 and the optimizer in RAM: the weights that train, and their gradients, are kept in fp16 there too. The smallest changes are rounded away.",
        costs="RAM: 4 bytes less for each number that trains.",
    )

    @property
    def active(self) -> bool:
        """Whether DeepSpeed does the training: stage 0 is the plain way."""
        return self.deepspeed and self.zero_stage > 0

    @property
    def shares_weights(self) -> bool:
        """Whether the weights themselves are cut into parts."""
        return self.deepspeed and self.zero_stage == 3
