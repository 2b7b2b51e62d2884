"""Plots: what is drawn is what was given, on the Axes given, and looks as it did.

`python -m tests.unit.test_plots` draws tests/plots_baseline again; look at them before committing.
"""

import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from PIL import Image, ImageFilter  # noqa: E402

import minicore as mc  # noqa: E402
from minicore import CoreSet, InputError, plots, sentence_core, token_core  # noqa: E402
from minicore.core.stability import prefix_counts, stability_curve  # noqa: E402
from minicore.plots import axes as shared  # noqa: E402
from minicore.plots.activations import grid_shape  # noqa: E402
from minicore.plots.text import around, columns  # noqa: E402
from minicore.projection import pca  # noqa: E402
from tests.helpers import GOLDEN, TESTS, run_python

BASELINE = TESTS / "plots_baseline"
BLUR = 6  # pixels: letters fall a pixel aside with another matplotlib or FreeType
TOLERANCE = 5  # root mean square of 0 to 255 between blurred pictures
TEXT = [
    "The",
    " cat",
    " sat",
    " on",
    " the",
    " mat",
    ".",
    "\n",
    "It",
    " cost",
    " $5",
    ",",
    " or",
    " 日本",
    ".",
]


@pytest.fixture(autouse=True)
def no_figure_stays():
    yield
    plt.close("all")


@pytest.fixture
def ax():
    with plt.style.context("default"):
        yield plt.figure(figsize=(4, 3)).subplots()


def activations(n_tokens=24, n_neurons=64, seed=0, topic=0):
    """Return activations some of whose neurons are busier than others, by topic."""
    busy = np.random.default_rng(100 + topic).gamma(0.4, 1.5, n_neurons)
    return np.random.default_rng(seed).normal(busy - 0.5, 1, (n_tokens, n_neurons))


def core_sets(n_topics=3, n_each=4, n_layers=2, n_neurons=64):
    sets, labels = [], []
    for topic in range(n_topics):
        for i in range(n_each):
            neurons = {
                layer: sentence_core(
                    activations(seed=99 * topic + 9 * i + layer, topic=9 * topic + layer), 0.4, 0.3
                )
                for layer in range(n_layers)
            }
            sets.append(CoreSet(neurons, n_neurons, n_layers))
            labels.append(["sport", "law", "cooking"][topic])
    return sets, labels


def shift_masks():
    """Return the cores of a sliding window over a text that changes its topic at token 64."""
    a = np.concatenate([activations(64, 90, 1, 1), activations(64, 90, 2, 2)])
    ends = np.arange(16, 129, 8)
    steps = np.zeros((len(ends), 90), bool)
    for step, end in zip(steps, ends, strict=True):
        step[sentence_core(a[max(0, end - 32) : end], 0.4, 0.3)] = True
    return steps, ends


KEPT = np.array([0.2, 0.4, 0.6, 0.8])
CURVES = {
    name: np.stack([KEPT, y := 1 + worst * (1 - KEPT) ** 6, 0.9 * y, 1.15 * y], axis=1)
    for name, worst in (("stability", 9000), ("griffin", 300), ("static", 250), ("oracle", 60))
}
LENGTHS = np.arange(10, 201, 10)


def layer_curves():
    return np.stack([stability_curve(activations(200, 90, seed), 0.4, 0.3, LENGTHS) for seed in range(5)])


def pairs(n=60):
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 5, n)
    return x, 0.1 + 0.06 * x + rng.normal(0, 0.05, n)


PAPER_SPEEDS = {"Transformers": [34.7, 23.5, 3.6], "CoreInfer": [57.2, 33.6, np.nan]}
MODELS = ["LLaMA2-7B", "OPT-30B", "OPT-66B"]
KERNELS = {"gemv float32": (0.5, 9.0), "gemv int8": (2.0, 30.0), "prefill": (40.0, 110.0)}


