"""Which layer learns by which rule: rules by name with their arguments, one for a whole model or one for each name pattern."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.checks import did_you_mean
from alignlab.rules.initialisation import Init, resolve_init
from alignlab.rules.registry import RULES
from alignlab.rules.rule import Rule

RuleLike = str | Rule | Mapping[str, Any]  # a name, a rule, or {"rule": name, argument: value, …}
Choice = str | Rule | Mapping[str, RuleLike]  # one for all layers, or pattern → rule


def make_rule(rule: str | Rule, *, init: str | Init | None = None, **rule_args: Any) -> Rule:
    """The rule of a name with its arguments checked; ``init`` is for rules that draw feedback, others leave it aside.

    Raises ``ValueError`` for an unknown rule or argument, a value that an argument does not take, or arguments for a
    :class:`Rule`, which is made already.
    """
    if isinstance(rule, Rule):
        if init is not None or rule_args:
            raise ValueError(f"{rule!r} is made already: give its arguments where it is made, not to convert")
        return rule
    if not isinstance(rule, str):
        raise ValueError(f"the rule is {rule!r}: expected a name or a Rule{_way_out(rule)}")
    if rule not in RULES:
        hint = did_you_mean(rule.lower(), RULES, cutoff=0.5)
        raise ValueError(f"unknown rule {rule!r}: {hint}known are {', '.join(RULES)}")
    made = RULES[rule]
    if init is not None:
        resolve_init(init)
        if made.uses_feedback:  # backprop draws nothing, so one call can serve every rule
            rule_args["init"] = init
    _check_arguments(rule, made, rule_args)
    try:
        return made(**rule_args)
    except TypeError as error:
        given = ", ".join(f"{k}={v!r}" for k, v in rule_args.items())
        raise ValueError(f"the rule {rule!r} does not take ({given}): {error}") from None


def _check_arguments(rule: str, made: type[Rule], given: Mapping[str, Any]) -> None:
    takes = inspect.signature(made).parameters
    wrong = [name for name in given if name not in takes]
    if not wrong or any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return
    hint = did_you_mean(wrong[0], takes, n=1, told=str)
    known = ", ".join(str(p.replace(annotation=p.empty)) for p in takes.values())
    shown = ", ".join(f"{name}={given[name]!r}" for name in wrong)
    raise ValueError(
        f"the rule {rule!r} does not take {shown}: {hint}"
        + (f"it takes {known}" if known else "it takes no arguments")
    )


def _way_out(rule: Any) -> str:
    """Of a class that stands where a rule is to be."""
    is_class = isinstance(rule, type) and issubclass(rule, Rule)
    return f": give an instance, {rule.__name__}()" if is_class else ""


def make_rules(choice: Choice, *, init: str | Init | None = None, **rule_args: Any) -> dict[str, Rule]:
    """The rules of a choice by pattern, made and checked: ``{"*": rule}`` where one is for all layers.

    Raises ``ValueError`` for unknown rules or arguments, and for rules that cannot share a model.
    """
    if isinstance(choice, str | Rule):
        return {"*": make_rule(choice, init=init, **rule_args)}
    if not isinstance(choice, Mapping) or not choice:
        raise ValueError(
            f"the rule is {choice!r}: expected a name, a Rule, or patterns of layer names with a rule each{_way_out(choice)}"
        )
    if rule_args:
        raise ValueError(
            f"{', '.join(rule_args)}: with a rule for each pattern, arguments belong to one of them, as in "
            '{"features.*": {"rule": "sign_sync", "period": 10}}'
        )
    made = {str(pattern): _made(pattern, rule, init) for pattern, rule in choice.items()}
    _check_company(list(made.values()))
    return made


def _made(pattern: Any, rule: Any, init: str | Init | None) -> Rule:
    if isinstance(rule, str):
        return make_rule(rule, init=init)
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, Mapping) or not isinstance(rule.get("rule"), str):
        raise ValueError(
            f"the rule for layers {pattern!r} is {rule!r}: expected a name, a Rule, or "
            '{"rule": name, argument: value}' + _way_out(rule)
        )
    arguments = {key: value for key, value in rule.items() if key != "rule"}
    return make_rule(rule["rule"], **({} if init is None else {"init": init}) | arguments)


def assign(rules: Mapping[str, Rule], names: Sequence[str], otherwise: Rule) -> list[Rule]:
    """The rule of each layer: that of the first pattern which matches its name, ``otherwise`` where none does.

    Raises ``ValueError`` for a pattern that decides about no layer, and where rules cannot work together: a direct rule, or
    one that compares passes, sends nothing through the layers, so that layers of another rule below would learn nothing.
    """
    deciding = [next((p for p in rules if fnmatch.fnmatchcase(name, p)), None) for name in names]
    idle = [repr(p) for p in rules if p not in deciding]
    if idle:
        raise ValueError(
            f"{', '.join(idle)} decides about no layer (the first pattern that matches counts); there are {', '.join(names)}"
        )
    chosen = [otherwise if pattern is None else rules[pattern] for pattern in deciding]
    _check_company(chosen)
    return chosen


def _check_company(rules: Sequence[Rule]) -> None:
    alone = next((rule for rule in rules if rule.direct or rule.whole), None)
    if alone is not None and any(rule is not alone for rule in rules):
        raise ValueError(
            f"{alone.name} cannot share a model with another rule: it sends nothing through the layers, so that those below "
            "would get no error; convert the whole model to it, or use rules that hand errors from layer to layer"
        )
