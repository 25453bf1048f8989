// The page as a whole: what is drawn when, the controls at the top, printing.
const ahead = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    ahead.unobserve(target);
    draw(target);
  }
}, { rootMargin: "600px 0px" });
// A chart in a closed <details> is in sight only when that is opened.
document.querySelectorAll(".chart").forEach((place) => ahead.observe(place));

const controls = document.querySelector(".page-controls");
if (controls) {
  const layers = Object.values(held.data).flatMap(({ columns }) => unpacked(columns.layer ?? []));
  const last = layers.reduce((most, one) => Math.max(most, one ?? 0), 0);
  const [from, to, theme, all] = ["from", "to", "theme", "all"].map((name) => controls.querySelector(`[name=${name}]`));
  from.max = to.max = String(last);
  const show = () => {
    [from.value, to.value] = state.layers ?? [0, last];
    for (const box of controls.querySelectorAll("input[type=checkbox]")) box.checked = !state.hidden.has(box.value);
  };
  const take = () => {
    const [low, high] = [from, to].map((field) => Math.min(Math.max(Math.round(field.valueAsNumber) || 0, 0), last));
    pick(low === 0 && high === last ? null : [Math.min(low, high), Math.max(low, high)]);
    show();
  };
  from.addEventListener("change", take);
  to.addEventListener("change", take);
  all.addEventListener("click", () => pick(null));
  for (const box of controls.querySelectorAll("input[type=checkbox]")) box.addEventListener("change", () => toggle(box.value));
  theme.addEventListener("change", () => {
    if (theme.value) document.documentElement.dataset.theme = theme.value;
    else delete document.documentElement.dataset.theme;
  });
  document.addEventListener("picked", show);
  show();
  controls.hidden = false;
}

// On paper everything is open but the long tables, which are as the reader left them.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open]):not(.numbers)")];
  for (const one of opened) one.open = true;
  document.querySelectorAll(".chart").forEach(draw);
});
window.addEventListener("afterprint", () => opened.forEach((one) => (one.open = false)));
