"""Which settings of a generate job are ignored because of others."""

from core.settings.job import GenerateJob
from core.settings.needs import all_but, ignored


def idle_settings(job: GenerateJob) -> dict[str, str]:
    """Return {dotted path: reason} of settings that are ignored because another one, such as the initial image, is not set."""
    image, hires, shrink, gradual = job.image_to_image, job.hires, job.deep_shrink, job.gradual_latent
    shared = () if hires.highres_fix_scale is None else ("strength",)
    of_image = all_but(image, "image_to_image", "image_path", "mask_path", *shared)
    of_mask = "image_to_image.mask_blur mask_invert inpaint_area mask_padding masked_content"
    of_gradual = all_but(gradual, "gradual_latent", "gradual_latent_timesteps")
    of_refiner = "refiner.refiner_switch_at aesthetic_score negative_aesthetic_score"
    rows = (
        (not image.image_path, of_image, "there is no initial image"),
        (image.image_path and not image.mask_path, of_mask, "there is no mask"),
        (hires.highres_fix_scale is None, all_but(hires, "hires", "highres_fix_scale"), "there is no hires scale"),
        (shrink.ds_depth_1 is None, all_but(shrink, "deep_shrink", "ds_depth_1"), "Deep Shrink is off"),
        (gradual.gradual_latent_timesteps is None, of_gradual, "Gradual Latent is off"),
        (
            not job.detailer.used,
            all_but(job.detailer, "detailer", "ad_model", "ad_model_file"),
            "no detector is chosen",
        ),
        (not job.refiner.refiner_checkpoint, of_refiner, "there is no refiner"),
        (not job.generate.variation_strength, "generate.variation_seed", "the variation strength is 0"),
    )
    return dict(ignored(*rows))
