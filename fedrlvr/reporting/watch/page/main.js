// The page: a list of runs, and one run with its views. It follows the runs by itself, also through restarts.

import { ask, dropToken, follow, setToken, takeToken } from "./api.js";
import { $, el, duration, number, percent, plain, plural, table } from "./dom.js";
import { Comparison } from "./comparison.js";
import { Responses } from "./responses.js";
import { TITLES, View, badge } from "./views.js";

const content = $("content");
let shown = null; // what is on display: { id, view, part, head, at }
let versions = {};
let turn = 0;

// Routes: #/ is the list of runs, #/run/ID/VIEW one view of a run, #/compare/ID,ID/COST several runs beside each other.

function route() {
  const [, kind, id, view] = location.hash.split("/");
  if (kind === "compare") return { id: null, view: view || null, compared: (id || "").split(",").filter(Boolean) };
  return kind === "run" ? { id, view: view || null } : { id: null, view: null };
}

const address = (id, view) => `#/run/${id}${view ? `/${view}` : ""}`;

async function go() {
  const { id, view, compared } = route();
  const now = (turn += 1);
  if (id && shown?.id === id && (shown.view === view || !view)) return;
  const before = shown;
  try {
    if (compared) await openComparison(compared, view);
    else if (!id) await openList(now);
    else await openRun(id, view, now);
    if (before !== shown) before?.part?.close();
    trouble("");
  } catch (error) {
    failed(error);
  }
}

// The list of runs.

const LOOK = 3000; // milliseconds between two looks at what waits for people
const MOST = 20; // runs that the server compares
const picked = new Set(); // runs to compare, in the order in which they were marked

async function openList(now) {
  const data = await askList();
  if (now !== turn) return;
  shown = { id: null, view: null, list: true };
  document.title = "fedrlvr watch";
  showList(data);
  window.scrollTo(0, 0);
}

async function askList() {
  const [runs, { desks }] = await Promise.all([ask("runs"), ask("desks")]);
  return { ...runs, desks };
}

setInterval(() => (shown?.list && following ? refresh() : null), LOOK);

/** The link to the runs that are picked. */
function compareLink(runs) {
  const there = new Set(runs.map((run) => run.id));
  const chosen = [...picked].filter((id) => there.has(id)); // the run that was marked first is compared with
  if (chosen.length > MOST) return el("p", { class: "compare", "aria-live": "polite" }, `Mark at most ${MOST} runs; fedrlvr compare takes more.`);
  const words = chosen.length > 1 ? el("a", { href: `#/compare/${chosen.join(",")}` }, `Compare ${chosen.length} runs`) : el("span", { class: "note" }, "Mark two or more runs to compare them.");
  return el("p", { class: "compare", "aria-live": "polite" }, words);
}

function pick(run, data) {
  const box = el("input", { type: "checkbox", "aria-label": `Mark ${run.name} for a comparison`, "data-run": run.id });
  box.checked = picked.has(run.id);
  box.addEventListener("change", () => {
    if (box.checked) picked.add(run.id);
    else picked.delete(run.id);
    content.querySelector(".compare")?.replaceWith(compareLink(data.runs));
  });
  return box;
}

function waiting(desk) {
  if (!desk.waiting) return desk.waiting === 0 ? "nothing waits" : "";
  return el("b", { class: "warn" }, plural(desk.waiting, "waits", "wait"));
}

const desks = (data) =>
  el("section", { class: "card desks" }, el("h2", {}, "Decisions of people"), el("ul", {}, data.desks.map((desk) => el("li", {}, el("a", { href: desk.address }, desk.title), waiting(desk), el("span", { class: "mono" }, desk.directory)))));

function showList(data) {
  $("roots").textContent = plain(data.roots.join(", "));
  const columns = [
    ["Run", (run) => el("span", { class: "run" }, pick(run, data), el("a", { href: address(run.id) }, run.name), el("span", { class: "mono" }, run.directory))],
    ["State", (run) => badge(run.state)],
    ["Progress", (run) => progress(run)],
    ...(data.runs.some((run) => run.left !== null) ? [["Left", (run) => (run.left === null ? "" : `about ${duration(run.left)}`), true]] : []),
    ["Clients", (run) => number(run.clients), true],
    ["Reward", (run) => number(run.reward), true],
    ["Held-out pass@1", (run) => (run.pass_at_1 ? `${percent(run.pass_at_1[0])} → ${percent(run.pass_at_1[1])}` : ""), true],
    ["Changed", (run) => (run.changed ? new Date(1000 * run.changed).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "")],
  ];
  const notes = [...data.notes, data.reading ? `${plural(data.reading, "run is", "runs are")} still being read.` : ""].filter(Boolean);
  const empty = el("p", { class: "card" }, "No run here yet. A run that starts below these directories appears by itself: ", el("code", {}, "fedrlvr run"), ".");
  const [focus, box] = ["href", "data-run"].map((name) => document.activeElement?.getAttribute?.(name));
  content.replaceChildren(
    el("div", { class: "stack" }, el("h1", {}, "Runs"), data.desks.length ? desks(data) : null, data.runs.length > 1 ? compareLink(data.runs) : null, notes.length ? el("p", { class: "banner" }, notes.join(" ")) : null, data.runs.length ? el("section", { class: "card flush runs" }, table("Runs", columns, data.runs)) : data.reading ? null : empty),
  );
  if (focus) content.querySelector(`a[href="${CSS.escape(focus)}"]`)?.focus();
  if (box) content.querySelector(`[data-run="${CSS.escape(box)}"]`)?.focus();
  content.setAttribute("aria-busy", "false");
}

