// Elements and words. Whatever comes from a file goes in as text, never as markup.

// Characters that nobody sees, and those that turn the direction of what follows, are shown as their escapes.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;
const escaped = (character) => ("\n\t".includes(character) ? character : `\\u{${character.codePointAt(0).toString(16)}}`);

/** A text that holds nothing unseen. */
export const plain = (words) => String(words ?? "").replace(UNSEEN, escaped);

/** An element. `on` has listeners, `class` and other keys are attributes; children are elements or texts. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, plain(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) element.append(child instanceof Node ? child : plain(child));
  }
  return element;
}

export const $ = (id) => document.getElementById(id);
export const pause = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));
export const plural = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
export const MISSING = "–";

export const percent = (value) => (value === null || value === undefined ? MISSING : `${(100 * value).toFixed(1)} %`);
export const number = (value, digits = 3) => {
  if (value === null || value === undefined) return MISSING;
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : size !== 0 && size < 0.001 ? value.toExponential(1) : value.toPrecision(Math.max(digits, String(Math.trunc(size)).length));
};
/** A tick of an axis: no zeros at the end. */
export const tick = (value) => (Math.abs(value) >= 1000 ? value.toLocaleString("en") : String(Number(value.toPrecision(6))));
export function bytes(value) {
  if (value === null || value === undefined) return MISSING;
  for (const [unit, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (Math.abs(value) >= size) return `${(value / size).toFixed(1)} ${unit}`;
  }
  return `${Math.round(value)} B`;
}
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return MISSING;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours} h ${String(minutes).padStart(2, "0")} min` : `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
}

/** A table in a frame that scrolls by itself. columns: [title, cell of a row, numeric]. */
export function table(title, columns, rows) {
  const heads = columns.map(([name, , numeric]) => el("th", { scope: "col", class: numeric ? "num" : null }, name));
  const body = rows.map((row) =>
    el("tr", {}, columns.map(([, cell, numeric], place) => el(place ? "td" : "th", { scope: place ? null : "row", "data-title": columns[place][0], class: numeric ? "num" : null }, cell(row)))),
  );
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, el("table", {}, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, body)));
}

/** A card with a heading. */
export const card = (title, ...children) => el("section", { class: "card" }, el("h2", {}, title), ...children);

/** A named choice of values: [value, words]. */
export function select(label, options, value, change) {
  const box = el("select", { on: { change: () => change(box.value) } }, options.map(([key, words]) => el("option", { value: key }, words)));
  box.value = value;
  return el("label", { class: "field" }, el("span", {}, label), box);
}
