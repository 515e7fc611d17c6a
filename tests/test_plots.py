"""Pictures show what was run: the right curves, the same colors, nothing hidden or lost."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import same_color

from games import MatrixGame, PreferenceGame, zoo
from solvers import RULES, compare, get_rule, plots, style
from tests.strategies import random_game, random_policy

RPS = zoo.get("rps")
SKEWED = random_policy(0, 3)


def run_of(game, name="gmmd", reference=None, keep=False, steps=60, tol=0.0, **settings):
    return compare.run(
        game, get_rule(name, **settings), reference=reference, steps=steps, tol=tol,
        keep_policies=keep,
    )  # fmt: skip


def boxes(figure, artists):
    figure.draw_without_rendering()
    return [artist.get_window_extent() for artist in artists]


def test_every_rule_has_its_own_look():
    assert RULES.keys() <= style.RULES.keys()
    looks = [*style.RULES.values(), *style.OTHERS]
    assert len(set(looks)) == len(looks)
    assert len({color for color, _ in looks}) == len(looks)
    assert style.of_rule("mmd") == {"color": "#56B4E9", "marker": "D"}
    assert style.of_rule("mine", 1) != style.of_rule("mine", 0)


def test_drawing_leaves_the_callers_style_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    figure = plots.comparison(compare.compare(RPS, ["mmd"], steps=5), "title")
    plots.save(figure, tmp_path / "picture.png")
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context():
        style.use()
        assert matplotlib.rcParams["axes.titlelocation"] == "left"


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?")]
)
def test_formats(tmp_path, ending, start):
    figure = plots.run(RPS, run_of(RPS, reference=SKEWED), "title")
    plots.save(figure, tmp_path / f"picture.{ending.upper()}")
    assert (tmp_path / f"picture.{ending.upper()}").read_bytes().startswith(start)


def test_a_comparison_shows_each_run_and_each_bound():
    game, mu = random_game(1, 4), random_policy(1, 4)
    runs = compare.compare(game, reference=mu, steps=50, tol=0)
    played = [run for run in runs if isinstance(run, compare.Run)]
    figure = plots.comparison(runs, "title")
    last, average, kl, key = figure.axes
    assert len(last.lines) == len(average.lines) == len(played)
    bounded = [run for run in played if run.bound is not None]
    assert {run.label for run in bounded} == {"gmmd", "mmd", "nash_md", "egpo"}
    dashed = [line for line in kl.lines if line.is_dashed() and len(line.get_xdata()) == 50]
    assert sum(line.get_marker() == "None" for line in dashed) == len(bounded)
    for run, line in zip(played, last.lines, strict=True):
        assert same_color(line.get_color(), style.RULES[run.rule.name][0])
        assert np.array_equal(line.get_ydata(), run.solution.history.gap[1:])
    labels = [text.get_text() for text in key.get_legend().get_texts()]
    assert [label.split("  ")[0] for label in labels[:-1]] == [run.label for run in played]
    assert "bound" in labels[-1]
    # Fictitious play's last iterate is a pure action: it has no KL curve, and the key says so.
    assert [label.split("  ")[0] for label in labels if "KL infinite" in label] == [
        "fictitious_play"
    ]


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("regularizer", ["reverse_kl", "0.1*forward_kl+0.5*reverse_kl"])
def test_the_key_of_a_comparison_fits(copies, regularizer):
    """However many the rules and long the names; each entry says that there is no curve."""
    runs = compare.compare(RPS, steps=3, regularizer=regularizer)
    figure = plots.comparison(runs * copies, "title")
    key = figure.axes[3]
    (legend,) = boxes(figure, [key.get_legend()])
    assert figure.bbox.y0 <= legend.y0
    assert legend.x1 <= figure.bbox.x1
    widths = [axes.bbox.width for axes in figure.axes]
    assert widths == pytest.approx([widths[0]] * 4)  # the key takes no room from the panels
    assert widths[0] > 0.4 * figure.bbox.width
    assert legend.y1 <= key.bbox.y1 + 1


def test_the_bound_is_drawn_above_what_it_bounds():
    run = run_of(random_game(2, 5), reference=random_policy(2, 5))
    _, kl = plots.run(random_game(2, 5), run, "title").axes
    curve, bound = kl.lines
    assert bound.is_dashed()
    # Both start from the same KL; 1e-9 is the accuracy of the equilibrium.
    assert (curve.get_ydata() <= bound.get_ydata() + 1e-9).all()


def test_a_batch_shows_its_largest():
    game = PreferenceGame(np.stack([random_game(3, 3).payoff, random_game(4, 3).payoff]))
    run = run_of(game, keep=True)
    gap, kl = plots.run(game, run, "title").axes
    assert np.array_equal(gap.lines[0].get_ydata(), run.solution.history.gap[1:].max(axis=1))
    assert np.array_equal(kl.lines[0].get_ydata(), run.kl[1:].max(axis=1))


def test_three_actions_have_a_path_on_the_triangle():
    run = run_of(RPS, reference=SKEWED, keep=True, steps=300, tau=0.2)
    figure = plots.run(RPS, run, "title")
    axes = figure.axes[2]
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    start = np.exp(SKEWED) @ plots.CORNERS
    # Exponentials of logarithms: rounding.
    assert lines[plots.PI][0] == pytest.approx(start, abs=1e-15)
    assert lines[r"reference $\mu$ = start"][0] == pytest.approx(start, abs=1e-15)
    star = run.equilibrium.policy @ plots.CORNERS
    assert lines[r"equilibrium $\pi^*$"][0] == pytest.approx(star, abs=1e-15)
    assert lines["last iterate"][0] == pytest.approx(run.solution.policy @ plots.CORNERS)
    # Steps that were recorded one by one are joined, later ones are points.
    assert len(lines[plots.PI]) == 129
    # The key stays left of the triangle: y > √3 x at the lower right of each line of it.
    for box in boxes(figure, axes.get_legend().get_texts()):
        x, y = axes.transData.inverted().transform((box.x1, box.y0))
        assert y > math.sqrt(3) * x


def test_level_curves_are_those_of_the_gap():
    run = run_of(RPS, "mwu", reference=SKEWED, keep=True, eta=0.1)
    axes = plots.run(RPS, run, "title").axes[2]
    (contours,) = axes.collections
    game = zoo.get("biased_rps")
    levels = contours.levels
    assert levels[1:] / levels[:-1] == pytest.approx(2)
    # The gap of pure rock, 2(1 − ½), is the largest there is.
    assert levels[-1] == pytest.approx(1)
    inner = contours.get_paths()[0].vertices
    weights = np.linalg.solve(
        np.vstack([plots.CORNERS.T, np.ones(3)]), np.vstack([inner.T, np.ones(len(inner))])
    )
    gaps = 2 * (RPS.payoff @ weights - 0.5).max(axis=0)
    # The gap is linear within the triangles but for those that a crease crosses, of side 1/120.
    assert gaps == pytest.approx(levels[0], abs=2 / 120)
    assert game.labels == ("rock", "paper", "scissors")


def test_a_zero_sum_game_shows_the_row_player():
    game = MatrixGame([[1.0, 0.0], [0.0, 2.0], [0.5, 0.5]], ("a", "b", "c"))
    run = run_of(game, keep=True)
    axes = plots.run(game, run, "title").axes[2]
    assert [text.get_text() for text in axes.texts] == ["a", "b", "c"]
    assert not axes.collections


@pytest.mark.parametrize(
    ("game", "name", "reference", "panel", "reason"),
    [
        (RPS, "gmmd", None, 0, "0: the start is the equilibrium"),
        (RPS, "fictitious_play", SKEWED, 1, "infinite"),
        (PreferenceGame(np.full((3, 3), 0.5)), "mwu", SKEWED, 1, "one of many equilibria"),
    ],
)
def test_an_empty_panel_says_why(game, name, reference, panel, reason, tmp_path):
    settings = {"eta": 1.0} if name == "mwu" else {}
    figure = plots.run(game, run_of(game, name, reference, **settings), "title")
    assert reason in figure.axes[panel].texts[0].get_text()
    plots.save(figure, tmp_path / "picture.png")  # an empty panel has no log axis to complain of


def test_axes_span_more_than_a_decade():
    """A curve that hardly moves is drawn flat, not magnified."""
    run = run_of(RPS, "mwu", reference=SKEWED, eta=1e-3, steps=10)
    figure = plots.run(RPS, run, "title")
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert math.log10(high / low) > 1.4
