"""A1111's samplers by name: the numbers of k-diffusion, whose published algorithms stand here again as small functions."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from core.diffusion.k_diffusion import BrownianPath
from core.diffusion.noise_levels import AYS, AYS_SDXL, LEVELS, level_at, level_table, timestep_at
from core.diffusion.samplers import SAMPLERS, add_noise, make_sampler, sampler_step, start_scale
from core.diffusion.schedule import sd_alpha_bar, sigmas

TABLE = sigmas(sd_alpha_bar().double())
SHAPE, STEPS = (2, 4, 6, 6), 9


def ancestral(now, after):
    up = min(after, (after**2 * (now**2 - after**2) / now**2) ** 0.5)
    return (after**2 - up**2) ** 0.5, up


def euler(model, x, levels, noise):
    for now, after in pairwise(levels):
        x = x + (x - model(x, now)) / now * (after - now)
    return x


def euler_ancestral(model, x, levels, noise):
    for now, after in pairwise(levels):
        down, up = ancestral(now, after)
        x = x + (x - model(x, now)) / now * (down - now)
        x = x + noise() * up if after > 0 else x
    return x


def heun(model, x, levels, noise):
    for now, after in pairwise(levels):
        d = (x - model(x, now)) / now
        if after > 0:
            y = x + d * (after - now)
            d = (d + (y - model(y, after)) / after) / 2
        x = x + d * (after - now)
    return x


def dpm_2(model, x, levels, noise, fresh=False):
    for now, after in pairwise(levels):
        down, up = ancestral(now, after) if fresh else (after, 0.0)
        d = (x - model(x, now)) / now
        if down > 0:
            mid = math.exp((math.log(now) + math.log(down)) / 2)
            y = x + d * (mid - now)
            d = (y - model(y, mid)) / mid
        x = x + d * (down - now)
        x = x + noise() * up if fresh and down > 0 else x
    return x


def dpm_2_ancestral(model, x, levels, noise):
    return dpm_2(model, x, levels, noise, fresh=True)


def lms(model, x, levels, noise, order=4):
    ds = []
    for i, (now, after) in enumerate(pairwise(levels)):
        ds = [*ds, (x - model(x, now)) / now][-order:]
        for j in range(len(ds)):
            others = [levels[i - k] for k in range(len(ds)) if k != j]
            tau = torch.linspace(now, after, 20_001, dtype=torch.float64)  # the integral by the trapezoidal rule
            values = math.prod(((tau - o) / (levels[i - j] - o) for o in others), start=torch.ones_like(tau))
            x = x + float(torch.trapezoid(values, tau)) * ds[-1 - j]
    return x


def dpmpp_2m(model, x, levels, noise):
    old, h_last = None, None
    for now, after in pairwise(levels):
        clean = model(x, now)
        h = math.inf if after == 0 else math.log(now) - math.log(after)
        use = clean
        if old is not None and after > 0:
            r = h_last / h
            use = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * old
        x = after / now * x - math.expm1(-h) * use
        old, h_last = clean, h
    return x


def dpmpp_2s_ancestral(model, x, levels, noise):
    for now, after in pairwise(levels):
        down, up = ancestral(now, after)
        clean = model(x, now)
        if down == 0:
            x = x + (x - clean) / now * (down - now)
        else:
            t, t_next = -math.log(now), -math.log(down)
            h = t_next - t
            s = t + h / 2
            y = math.exp(-s) / math.exp(-t) * x - math.expm1(-h / 2) * clean
            x = math.exp(-t_next) / math.exp(-t) * x - math.expm1(-h) * model(y, math.exp(-s))
        x = x + noise() * up if after > 0 else x
    return x


def dpmpp_sde(model, x, levels, noise):
    for now, after in pairwise(levels):
        clean = model(x, now)
        if after == 0:
            x = x + (x - clean) / now * (after - now)
            continue
        t, t_next = -math.log(now), -math.log(after)
        s = t + (t_next - t) / 2
        sd, su = ancestral(now, math.exp(-s))
        s_ = -math.log(sd)
        y = math.exp(-s_) / math.exp(-t) * x - math.expm1(t - s_) * clean + noise(now, math.exp(-s)) * su
        clean_2 = model(y, math.exp(-s))
        sd, su = ancestral(now, after)
        t_ = -math.log(sd)
        x = math.exp(-t_) / math.exp(-t) * x - math.expm1(t - t_) * clean_2 + noise(now, after) * su
    return x


def dpmpp_2m_sde(model, x, levels, noise):
    old, h_last = None, None
    for now, after in pairwise(levels):
        clean = model(x, now)
        if after == 0:
            x = clean
            continue
        h = math.log(now) - math.log(after)
        x = after / now * math.exp(-h) * x - math.expm1(-2 * h) * clean
        if old is not None:
            x = x - 0.5 * math.expm1(-2 * h) * (h / h_last) * (clean - old)
        x = x + noise(now, after) * after * math.sqrt(-math.expm1(-2 * h))
        old, h_last = clean, h
    return x


def dpmpp_3m_sde(model, x, levels, noise):
    c1 = c2 = h1 = h2 = None
    for now, after in pairwise(levels):
        clean = model(x, now)
        if after == 0:
            x = clean
            continue
        h = math.log(now) - math.log(after)
        he = 2 * h
        x = math.exp(-he) * x - math.expm1(-he) * clean
        phi_2 = math.expm1(-he) / he + 1
        if h2 is not None:
            r0, r1 = h1 / h, h2 / h
            d0, d1 = (clean - c1) / r0, (c1 - c2) / r1
            first, second = d0 + (d0 - d1) * r0 / (r0 + r1), (d0 - d1) / (r0 + r1)
            x = x + phi_2 * first - (phi_2 / he - 0.5) * second
        elif h1 is not None:
            x = x + phi_2 * (clean - c1) / (h1 / h)
        x = x + noise(now, after) * after * math.sqrt(-math.expm1(-2 * h))
        c1, c2, h1, h2 = clean, c1, h, h1
    return x


def er_sde(model, x, levels, noise):
    """ComfyUI's sample_er_sde, three stages, s_noise 1; a variance-exploding model's lambda is its level."""
    scale = lambda at: at * (torch.as_tensor(at).double() ** 0.3).exp() + 10 * at  # noqa: E731
    old = old_d = None
    for i, (now, after) in enumerate(pairwise(levels)):
        clean = model(x, now)
        if after == 0:
            return clean
        r, dt = float(scale(after) / scale(now)), after - now
        x = r * x + (1 - r) * clean
        points = after - torch.arange(200, dtype=torch.float64) * dt / 200
        if i > 0:
            s = float((1 / scale(points)).sum() * -dt / 200)
            d = (clean - old) / (now - levels[i - 1])
            x = x + (dt + s * float(scale(after))) * d
            if i > 1:
                s_u = float(((points - now) / scale(points)).sum() * -dt / 200)
                u = (d - old_d) / ((now - levels[i - 2]) / 2)
                x = x + (dt**2 / 2 + s_u * float(scale(after))) * u
            old_d = d
        x = x + noise() * math.sqrt(after**2 - now**2 * r**2)
        old = clean
    return x


def lcm(model, x, levels, noise):
    for now, after in pairwise(levels):
        x = model(x, now)
        x = x + noise() * after if after > 0 else x
    return x


PUBLISHED = {
    "euler": euler,
    "euler_a": euler_ancestral,
    "heun": heun,
    "dpm_2": dpm_2,
    "dpm_2_a": dpm_2_ancestral,
    "lms": lms,
    "dpmsolver++": dpmpp_2m,
    "dpmsolver++_sde": dpmpp_sde,
    "dpmsolver++_2s_a": dpmpp_2s_ancestral,
    "dpmsolver++_2m_sde": dpmpp_2m_sde,
    "dpmsolver++_3m_sde": dpmpp_3m_sde,
    "er_sde": er_sde,
}
# with a schedule type: DDIM is Euler's method at its levels, DDPM the ancestral one, PLMS with unequal steps LMS
AT_LEVELS = {"ddim": euler, "ddpm": euler_ancestral, "pndm": lms, "lcm": lcm} | PUBLISHED


def at_timesteps(t):
    """k-diffusion's t_to_sigma."""
    low, share = int(t), t - int(t)
    return math.exp((1 - share) * math.log(TABLE[low]) + share * math.log(TABLE[min(low + 1, 999)]))


