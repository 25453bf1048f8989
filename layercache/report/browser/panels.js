// The panels of a picked sample. Each is given `at` (what is picked, see browser.js) and returns an element, or null where
// there is nothing to show; it puts what has to follow the layer slider into `at.followers`.
const OUTSIDE = "outside the prompt: special, or of a chat template";

function panel(kind, title, note, ...children) {
  const heading = el("h4", {}, title);
  return el("section", { class: `panel ${kind}` }, heading, note ? el("p", { class: "faint" }, note) : null, ...children);
}

function token(at, number) {
  return at.page.tables.token_texts[number];
}

function quoted(at, number) {
  return `“${tokenText(token(at, number))}” (id ${at.page.tables.token_ids[number]})`;
}

// ------------------------------------------------------------------------------------------------ labels and scores
function factsPanel(at) {
  const lines = [];
  const scores = at.part.scores;
  for (const label of at.part.labels) {
    const own = scores.filter((score) => ["class", "number", "choice"].includes(score.kind) && score.name === label.name);
    const value = labelText(label, at.place);
    if (value === null && !own.length) continue;
    lines.push([label.name, value ?? "–", ...(own.length ? said(own[0], at.place) : ["", ""])]);
    for (const other of own.slice(1)) lines.push(["", "", ...said(other, at.place)]);
  }
  for (const score of scores) {
    const value = score.value?.[at.place];
    if (value === null || value === undefined) continue;
    if (score.kind === "loss") {
      const flips = score.flip[at.place] ? ", flips" : ", does not flip";
      lines.push([`ΔP, ${score.name}`, `${signed(value / 100, 1)} points${flips}`, "", score.place]);
    }
    if (score.kind === "entropy") lines.push(["entropy of the lens", `${fixed(value / 100)} nats`, "", score.place]);
    if (score.kind === "text") lines.push([`text: ${score.name}`, plainNumber(value), "", score.place]);
  }
  if (!lines.length) return null;
  const heads = ["", "value", "predicted", "read at"].map((name) => el("th", { scope: "col" }, name));
  const rows = lines.map(([name, ...rest]) =>
    el("tr", {}, el("th", { scope: "row" }, name), rest.map((text) => (text instanceof Node ? text : el("td", {}, text)))),
  );
  return panel(
    "facts",
    "Labels and scores",
    "",
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows))),
  );
}

function labelText(label, place) {
  const value = label.values[place];
  if (value === null) return null;
  return label.classes ? label.classes[value] : plainNumber(value);
}

function said(score, place) {
  if (score.kind === "number") {
    const value = score.value[place];
    if (value === null) return ["–", score.place];
    return [`${plainNumber(value)} (off by ${signed(score.error[place], 2)})`, score.place];
  }
  if (score.values[place] === null) return ["–", score.place];
  const right = score.right[place] === 1;
  const text = `${right ? "✓" : "✗"} ${score.classes[score.values[place]]} (P ${probability(score.p[place])})`;
  return [el("td", { class: right ? "right" : "wrong" }, text), score.place];
}

// ------------------------------------------------------------------------------------------------------------ prompt
function promptPanel(at) {
  const own = at.sample;
  if (!own || !own.tokens) {
    const set = at.page.sets[at.set];
    const text = own ? at.page.tables.texts[own.prompt] : set.prefix + set.prompts[at.place];
    const note = own ? "No tokens are stored." : "";
    return panel("prompt", "Prompt", note, el("pre", { class: "tokens" }, text));
  }
  const names = at.page.tables.texts;
  const spans = own.spans
    .map(([name, start, end]) => ({ name: names[name], start, end }))
    .sort((a, b) => a.start - b.start || b.end - a.end);
  const inPrompt = spans.filter((span) => ["prompt", "answer"].includes(span.name));
  const drawn = lanes(spans.filter((span) => span.name !== "prompt"));
  const output = el("output", { class: "readout faint" }, "Hover over a token, or go to it by the tab and arrow keys.");
  const box = el("div", { class: "tokens", role: "group", "aria-label": "tokens of the prompt" });
  if (own.first) box.append(el("span", { class: "faint" }, `… ${own.first} tokens before … `));
  const cells = own.tokens.map((number, place) => {
    const position = own.first + place;
    const inside = drawn.filter((span) => span.start <= position && position < span.end);
    const special = inPrompt.length && !inPrompt.some((span) => span.start <= position && position < span.end);
    return tokenCell(at, number, inside, special);
  });
  rove(cells, cells.length, (place) => {
    const position = own.first + place;
    const around = spans.filter((span) => span.start <= position && position < span.end).map((span) => span.name);
    const where = around.length ? around.join(", ") : OUTSIDE;
    output.textContent = `position ${position} · ${quoted(at, own.tokens[place])} · ${where}`;
  });
  box.append(...cells);
  const spaces = el("input", { type: "checkbox", onchange: () => showSpaces(at, own, cells, spaces.checked) });
  const toggle = el("label", { class: "control" }, spaces, el("span", {}, "show white space"));
  const count = own.truncated ? `${own.n} tokens; ${own.truncated} more were cut off.` : `${own.n} tokens.`;
  return panel("prompt", "Prompt", count, legend(drawn, box), box, output, toggle, absentNote(at, own));
}

