"""Figures on disk: whole or not there, and the same bytes each time."""

import os
import stat

import matplotlib
import pytest

from alignlab import figures


@pytest.fixture(scope="module")
def figure():
    from alignlab.testing.synthetic import synthetic_run

    return figures.learning_curves(synthetic_run(steps=20, layers=1))


def test_a_figure_is_written_as_png_and_svg_in_a_new_folder(figure, tmp_path):
    paths = figures.save(figure, tmp_path / "a" / "curves.v2")
    assert [path.name for path in paths] == ["curves.v2.png", "curves.v2.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in paths[1].read_bytes()


def test_who_may_read_a_figure_follows_from_the_umask(figure, tmp_path):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            (path,) = figures.save(figure, tmp_path / "private", "png")
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_same_figure_gives_the_same_bytes(figure, tmp_path):
    one, other = (figures.save(figure, tmp_path / name) for name in ("one", "other"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_the_users_settings_of_saving_change_no_byte(figure, tmp_path):
    users = {
        "savefig.bbox": "tight",
        "savefig.transparent": True,
        "savefig.facecolor": "red",
        "savefig.dpi": 30,
    }
    plain = figures.save(figure, tmp_path / "plain")
    with matplotlib.rc_context(users | {"savefig.edgecolor": "red"}):
        others = figures.save(figure, tmp_path / "others")
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in others]


def test_all_formats_of_a_figure_have_one_layout(tmp_path, monkeypatch):
    from alignlab.testing.synthetic import synthetic_run

    drawn, places = figures.gains(synthetic_run(steps=20, layers=2)), []
    real, layout = drawn.savefig, drawn.get_layout_engine()

    def saved(*args, **settings):
        real(*args, **settings)
        places.append([axes.get_position().bounds for axes in drawn.axes])

    monkeypatch.setattr(drawn, "savefig", saved)
    figures.save(drawn, tmp_path / "gains", ["png", "svg", "pdf"])
    assert places[0] == places[1] == places[2]
    assert drawn.get_layout_engine() is layout


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(figure, tmp_path, monkeypatch):
    (tmp_path / "curves.png").write_bytes(b"old")

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        figures.save(figure, tmp_path / "curves", ["png"])
    assert os.listdir(tmp_path) == ["curves.png"]
    assert (tmp_path / "curves.png").read_bytes() == b"old"


def test_a_file_gets_its_name_in_one_step_when_it_is_whole(figure, tmp_path, monkeypatch):
    (tmp_path / "curves.png").write_bytes(b"old")

    def stopped(temporary, target):
        with open(temporary, "rb") as file:
            assert file.read().endswith(b"IEND\xaeB`\x82")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        figures.save(figure, tmp_path / "curves", ["png"])
    assert os.listdir(tmp_path) == ["curves.png"]
    assert (tmp_path / "curves.png").read_bytes() == b"old"


def test_an_unknown_format_is_an_error_before_anything_is_written(figure, tmp_path):
    with pytest.raises(ValueError, match=r"cannot write a figure as 'docx'; choose from .*png"):
        figures.save(figure, tmp_path / "x" / "curves", ["png", "docx"])
    assert not (tmp_path / "x").exists()


def test_drawing_and_saving_leave_the_users_settings_alone(figure, run, tmp_path):
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red", "svg.hashsalt": "mine"}):
        before = dict(matplotlib.rcParams)
        drawn = figures.learning_curves(run)
        figures.save(drawn, tmp_path / "curves", ["svg"])
        assert dict(matplotlib.rcParams) == before
        assert drawn.axes[0].yaxis.label.get_size() == 9
        assert drawn.axes[0].get_facecolor() == (1, 1, 1, 1)


def test_formats_may_come_one_by_one_and_none_is_an_error(figure, tmp_path):
    paths = figures.save(figure, tmp_path / "a", (ending for ending in ("png", "svg")))
    assert [path.is_file() for path in paths] == [True, True]
    with pytest.raises(ValueError, match=r"no format to write .* give some, png or svg"):
        figures.save(figure, tmp_path / "a", [])


def test_a_single_format_is_a_word(figure, tmp_path):
    assert figures.save(figure, tmp_path / "curves", "svg") == [tmp_path / "curves.svg"]


def test_a_path_that_ends_in_a_format_is_that_file(figure, tmp_path):
    assert figures.save(figure, tmp_path / "curves.pdf") == [tmp_path / "curves.pdf"]
    assert figures.save(figure, tmp_path / "curves.pdf", "pdf") == [tmp_path / "curves.pdf"]
    both = figures.save(figure, tmp_path / "curves.png", ["png", "svg"])
    assert both == [tmp_path / "curves.png", tmp_path / "curves.svg"]


def test_letters_in_a_pdf_are_of_a_type_that_journals_take_and_its_bytes_the_same_each_time(figure, tmp_path):
    one, other = (figures.save(figure, tmp_path / f"{name}.pdf", "pdf")[0].read_bytes() for name in "ab")
    assert b"/Type3" not in one
    assert b"/CIDFontType2" in one
    assert one == other
