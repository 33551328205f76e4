// Making elements, numbers in words, colours. Data reaches the page through textContent and attributes only.

const SVG = "http://www.w3.org/2000/svg";

// Okabe and Ito's colours, which people who are colour-blind can tell apart.
const OKABE_ITO = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a800"];
export const REST = "#8a8f98";

export function el(tag, attributes = {}, ...children) {
  return filledIn(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filledIn(document.createElementNS(SVG, tag), attributes, children);
}

function filledIn(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string" && !(element instanceof SVGElement))
      element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Puts new rows into a list; the focus, and what is being typed, stays where its `data-key` is.
export function redraw(list, rows) {
  const before = list.contains(document.activeElement) ? document.activeElement : null;
  const { value } = before ?? {};
  list.replaceChildren(...rows);
  if (!before?.dataset.key) return;
  const after = list.querySelector(`[data-key="${CSS.escape(before.dataset.key)}"]`);
  after?.focus();
  if (after?.type === "number") after.value = value;
}

export const byId = (id) => document.getElementById(id);

// The width of a figure's place. It is measured once a layout, since measuring makes the browser lay out the page.
const WIDTHS = new Map();

export function widthOf(place) {
  if (!WIDTHS.has(place)) WIDTHS.set(place, place.clientWidth);
  return WIDTHS.get(place);
}

export const forgetWidths = () => WIDTHS.clear();

const MINUS = "\u2212";

// A change of a loss, with its sign.
export function signed(value, digits = 3) {
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return text;
  return (value < 0 ? MINUS : "+") + text;
}

export const plainly = (value, digits = 3) => value.toFixed(digits).replace("-", MINUS);

// As many decimals as small losses need.
export function digitsFor(values) {
  const largest = Math.max(...values.map(Math.abs).filter(Number.isFinite), 1e-9);
  return Math.min(Math.max(Math.ceil(2 - Math.log10(largest)), 1), 6);
}

export const counted = (n, one, several = `${one}s`) => `${n} ${n === 1 ? one : several}`;

// A colour a group: seven for the most used, grey for the rest.
export function groupColours(page) {
  const uses = page.train.members.map((rows) => rows.reduce((sum, row) => sum + page.originalUses[row], 0));
  const ranked = page.train.groupNames
    .map((name, at) => ({ name, uses: uses[at] }))
    .sort((a, b) => b.uses - a.uses);
  return new Map(ranked.map(({ name }, at) => [name, OKABE_ITO[at] ?? REST]));
}

export const colourOf = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Round numbers for an axis between two values.
export function ticks(low, high, about = 5) {
  const rough = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((times) => times * power >= rough) * power;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(last - first + 1, 0) }, (_, n) => (first + n) * step);
}

export const nameOf = (group) => group || "(no group)";