// Gives each span a line of its own below the text wherever it overlaps others.
function lanes(spans) {
  const ends = [];
  return spans.map((span) => {
    let lane = ends.findIndex((end) => end <= span.start);
    if (lane < 0) lane = ends.length;
    ends[lane] = span.end;
    return { ...span, lane, colour: spanColour(span.name) };
  });
}

const spanColours = new Map();
function spanColour(name) {
  if (!spanColours.has(name)) spanColours.set(name, `var(--c${(spanColours.size % COLOURS) + 1})`);
  return spanColours.get(name);
}

function tokenCell(at, number, inside, special) {
  const text = token(at, number);
  const cell = el("span", { class: special ? "token special" : "token", title: quoted(at, number) }, text === "" ? "∅" : text);
  if (inside.length) {
    // The innermost span gives the tint, every span a line below the text.
    const innermost = inside.reduce((best, span) => (span.end - span.start < best.end - best.start ? span : best));
    const line = (span) => `linear-gradient(${span.colour}, ${span.colour}) 0 calc(100% - ${3 * span.lane}px) / 100% 2px no-repeat`;
    cell.style.background = inside.map(line).join(", ");
    cell.style.backgroundColor = `color-mix(in srgb, ${innermost.colour} 20%, transparent)`;
    cell.style.paddingBottom = `${3 * (Math.max(...inside.map((span) => span.lane)) + 1)}px`;
    cell.dataset.spans = JSON.stringify(inside.map((span) => span.name));
  }
  return cell;
}

function showSpaces(at, own, cells, shown) {
  cells.forEach((cell, place) => {
    const text = token(at, own.tokens[place]);
    cell.textContent = !shown ? text || "∅" : visible(text).replace(/⏎/g, "⏎\n");
  });
}

function legend(spans, box) {
  if (!spans.length) return null;
  const light = (name) => {
    for (const cell of box.querySelectorAll(".token")) {
      const own = JSON.parse(cell.dataset.spans || "[]");
      cell.classList.toggle("dim", name !== null && !own.includes(name));
    }
  };
  const entries = [...new Set(spans.map((span) => span.name))].map((name) => {
    const n = spans.filter((span) => span.name === name).reduce((sum, span) => sum + span.end - span.start, 0);
    const key = el("span", { class: "key", "--colour": spanColour(name), "aria-hidden": "true" });
    const listeners = { onpointerenter: () => light(name), onpointerleave: () => light(null) };
    const more = { onfocus: () => light(name), onblur: () => light(null) };
    return el("li", {}, el("button", { type: "button", ...listeners, ...more }, key, `${name} (${n} token${n > 1 ? "s" : ""})`));
  });
  return el("ul", { class: "legend", "aria-label": "spans" }, entries);
}

function absentNote(at, own) {
  const texts = at.page.tables.texts;
  const reasons = new Map();
  for (const [output, reason] of own.absent || []) {
    const span = /@([^:]+)/.exec(texts[output]);
    const key = `${span ? `span ${span[1]}` : texts[output]}: ${texts[reason]}`;
    reasons.set(key, [...(reasons.get(key) || []), texts[output]]);
  }
  if (!reasons.size) return null;
  const entries = [...reasons].map(([reason, outputs]) => el("li", {}, `${reason}; no ${outputs.join(", ")}`));
  return el("div", { class: "absent" }, el("p", { class: "faint" }, "Absent:"), el("ul", {}, entries));
}

