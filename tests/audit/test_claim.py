"""Claims: frozen, hashed, from YAML, and every fault named."""

import numpy as np
import pytest
import yaml

import alignlab as al
from alignlab.training.errors import SpecError

FIELDS = {
    "statement": "fa beats bp",
    "treatment": {"rule": "fa"},
    "baseline": {"rule": "bp"},
    "task": "xor",
    "smallest_effect": 0.1,
    "setup": {"hidden": [4], "steps": 10},
}


def written(tmp_path, **changes):
    path = tmp_path / "claim.yaml"
    path.write_text(yaml.safe_dump({**FIELDS, **changes}))
    return path


def test_yaml_and_python_give_the_same_claim(tmp_path):
    direct = al.Claim(**FIELDS)
    assert al.Claim.from_yaml(written(tmp_path)) == direct
    assert al.Claim.from_yaml(written(tmp_path)).digest() == direct.digest()
    assert hash(direct) == hash(al.Claim(**FIELDS))


def test_a_claim_cannot_be_changed_and_any_field_changes_its_hash(tmp_path):
    claim = al.Claim(**FIELDS)
    with pytest.raises(ValueError, match="frozen"):
        claim.smallest_effect = 0.2
    changes = [
        {"smallest_effect": 0.2},
        {"seeds": 5},
        {"alpha": 0.01},
        {"setup": {"steps": 11}},
        {"statement": "x"},
    ]
    digests = {al.Claim(**{**FIELDS, **change}).digest() for change in changes}
    assert len(digests | {claim.digest()}) == len(changes) + 1


def test_seeds_may_be_a_number_a_range_or_a_list():
    for seeds in (4, range(4), [0, 1, 2, 3], (0, 1, 2, 3), np.arange(4), np.int64(4)):
        assert al.Claim(**{**FIELDS, "seeds": seeds}).seeds == (0, 1, 2, 3)


def test_a_setup_of_numpys_numbers_has_the_hash_of_the_numbers_that_they_are():
    setup = {"hidden": np.array([4]), "steps": np.int64(10)}
    assert al.Claim(**{**FIELDS, "setup": setup}).digest() == al.Claim(**FIELDS).digest()


def test_arms_share_everything_but_the_rule():
    claim = al.Claim(**{**FIELDS, "treatment": {"rule": "fa", "rule_args": {"init": "xavier"}}})
    ours, theirs = (claim.spec(arm, 3).model_dump() for arm in (claim.treatment, claim.baseline))
    assert {key for key in ours if ours[key] != theirs[key]} == {"rule", "rule_args"}


BAD = [
    ({"smallest_effect": 0}, "smallest_effect"),
    ({"outcome": "train_joy"}, "train_joy"),
    ({"outcome": "test_accuracy"}, "higher is better"),
    ({"seeds": [1]}, "at least two"),
    ({"seeds": [1, 1]}, "all different"),
    ({"seeds": [0, -1]}, "seeds is [0, -1]: every seed"),
    ({"seeds": [0, 2**64]}, "seeds"),
    ({"seeds": [True, False]}, "seeds is (True, False): expected a number"),
    ({"smallest_effect": True}, "smallest_effect is True: expected a number"),
    ({"alpha": 0.5}, "alpha"),
    ({"alpha": 0.0}, "alpha"),
    ({"task": "minst"}, "mnist"),
    ({"treatment": {"rule": "fab"}}, "'fa'"),
    ({"treatment": {"rule": "sign_sync", "rule_args": {"period": 0}}}, "period"),
    ({"setup": {"stepz": 3}}, "stepz"),
    ({"setup": {"seed": 3}}, "set by the claim"),
    ({"controls": ["magnitude", "magic"]}, "magic"),
    ({"learning_rates": [0.1, 0.01, 0.001]}, "rising order"),
    ({"source_": "me"}, "did you mean 'source'"),
]


@pytest.mark.parametrize(("changes", "named"), BAD, ids=lambda value: str(value)[:30])
def test_a_bad_claim_is_one_clear_line(changes, named, tmp_path):
    with pytest.raises(SpecError) as error:
        al.Claim.from_yaml(written(tmp_path, **changes))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("changes", "named"), BAD, ids=lambda value: str(value)[:30])
def test_python_complains_in_the_same_line_as_yaml(changes, named, tmp_path):
    with pytest.raises(SpecError) as error:
        al.Claim(**{**FIELDS, **changes})
    with pytest.raises(SpecError) as of_yaml:
        al.Claim.from_yaml(written(tmp_path, **changes))
    assert str(of_yaml.value).endswith(str(error.value))


def test_an_arm_complains_in_one_line_too():
    with pytest.raises(SpecError, match=r"^lr is -1: .*$"):
        al.Arm(rule="bp", lr=-1)
    with pytest.raises(SpecError, match="did you mean 'rule_args'"):
        al.Arm(rule="bp", rule_arg={})
