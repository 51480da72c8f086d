import torch
from pytest import approx

from core.diffusion.noise import (
    draw_multires,
    draw_noise,
    draw_offset_noise,
    draw_perturbation,
    draw_strength,
    draw_timestep,
    multires_sizes,
    stack_draws,
)

FOX, BEAR = ("set", "fox.png"), ("set", "bear.png")


def test_an_image_meets_the_same_noise_whatever_else_is_drawn():
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


def test_equal_ends_give_this_timestep_always():
    assert {draw_timestep(321, 321, 3, epoch, FOX, 0) for epoch in range(20)} == {321}


def test_levels_of_multires_noise_shrink_by_two_to_four_until_one_is_a_line():
    for epoch in range(50):
        sizes = multires_sizes(64, 48, 10, 7, epoch, FOX, 0)
        assert sizes[0] == (64, 48) and 3 < len(sizes) < 10  # 48 / 4 ** 3 < 1 and 48 / 2 ** 6 < 1
        assert all(64 // 4**i <= max(height, 1) <= 64 / 2**i for i, (height, _) in enumerate(sizes[:-1]))
        assert 1 in sizes[-1] and all(1 not in size for size in sizes[:-1])
    assert multires_sizes(64, 48, 2, 7, 1, FOX, 0) == multires_sizes(64, 48, 10, 7, 1, FOX, 0)[:2]


def test_multires_noise_has_the_deviation_of_its_levels():
    """The first level is whole; an enlarged one keeps what bilinear weights leave: 0.3 to 1 of its variance."""
    draws = [
        draw_multires(4, multires_sizes(32, 32, 6, 7, epoch, FOX, 0), 0.5, 7, epoch, FOX, 0) for epoch in range(60)
    ]
    variance = float(torch.stack(draws).var())
    assert draws[0].shape == (4, 32, 32) and draws[0].dtype == torch.float32
    assert 1 + 0.3 * (0.25 + 0.0625) < variance < 1.1 * (1 + 0.25 + 0.0625 + 0.015625 + 0.004 + 0.001)
    first = draw_multires(4, [(32, 32)], 0.5, 7, 0, FOX, 0)
    assert float(first.std()) == approx(1, abs=0.06)  # 4096 numbers
    assert torch.equal(draw_multires(4, [(32, 32), (9, 9)], 0.0, 7, 0, FOX, 0), first)


def test_coarse_levels_make_neighbors_alike():
    smooth = draw_multires(4, [(32, 32), (8, 8), (2, 2)], 0.9, 7, 0, FOX, 0)
    plain = draw_multires(4, [(32, 32)], 0.9, 7, 0, FOX, 0)

    def alike(noise):
        return float((noise[:, :, 1:] * noise[:, :, :-1]).mean() / noise.square().mean())

    assert alike(smooth) > 0.25 > 0.1 > abs(alike(plain))


def test_strengths_are_even_between_0_and_1_and_apart_for_each_option():
    drawn = [draw_strength("noise_offset", 7, epoch, FOX, 0) for epoch in range(2000)]
    assert 0 <= min(drawn) < 0.01 and 0.99 < max(drawn) < 1
    assert sum(drawn) / 2000 == approx(0.5, abs=0.033)  # deviation 0.2887 / 2000 ** 0.5: five of them
    assert draw_strength("ip_noise_gamma", 7, 0, FOX, 0) != drawn[0] == draw_strength("noise_offset", 7, 0, FOX, 0)
