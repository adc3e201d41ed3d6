"""RunSpec: what it refuses and how it says so, its identity, its YAML, and the seeds it hands out."""

from __future__ import annotations

import copy
import pickle
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from alignlab.training.errors import SpecError
from alignlab.training.spec import STREAMS, Graft, RunSpec, parse

GRAFT = {"direction": "bp", "magnitude": "rule"}
FULL: dict[str, Any] = {  # every field away from its default
    "task": "xor", "hidden": (7, 5), "activation": "tanh", "bias": False, "weight_init": "gaussian",
    "weight_scale": 0.5, "frozen": ("1.*",), "loss": "absolute", "clip": 2.0, "sampling": "replacement", "rule": "sign_sync",
    "rule_args": {"period": 3, "preserve_magnitude": True, "init": "xavier"}, "lr": 0.3, "momentum": 0.9,
    "weight_decay": 0.01, "batch_size": 3, "steps": 11, "evaluations": 4, "record_every": 2, "record_log": 7,
    "spectra_every": 3, "splits": ("test", "validation"), "graft": GRAFT, "lr_schedule": "cosine",
    "warmup": 3, "nesterov": True,
    "order": 2, "seed": 4,
}  # fmt: skip


# Bad input ------------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"lr": -1}, ["lr", "-1", "greater than 0"]),
    ({"lr": 0}, ["lr", "0", "greater than 0"]),
    ({"lr": float("nan")}, ["lr", "nan", "finite"]),
    ({"lr": float("inf")}, ["lr", "inf", "finite"]),
    ({"lr": 1e39}, ["lr is 1e+39", "at most 3.4e+38"]),  # the largest float32
    ({"lr": 1e38, "optimizer": "adam"}, ["lr is 1e+38", "adam", "3e+37 at most"]),
    ({"weight_decay": 1e39}, ["weight_decay is 1e+39", "at most 3.4e+38"]),
    ({"lr": "fast"}, ["lr", "'fast'", "number"]),
    ({"lr": True}, ["lr", "True", "number"]),
    ({"seed": True}, ["seed", "True", "number"]),
    ({"seed": 1.5}, ["seed", "1.5", "integer"]),
    ({"seed": -1}, ["seed", "-1", "greater than or equal to 0"]),
    ({"seed": 2**63}, ["seed", str(2**63), "less than"]),  # a store holds int64
    ({"order": 2**63}, ["order", str(2**63), "less than"]),
    ({"steps": 0}, ["steps", "0", "greater than or equal to 1"]),
    ({"steps": None}, ["steps", "None", "integer"]),
    ({"hidden": (8, 0)}, ["hidden", "(8, 0)", "at least one unit"]),
    ({"hidden": [8, True]}, ["hidden", "[8, True]", "number"]),
    ({"hidden": 8}, ["hidden", "8", "tuple"]),
    ({"momentum": 1.0}, ["momentum", "1.0", "less than 1"]),
    ({"weight_decay": -0.1}, ["weight_decay", "-0.1", "greater than or equal to 0"]),
    ({"weight_scale": -1}, ["weight_scale", "-1", "greater than or equal to 0"]),
    ({"lr_schedule": "cosin"}, ["lr_schedule", "'cosin'", "'constant', 'linear' or 'cosine'"]),
    ({"warmup": -1}, ["warmup", "-1", "greater than or equal to 0"]),
    ({"nesterov": True}, ["nesterov", "momentum above 0"]),
    ({"nesterov": True, "momentum": 0.9, "optimizer": "rmsprop"}, ["nesterov", "set optimizer sgd"]),
    ({"nesterov": 1, "momentum": 0.9}, ["nesterov", "1", "boolean"]),
    ({"evaluations": 1}, ["evaluations", "1", "greater than or equal to 2"]),
    ({"record_every": -5}, ["record_every", "-5", "greater than or equal to 0"]),
    ({"record_log": -1}, ["record_log", "-1", "greater than or equal to 0"]),
    ({"spectra_every": -1}, ["spectra_every", "-1", "greater than or equal to 0"]),
    ({"splits": ()}, ["splits", "()", "at least 1"]),
    ({"splits": ("trial",)}, ["splits.0", "'trial'", "'train', 'validation' or 'test'"]),
    ({"rule": "sign_sink"}, ["rule", "'sign_sink'", "did you mean 'sign_sync'", "known are bp"]),
    ({"task": "mnist_smal"}, ["task", "'mnist_smal'", "did you mean mnist_small", "known are xor", "train(spec, task=…)"]),
    ({"task": "mine"}, ["train(spec, task=…)", "one of your own: TASKS[name] = … in a module that is imported first"]),
    ({"model": "mpl"}, ["model", "'mpl'", "'mlp', 'lenet', 'convnet' or 'untied'"]),
    ({"optimizer": "adamw"}, ["optimizer", "'adamw'", "'sgd', 'adam' or 'rmsprop'"]),
    ({"activation": "gelu"}, ["activation", "'gelu'", "'relu'"]),
    ({"rule": "sign_sync", "rule_args": {"period": 0}}, ["sign_sync", "period is 0", "at least 1"]),
    ({"rule": "sign_sync", "rule_args": {"period": 2.5}}, ["period is 2.5", "whole number"]),
    (
        {"rule": "sign_sync", "rule_args": {"period": 2, "preserve_magnitude": "no"}},
        ["preserve_magnitude is 'no'", "expected True or False"],
    ),
    ({"rule": "fa", "rule_args": {"init": "kaimin"}}, ["'kaimin'", "did you mean 'kaiming'"]),
    ({"rule": "fa", "rule_args": {"perod": 3}}, ["'fa'", "perod=3"]),
    ({"rule": "fa", "rule_args": {"rule": "bp"}}, ["rule_args", "field 'rule'"]),
    ({"rule": "fa", "rule_args": {"init": max}}, ["rule_args", "max", "plain values"]),
    ({"rule": "fa", "rule_args": {"init": float("nan")}}, ["rule_args", "nan", "plain values"]),
    ({"rule": "fa", "rule_args": ["init"]}, ["rule_args", "['init']", "dictionary"]),
    ({"rule": 3}, ["rule is 3", "a rule's name, or patterns"]),
    ({"rule": None}, ["rule is None", "a rule's name, or patterns"]),
    ({"rule": {}}, ["the rule is {}", "patterns of layer names"]),
    ({"rule": {1: "fa"}}, ["rule is {1: 'fa'}", "(in quotes)"]),
    ({"rule": {"1": "fab"}}, ["'fab'", "did you mean 'fa'"]),
    ({"rule": {"1": {"init": "xavier"}}}, ["'1'", "expected a name"]),
    ({"rule": {"1": {"rule": "sign_sync", "period": 0}}}, ["period is 0"]),
    ({"rule": {"1": "fa"}, "rule_args": {"period": 2}}, ["period", "belong to one of them"]),
    ({"rule": {"*": "bp"}, "graft": GRAFT}, ["graft", "rule is bp"]),
    ({"bias": 1}, ["bias is 1", "boolean"]),
    ({"clip": 0}, ["clip is 0", "greater than 0"]),
    ({"clip": float("inf")}, ["clip is inf", "finite"]),
    ({"weight_init": "zeros"}, ["weight_init is 'zeros'", "'pytorch', 'gaussian', 'lillicrap' or 'nokland'"]),
    ({"frozen": "1.*"}, ["frozen is '1.*'", "tuple"]),
    ({"loss": "squared"}, ["loss is 'squared'", "'task' or 'absolute'"]),
    ({"sampling": "bootstrap"}, ["sampling is 'bootstrap'", "'epochs' or 'replacement'"]),
    ({"graft": GRAFT}, ["graft", "rule is bp"]),
    ({"rule": "fa", "graft": GRAFT, "optimizer": "adam"}, ["graft", "adam", "use optimizer sgd"]),
    ({"rule": "fa", "graft": GRAFT, "optimizer": "rmsprop"}, ["graft", "rmsprop", "use optimizer sgd"]),
    ({"rule": "fa", "graft": {**GRAFT, "direction": "fa"}}, ["graft", "direction is 'fa'", "'rule' or 'bp'"]),
    ({"rule": "fa", "graft": {"direction": "bp"}}, ["graft", "magnitude is missing"]),
    ({"rule": "fa", "graft": {**GRAFT, "magnitde": "bp"}}, ["graft", "'magnitde'", "did you mean 'magnitude'"]),
    ({"rule": "fa", "graft": True}, ["graft", "True"]),
    ({"optimizer": "adam", "momentum": 0.9}, ["momentum", "leave momentum at 0"]),
    ({"model": "lenet", "hidden": (20,)}, ["hidden", "leave them out for a lenet"]),
    ({"model": "lenet", "activation": "tanh"}, ["activation", "leave them out for a lenet"]),
    ({"learning_rate": 0.1}, ["unknown key 'learning_rate'", "known: task, model"]),
    ({"step": 10}, ["unknown key 'step'", "did you mean 'steps'"]),
    ({"momentun": 0.1}, ["unknown key 'momentun'", "did you mean 'momentum'"]),
]  # fmt: skip


