"""The resizing of sd-scripts 0.9's tagger to the bit: sums of what OpenCV 4.10 and 5.0 return for the same random images."""

from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from core.captioning.tagger.preprocess import bilinear, make_prepare
from core.captioning.tagger.profile import WD

# Side -> CRC-32 of cv2.resize(image, (448, 448), interpolation=cv2.INTER_LINEAR); 896 is exactly twice.
OPENCV = {
    449: 3428552344,
    500: 2904055835,
    896: 2613304769,
    1000: 3754845707,
    1217: 3517120579,
    1344: 1848681585,
    2500: 1753602752,
}


def image_of(side):
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("side", OPENCV)
def test_every_byte_is_opencvs(side):
    found = bilinear(image_of(side), 448)
    assert found.shape == (448, 448, 3) and crc32(found.tobytes()) == OPENCV[side]


def test_a_compatible_tagger_is_given_these_bytes(tmp_path):
    Image.fromarray(image_of(500)).save(tmp_path / "a.png")
    given = make_prepare(WD[0], (448, 448), "sd-scripts-0.9")(tmp_path / "a.png")
    assert crc32(given[:, :, ::-1].astype(np.uint8).tobytes()) == OPENCV[500], "BGR, not scaled"