def spaced(first, last, count):
    return [first + (last - first) * i / max(count - 1, 1) for i in range(count)]


def uniform(n):
    return [at_timesteps(t) for t in spaced(999.0, 0.0, n)] + [0.0]


def sgm(n):
    return [at_timesteps(t) for t in spaced(999.0, 0.0, n + 1)[:-1]] + [0.0]


def simple(n):
    return [float(TABLE[-(1 + int(i * 1000 / n))]) for i in range(n)] + [0.0]


def karras(n, rho=7.0):
    low, high = float(TABLE[0]) ** (1 / rho), float(TABLE[-1]) ** (1 / rho)
    return [at**rho for at in spaced(high, low, n)] + [0.0]


def exponential(n):
    return [math.exp(at) for at in spaced(math.log(TABLE[-1]), math.log(TABLE[0]), n)] + [0.0]


def kl_optimal(n):
    low, high = math.atan(TABLE[0]), math.atan(TABLE[-1])
    return [math.tan(i / n * low + (1 - i / n) * high) for i in range(n + 1)]


def ays(n, levels=AYS):
    """The logarithms of the published levels interpolated to n + 1 numbers, of which the last is 0."""
    at = [i / n * (len(levels) - 1) for i in range(n)]
    logs = [math.log(level) for level in levels]
    found = [math.exp(logs[int(t)] * (1 - t % 1) + logs[int(t) + 1] * (t % 1)) for t in at]
    return [min(level, float(TABLE[-1])) for level in found] + [0.0]


