"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const N = data.n_neurons, LAYERS = data.layers.length;
const COLUMNS = Math.min(N, 2 ** Math.ceil(Math.log2(Math.sqrt(2 * N))));  // about twice as wide as high
const ROWS = Math.ceil(N / COLUMNS);

// --- core sets ---

for (const prompt of data.prompts) {
  prompt.bits = Uint8Array.from(atob(prompt.core), c => c.charCodeAt(0));
  prompt.n = prompt.pieces.length;
  prompt.length = prompt.n;
}

/** Whether a neuron is in a token's core. */
function isCore(prompt, layer, token, neuron) {
  const at = (layer * prompt.n + token) * ((N + 7) >> 3) + (neuron >> 3);
  return prompt.bits[at] >> (7 - (neuron & 7)) & 1;
}

/** Add the tokens first to last - 1 to the counts: how many tokens have each neuron in their core (eq. 3). */
function count(prompt, layer, first, last, counts) {
  const bytes = (N + 7) >> 3;
  for (let token = first; token < last; token++) {
    const at = (layer * prompt.n + token) * bytes;
    for (let byte = 0; byte < bytes; byte++) {
      for (let rest = prompt.bits[at + byte]; rest; rest &= rest - 1) {
        counts[8 * byte + Math.clz32(rest & -rest) - 24]++;
      }
    }
  }
  return counts;
}

/** The floor(beta N) neurons of highest count, of equal counts the lower index first, as 1 and 0 (eq. 2). */
function coreOf(counts, beta, n_tokens) {
  const having = new Int32Array(n_tokens + 2), kept = new Uint8Array(N);
  for (let i = 0; i < N; i++) having[counts[i]]++;
  let places = Math.floor(beta * N), cut = n_tokens;
  while (cut > 0 && having[cut] <= places) places -= having[cut--];
  for (let i = 0; i < N; i++) {
    if (counts[i] > cut) kept[i] = 1;
    else if (counts[i] === cut && cut > 0 && places > 0) { kept[i] = 1; places--; }
  }
  return kept;
}

function jaccard(a, b) {
  let shared = 0, involved = 0;
  for (let i = 0; i < N; i++) { shared += a[i] & b[i]; involved += a[i] | b[i]; }
  return involved ? shared / involved : 1;
}

function size(set) { return set.reduce((total, one) => total + one, 0); }

/** A prompt's set of one layer at a length, with its counts. */
function setAt(prompt, layer, length, beta) {
  const counts = count(prompt, layer, 0, length, new Int32Array(N));
  return { counts, kept: coreOf(counts, beta, length) };
}

/** How alike the sets of growing prefixes are to the whole prompt's: lengths, and a row a layer. */
function settling(prompt, beta) {
  const steps = Math.min(prompt.n, 40);
  const lengths = Array.from({ length: steps }, (_, i) => Math.round((i + 1) * prompt.n / steps));
  const rows = data.layers.map((_, layer) => {
    const counts = new Int32Array(N);
    let read = 0;
    const sets = lengths.map(length => {
      count(prompt, layer, read, length, counts);
      read = length;
      return coreOf(counts, beta, length);
    });
    return sets.map(set => jaccard(set, sets[sets.length - 1]));
  });
  return { lengths, rows };
}

// --- the page ---

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const percent = x => (100 * x).toFixed(x < 0.1 && x > 0 ? 1 : 0) + "%";
const two = data.prompts.length > 1;
const nameOf = p => two ? "Prompt " + "AB"[p] : "The prompt";
/** A token as something to see: line breaks are marked, part of a character is a dot. */
const shown = piece => piece === "" ? "·" : piece.replace(/\r/g, "␍").replace(/\n/g, "↵\n").replace(/\t/g, "→");

let beta = data.beta, pointed = null, focused = null, cursor = null;  // tokens as {p, token}; cursor {layer, neuron}
const sliders = { beta: null, lengths: [] }, grids = [], tokens = [], charts = [];
const chosenToken = () => pointed || focused;

document.getElementById("about").textContent =
  `${data.model}: ${LAYERS} layer${LAYERS > 1 ? "s" : ""} of ${N} neurons. A token's core neurons are the top ` +
  `${percent(data.alpha)} of its active ones (alpha ${data.alpha}); the prompt's are those in most tokens' cores.`;

