"""What probes answer, checked as it comes: a mistake in a probe of one's own is told with the probe's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from alignlab.probes.probe import Probe


def ask(probe: Probe, method: str, *given: Any, of: str = "") -> Mapping[str, Any]:
    """What a ``method`` of ``probe`` says, a dict; ``of`` a layer, in words.

    What it raises gets a note of where that was. Raises ``TypeError`` for anything but a dict.
    """
    try:
        answer = getattr(probe, method)(*given)
    except Exception as error:
        error.add_note(f"raised by {_where(probe, method, of)}")
        raise
    if isinstance(answer, Mapping):
        return answer
    raise TypeError(
        f"{_where(probe, method, of)} returned {_short(answer)}, expected a dict of values by name, "
        "empty where there are none"
    )


def ask_values(
    probe: Probe, method: str, *given: Any, of: str = "", lead: Sequence[int] = ()
) -> Mapping[str, Any]:
    """The same for a method that answers with what is recorded: real numbers, or vectors along mode, after ``lead``.

    Raises ``TypeError`` for what is no number, ``ValueError`` for another shape or a name that ``quantities`` lacks.
    """
    answer = ask(probe, method, *given, of=of)
    for name, value in answer.items():
        if not isinstance(value, Tensor):
            check_number(probe, method, of, name, value)
            if method == "finish":
                raise TypeError(
                    f"{_where(probe, method, of)}: {name} is {_short(value)}, expected a tensor that leads with the steps"
                )
        elif value.is_complex():
            raise TypeError(
                f"{_where(probe, method, of)}: {name} is complex, expected real numbers: record .real and .imag, or .abs()"
            )
        elif value.shape != lead and value.shape[:-1] != lead:
            raise ValueError(
                f"{_where(probe, method, of)}: {name} has shape {tuple(value.shape)}, expected a number, or a vector along "
                f"mode{_led(method, lead)}"
            )
        if name not in probe.quantities:
            raise ValueError(
                f"{_where(probe, method, of)} returned {name!r}, which its quantities {probe.quantities!r} lack: add it there"
            )
    return answer


def check_number(probe: Probe, method: str, of: str, name: str, value: Any) -> None:
    """Raise ``TypeError`` for a value, no tensor, that is no real number either."""
    try:
        float("no" if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{_where(probe, method, of)}: {name} is {_short(value)}, expected a tensor or a number; leave out what is not "
            "defined"
        ) from None


def _where(probe: Probe, method: str, of: str) -> str:
    return f"{type(probe).__name__}.{method}" + (f" for layer {of!r}" if of else "")


def _led(method: str, lead: Sequence[int]) -> str:
    if not lead:
        return ""
    what = "the steps that were kept" if method == "finish" else "the runs"
    return f", after the dimensions {tuple(lead)} of {what}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
