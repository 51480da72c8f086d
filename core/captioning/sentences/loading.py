"""Loads a captioner's model and processor from a checked folder. Nothing is downloaded, and no code of the folder runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import Any

from core.captioning.sentences.folder import ModelFiles, weight_files
from core.formats.tensors.header import read_header
from core.record import machine
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError
from core.settings.captioning.sentences import CaptionModelSettings

# Left alone by 8- and 4-bit: what looks at the image, what joins it with the words, and what chooses words.
NOT_QUANTIZED = ("vision_tower", "vision_model", "visual", "multi_modal_projector", "connector", "qformer", "lm_head")
# Weights that files may lack: they pool an image for comparisons, and captioning does not use them.
UNUSED = re.compile(r"(^|\.)(vision_model\.head|pooler)\.")
NO_CODE = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, on its device. `chat`: whether prompts go through its chat template."""

    model: Any
    processor: Any
    device: str
    dtype: torch.dtype
    chat: bool = False

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer


def precision_problems(task: str, settings: CaptionModelSettings) -> list[Problem]:
    """Return the problems of a precision that this machine does not support."""
    if settings.precision in ("8bit", "4bit") and find_spec("bitsandbytes") is None:
        what, fix = "8-bit and 4-bit need bitsandbytes, which is not installed", "choose another precision"
        return [Problem(what, f"{task}.precision", fix, code="captioner.no-bitsandbytes")]
    return []


def load(files: ModelFiles, settings: CaptionModelSettings, device: str) -> Loaded:
    """Load the model of a checked folder. Raises ProblemsError."""
    import transformers

    with _without_logging(transformers):
        try:
            processor = _processor(files)
            _check_size(files)
            dtype = _dtype(settings.precision, device)
            placed = {"device_map": {"": device}} if settings.precision in ("8bit", "4bit") else {}
            model, info = transformers.AutoModelForImageTextToText.from_pretrained(
                files.folder,
                dtype=dtype,
                use_safetensors=True,
                low_cpu_mem_usage=True,
                output_loading_info=True,
                quantization_config=_quantization(settings.precision, dtype),
                **placed,
                **NO_CODE,
            )
        except ProblemsError:
            raise
        except MemoryError as error:
            raise _load_error(files, "does not fit into memory") from error
        except Exception as error:  # config, tokenizer and weights of other people: a library raises anything
            raise _load_error(files, f"cannot be loaded: {_first_line(error)}") from error
    if missing := sorted(name for name in info["missing_keys"] if not UNUSED.search(name)):
        raise _load_error(files, f"lacks {len(missing):,} weights, such as {missing[0]}")
    if not placed:
        model.to(device)
    return Loaded(model.eval(), processor, device, dtype, files.profile.chat)


def _load_error(files: ModelFiles, why: str) -> ProblemsError:
    """Return the error that the model cannot be used. `why`: a verb phrase, such as "does not fit into memory"."""
    fix = "download it again, choose another model, or a smaller precision if memory is short"
    return ProblemsError.one(f"The model {files.title} {why}", str(files.folder), fix, "captioner.not-loaded")


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 300 characters; the type's name without one."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def _without_logging(transformers: Any) -> Iterator[None]:
    """Context without transformers' progress bars and developer warnings."""
    log = transformers.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _dtype(precision: str, device: str) -> torch.dtype:
    """Return the dtype to compute in: the precision's; for "auto" and quantized weights bf16 where fast, else fp32 (CPU) or fp16 (GPU)."""
    if precision in ("bf16", "fp16", "fp32"):
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    if machine.bf16_is_fast(device):
        return torch.bfloat16
    return torch.float32 if device == "cpu" else torch.float16


def _quantization(precision: str, dtype: torch.dtype) -> Any:
    """Return the BitsAndBytesConfig of "8bit" and "4bit"; None for other precisions."""
    from transformers import BitsAndBytesConfig

    skip = {"llm_int8_skip_modules": [rf"(?:\w+\.)*{name}" for name in NOT_QUANTIZED]}
    if precision == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, **skip)
    if precision == "4bit":
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return BitsAndBytesConfig(load_in_4bit=True, **nf4, **skip)
    return None


def _check_size(files: ModelFiles) -> None:
    """Raise ProblemsError if the config describes over twice the stored weights: the others would be initialized at random."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(files.folder, **NO_CODE)
    if getattr(config, "quantization_config", None) is not None:
        return
    with torch.device("meta"):
        from_config = sum(each.numel() for each in AutoModelForImageTextToText.from_config(config).parameters())
    stored = sum(prod(entry.shape) for file in weight_files(files.folder) for entry in read_header(file)[0].values())
    if from_config > 2 * stored:
        raise _load_error(files, f"has {stored:,} weights, but its config describes {from_config:,}")


def _processor(files: ModelFiles) -> Any:
    """Load the model's processor, without its video processor where transformers would require torchvision for it."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
    from transformers.utils import is_torchvision_available

    kind = processor_class_from_name(
        PROCESSOR_MAPPING_NAMES[AutoConfig.from_pretrained(files.folder, **NO_CODE).model_type]
    )
    names = kind.get_attributes()
    if "video_processor" not in names or is_torchvision_available():
        return AutoProcessor.from_pretrained(files.folder, **NO_CODE)
    if kind.__name__ == "SmolVLMProcessor":
        from transformers.models.smolvlm import processing_smolvlm as module

        module.num2words = module.num2words or str  # required at once, used for videos only

    class ForImages(kind):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)

    described, _ = kind.get_processor_dict(files.folder, local_files_only=True)
    loaders = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    parts = [loaders[name].from_pretrained(files.folder, **NO_CODE) if name in loaders else None for name in names]
    return ForImages.from_args_and_dict(parts, described)