function slider(label, min, max, step, value, onInput) {
  const out = make("output"), input = make("input", { type: "range", min, max, step });
  input.value = value;
  input.addEventListener("input", () => onInput(Number(input.value)));
  document.getElementById("controls").append(make("label", {}, make("span", { textContent: label }), out, input));
  return { input, out };
}

function makePrompt(prompt, p) {
  const text = make("div", { className: "text" });
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", `${nameOf(p)}: ${prompt.n} tokens, arrow keys move`);
  let word = null;  // tokens of one word stay on one line, where it is not longer than that
  tokens[p] = prompt.pieces.map((piece, token) => {
    const button = make("button", { type: "button", textContent: shown(piece), tabIndex: token ? -1 : 0 });
    button.setAttribute("aria-label", `token ${token + 1}: ${shown(piece)}`);
    button.addEventListener("pointerenter", event => { if (event.pointerType === "mouse") point({ p, token }); });
    button.addEventListener("pointerleave", () => point(null));
    button.addEventListener("focus", () => { rove(p, token); focused = { p, token }; cursor = null; draw(); });
    button.addEventListener("blur", () => { focused = null; draw(); });
    button.addEventListener("keydown", event => {
      const to = { ArrowLeft: token - 1, ArrowRight: token + 1, ArrowUp: token - 10, ArrowDown: token + 10,
        Home: 0, End: prompt.n - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      tokens[p][Math.max(0, Math.min(prompt.n - 1, to))].focus();
    });
    if (!word || /^\s/.test(piece) || /\s$/.test(prompt.pieces[token - 1])) text.append(word = make("span"));
    word.append(button);
    return button;
  });
  charts[p] = make("div");
  document.getElementById("prompts").append(
    make("h2", { textContent: `${nameOf(p)}, ${prompt.n} tokens` }), text, charts[p]);
  const label = two ? `tokens read of ${"AB"[p]}` : "tokens read";
  sliders.lengths[p] = slider(label, 1, prompt.n, 1, prompt.n, value => { prompt.length = value; schedule(); });
}
function rove(p, token) { tokens[p].forEach((button, i) => { button.tabIndex = i === token ? 0 : -1; }); }
function point(where) { pointed = where; if (where) cursor = null; draw(); }

function makeGrid(layer) {
  const canvas = make("canvas", { tabIndex: 0 }), caption = make("figcaption");
  canvas.setAttribute("role", "img");
  const at = event => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / box.width * COLUMNS);
    const neuron = Math.floor((event.clientY - box.top) / box.height * ROWS) * COLUMNS + column;
    return column >= 0 && column < COLUMNS && neuron >= 0 && neuron < N ? { layer, neuron } : null;
  };
  canvas.addEventListener("pointermove", event => { cursor = at(event); draw(); });
  canvas.addEventListener("pointerdown", event => { cursor = at(event); draw(); });
  canvas.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") { cursor = null; draw(); } });
  canvas.addEventListener("blur", () => { cursor = null; draw(); });
  canvas.addEventListener("keydown", event => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -COLUMNS, ArrowDown: COLUMNS }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const from = cursor && cursor.layer === layer ? cursor.neuron : -by;
    cursor = { layer, neuron: Math.max(0, Math.min(N - 1, from + by)) };
    draw();
  });
  caption.setAttribute("aria-live", "polite");
  document.getElementById("layers").append(make("figure", {}, canvas, caption));
  grids[layer] = { canvas, caption };
}

// --- drawing ---

function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["field", "ink", "blue", "orange", "pale", "shared", "low"].map(
    name => [name, style.getPropertyValue("--" + name).trim()]));
}
function mix(a, b, t) {
  const parts = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
  const [x, y] = [parts(a), parts(b)];
  return `rgb(${x.map((one, i) => Math.round(one + t * (y[i] - one))).join(",")})`;
}

let sets = [];  // by prompt and layer
function computeSets() {
  sets = data.prompts.map(prompt => data.layers.map((_, layer) => setAt(prompt, layer, prompt.length, beta)));
}