@pytest.mark.parametrize("how", ["called", "parsed", "changed"])
@pytest.mark.parametrize(("fields", "told"), REFUSED, ids=lambda x: str(x)[:40])
def test_a_bad_field_is_one_clear_line(how: str, fields: dict[str, Any], told: list[str]) -> None:
    make = {
        "called": lambda: RunSpec(**fields),
        "parsed": lambda: parse(fields),
        "changed": lambda: RunSpec().changed(**fields),
    }
    with pytest.raises(SpecError) as caught:
        make[how]()
    line = str(caught.value)
    assert all(part in line for part in told), line
    assert "\n" not in line
    assert "pydantic" not in line
    assert "http" not in line
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__  # no pydantic traceback above it


def test_all_faults_are_told_at_once_and_where_they_are() -> None:
    with pytest.raises(SpecError) as caught:
        parse({"lr": -1, "seed": "x", "hiden": (3,)}, where="arm 'fa'")
    line = str(caught.value)
    assert line.startswith("arm 'fa': ")
    assert all(part in line for part in ("lr is -1", "seed is 'x'", "did you mean 'hidden'"))


def test_keys_that_are_near_none_are_told_together_with_the_known_ones_once() -> None:
    with pytest.raises(SpecError) as caught:
        RunSpec(**{"statement": "x", "treatment": "fa", "seeds": 3})  # type: ignore[arg-type]
    line = str(caught.value)
    assert "unknown key 'seeds' (did you mean 'seed'?)" in line
    assert "unknown keys 'statement', 'treatment' (known: task, model, " in line
    assert line.count("known: task") == 1


