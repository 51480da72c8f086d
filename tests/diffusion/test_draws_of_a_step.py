import torch
from pytest import approx

from core.diffusion.noise import draw_noise, draw_offset_noise, draw_perturbation, stack_draws
from core.diffusion.timesteps import draw_timestep

FOX, BEAR = ("set", "fox.png"), ("set", "bear.png")


def test_a_picture_meets_the_same_noise_whatever_else_is_drawn():
    alone = draw_noise((4, 8, 8), 7, 1, FOX, 0)
    torch.manual_seed(123)
    draw_noise((4, 8, 8), 7, 1, BEAR, 0)
    assert torch.equal(alone, draw_noise((4, 8, 8), 7, 1, FOX, 0))


def test_every_part_of_the_address_changes_the_noise():
    draws = [
        draw_noise((4, 8, 8), *place)
        for place in ((7, 1, FOX, 0), (8, 1, FOX, 0), (7, 2, FOX, 0), (7, 1, BEAR, 0), (7, 1, FOX, 1))
    ]
    draws.append(draw_perturbation((4, 8, 8), 7, 1, FOX, 0))
    assert all(not torch.equal(one, other) for i, one in enumerate(draws) for other in draws[:i])


def test_noise_is_standard_normal_in_float32():
    noise = torch.stack([draw_noise((4, 32, 32), 1, epoch, FOX, 0) for epoch in range(20)])  # 81,920 numbers
    assert noise.dtype == torch.float32
    assert (float(noise.mean()), float(noise.std())) == (approx(0, abs=0.02), approx(1, abs=0.02))  # 5 standard errors


def test_offset_noise_is_one_number_per_channel():
    assert draw_offset_noise(4, 7, 1, FOX, 0).shape == (4, 1, 1)


def test_draws_stack_to_a_batch_in_order():
    one, other = draw_noise((4, 8, 8), 7, 1, FOX, 0), draw_noise((4, 8, 8), 7, 1, BEAR, 0)
    batch = stack_draws([one, other], "cpu")
    assert torch.equal(batch[0], one) and torch.equal(batch[1], other)


def test_timesteps_cover_their_range_evenly_without_its_upper_end():
    drawn = [draw_timestep(200, 210, 3, epoch, FOX, 0) for epoch in range(2000)]
    counts = [drawn.count(t) for t in range(200, 210)]
    assert sum(counts) == 2000  # none outside
    assert min(counts) > 130 and max(counts) < 270  # 200 each, deviation 13.4: five of them


def test_a_timestep_is_addressed_like_the_noise():
    assert draw_timestep(0, 1000, 3, 5, FOX, 1) == draw_timestep(0, 1000, 3, 5, FOX, 1)
    assert len({draw_timestep(0, 1000, 3, epoch, FOX, 0) for epoch in range(50)}) > 40