SPACED = {
    "own": uniform,
    "uniform": uniform,
    "normal": uniform,
    "sgm": sgm,
    "simple": simple,
    "karras": karras,
    "exponential": exponential,
    "kl_optimal": kl_optimal,
    "ays": ays,
}


SKIPPING = {"dpm_2", "dpm_2_a", "dpmsolver++_3m_sde"}  # A1111 leaves the last level but one of one step more out


def levels_of(name, schedule="own"):
    found = SPACED[schedule](STEPS + (name in SKIPPING))
    return [*found[:-2], found[-1]] if name in SKIPPING else found


def output_of(seen, timestep):
    """Of a model: not linear in what it sees, and different at each timestep."""
    return torch.sin(3 * seen) + 0.4 * seen.roll(1, -1) + 0.3 * torch.cos(timestep / 150)


def generators():
    return [torch.Generator().manual_seed(seed) for seed in (3, 4)]


def drawn(own):
    return torch.stack([torch.randn(SHAPE[1:], generator=each) for each in own])


def published(algorithm, whole, prediction="epsilon", begin=None, first=0):
    """What k-diffusion makes with its wrapper of such a model, in float64. An image begins at one of the levels: the noise of
    SDEs is that of the whole schedule."""
    own, levels = generators(), whole[first:]
    x = (drawn(own) * levels[0] if begin is None else begin).double()

    def model(x, level):
        timestep = timestep_at(TABLE, torch.tensor(level, dtype=torch.float64))
        scale = 1 / math.sqrt(level**2 + 1)
        output = output_of(x * scale, timestep)
        if prediction == "v":
            return x / (level**2 + 1) - output * level * scale
        return x - level * output

    positive = [level for level in whole if level > 0]
    paths = [BrownianPath(each.initial_seed(), SHAPE[1:], positive[-1], whole[0]) for each in own]

    def noise(now=None, after=None):
        """Drawn one after another; for the steps of SDEs, of each seed's path."""
        return drawn(own).double() if now is None else torch.stack([path.noise(now, after) for path in paths]).double()

    return algorithm(model, x, levels, noise)


