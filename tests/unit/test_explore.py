"""The explorer's page: what it holds, what it computes in a browser, and how it looks on a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import minicore
from minicore import cli
from minicore.errors import InputError
from minicore.explorer.builder import BETAS, LARGEST, explore

PROMPT = "The jury came back into the room, and everyone stood up. The judge asked for the verdict."
OTHER = "To bake good bread you need flour, water, salt and yeast. Let the dough rest for an hour."
UNRULY = "</script><b>&amp;\r\n\tnaïve 👩‍🚀\u2028 {{data}} ${x} `q`"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def model() -> minicore.Model:
    return minicore.load("minicore-opt-core")


@pytest.fixture(scope="module")
def page(model) -> str:
    return explore(model, [PROMPT, OTHER], beta=0.25, max_new_tokens=12, backend="numpy")


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])


def in_browser(page: str, tmp_path: Path, script: str, width: int = 1000) -> object:
    """Return the JSON value of an expression in the page, laid out so many pixels wide."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("there is no Chromium to look at the page with")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    outer = tmp_path / "outer.html"  # a window has a least width, a frame has none
    called = f"frame.contentWindow.eval({json.dumps(script)})"
    outer.write_text(
        f'<iframe id="frame" src="page.html" style="width:{width}px;height:2000px;border:0"></iframe>'
        "<pre></pre><script>frame.onload = () => {"
        f' document.querySelector("pre").textContent = JSON.stringify({called}); }};</script>',
        encoding="utf-8",
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command = [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    said = re.search(r"<pre>(.*)</pre>", done.stdout, re.S)
    assert said and said[1], done.stderr[-2000:]
    return json.loads(html.unescape(said[1]))


# --- what it holds ---


def test_it_holds_each_tokens_core_and_the_continuations(page, model):
    data = data_of(page)
    assert data["n_neurons"] == model.config.n_neurons and data["beta"] == 0.25
    for text, said in zip((PROMPT, OTHER), data["prompts"], strict=True):
        ids = model.tokenizer.encode(text)
        assert "".join(said["pieces"][1:]) == text
        assert said["dense"]["ids"] == model.generate(ids, predictor="dense", max_new_tokens=12).token_ids
        assert [one["beta"] for one in said["sparse"]] == sorted({*BETAS, 0.25})
        chosen = {"predictor": "stability", "alpha": 0.4, "backend": "numpy", "max_new_tokens": 12}
        for one in said["sparse"]:
            assert one["ids"] == model.generate(ids, beta=one["beta"], **chosen).token_ids


def test_the_checkpoints_advice_is_the_default_and_layers_may_be_chosen(model):
    data = data_of(explore(model, [PROMPT], layers="1:3", max_new_tokens=0))
    assert data["layers"] == [1, 2]
    assert (data["alpha"], data["beta"]) == (model.recommended["alpha"], model.recommended["beta"])


def test_it_is_small_and_fetches_nothing(page):
    assert len(page.encode()) < LARGEST
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<link|@import|url\(|src=", page)


def test_text_cannot_break_out_of_it(model, tmp_path):
    page = explore(model, [UNRULY], max_new_tokens=2)
    data = data_of(page)
    assert "".join(data["prompts"][0]["pieces"][1:]) == model.tokenizer.decode(model.tokenizer.encode(UNRULY))
    script = "[tokens[0].map(one => one.textContent).join(''), document.querySelectorAll('b').length]"
    text, n_bold = in_browser(page, tmp_path, script)
    assert n_bold == 0
    for part in ("</script><b>&amp;", "␍↵\n→naïve", "👩‍🚀", "{{data}} ${x} `q`"):
        assert part in text.replace("·", "")  # which stands for bytes that a later token completes


# --- what it computes ---


@pytest.mark.parametrize(("length", "beta"), [(None, 0.25), (9, 0.25), (None, 0.02), (1, 1.0)])
def test_its_sets_are_minicores(page, model, tmp_path, length, beta):
    ids = model.tokenizer.encode(PROMPT)[:length]
    script = (
        "data.layers.map((_, layer) => {"
        f" const {{ kept }} = setAt(data.prompts[0], layer, {len(ids)}, {beta});"
        " return [...kept.keys()].filter(i => kept[i]); })"
    )
    found = in_browser(page, tmp_path, script)
    want = minicore.predict(model, ids, "stability", 0.4, beta, backend="numpy")
    assert found == [want.neurons[layer].tolist() for layer in range(model.config.n_layers)]


def test_its_overlaps_are_minicores(page, model, tmp_path):
    a, b = (
        minicore.predict(model, model.tokenizer.encode(text), "stability", 0.4, 0.25, backend="numpy")
        for text in (PROMPT, OTHER)
    )
    script = "[...document.querySelectorAll('#overlap tr')].map(row => Number(row.cells[1].textContent))"
    shown = in_browser(page, tmp_path, script)
    both = [(set(a.neurons[i]), set(b.neurons[i])) for i in a]
    assert shown == pytest.approx([len(x & y) / len(x | y) for x, y in both], abs=0.0051)


# --- what a reader does with it ---


def test_sliders_change_sets_and_the_continuation_shown(page, model, tmp_path):
    script = """
    sliders.beta.input.value = 0.79; sliders.beta.input.dispatchEvent(new Event("input"));
    sliders.lengths[0].input.value = 5; sliders.lengths[0].input.dispatchEvent(new Event("input"));
    update();
    [size(sets[0][0].kept), sets[1].map(one => size(one.kept)).join() === [...sets[1].keys()].map(layer =>
       size(setAt(data.prompts[1], layer, data.prompts[1].n, 0.79).kept)).join(),
     document.querySelectorAll(".unread").length, document.getElementById("decoded").textContent]
    """
    kept, others, n_unread, decoded = in_browser(page, tmp_path, script)
    ids = model.tokenizer.encode(PROMPT)
    want = minicore.predict(model, ids[:5], "stability", 0.4, 0.79, backend="numpy")
    assert kept == len(want.neurons[0]) and others
    assert n_unread == len(ids) - 5
    assert "beta 0.8," in decoded


def test_the_keyboard_reaches_tokens_and_neurons(page, model, tmp_path):
    script = """
    const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key}));
    tokens[0][0].focus(); press("ArrowRight"); press("ArrowRight");
    const token = [document.activeElement.textContent, grids[0].caption.textContent];
    grids[1].canvas.focus(); press("ArrowRight"); press("ArrowDown");
    [token, cursor, grids[1].caption.textContent, document.querySelectorAll(".has").length,
     [...document.querySelectorAll(".text")].map(one => one.querySelectorAll("[tabindex='0']").length)]
    """
    (token, first), cursor, caption, n_marked, stops = in_browser(page, tmp_path, script)
    ids = model.tokenizer.encode(PROMPT)
    assert token == model.tokenizer.pieces(ids)[2]
    _, cache = model.run_with_cache(ids, "blocks.*.mlp.hook_post")
    n_core = minicore.token_core(cache["blocks.0.mlp.hook_post"], 0.4)[2].sum()
    assert f"Of this token's {n_core} core neurons" in first
    assert cursor["layer"] == 1 and f"Neuron {cursor['neuron']}: core to" in caption
    a, b = re.search(r"core to (\d+) of \d+ tokens of A, (\d+) of", caption).groups()
    assert n_marked == int(a) + int(b)
    assert stops == [1, 1]  # the text is one stop of Tab, arrow keys go on from there


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(page, tmp_path, width):
    long = page.replace(" verdict", " " + "verdict" * 30)
    script = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    wide, room = in_browser(long, tmp_path, script, width)
    assert wide <= room <= width


def test_a_word_of_several_tokens_stays_on_one_line(page, tmp_path):
    script = "tokens.map(of => of.map(one => [one.textContent, one.offsetTop]))"
    for tokens in in_browser(page, tmp_path, script, 360):
        assert len({top for _, top in tokens}) > 1
        for (_, before), (text, top) in zip(tokens, tokens[1:], strict=False):
            assert text.startswith(" ") or top == before, text


# --- bad input ---


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([""], {}, "prompt is empty"),
        ([], {}, "expected one or two"),
        (["a"] * 3, {}, "expected one or two"),
        (["word " * 2000], {}, "context holds"),
        ([PROMPT], {"beta": 0}, "beta is 0"),
        ([PROMPT], {"alpha": 2}, "alpha is 2"),
        ([PROMPT], {"layers": "7:99"}, "out of range"),
        ([PROMPT], {"max_new_tokens": -1}, "max_new_tokens"),
        ([PROMPT], {"backend": "abacus"}, "backend"),
    ],
)
def test_bad_input_is_one_sentence(model, prompts, options, message):
    with pytest.raises(InputError, match=message):
        explore(model, prompts, **options)


def test_a_page_that_would_be_too_large_is_refused_before_it_is_made(model, monkeypatch):
    monkeypatch.setattr("minicore.explorer.builder.LARGEST", 210_000)
    with pytest.raises(InputError, match="the page would be 0.1 MB.*fewer layers"):
        explore(model, [PROMPT * 2])


def test_the_command_writes_the_page_or_nothing(capsys, tmp_path):
    target = tmp_path / "page.html"
    command = ["explore", PROMPT, "--and", OTHER, "-m", "minicore-opt-core", "-n", "2", "-o", str(target)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert len(data_of(target.read_text(encoding="utf-8"))["prompts"]) == 2
    target.unlink()
    for wrong in (["--beta", "0"], ["--and", ""], ["--beta", "many"]):
        assert cli.main([*command, *wrong]) == 2
        assert capsys.readouterr().err.startswith("minicore: ")
        assert list(tmp_path.iterdir()) == []