// -------------------------------------------------------------------------------------------------------------- lens
function lensPanel(at) {
  const run = at.page.runs[at.run];
  const views = [];
  if (at.sample?.grid) views.push(["grid", `every token (${run.grid.at})`]);
  (at.sample?.lens || []).forEach((own, number) => own && views.push([String(number), run.lenses[number].at]));
  if (!views.length) return null;
  const holder = el("div", {});
  const kept = at.kept;
  const known = views.map(([name]) => name);
  const show = () => {
    at.followers.delete(holder);
    const picked = known.includes(kept.lens) ? kept.lens : known[0];
    holder.replaceChildren(...(picked === "grid" ? gridTable(at, run, holder) : layersTable(at, run, Number(picked), holder)));
  };
  const controls = el("div", { class: "controls" });
  if (views.length > 1) {
    controls.append(select("read at", [["", views]], known.includes(kept.lens) ? kept.lens : known[0], (name) => {
      kept.lens = name;
      show();
      at.redraw("bars");
    }));
  }
  const shades = [["p", "probability of the top token"], ["h", "entropy"]];
  controls.append(select("colour", [["", shades]], kept.shade, (name) => {
    kept.shade = name;
    show();
  }));
  show();
  const note = "What the model would say next if it stopped at a layer: the most probable token through the final norm and unembedding.";
  return panel("lens", "Logit lens", note, controls, holder);
}

// A probability shades by itself; entropy is darkest at 0 and fades to the largest there is.
function shading(kept, p, h, mostEntropy) {
  if (kept.shade === "h") return h === null || !mostEntropy ? 0 : 1 - h / mostEntropy;
  return (p ?? 0) / 10000;
}

function gridTable(at, run, holder) {
  const grid = at.sample.grid;
  const layers = run.grid.layers;
  const most = Math.max(...grid.h.flat().filter((h) => h !== null), 1);
  const heads = grid.positions.map((position) => {
    const number = at.sample.tokens?.[position - at.sample.first];
    const text = number === undefined ? String(position) : tokenText(token(at, number));
    return el("th", { scope: "col", title: `position ${position}` }, el("span", {}, text));
  });
  const cellsOf = (row) =>
    grid.positions.map((position, column) => {
      const [top, p, h] = [grid.top[row][column], grid.p[row][column], grid.h[row][column]];
      if (top === null) return [null, `position ${position}, layer ${layers[row]}: nothing stored`, 0];
      const read = `after position ${position}, layer ${layers[row]}: ${quoted(at, top)}, P ${probability(p)}, entropy ${fixed(h / 100)} nats`;
      return [tokenText(token(at, top)), read, shading(at.kept, p, h, most)];
    });
  return heatTable(at, layers, heads, cellsOf, holder, "Logit lens by layer and position", true);
}

function layersTable(at, run, number, holder) {
  const own = at.sample.lens[number];
  const layers = run.lenses[number].layers;
  const most = Math.max(...own.h.filter((h) => h !== null), 1);
  const width = Math.max(...own.top.map((top) => top.length));
  const heads = [...Array(width).keys()].map((rank) => el("th", { scope: "col" }, el("span", {}, String(rank + 1))));
  const cellsOf = (row) =>
    [...Array(width).keys()].map((rank) => {
      const [top, p] = [own.top[row][rank], own.p[row][rank]];
      if (top === undefined) return [null, `layer ${layers[row]}: nothing stored`, 0];
      const read = `layer ${layers[row]}, ${rank + 1}. of the most probable: ${quoted(at, top)}, P ${probability(p)}; entropy ${fixed(own.h[row] / 100)} nats`;
      return [tokenText(token(at, top)), read, shading(at.kept, p, own.h[row], most), top === own.target ? "target" : ""];
    });
  return heatTable(at, layers, heads, cellsOf, holder, "Most probable tokens by layer and rank");
}

function heatTable(at, layers, heads, cellsOf, holder, name, atEnd = false) {
  const output = el("output", { class: "readout faint" }, "Hover over a cell, or go to it by the tab and arrow keys; a click picks its layer.");
  const [cells, reads, lines] = [[], [], new Map()];
  const body = el("tbody");
  for (let row = layers.length - 1; row >= 0; row--) {
    const line = el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, String(layers[row])));
    for (const [text, read, shade, kind] of cellsOf(row)) {
      const cell = el("td", { role: "gridcell", class: kind || null, "--p": shade.toFixed(3), "aria-label": read }, text ?? "");
      cell.addEventListener("click", () => at.setLayer(layers[row]));
      cells.push(cell);
      reads.push(read);
      line.append(cell);
    }
    lines.set(layers[row], line);
    body.append(line);
  }
  rove(cells, heads.length, (number) => {
    output.textContent = reads[number];
  });
  at.followers.set(holder, (layer) => {
    lines.forEach((line, own) => line.classList.toggle("here", own === layer));
    if (lines.has(layer)) down(box, lines.get(layer));
  });
  const corner = el("th", { scope: "col" }, "layer");
  const table = el("table", { class: "heat", role: "grid", "aria-label": name }, el("thead", {}, el("tr", {}, corner, heads)), body);
  const box = el("div", { class: "scroll tall" }, table);
  at.followers.get(holder)(at.layer);
  // Of positions the last one is where the model goes on; of ranks the first one is what it says.
  if (atEnd)
    requestAnimationFrame(() => {
      box.scrollLeft = box.scrollWidth;
    });
  return [box, output];
}

