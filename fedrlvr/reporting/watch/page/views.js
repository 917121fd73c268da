// The views of a run besides its responses: charts, and tables beside them.

import { ask } from "./api.js";
import { Chart, colour } from "./charts.js";
import { MISSING, bytes, card, duration, el, number, pause, percent, plain, plural, select, table } from "./dom.js";

export const TITLES = {
  summary: "Summary",
  responses: "Responses",
  clients: "Clients",
  learning: "Learning",
  server: "Server step",
  exchanges: "Exchanges",
  labels: "Labels",
  costs: "Costs",
  verdict: "Verdict",
};

/** A view: a part with charts, and a part with what `EXTRAS` makes of its data. */
export class View {
  constructor(run, name, head) {
    [this.run, this.name, this.head] = [run, name, head];
    this.hidden = new Set();
    this.chosen = [];
    this.charts = [];
    this.clients = el("div", { class: "chips", role: "group", "aria-label": "Clients in the charts" });
    this.before = el("div", { class: "stack" });
    this.grid = el("div", { class: "grid" });
    this.after = el("div", { class: "stack" });
    this.element = el("div", { class: "stack" }, this.before, this.clients, this.grid, this.after);
    this.turn = 0;
  }

  close() {
    this.turn += 1;
    this.charts.forEach((chart) => chart.close());
  }

  /** Asks for the data and shows it; charts are drawn one at a time, so that the page never stands still. */
  async refresh(head) {
    this.head = head ?? this.head;
    const turn = (this.turn += 1);
    const data = await this.ask();
    if (turn !== this.turn) return;
    this.showClients(data.charts || []);
    const [before, after] = this.extra(data);
    keepScroll(this.before, before);
    keepScroll(this.after, after);
    const charts = data.charts || [];
    this.charts.splice(charts.length).forEach((chart) => {
      chart.element.remove();
      chart.close();
    });
    for (const [place, chart] of charts.entries()) {
      if (!this.charts[place]) {
        this.charts[place] = new Chart(this.hidden);
        this.grid.append(this.charts[place].element);
      }
      this.charts[place].update(chart);
      await pause(0);
      if (turn !== this.turn) return;
    }
  }

  ask() {
    return ask(`runs/${this.run}/views/${this.name}`, { client: this.chosen });
  }

  /** What stands before the charts, and after them. */
  extra(data) {
    return EXTRAS[this.name] ? EXTRAS[this.name](data, this) : [[], []];
  }

  showClients(charts) {
    const names = this.head.client_names;
    const drawn = charts.some((chart) => chart.lines.some((line) => line.role === "client" && names.includes(line.name)));
    const many = this.head.many && charts.length > 0;
    this.clients.hidden = !(drawn || many) || names.length < 2;
    if (this.clients.hidden || this.clients.contains(document.activeElement)) return;
    const chips = (many ? this.chosen : names).map((name, place) => this.chip(name, place, many));
    this.clients.replaceChildren(...chips);
    if (!many) return;
    const rest = names.filter((name) => !this.chosen.includes(name));
    const choice = select("Draw a client", [["", `one of ${names.length} …`], ...rest.map((name) => [name, name])], "", (name) => this.choose([...this.chosen, name].slice(-5)));
    this.clients.append(choice);
  }

  chip(name, place, many) {
    const mark = el("i", {});
    mark.style.setProperty("--stroke", `var(--line-${(place % 8) + 1})`);
    if (many) return el("button", { type: "button", class: "chip", "aria-label": `Stop drawing ${name}`, on: { click: () => this.choose(this.chosen.filter((other) => other !== name)) } }, mark, name, " ×");
    const button = el("button", { type: "button", class: "chip", "aria-pressed": String(!this.hidden.has(name)) }, mark, name);
    button.addEventListener("click", () => {
      const shown = this.hidden.delete(name);
      if (!shown) this.hidden.add(name);
      button.setAttribute("aria-pressed", String(shown));
      this.charts.forEach((chart) => chart.toggle());
    });
    return button;
  }

  choose(names) {
    this.chosen = names;
    document.activeElement?.blur();
    this.refresh(this.head);
  }
}