/** What each neuron of a layer looks like: a colour, or null for one that is in no set. */
function paint(layer, where, shade) {
  if (where === null && two) {
    const [a, b] = [sets[0][layer].kept, sets[1][layer].kept];
    return i => a[i] && b[i] ? shade.shared : a[i] ? shade.blue : b[i] ? shade.orange : null;
  }
  const p = where ? where.p : 0, { counts, kept } = sets[p][layer], prompt = data.prompts[p];
  return i => {
    if (where && isCore(prompt, layer, where.token, i)) return kept[i] ? shade.orange : shade.pale;
    return kept[i] ? mix(shade.low, shade.blue, counts[i] / prompt.length) : null;
  };
}

function drawGrid(layer, where, shade) {
  const { canvas, caption } = grids[layer];
  const cell = Math.max(1, Math.round((canvas.clientWidth || 320) * (window.devicePixelRatio || 1) / COLUMNS));
  if (canvas.width !== COLUMNS * cell) { canvas.width = COLUMNS * cell; canvas.height = ROWS * cell; }
  const pen = canvas.getContext("2d"), colour = paint(layer, where, shade), gap = cell > 3 ? 1 : 0;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < N; i++) {
    const fill = colour(i);
    if (fill === null) continue;
    pen.fillStyle = fill;
    pen.fillRect(i % COLUMNS * cell, Math.floor(i / COLUMNS) * cell, cell - gap, cell - gap);
  }
  if (cursor && cursor.layer === layer) {
    pen.strokeStyle = shade.ink;
    pen.lineWidth = Math.max(2, cell / 4);
    pen.strokeRect(cursor.neuron % COLUMNS * cell, Math.floor(cursor.neuron / COLUMNS) * cell, cell, cell);
  }
  const said = [`Layer ${data.layers[layer]}: ${tell(layer, where)}`, tellCursor(layer)].filter(Boolean).join(" ");
  if (caption.textContent !== said) caption.textContent = said;
  canvas.setAttribute("aria-label", said);
}

function tell(layer, where) {
  if (where === null && two) {
    const [a, b] = [sets[0][layer].kept, sets[1][layer].kept];
    return `${size(a)} neurons of A, ${size(b)} of B, overlap ${jaccard(a, b).toFixed(2)}.`;
  }
  const p = where ? where.p : 0, { kept } = sets[p][layer];
  let said = `${size(kept)} of ${N} neurons kept.`;
  if (where) {
    let core = 0, inside = 0;
    for (let i = 0; i < N; i++) {
      if (isCore(data.prompts[p], layer, where.token, i)) { core++; inside += kept[i]; }
    }
    said += ` Of this token's ${core} core neurons ${inside} are among them.`;
  }
  return said;
}
function tellCursor(layer) {
  if (!cursor || cursor.layer !== layer) return "";
  return `Neuron ${cursor.neuron}: core to ` + data.prompts.map((prompt, p) => {
    return `${sets[p][layer].counts[cursor.neuron]} of ${prompt.length} tokens${two ? " of " + "AB"[p] : ""}`;
  }).join(", ") + ".";
}

function drawTokens(where) {
  data.prompts.forEach((prompt, p) => tokens[p].forEach((button, token) => {
    const list = button.classList;
    list.toggle("unread", token >= prompt.length);
    list.toggle("chosen", where !== null && where.p === p && where.token === token);
    list.toggle("has", cursor !== null && token < prompt.length
      && Boolean(isCore(prompt, cursor.layer, token, cursor.neuron)));
  }));
}

function drawLegend(where) {
  const single = [["blue", "core of the prompt, stronger in more tokens"], ["orange", "core of the token, and kept"],
    ["pale", "core of the token, not kept"]];
  const both = [["blue", "A alone"], ["orange", "B alone"], ["shared", "shared"]];
  const rows = where === null && two ? both : where ? single : single.slice(0, 1);
  document.getElementById("legend").replaceChildren(...rows.map(([name, text]) => {
    const square = make("i");
    square.style.background = `var(--${name})`;
    return make("li", {}, square, text);
  }));
}

function drawOverlap() {
  if (!two) return;
  document.getElementById("overlap").hidden = false;
  document.querySelector("#overlap tbody").replaceChildren(...data.layers.map((name, layer) => {
    const value = jaccard(sets[0][layer].kept, sets[1][layer].kept), bar = make("i");
    bar.style.width = percent(value);
    return make("tr", {}, make("th", { scope: "row", textContent: `layer ${name}` }),
      make("td", { textContent: value.toFixed(2) }), make("td", { className: "bar" }, bar));
  }));
}