function barsPanel(at) {
  const run = at.page.runs[at.run];
  const lenses = at.sample?.lens || [];
  const kept = Number(at.kept.lens);
  const number = lenses[kept] ? kept : lenses.findIndex((own) => own);
  if (number < 0) return null;
  const own = lenses[number];
  const layers = run.lenses[number].layers;
  const last = own.top[layers.length - 1]?.[0];
  const holder = el("div", {});
  const show = (layer) => {
    const row = layers.indexOf(layer);
    if (row < 0 || !own.top[row].length) {
      holder.replaceChildren(el("p", { class: "faint" }, `The lens does not read layer ${layer}.`));
      return;
    }
    const bars = own.top[row].map((top, rank) => {
      const kind = top === last ? "final" : top === own.target ? "target" : "other";
      const share = own.p[row][rank] / 10000;
      const bar = el("span", { class: "bar" }, el("span", { class: kind, "--p": share.toFixed(4) }));
      const name = el("span", { class: "name", title: quoted(at, top) }, tokenText(token(at, top)));
      return el("li", {}, name, bar, el("span", { class: "n" }, probability(own.p[row][rank])));
    });
    holder.replaceChildren(el("p", {}, barsNote(at, own, row)), el("ol", { class: "bars" }, bars));
  };
  at.followers.set(holder, show);
  show(at.layer);
  const note = `The most probable next tokens at the layer picked, at ${run.lenses[number].at}. Orange: what the last layer puts first; green: the target, where that is another.`;
  return panel("bars", "Most probable tokens", note, holder);
}

function barsNote(at, own, row) {
  const parts = [`Entropy ${fixed(own.h[row] === null ? null : own.h[row] / 100)} nats`];
  if (own.target !== undefined && own.target_rank[row] !== null) {
    const known = token(at, own.target);
    const name = known === "" ? `token ${at.page.tables.token_ids[own.target]}` : `“${tokenText(known)}”`;
    parts.push(`target ${name} at rank ${own.target_rank[row]} (0 is first), P ${probability(own.target_p[row])}`);
  }
  return `${parts.join("; ")}.`;
}

// ------------------------------------------------------------------------------------------------------------- texts
function textsPanel(at) {
  const run = at.page.runs[at.run];
  const texts = at.page.tables.texts;
  const found = (at.sample?.texts || []).map((own, number) => own && textTable(at, run.texts[number].layers, own)).filter(Boolean);
  const references = (at.row?.references || []).map((number) => texts[number]);
  if (!found.length) {
    if (!references.length) return null;
    return panel("texts", "Reference", "", el("ul", {}, references.map((text) => el("li", {}, text))));
  }
  const beside = references.length
    ? el("aside", {}, el("h5", {}, "Reference"), references.map((text) => el("p", {}, text)))
    : null;
  const note = "Written from each layer alone, through the final norm and unembedding; ∅ is an empty text.";
  return panel("texts", "What each layer writes", note, el("div", { class: "beside" }, el("div", {}, found), beside));
}

function textTable(at, layers, own) {
  const lines = new Map();
  const body = el("tbody");
  for (let row = layers.length - 1; row >= 0; row--) {
    if (own[row] === null) continue;
    const text = at.page.tables.texts[own[row]];
    const cell = el("td", { class: text.trim() ? "text" : "text faint" }, text.trim() ? text : "∅");
    const line = el("tr", {}, el("th", { scope: "row" }, String(layers[row])), cell);
    line.addEventListener("click", () => at.setLayer(layers[row]));
    lines.set(layers[row], line);
    body.append(line);
  }
  const box = el("div", { class: "scroll tall" }, el("table", {}, body));
  at.followers.set(box, (layer) => {
    lines.forEach((line, number) => line.classList.toggle("here", number === layer));
    if (lines.has(layer)) down(box, lines.get(layer));
  });
  at.followers.get(box)(at.layer);
  return box;
}