def report(beta=0.4):
    """Return the part of a benchmark's report that is drawn."""

    def spread(x):
        return {"median": x, "q1": 0.9 * x, "q3": 1.1 * x, "rounds": [x]}

    return {
        "model": "tiny",
        "bandwidth": [{"n_threads": n, "gb_per_s": spread(10.0 * n)} for n in (1, 2)],
        "decode": [
            {"dtype": "int8", "beta": b, "n_threads": n, "context": c, "bytes_per_token": 1e8 * (b or 1)}
            | {"tokens_per_s": spread(80.0 * n / (b or 1))}
            for c in (64, 512)
            for n in (1, 2)
            for b in (None, beta)
        ],
    }


# Every plot, with what it takes: (name, what draws it on an ax).
DRAWN = {
    "activation_map": lambda ax: plots.activation_map(
        activations()[: len(TEXT)], TEXT, most=16, core=token_core(activations()[: len(TEXT)], 0.2), ax=ax
    ),
    "frequency_grid": lambda ax: plots.frequency_grid(
        prefix_counts(activations(60, 256), 0.4, [60])[0],
        60,
        core=sentence_core(activations(60, 256), 0.4, 0.1),
        ax=ax,
    ),
    "text_activations": lambda ax: plots.text_activations(
        TEXT, activations()[: len(TEXT), 3], width=28, ax=ax
    ),
    "top_snippets": lambda ax: plots.top_snippets(
        [TEXT, TEXT[::-1]], np.abs(activations()[: 2 * len(TEXT) : 2, :2][:12].repeat(2, 0)[: len(TEXT)]).T,
        n=4, width=40, ax=ax,
    ),
    "overlap_matrix": lambda ax: plots.overlap_matrix(core_sets(2, 3)[0], ax=ax),
    "stability_curves": lambda ax: plots.stability_curves(LENGTHS, layer_curves(), ax=ax),
    "coordinates_over_length": lambda ax: plots.coordinates_over_length(
        prefix_counts(activations(200, 90), 0.4, LENGTHS) / LENGTHS[:, None], LENGTHS, ax=ax
    ),
    "timeline": lambda ax: plots.timeline(*shift_masks(), shifts=[64], ax=ax),
    "embedding": lambda ax: plots.embedding(*core_sets(), ax=ax),
    "quality_curves": lambda ax: plots.quality_curves(CURVES, ax=ax),
    "similarity_scatter": lambda ax: plots.similarity_scatter(*pairs(), ax=ax),
    "bars": lambda ax: plots.bars(
        PAPER_SPEEDS, MODELS, intervals={"CoreInfer": [[50, 60], [33, 35], [np.nan, np.nan]]}, ax=ax
    ),
    "roofline": lambda ax: plots.roofline(KERNELS, {"memory": 20, "L2": 90}, 150, ax=ax),
    "decode_speed": lambda ax: plots.decode_speed(report(), ax=ax),
}  # fmt: skip
DARK_TOO = ("activation_map", "text_activations", "timeline", "quality_curves")
PICTURES = [(name, "default") for name in DRAWN] + [(name, "dark_background") for name in DARK_TOO]


def picture(name, style, path):
    """Draw a plot on a small figure with all fixed that a user may have set, the place of the axes too.

    A layout engine would move them by the pixels that a label is wider with another FreeType.
    """
    with plt.style.context(["default", style]):
        matplotlib.rcParams["font.family"] = ["DejaVu Sans"]
        figure = plt.figure(figsize=(5, 3.4), dpi=70)
        DRAWN[name](figure.add_axes((0.16, 0.2, 0.8, 0.68)))
        figure.savefig(path, metadata={"Software": None})
        plt.close(figure)
    return path


def baseline(name, style):
    return BASELINE / f"{name}{'_dark' if style == 'dark_background' else ''}.png"


def apart(one, other):
    """Return the root mean square difference of two pictures, blurred."""
    filters = ImageFilter.BoxBlur(BLUR)
    a, b = (np.asarray(Image.open(path).convert("RGB").filter(filters), float) for path in (one, other))
    assert a.shape == b.shape
    return np.sqrt(np.mean((a - b) ** 2))


