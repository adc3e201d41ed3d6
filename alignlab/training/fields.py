"""What specs and claims are made of: frozen models that complain in one line, and the YAML that they are read from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from alignlab.checks import did_you_mean
from alignlab.training.errors import SpecError

SHOWN = 200  # characters of a wrong value
_PLAINLY = {  # pydantic's complaints that speak of Python's types
    **dict.fromkeys(("tuple_type", "sequence_str", "is_instance_of"), "expected a list or tuple"),
    "dict_type": "expected a dictionary, keys and values",
    "model_type": "expected keys and values, in Python {class_name}(…)",
}


class SpecModel(BaseModel):
    """A frozen model that complains with a :class:`SpecError`. ``_truths``: its fields that are true or false."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    _truths: ClassVar[tuple[str, ...]] = ()

    if not TYPE_CHECKING:  # a type checker keeps the signature that it makes from the fields

        def __init__(self, /, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise SpecError(_complaints(type(self), error)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        value = without_numpy(value)
        if info.field_name not in cls._truths and any(
            isinstance(part, bool) for part in (value if isinstance(value, list | tuple) else [value])
        ):
            raise ValueError("expected a number or a name, not true or false")
        return value


def without_numpy(value: Any) -> Any:
    """Arrays and numbers of numpy's, at any depth, as Python's own: these alone are hashed and written down."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {key: without_numpy(part) for key, part in value.items()}
    return type(value)(map(without_numpy, value)) if type(value) in (list, tuple) else value


def checked(kind: Any, fields: dict[str, Any], where: str) -> Any:
    """``kind(**fields)`` for a pydantic model, with its complaints put plainly."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise SpecError(f"{where}: {_complaints(kind, error)}") from None


def _complaints(kind: type[BaseModel], error: ValidationError) -> str:
    faults = error.errors()
    unknown = [fault["loc"] for fault in faults if fault["type"] == "extra_forbidden"]
    told = [_complaint(kind, fault) for fault in faults if fault["type"] != "extra_forbidden"]
    return "; ".join(told + _unknown_keys(kind, unknown))


def _complaint(kind: type[BaseModel], fault: Any) -> str:
    place = ".".join(map(str, fault["loc"]))
    inner = fault.get("ctx", {}).get("error")
    if isinstance(inner, SpecError):  # a part of the spec has complained already
        return f"{place}: {inner}" if place else str(inner)
    if fault["type"] == "missing":
        return f"{place} is missing"
    plain = _PLAINLY.get(fault["type"], "").format(**fault.get("ctx", {}))
    message: str = plain or fault["msg"].removeprefix("Value error, ")
    if not place:
        return message
    given = " ".join(repr(fault["input"]).split())  # a whole module or data set, handed over for a name
    return f"{place} is {given if len(given) <= SHOWN else given[:SHOWN] + '…'}: {message}"


def _unknown_keys(kind: type[BaseModel], places: list[tuple[int | str, ...]]) -> list[str]:
    """Those near a known one each with it; of the others, as where a whole file is of another kind, the known ones once."""
    told: list[str] = []
    strange: dict[type[BaseModel], list[str]] = {}
    for place in places:
        name, owner = repr(".".join(map(str, place))), _owner(kind, place)
        if hint := did_you_mean(str(place[-1]), owner.model_fields, n=1):
            told.append(f"unknown key {name} ({hint.rstrip()})")
        else:
            strange.setdefault(owner, []).append(name)
    for owner, names in strange.items():
        keys = f"key{'s' * (len(names) > 1)} {', '.join(names)}"
        told.append(f"unknown {keys} (known: {', '.join(owner.model_fields)})")
    return told


def _owner(kind: type[BaseModel], place: tuple[int | str, ...]) -> type[BaseModel]:
    """The model, ``kind`` or one inside it, that the last part of ``place`` belongs to."""
    for name in place[:-1]:
        annotation = kind.model_fields[str(name)].annotation
        kind = next(
            t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)
        )
    return kind


DUMPER: Any = getattr(
    yaml, "CSafeDumper", yaml.SafeDumper
)  # there are many specs, and the one in C is ten times as fast


class _OneOfEachKey(yaml.SafeLoader):
    """YAML's safe subset, without its habit of letting the last of several equal keys win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice!r} twice")
        return super().construct_mapping(node, deep)


def read_yaml(source: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file or text; JSON is YAML. A text that is a mere word is taken for the name of a file."""
    where = str(source) if isinstance(source, Path) else "spec"
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        found = yaml.load(text, _OneOfEachKey)
    except OSError as error:
        raise SpecError(f"{where}: cannot be read ({error.strerror}), expected a YAML or JSON file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SpecError(f"{where}: too many brackets within each other") from None
    if isinstance(found, str) and isinstance(source, str):
        return read_yaml(Path(source))
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise SpecError(f"{where}: expected keys and values (task: mnist_small), got {found!r:.60}")
    return found