def test_a_graft_made_by_hand_complains_plainly() -> None:
    with pytest.raises(SpecError, match=r"^direction is 'up': .* 'rule' or 'bp'$"):
        Graft(direction="up", magnitude="bp")  # type: ignore[arg-type]


def test_numbers_written_as_yaml_reads_them_are_numbers() -> None:
    assert RunSpec.from_yaml("lr: 1e-3").lr == 0.001  # to YAML 1.1 this is the text '1e-3'
    assert parse({"lr": "0.1", "steps": "20", "seed": 3.0}) == RunSpec(lr=0.1, steps=20, seed=3)
    assert RunSpec(lr=1) == RunSpec(lr=1.0)


def test_a_lenet_keeps_the_fields_of_an_mlp_at_their_defaults() -> None:
    spec = RunSpec(model="lenet")
    assert RunSpec.from_yaml(spec.to_yaml()) == spec


# Identity -------------------------------------------------------------------------------------------------------------


def test_a_spec_is_frozen() -> None:
    spec = RunSpec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        Graft(direction="bp", magnitude="rule").direction = "rule"


def test_the_arguments_of_a_spec_are_its_own() -> None:
    given: dict[str, Any] = {"period": 3}
    spec = RunSpec(rule="sign_sync", rule_args=given)
    before = spec.digest()
    given["period"] = 4
    assert spec.rule_args == {"period": 3}
    assert spec.digest() == before
    table = {"cosine": {"1": [0.5]}, "steps": [0]}
    spec = RunSpec(rule="noisy_backprop", rule_args=table)
    before = spec.digest()
    table["cosine"]["1"][0] = 0.9  # type: ignore[index]
    assert spec.digest() == before


def test_equal_specs_have_one_digest_whatever_the_order_and_the_way_of_writing() -> None:
    spec = RunSpec(**FULL)
    backwards = dict(reversed(FULL.items())) | {
        "hidden": [7, 5],
        "graft": Graft(direction="bp", magnitude="rule"),
    }
    backwards["rule_args"] = dict(reversed(FULL["rule_args"].items()))
    again = parse(backwards)
    assert again == spec
    assert again.digest() == spec.digest()
    assert hash(again) == hash(spec)
    assert {spec: 1}[again] == 1


