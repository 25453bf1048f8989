// Panels of numbers by layer: what probes predict, and what is left of a right answer under changed passes.

function predictionsPanel(at) {
  const found = (at.row?.predictions || [])
    .map((own, number) => own && [at.about.predictions[number], own])
    .filter(Boolean)
    .map(([about, own]) => (about.kind === "class" ? classStrip(at, about, own) : numberLine(at, about, own)));
  if (!found.length) return null;
  const note = "By probes that were not fitted on this row, and by the lens where it chooses among given answers.";
  return panel("predictions", "Predictions by layer", note, found);
}

function predictionName(at, about) {
  const truth = at.part.labels.find((label) => label.name === about.label);
  const value = truth ? labelText(truth, at.place) : null;
  const who = about.analysis === "choices" ? "lens" : "probe";
  return `${about.label}, ${who} at ${about.place}${value === null ? "" : ` (true: ${value})`}`;
}

function classStrip(at, about, [names, p, right]) {
  const texts = at.page.tables.texts;
  const output = el("output", { class: "readout faint" });
  const heads = el("tr", {}, about.layers.map((layer) => el("th", { scope: "col" }, String(layer))));
  const reads = about.layers.map((layer, row) =>
    names[row] === null
      ? `layer ${layer}: nothing stored`
      : `layer ${layer}: ${texts[names[row]]}, P ${probability(p[row])}, ${right[row] ? "right" : "wrong"}`,
  );
  const cells = about.layers.map((layer, row) => {
    const kind = names[row] === null ? null : right[row] ? "right" : "wrong";
    const inner = names[row] === null ? "" : [el("span", { class: "name" }, texts[names[row]]), el("small", {}, probability(p[row]))];
    const cell = el("td", { class: kind, "--p": ((p[row] ?? 0) / 10000).toFixed(3), "aria-label": reads[row] }, inner);
    cell.addEventListener("click", () => at.setLayer(layer));
    return cell;
  });
  rove(cells, cells.length, (row) => {
    output.textContent = reads[row];
  });
  const follow = (layer) => {
    cells.forEach((cell, row) => cell.classList.toggle("here", about.layers[row] === layer));
    output.textContent = reads[about.layers.indexOf(layer)] || "";
  };
  at.followers.set(cells, follow);
  follow(at.layer);
  const table = el("table", { class: "strip" }, el("thead", {}, heads), el("tbody", {}, el("tr", {}, cells)));
  return el("div", {}, el("h5", {}, predictionName(at, about)), el("div", { class: "scroll" }, table), output);
}

function numberLine(at, about, [values]) {
  const truth = at.part.labels.find((label) => label.name === about.label)?.values[at.place] ?? null;
  const all = [...values, truth].filter((value) => value !== null);
  const [least, most] = [Math.min(...all), Math.max(...all)];
  const margin = (most - least || 1) / 10;
  const digits = most - least < 5 ? 2 : most - least < 50 ? 1 : 0;
  const output = el("output", { class: "readout faint" });
  const [chart, mark] = lineChart({
    layers: about.layers,
    lines: [{ colour: "var(--c1)", dash: "", values }],
    low: least - margin,
    high: most + margin,
    rules: truth === null ? [] : [truth],
    ticks: [least, (least + most) / 2, most],
    digits,
    title: `${predictionName(at, about)}, predictions over layers`,
    onpick: at.setLayer,
  });
  const follow = (layer) => {
    mark(layer);
    const value = values[about.layers.indexOf(layer)];
    if (value === null || value === undefined) output.textContent = "";
    else output.textContent = `layer ${layer}: ${plainNumber(value)}${truth === null ? "" : `, off by ${signed(value - truth, digits)}`} (dashed: the truth)`;
  };
  at.followers.set(chart, follow);
  follow(at.layer);
  return el("div", {}, el("h5", {}, predictionName(at, about)), chart, output);
}

function pathwaysPanel(at) {
  const found = (at.row?.pathways || [])
    .map((own, number) => own && pathway(at, at.about.pathways[number], own))
    .filter(Boolean);
  if (!found.length) return null;
  const note = "A probe of the clean states, fitted on other prompts, reads the states of every pass: the probability that the label is true. ΔP is what the clean prediction gains, in percentage points.";
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
  const control = select("show", [["", kinds]], at.kept.curve, (name) => {
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
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, swatch(line), line.name),
    [p === null ? "–" : fixed(p / 10000, 3), ...cells].map((text) => el("td", { class: "n" }, text)),
  );
}
