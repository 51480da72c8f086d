"""A toy captioner: the name of each image, spelled, in place of a look at it."""

from core.captioning.captioner import captioner
from core.settings.base import Settings, setting
from core.tasks import register


class SpellSettings(Settings):
    """Spells the names of images."""

    between: str = setting("-", title="Separator", level="shown", widget="text", help="Stands between the letters.")
    fails_at: str = setting("", title="Fails at", widget="text", help="The image whose name raises an error.")


def spell(images, asked, context):
    context.stage("loading the model")
    for path in images:
        if path.stem == asked.fails_at:
            raise RuntimeError("the toy broke")
        yield asked.between.join(path.stem)


register(captioner("spell", SpellSettings, spell, title="Spelled names", about="caption images by name", lane="light"))