# --- pictures ---


@pytest.mark.parametrize(("name", "style"), PICTURES)
def test_pictures_are_as_they_were(name, style, tmp_path):
    drawn = picture(name, style, tmp_path / "drawn.png")
    assert apart(drawn, baseline(name, style)) <= TOLERANCE


def test_a_picture_of_other_data_is_told_apart(tmp_path, monkeypatch):
    changed = {name: 3 * rows * [1 / 3, 1, 1, 1] for name, rows in CURVES.items()}
    monkeypatch.setitem(DRAWN, "quality_curves", lambda ax: plots.quality_curves(changed, ax=ax))
    monkeypatch.setitem(DRAWN, "embedding", lambda ax: plots.embedding(*core_sets(2), ax=ax))
    monkeypatch.setitem(DRAWN, "overlap_matrix", lambda ax: plots.overlap_matrix(core_sets(3, 2)[0], ax=ax))
    for name in ("quality_curves", "embedding", "overlap_matrix"):
        drawn = picture(name, "default", tmp_path / f"{name}.png")
        assert apart(drawn, baseline(name, "default")) > TOLERANCE


def test_baselines_are_small():
    sizes = [path.stat().st_size for path in BASELINE.glob("*.png")]
    assert len(sizes) == len(PICTURES) and max(sizes) < 40_000 and sum(sizes) < 500_000


# --- what all have in common ---


def test_every_public_plot_is_tested():
    assert set(DRAWN) == set(plots.__all__) - {"new_axes", "check_format", "save"}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_on_the_axes_given_and_shows_nothing(name, ax, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("show was called"))
    assert DRAWN[name](ax) is ax
    assert plt.get_fignums() == [ax.figure.number]
    assert ax.has_data()


@pytest.mark.parametrize("name", DRAWN)
def test_makes_a_figure_where_none_is_given(name):
    ax = DRAWN[name](None)
    ax.figure.canvas.draw()
    labels = [ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), ax.get_title("left")]
    labels += [label for inner in ax.child_axes for label in (inner.get_xlabel(), inner.get_ylabel())]
    assert any(labels), "nothing says what is drawn"


@pytest.mark.parametrize("style", ["default", "dark_background", "Solarize_Light2"])
@pytest.mark.parametrize("name", DRAWN)
def test_text_is_readable_on_its_background(name, style):
    """All text outside cells and bars differs from the background by at least 3 to 1 (WCAG 2.2, 1.4.11)."""
    with plt.style.context(["default", style]):
        ax = DRAWN[name](None)
        behind = shared.luminance(shared.background(ax))
    words = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()]
    words += ax.get_legend().get_texts() if ax.get_legend() else []
    for inner in ax.child_axes:
        words += [inner.xaxis.label, inner.yaxis.label, *inner.get_yticklabels()]
    for word in words:
        light = shared.luminance(word.get_color())
        high, low = max(light, behind), min(light, behind)
        assert (high + 0.05) / (low + 0.05) >= 3, (word.get_text(), word.get_color())


def test_axes_of_a_dark_style_stay_dark_outside_of_it():
    with plt.style.context("dark_background"):
        ax = plots.new_axes()
    plots.quality_curves(CURVES, ax=ax)
    assert shared.is_dark(ax) and ax.lines[0].get_color() == shared.DARK[0]
    assert all(to_rgb(text.get_color()) == (1, 1, 1) for text in ax.get_legend().get_texts())


def test_transparent_axes_take_the_background_that_their_text_is_for():
    with plt.style.context("dark_background"):
        ax = plots.new_axes()
        ax.patch.set_alpha(0)
        ax.figure.patch.set_alpha(0)
        assert shared.is_dark(ax) and shared.background(ax) == (0, 0, 0)


def test_series_differ_in_more_than_colour():
    ax = plots.new_axes()
    looks = [tuple(shared.series_style(ax, i).values()) for i in range(32)]
    assert len(set(looks)) == 32
    assert len({colour for colour, *_ in looks}) == 8  # as many as the sample corpus has topics


