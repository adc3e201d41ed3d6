"""Synthetic runs that the tests of figures share."""

import numpy as np
import pytest

from alignlab.testing.synthetic import synthetic_run, synthetic_runs

RULES = ("bp", "fa", "sign_sync")


@pytest.fixture(scope="session")
def run():
    return synthetic_run("fa", seed=0)


@pytest.fixture(scope="session")
def runs():
    return synthetic_runs(RULES, range(4), steps=100)


@pytest.fixture(scope="session")
def sweep():
    """bp is best at 0.1 or 0.3, sign_sync at 0.01; sign_sync diverges at 0.3 and 1."""
    return synthetic_runs(("bp", "sign_sync"), range(3), (0.001, 0.01, 0.1, 0.3, 1.0), steps=60, layers=1)


@pytest.fixture
def with_divergence(runs):
    """The runs, the last seed of fa having diverged at step 50."""
    changed = runs.copy(deep=True)
    lost = int(np.argmax((runs.rule.values == "fa") & (runs.seed.values == 3)))
    for name in changed.data_vars:
        changed[name].values[lost, changed.step.values > 50] = float("nan")
    status = runs.status.values.astype("U8")
    status[lost] = "diverged"
    return changed.assign_coords(status=("run", status))
