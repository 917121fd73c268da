// What both pages of the desk share. Whatever comes from a site goes in with textContent, never as markup.
"use strict";

const RETRY = 2000; // milliseconds until an unreachable desk is tried again
const SETTLE = 250; // in which a new problem or card takes no key: a second one was meant for the one before

const $ = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));
const plural = (n, one, many) => `${n} ${n === 1 ? one : many}`;

// What the browser keeps: the token for this tab, the name and the choice about keys for good.

function stored(storage, key, value) {
  try {
    if (value === undefined) return storage.getItem(key);
    if (value === null) storage.removeItem(key);
    else storage.setItem(key, value);
  } catch {
    // storage may be turned off: then the page asks again
  }
  return null;
}

let token = "";

function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    stored(sessionStorage, "token", given);
    history.replaceState(null, "", location.pathname); // out of sight, and out of bookmarks
  }
  token = given || token || stored(sessionStorage, "token") || "";
  return Boolean(given);
}

// Talking to the desk. An error has `status`; 0 is no answer at all.

async function ask(path, { method = "GET", body, type = "application/json", raw = false } = {}) {
  let response;
  try {
    const headers = { Authorization: `Bearer ${encodeURIComponent(token) === token ? token : ""}` };
    if (body !== undefined) headers["Content-Type"] = type;
    response = await fetch(path, { method, headers, body, cache: "no-store" });
    if (response.ok && raw) return await response.blob();
    const answer = await response.json();
    if (response.ok) return answer;
    throw Object.assign(new Error(answer.error || `error ${response.status}`), { status: response.status });
  } catch (error) {
    if (error.status === undefined) error.status = response && response.status !== 200 ? response.status : 0;
    throw error;
  }
}

/** Asks until there is an answer: a desk that was stopped goes on where it was, and the same word twice is one word. */
async function surely(path, options) {
  for (;;) {
    try {
      const answer = await ask(path, options);
      trouble("");
      return answer;
    } catch (error) {
      if (error.status !== 0) throw error;
      const lost = options ? " Your last answer is not stored yet; keep this page open." : "";
      trouble(`The desk does not answer. Trying again …${lost}`);
      await pause(RETRY);
    }
  }
}

const post = (path, body) => surely(path, { method: "POST", body: JSON.stringify(body) });

// What is on display.

// Characters that nobody sees, and those that turn the direction of what follows, are shown as their escapes.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;
const escaped = (character) => ("\n\t".includes(character) ? character : `\\u{${character.codePointAt(0).toString(16)}}`);

function text(id, words) {
  $(id).textContent = String(words ?? "").replace(UNSEEN, escaped);
}

function note(id, words) {
  text(id, words);
  $(id).hidden = !words;
}

function trouble(words) {
  if ($("trouble").textContent !== words) note("trouble", words);
}

/** The key as it is printed on a Latin keyboard, for those who type on another, or need shift for digits. */
function keyOf(event) {
  if (event.code === "Digit2") return event.shiftKey && event.key !== "2" && event.key !== "é" ? event.key : "2";
  if (/^[ -~]+$/.test(event.key)) return event.key.toLowerCase();
  return event.code.startsWith("Key") ? event.code.slice(3).toLowerCase() : event.key;
}

// What a person does.

let busy = false;

function setBusy(value) {
  busy = value;
  $("main").setAttribute("aria-busy", String(value));
}

/** One thing at a time; the page's own `failed` tells what goes wrong, and the problem or card stays. */
async function doing(work) {
  if (busy) return;
  setBusy(true);
  try {
    await work();
  } catch (error) {
    failed(error);
  } finally {
    setBusy(false);
  }
}

// The page of `fedrlvr watch` opens a desk under an address of its own.
$("home").hidden = location.pathname === "/";
