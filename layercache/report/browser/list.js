// The list of rows: what is said of each, which are shown, and in which order.

function rowWords(page, set, part, place) {
  const own = page.sets[set];
  const labels = (part?.labels || []).map((label) => `${label.name} ${labelText(label, place) ?? ""}`);
  const id = part && part.samples[place] !== null ? part.ids[part.samples[place]] : "";
  return `${own.prefix}${own.prompts[place]} ${own.rows[place]} ${id} ${labels.join(" ")}`.toLowerCase();
}

// Every word of the search has to be there.
function matching(page, set, part, places, sought) {
  const words = sought.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return places;
  return places.filter((place) => {
    const text = rowWords(page, set, part, place);
    return words.every((word) => text.includes(word));
  });
}

// Filters of a list as groups of [name, text, test]; the name is only ever looked up.
function filters(page, set, part) {
  const whole = page.sets[set].whole;
  const groups = [["", [["all", "all rows", () => true]]]];
  if (Object.keys(whole).length < page.sets[set].rows.length) {
    groups[0][1].push(["whole", "with every panel ●", (place) => place in whole]);
  }
  const outcomes = [];
  (part?.scores || []).forEach((score, number) => {
    if (score.right) {
      const who = score.kind === "choice" ? "lens" : "probe";
      outcomes.push([`wrong ${number}`, `${score.name}: ${who} wrong (${score.place})`, (place) => score.right[place] === 0]);
    }
    if (score.flip) outcomes.push([`flips ${number}`, `${score.name}: flips`, (place) => score.flip[place] === 1]);
  });
  if (outcomes.length) groups.push(["outcome", outcomes]);
  (part?.labels || []).forEach((label, number) => {
    if (!label.classes || label.classes.length > 40) return;
    const values = label.classes.map((name, value) => [`${number} ${value}`, `${label.name} = ${name}`, (place) => label.values[place] === value]);
    groups.push([label.name, values]);
  });
  return groups;
}

// Orders as groups of [name, text, places]; rows without the number come last.
function orders(page, set, part) {
  const all = page.sets[set].rows.map((_, place) => place);
  const groups = [["", [["row", "in the order of the data", all]]]];
  const scores = (part?.scores || []).map((score, number) => {
    const there = new Set(score.order);
    const run = `${score.extreme} first (${score.place})`;
    return [`score ${number}`, run, [...score.order, ...all.filter((place) => !there.has(place))]];
  });
  if (scores.length) groups.push(["extremes", scores]);
  const labels = (part?.labels || []).flatMap((label, number) => {
    const value = (place) => label.values[place] ?? Infinity;
    const rising = [...all].sort((a, b) => value(a) - value(b) || a - b);
    const known = rising.filter((place) => label.values[place] !== null);
    const falling = [...known].reverse().concat(rising.slice(known.length));
    if (label.kind !== "number") return [[`up ${number}`, `by ${label.name}`, rising]];
    return [[`up ${number}`, `by ${label.name}, rising`, rising], [`down ${number}`, `by ${label.name}, falling`, falling]];
  });
  if (labels.length) groups.push(["labels", labels]);
  return groups;
}

function rowItem(page, set, part, place) {
  const own = page.sets[set];
  const whole = place in own.whole;
  const prompt = (own.prefix ? "… " : "") + own.prompts[place].slice(0, 140).replace(/\s+/g, " ");
  const tags = (part?.labels || []).map((label) => {
    const value = labelText(label, place);
    return value === null ? null : el("span", { class: "tag" }, `${label.name} ${value}`);
  });
  const marks = (part?.scores || []).map((score) => {
    if (score.right && score.right[place] !== null) {
      const right = score.right[place] === 1;
      const text = `${right ? "✓" : "✗"} ${score.classes[score.values[place]]}`;
      return el("span", { class: right ? "tag right" : "tag wrong", title: `predicted ${score.name}, ${score.place}` }, text);
    }
    if (score.kind === "number" && score.value[place] !== null) {
      return el("span", { class: "tag", title: `predicted ${score.name}, ${score.place}` }, `→ ${plainNumber(score.value[place])}`);
    }
    if (score.flip?.[place] === 1) return el("span", { class: "tag wrong", title: score.place }, `${score.name} flips`);
    return null;
  });
  const why = whole ? page.tables.texts[own.whole[place]] : null;
  const dot = whole ? el("span", { class: "whole", title: `every panel: ${why}` }, "●") : null;
  const number = el("span", { class: "row" }, `${own.rows[place]}`);
  return el(
    "li",
    { role: "option", id: `sample-${place}`, "aria-selected": "false", "data-place": place },
    el("span", { class: "line" }, number, el("span", { class: "begin" }, prompt), dot),
    el("span", { class: "tags" }, tags, marks),
  );
}