/** Replaces what a part holds; a table that was scrolled or in focus stays so. */
export function keepScroll(part, children) {
  if (part.contains(document.activeElement) && document.activeElement.matches("input, select")) return;
  const places = new Map([...part.querySelectorAll(".scroll")].map((frame) => [frame.getAttribute("aria-label"), frame]));
  part.replaceChildren(...children);
  for (const frame of part.querySelectorAll(".scroll")) {
    const before = places.get(frame.getAttribute("aria-label"));
    if (before) [frame.scrollTop, frame.scrollLeft] = [before.dataset.top || 0, before.dataset.left || 0];
    frame.addEventListener("scroll", () => ([frame.dataset.top, frame.dataset.left] = [frame.scrollTop, frame.scrollLeft]));
  }
}

const STANDING = ["not-asked", "took-part", "withheld", "late", "not-connected", "failed", "refused"];
const badge = (words) => el("span", { class: `badge ${words.replaceAll(" ", "-")}` }, words);

/** What a client did in each round, one bar a round. */
function strip(cells, colours) {
  const canvas = el("canvas", { width: Math.max(2 * cells.length, 400), height: 28, class: "strip", "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  const wide = canvas.width / cells.length;
  const gap = wide > 4 ? 1 : 0;
  for (const { index, 0: run } of cells.matchAll(gap ? /./g : /(.)\1*/g)) {
    const tall = run[0] === "0" ? 0.14 : run[0] === "1" ? 0.5 : 1;
    pen.fillStyle = colours[run[0]];
    pen.fillRect(index * wide, canvas.height * (1 - tall), Math.max(run.length * wide - gap, 1), canvas.height * tall);
  }
  return canvas;
}

function clients(data) {
  const colours = STANDING.map((name) => colour(`--${name}`));
  const cells = new Map((data.strip?.rows || []).map((row) => [row.name, row.cells]));
  const any = (key) => data.clients.some((row) => row[key] !== null && row[key] !== undefined);
  const columns = [
    ["Client", (row) => row.name],
    [`Round ${number(data.round)}`, (row) => badge(row.standing)],
  ];
  if (data.strip) columns.push([`Rounds ${number(data.strip.first)} to ${number(data.strip.last)}`, (row) => (cells.get(row.name) ? strip(cells.get(row.name), colours) : "")]);
  columns.push(["Took part", (row) => number(row.took_part), true], ["Left out", (row) => number(row.left_out), true]);
  if (any("reward")) columns.push(["Reward", (row) => number(row.reward), true]);
  if (any("pass_at_1")) columns.push(["Held-out pass@1", (row) => percent(row.pass_at_1), true]);
  if (any("num-examples")) columns.push(["Problems", (row) => number(row["num-examples"]), true]);
  if (any("seconds")) columns.push(["Own seconds", (row) => (row.slow ? el("span", { class: "warn" }, `${duration(row.seconds)} · ${number(row.times_typical, 2)} × median`) : duration(row.seconds)), true]);
  const words = (data.strip?.words || []).map((word, place) => el("li", {}, el("i", { class: `cell ${STANDING[place]}` }), word));
  const before = [card("Who takes part, and who does not", table("Clients", columns, data.clients), el("ul", { class: "values legend" }, words))];
  const after = data.absences.length
    ? [
        card(
          "Left out, newest first",
          table("Clients that were left out", [["Round", (row) => number(row.round)], ["Client", (row) => row.name ?? row.client], ["Why", (row) => badge(row.standing)], ["Reason that the server wrote down", (row) => withoutPlace(row.reason)]], data.absences),
        ),
      ]
    : [];
  return [before, after];
}

const withoutPlace = (reason) => reason.replace(/^round \d+(, [^:]*)?: /, "");

function server(data, view) {
  if (!data.cosine_rounds.length) return [[], []];
  const rounds = data.cosine_rounds;
  const frame = el("div", {});
  const slider = el("input", { type: "range", min: 0, max: rounds.length - 1, value: rounds.length - 1, id: "cosine-round" });
  const name = el("span", {});
  const show = async () => {
    const round = rounds[slider.valueAsNumber];
    name.textContent = `Round ${round}`;
    slider.setAttribute("aria-valuetext", `round ${round}`);
    const matrix = await ask(`runs/${view.run}/cosines`, { round }).catch(() => null);
    if (matrix && matrix.round === rounds[slider.valueAsNumber]) frame.replaceChildren(cosines(matrix));
  };
  slider.addEventListener("input", show);
  show();
  const control = rounds.length > 1 ? [el("label", { class: "field slider", for: "cosine-round" }, name, slider)] : [name];
  return [[], [card("Cosine of two clients' changes", el("p", { class: "note" }, "1: both change the adapter the same way; 0: their changes have nothing in common; below 0: they undo each other."), ...control, frame)]];
}

function cosines({ names, rows }) {
  const columns = [["Client", (row) => row.name]];
  for (const [place, other] of names.entries()) {
    columns.push([other, (row) => (row.values[place] === null ? "" : cosine(row.values[place])), true]);
  }
  return table("Cosines by client", columns, names.map((name, place) => ({ name, values: rows[place] })));
}

function cosine(value) {
  const cell = el("span", { class: value < 0 ? "cosine against" : "cosine with" }, value.toFixed(2).replace(/^-0\.00$/, "0.00"));
  cell.style.setProperty("--part", `${Math.round(Math.min(Math.abs(value), 1) * 60)}%`);
  return cell;
}

function exchanges(data) {
  if (!data.dropped.length) return [[], []];
  const why = (reasons) => Object.entries(reasons).map(([reason, count]) => `${reason} ${number(count)}`).join(", ");
  return [[], [card("Responses that were dropped", table("Dropped responses", [["Client", (row) => row.client], ["Sent", (row) => number(row.sent), true], ["Dropped, by reason", (row) => why(row.reasons)]], data.dropped))]];
}

function labels(data) {
  const budget = [
    data.budget === null ? "" : `The budget is ${percent(data.budget)} of each step's problems`,
    data.budget_total === null ? "" : `at most ${number(data.budget_total)} labels a client`,
  ].filter(Boolean);
  const words = [
    budget.length ? `${budget.join(", ")}.` : "",
    data.desk ? "People give the labels, at the desk that the list of runs links to." : data.labels_from === "dataset" ? "Labels come from the data set." : "",
  ].filter(Boolean);
  return [[card("Labels by client", el("p", { class: "note" }, words.join(" ")), table("Labels by client", [["Client", (row) => row.name], ["Asked", (row) => number(row.asked), true], ["Used", (row) => number(row.used), true], ["In the ledger", (row) => number(row.held), true]], data.rows))], []];
}

function shares(title, phases) {
  const whole = Object.values(phases).reduce((sum, value) => sum + value, 0);
  const rows = Object.entries(phases).sort(([, one], [, other]) => other - one);
  return card(title, el("ul", { class: "bars" }, rows.map(([phase, seconds]) => {
    const bar = el("i", {});
    bar.style.setProperty("--part", `${whole ? (100 * seconds) / whole : 0}%`);
    return el("li", {}, el("span", {}, phase), el("span", { class: "bar" }, bar), el("b", {}, duration(seconds)));
  })));
}

function costs(data) {
  const parts = [];
  if (Object.keys(data.wall).length) parts.push(shares("Time by phase, at the server", data.wall));
  if (Object.keys(data.own).length) parts.push(shares("Time by phase, all clients added up", data.own));
  const total = { name: "all", up: sum(data.bytes, "up"), down: sum(data.bytes, "down") };
  const rows = [...data.bytes, ...(data.bytes.length > 1 ? [total] : [])];
  return [[], [el("div", { class: "grid" }, parts), card("Bytes of messages", table("Bytes by client", [["Client", (row) => row.name], ["Up", (row) => bytes(row.up), true], ["Down", (row) => bytes(row.down), true]], rows))]];
}

const sum = (rows, key) => rows.reduce((whole, row) => whole + (row[key] || 0), 0);

function verdict(data) {
  const columns = [["Client", (row) => row.client], ["Problems", (row) => number(row.n), true]];
  for (const model of data.models) columns.push([model, (row) => percent(row.pass_at_1[model]), true]);
  for (const model of data.compared) columns.push([`${model} − alone, points`, (row) => row.minus_alone[model] ?? MISSING, true]);
  columns.push(["Verdict", (row) => badge(row.word)]);
  const notes = data.notes.map((note) => el("li", {}, note));
  return [
    [
      card(
        "What each client gains over training alone",
        el("p", { class: "note" }, "Pass@1 on a client's own held-out problems with each adapter. In brackets: the 95 % interval, paired by problem."),
        table("Verdict by client", columns, data.rows),
        notes.length ? el("ul", { class: "notes" }, notes) : null,
      ),
    ],
    [],
  ];
}

const EXTRAS = { clients, server, exchanges, labels, costs, verdict };
export { badge, plural, plain };
