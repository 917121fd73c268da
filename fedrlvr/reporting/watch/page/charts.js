// Curves over the rounds, drawn by uPlot; a line of numbers below each says what is under the pointer or the keys.

import { bytes, duration, el, number, percent, plain, tick } from "./dom.js";

const HEIGHT = 210;
const together = uPlot.sync("rounds");
const cards = new Set();
window.addEventListener("themechange", () => cards.forEach((chart) => chart.draw()));

// A canvas takes no variables of a style sheet: an element that nobody sees tells the colour of the theme in use.
const sample = document.body.appendChild(el("i", { hidden: true }));
export function colour(name) {
  sample.style.color = `var(${name})`;
  return getComputedStyle(sample).color;
}
const withAlpha = (rgb, alpha) => rgb.replace("rgb(", "rgba(").replace(")", `, ${alpha})`);
const formats = { bytes, seconds: (value) => (value === null ? "–" : `${number(value)} s`) };
const costs = { bytes, seconds: duration };

function rangeOfRounds(_, low, high) {
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

function rangeOfValues(floor) {
  return (_, low, high) => {
    if (low === null || high === null) return [0, 1];
    if (low === high) return low === 0 ? [0, 1] : [Math.min(low * 0.98, low * 1.02), Math.max(low * 0.98, low * 1.02)];
    const room = 0.06 * (high - low);
    const bottom = floor && low >= 0 && low < 0.4 * high ? 0 : low - room;
    return [bottom, high + room];
  };
}

/** A card with one chart. `hidden`: names of clients that are not drawn. */
export class Chart {
  constructor(hidden) {
    this.hidden = hidden;
    this.title = el("h3", {});
    this.plot = el("div", { class: "plot" });
    this.values = el("ul", { class: "values" });
    this.element = el("figure", { class: "card chart", tabindex: 0, role: "group", on: { keydown: (event) => this.key(event), blur: () => this.show(null) } }, this.title, this.plot, this.values);
    this.uplot = null;
    this.width = 0;
    this.sizes = new ResizeObserver(([entry]) => this.resize(Math.floor(entry.contentRect.width)));
    this.sizes.observe(this.plot);
    cards.add(this);
  }

  close() {
    this.sizes.disconnect();
    this.uplot?.destroy();
    this.uplot = null;
    cards.delete(this);
  }

  resize(width) {
    if (!width || width === this.width) return;
    this.width = width;
    if (this.uplot) this.uplot.setSize({ width, height: HEIGHT });
    else if (this.data) this.draw();
  }

  update(data) {
    const same = this.data && this.uplot && JSON.stringify(this.shape(data)) === JSON.stringify(this.shape(this.data));
    this.data = data;
    this.title.textContent = plain(data.title.replace(/; .*dashed$/, ""));
    if (same) {
      this.uplot.setData(this.columns(), true);
      this.show(null);
    } else {
      this.draw();
    }
  }

  shape(data) {
    return [data.title, data.lines.map(({ name, role, colour: place }) => [name, role, place])];
  }

  columns() {
    return [this.data.x, ...this.data.lines.map((line) => line.values)];
  }

  format(value) {
    if (this.data.percent) return percent(value);
    return (formats[this.data.unit] || number)(value);
  }

  stroke({ role, colour: place }) {
    if (role === "mean") return colour("--ink");
    if (role === "dashed") return colour("--muted");
    return colour(`--line-${((place || 1) - 1) % 8 + 1}`);
  }

  draw() {
    if (!this.width || !this.data) return;
    this.uplot?.destroy();
    const { lines, percent: share, floor } = this.data;
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const series = lines.map((line) => {
      const edge = line.role === "low" || line.role === "high";
      const few = this.data.x.length <= 60;
      return {
        label: line.name,
        show: !(line.role === "client" && this.hidden.has(line.name)),
        stroke: edge ? "transparent" : this.stroke(line),
        width: line.role === "mean" ? 2.4 : 1.5,
        dash: line.role === "dashed" ? [5, 4] : undefined,
        spanGaps: true,
        points: { show: !edge && few && line.role !== "dashed", size: line.role === "mean" ? 6 : 4.5, fill: edge ? "transparent" : this.stroke(line) },
      };
    });
    const [low, high] = ["low", "high"].map((role) => lines.findIndex((line) => line.role === role) + 1);
    this.uplot = new uPlot(
      {
        width: this.width,
        height: HEIGHT,
        padding: [8, 18, 0, 0],
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, y: false, points: { size: 7 }, sync: { key: together.key, scales: ["x", null] } },
        scales: { x: { time: false, range: rangeOfRounds }, y: { range: rangeOfValues(floor) } },
        axes: [
          { ...axis, ...this.axis(), grid: { show: false }, size: 30 },
          { ...axis, size: (_, words) => 16 + 7 * Math.max(3, ...(words || []).map((word) => word.length)), values: (_, ticks) => ticks.map((value) => (share ? `${tick(100 * value)} %` : this.data.unit ? this.format(value) : tick(value))) },
        ],
        bands: low && high ? [{ series: [high, low], fill: withAlpha(colour("--accent"), 0.16) }] : [],
        series: [{}, ...series],
        hooks: { setCursor: [(plot) => this.show(plot.cursor.idx)] },
      },
      this.columns(),
      this.plot,
    );
    this.show(null);
  }

  /** The axis below: rounds, or another cost that the data names. */
  axis() {
    const format = costs[this.data.over];
    if (format) return { values: (_, ticks) => ticks.map(format), space: 90 };
    return { incrs: [1, 2, 5].flatMap((step) => [...Array(12).keys()].map((power) => step * 10 ** power)).sort((a, b) => a - b) };
  }

  /** A place on that axis in words. */
  place(x) {
    const { over } = this.data;
    if (!over || over === "rounds") return `Round ${tick(Number(x.toFixed(2)))}`;
    return costs[over] ? costs[over](x) : `${number(Math.round(x))} ${over}`;
  }

  /** Which lines are drawn, when clients are shown or hidden. */
  toggle() {
    this.data?.lines.forEach((line, place) => {
      if (line.role === "client") this.uplot?.setSeries(place + 1, { show: !this.hidden.has(line.name) });
    });
    this.show(null);
  }

  /** The numbers of a point; of the last one where none is pointed at. */
  show(place) {
    const { x, lines, band } = this.data;
    const at = place ?? x.length - 1;
    if (at < 0) return;
    const round = this.place(x[at]);
    const known = (line) => line.values[at] ?? (place === null ? line.values.findLast((value) => value !== null) ?? null : null);
    const parts = [];
    for (const line of lines) {
      if (line.role === "low" || line.role === "high" || (line.role === "client" && this.hidden.has(line.name))) continue;
      const name = line.role === "dashed" ? this.data.title.match(/(?:; |, )([^;,]*) dashed$/)?.[1] ?? "dashed" : line.name;
      parts.push([line.role, this.stroke(line), name, this.format(known(line))]);
    }
    const [low, high] = ["low", "high"].map((role) => lines.find((line) => line.role === role));
    if (low && high) parts.push(["band", withAlpha(colour("--accent"), 0.35), band || "80 % of clients", `${this.format(known(low))} to ${this.format(known(high))}`]);
    const items = parts.map(([role, stroke, name, value]) => {
      const mark = el("i", { class: role });
      mark.style.setProperty("--stroke", stroke);
      return el("li", {}, mark, `${name} `, el("b", {}, value));
    });
    this.values.replaceChildren(el("li", { class: "round" }, round), ...items);
    const told = parts.map(([, , name, value]) => `${name} ${value}`).join(", ");
    this.element.setAttribute("aria-label", plain(`${this.title.textContent}. ${round}: ${told}. Arrow keys move along the curves.`));
  }

  key(event) {
    if (!this.uplot || event.target !== this.element) return;
    const last = this.data.x.length - 1;
    const now = this.uplot.cursor.idx ?? last;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const place = Math.min(Math.max(to, 0), last);
    this.uplot.setCursor({ left: this.uplot.valToPos(this.data.x[place], "x"), top: HEIGHT / 3 });
    this.show(place);
  }
}
