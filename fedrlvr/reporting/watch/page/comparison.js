// Several runs beside each other: what `fedrlvr compare` prints, with curves.

import { ask } from "./api.js";
import { card, el, select, table } from "./dom.js";
import { View } from "./views.js";

const COSTS = ["rounds", "steps", "tokens", "labels", "bytes", "seconds"];

export class Comparison extends View {
  /** `turnTo` opens the same comparison over another cost. */
  constructor(runs, over, turnTo) {
    super(null, "comparison", { client_names: [], many: false });
    Object.assign(this, { runs, over: COSTS.includes(over) ? over : "rounds", turnTo });
    this.clients.setAttribute("aria-label", "Arms in the charts");
  }

  async ask() {
    const data = await ask("comparison", { run: this.runs, over: this.over });
    this.head.client_names = data.rows.map(numbered);
    return data;
  }

  extra(data) {
    const choice = select("Compare over", COSTS.map((cost) => [cost, cost]), this.over, this.turnTo);
    const notes = data.notes.length ? el("section", { class: "advice" }, el("h2", {}, "Notes"), data.notes.map((note) => el("p", {}, note))) : null;
    const gap = (place) => (row) => (row.gaps ? el("span", { class: { up: "gain", down: "loss" }[row.gaps[place][1]] || "" }, row.gaps[place][0]) : "");
    const scores = [
      ["Arm", (row) => numbered(row, data.rows.indexOf(row))],
      ["Seeds", (row) => row.seeds],
      ...["Start", "End", "Area"].map((title, place) => [title, (row) => row.scores[place], true]),
      ["End minus 1", gap(0), true],
      ["Area minus 1", gap(1), true],
      ["How", (row) => row.how],
    ];
    const costs = [["Arm", (row) => numbered(row, data.rows.indexOf(row))], ["Rounds", (row) => row.rounds, true], ...data.costs.map((cost, place) => [cost, (row) => row.costs[place], true])];
    const settings = data.differing.flatMap(({ name, values }) => values.map(([value, arms], place) => ({ name: place ? "" : name, value, arms })));
    return [
      [el("div", { class: "chips" }, choice), notes].filter(Boolean),
      [
        card("Scores", el("p", { class: "note" }, data.explained), table("Scores", scores, data.rows)),
        card("Cost of a run", el("p", { class: "note" }, "Means over an arm's runs. Tokens, labels and bytes are of all clients."), table("Cost of a run", costs, data.rows)),
        settings.length ? card("Settings that differ", table("Settings that differ", [["Setting", (row) => row.name], ["Value", (row) => row.value], ["Arms", (row) => row.arms]], settings)) : card("Settings that differ", el("p", { class: "note" }, "No setting differs but the seed.")),
        card("In the terminal, as a page or as CSV", el("code", {}, data.command)),
      ],
    ];
  }
}

const numbered = (row, place) => `${place + 1} ${row.name}`;