def ours(name, schedule="own", prediction="epsilon", begin=None, first=0):
    own, sampler = generators(), make_sampler(name, prediction, schedule=schedule)
    sampler.set_timesteps(STEPS)
    latents = drawn(own) * start_scale(sampler) if begin is None else begin
    if begin is not None:
        sampler.set_begin_index(first * sampler.order)
    for timestep in sampler.timesteps[first * sampler.order :]:
        output = output_of(sampler.scale_model_input(latents, timestep), timestep)
        latents = sampler_step(sampler, output, timestep, latents, own)
    return latents


def off(made, wanted):
    """Relative to the deviation of what is wanted."""
    return float((made - wanted).square().mean().sqrt() / wanted.std())


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_sampler_of_a1111_gives_k_diffusions_numbers(name, prediction):
    wanted = published(PUBLISHED[name], levels_of(name), prediction)
    assert off(ours(name, prediction=prediction), wanted) < 1e-4  # ours is in float32


@pytest.mark.slow(but=[f"{name}-{list(SPACED)[n % len(SPACED)]}" for n, name in enumerate(AT_LEVELS)])
@pytest.mark.parametrize("schedule", SPACED)
@pytest.mark.parametrize("name", AT_LEVELS)
def test_every_schedule_type_gives_its_published_levels(name, schedule):
    if schedule == "own" and name not in PUBLISHED:
        return
    assert off(ours(name, schedule), published(AT_LEVELS[name], levels_of(name, schedule))) < 1e-4


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("schedule", sorted(LEVELS))
def test_every_sampler_knows_every_schedule_type(name, schedule):
    sampler, skips = make_sampler(name, schedule=schedule), name in SKIPPING
    levels = LEVELS[schedule](level_table(), STEPS + skips)
    levels = torch.cat([levels[:-2], levels[-1:]]) if skips else levels
    sampler.set_timesteps(STEPS)
    wanted = timestep_at(TABLE, levels[levels > 0])
    nearest = (sampler.timesteps.double()[None] - wanted[:STEPS, None]).abs().min(1).values
    assert float(nearest.max()) < 1e-3
    assert len(sampler.timesteps) <= STEPS * sampler.order


def test_ays_gives_the_published_levels_for_ten_steps_of_each_family():
    for name, published in (("ays", AYS), ("ays_sdxl", AYS_SDXL)):
        assert LEVELS[name](level_table(), 10).tolist() == pytest.approx([*published[:-1], 0.0], rel=1e-4)  # 14.6146
        between = LEVELS[name](level_table(), 20).tolist()
        assert between[1] == pytest.approx((published[0] * published[1]) ** 0.5) and len(between) == 21


@pytest.mark.parametrize(("name", "fresh"), [("euler_cfg_pp", False), ("euler_a_cfg_pp", True)])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_cfg_pp_takes_the_guided_image_and_the_unguided_noise(name, fresh, prediction):
    """x_t = D + sigma_t (x_s - D_u) / sigma_s in float64, as ComfyUI's sample_euler_cfg_pp and _ancestral_cfg_pp."""
    own, sampler = generators(), make_sampler(name, prediction)
    sampler.set_timesteps(STEPS)
    latents = drawn(own) * start_scale(sampler)
    for timestep in sampler.timesteps:
        seen = sampler.scale_model_input(latents, timestep)
        away, to = output_of(seen, timestep), output_of(seen * 0.7, timestep)
        latents = sampler_step(sampler, away + 0.6 * (to - away), timestep, latents, own, away)

    own, levels = generators(), levels_of(name)
    x = drawn(own).double() * levels[0]
    for now, after in pairwise(levels):
        timestep, root = timestep_at(TABLE, torch.tensor(now, dtype=torch.float64)), math.sqrt(now**2 + 1)
        outputs = [output_of(x / root * share, timestep) for share in (1, 0.7)]
        away, to = (x / root**2 - each * now / root if prediction == "v" else x - now * each for each in outputs)
        down, up = ancestral(now, after) if fresh else (after, 0.0)
        x = away + 0.6 * (to - away) + down * (x - away) / now
        x = x + drawn(own).double() * up if up else x
    assert off(latents, x) < 1e-4


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - set(AT_LEVELS)))
@pytest.mark.parametrize("schedule", ["karras", "sgm", "kl_optimal"])
def test_the_others_end_at_the_image_that_a_model_knows(name, schedule):
    sampler, own = make_sampler(name, schedule=schedule), generators()
    sampler.set_timesteps(STEPS)
    latents = drawn(own) * start_scale(sampler)
    for timestep in sampler.timesteps:
        root = (1 + level_at(TABLE, timestep) ** 2) ** -0.5
        seen = sampler.scale_model_input(latents, timestep)
        output = (seen - root * 1.5) / (1 - root**2) ** 0.5
        latents = sampler_step(sampler, output.float(), timestep, latents, own)
    assert float((latents - 1.5).abs().max()) < 0.2  # those that end at the lowest level keep that