@pytest.mark.parametrize(
    "palette",
    [(*shared.LIGHT, "#000000", shared.LAST_LIGHT), (*shared.DARK, "#ffffff", shared.LAST_DARK)],
)
def test_colours_are_told_apart_without_red_or_green_cones(palette):
    """Under protanopia and deuteranopia (Machado et al. 2009, severity 1) no two colours come close."""
    protan = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    deutan = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    linear = np.array([to_rgb(colour) for colour in palette]) ** 2.2
    for matrix in (protan, deutan):
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert apart[~np.eye(len(palette), dtype=bool)].min() > 0.1


def test_zero_is_the_background_and_maps_grow_away_from_it():
    for style in ("default", "dark_background"):
        with plt.style.context(style):
            ax = plots.new_axes()
            steps = [shared.luminance(c[:3]) for c in shared.sequential(ax)(np.linspace(0, 1, 50))]
            assert np.allclose(shared.sequential(ax)(0.0)[:3], shared.background(ax))
            assert np.allclose(shared.diverging(ax)(0.5)[:3], shared.background(ax), atol=0.02)
            growing = np.diff(steps) * (1 if shared.is_dark(ax) else -1)
            assert (growing > 0).all()


def test_nothing_of_matplotlib_comes_with_minicore():
    code = "import minicore, sys; assert 'matplotlib' not in sys.modules"
    run_python("-c", code, check=True)