def test_numbers_of_numpys_are_the_numbers_that_they_are() -> None:
    args = {"init": np.str_("xavier"), "period": np.int64(3)}
    hidden, lr, seed, bias = np.array([7, 5]), np.float64(0.25), np.int64(3), np.bool_(False)
    given = RunSpec(rule="sign_sync", rule_args=args, hidden=hidden, lr=lr, seed=seed, bias=bias)
    args = {"init": "xavier", "period": 3}
    plain = RunSpec(rule="sign_sync", rule_args=args, hidden=(7, 5), lr=0.25, seed=3, bias=False)
    assert given.digest() == plain.digest()
    with pytest.raises(SpecError, match="expected a number or a name, not true or false"):
        RunSpec(seed=np.bool_(True))


def test_patterns_in_another_order_are_another_run_and_splits_in_another_order_the_same() -> None:
    """Of several patterns that match a layer the first counts; splits have an order of their own."""
    first, last = (RunSpec(rule=dict(rules)) for rules in permutations([("3", "bp"), ("*", "fa")]))
    assert first.digest() != last.digest()
    backwards, forwards = (RunSpec(splits=names) for names in permutations(["test", "train"]))
    assert backwards.digest() == forwards.digest()
    assert backwards.splits == ("train", "test")


def test_what_is_equal_has_one_hash() -> None:
    whole, decimal = (RunSpec(rule="weight_mirror", rule_args={"rate": x}) for x in (1, 1.0))
    plus, minus = RunSpec(momentum=0.0), RunSpec(momentum=-0.0)
    for a, b in ((whole, decimal), (plus, minus)):
        assert (a == b) == (a.digest() == b.digest())
    assert RunSpec() != "spec"


CHANGED: dict[str, Any] = {
    "task": "linear_toy", "model": "lenet", "hidden": (7,), "activation": "relu", "bias": True, "weight_init": "nokland",
    "weight_scale": 0.4, "frozen": ("3.*",), "loss": "task", "clip": 1.5, "sampling": "epochs", "rule": "fa",
    "rule_args": {"period": 4, "preserve_magnitude": True, "init": "xavier"}, "optimizer": "rmsprop", "lr": 0.31,
    "momentum": 0.8, "weight_decay": 0.0, "batch_size": 4, "steps": 12, "evaluations": 5, "record_every": 3,
    "spacing": "geometric", "record_log": 4, "spectra_every": 2, "splits": ("train", "test"),
    "lr_schedule": "linear", "warmup": 4, "nesterov": False,
    "graft": {"direction": "rule", "magnitude": "bp"}, "order": 3, "seed": 5,
    "step_sizes": {"sizes": 0.01, "relative": True},
}  # fmt: skip
ALONG: dict[str, dict[str, Any]] = {  # what must change along, for the whole to make sense
    "model": {"hidden": (128, 64), "activation": "relu"}, "rule": {"rule_args": {}},
    "optimizer": {"graft": None, "nesterov": False},
    "step_sizes": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "clip": None, "graft": None},
}  # fmt: skip


@pytest.mark.parametrize("name", RunSpec.model_fields)
def test_every_field_counts_in_the_digest(name: str) -> None:
    along = ALONG.get(name, {})
    before = RunSpec(**{**FULL, **along})
    after = before.changed(**{name: CHANGED[name]})
    assert after != before
    assert after.digest() != before.digest()
    assert before.changed(**{name: before.model_dump()[name]}).digest() == before.digest()


@pytest.mark.parametrize(
    ("fields", "digest"),
    [
        ({"task": "xor", "hidden": (4,), "steps": 5}, "9a71527e38ada71d"),
        (
            {"task": "xor", "rule": "fa", "graft": {"direction": "rule", "magnitude": "bp"}},
            "0c26ea1b85686c0d",
        ),
    ],
)
def test_a_spec_without_step_sizes_has_the_digest_from_before_there_were_any(
    fields: dict[str, Any], digest: str
) -> None:
    """So that runs of both versions are seen to be of one spec."""
    assert RunSpec(**fields).digest() == digest


def test_a_grafts_scope_counts_in_the_digest() -> None:
    graft = {"direction": "rule", "magnitude": "bp"}
    scopes = [RunSpec(rule="fa", graft={**graft, "scope": scope}) for scope in ("layer", "global")]
    assert scopes[0].digest() != scopes[1].digest()


