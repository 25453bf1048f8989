// Panels of numbers by layer: what probes predict, and what is left of a right answer under changed passes.

function predictionsPanel(at) {
  const groups = new Map();
  (at.row?.predictions || []).forEach((own, number) => {
    if (!own) return;
    const about = at.about.predictions[number];
    const key = `${about.kind} ${about.label}`;
    groups.set(key, [...(groups.get(key) || []), { about, own, place: placeName(about) }]);
  });
  if (!groups.size) return null;
  const found = [...groups.values()].map((own) => (own[0].about.kind === "class" ? classStrips(at, own) : numberLines(at, own)));
  const note = "By probes that were not fitted on this row, and by the lens where it chooses among given answers. Green: right; orange, dashed: wrong.";
  return panel("predictions", "Predictions by layer", note, found);
}

function placeName(about) {
  return `${about.analysis === "choices" ? "lens, " : ""}${about.place}`;
}

function labelHeading(at, about) {
  const truth = at.part.labels.find((label) => label.name === about.label);
  const value = truth ? labelText(truth, at.place) : null;
  return el("h5", {}, value === null ? about.label : `${about.label}: ${value}`);
}

// A line a place, a column a layer.
function classStrips(at, group) {
  const texts = at.page.tables.texts;
  const layers = [...new Set(group.flatMap(({ about }) => about.layers))].sort((a, b) => a - b);
  const output = el("output", { class: "readout faint" });
  const [cells, reads] = [[], []];
  const rows = group.map(({ about, own: [names, p, right], place }) => {
    const line = layers.map((layer) => {
      const row = about.layers.indexOf(layer);
      const there = row >= 0 && names[row] !== null;
      const inner = there ? [el("span", { class: "name" }, texts[names[row]]), el("small", {}, probability(p[row]))] : "";
      const said = there ? `${texts[names[row]]}, P ${probability(p[row])}, ${right[row] ? "right" : "wrong"}` : "nothing stored";
      reads.push(`${place}, layer ${layer}: ${said}`);
      const kind = there ? (right[row] ? "right" : "wrong") : null;
      const look = { class: kind, "--p": there ? (p[row] / 10000).toFixed(3) : "0", "aria-label": reads[reads.length - 1] };
      const cell = el("td", { role: "gridcell", ...look, onclick: () => at.setLayer(layer) }, inner);
      cells.push(cell);
      return cell;
    });
    return el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, place), line);
  });
  rove(cells, layers.length, (number) => {
    output.textContent = reads[number];
  });
  const follow = (layer) => {
    cells.forEach((cell, number) => cell.classList.toggle("here", layers[number % layers.length] === layer));
    const here = cells[layers.indexOf(layer)];
    if (here) across(box, here);
  };
  at.followers.set(cells, follow);
  const heads = el("tr", {}, el("th", {}, "layer"), layers.map((layer) => el("th", { scope: "col" }, String(layer))));
  const table = el("table", { class: "strip", role: "grid", "aria-label": `${group[0].about.label} by layer` }, el("thead", {}, heads), el("tbody", {}, rows));
  const box = el("div", { class: "scroll" }, table);
  return el("div", {}, labelHeading(at, group[0].about), box, output);
}

function numberLines(at, group) {
  const label = group[0].about.label;
  const truth = at.part.labels.find((one) => one.name === label)?.values[at.place] ?? null;
  const layers = [...new Set(group.flatMap(({ about }) => about.layers))].sort((a, b) => a - b);
  const lines = group.map(({ about, own: [values], place }, number) => ({
    name: place,
    colour: `var(--c${(number % COLOURS) + 1})`,
    dash: DASHES[number % DASHES.length],
    values: layers.map((layer) => values[about.layers.indexOf(layer)] ?? null),
  }));
  const all = [...lines.flatMap((line) => line.values), truth].filter((value) => value !== null);
  const [least, most] = [Math.min(...all), Math.max(...all)];
  const margin = (most - least || 1) / 10;
  const digits = most - least < 5 ? 2 : most - least < 50 ? 1 : 0;
  const [chart, mark] = lineChart({
    layers,
    lines,
    low: least - margin,
    high: most + margin,
    rules: truth === null ? [] : [truth],
    ticks: [least, (least + most) / 2, most],
    digits,
    title: `${label}: predictions over layers`,
    onpick: at.setLayer,
  });
  const body = el("tbody");
  const follow = (layer) => {
    mark(layer);
    const row = layers.indexOf(layer);
    const cells = (value) => [plainNumber(value), value === null || truth === null ? "–" : signed(value - truth, digits)];
    const shown = row < 0 ? [] : lines.map((line) => tableLine(line, cells(line.values[row])));
    body.replaceChildren(...shown);
  };
  at.followers.set(chart, follow);
  const heads = ["", "predicted", "off by"].map((name) => el("th", { scope: "col" }, name));
  const table = el("table", {}, el("thead", {}, el("tr", {}, heads)), body);
  const beside = el("div", { class: "beside" }, el("div", {}, chart), el("div", { class: "scroll" }, table));
  return el("div", {}, labelHeading(at, group[0].about), beside, truth === null ? null : el("p", { class: "faint" }, "Dashed: the truth."));
}

