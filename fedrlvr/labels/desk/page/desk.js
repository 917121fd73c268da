// The desk's page. Whatever comes from the ledger goes in with textContent, never as markup.
"use strict";

const LOOK = 4000; // until the page looks for new problems, when there were none
const RENEW = 120000; // until the desk hears that a problem is still being looked at, well within its lease
const ABSENT = 600000; // without a key or a touch, after which it does not

const HINTS = {
  math: "A number or a formula, for example 3/4 or \\sqrt{2}.",
  choice: "One letter, for example B.",
  yes_no_maybe: "yes, no or maybe.",
  exact: "The final answer, word for word.",
};
const KINDS = { math: "number or formula", choice: "one letter", yes_no_maybe: "yes, no or maybe", exact: "text" };

let expert = "";
let shown = null; // the problem on display
let said = null; // what the expert said of it, if it is an earlier one
let back = -1; // how many words back it lies; -1: it is an open one
let looking = 0; // the timer that looks for new problems
let active = Date.now();

const as = () => `expert=${encodeURIComponent(expert)}`;

// What is on display.

function only(id) {
  for (const part of ["token-form", "name-form", "idle", "work"]) $(part).hidden = part !== id;
  $("progress").hidden = $("open-table").hidden = $("change-name").hidden = id !== "work" && id !== "idle";
}

function count({ left, done, open }) {
  if (done !== undefined) text("done", done);
  if (left !== undefined) text("left", left);
  const client = $("client").textContent;
  if (left !== undefined) document.title = `${left ? `(${left}) ` : ""}Desk${client ? ` · ${client}` : ""}`;
  if (open === undefined) return;
  const waiting = plural(open, "open problem is", "open problems are");
  text("idle-text", open ? `${waiting} with other experts, or waits for an opinion besides yours.` : "Every problem that was asked about has an answer.");
}

function show(problem, { word = null, steps = -1 } = {}) {
  [shown, said, back] = [problem, word, steps];
  only("work");
  text("kicker", [problem.source, KINDS[problem.kind] || problem.kind, problem.problem].filter(Boolean).join("  ·  "));
  text("prompt", problem.prompt);
  $("prompt").classList.toggle("long", problem.prompt.length > 400);
  const none = problem.majority === null;
  text("majority", none ? "None: no attempt ended in an answer that could be read." : problem.majority);
  $("majority").classList.toggle("none", none);
  text("votes", `${none ? 0 : problem.votes} of ${problem.group} attempts`);
  const dots = problem.group <= 32 ? problem.group : 0;
  $("dots").replaceChildren(
    ...Array.from({ length: dots }, (_, index) => {
      const dot = document.createElement("i");
      dot.className = !none && index < problem.votes ? "on" : "";
      return dot;
    }),
  );
  const [first, second] = problem.responses;
  for (const [id, response] of [["response-1", first], ["response-2", second]]) {
    text(id, response === undefined ? "" : response);
    $(id).scrollTop = 0;
    $(id).parentElement.hidden = response === undefined;
  }
  $("responses").hidden = first === undefined;
  $("responses").classList.toggle("one", second === undefined);
  const titles = none ? ["One attempt", "Another"] : ["One attempt that gives it", "One that disagrees"];
  document.querySelectorAll("#responses h2").forEach((title, index) => (title.textContent = titles[index]));
  document.querySelector("[data-act=accept]").disabled = none;
  text("hint", HINTS[problem.kind] || "");
  note("earlier", word ? `An earlier one. You said: ${spoken(word.verdict, word.answer)}. Answer again to replace that, or keep it with S.` : "");
  text("skip-text", word ? "Keep" : "Skip");
  note("refusal", "");
  pressed(false);
  closeAnswer();
  window.scrollTo(0, 0);
  $("prompt").focus({ preventScroll: true });
}

function spoken(verdict, answer) {
  if (verdict === "unanswerable") return "unanswerable";
  return verdict === "skip" ? "skipped" : `${verdict === "accept" ? "accepted " : ""}“${answer}”`;
}

function pressed(value) {
  $("second").setAttribute("aria-pressed", String(value));
}

function closeAnswer() {
  $("answer-form").hidden = true;
  $("actions").hidden = false;
  $("answer").value = "";
}

// What an expert does.

function failed(error) {
  if (error.status === 401) {
    token = "";
    stored(sessionStorage, "token", null);
    only("token-form");
    trouble("That token is not this desk's. A desk that was started again may have a new one.");
    $("token").focus();
  } else if (!$("work").hidden) {
    note("refusal", error.message);
  } else {
    trouble(error.message);
  }
}

async function next() {
  clearTimeout(looking);
  const found = await surely(`api/next?${as()}`);
  count(found);
  if (found.problem) {
    show(found.problem);
    await pause(SETTLE);
    return;
  }
  shown = null;
  if ($("idle").hidden) {
    only("idle");
    $("idle-title").focus({ preventScroll: true });
  }
  looking = setTimeout(() => (busy || shown ? null : doing(next)), LOOK);
}

function answer(verdict, words = null) {
  return doing(async () => {
    note("refusal", "");
    const word = { problem: shown.problem, expert, verdict, answer: words };
    count(await post("api/answer", word));
    text("status", `Stored: ${spoken(verdict, words)}. Press Z to go back to it.`);
    await next();
  });
}

