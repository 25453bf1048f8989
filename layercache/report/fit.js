// Charts in the room there is: on a narrow screen panels stand below each other and are as wide as it, titles and legends are
// broken into lines that fit.
const BESIDE = 80, MARGIN = 16, NARROW = 700;
function fit(spec, look, room) {
  if (!room) return;
  for (const panel of spec.concat ?? [spec]) {
    if (typeof panel.width !== "number") continue;
    if (panel.width <= room - BESIDE) continue;
    panel.width = Math.max(room - BESIDE, 180);
    if (panel !== spec) panel.title = fitting(panel.title, room - MARGIN, look.title.fontSize);
  }
  if (spec.concat && room < NARROW) {
    const widest = Math.max(...spec.concat.map((panel) => (typeof panel.width === "number" ? panel.width : room)));
    spec.columns = Math.min(spec.columns ?? Infinity, Math.max(1, Math.floor(room / (widest + BESIDE))));
  }
  spec.title = fitting(spec.title, room - MARGIN, spec.title?.fontSize, true);
  const widths = new Map();
  visitLegends(spec, (legend, title, names) => widths.set(title, fitLegend(legend, title, names, room, look)));
  const together = [...widths.values()].reduce((sum, width) => sum + width, 0);
  if (together > room) look.legend.layout.top.direction = "vertical";
}

const pen = document.createElement("canvas").getContext("2d");
function widthOf(text, size, weight = "") {
  pen.font = `${weight} ${size}px system-ui, sans-serif`;
  return pen.measureText(text).width;
}

// A title whose lines are no wider than `room`; `joined`: its lines are one text.
function fitting(title, room, size, joined = false) {
  if (!title) return title;
  const { text, subtitle, ...rest } = typeof title === "string" || Array.isArray(title) ? { text: title } : title;
  const lines = (given, ...font) => {
    const every = [given].flat();
    if (every.every((line) => widthOf(line, ...font) <= room)) return given;
    return (joined && given === text ? [every.join(" ")] : every).flatMap((line) => broken(line, room, ...font));
  };
  const below = subtitle ? { subtitle: lines(subtitle, 11) } : {};
  return { ...rest, text: lines(text, size, "bold"), ...below };
}

const SIGNS = new Intl.Segmenter();

// Words in lines; a word wider than a line is broken itself.
function broken(text, room, ...font) {
  const found = [""];
  for (const word of text.split(/(?<= )/)) {
    const line = found[found.length - 1] + word;
    if (widthOf(line.trimEnd(), ...font) <= room) found[found.length - 1] = line;
    else if (widthOf(word.trimEnd(), ...font) <= room) found.push(word);
    else
      for (const { segment: sign } of SIGNS.segment(word)) {
        const longer = found[found.length - 1] + sign;
        if (widthOf(longer, ...font) <= room) found[found.length - 1] = longer;
        else found.push(sign);
      }
  }
  return found.map((line) => line.trim()).filter(Boolean);
}

function visitLegends(part, found) {
  if (Array.isArray(part)) return part.forEach((one) => visitLegends(one, found));
  if (!part || typeof part !== "object") return;
  for (const channel of Object.values(part.encoding ?? {})) {
    const names = channel.legend?.values ?? channel.scale?.domain;
    if (channel.legend && Array.isArray(names)) found(channel.legend, channel.title ?? channel.legend.title, names);
  }
  for (const key of ["layer", "concat", "hconcat", "vconcat"]) visitLegends(part[key], found);
}

// Gives a legend as many columns as fit; returns the pixels it takes.
const SYMBOL = 30, GAP = 14, GRADIENT = 190, LETTERS = 48;
function fitLegend(legend, title, names, room, look) {
  if (names.every((name) => typeof name === "number")) return GRADIENT;
  const { labelFontSize, labelLimit, titleFontSize } = look.legend;
  legend.labelLimit = Math.min(labelLimit, room - 2 * SYMBOL);
  const longest = Math.max(...names.map((name) => widthOf(String(name).slice(0, LETTERS), labelFontSize)));
  const entry = Math.min(longest, legend.labelLimit) + Math.max(SYMBOL, Math.sqrt(legend.symbolSize ?? 0) + GAP);
  const columns = Math.max(1, Math.floor((room - BESIDE / 2) / (entry + GAP)));
  if (columns < names.length) legend.columns = columns;
  else delete legend.columns;
  return GAP + Math.max(widthOf(String(title), titleFontSize, "bold"), Math.min(columns, names.length) * (entry + GAP));
}
