// The page where a person approves what leaves. Whatever comes from a site goes in with textContent, never as markup.
"use strict";

const LOOK = 2000; // milliseconds until the page looks for new replies again

let person = "";
let cards = [];
let shown = null; // the card on display
let looks = 0; // how often the page has asked what waits

function only(id) {
  for (const part of ["token-form", "name-form", "idle", "work"]) $(part).hidden = part !== id;
  $("progress").hidden = $("change-name").hidden = id !== "work" && id !== "idle";
}

function element(name, words) {
  const made = document.createElement(name);
  made.textContent = String(words).replace(UNSEEN, escaped);
  return made;
}

function list(id, pairs) {
  $(id).replaceChildren(...pairs.flatMap(([heading, words]) => [element("dt", heading), element("dd", words)]));
}

async function show(card) {
  shown = card;
  only("work");
  text("kicker", `${card.kind}  ·  ${card.id}  ·  stays here unless somebody decides by ${card.until}`);
  list("rows", card.rows);
  list("numbers", Object.entries(card.numbers).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : value]));
  $("responses-card").hidden = !card.responses.length;
  $("public-responses").replaceChildren(
    ...card.responses.map((response) => {
      const item = document.createElement("li");
      const words = element("div", response.text);
      words.className = "text";
      item.append(element("p", response.problem), words);
      return item;
    }),
  );
  note("refusal", "");
  window.scrollTo(0, 0);
  $("prompt").focus({ preventScroll: true });
  setBusy(true); // a key that was meant for the card before
  await pause(SETTLE);
  setBusy(false);
}

/** Asks what waits. The card on display stays while it waits, so that no decision meets another one. */
async function look() {
  const number = ++looks;
  const answer = await surely("api/approvals");
  if (number !== looks) return; // a newer answer is there, or on its way
  cards = answer.waiting;
  text("client", answer.client);
  text("left", cards.length);
  document.title = `${cards.length ? `(${cards.length}) ` : ""}Approval · ${answer.client}`;
  text("idle-text", `egress.approve = ${answer.approve}`);
  if (shown && cards.some((card) => card.digest === shown.digest)) return;
  if (shown) text("status", `${shown.id} does not wait any more.`);
  shown = null;
  if (cards.length) await show(cards[0]);
  else only("idle");
}

function failed(error) {
  if (error.status === 401) {
    token = "";
    stored(sessionStorage, "token", null);
    only("token-form");
    trouble("That token is not this desk's. A desk that was started again may have a new one.");
  } else if ($("work").hidden) trouble(error.message);
  else note("refusal", error.message);
}

function decide(allow) {
  const card = shown;
  if (!card) return undefined;
  return doing(async () => {
    await post("api/approvals", { id: card.id, digest: card.digest, allow, name: person });
    shown = null;
    text("status", `${card.id}: ${allow ? "approved" : "denied"}`);
    await look();
  });
}

const actions = {
  approve: () => decide(true),
  deny: () => decide(false),
  next() {
    const place = cards.findIndex((card) => shown && card.digest === shown.digest);
    if (cards.length > 1) doing(() => show(cards[(place + 1) % cards.length]));
  },
};
const KEYS = { a: "approve", d: "deny", n: "next" };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || event.repeat) return;
  if (event.target instanceof HTMLInputElement) return;
  const act = KEYS[keyOf(event)];
  if (!act || $("work").hidden || busy) return;
  event.preventDefault();
  actions[act]();
});

for (const button of document.querySelectorAll("[data-act]")) {
  button.addEventListener("click", () => (busy ? null : actions[button.dataset.act]()));
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = $("token").value.trim();
  token = words.includes("#token=") ? words.slice(words.indexOf("#token=") + 7) : words;
  $("token").value = "";
  stored(sessionStorage, "token", token);
  trouble("");
  doing(start);
});

$("name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  person = $("name").value.trim();
  stored(localStorage, "approver", person);
  doing(start);
});

$("change-name").addEventListener("click", () => {
  only("name-form");
  $("name").value = person;
  person = "";
  $("name").focus();
});

async function start() {
  if (!token) {
    only("token-form");
    $("token").focus();
    return;
  }
  if (!person) {
    await surely("api/approvals"); // whether the token is right
    only("name-form");
    $("name").value = stored(localStorage, "approver") || "";
    $("name").focus();
    return;
  }
  text("change-name", person);
  await look();
}

setInterval(() => (busy || !person || !token ? null : look().catch(failed)), LOOK);
window.addEventListener("hashchange", () => (takeToken() ? doing(start) : null));
takeToken();
doing(start);