const actions = {
  accept() {
    if (shown.majority === null) actions.correct();
    else answer("accept", shown.majority);
  },
  correct() {
    $("answer-form").hidden = false;
    $("actions").hidden = true;
    $("answer").value = said && said.answer ? said.answer : "";
    $("answer").focus();
    $("answer").select();
  },
  unanswerable() {
    answer("unanswerable");
  },
  skip() {
    if (!said) answer("skip");
    else doing(next);
  },
  second() {
    doing(async () => {
      await post("api/second", { problem: shown.problem });
      pressed(true);
      text("status", "Another expert will be shown this problem too. Now give your own answer, or skip.");
    });
  },
  back() {
    doing(async () => {
      const steps = back + 1;
      const found = await surely(`api/last?${as()}&back=${steps}`);
      if (!found.problem) {
        const words = steps ? "That was the first one you answered." : "You have not answered any problem yet.";
        text($("work").hidden ? "idle-text" : "status", words);
        return;
      }
      clearTimeout(looking);
      show(found.problem, { word: found.said, steps });
      await pause(SETTLE);
    });
  },
};

const KEYS = { enter: "accept", a: "accept", c: "correct", u: "unanswerable", s: "skip", 2: "second", z: "back" };

document.addEventListener("keydown", (event) => {
  active = Date.now();
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || event.repeat) return;
  if (document.querySelector("dialog[open]")) return;
  const target = event.target;
  if (target instanceof HTMLInputElement) {
    if (event.key === "Escape" && target.id === "answer") cancel();
    return;
  }
  const key = keyOf(event);
  if (key === "enter" && target instanceof HTMLButtonElement) return; // it presses that button
  if (key === "?") {
    event.preventDefault();
    $("help").showModal();
    return;
  }
  const act = KEYS[key];
  const here = !$("work").hidden || (act === "back" && !$("idle").hidden);
  if (!act || !here || !$("keys").checked || busy) return;
  event.preventDefault();
  actions[act]();
});

document.addEventListener("pointerdown", () => (active = Date.now()));

for (const button of document.querySelectorAll("[data-act]")) {
  button.addEventListener("click", () => (busy ? null : actions[button.dataset.act]()));
}

function cancel() {
  closeAnswer();
  note("refusal", "");
  $("prompt").focus({ preventScroll: true });
}

$("cancel").addEventListener("click", cancel);
$("answer-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = $("answer").value.trim();
  if (words) answer(words === (shown.majority || "").trim() ? "accept" : "correct", words);
  else note("refusal", "Write the answer, or press Esc to go back to the choices.");
});

// Who answers, and by which token.

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
  const before = expert;
  const words = $("name").value.trim();
  doing(async () => {
    if (before && before !== words) await post("api/release", { expert: before });
    expert = words;
    try {
      await next();
    } catch (error) {
      expert = "";
      throw error;
    }
    stored(localStorage, "expert", expert);
    text("change-name", expert);
    text("status", "");
    trouble("");
  });
});

$("change-name").addEventListener("click", () => (busy ? null : askName()));

function askName() {
  clearTimeout(looking);
  only("name-form");
  $("name").value = expert;
  $("name").focus();
}

// The spreadsheet, and help.

$("open-help").addEventListener("click", () => $("help").showModal());
$("keys").checked = stored(localStorage, "keys") !== "off";
$("keys").addEventListener("change", () => stored(localStorage, "keys", $("keys").checked ? "on" : "off"));

function tableResult(words, good) {
  note("table-result", words);
  $("table-result").classList.toggle("good", good);
}

async function counts() {
  const all = await ask(`api/progress?${as()}`);
  const parts = [`${all.asked} asked`, `${all.labelled} labelled`, `${all.open} open`, `${all.unanswerable} unanswerable`, `${all.disputed} disputed`];
  text("counts", `${all.client}: ${parts.join(", ")}. Labels were used ${plural(all.uses, "time", "times")}.`);
}

$("open-table").addEventListener("click", () => {
  tableResult("", false);
  text("counts", "");
  $("table").showModal();
  counts().catch((error) => tableResult(error.message, false));
});

$("download").addEventListener("click", async () => {
  try {
    const address = URL.createObjectURL(await ask("api/labels.csv", { raw: true }));
    const link = document.createElement("a");
    link.href = address;
    link.download = "labels.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  } catch (error) {
    tableResult(error.message, false);
  }
});

$("upload").addEventListener("click", async () => {
  const file = $("file").files[0];
  if (!file) return tableResult("Choose a file first.", false);
  $("upload").disabled = true;
  try {
    const { stored: number } = await ask(`api/labels.csv?${as()}`, { method: "POST", body: file, type: "text/csv" });
    tableResult(`${plural(number, "new answer was", "new answers were")} stored as ${expert}'s.`, true);
    $("file").value = "";
    await counts();
    if (number) await doing(next);
  } catch (error) {
    // Without an answer nobody knows; what is stored already is passed over the next time.
    const lost = "The desk does not answer. When it does again, hand the file in once more.";
    tableResult(error.status ? `Nothing was stored. ${error.message}` : lost, false);
  } finally {
    $("upload").disabled = false;
  }
  return undefined;
});

// A problem that is still being looked at stays this expert's.

setInterval(async () => {
  if (busy || !shown || said || document.hidden || Date.now() - active > ABSENT) return;
  try {
    const looked = shown;
    const found = await ask(`api/next?${as()}`);
    const same = found.problem && found.problem.problem === looked.problem;
    if (busy || shown !== looked || same || !$("answer-form").hidden) return;
    await doing(next);
    text("status", "The problem that was here has been answered by somebody else.");
  } catch {
    // the next answer will tell
  }
}, RENEW);

// The beginning.

async function start() {
  if (!token) {
    only("token-form");
    $("token").focus();
    return;
  }
  const all = await surely("api/progress");
  text("client", all.client);
  expert = stored(localStorage, "expert") || "";
  if (!expert) {
    askName();
    return;
  }
  text("change-name", expert);
  await next();
}

window.addEventListener("hashchange", () => (takeToken() ? doing(start) : null));
takeToken();
doing(start);
