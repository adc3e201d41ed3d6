"""The pages: they say what the result says, number by number, and need nothing but themselves."""

import base64
import dataclasses
import hashlib
import json
import os
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from known_bench import CLAIM

import alignlab as al
from alignlab.audit.decomposition import told
from alignlab.report import audit_page, run_page
from alignlab.store.shaping import as_runs
from alignlab.testing.synthetic import synthetic_run, synthetic_runs

VOID = {"meta", "img", "br"}
STATEMENT = 'signs <beat> "backprop" & all'
PICTURES = {"forest": b"<svg>1</svg>", "angles": b"<svg>2</svg>"}


class Page(HTMLParser):
    """A page read as a browser does: text, sources, and whether every tag was closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    changes = {
        "statement": STATEMENT,
        "source": "somebody's",
        "treatment": al.Arm(rule="sign_sync", rule_args={"period": 10}),
        "setup": {"hidden": (10, 10), "lr": 0.03, "batch_size": 4, "steps": 40, "record_every": 10},
        "controls": ("magnitude", "placebo"),
    }
    claim = CLAIM.model_copy(update=changes)
    return al.audit(claim, store=tmp_path_factory.mktemp("report") / "store")


@pytest.fixture(scope="module")
def html(result):
    return audit_page(result)


def test_an_audits_page_says_what_its_table_says(result, html):
    text = Page(html).text
    assert str(result.verdict) in text
    assert result.verdict.text in text
    for caveat in result.verdict.caveats:
        assert caveat in text
    for check in result.evidence.checks:
        assert f"{check.name}: {check.detail}" in text
    for line in result.table().splitlines()[2 : 2 + len(result.evidence.rows())]:
        for part in re.split(r"\s{2,}", line):
            assert part in text, part


def test_an_audits_page_gives_absolute_effects_and_their_shares(result, html):
    text, parts = Page(html).text, result.decomposition()
    assert len(parts) == 3
    for part in parts:
        effect = part.effect
        interval = f"[{effect.low:+.3g}, {effect.high:+.3g}]"
        assert f"{part.label} {effect.estimate:+.3g} {interval} {effect.n} {part}".strip() in text
    assert told(parts, result.evidence.total) in text
    alone = al.audit(result.claim, [al.controls.Placebo()], store=result.store)
    assert "made of" not in Page(audit_page(alone, PICTURES)).text


def test_an_audits_page_gives_each_groups_outcomes(result, html):
    text = Page(html).text
    values = np.array(result.outcomes["treatment"])
    numbers = (values.mean(), values.std(ddof=1), values.min(), values.max())
    assert " ".join([f"sign_sync, as claimed {len(values)}", *(f"{x:.4g}" for x in numbers)]) in text
    assert result.claim.digest() in text


def test_an_audits_page_names_the_controls_that_were_applied(result):
    alone = al.audit(result.claim, [al.controls.Placebo()], store=result.store)
    assert alone.claim.controls == ("magnitude", "placebo")
    assert alone.to_dict()["controls"] == ["placebo"]
    assert "controls placebo alpha" in Page(audit_page(alone, PICTURES)).text
    assert "controls magnitude, placebo alpha" in Page(audit_page(result, PICTURES)).text


def test_an_audits_page_counts_a_run_once_that_stands_in_several_groups(result):
    twice = {
        name: {**getattr(result, name), "again": getattr(result, name)["treatment"]}
        for name in ("runs", "outcomes", "kinds", "arms")
    }
    count = sum(map(len, result.runs.values()))
    for one in (result, dataclasses.replace(result, **twice)):
        assert f"runs {count} in {result.store}" in Page(audit_page(one, PICTURES)).text


def test_a_page_needs_nothing_but_itself(html):
    page = Page(html)
    assert len(page.sources) >= 4
    for source in page.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert b"</svg>" in base64.b64decode(data)
    assert not {"script", "link", "iframe"} & page.tags


def test_what_a_claim_says_is_text_and_no_markup(html):
    assert "<beat>" not in html
    assert STATEMENT in Page(html).text


def test_the_claim_on_a_page_can_be_hashed_again_by_anyone(result, html):
    claim = json.loads(unescape(re.search(r"<pre>(.*?)</pre>", html, re.DOTALL)[1]))
    digest = hashlib.sha256(json.dumps(claim, sort_keys=True).encode()).hexdigest()[:16]
    assert digest == result.to_dict()["claim_hash"]
    assert claim["statement"] == STATEMENT


@pytest.mark.skipif(os.name == "nt", reason="has no names that are no text")
def test_a_store_whose_name_is_no_text_has_a_page(result):
    """As of a folder that was made under another locale."""
    page = audit_page(dataclasses.replace(result, store=Path(os.fsdecode(b"runs/caf\xe9"))), PICTURES)
    assert b"runs/caf\xef\xbf\xbd" in page.encode()


def test_figures_that_are_drawn_already_are_taken_as_they_are(result):
    page = Page(audit_page(result, PICTURES))
    assert [base64.b64decode(source.partition(",")[2]) for source in page.sources] == list(PICTURES.values())


def test_a_page_of_runs_gives_how_each_ended():
    runs = synthetic_runs(steps=20)
    text = Page(run_page(runs, {})).text
    last = runs["train_loss"].isel(run=0)
    ended = float(last.values[np.isfinite(last.values)][-1])
    assert f"{ended:.4g}" in text
    assert f"alignlab · {runs.sizes['run']} runs" in text
    assert "None: nothing that can be drawn was recorded." in text


def test_what_each_layer_has_is_no_outcome_of_a_run():
    """A user's reconstruction_loss of each layer stood as one value, the last layer's."""
    run = synthetic_run("fa", steps=20)
    run["reconstruction_loss"] = run["feedback_gain"]
    for data in (run, run.expand_dims("run")):
        page = Page(run_page(data, pictures={})).text
        assert "train loss" in page
        assert "reconstruction loss" not in page


def test_a_page_of_runs_speaks_of_no_search_for_a_rate():
    """Its runs at several rates were said to be "the search for each arm's learning rate, on seeds of its own"."""
    page = Page(run_page(synthetic_runs(lrs=(0.01, 0.1, 0.3)), pictures={"loss_against_lr": b"<svg/>"})).text
    assert "How runs ended at each learning rate" in page
    assert "search" not in page


def test_a_page_of_one_run_draws_what_it_holds():
    page = Page(run_page(synthetic_run(steps=20)))
    assert len(page.sources) >= 3
    assert "alignlab · run" in page.text


def test_a_page_says_what_could_not_be_drawn():
    page = Page(run_page(synthetic_run(steps=20, layers=45)))
    assert "No spectra:" in page.text
    assert "Train loss over training." in page.text


def test_a_page_of_very_many_runs_shows_the_first_and_says_so():
    one = synthetic_run(steps=5)
    many = xr.concat([one.assign_coords(seed=seed) for seed in range(60)], "run")
    page = Page(run_page(many, {}))
    assert "The first 40 of 60 runs." in page.text
    assert "0, 1, …, 59" in page.text


def test_a_page_of_runs_tells_them_apart_and_counts_those_that_diverged():
    one = synthetic_run(steps=5)
    cells = [("[4]", 0, "finished"), ("[9]", 0, "diverged"), ("[9]", 1, "finished")]
    many = xr.concat(
        [
            one.assign_coords(spec=f"rule: fa\nhidden: {hidden}\n", seed=seed, status=status)
            for hidden, seed, status in cells
        ],
        "run",
    )
    text = Page(run_page(many.assign_coords(optimizer=("run", ["SGD()", "Adam()", "Adam()"])), {})).text
    assert "optimizer Adam(), SGD()" in text
    assert "hidden [4], [9]" in text
    assert "status 1 diverged, 2 finished" in text
    assert "The spec of the first run" in text
    assert re.search(r"\[9\] 0 diverged .*\[9\] 1 finished", text)


def test_the_spec_shown_is_that_of_the_tables_first_run_and_stands_once():
    one = synthetic_run(steps=5)
    specs = [f"hidden: [{width}]\nlr: 0.05\n" for width in (9, 4)]
    many = xr.concat([one.assign_coords(spec=spec, seed=1) for spec in specs], "run")
    text = Page(run_page(many, {})).text
    assert re.search(r"test accuracy fa 0\.05 \[4\] 1 ", text)
    assert "The spec of the first run hidden: [4] lr: 0.05" in text
    alone = Page(run_page(one.assign_attrs(spec=specs[0]), {})).text
    assert alone.count("hidden: [9]") == 1


def test_a_page_of_recorded_loops_tells_runs_apart_by_what_their_recorders_were_told():
    one = synthetic_run(steps=5)
    many = xr.concat([one.assign_coords(seed=s, noise=noise) for noise in (0.5, 0.0) for s in (0, 1)], "run")
    text = Page(run_page(many, {})).text
    assert "lr 0.05 noise 0, 0.5 seed 0, 1" in text
    assert re.search(r"fa 0\.05 0 0 .*fa 0\.05 0 1 .*fa 0\.05 0\.5 0 ", text)
    assert "differing" not in Page(run_page(as_runs(many), {})).text


def test_a_page_of_runs_of_which_some_lack_a_coordinate_tells_so():
    one = synthetic_run(steps=5).drop_vars("rule")
    many = xr.concat([one.assign_coords(seed=seed) for seed in (0, 1)], "run")
    lacking = many.assign_coords(rule=("run", np.array(["fa", None], object)))
    text = Page(run_page(lacking, {})).text
    assert "fa, none on mnist_small" in text
    assert re.search(r"fa 0\.05 0 .*none 0\.05 1 ", text)


def test_a_recorded_loop_without_spec_or_end_has_a_page():
    run = xr.Dataset(
        {"loss": ("step", [1.0, np.nan]), "train_loss": ("step", [np.nan, np.nan])}, {"step": [0, 1]}
    )
    text = Page(run_page(run, {})).text
    assert "Recorded runs" in text
    assert "loss 1 train loss –" in text
    assert "recorded from a loop of the user's own" in text


@pytest.mark.parametrize(("nothing", "lacks"), [
    (xr.Dataset(), "no variable"),
    (xr.Dataset(coords={"run": [0, 1]}), "no variable"),
    (synthetic_runs().isel(run=slice(0, 0)), "no run"),
])  # fmt: skip
def test_a_dataset_without_a_run_has_no_page(nothing, lacks):
    with pytest.raises(ValueError, match=f"nothing to show: the dataset holds {lacks}"):
        run_page(nothing)


def test_on_a_narrow_screen_words_of_tables_stay_whole_and_verdicts_break():
    """Tables that scroll broke their first column into syllables, and a verdict of several controls left its box."""
    style = run_page(synthetic_run()).split("<style>")[1].split("</style>")[0]
    assert ".wide td { overflow-wrap: normal; }" in style
    anywhere = next(line for line in style.splitlines() if "overflow-wrap: anywhere" in line)
    assert ".verdict b" in anywhere