@pytest.mark.parametrize("name", sorted({*PUBLISHED} - {"lms"}))
def test_an_image_begins_in_the_middle_of_a_schedule(name):
    """At `sigmas[steps - t_enc - 1:]`, whose first level the noise has."""
    levels, first = levels_of(name), 4
    clean, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(9))
    sampler = make_sampler(name)
    sampler.set_timesteps(STEPS)
    begin = add_noise(sampler, clean, noise, first * sampler.order)
    torch.testing.assert_close(begin, clean + levels[first] * noise, rtol=1e-5, atol=1e-5)
    assert (
        off(ours(name, begin=begin, first=first), published(PUBLISHED[name], levels, begin=begin, first=first)) < 1e-4
    )


def test_levels_and_timesteps_are_each_others_inverse():
    timesteps = torch.tensor([0.0, 0.4, 1.0, 17.25, 998.5, 999.0], dtype=torch.float64)
    torch.testing.assert_close(timestep_at(TABLE, level_at(TABLE, timesteps)), timesteps)
    assert timestep_at(TABLE, TABLE[[0, -1]] * torch.tensor([0.5, 2])).tolist() == [0, 999]


# Of torchsde's BrownianTree(0.03, zeros(3), 14.6, entropy=seed), divided by the root of the step as in k-diffusion
TORCHSDE = {
    0: {
        (14.6, 9.5): [-0.172792, -2.019865, -0.387549],
        (9.5, 5.25): [0.95119, 1.5354, 0.904153],
        (0.4, 0.03): [0.494393, 0.76797, -2.361996],
    },
    7: {
        (14.6, 9.5): [0.293788, -0.942558, 0.648841],
        (9.5, 5.25): [2.171404, -0.97515, 0.481306],
        (0.4, 0.03): [-0.528958, -0.764546, 1.14281],
    },
    4294967295: {
        (14.6, 9.5): [0.782364, 0.624665, 0.328736],
        (9.5, 5.25): [1.071832, 0.614462, -1.279327],
        (0.4, 0.03): [0.144576, -0.634938, -1.395231],
    },
}


@pytest.mark.parametrize("seed", TORCHSDE)
def test_a_brownian_path_is_torchsdes(seed):
    path = BrownianPath(seed, (3,), 0.03, 14.6)
    for (now, after), values in TORCHSDE[seed].items():
        torch.testing.assert_close(path.noise(now, after), torch.tensor(values), rtol=1e-5, atol=1e-5)
    whole = path.noise(9.5, 5.25) * 4.25**0.5 + path.noise(5.25, 0.4) * 4.85**0.5
    torch.testing.assert_close(path.noise(9.5, 0.4) * 9.1**0.5, whole, rtol=1e-5, atol=1e-5)


def test_the_noise_of_a_brownian_path_has_deviation_1():
    path, steps = BrownianPath(1, (4000,), 0.03, 14.6), list(pairwise(uniform(6)[1:-1]))
    made = torch.stack([path.noise(*step) for step in steps])
    assert float((torch.corrcoef(made) - torch.eye(len(steps))).abs().max()) < 0.06
    torch.testing.assert_close(made.std(1), torch.ones(len(steps)), rtol=0, atol=0.04)
