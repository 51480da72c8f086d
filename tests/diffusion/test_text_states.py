"""Texts meet in a batch, whatever their families read and however long their sequences are."""

import random

import pytest
import torch

from core.diffusion.text_states import TextStates, join_texts, stack_texts


def text(length, seed):
    """A text without a batch axis, whose further sequence is as long as it is."""
    numbers = torch.Generator().manual_seed(seed)
    words = torch.randn(length, 3, generator=numbers)
    return TextStates(
        torch.randn(7, 4, generator=numbers),
        torch.randn(5, generator=numbers),
        {"words": words, "words_mask": torch.ones(length, dtype=torch.bool), "ids": torch.randn(2, generator=numbers)},
    )


@pytest.mark.parametrize("seed", range(5))
def test_sequences_are_filled_to_the_longest_and_their_masks_tell_where(seed):
    draw = random.Random(seed)
    texts = [text(draw.randint(1, 9), seed * 100 + each) for each in range(draw.randint(1, 5))]
    batch = stack_texts(texts)
    longest = max(len(each.more["words"]) for each in texts)
    assert batch.more["words"].shape == (len(texts), longest, 3) and batch.more["words_mask"].dtype == torch.bool
    for row, each in enumerate(texts):
        length = len(each.more["words"])
        assert torch.equal(batch.more["words"][row, :length], each.more["words"])
        assert not batch.more["words"][row, length:].any()
        assert batch.more["words_mask"][row].tolist() == [True] * length + [False] * (longest - length)
        assert torch.equal(batch.context[row], each.context) and torch.equal(batch.pooled[row], each.pooled)
        assert torch.equal(batch.more["ids"][row], each.more["ids"])
    alone = [stack_texts([each]) for each in texts]
    joined = join_texts(alone)
    assert all(torch.equal(joined.tensors[name], tensor) for name, tensor in batch.tensors.items())


def test_gradients_reach_the_texts_that_were_filled():
    short, long = text(2, 1), text(5, 2)
    words = short.more["words"].requires_grad_()
    stack_texts([short, long]).more["words"].sum().backward()
    assert torch.equal(words.grad, torch.ones_like(words))


def test_a_sequence_without_a_mask_is_never_filled():
    """A model would read the zeros as words."""
    with pytest.raises(RuntimeError):
        stack_texts([TextStates(torch.zeros(2, 4)), TextStates(torch.zeros(3, 4))])


def test_texts_of_two_families_do_not_meet():
    with pytest.raises(AssertionError, match="two families"):
        stack_texts([TextStates(torch.zeros(2, 4)), TextStates(torch.zeros(2, 4), torch.zeros(3))])