function progress(run) {
  const [done, rounds] = [run.round ?? 0, run.rounds];
  if (!rounds) return run.round === null ? "" : `round ${number(run.round)}`;
  const bar = el("progress", { max: rounds, value: Math.min(done, rounds), "aria-label": `Rounds of ${run.name}` });
  return el("span", { class: "progress" }, bar, ` ${number(done)} of ${number(rounds)}`);
}

// Several runs.

async function openComparison(runs, over) {
  const part = new Comparison(runs, over, (cost) => (location.hash = `#/compare/${runs.join(",")}/${cost}`));
  shown = { id: null, view: null, part, compared: runs, at: performance.now() };
  document.title = "Comparison · fedrlvr watch";
  content.replaceChildren(el("div", { class: "stack" }, el("p", { class: "crumb" }, el("a", { href: "#/" }, "← All runs")), el("h1", {}, "Runs compared"), part.element));
  content.setAttribute("aria-busy", "true");
  window.scrollTo(0, 0);
  await part.refresh();
  content.setAttribute("aria-busy", "false");
}

// One run.

async function openRun(id, view, now) {
  const head = await ask(`runs/${id}`);
  if (now !== turn) return;
  const name = head.views.includes(view) ? view : (head.views[0] ?? "summary");
  if (name !== view) history.replaceState(null, "", address(id, name));
  const part = name === "responses" ? new Responses(id) : new View(id, name, head);
  const same = shown?.id === id;
  const frame = same ? shown.frame : makeFrame();
  shown = { id, view: name, part, head, at: performance.now(), frame };
  showHead();
  frame.body.replaceChildren(part.element);
  if (!same) {
    content.replaceChildren(frame.element);
    window.scrollTo(0, 0);
  }
  content.setAttribute("aria-busy", "true");
  if (head.views.length) await part.refresh(head);
  content.setAttribute("aria-busy", "false");
}

function makeFrame() {
  const frame = { title: el("h1", {}), state: el("span", {}), place: el("p", { class: "mono" }), bar: el("div", { class: "status" }), now: el("p", { class: "now" }), tiles: el("dl", { class: "tiles" }), notes: el("div", { class: "stack" }), tabs: el("nav", { class: "tabs", "aria-label": "Views of this run" }), body: el("div", {}) };
  frame.element = el("div", { class: "stack" }, el("p", { class: "crumb" }, el("a", { href: "#/" }, "← All runs")), el("div", { class: "title" }, frame.title, frame.state), frame.place, frame.bar, frame.now, frame.tiles, frame.notes, frame.tabs, frame.body);
  return frame;
}

