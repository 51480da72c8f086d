"""The caption that an image trains with, by its parts."""

from core.dataset.captions import pipeline


def training_caption(caption, settings, seed, epoch, key, repeat, *, step=0, total_steps=0, words=""):
    return pipeline.training_caption(
        pipeline.ImageUse(key, repeat, caption, settings, words, step), seed, epoch, total_steps
    )