/** A chart of how the sets settle: a line a layer and their mean, against the tokens read. */
function drawChart(prompt, p) {
  const { lengths, rows } = prompt.settled, W = Math.min(charts[p].clientWidth || 640, 736), H = 150;
  const left = 28, right = W - 4, top = 10, bottom = 128;
  const x = length => left + (right - left) * length / prompt.n, y = value => bottom - (bottom - top) * value;
  const line = (row, name) => svg("path", { class: name, d: row.map(
    (value, i) => `${i ? "L" : "M"}${x(lengths[i]).toFixed(1)},${y(value).toFixed(1)}`).join("") });
  const mean = lengths.map((_, i) => rows.reduce((total, row) => total + row[i], 0) / rows.length);
  const text = (at, to, anchor, words) => svg("text", { x: at, y: to, "text-anchor": anchor }, words);
  const said = "overlap (Jaccard) with the whole prompt's set: a line a layer, the thick one their mean";
  const drawing = svg("svg", { width: W, height: H, viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": said },
    ...[0, 0.5, 1].flatMap(value => [
      svg("line", { x1: left, x2: right, y1: y(value), y2: y(value) }), text(left - 5, y(value) + 4, "end", value)]),
    ...rows.map(row => line(row, "layer")), line(mean, "mean"),
    svg("line", { class: "here", x1: x(prompt.length), x2: x(prompt.length), y1: top, y2: bottom }),
    text(left, bottom + 16, "middle", "0"), text(right, bottom + 16, "end", `${prompt.n} tokens read`));
  charts[p].replaceChildren(drawing, make("p", { className: "soft", textContent: said[0].toUpperCase() + said.slice(1) + "." }));
}

// --- continuations ---

function drawContinuations() {
  const distance = one => Math.abs(one.beta - beta);
  const nearest = data.prompts[0].sparse.reduce((best, one) => distance(one) < distance(best) ? one : best).beta;
  document.getElementById("decoded").textContent =
    `With all neurons, and with the whole prompt's core neurons at beta ${nearest}, of the betas decoded ` +
    `the nearest to the slider (${data.prompts[0].sparse.map(one => one.beta).join(", ")}).`;
  document.getElementById("continuations").replaceChildren(...data.prompts.flatMap((prompt, p) => {
    const sparse = prompt.sparse.find(one => one.beta === nearest), dense = prompt.dense;
    const n = Math.max(dense.ids.length, sparse.ids.length);
    let same = 0;
    while (same < n && dense.ids[same] === sparse.ids[same]) same++;
    const verdict = same === n ? `the same for all ${n} tokens` : `the same for ${same} of ${n} tokens, then they part`;
    const side = (title, { pieces }) => make("div", {}, make("h3", { textContent: title }),
      pieces.slice(0, same).join(""), ...pieces.slice(same, same + 1).map(piece => make("mark", { textContent: shown(piece) })),
      make("span", { className: "after", textContent: pieces.slice(same + 1).join("") }));
    return [make("p", { textContent: `${nameOf(p)}: ${verdict}.` }),
      make("div", { className: "pair" }, side("dense", dense), side(`core, beta ${nearest}`, sparse))];
  }));
}

// --- when what is drawn ---

function draw() {
  const where = chosenToken(), shade = colours();
  drawTokens(where);
  drawLegend(where);
  data.layers.forEach((_, layer) => drawGrid(layer, where, shade));
}
function update() {
  computeSets();
  sliders.beta.out.textContent = `${percent(beta)}`;
  data.prompts.forEach((prompt, p) => {
    sliders.lengths[p].out.textContent = `${prompt.length} of ${prompt.n}`;
    if (prompt.settledAt !== beta) { prompt.settled = settling(prompt, beta); prompt.settledAt = beta; }
    drawChart(prompt, p);
  });
  drawOverlap();
  draw();
  drawContinuations();
}
let waiting = 0;
function schedule() {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(update);
}

sliders.beta = slider("neurons kept (beta)", 0.01, 1, 0.01, beta, value => { beta = value; schedule(); });
data.prompts.forEach(makePrompt);
data.layers.forEach((_, layer) => makeGrid(layer));
addEventListener("resize", () => { draw(); data.prompts.forEach(drawChart); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
update();
