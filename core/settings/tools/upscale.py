"""Settings of the tool that upscales images through latents."""

from core.settings.base import SAME, SEED_RANGE, Settings, kohya_setting, setting
from core.settings.tools.fields import model_file, output_folder


class LatentUpscalerSettings(Settings):
    """Doubles the size of images by a network that corrects their upscaled latents, as latent_upscaler of sd-scripts."""

    images: str | None = setting(
        None,
        level="shown",
        names="path",
        kohya="image_pattern",
        help="A folder of images, an image, or a pattern such as renders/*.png.",
    )
    vae: str | None = model_file(
        "The VAE that the network was trained with, or a model that has it: SD 1.x or 2.x.",
        "vae",
        title="VAE",
        kohya="vae_path",
    )
    weights: str | None = model_file(
        "The network's file, with the tensor names of sd-scripts (conv1, resblock1 to 20, conv_final).",
        "upscaler",
        kohya=SAME,
    )
    output_dir: str | None = output_folder(
        "Where name_upscaled files are saved. Existing files are never overwritten.",
        kohya=SAME,
        hint="next to the images",
    )
    batch_size: int = kohya_setting(4, within=(1, 256), help="Images of one size that pass the network at once.")
    vae_batch_size: int = kohya_setting(
        1, within=(1, 256), title="VAE batch size", help="Images that the VAE encodes and decodes at once."
    )
    seed: int = setting(
        0,
        within=SEED_RANGE,
        help="Of the noise with which latents are sampled from the VAE's posterior.",
    )
