"use strict";
// Tables: the ones the page came with are sorted in place; the numbers behind charts are made when they are opened.
const held = JSON.parse(document.getElementById("page-data").textContent);
const ROWS = 200;

// A column is held whole, as runs of equal values (value, length, value, …) or as places in a list of the values there are.
function unpacked(column) {
  if (Array.isArray(column)) return column;
  if (column.of) return column.at.map((place) => column.of[place]);
  const { runs } = column;
  return runs.flatMap((value, at) => (at % 2 ? [] : Array(runs[at + 1]).fill(value)));
}

// The rows of a frame, new objects every time: Vega writes into what it is given.
function rowsOf(name) {
  const { n, columns } = held.data[name];
  const read = Object.entries(columns).map(([key, column]) => [key, unpacked(column)]);
  return Array.from({ length: n }, (_, at) => Object.fromEntries(read.map(([key, values]) => [key, values[at]])));
}

// Short for reading; the whole number is in the cell's title. Among fractions, 0 and 1 are written as these are.
function short(value, whole) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && (whole || Math.abs(value) > 1)) return value.toLocaleString("en").replace("-", "−");
  if (value && Math.abs(value) < 0.001) return value.toExponential(2).replaceAll("-", "−");
  const shown = value.toLocaleString("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
  return shown.replace("-", "−").replace(/^(−?)0\./, "$1.");
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

// Empty cells come last whichever way a column is sorted.
function ordered(rows, value, falling) {
  const keyed = rows.map((row) => [value(row), row]);
  const empty = ([key]) => key === null || key === undefined || key === "";
  const full = keyed.filter((one) => !empty(one)).sort(([a], [b]) => (falling ? compare(b, a) : compare(a, b)));
  return [...full, ...keyed.filter(empty)].map(([, row]) => row);
}

function turn(header) {
  const falling = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  return falling;
}

function sortInPlace(header) {
  const body = header.closest("table").tBodies[0];
  const value = (row) => {
    const cell = row.cells[header.cellIndex];
    const number = Number.parseFloat(cell.dataset.value);
    return Number.isNaN(number) ? cell.textContent : number;
  };
  body.append(...ordered([...body.rows], value, turn(header)));
}

for (const button of document.querySelectorAll("main th button")) {
  button.addEventListener("click", () => sortInPlace(button.parentNode));
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// One table of numbers: every row, the columns that hold anything, and the order they are shown in.
class Numbers {
  constructor(place) {
    this.place = place;
    this.all = place.dataset.frames.split(" ").flatMap(rowsOf);
    const full = (key) => this.all.some((row) => row[key] !== null && row[key] !== undefined && row[key] !== "");
    const keys = [...new Set(this.all.flatMap((row) => Object.keys(row)))];
    const own = place.dataset.frames.startsWith("t");
    const named = Object.keys(held.titles).filter((key) => keys.includes(key));
    this.columns = (own ? keys : named).filter(full);
    this.numeric = new Set(this.columns.filter((key) => this.all.every((row) => typeof (row[key] ?? 0) === "number")));
    this.whole = new Set([...this.numeric].filter((key) => this.all.every((row) => Number.isInteger(row[key] ?? 0))));
    this.rows = this.unique(this.all);
    this.most = ROWS;
  }

  // Layers of a chart that are drawn from one frame each may repeat a row.
  unique(rows) {
    const seen = new Set();
    return rows.filter((row) => {
      const key = JSON.stringify(this.columns.map((name) => row[name] ?? null));
      return !seen.has(key) && seen.add(key);
    });
  }

  csv() {
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const lines = this.unique(this.all).map((row) => this.columns.map((key) => cell(row[key])));
    return [this.columns.map(cell), ...lines].map((line) => `${line.join(",")}\n`).join("");
  }

  draw() {
    const place = this.place.querySelector(".scroll");
    let table = place.querySelector("table");
    if (!table) {
      table = document.createElement("table");
      table.append(document.createElement("thead"), document.createElement("tbody"));
      table.tHead.append(this.head());
      place.replaceChildren(table);
    }
    const shown = this.rows.filter(isShown);
    table.tBodies[0].replaceChildren(...shown.slice(0, this.most).map((row) => this.line(row)));
    const status = this.place.querySelector("[role=status]");
    const count = shown.length.toLocaleString("en"), all = this.rows.length.toLocaleString("en");
    status.textContent = shown.length === this.rows.length ? `${all} rows` : `${count} of ${all} rows: layers and models as picked above`;
    this.more(shown.length);
  }

  head() {
    const row = document.createElement("tr");
    for (const key of this.columns) {
      const header = element("th", "", { scope: "col", ...(this.numeric.has(key) ? { class: "n" } : {}) });
      const button = element("button", held.titles[key] ?? key, { type: "button" });
      button.addEventListener("click", () => {
        this.rows = ordered(this.rows, (one) => one[key], turn(header));
        this.draw();
      });
      header.append(button);
      row.append(header);
    }
    return row;
  }

  line(row) {
    const line = document.createElement("tr");
    for (const key of this.columns) {
      const value = row[key];
      const number = typeof value === "number" && this.numeric.has(key);
      line.append(element("td", short(value, this.whole.has(key)), number ? { class: "n", title: String(value), "data-value": String(value) } : {}));
    }
    return line;
  }

  more(count) {
    this.place.querySelector(".more")?.remove();
    if (count <= this.most) return;
    const button = element("button", `show all ${count.toLocaleString("en")} rows`, { type: "button", class: "more" });
    button.addEventListener("click", () => {
      this.most = Infinity;
      this.draw();
    });
    this.place.append(button);
  }
}

const numbers = new Map();

function numbersOf(place) {
  if (!numbers.has(place)) numbers.set(place, new Numbers(place));
  return numbers.get(place);
}

function save(name, content) {
  const link = element("a", "", { download: name });
  link.href = URL.createObjectURL(content);
  link.click();
  // At once would be too early: the download has only begun.
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

for (const place of document.querySelectorAll(".numbers")) {
  place.addEventListener("toggle", () => place.open && numbersOf(place).draw());
  place.querySelector("[data-save=csv]").addEventListener("click", () =>
    save(`${place.dataset.name}.csv`, new Blob([numbersOf(place).csv()], { type: "text/csv" })));
}
