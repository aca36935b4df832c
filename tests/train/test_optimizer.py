"""Learning-rate schedules, in numbers."""

import numpy as np
import pytest

from vlaa_jax.settings.shared import OptimizerSettings
from vlaa_jax.train.optimizer import learning_rate


@pytest.mark.parametrize(("peak", "floor"), [(1e-6, 5e-7), (1e-6, 0.0), (5e-7, 5e-7)])
def test_warm_up_then_cosine_to_the_floor(peak, floor):
    updates, share = 200, 0.05
    rate = learning_rate(OptimizerSettings(lr=peak, min_lr=floor, warmup_frac=share), updates)
    got = [float(rate(step)) for step in range(updates + 50)]
    warm = 10
    want = [peak * step / warm for step in range(warm)]
    for step in range(warm, updates + 50):
        done = min((step - warm) / (updates - warm), 1.0)
        want.append(floor + (peak - floor) * (1 + np.cos(np.pi * done)) / 2)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-12)


def test_without_warm_up_the_first_rate_is_the_peak():
    rate = learning_rate(OptimizerSettings(lr=1e-3, min_lr=1e-4, warmup_frac=0.0), 10)
    assert float(rate(0)) == pytest.approx(1e-3)
    assert float(rate(10)) == pytest.approx(1e-4)
