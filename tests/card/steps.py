"""Device operations of a training step at the real sizes, counted on the card that computes nothing:

    python -m tests.card.steps FOLDER [WORD OF A CASE ...]

Prints for each case, as a line of JSON, how many operations its last step had, in total and by group
(tests/card/operations.py), and how often the host would wait.
"""

import json
import sys
from pathlib import Path

from tests.card.library import load_library

if __name__ == "__main__":
    load_library()

import torch

from tests.card.sizes import UNET, steps_and_plan

REPEATS = {"memory": {"gradient_checkpointing": True}}
LORA = {"network": UNET, "schedule": {"max_train_steps": 2}}
SMALL = (
    256  # all blocks have the operations that they have at 1024; SD 1.5 then has 16 tokens, which looks like the rank
)
# name: (family, pixels, groups)
CASES = {
    "sd15 lora": ("sd1", 512, LORA),
    "sd15 lora, checkpointing": ("sd1", 512, LORA | REPEATS),
    "sdxl lora": ("sdxl", SMALL, LORA),
    "sdxl lora, checkpointing": ("sdxl", SMALL, LORA | REPEATS),
}


def attention(q, k, v, *_, **__):
    """One operation, as torch's fused attention on a GPU."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def count(folder: Path, name: str) -> dict:
    found, _ = steps_and_plan(folder, *CASES[name], attention)
    groups = found["operations"][-1]
    waits = len(found["waits"][-1])
    return {"name": name, "total": sum(groups.values()), "operations": dict(sorted(groups.items())), "waits": waits}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        if all(word in case for word in sys.argv[2:]):
            print(json.dumps(count(Path(sys.argv[1]), case)), flush=True)
