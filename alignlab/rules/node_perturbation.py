"""Node perturbation (Williams 1992; Werfel, Xie & Seung 2005): noise on the units' outputs tells each unit its error."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from alignlab.rules.perturbation import Perturbation
from alignlab.rules.runs import beside

if TYPE_CHECKING:
    from alignlab.rules.passes import Passes
    from alignlab.rules.sites import Site


class NodePerturbation(Perturbation):
    """``delta = ΔL ξ / σ²`` with noise ξ ~ N(0, σ²) on the output z of every layer that learns, on all at once.

    From there each layer's own ``deltaᵀ h`` follows. Normalisations and other modules with trained parameters are
    perturbed at their outputs too, so that everything in the model learns by the same signal and none by backprop.

    With a loss for each sample, ΔL is the sample's own: the variance then counts the outputs of one sample, n, instead of
    the batch's N n. That is right where samples do not see one another; in a batch normalisation they do, so there such a
    loss is refused. Every layer's output needs the batch as its first dimension.
    """

    name = "node_perturbation"
    perturbs_norms = True

    def teach(self, passes: Passes) -> Tensor:
        loss = passes.first()
        self._check(passes, loss)
        noise, scale = passes.noise, 1 / (self.sigma**2 * self.samples * (passes.samples(loss) or 1))
        totals: dict[Site, Tensor] = {}
        for _ in range(self.samples):
            drawn = {site: noise.like(*site.where).mul_(self.sigma) for site in passes.sites}
            change = self.change(loss, partial(_perturbed, passes, drawn))
            for site, xi in drawn.items():
                part = beside(change, xi).to(xi.device) * xi
                totals[site] = totals[site] + part if site in totals else part
        for site, estimate in totals.items():
            site.delta = (estimate * scale).to(site.dtype)
        objective = passes.objective(loss)
        passes.land(objective)
        return objective.detach()

    def _check(self, passes: Passes, loss: Tensor) -> None:
        self.check_resolution({loss.dtype, *(site.dtype for site in passes.sites)})
        perturbed = {id(p) for site in passes.sites for p in site.module.parameters(recurse=False)}
        missed = [name for name, p in passes.learners(*passes.outputs).items() if id(p) not in perturbed]
        if missed:
            raise RuntimeError(
                f"{self.name}: no noise reaches {', '.join(missed)}, used without a call of the module: freeze it "
                "(requires_grad_(False)), or use weight_perturbation"
            )
        if passes.samples(loss):
            self._check_samples(passes, loss.shape)

    def _check_samples(self, passes: Passes, each: tuple[int, ...]) -> None:
        way_out = "return the mean from the closure"
        for site in passes.sites:
            if site.shape[: len(each)] != each:
                raise ValueError(
                    f"{self.name}: {each[-1]} losses, but the output of layer {site.name!r} is {site.shape}; a loss for each "
                    f"sample needs the batch as the first dimension of every layer: {way_out}"
                )
        for name, module in passes.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
                module.training or module.running_mean is None
            ):
                raise ValueError(
                    f"{self.name}: in {name!r}, a {type(module).__name__}, every sample's noise changes every sample's loss: "
                    f"{way_out}, or put the module into evaluation mode"
                )


def _perturbed(passes: Passes, noise: Mapping[Site, Tensor], sign: int) -> Tensor:
    return passes.again(lambda site, z: z + sign * noise[site])
