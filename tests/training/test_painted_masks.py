"""Painted masks train as masks do."""

import pytest
from PIL import Image

from core.dataset.captions.history import History
from core.dataset.images.painting import begin_folder, write_mask
from core.dataset.sources.painted import painted_folder


@pytest.mark.slow
def test_two_steps_with_painted_masks_train_what_is_white(train, images, workspace):
    painted = painted_folder(workspace.datasets, images)
    begin_folder(painted, images)
    for path in images.glob("*.png"):
        mask = Image.new("L", Image.open(path).size, 0)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        write_mask(History(workspace.captions), painted, path.stem, mask)

    def losses(masks=None):
        folder = {"folder": str(images), "num_repeats": None, "class_tokens": None}
        masked = {"conditioning_data_dir": str(masks), "masked_loss": True} if masks else {}
        training = train(dataset={"folder": None, "sources": [folder | masked]}, schedule={"max_train_steps": 2})
        training.start()
        return training.losses()

    with_painted, plain = losses(painted), losses()
    assert all(with_painted[step] != pytest.approx(plain[step], rel=1e-3) for step in (1, 2))
