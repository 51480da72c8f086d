"""The detailer in A1111's text, as ADetailer writes and reads it."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from core.control.detectors import DETECTORS, lowest_confidence
from core.generation.images.a1111_reading import Reading
from core.generation.images.a1111_rows import plain
from core.generation.model.sources import Hashes
from core.settings.generation.detailer import DetailerSettings
from core.settings.job import GenerateJob

MODEL, ONLY_MASKED, CONFIDENCE = "ADetailer model", "ADetailer inpaint only masked", "ADetailer confidence"
# ADetailer's name -> ours, in its order; settings at our default are left out, except those that it always writes.
NAMES = {
    "ADetailer model classes": "ad_model_classes",
    "ADetailer prompt": "ad_prompt",
    "ADetailer negative prompt": "ad_negative_prompt",
    CONFIDENCE: "ad_confidence",
    "ADetailer mask only top k largest": "ad_mask_k_largest",
    "ADetailer mask min ratio": "ad_mask_min_ratio",
    "ADetailer mask max ratio": "ad_mask_max_ratio",
    "ADetailer dilate erode": "ad_dilate_erode",
    "ADetailer mask blur": "ad_mask_blur",
    "ADetailer denoising strength": "ad_denoising_strength",
    "ADetailer inpaint padding": "ad_inpaint_only_masked_padding",
    "ADetailer inpaint width": "ad_inpaint_width",
    "ADetailer inpaint height": "ad_inpaint_height",
    "ADetailer steps": "ad_steps",
    "ADetailer CFG scale": "ad_cfg_scale",
    "ad_seed": "ad_seed",  # which ADetailer does not have, or not in its text
    "ad_bbox_sortby": "ad_bbox_sortby",
}
ALWAYS = ("ad_confidence", "ad_dilate_erode", "ad_mask_blur", "ad_denoising_strength", "ad_inpaint_only_masked_padding")
SWITCHES = {  # name -> ours that it turns on
    "ADetailer use inpaint width height": ("ad_inpaint_width", "ad_inpaint_height"),
    "ADetailer use separate steps": ("ad_steps",),
    "ADetailer use separate CFG scale": ("ad_cfg_scale",),
}
IDLE = ("ADetailer version", "ADetailer tap enable", *SWITCHES)
OF_FACES = ("face", "mediapipe_face")  # how names of ADetailer's face detectors begin


def detailer_words(job: GenerateJob, hashes: Hashes) -> dict[str, Any]:
    """{ADetailer's name: text} of a used detailer."""
    settings, image = job.detailer, job.generate
    if not settings.used:
        return {}
    file = settings.ad_model_file
    values = settings.model_dump() | {"ad_confidence": lowest_confidence(settings)}
    if settings.ad_inpaint_width or settings.ad_inpaint_height:
        sides = settings.ad_inpaint_width or image.width, settings.ad_inpaint_height or image.height
        values["ad_inpaint_width"], values["ad_inpaint_height"] = sides
    usual = DetailerSettings().model_dump()
    written = {word for word, name in NAMES.items() if name in ALWAYS or values[name] != usual[name]}
    words = {word: plain(values[name]) for word, name in NAMES.items() if word in written}
    on = {word: "True" for word, names in SWITCHES.items() if any(values[name] != usual[name] for name in names)}
    return {MODEL: PurePath(file).name if file else settings.ad_model, ONLY_MASKED: "True"} | words | on


def read_detailer(reading: Reading) -> None:
    """Read ADetailer's words. Its .pt files are not opened here: a face detector becomes ours, another an .onnx file."""
    model = reading.take(MODEL)
    if model in ("", "None"):
        return
    if model in DETECTORS:
        reading.put("detailer.ad_model", model)
    elif not model.lower().endswith(".onnx") and model.lower().startswith(OF_FACES):
        reading.put("detailer.ad_model", "face")
        reading.take(CONFIDENCE)  # of another detector
        reading.note(f"Faces were found by {model[:60]}; here by MTCNN, so the image will differ", "detector")
    else:
        file = PurePath(model).name
        reading.put("detailer.ad_model_file", f"{PurePath(file).stem}.onnx")
        if not file.lower().endswith(".onnx"):
            fix = f"export it, and put it into models/detectors: yolo export model={file[:60]} format=onnx"
            reading.note(f"The detailer needs {file[:60]} as an ONNX file", "detector", fix)
    if reading.take(ONLY_MASKED, "True") != "True":
        reading.more = [*reading.more, ONLY_MASKED]
    for word in IDLE:
        reading.take(word)
    for word, name in NAMES.items():
        if word in reading.unread:
            reading.read(word, f"detailer.{name}", str)
