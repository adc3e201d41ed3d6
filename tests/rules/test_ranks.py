"""Processes that train one model together have one B, whatever seeds they converted it from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = """
import sys
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from alignlab.rules import Rule, convert, revert

class Drawing(Rule):
    name = "drawing"

    def refresh(self, layer):
        layer.feedback = layer.drawn(self.init, layer.feedback_seed + layer.clock)

RULES = {
    "kolen_pollack": {},
    "fa": {}, "dfa": {}, "ifa": {}, "drtp": {}, "brsf": {}, "frsf": {}, "rerandomised": {}, "weight_mirror": {"samples": 64},
    "rescaled": {"of": "brsf"}, "own": {},
}

def trained(rule, seed, rows, wrapped=None, used=False):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    model = nn.parallel.DistributedDataParallel(inner) if wrapped == "before" else inner
    generator = torch.Generator().manual_seed(seed)
    convert(inner, Drawing() if rule == "own" else rule, generator=generator, **RULES[rule])
    x, y = torch.randn(4, 8, 6).double(), torch.randint(3, (4, 8))
    if used:
        inner(x[0])
    model = nn.parallel.DistributedDataParallel(inner) if wrapped == "after" else model
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.3)
    for step in range(4):
        optimizer.zero_grad()
        cross_entropy(model(x[step, rows]), y[step, rows]).backward()
        optimizer.step()
    return {name: x for name, x in inner.state_dict().items() if isinstance(x, torch.Tensor)}

torch.set_num_threads(1)

def refused(seed):
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)))
    convert(model.module, "kolen_pollack", generator=torch.Generator().manual_seed(seed))
    try:
        model(torch.randn(4, 6))
    except RuntimeError as error:
        return str(error)

class Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x.requires_grad_(), use_reentrant=True)

def computed_again(rule, seed):
    torch.manual_seed(0)
    inner = Checkpointed(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    convert(inner, rule, generator=torch.Generator().manual_seed(seed), **RULES[rule])
    model = nn.parallel.DistributedDataParallel(inner)
    model(torch.randn(4, 6)).sum().backward()
    return {name: x for name, x in inner.state_dict().items()}

def converted_again(rule, seed):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    convert(inner, "fa", generator=torch.Generator().manual_seed(seed))
    model = nn.parallel.DistributedDataParallel(inner)
    model(torch.randn(4, 6)).sum().backward()
    convert(revert(inner), rule, generator=torch.Generator().manual_seed(seed), **RULES[rule])
    model(torch.randn(4, 6)).sum().backward()
    return {name: x for name, x in inner.state_dict().items()}

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
rows = {"after": slice(4 * rank, 4 * rank + 4), "before": slice(4 * rank, 4 * rank + 4), None: slice(None)}
cases = [("after", False), ("before", False), ("before", True), (None, False), (None, True)]
found = {
    (rule, when, used): trained(rule, rank, rows[when], when, used)
    for rule in RULES for when, used in cases if (rule, when) != ("kolen_pollack", "before")
}
found |= {rule: computed_again(rule, rank) for rule in ("brsf", "weight_mirror", "rescaled")}
found |= {(rule, "again"): converted_again(rule, rank) for rule in ("brsf", "weight_mirror")}
torch.save(found | {"refused": refused(rank)}, out)
torch.distributed.destroy_process_group()
"""

RULES = ("fa", "dfa", "ifa", "drtp", "brsf", "frsf", "rerandomised", "weight_mirror", "rescaled", "own")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two processes, that convert from unequal seeds, ends with."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    started = [
        subprocess.Popen(
            [sys.executable, "script.py", str(rank), str(folder / "store"), str(rank)],
            cwd=folder,
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    return [torch.load(Path(folder, str(rank))) for rank in range(2)]


@pytest.mark.parametrize(("when", "used"), [("after", False), ("before", False), ("before", True)])
@pytest.mark.parametrize("rule", RULES)
def test_processes_that_converted_from_unequal_seeds_learn_as_one_on_the_whole_batch(
    rule: str, when: str, used: bool, ranks: list[Any]
) -> None:
    """The model is wrapped after it is converted, or before; and may have been run by itself between."""
    first, second = (found[rule, when, used] for found in ranks)
    alone, other = (found[rule, None, used] for found in ranks)
    assert set(first) == set(alone)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-12)
        assert torch.equal(first[name], second[name])
    assert not torch.allclose(other["0.weight"], alone["0.weight"], rtol=0, atol=1e-6), "the seeds do matter"


def test_a_learned_b_that_each_process_would_step_alone_is_told(ranks: list[Any]) -> None:
    for found in ranks:
        assert found["refused"].startswith(
            "kolen_pollack: the model was converted after DistributedDataParallel"
        )
    for name, value in ranks[0]["kolen_pollack", None, False].items():
        first, second = (found["kolen_pollack", "after", False][name] for found in ranks)
        torch.testing.assert_close(first, value, rtol=0, atol=1e-12)
        assert torch.equal(first, second)


@pytest.mark.parametrize("rule", ["brsf", "weight_mirror", "rescaled"])
def test_processes_whose_layers_are_all_computed_again_have_one_b(rule: str, ranks: list[Any]) -> None:
    """Under ``checkpoint(use_reentrant=True)`` B is drawn in the backward pass, outside of the wrapper's."""
    first, second = (found[rule] for found in ranks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("rule", ["brsf", "weight_mirror"])
def test_processes_that_convert_a_wrapped_model_anew_have_one_b(rule: str, ranks: list[Any]) -> None:
    first, second = (found[rule, "again"] for found in ranks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
