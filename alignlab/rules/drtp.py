"""Direct random target projection (Frenkel, Lefebvre & Bol 2021): hidden layers learn from the target alone, without waiting
for the output.

The error of a classification, ``e = c (p − y*)`` with the loss's own scale c (its averaging, a gradient scaler, a share of
an accumulated batch), is negative at the target and positive elsewhere. The target so stands for the error's sign: hidden
layers get ``−c y* B`` where dfa sends them ``e B``. With c the two kinds of layers learn at one scale; without it, as in
the authors' code (github.com/ChFrenkel), hidden layers would learn faster by the size of the batch. That code adds ``y* B``,
which is the same in law for a B that is symmetric about 0, draws it from U(±√(6/units)), and in convolutional layers puts it
in before the pooling, where all direct rules here, as Nøkland's code, put it in after.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.rules.direct import DirectFeedbackAlignment
from alignlab.rules.initialisation import Init
from alignlab.rules.runs import each_run

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}  # of the error's form, relative
TOLERANCE_HALF = 5e-2


class DirectRandomTargetProjection(DirectFeedbackAlignment):
    """``delta_l = (−c y* B_l) ∘ f'(z_l)`` in hidden layers, the true error c (p − y*) in the last.

    The target pushes for as long as training lasts, so that hidden units should saturate (tanh, as in the paper): ReLUs die.

    ``loss``: what makes p of the model's output z: ``"cross_entropy"`` (a softmax over the last dimension) or
    ``"binary_cross_entropy"`` (a logistic function of each entry, ``F.binary_cross_entropy_with_logits``). Targets and c
    are read from the error that arrives: y* is 1 where it is negative. What has no error (a row of ``ignore_index``; a row,
    under binary cross-entropy an entry, that is right to the last digit) sends nothing.

    Raises ``RuntimeError`` where the error is not c (p − y*) with one c in the batch and targets of 0 and 1: another loss,
    soft labels, class weights, a penalty on the output. (Under a squared error y* and c cannot be told apart.) The test
    waits for the device once a step.
    """

    name = "drtp"
    sends_error = False

    def __init__(self, loss: str = "cross_entropy", init: str | Init = "kaiming") -> None:
        super().__init__(init)
        if loss not in _READINGS:
            raise ValueError(f"drtp: loss is {loss!r}, expected one of {', '.join(_READINGS)}")
        self.loss = loss

    @torch.no_grad()
    def broadcast(self, error: Tensor, output: Tensor | None, runs: int | None = None) -> Tensor:
        """``−c y*`` for the ``error`` that arrived at the ``output``; all of one shape. Of several runs each has its c."""
        assert output is not None
        wide = torch.float32 if error.device.type == "mps" else torch.float64
        e = error.to(wide)
        e, y, d = (each_run(x, runs) for x in (e, *_READINGS[self.loss](output.to(wide), e)))
        c = _scale(e, d, y)
        self._check(e, c, d, error.dtype)
        return (-c * y).to(error.dtype).view(error.shape)

    def _check(self, e: Tensor, c: Tensor, d: Tensor, dtype: torch.dtype) -> None:
        """Raise where e is not c d. Near a minimum p − 1 is rounding at the target, of the size that p has."""
        rounding = 8 * torch.finfo(dtype).eps * c.squeeze(1) * (d != 0).sum(1).sqrt()
        rest, size = (e - c * d).norm(dim=1), e.norm(dim=1)
        # not for errors that are not finite: a run that diverges has to show it
        off = rest > TOLERANCE.get(dtype, TOLERANCE_HALF) * size + rounding
        if bool(off.any()):
            largest, known = float((rest / size)[off].max()), " or ".join(map(repr, _READINGS))
            raise RuntimeError(
                f"drtp: the error at the model's output is not that of {self.loss} with targets of 0 and 1 (off by "
                f"{largest:.0%}): give the rule the loss in use (loss={known}), "
                "without soft labels, weights or penalties on the output; for any other loss there is dfa"
            )


def _scale(e: Tensor, d: Tensor, y: Tensor) -> Tensor:
    """c in e = c d, row by row (runs, 1), from the entries off the target, which keep their digits where p is near y*; without
    any, from all."""
    least = torch.finfo(e.dtype).tiny
    by_rest, by_all = (
        (e * part).abs().sum(1, keepdim=True) / (d * part).abs().sum(1, keepdim=True).clamp(min=least)
        for part in (1 - y, 1)
    )
    return torch.where(((1 - y) * d != 0).any(1, keepdim=True), by_rest, by_all)


def _of_softmax(z: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """``(y*, p − y*)``: a row's target is its least error, and where that is rounded away, the likelier of the least.

    p − 1 is taken from the other entries, which keep their digits where p is near 1.
    """
    p = z.softmax(-1)
    least = e == e.amin(-1, keepdim=True)
    target = torch.where(least, p, -1).argmax(-1, keepdim=True)
    has_error = (e != 0).any(-1, keepdim=True)
    y = torch.zeros_like(p).scatter_(-1, target, 1.0) * has_error
    others = p * (1 - y) * has_error
    return y, others - y * others.sum(-1, keepdim=True)


def _of_sigmoid(z: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """``(y*, p − y*)`` of each entry."""
    y = (e < 0).to(z)
    return y, torch.where(e < 0, -z.neg().sigmoid(), z.sigmoid()) * (e != 0)


_READINGS = {"cross_entropy": _of_softmax, "binary_cross_entropy": _of_sigmoid}
