// Responses: the wrong ones first, and all of one problem side by side over the rounds.

import { ask } from "./api.js";
import { el, number, plural, select } from "./dom.js";

const REWARDED_BY = { known: "label", queried: "label asked for", trusted: "majority vote", masked: "not trained on" };
const MARK = { wrong: "✗ wrong", right: "✓ right", ungraded: "not graded" };

export class Responses {
  constructor(run) {
    this.run = run;
    this.filter = { client: "", round: "", shown: "all" };
    this.list = [];
    this.controls = el("div", { class: "chips", role: "group", "aria-label": "Which responses" });
    this.news = el("p", { class: "banner", hidden: true }, "New responses have been written. ", el("button", { type: "button", on: { click: () => this.load() } }, "Show them"));
    this.count = el("p", { class: "note", role: "status" });
    this.cards = el("div", { class: "grid" });
    this.more = el("button", { type: "button", hidden: true, on: { click: () => this.load(this.list.length) } }, "Show more");
    this.element = el("div", { class: "stack" }, this.controls, this.news, this.count, this.cards, el("p", {}, this.more));
    this.turn = 0;
    this.version = null;
  }

  close() {
    this.turn += 1;
  }

  /** The first time the list is loaded; later a banner says that there is more, so that nothing moves under the reader. */
  async refresh(head) {
    if (this.version === null) {
      this.version = head.data_version;
      const { clients } = await ask(`runs/${this.run}/views/responses`);
      this.clients = clients;
      await this.load();
    } else if (head.data_version !== this.version) {
      this.version = head.data_version;
      const page = await ask(`runs/${this.run}/responses`, this.filter);
      this.news.hidden = JSON.stringify([page.total, page.responses]) === this.seen;
    }
  }

  async load(start = 0) {
    const turn = (this.turn += 1);
    const page = await ask(`runs/${this.run}/responses`, { ...this.filter, start });
    if (turn !== this.turn) return;
    if (!start) this.seen = JSON.stringify([page.total, page.responses]);
    this.list = start ? [...this.list, ...page.responses] : page.responses;
    this.news.hidden = true;
    this.showControls(page.rounds);
    const round = this.filter.round ? `of round ${this.filter.round}` : this.filter.client ? "of the newest round" : "of each client's newest round";
    const notes = page.notes.length ? ` ${page.notes.join(" ")}` : "";
    this.count.textContent = `${number(this.list.length)} of ${plural(page.total, "response", "responses")} ${round}, wrong ones first.${notes}`;
    const added = page.responses.map((response) => this.card(response));
    if (start) this.cards.append(...added);
    else this.cards.replaceChildren(...added);
    this.more.hidden = this.list.length >= page.total;
  }

  showControls(rounds) {
    if (this.controls.contains(document.activeElement)) return;
    const change = (key) => (value) => {
      this.filter[key] = value;
      document.activeElement?.blur();
      this.load();
    };
    const parts = [];
    if (this.clients.length > 1) parts.push(select("Client", [["", "all clients"], ...this.clients.map((name) => [name, name])], this.filter.client, change("client")));
    parts.push(select("Round", [["", "newest"], ...rounds.toReversed().map((round) => [String(round), `round ${round}`])], this.filter.round, change("round")));
    parts.push(select("Show", [["all", "all"], ["wrong", "wrong only"], ["right", "right only"], ["ungraded", "not graded"]], this.filter.shown, change("shown")));
    this.controls.replaceChildren(...parts);
  }

  card(response) {
    const again = response.times > 1
      ? el("button", { type: "button", class: "quiet", on: { click: () => this.problem(response) } }, `All ${number(response.times)} responses to this problem`)
      : null;
    return el(
      "article",
      { class: `card response ${response.verdict}` },
      el("header", {}, el("h3", {}, `${response.client} · round ${response.round}`), el("span", { class: `badge ${response.verdict}` }, MARK[response.verdict]), el("span", { class: "mono" }, response.problem), again),
      el("p", { class: "prompt" }, response.prompt),
      text(response),
      facts(response),
    );
  }

  async problem({ client, problem, problem_key: key, prompt }) {
    const turn = (this.turn += 1);
    const page = await ask(`runs/${this.run}/problem`, { client, problem: key });
    if (turn !== this.turn) return;
    const back = el("button", { type: "button", on: { click: () => this.leave() } }, "Back to the list");
    const columns = page.responses.map((response) =>
      el("article", { class: `card response ${response.verdict}` }, el("header", {}, el("h3", {}, `Round ${response.round}`), el("span", { class: `badge ${response.verdict}` }, MARK[response.verdict])), text(response), facts(response)),
    );
    const said = page.total > columns.length ? `The newest ${columns.length} of ${page.total} responses.` : `${plural(page.total, "response", "responses")}, oldest first.`;
    this.side = el(
      "section",
      { class: "stack" },
      el("p", {}, back),
      el("div", { class: "card" }, el("h2", { tabindex: -1 }, `${client} · ${problem}`), el("p", { class: "prompt" }, prompt), el("p", { class: "note" }, said)),
      el("div", { class: "side", tabindex: 0, role: "region", "aria-label": "Responses to this problem by round" }, columns),
    );
    for (const part of this.parts()) part.hidden = true;
    this.element.append(this.side);
    this.side.querySelector("h2").focus();
  }

  parts() {
    return [this.controls, this.count, this.cards, this.more];
  }

  leave() {
    this.side.remove();
    for (const part of this.parts()) part.hidden = false;
    this.load();
  }
}

/** The text of a response, with its answer marked. */
function text(response) {
  const [before, answer, after] = response.text;
  return el("div", { class: "text", tabindex: 0, role: "region", "aria-label": `Response of ${response.client} in round ${response.round}` }, before, answer ? el("mark", {}, answer) : "", after);
}

function facts(response) {
  const parts = [
    ["Answer", response.answer ?? "none that can be read"],
    ["Gold", response.gold ?? "not paid for"],
    ["Reward", `${number(response.reward)} (${REWARDED_BY[response.fate] ?? response.fate})`],
    ["Length", `${plural(response.tokens, "token", "tokens")}${response.finished ? "" : ", cut at the limit"}`],
  ];
  return el("dl", { class: "facts" }, parts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}