def test_no_window_manager_knows_the_figure_where_pyplot_is_not_in_use(tmp_path):
    """As on the command line; in a notebook the figure is one of pyplot's, and is shown."""
    code = (
        "import sys; from minicore import plots; ax = plots.bars({'a': [1.0]}, ['x']); "
        f"plots.save(ax, {str(tmp_path / 'a.svg')!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    run_python("-W", "error", "-c", code, check=True)
    assert (tmp_path / "a.svg").stat().st_size > 1000
    assert plots.bars({"a": [1.0]}, ["x"]).figure.number in plt.get_fignums()


# --- what is drawn is what was given ---


def test_activation_map_draws_neurons_by_tokens(ax):
    a = activations(6, 64)
    plots.activation_map(a, TEXT[:6], neurons=[7, 3], core=token_core(a, 0.2), ax=ax, colorbar=False)
    assert np.array_equal(ax.images[0].get_array(), a[:, [7, 3]].T)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["7", "3"]
    dots = {(int(x), int(y)) for x, y in ax.collections[0].get_offsets()}
    assert dots == set(zip(*np.nonzero(token_core(a, 0.2)[:, [7, 3]]), strict=True))


def test_activation_map_shows_the_busiest_neurons(ax):
    a = np.zeros((3, 9))
    a[:, [8, 2, 5]] = [[1, -3, 2]]
    plots.activation_map(a, most=2, ax=ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2", "5"]
    assert "2 of 9" in ax.get_ylabel()
    image = ax.images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-3, 3)


def test_frequency_grid_draws_shares_and_whole_layers(ax):
    counts = np.arange(300)
    plots.frequency_grid(counts, 300, core=np.array([1, 17, 299]), ax=ax)
    image = ax.images[0].get_array()
    assert image.shape == (16, 16) and np.array_equal(image.ravel(), counts[:256] / 300)
    assert len(ax.collections[0].get_paths()) == 2  # neuron 299 is not in view
    whole = plots.frequency_grid(counts, None, None).images[0].get_array()
    assert np.array_equal(whole.ravel()[:300], counts)
    chosen = plots.frequency_grid(counts, None, [5, 9, 2]).images[0].get_array()
    assert list(chosen.compressed() if np.ma.is_masked(chosen) else chosen.ravel()[:3]) == [5, 9, 2]


@pytest.mark.parametrize("n", [1, 2, 7, 80, 256, 1536, 2048, 11008, 997])
def test_grids_hold_all_cells(n):
    n_rows, n_columns = grid_shape(n)
    assert n <= n_rows * n_columns < n + n_columns and n_rows <= n_columns <= 2 * n_rows


def test_text_keeps_its_order_and_lines(ax):
    values = np.arange(len(TEXT), dtype=float)
    plots.text_activations(TEXT, values, width=12, ax=ax)
    boxes = ax.collections[0]
    assert np.array_equal(boxes.get_array(), values)  # no token of it is longer than a line
    corners = np.array([path.vertices[0] for path in boxes.get_paths()])
    places = [(-round(y, 6), x) for x, y in corners]
    assert places == sorted(places) and corners[:, 0].max() < 12
    after_break = TEXT.index("\n") + 1
    assert corners[after_break, 0] == 0
    assert len(ax.patches) == len(TEXT)


def test_a_token_wider_than_the_line_is_cut_and_keeps_its_colour(ax):
    plots.text_activations(["x" * 30, "y"], [2.0, 1.0], width=12, ax=ax)
    assert np.array_equal(ax.collections[0].get_array(), [2, 2, 2, 1])


def test_dollars_and_what_the_font_lacks_are_written_without_a_warning(ax):
    text = ["$a", " b$", "\\frac", "\x00", "😀", "\t", "", "한국어"]
    plots.text_activations(text, np.ones(8), ax=ax)
    plots.activation_map(np.ones((8, 3)), text)
    ax.figure.canvas.draw()
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()


def test_snippets_begin_with_the_strongest_and_show_no_peak_twice(ax):
    tokens = [["a", "b", "c"], ["d"] * 40]
    values = [np.array([0.0, 9.0, 8.0]), np.linspace(0, 1, 40)]
    plots.top_snippets(tokens, values, n=3, width=24, ax=ax)
    frames = [path.vertices[0] for path in ax.collections[1].get_paths()]
    assert len(frames) == 3  # "c" stands in the line of "b" already
    boxes = ax.collections[0]
    at = {
        tuple(path.vertices[0]): value
        for path, value in zip(boxes.get_paths(), boxes.get_array(), strict=True)
    }
    peaks = [at[tuple(corner)] for corner in frames]
    assert peaks[:2] == [9.0, 1.0] and peaks == sorted(peaks, reverse=True)


def test_around_stays_within_its_room():
    text = ["aa", "bbb", "c", "dddd", "e"]
    for at in range(5):
        for width in range(4, 14):
            first, last = around(text, at, width)
            assert first <= at <= last and sum(map(columns, text[first : last + 1])) <= width
    assert around(text, 2, 11) == (0, 4)


def test_overlap_matrix_compares_sets_layers_and_takes_matrices(ax):
    sets, _ = core_sets(2, 2)
    image = plots.overlap_matrix(dict(zip("abcd", sets, strict=True)), ax=ax).images[0].get_array()
    assert np.array_equal(image, [[one.jaccard(other) for other in sets] for one in sets])
    assert [label.get_text() for label in ax.get_xticklabels()] == list("abcd")
    assert {text.get_text() for text in ax.texts} >= {"1.00"}
    one = plots.overlap_matrix(sets, layer=1).images[0].get_array()
    alone = [CoreSet({1: core.neurons[1]}, 64, 2) for core in sets]
    assert np.array_equal(one, [[a.jaccard(b) for b in alone] for a in alone])
    layers = plots.overlap_matrix(sets[0])
    assert [label.get_text() for label in layers.get_yticklabels()] == ["layer 0", "layer 1"]
    assert not plots.overlap_matrix(np.eye(20)).texts


def test_stability_curves_draw_every_layer_and_their_mean(ax):
    curves = layer_curves()
    curves[2, 4] = np.nan
    plots.stability_curves(LENGTHS, curves, layers=[0, 3, 6, 9, 12], ax=ax)
    for line, row in zip(ax.lines, curves, strict=False):
        assert np.array_equal(line.get_xdata(), LENGTHS[1:])
        assert np.array_equal(line.get_ydata(), row, equal_nan=True)
    assert np.allclose(ax.lines[-1].get_ydata(), np.nanmean(curves, axis=0))
    assert ax.get_xlabel() == "length of the text (tokens)"


def test_timeline_colours_neurons_by_when_they_come(ax):
    steps = np.array([[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 1, 0]], bool)
    plots.timeline(steps, [10, 20, 30], shifts=[20], ax=ax)
    drawn = ax.collections[0].get_array().reshape(3, 3)
    assert np.array_equal(drawn.filled(-1), [[0, 0, -1], [0, 0, 0], [-1, -1, 1]])
    assert list(ax.lines[0].get_xdata()) == [20, 20]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "core before 20",
        "new after the shift at 20",
    ]


