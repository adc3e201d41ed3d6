"""Recurrent cells with feedback: their input-to-hidden and hidden-to-hidden maps send errors down through a B each.

Unrolled over time, a map's B is the same at every step, as its W is (feedback alignment through time; ``rerandomised`` alone
draws one for each). Under a direct rule
the two maps are two layers, and each receives its own error at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alignlab.rules.hosts import FeedbackHost


class _FeedbackCell(FeedbackHost):
    """What the cells share."""

    maps = {"ih": ("weight_ih", "bias_ih"), "hh": ("weight_hh", "bias_hh")}  # noqa: RUF012
    hidden_size: int

    def _state(self, input: Tensor, state: Tensor | None) -> Tensor:
        """The state that was given, or zeros."""
        if input.dim() not in (1, 2) or (state is not None and state.dim() != input.dim()):
            got = "" if state is None else f" with a state of {tuple(state.shape)}"
            raise ValueError(
                f"{type(self).__name__}: the input is {tuple(input.shape)}{got}, expected (N, features) with (N, hidden), "
                "or both without N"
            )
        return input.new_zeros(*input.shape[:-1], self.hidden_size) if state is None else state

    def _project(self, input: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """What input and hidden state bring to the units, each through its own map."""
        return self.hosted("ih")(input), self.hosted("hh")(h)


class FeedbackRNNCell(_FeedbackCell, nn.RNNCell):
    """``nn.RNNCell`` whose backward pass uses feedback weights."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu."""
        from_input, from_state = self._project(input, self._state(input, hx))
        z = from_state + from_input
        return z.tanh() if self.nonlinearity == "tanh" else z.relu()


class FeedbackGRUCell(_FeedbackCell, nn.GRUCell):
    """``nn.GRUCell`` whose backward pass uses feedback weights."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h' = (1 − z) n + z h with n = tanh(W_in x + b_in + r (W_hn h + b_hn)) and the gates r, z."""
        h = self._state(input, hx)
        from_input, from_state = (maps.chunk(3, -1) for maps in self._project(input, h))
        reset = (from_state[0] + from_input[0]).sigmoid()
        keep = (from_state[1] + from_input[1]).sigmoid()
        new = (from_input[2] + from_state[2] * reset).tanh()
        return (h - new) * keep + new


class FeedbackLSTMCell(_FeedbackCell, nn.LSTMCell):
    """``nn.LSTMCell`` whose backward pass uses feedback weights."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """c' = f c + i g and h' = o tanh(c') with the gates i, f, o and the candidate g."""
        h, c = (self._state(input, None if hx is None else hx[i]) for i in (0, 1))
        from_input, from_state = self._project(input, h)
        enter, forget, new, leave = (from_state + from_input).chunk(4, -1)
        c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * torch.tanh(c), c
