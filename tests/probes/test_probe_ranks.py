"""Where several processes train one model, a step is not held against the gradient of one of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

SCRIPT = """
import sys
from typing import Any
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
import alignlab as al

class Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x.requires_grad_(), use_reentrant=True)

def recorded(rule, rows, together, kind=nn.Sequential):
    torch.manual_seed(0)
    inner = kind(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3)).double()
    al.rules.convert(inner, rule, generator=torch.Generator().manual_seed(0))
    model = nn.parallel.DistributedDataParallel(inner) if together else inner
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    with al.Recorder(model, optimizer, [al.GradientAngle(), al.EffectiveLR()]) as recorder:
        for step in range(3):
            x, y = torch.randn(8, 20).double(), torch.randint(3, (8,))
            optimizer.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    run = recorder.to_dataset()
    return {name: run[name].values for name in run.data_vars} | {"gradients": run.attrs["gradients"]}

torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mine = slice(4 * rank, 4 * rank + 4)
found = {rule: (recorded(rule, mine, True), recorded(rule, slice(None), False)) for rule in ("bp", "dfa")}
found["again"] = [recorded("bp", rows, many, Checkpointed) for rows, many in ((mine, True), (slice(None), False))]
torch.save(found, str(rank))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    started = [
        subprocess.Popen([sys.executable, "script.py", str(rank), str(folder / "store")], cwd=folder)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("rule", ["bp", "dfa", "again"])
def test_the_step_of_all_processes_is_not_compared_with_the_gradient_of_one(
    rule: str, ranks: list[Any]
) -> None:
    """Plain gradient descent read half its learning rate, at 47° to the gradient; again: computed again by a checkpoint."""
    across = {"projected_lr", "update_angle", "applied_gain"}
    for together, alone in (found[rule] for found in ranks):
        assert across <= set(alone)
        assert set(alone) - set(together) == across
        assert together["gradients"] == "of this process only"
        for name in ("relative_update", "angular_update", "update_norm", "weight_norm"):
            np.testing.assert_allclose(together[name], alone[name], rtol=1e-5)
        assert not np.allclose(together["gradient_norm_bp"], alone["gradient_norm_bp"], rtol=0.05)
    if rule != "dfa":
        np.testing.assert_allclose(ranks[0][rule][1]["projected_lr"], 0.1, rtol=1e-5)
