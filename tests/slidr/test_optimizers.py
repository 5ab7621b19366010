"""Optimisers and schedules by name, against torch's own and by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from slidr import config
from slidr.training import make_optimizer, rate_factor


def settings(**values):
    return config.validate(config.Linprobe, {"epochs": 5, "lr": 0.2} | values)


def rates(asked, steps=7):
    return [asked.lr * rate_factor(asked, step, steps) for step in range(asked.epochs * steps)]


def test_momentum_and_dampening_act_from_the_second_step_on():
    """The rule by hand: the first step's velocity is the whole gradient, later gradients count 1 - dampening = 0.9."""
    generator = np.random.default_rng(0)
    weight = nn.Parameter(torch.from_numpy(generator.normal(size=(4, 3))))
    optimizer = make_optimizer(settings(lr=0.5), [{"params": [weight]}])
    w, velocity = weight.detach().numpy().copy(), None
    for gradient in generator.normal(size=(5, 4, 3)):
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
        slope = gradient + 1e-4 * w
        velocity = slope if velocity is None else 0.9 * velocity + (1 - 0.1) * slope
        w = w - 0.5 * velocity
        np.testing.assert_allclose(weight.detach(), w, rtol=1e-12, atol=1e-14)


def test_adamw_by_hand():
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    asked = settings(optimizer="adamw", lr=0.1, betas=(0.8, 0.9), weight_decay=0.5)
    optimizer = make_optimizer(asked, [{"params": [weight], "lr": 0.01}])
    w, m, v = weight.detach().clone(), 0, 0
    for step, gradient in enumerate((torch.tensor([0.3, 2.0]).double(), torch.tensor([-1.0, 0.1]).double()), 1):
        weight.grad = gradient
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        w = w * (1 - 0.01 * 0.5) - 0.01 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-8)
        torch.testing.assert_close(weight.detach(), w, rtol=1e-12, atol=1e-14)


def test_groups_keep_their_own_rates():
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = make_optimizer(settings(), [{"params": weights[:1]}, {"params": weights[1:], "lr": 2.0}])
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 2.0]


def test_one_cycle_is_torchs():
    asked = settings(schedule="one_cycle", one_cycle_peak=0.3, one_cycle_start=10.0, one_cycle_end=50.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=35, pct_start=0.3, div_factor=10, final_div_factor=50
    )
    expected = []
    for _ in range(35):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates(asked) == pytest.approx(expected, rel=1e-9)


def test_cosine_after_a_warm_up():
    found = rates(settings(schedule="warmup_cosine", warmup_steps=5, final_lr=0.02))
    assert found[:5] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2]) and found[5] == pytest.approx(0.2)
    assert found[20] == pytest.approx(0.11)  # half of the cosine: half-way between 0.2 and 0.02
    assert all(a > b for a, b in zip(found[5:], found[6:], strict=False)) and 0.02 < found[-1] < 0.021


def test_cosine_per_epoch_ends_near_the_final_rate():
    found = rates(settings(final_lr=0.1))
    assert found[::7] == pytest.approx([0.1 + 0.1 * 0.5 * (1 + np.cos(np.pi * epoch / 5)) for epoch in range(5)])
    assert len(set(found)) == 5


@pytest.mark.parametrize("schedule", ["cosine", "warmup_cosine", "one_cycle"])
def test_a_run_of_one_step_has_a_rate(schedule):
    assert 0 < rates(settings(schedule=schedule, epochs=1), steps=1)[0] <= 0.2
