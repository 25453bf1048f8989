"use strict";
// Draws the charts and sorts the tables. Nothing is fetched: the specifications are in the page.
const specs = JSON.parse(document.getElementById("specs").textContent);
// `ast` has Vega interpret expressions instead of compiling them, so the page needs no right to evaluate code.
const options = { ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true } };

function draw(place) {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  vegaEmbed(place, specs[place.dataset.chart], options).catch(() => place.classList.add("failed"));
}

// A closed <details> has no width to draw into: its charts wait until it is opened.
for (const place of document.querySelectorAll(".chart")) {
  if (!place.closest("details:not([open])")) draw(place);
}
for (const details of document.querySelectorAll("details")) {
  details.addEventListener("toggle", () => details.querySelectorAll(".chart").forEach(draw));
}

function key(row, column) {
  const cell = row.cells[column];
  const number = Number.parseFloat(cell.dataset.value);
  return Number.isNaN(number) ? cell.textContent : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b);
}

function sort(header) {
  const table = header.closest("table");
  const body = table.tBodies[0];
  const falling = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const rows = [...body.rows].map((row) => [key(row, header.cellIndex), row]);
  rows.sort(([a], [b]) => (falling ? compare(b, a) : compare(a, b)));
  body.append(...rows.map(([, row]) => row));
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sort(button.parentNode));
}