def test_digests_of_many_specs_differ() -> None:
    specs = [
        RunSpec(lr=lr, seed=seed, order=order) for lr in (0.1, 0.2) for seed in range(10) for order in (0, 1)
    ]
    assert len({spec.digest() for spec in specs}) == len(set(specs)) == 40


def test_copies_are_equal() -> None:
    spec = RunSpec(**FULL)
    for twin in (pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec), spec.changed()):
        assert twin == spec
        assert hash(twin) == hash(spec)
        assert twin.graft == spec.graft


def test_errors_survive_the_way_between_processes() -> None:
    with pytest.raises(SpecError) as caught:
        RunSpec(lr=-1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# YAML -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{}, FULL, {"rule": "fa", "graft": GRAFT}, {"hidden": ()}],
    ids=["default", "full", "graft", "flat"],
)
def test_yaml_brings_a_spec_back(fields: dict[str, Any], tmp_path: Path) -> None:
    spec = RunSpec(**fields)
    file = tmp_path / "spec.yaml"
    assert spec.to_yaml(file) == file.read_text()
    assert yaml.safe_load(spec.to_yaml())["seed"] == spec.seed
    for source in (spec.to_yaml(), file, str(file)):
        again = RunSpec.from_yaml(source)
        assert again == spec
        assert again.digest() == spec.digest()


BAD_YAML = {
    "": ["expected keys and values", "None"],
    "[1, 2]": ["expected keys and values", "[1, 2]"],
    "1: 2": ["expected keys and values", "{1: 2}"],
    "lr: [": ["not YAML"],
    "lr: 0.1\nlr: 0.2": ["'lr' twice"],
    "graft: {direction: bp, direction: rule}": ["'direction' twice"],
    "leraning: 1": ["unknown key 'leraning'"],
    "nowhere.yaml": ["nowhere.yaml", "No such file"],
}


@pytest.mark.parametrize("text", BAD_YAML)
def test_bad_yaml_is_one_clear_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as caught:
        RunSpec.from_yaml(text)
    assert all(part in str(caught.value) for part in BAD_YAML[text]), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("lr: -1")
    with pytest.raises(SpecError, match=r"spec\.yaml: lr is -1"):
        RunSpec.from_yaml(file)
    file.write_bytes(b"\xff\xfe\x00lr")
    with pytest.raises(SpecError, match=r"spec\.yaml: not YAML"):
        RunSpec.from_yaml(file)
    with pytest.raises(SpecError, match="cannot be read"):
        RunSpec.from_yaml(tmp_path)


# Seeds ----------------------------------------------------------------------------------------------------------------


def streams(**fields: Any) -> dict[str, int]:
    spec = RunSpec(**fields)
    return {name: spec.stream(name) for name in STREAMS}


def test_the_streams_of_one_seed_and_of_different_seeds_differ() -> None:
    found = [value for seed in range(20) for value in streams(seed=seed).values()]
    # torch's CPU generator looks at the lower 32 bits of a seed alone
    assert len({value % 2**32 for value in found}) == 20 * len(STREAMS)


def test_the_order_shifts_the_stream_of_batches_alone() -> None:
    before, after = streams(seed=3), streams(seed=3, order=1)
    assert {name for name in STREAMS if before[name] != after[name]} == {"order"}
    orders = {RunSpec(seed=s, order=o).stream("order") for s in range(5) for o in range(5)}
    assert len(orders) == 25


def test_only_seed_and_order_reach_the_streams() -> None:
    assert streams(**{**FULL, "seed": 0, "order": 0}) == streams()


def test_streams_stay_what_they_are_from_one_version_to_the_next() -> None:
    assert streams(seed=1, order=2) == {
        "init": 1662916631590839187,
        "order": 3334209715201851541,
        "feedback": 3173462574280835714,
        "noise": 1496629823739558991,
    }


def test_an_unknown_stream_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'dropout'.*init, order, feedback, noise"):
        RunSpec().stream("dropout")


def test_a_wrong_value_however_large_is_told_in_a_short_line() -> None:
    for field in ("task", "model"):
        with pytest.raises(SpecError, match=f"^{field} is ") as told:
            RunSpec(**{field: torch.nn.Sequential(*(torch.nn.Linear(9, 9) for _ in range(99)))})
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 300
    with pytest.raises(SpecError, match="too many brackets"):
        RunSpec.from_yaml("a: " + "[" * 9999)