def test_timeline_of_core_sets_is_that_of_their_masks(ax):
    steps, ends = shift_masks()
    sets = [CoreSet({1: np.flatnonzero(step)}, 90, 2) for step in steps]
    one = plots.timeline(sets, ends, ax=ax).collections[0].get_array()
    other = plots.timeline(steps, ends).collections[0].get_array()
    assert np.array_equal(one.filled(-1), other.filled(-1))


def test_embedding_by_pca_keeps_distances_of_flat_data(ax):
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(20, 2))
    x = flat @ np.linalg.qr(rng.normal(size=(7, 7)))[0][:2]
    points = pca(x)

    def apart(p):
        return np.linalg.norm(p[:, None] - p[None], axis=-1)

    assert np.allclose(apart(points), apart(flat))
    assert np.all(points[np.abs(points).argmax(axis=0), [0, 1]] > 0)
    plots.embedding(x, ["a", "b"] * 10, ax=ax)
    drawn = {c.get_label(): np.asarray(c.get_offsets()) for c in ax.collections}
    assert np.allclose(drawn["a"], points[::2]) and np.allclose(drawn["b"], points[1::2])


def test_embedding_by_tsne_is_seeded():
    sets, labels = core_sets()
    one, other = (
        plots.embedding(sets, labels, method="tsne", seed=3).collections[0].get_offsets() for _ in range(2)
    )
    assert np.array_equal(one, other)


def test_umap_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match="pip install umap-learn"):
        plots.embedding(*core_sets(), method="umap")


def test_quality_curves_draw_estimates_and_intervals(ax):
    plots.quality_curves({"griffin": CURVES["griffin"][::-1]}, ax=ax)
    assert np.array_equal(ax.lines[0].get_xdata(), KEPT)
    assert np.array_equal(ax.lines[0].get_ydata(), CURVES["griffin"][:, 1])
    band = ax.collections[0].get_paths()[0].vertices
    assert {tuple(row) for row in CURVES["griffin"][:, [0, 2]]} <= {tuple(row) for row in band}
    assert ax.get_yscale() == "log" and list(ax.lines[1].get_ydata()) == [1, 1]


def test_quality_curves_read_a_study():
    row = {"kept": [0.5, 0.5, 0.5], "agreement": [0.8, 0.7, 0.9], "recall": None}
    rows = [
        row | {"predictor": name, "budget": b}
        for name, b in (("dense", "uniform"), ("a", "uniform"), ("a", "share"))
    ]
    ax = plots.quality_curves(rows, "agreement")
    assert [line.get_label() for line in ax.lines] == ["a", "a (share)", "dense"]
    assert list(ax.lines[0].get_ydata()) == [0.8] and ax.get_yscale() == "linear"
    with pytest.raises(InputError, match="no result has recall"):
        plots.quality_curves(rows, "recall")


def test_similarity_scatter_draws_pairs_and_says_rho(ax):
    x, y = pairs()
    plots.similarity_scatter(x, y, ax=ax)
    assert np.array_equal(ax.collections[0].get_offsets(), np.stack([x, y], axis=1))
    given = plots.similarity_scatter(x, y, rho=(0.5, 0.4, 0.6))
    assert given.get_title() == "Spearman's ρ 0.50 [0.40, 0.60], 60 pairs"
    assert plots.similarity_scatter(x, x**3).get_title().startswith("Spearman's ρ 1.00")