function showHead() {
  const { head, frame, view } = shown;
  frame.title.textContent = plain(head.name);
  frame.state.replaceChildren(badge(head.state));
  frame.place.textContent = plain(head.directory);
  frame.tiles.replaceChildren(...head.tiles.map((tile) => el("div", { class: tile.bad ? "tile bad" : "tile" }, el("dt", {}, tile.title), el("dd", {}, el("b", {}, tile.value), el("span", {}, tile.note)))));
  frame.tiles.hidden = !head.tiles.length;
  const notes = [];
  for (const { rule, sentence, settings } of head.advice) {
    notes.push(el("section", { class: "advice" }, el("h2", {}, `Advice: ${rule}`), el("p", {}, sentence), settings.length ? el("p", { class: "note" }, "Settings: ", settings.map((setting, place) => [place ? ", " : "", el("code", {}, setting)])) : null));
  }
  if (head.notes.length) notes.push(el("p", { class: "banner", role: "status" }, head.notes.join(" ")));
  if (!head.views.length) notes.push(el("p", { class: "card" }, "Nothing is written down yet. The first line of metrics.jsonl comes with round 0, which evaluates the model before training."));
  if (frame.said !== JSON.stringify([head.advice, head.notes, head.views.length > 0])) {
    frame.said = JSON.stringify([head.advice, head.notes, head.views.length > 0]);
    frame.notes.replaceChildren(...notes);
  }
  const key = `${head.views} ${view}`;
  if (frame.tabs.dataset.key !== key) {
    const focused = frame.tabs.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    frame.tabs.dataset.key = key;
    frame.tabs.replaceChildren(...head.views.map((name) => el("a", { href: address(shown.id, name), "aria-current": name === view ? "page" : null }, TITLES[name] ?? name)));
    if (focused) frame.tabs.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    frame.tabs.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const round = head.rounds ? `${head.round ?? 0}/${head.rounds} ` : "";
  document.title = `${head.state === "running" ? round : ""}${plain(head.name)} · fedrlvr watch`;
  tick();
}

/** The line about time, which goes on between two rounds. */
function tick() {
  if (!shown?.head) return;
  const { head, frame, at } = shown;
  const since = (performance.now() - at) / 1000;
  const parts = [];
  if (head.state === "running") {
    if (head.left !== null) parts.push(`about ${duration(Math.max(head.left - since, 0))} left`);
    if (head.under_way !== null && head.round !== null) {
      const next = Math.min(head.round + 1, head.rounds ?? Infinity);
      const last = head.rounds !== null && head.round >= head.rounds;
      const usual = head.round_seconds === null || last ? "" : `, usually ${duration(head.round_seconds)}`;
      parts.push(`${last ? "finishing" : `round ${number(next)} under way`} for ${duration(Math.floor(head.under_way + since))}${usual}`);
    }
  }
  if (head.elapsed) parts.push(`${duration(head.elapsed)} in rounds so far`);
  const words = parts.join(" · ");
  const progressKey = `${head.round}/${head.rounds}`;
  if (frame.bar.dataset.key !== progressKey) {
    frame.bar.dataset.key = progressKey;
    frame.time = el("span", { class: "note" });
    frame.bar.replaceChildren(head.rounds || head.round !== null ? progress(head) : "", frame.time);
  }
  if (frame.time.textContent !== words) frame.time.textContent = words;
  const now = underWay(head.now, since);
  frame.now.hidden = !now;
  if (frame.now.textContent !== now) frame.now.textContent = now;
}

/** What is done of the round that is under way, and who has not answered yet. */
function underWay(now, since) {
  if (!now) return "";
  const parts = [[now.phase, now.step ? `step ${now.step} of ${now.steps}` : ""].filter(Boolean).join(", ")];
  if (now.asked > 1 && now.waiting.length) {
    const more = now.asked - now.answered - now.waiting.length;
    const names = `${now.waiting.join(", ")}${more > 0 ? ` and ${more} more` : ""}`;
    const long = now.waits === null ? "" : ` for ${duration(Math.floor(now.waits + since))}`;
    parts.push(`${now.answered} of ${now.asked} clients have answered; waiting${long} for ${names}`);
  }
  return plain(`Now: ${parts.filter(Boolean).join(" · ")}`);
}
setInterval(tick, 1000);

window.addEventListener("themechange", () => shown?.part?.refresh(shown.head)); // what is drawn outside of charts

// Following.

let refreshing = false;
let again = false;

async function refresh() {
  if (refreshing) {
    again = true;
    return;
  }
  refreshing = true;
  try {
    do {
      again = false;
      const now = turn;
      const { id } = shown ?? {};
      if (id === undefined) return;
      if (shown.compared) {
        shown.at = performance.now();
        await shown.part.refresh();
      } else if (id === null) {
        const data = await askList();
        if (now === turn) showList(data);
      } else {
        const head = await ask(`runs/${id}`);
        if (now !== turn || shown.id !== id) continue;
        const before = shown.head.views.length;
        const old = shown.head.data_version;
        [shown.head, shown.at] = [head, performance.now()];
        showHead();
        if (!before && head.views.length) await openRun(id, null, now);
        else if (head.views.length && head.data_version !== old) await shown.part.refresh(head);
      }
      trouble("");
    } while (again);
  } catch (error) {
    failed(error);
  } finally {
    refreshing = false;
  }
}

function changed(runs) {
  versions = { ...versions, ...runs };
  if (!shown) return;
  const compared = shown.compared?.some((id) => id in runs) && performance.now() - shown.at > LOOK; // whole files are read for it
  if (shown.list || shown.id in runs || compared) refresh();
}

function connection(state) {
  $("connection").className = state;
  $("connection").textContent = state === "live" ? "Live" : "Reconnecting …";
  if (state === "refused") needToken("That token is not this server's. A server that was started with another token needs its own link.");
}

function trouble(words) {
  $("trouble").textContent = plain(words);
  $("trouble").hidden = !words;
}

function failed(error) {
  if (error.status === 401) needToken(error.message);
  else if (error.status === 404 && route().id) {
    shown = null;
    content.replaceChildren(el("p", { class: "card" }, `${error.message} `, el("a", { href: "#/" }, "All runs")));
    content.setAttribute("aria-busy", "false");
  } else if (error.status !== 0) trouble(error.message);
}

// The token.

let following = false;

function needToken(words = "") {
  dropToken();
  following = false;
  shown?.part?.close();
  shown = null;
  content.replaceChildren();
  $("token-form").hidden = false;
  $("connection").textContent = "";
  trouble(words);
  $("token").focus();
}

function begin() {
  $("token-form").hidden = true;
  if (!following) {
    following = true;
    follow(changed, connection);
  }
  go();
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("token").value.trim());
  $("token").value = "";
  trouble("");
  begin();
});

window.addEventListener("hashchange", () => {
  if (location.hash.startsWith("#token=")) takeToken();
  if (takeToken()) begin();
});

if (takeToken()) begin();
else needToken();
