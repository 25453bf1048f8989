// The sample browser: what is picked, the list and the panels around it, the address that leads back to it.
const samplesData = document.getElementById("samples-data");
if (samplesData) browseSamples(JSON.parse(samplesData.textContent), document.getElementById("sample-browser"));

function browseSamples(page, root) {
  // What stays as one goes from row to row.
  const kept = { lens: "", shade: "p", curve: "p", layer: null, filter: "all", order: "row", sought: "" };
  const picked = { set: 0, run: 0, place: 0 };
  let shown = [];
  let items = new Map();
  const list = el("ul", { role: "listbox", tabindex: "0", "aria-label": "rows", onkeydown: listKeys, onclick: listClick });
  const found = el("p", { class: "faint", role: "status" });
  const controls = el("div", { class: "controls" });
  const search = el("input", { type: "search", placeholder: "search prompts, labels, row numbers", "aria-label": "search", oninput: searched, onkeydown: searchKeys });
  const view = el("div", { class: "picked", "aria-label": "the row picked", role: "region", tabindex: "-1" });
  root.replaceChildren(el("div", { class: "choose" }, search, controls, found, list), view);

  const partOf = (set, run) => page.sets[set].runs.find((part) => part.run === run);

  function searched() {
    kept.sought = search.value;
    refill();
  }

  function searchKeys(event) {
    if (event.key !== "ArrowDown" && event.key !== "Enter") return;
    event.preventDefault();
    list.focus();
    if (!shown.includes(picked.place) && shown.length) pick(shown[0]);
  }

  function listKeys(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    step(steps[event.key]);
  }

  function listClick(event) {
    const item = event.target.closest("li");
    if (item) pick(Number(item.dataset.place));
  }

  function step(by) {
    if (!shown.length) return;
    const here = shown.indexOf(picked.place);
    const next = here < 0 ? 0 : Math.min(Math.max(here + by, 0), shown.length - 1);
    pick(shown[next]);
  }

  // The controls of the data set and model picked.
  function recontrol() {
    const part = partOf(picked.set, picked.run);
    const own = page.sets[picked.set].runs.map((one) => one.run);
    const [known, sorts] = [filters(page, picked.set, part), orders(page, picked.set, part)];
    const has = (groups, name) => groups.some(([, entries]) => entries.some(([one]) => one === name));
    if (!has(known, kept.filter)) kept.filter = "all";
    if (!has(sorts, kept.order)) kept.order = "row";
    const options = (groups) => groups.map(([name, entries]) => [name, entries.map(([one, text]) => [one, text])]);
    const sets = page.sets.map((set, number) => [String(number), set.name]);
    const runs = own.map((run) => [String(run), page.runs[run].name]);
    controls.replaceChildren(
      ...(sets.length > 1 ? [select("data", [["", sets]], String(picked.set), (name) => go(Number(name), picked.run, 0))] : []),
      ...(runs.length > 1 ? [select("model", [["", runs]], String(picked.run), (name) => go(picked.set, Number(name), picked.place))] : []),
      select("show", options(known), kept.filter, (name) => {
        kept.filter = name;
        refill();
      }),
      select("order", options(sorts), kept.order, (name) => {
        kept.order = name;
        refill();
      }),
    );
    items = new Map();
    refill();
  }

  function refill() {
    const part = partOf(picked.set, picked.run);
    const entry = (groups, name) => groups.flatMap(([, entries]) => entries).find(([one]) => one === name)[2];
    const test = entry(filters(page, picked.set, part), kept.filter);
    const order = entry(orders(page, picked.set, part), kept.order);
    shown = matching(page, picked.set, part, order.filter(test), kept.sought);
    for (const place of shown) if (!items.has(place)) items.set(place, rowItem(page, picked.set, part, place));
    list.replaceChildren(...shown.map((place) => items.get(place)));
    found.textContent = `${shown.length.toLocaleString("en")} of ${page.sets[picked.set].rows.length.toLocaleString("en")} rows`;
    mark();
  }

  function mark() {
    for (const item of list.querySelectorAll("[aria-selected=true]")) item.setAttribute("aria-selected", "false");
    const item = items.get(picked.place);
    if (!item || !item.isConnected) {
      list.removeAttribute("aria-activedescendant");
      return;
    }
    item.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", item.id);
    // Only the list scrolls, not the page.
    const [top, bottom] = [item.offsetTop, item.offsetTop + item.offsetHeight];
    if (top < list.scrollTop) list.scrollTop = top;
    if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  }

  function go(set, run, place) {
    const parts = page.sets[set].runs;
    picked.set = set;
    picked.run = parts.some((part) => part.run === run) ? run : parts[0].run;
    recontrol();
    pick(Math.min(place, page.sets[set].rows.length - 1));
  }

  function pick(place) {
    picked.place = place;
    mark();
    show();
    const many = page.runs.length > 1 ? `&model=${encodeURIComponent(page.runs[picked.run].id)}` : "";
    const set = page.sets[picked.set];
    history.replaceState(null, "", `#sample=${encodeURIComponent(set.name)}:${set.rows[place]}${many}`);
  }

  // What a panel is given: what is picked, what the page holds of it, and how to follow the layer.
  function current() {
    const part = partOf(picked.set, picked.run);
    const number = part.samples[picked.place];
    const key = `${picked.set}/${picked.run}`;
    return {
      ...picked,
      page,
      kept,
      part,
      number,
      sample: page.samples[`${key}/${number}`],
      row: page.rows[`${key}/${picked.place}`],
      about: page.abouts[key],
      followers: new Map(),
    };
  }

  function layersOf(at) {
    const run = page.runs[at.run];
    const all = [
      ...(at.sample?.grid ? run.grid.layers : []),
      ...(at.sample?.lens || []).flatMap((own, number) => (own ? run.lenses[number].layers : [])),
      ...(at.sample?.texts || []).flatMap((own, number) => (own ? run.texts[number].layers : [])),
      ...(at.row?.predictions || []).flatMap((own, number) => (own ? at.about.predictions[number].layers : [])),
      ...(at.row?.pathways || []).flatMap((own, number) => (own ? at.about.pathways[number].layers : [])),
    ];
    return [...new Set(all)].sort((a, b) => a - b);
  }

  function show() {
    const at = current();
    const run = page.runs[at.run];
    const layers = layersOf(at);
    const nearest = (layer) => layers.reduce((best, one) => (Math.abs(one - layer) < Math.abs(best - layer) ? one : best));
    at.layer = layers.length ? nearest(kept.layer ?? run.final) : null;
    const slider = el("input", { type: "range", min: 0, max: Math.max(layers.length - 1, 0), step: 1, "aria-label": "layer" });
    const name = el("output", {});
    at.setLayer = (layer) => {
      at.layer = kept.layer = nearest(layer);
      slider.value = layers.indexOf(at.layer);
      const called = `layer ${at.layer}${run.layers[at.layer] ? ` (${run.layers[at.layer]})` : ""}`;
      slider.setAttribute("aria-valuetext", called);
      name.textContent = called;
      at.followers.forEach((follow) => follow(at.layer));
    };
    slider.addEventListener("input", () => at.setLayer(layers[Number(slider.value)]));
    const bars = el("div", {});
    at.redraw = () => bars.replaceChildren(...[barsPanel(at)].filter(Boolean));
    at.redraw();
    const panels = [lensPanel(at), bars, textsPanel(at), predictionsPanel(at), pathwaysPanel(at)];
    const steps = el("div", { class: "layer" }, el("label", {}, "layer ", slider), name);
    view.replaceChildren(
      ...[header(at), factsPanel(at), promptPanel(at), layers.length ? steps : null, ...panels, missing(at)].filter(Boolean),
    );
    if (layers.length) at.setLayer(at.layer);
  }

  function header(at) {
    const set = page.sets[at.set];
    const id = at.number === null ? "no sample in this model" : `sample ${at.part.ids[at.number]}`;
    const same = at.number === null ? [] : at.part.samples.flatMap((number, place) => (number === at.number && place !== at.place ? [place] : []));
    const others = same.slice(0, 5).map((place) => el("button", { type: "button", class: "link", onclick: () => pick(place) }, `row ${set.rows[place]}`));
    const why = at.place in set.whole ? page.tables.texts[set.whole[at.place]] : null;
    const first = page.first && ["set", "place", "run"].every((name) => page.first[name] === at[name]) ? page.first.said : null;
    return el(
      "header",
      {},
      el("h3", {}, `${set.name}, row ${set.rows[at.place]}`),
      el(
        "div",
        { class: "steps" },
        el("button", { type: "button", onclick: () => step(-1), title: "arrow up in the list" }, "‹ previous"),
        el("button", { type: "button", onclick: () => step(1), title: "arrow down in the list" }, "next ›"),
      ),
      el("p", { class: "faint" }, `${page.runs[at.run].name} · ${id}${why ? ` · ● ${why}` : ""}`),
      first ? el("p", { class: "faint" }, first) : null,
      others.length ? el("p", { class: "faint" }, "The same prompt: ", others, same.length > 5 ? ` and ${same.length - 5} more` : "") : null,
    );
  }

  function missing(at) {
    const set = page.sets[at.set];
    if (at.place in set.whole || at.sample?.lens || at.sample?.grid || at.sample?.texts || at.number === null) return null;
    const run = page.runs[at.run];
    if (!run.left_out && !run.lenses.length && !run.grid && !run.texts.length) return null;
    const name = `${set.name}:${set.rows[at.place]}`;
    const command = `${page.more} ${/^[\w.:-]+$/.test(name) ? name : `'${name.replace(/'/g, "'\\''")}'`}`;
    return el("p", { class: "faint" }, "To keep this page small, the lens and the texts of this sample are not in it. With them: ", el("code", {}, command));
  }

  // `#sample=films:12&model=demo-1a2b3c4d`
  function fromAddress() {
    const match = /^#sample=(.*):(\d+)(?:&model=(.*))?$/.exec(location.hash);
    if (!match) return false;
    const [name, model] = [match[1], match[3] || ""].map((text) => {
      try {
        return decodeURIComponent(text);
      } catch {
        return "";
      }
    });
    const set = page.sets.findIndex((one) => one.name === name);
    const place = set < 0 ? -1 : page.sets[set].rows.indexOf(Number(match[2]));
    if (place < 0) return false;
    const run = page.runs.findIndex((one) => one.id === model);
    go(set, run < 0 ? picked.run : run, place);
    root.scrollIntoView();
    return true;
  }

  window.addEventListener("hashchange", fromAddress);
  if (!fromAddress()) {
    const address = location.href;
    const first = page.first ?? { set: 0, place: 0, run: page.sets[0].runs[0].run };
    go(first.set, first.run, first.place);
    // The address only changes once somebody picks.
    history.replaceState(null, "", address);
  }
}
