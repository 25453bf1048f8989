// Charts: drawn when they come into sight, all told the same layers and models, saved as files in light colours.
const state = { layers: null, hidden: new Set() };
const views = new Map();

function isShown(row) {
  const inside = (layer) => !state.layers || typeof layer !== "number" || (layer >= state.layers[0] && layer <= state.layers[1]);
  return !state.hidden.has(row.model) && inside(row.layer) && inside(row.other_layer);
}

// `ast` has Vega interpret expressions instead of compiling them, so the page needs no right to evaluate code.
function embedded(place, number, config) {
  const spec = structuredClone(held.specs[number]);
  const names = new Set(JSON.stringify(spec).match(/"data":\{"name":"[^"]+"\}/g)?.map((text) => text.slice(16, -2)));
  spec.datasets = Object.fromEntries([...names].filter((name) => name in held.data).map((name) => [name, rowsOf(name)]));
  const look = structuredClone(config);
  fit(spec, look, place.isConnected ? document.querySelector("main").clientWidth : 0);
  return vegaEmbed(place, spec, {
    ast: true, actions: false, renderer: "svg", config: look, patch: linked,
    defaultStyle: false, tooltip: { disableDefaultStyle: true },
  });
}

// What Vega-Lite has no words for: legends that can be clicked, and a veil that the mouse sees through.
function linked(spec) {
  const visit = (part) => {
    if (Array.isArray(part)) part.forEach(visit);
    else if (part && typeof part === "object") {
      if (part.type === "rect" && [part.style].flat().includes("veil")) part.interactive = false;
      for (const legend of part.legends ?? []) legend.encode = clickable(legend);
      Object.values(part).forEach(visit);
    }
  };
  visit(spec.marks);
  for (const legend of spec.legends ?? []) legend.encode = clickable(legend);
  return spec;
}

function clickable(legend) {
  const encode = legend.encode ?? {};
  if (legend.title !== "model") return encode;
  const opacity = { signal: "indexof(hidden, datum.value) < 0 ? 1 : 0.3" };
  for (const part of ["symbols", "labels"]) {
    const update = { ...encode[part]?.update, opacity, cursor: { value: "pointer" } };
    encode[part] = { ...encode[part], interactive: true, update };
  }
  return encode;
}

function draw(place) {
  if (place.dataset.drawn) return Promise.resolve();
  place.dataset.drawn = "yes";
  return embedded(place, place.dataset.chart, held.configs.page).then(({ view }) => {
    views.set(place, view);
    place.classList.add("drawn");
    if (state.layers || state.hidden.size) tell(view);
    view.addEventListener("click", (event, item) => {
      if (/^legend-(symbol|label)$/.test(item?.mark?.role)) toggle(item.datum.value);
    });
    brushable(place, view);
  }).catch(() => place.classList.add("failed"));
}

function tell(view) {
  view.signal("brushed", state.layers).signal("hidden", [...state.hidden]).runAsync();
}

function changed() {
  views.forEach(tell);
  document.querySelectorAll(".numbers[open]").forEach((place) => numbersOf(place).draw());
  document.dispatchEvent(new CustomEvent("picked"));
}

function toggle(model) {
  if (!state.hidden.delete(model)) state.hidden.add(model);
  changed();
}

function pick(layers) {
  if (JSON.stringify(layers) === JSON.stringify(state.layers)) return;
  state.layers = layers;
  changed();
}

// The panels of a view whose x axis is the layer: where they are, and the layer at a pixel.
function* panels(group, x = 0, y = 0) {
  for (const mark of group.items ?? []) {
    if (mark.marktype !== "group") continue;
    for (const inner of mark.items) {
      const place = { x: x + inner.x, y: y + inner.y, width: inner.width, height: inner.height };
      if (/^layers\d+_group$/.test(mark.name)) yield { ...place, scale: mark.name.replace("group", "x") };
      yield* panels(inner, place.x, place.y);
    }
  }
}

function panelAt(view, event) {
  const box = view.container().querySelector("svg").getBoundingClientRect();
  const [left, top] = view.origin();
  const x = event.clientX - box.left - left, y = event.clientY - box.top - top;
  const inside = (one) => x >= one.x && x <= one.x + one.width && y >= one.y && y <= one.y + one.height;
  return [...panels(view.scenegraph().root.items[0])].find(inside);
}

function layerAt(view, panel, event) {
  const box = view.container().querySelector("svg").getBoundingClientRect();
  const x = Math.min(Math.max(event.clientX - box.left - view.origin()[0] - panel.x, 0), panel.width);
  const scale = view.scale(panel.scale);
  if (scale.invert) return Math.round(Math.min(Math.max(scale.invert(x), Math.ceil(scale.domain()[0])), Math.floor(scale.domain()[1])));
  const names = scale.domain();
  return Number(names[Math.min(Math.floor((x / panel.width) * names.length), names.length - 1)]);
}

// Dragging across a panel picks layers, a click without dragging picks all again. A finger scrolls: it has the fields above.
function brushable(place, view) {
  let begun = null;
  place.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" || event.button !== 0) return;
    const panel = panelAt(view, event);
    if (!panel) return;
    begun = { panel, from: layerAt(view, panel, event), x: event.clientX };
    event.preventDefault();
  });
  window.addEventListener("pointermove", (event) => {
    if (!begun || Math.abs(event.clientX - begun.x) < 4) return;
    const to = layerAt(view, begun.panel, event);
    view.signal("brushed", [Math.min(begun.from, to), Math.max(begun.from, to)]).runAsync();
  });
  window.addEventListener("pointerup", (event) => {
    if (!begun) return;
    const { panel, from, x } = begun;
    begun = null;
    if (Math.abs(event.clientX - x) < 4) return pick(null);
    const to = layerAt(view, panel, event);
    pick([Math.min(from, to), Math.max(from, to)]);
  });
}

// A second drawing, out of sight, in the colours and fonts of files.
async function saveChart(place, kind) {
  const aside = document.createElement("div");
  const { view, finalize } = await embedded(aside, place.dataset.chart, held.configs.file);
  await view.signal("brushed", state.layers).signal("hidden", [...state.hidden]).runAsync();
  if (kind === "svg") save(`${place.dataset.name}.svg`, new Blob([await view.toSVG()], { type: "image/svg+xml" }));
  else (await view.toCanvas(2)).toBlob((content) => save(`${place.dataset.name}.png`, content));
  finalize();
}

for (const figure of document.querySelectorAll("figure")) {
  for (const button of figure.querySelectorAll("[data-save=svg], [data-save=png]")) {
    button.addEventListener("click", () => saveChart(figure.querySelector(".chart"), button.dataset.save));
  }
}