def test_bars_stand_for_their_values(ax):
    plots.bars(PAPER_SPEEDS, MODELS, ax=ax)
    assert [bar.get_height() for bar in ax.patches] == [34.7, 23.5, 3.6, 57.2, 33.6, 0]
    assert [text.get_text() for text in ax.texts] == ["34.7", "23.5", "3.6", "57.2", "33.6", "n/a"]
    assert ax.get_ylabel() == "tokens/s"
    assert [label.get_text() for label in ax.get_xticklabels()] == MODELS


def test_roof_is_the_lower_of_bandwidth_and_peak(ax):
    plots.roofline(KERNELS, 20, 150, ax=ax)
    x, y = ax.lines[0].get_data()
    assert np.allclose(y, np.minimum(20 * np.asarray(x), 150))
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines[1:]] == list(KERNELS.values())


def test_decode_speed_draws_the_context_asked_for(ax):
    plots.decode_speed(report(), context=512, ax=ax)
    assert np.allclose([bar.get_height() for bar in ax.patches], [80, 200, 160, 400])
    assert "512 tokens" in ax.get_title()


def test_a_model_can_be_seen(ax):
    model = mc.load(GOLDEN / "llama-chat")
    ids = model.tokenizer.encode("The cat sat on the mat.")
    _, cache = model.run_with_cache(ids, names_filter="blocks.1.mlp.hook_post")
    a = cache["blocks.1.mlp.hook_post"]
    plots.activation_map(a, [model.tokenizer.decode([i]) for i in ids], neurons=range(80), ax=ax)
    assert np.allclose(ax.images[0].get_array(), a.T)
    sets = {name: mc.predict(model, ids, name) for name in ("stability", "griffin")}
    assert plots.overlap_matrix(sets).images[0].get_array()[0, 1] == sets["stability"].jaccard(
        sets["griffin"]
    )


# --- what cannot be drawn ---

