// Elements, numbers and pictures of the sample browser. What comes from data only ever becomes a text node or an attribute.
const COLOURS = 6;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2", "1 2"];
const SPACE_SIGNS = [[/ /g, "␣"], [/\n/g, "⏎"], [/\t/g, "⇥"]];

function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

// `onclick` is a listener, `--p` a CSS variable; what is null, undefined or false is left out.
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function fixed(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const shown = Math.abs(value).toFixed(digits).replace(/^0\./, ".");
  return value < 0 && Number(shown) ? `−${shown}` : shown;
}

function signed(value, digits = 2) {
  return value > 0 ? `+${fixed(value, digits)}` : fixed(value, digits);
}

// Numbers of labels as they are, with four digits at most.
function plainNumber(value) {
  return value === null || value === undefined ? "–" : String(value).replace("-", "−");
}

function probability(parts) {
  if (parts === null || parts === undefined) return "–";
  return parts < 10 ? "<.001" : fixed(parts / 10000, 3);
}

function visible(text) {
  const shown = SPACE_SIGNS.reduce((found, [sign, other]) => found.replace(sign, other), text);
  return shown === "" ? "∅" : shown;
}

// A token as the figures write it: spaces show at its ends, line ends and tabs everywhere.
function tokenText(text) {
  const [, left, body, right] = /^( *)([^]*?)( *)$/.exec(text);
  if (body === "") return visible(text);
  return "␣".repeat(left.length) + body.replace(/\n/g, "⏎").replace(/\t/g, "⇥") + "␣".repeat(right.length);
}

function select(label, options, value, onchange) {
  const made = el("select", { "aria-label": label, onchange: () => onchange(made.value) });
  for (const [group, own] of options) {
    const inner = own.map(([name, text]) => el("option", { value: name }, text));
    made.append(...(group ? [el("optgroup", { label: group }, inner)] : inner));
  }
  made.value = value;
  return el("label", { class: "control" }, el("span", { "aria-hidden": "true" }, label), made);
}

// One of `cells` can be tabbed to; the arrow keys go on from there. `columns` of them make a line.
function rove(cells, columns, onfocus) {
  cells.forEach((cell, number) => {
    cell.tabIndex = number ? -1 : 0;
    cell.addEventListener("focus", () => onfocus(number));
    cell.addEventListener("pointerenter", () => onfocus(number));
    cell.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
      const next = cells[number + (steps[event.key] || 0)];
      if (!steps[event.key] || !next) return;
      event.preventDefault();
      event.stopPropagation();
      cell.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
}

// Scrolls a box, and not the page, to what is out of sight in it: to a cell, beside the first one, which stays; to a line.
function across(box, cell) {
  const [left, right] = [cell.offsetLeft, cell.offsetLeft + cell.offsetWidth];
  const hidden = left < box.scrollLeft + cell.parentNode.cells[0].offsetWidth || right > box.scrollLeft + box.clientWidth;
  if (hidden) box.scrollLeft = (left + right - box.clientWidth) / 2;
}

function down(box, line) {
  const [top, bottom] = [line.offsetTop, line.offsetTop + line.offsetHeight];
  if (top < box.scrollTop || bottom > box.scrollTop + box.clientHeight) box.scrollTop = (top + bottom - box.clientHeight) / 2;
}

// Lines over layers. Returns the picture and a function that marks a layer.
function lineChart({ layers, lines, low, high, rules = [], ticks, digits, title, onpick }) {
  const [width, height, left, right, top, bottom] = [640, 230, 46, 12, 10, 34];
  const first = layers[0];
  const last = layers[layers.length - 1];
  const x = (layer) => left + ((width - left - right) * (layer - first)) / Math.max(1, last - first);
  const y = (value) => top + ((height - top - bottom) * (high - value)) / (high - low || 1);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "lines", role: "img", "aria-label": title });
  for (const tick of ticks) {
    chart.append(
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, fixed(tick, digits)),
    );
  }
  const step = [1, 2, 4, 8, 16].find((every) => last - first < 16 * every) || 32;
  for (const layer of layers) {
    if (layer % step) continue;
    chart.append(svg("text", { x: x(layer), y: height - bottom + 16, "text-anchor": "middle" }, String(layer)));
  }
  chart.append(svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "layer"));
  for (const rule of rules) {
    chart.append(svg("line", { class: "rule", x1: left, x2: width - right, y1: y(rule), y2: y(rule) }));
  }
  const marker = svg("line", { class: "marker", y1: top, y2: height - bottom });
  chart.append(marker);
  lines.forEach((line) => {
    const style = { class: "curve", "--colour": line.colour, "stroke-dasharray": line.dash };
    for (const run of runsOf(layers, line.values)) {
      chart.append(svg("polyline", { ...style, points: run.map(([at, value]) => `${x(at)},${y(value)}`).join(" ") }));
    }
    line.values.forEach((value, number) => {
      if (value === null) return;
      chart.append(svg("circle", { class: "dot", "--colour": line.colour, cx: x(layers[number]), cy: y(value), r: 3 }));
    });
  });
  chart.addEventListener("click", (event) => {
    const box = chart.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    onpick(layers.reduce((best, layer) => (Math.abs(x(layer) - at) < Math.abs(x(best) - at) ? layer : best)));
  });
  const mark = (layer) => {
    marker.toggleAttribute("hidden", !layers.includes(layer));
    marker.setAttribute("x1", x(layer));
    marker.setAttribute("x2", x(layer));
  };
  return [chart, mark];
}

// Stretches of a line without gaps.
function runsOf(layers, values) {
  const found = [[]];
  values.forEach((value, number) => {
    if (value === null) found.push([]);
    else found[found.length - 1].push([layers[number], value]);
  });
  return found.filter((run) => run.length > 1);
}

function swatch(line) {
  const stroke = { x1: 1, x2: 27, y1: 6, y2: 6, class: "curve", "--colour": line.colour, "stroke-dasharray": line.dash };
  return svg("svg", { class: "swatch", viewBox: "0 0 28 12", "aria-hidden": "true" }, svg("line", stroke));
}
