"""The text encoder states of a prompt and its negative prompt, for tests."""

import torch

from core.generation.prompt.states import AS_WRITTEN, encode_texts, prompt_and_opposite


def encode_prompts(components, prompt, negative_prompt="", reading=AS_WRITTEN):
    with torch.no_grad():
        return prompt_and_opposite(encode_texts(components, [prompt, negative_prompt], reading))