SETS, LABELS = core_sets(2, 2)
NAN = [[1.0, np.nan]]
REFUSED = [
    (plots.activation_map, (NAN,), r"activations: nan at \[0, 1\]"),
    (plots.activation_map, ([1.0],), r"shape \(1,\), expected \(n_tokens, n_neurons\)"),
    (plots.activation_map, ([["a"]],), "not an array of numbers"),
    (plots.activation_map, (np.ones((2, 3)), ["a"]), "tokens: there are 1, expected 2"),
    (plots.activation_map, (np.ones((2, 3)), None, [3]), "neurons: 3 is not a neuron, expected 0 to 2"),
    (plots.activation_map, (np.empty((0, 3)),), r"shape \(0, 3\)"),
    (plots.frequency_grid, ([1, 5], 4), "counts run from 1 to 5, expected 0 to n_tokens, 4"),
    (plots.frequency_grid, ([1, -5],), "expected counts of 0 or more"),
    (plots.frequency_grid, ([1, 5], None, []), "expected a list of neuron ids"),
    (plots.frequency_grid, ([1, 5], None, 0), "expected a list of neuron ids"),
    (plots.text_activations, (["a"], [1.0, 2.0]), "tokens: there are 1, expected 2"),
    (plots.text_activations, (["a"], [np.inf]), "values: inf at"),
    (plots.top_snippets, ([["a"]], [[1.0, 2.0]]), "values of text 0: there are 2, expected 1"),
    (plots.top_snippets, ([], []), "texts 0"),
    (plots.overlap_matrix, (np.ones((2, 3)),), r"shape \(2, 3\)"),
    (plots.overlap_matrix, (2 * np.ones((2, 2)),), "values 2 to 2, expected"),
    (plots.overlap_matrix, (SETS, ["a"]), "names: there are 1, expected 4"),
    (plots.overlap_matrix, ([SETS[0], CoreSet({0: [1]}, 9, 2)],), "different models"),
    (plots.stability_curves, ([1, 2], [0.5, 0.6, 0.7]), "2 lengths for 3 steps"),
    (plots.stability_curves, ([2, 1], [0.5, 0.6]), "lengths are not ascending, first at 1"),
    (plots.coordinates_over_length, (np.eye(3), [1, 2]), "lengths: there are 2, expected 3"),
    (plots.timeline, (np.ones((2, 3)),), "of bool"),
    (plots.timeline, (np.zeros((2, 3), bool),), "nothing to draw"),
    (plots.timeline, (SETS,), "several layers"),
    (plots.embedding, (np.eye(4), ["a"]), "labels: there are 1, expected 4"),
    (plots.embedding, (np.eye(2), ["a", "b"]), "expected at least 3"),
    (plots.quality_curves, ({"a": [[0.1, 1, 1]]},), r"results of a have shape \(1, 3\)"),
    (plots.quality_curves, ({"a": [[0.1, 0, -1, 1]]},), "results of a: -1"),
    (plots.quality_curves, ({},), "nothing to draw"),
    (plots.quality_curves, ({"a": [[0.1, 1, 1, 1]]}, "ration"), "did you mean ratio"),
    (plots.similarity_scatter, ([1, 2], [1, 2]), "at least 3"),
    (plots.similarity_scatter, ([1, 2, 3], [1, 2]), "core: there are 2, expected 3"),
    (plots.bars, ({"a": [1.0, 2.0]}, ["x"]), "values of a: there are 2, expected 1"),
    (plots.bars, ({"a": [np.nan]}, ["x"]), "there are no values"),
    (plots.bars, ({"a": [-1.0]}, ["x"]), "values of a: -1 tokens/s"),
    (plots.roofline, ({"a": (1.0, 0.0)}, 20, 150), "roofline: 0, expected"),
    (plots.roofline, ({}, 20, 150), "no points"),
]


@pytest.mark.parametrize(("plot", "given", "told"), REFUSED)
def test_what_cannot_be_drawn_is_told_in_a_sentence_and_draws_nothing(plot, given, told):
    with pytest.raises(InputError, match=told) as caught:
        plot(*given)
    assert "\n" not in str(caught.value)
    assert plt.get_fignums() == []


def test_options_out_of_range_are_told():
    for message, draw in (
        ("layer 5 is not restricted", lambda: plots.overlap_matrix(SETS, layer=5)),
        ("there is one set", lambda: plots.overlap_matrix(SETS[0], layer=0)),
        ("unknown method 'pcs'; did you mean pca", lambda: plots.embedding(SETS, LABELS, method="pcs")),
        ("intervals of a have shape", lambda: plots.bars({"a": [1.0]}, ["x"], intervals={"a": [[2, 3]]})),
        ("vmax is 0", lambda: plots.text_activations(["a"], [1.0], vmax=0)),
        (r"core has shape \(1, 1\)", lambda: plots.activation_map([[1.0, 2.0]], core=[[True]])),
        ("most is 0", lambda: plots.activation_map([[1.0]], most=0)),
        ("width is 2", lambda: plots.text_activations(["a"], [1.0], width=2)),
    ):
        with pytest.raises(InputError, match=message):
            draw()


if __name__ == "__main__":
    BASELINE.mkdir(exist_ok=True)
    for name, style in PICTURES:
        picture(name, style, baseline(name, style))


def test_a_run_of_line_breaks_takes_one_line():
    from minicore.plots.paper import one_break

    pieces = ["a", "\n", "\n", "\n\n", "b", "\n", "c"]
    assert one_break(pieces) == ["a", "↵", "↵", "\n\n", "b", "\n", "c"]
    one, other = (
        plots.text_activations(some, np.zeros(7), width=20).get_ylim()[0]
        for some in (pieces, one_break(pieces))
    )
    assert abs(other) < abs(one)
