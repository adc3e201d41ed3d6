"""What every recorded variable is: symbol, units, range, what chance gives, and who defined it.

``QUANTITIES`` is the one place that says so; the store writes it into each variable's attributes and figures
take labels from it. Symbols are matplotlib mathtext. Ranges are those of the exact quantity, infinite where it
has no bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LAYERWISE = ("step", "layer")
PER_MODE = ("step", "layer", "mode")
PER_STEP = ("step",)


@dataclass(frozen=True)
class Quantity:
    """One recorded variable. ``null`` is the value that chance gives, None where chance fixes none."""

    name: str
    symbol: str
    units: str
    low: float
    high: float
    null: float | None
    source: str
    description: str
    dims: tuple[str, ...] = LAYERWISE

    def attrs(self) -> dict[str, str | float | list[float]]:
        """The variable's attributes in a dataset, all of types that netCDF and JSON can hold.

        >>> attrs = QUANTITIES["gradient_angle"].attrs()
        >>> attrs["units"], attrs["valid_range"], attrs["null"]
        ('degree', [0.0, 180.0], 90.0)
        """
        return {
            "long_name": self.description,
            "symbol": self.symbol,
            "units": self.units,
            **self._bounds(),
            "null": "not defined" if self.null is None else self.null,
            "source": self.source,
        }

    def _bounds(self) -> dict[str, float | list[float]]:
        # CF conventions: valid_range where both ends exist, else the one that does; JSON has no infinity
        if math.isfinite(self.low) and math.isfinite(self.high):
            return {"valid_range": [float(self.low), float(self.high)]}
        bounds = {"valid_min": self.low, "valid_max": self.high}
        return {key: float(value) for key, value in bounds.items() if math.isfinite(value)}


INF = math.inf
LILLICRAP = "Lillicrap et al. 2016, Nature Communications 7:13276"
LARS = "You et al. 2017, arXiv:1708.03888"
SPHERICAL = "Wan et al. 2021, arXiv:2006.08419"
OURS = "alignlab"
STANDARD = "standard"
SPLITS = ("train", "validation", "test")
FALLING = ("loss", "error", "angle")  # what is named so is better where it is lower

# fmt: off
_ALL = (
    # angles: 90 degrees by chance
    Quantity("gradient_angle", r"$\angle(G_\mathrm{rule}, G_\mathrm{bp})$", "degree", 0, 180, 90.0, LILLICRAP,
             "angle between the rule's and backprop's weight gradient"),
    Quantity("delta_angle", r"$\angle(\delta_\mathrm{rule}, \delta_\mathrm{bp})$", "degree", 0, 180, 90.0,
             LILLICRAP, "angle between the rule's and backprop's error signal, mean over samples"),
    Quantity("delta_angle_std", r"$\mathrm{std}\,\angle(\delta_\mathrm{rule}, \delta_\mathrm{bp})$", "degree",
             0, 90, None, LILLICRAP,
             "angle between the rule's and backprop's error signal, standard deviation over samples"),
    Quantity("zero_fraction", r"$P(\delta = 0)$", "1", 0, 1, None, OURS,
             "share of samples without an angle, a signal being zero"),
    Quantity("local_angle", r"$\angle(\delta B, \delta W)$", "degree", 0, 180, 90.0, OURS,
             "angle between the signals that B and W hand down, mean over samples"),
    Quantity("weight_angle", r"$\angle(B, W)$", "degree", 0, 180, 90.0, LILLICRAP,
             "angle between feedback and forward weight"),
    Quantity("update_angle", r"$\angle(-\Delta W, G_\mathrm{bp})$", "degree", 0, 180, 90.0, OURS,
             "angle between the applied step and steepest descent"),
    Quantity("angular_update", r"$\angle(W_t, W_{t+1})$", "degree", 0, 180, None, SPHERICAL,
             "angle by which the weight turned in one step"),
    # sizes of signals and steps
    Quantity("feedback_gain", r"$\|G_\mathrm{rule}\| / \|G_\mathrm{bp}\|$", "1", 0, INF, None, OURS,
             "length of the rule's gradient relative to backprop's"),
    Quantity("effective_lr", r"$\eta\,\|G_\mathrm{rule}\| / \|G_\mathrm{bp}\|$", "1", 0, INF, None, OURS,
             "effective learning rate: learning rate times feedback gain"),
    Quantity("applied_gain", r"$\|\Delta W\| / (\eta\,\|G_\mathrm{bp}\|)$", "1", 0, INF, None, OURS,
             "length of the applied step relative to plain gradient descent's"),
    Quantity("projected_lr", r"$-\langle\Delta W, G_\mathrm{bp}\rangle / \|G_\mathrm{bp}\|^2$", "1",
             -INF, INF, 0.0, OURS,
             "learning rate of plain gradient descent with the same progress along the true gradient"),
    Quantity("relative_update", r"$\|\Delta W\| / \|W\|$", "1", 0, INF, None, LARS,
             "length of the step relative to the weight"),
    Quantity("weight_norm", r"$\|W\|$", "1", 0, INF, None, STANDARD,
             "Frobenius norm of the forward weight"),
    Quantity("feedback_norm", r"$\|B\|$", "1", 0, INF, None, STANDARD,
             "Frobenius norm of the feedback weight"),
    Quantity("gradient_norm", r"$\|G_\mathrm{rule}\|$", "1", 0, INF, None, STANDARD,
             "Frobenius norm of the rule's gradient"),
    Quantity("gradient_norm_bp", r"$\|G_\mathrm{bp}\|$", "1", 0, INF, None, STANDARD,
             "Frobenius norm of backprop's gradient"),
    Quantity("update_norm", r"$\|\Delta W\|$", "1", 0, INF, None, STANDARD,
             "Frobenius norm of the applied step"),
    # spectra of W Bᵀ
    Quantity("spectrum_real", r"$\mathrm{Re}\,\lambda(W B^\top)$", "1", -INF, INF, None, OURS,
             "eigenvalues of the forward times feedback weight, real part", PER_MODE),
    Quantity("spectrum_imag", r"$\mathrm{Im}\,\lambda(W B^\top)$", "1", -INF, INF, None, OURS,
             "eigenvalues of the forward times feedback weight, imaginary part", PER_MODE),
    Quantity("spectrum_positive_fraction", r"$P(\mathrm{Re}\,\lambda > 0)$", "1", 0, 1, 0.5, OURS,
             "share of the nonzero eigenvalues with positive real part"),
    Quantity("symmetric_min", r"$\lambda_\mathrm{min}(\mathrm{sym}\,W B^\top)$", "1", -INF, INF, None,
             LILLICRAP, "smallest eigenvalue of the symmetric part: above 0 iff every error descends"),
    Quantity("symmetric_max", r"$\lambda_\mathrm{max}(\mathrm{sym}\,W B^\top)$", "1", -INF, INF, None,
             LILLICRAP, "largest eigenvalue of the symmetric part"),
    Quantity("symmetric_error", r"$\epsilon(\lambda_\mathrm{min}, \lambda_\mathrm{max})$", "1", 0, INF, None, OURS,
             "how far symmetric_min and symmetric_max may lie from an eigenvalue: 0 where exact, else Lanczos' residual "
             "and rounding"),
    Quantity("symmetric_positive_fraction", r"$P(\lambda(\mathrm{sym}\,W B^\top) > 0)$", "1", 0, 1, 0.5,
             LILLICRAP, "share of the nonzero eigenvalues of the symmetric part that are positive"),
    Quantity("spectrum_trace", r"$\mathrm{tr}\,W B^\top$", "1", -INF, INF, 0.0, LILLICRAP,
             "trace of the forward times feedback weight"),
    Quantity("chance_radius", r"$\|W\| \|B\| / \sqrt{n_\mathrm{out} n_\mathrm{in}}$", "1", 0, INF, None,
             "Burda et al. 2010, arXiv:1007.3594",
             "radius of the disc that the eigenvalues fill where the feedback weight knows nothing of the forward weight"),
    Quantity("descent_fraction", r"$P(e^\top W B^\top e > 0)$", "1", 0, 1, 0.5, LILLICRAP,
             "share of the batch's errors that the feedback sends downhill, of those that the weight hands down"),
    # the run itself
    Quantity("loss", r"$L$", "1", -INF, INF, None, STANDARD, "loss of the minibatch", PER_STEP),
    Quantity("learning_rate", r"$\eta$", "1", 0, INF, None, STANDARD, "learning rate", PER_STEP),
    Quantity("wall_time", r"$t$", "s", 0, INF, None, STANDARD, "time since the run began", PER_STEP),
    Quantity("clip_fraction", r"$P(\|G\| > c)$", "1", 0, 1, None, "Pascanu et al. 2013, arXiv:1211.5063",
             "share of the steps since the last evaluation at which the gradient was clipped", PER_STEP),
    Quantity("samples_seen", r"$n$", "samples", 0, INF, None, STANDARD, "training samples seen", PER_STEP),
    *(Quantity(f"{split}_loss", rf"$L_\mathrm{{{split}}}$", "1", -INF, INF, None, STANDARD,
               f"{split} loss", PER_STEP) for split in SPLITS),
    *(Quantity(f"{split}_accuracy", rf"$A_\mathrm{{{split}}}$", "1", 0, 1, None, STANDARD,
               f"{split} accuracy", PER_STEP) for split in SPLITS),
)
# fmt: on

QUANTITIES: dict[str, Quantity] = {quantity.name: quantity for quantity in _ALL}


def sense(name: str) -> int:
    """−1 for a loss, an error or an angle, which are better where they are lower, and 1 for anything else.

    >>> sense("test_loss"), sense("weight_angle"), sense("test_accuracy")
    (-1, -1, 1)
    """
    return -1 if name.endswith(FALLING) else 1