function tableLine(line, texts) {
  const cells = texts.map((text) => el("td", { class: "n" }, text));
  return el("tr", {}, el("th", { scope: "row" }, swatch(line), line.name), cells);
}

function pathwaysPanel(at) {
  const found = (at.row?.pathways || [])
    .map((own, number) => own && pathway(at, at.about.pathways[number], own))
    .filter(Boolean);
  if (!found.length) return null;
  const note = "A probe of the clean states, fitted on other prompts, reads the states of every pass: the probability that the label is true. ΔP is what the probability of its clean prediction gains under the change, in percentage points: below 0 where it loses.";
  return panel("pathways", "Under changed passes", note, found);
}

// As in the analysis: ŷ is what the clean pass makes more probable than not, ΔP = 100 (P(ŷ | change) - P(ŷ | clean)).
function change(clean, changed) {
  if (clean === null || changed === null) return [null, false];
  const sign = clean >= 5000 ? 1 : -1;
  return [(sign * (changed - clean)) / 100, clean >= 5000 !== changed >= 5000];
}

function pathway(at, about, own) {
  const holder = el("div", {});
  const show = () => {
    at.followers.delete(holder);
    const losses = at.kept.curve === "delta";
    const lines = own.map((values, number) => ({
      name: about.conditions[number],
      number,
      colour: number ? `var(--c${((number - 1) % COLOURS) + 1})` : "var(--ink)",
      dash: number ? DASHES[number % DASHES.length] : "",
      values: losses
        ? values.map((value, row) => change(own[0][row], value)[0])
        : values.map((value) => (value === null ? null : value / 10000)),
    }));
    const shown = losses ? lines.slice(1) : lines;
    const all = shown.flatMap((line) => line.values).filter((value) => value !== null);
    const [low, high] = losses ? [Math.min(-10, ...all), Math.max(10, ...all)] : [0, 1];
    const [chart, mark] = lineChart({
      layers: about.layers,
      lines: shown,
      low,
      high,
      rules: [losses ? 0 : 0.5],
      ticks: losses ? [low, 0, high] : [0, 0.25, 0.5, 0.75, 1],
      digits: losses ? 0 : 2,
      title: `${losses ? "ΔP" : `probability that ${about.label} is true`} over layers, by condition`,
      onpick: at.setLayer,
    });
    const body = el("tbody");
    const follow = (layer) => {
      mark(layer);
      const row = about.layers.indexOf(layer);
      body.replaceChildren(...(row < 0 ? [] : lines.map((line) => conditionLine(line, own, row))));
    };
    const heads = ["", `P(${about.label})`, "ΔP, points", "flips"].map((name) => el("th", { scope: "col" }, name));
    const table = el("table", {}, el("thead", {}, el("tr", {}, heads)), body);
    holder.replaceChildren(el("div", { class: "beside" }, el("div", {}, chart), el("div", { class: "scroll" }, table)));
    at.followers.set(holder, follow);
    follow(at.layer);
  };
  const kinds = [["p", `P(${about.label})`], ["delta", "ΔP"]];
  const control = select("plotted", [["", kinds]], at.kept.curve, (name) => {
    at.kept.curve = name;
    show();
  });
  show();
  return el("div", {}, el("h5", {}, `${about.label}, read at ${about.place}`), el("div", { class: "controls" }, control), holder);
}

function conditionLine(line, own, row) {
  const [lost, flips] = change(own[0][row], own[line.number][row]);
  const cells = line.number ? [signed(lost, 1), lost === null ? "–" : flips ? "yes" : "no"] : ["", ""];
  const p = own[line.number][row];
  return tableLine(line, [p === null ? "–" : fixed(p / 10000, 3), ...cells]);
}
