// Talking to the server: the token, questions, and the stream of events. An error has `status`; 0 is no answer at all.

const RETRY = 1500; // milliseconds until an unreachable server is tried again
const SILENCE = 30000; // without a sign of life, after which a stream counts as broken

let token = "";

function stored(value) {
  try {
    if (value === undefined) return sessionStorage.getItem("token");
    if (value === null) sessionStorage.removeItem("token");
    else sessionStorage.setItem("token", value);
  } catch {
    // storage may be turned off: then the page asks again
  }
  return null;
}

/** Takes the token out of the address, where the printed link has it. Whether there is one. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    setToken(given);
    history.replaceState(null, "", `${location.pathname}#/`); // out of sight, and out of bookmarks
  }
  token = token || stored() || "";
  return Boolean(token);
}

export function setToken(words) {
  token = words.includes("#token=") ? words.slice(words.indexOf("#token=") + 7) : words;
  stored(token);
}

export function dropToken() {
  token = "";
  stored(null);
}

const headers = () => ({ Authorization: `Bearer ${encodeURIComponent(token) === token ? token : ""}` });

async function sent(path, options) {
  let response;
  try {
    response = await fetch(path, { headers: headers(), cache: "no-store", ...options });
  } catch {
    throw Object.assign(new Error("The server does not answer."), { status: 0 });
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw Object.assign(new Error(answer.error || `error ${response.status}`), { status: response.status });
}

export async function ask(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const item of [value].flat()) if (item !== null && item !== undefined && item !== "") query.append(name, item);
  }
  const response = await sent(`api/${path}${query.size ? `?${query}` : ""}`);
  try {
    return await response.json();
  } catch {
    throw Object.assign(new Error("The server's answer broke off."), { status: 0 });
  }
}

/** Follows the stream of events for good, through restarts of the server. `changed` gets the runs' versions; `state` hears of `live`, `lost` and `refused`. */
export async function follow(changed, state) {
  for (;;) {
    const silent = new AbortController();
    let timer = setTimeout(() => silent.abort(), SILENCE);
    try {
      const response = await sent("api/events", { signal: silent.signal });
      state("live");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        clearTimeout(timer);
        timer = setTimeout(() => silent.abort(), SILENCE);
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          const data = event.split("\n").find((line) => line.startsWith("data: "));
          if (data) changed(JSON.parse(data.slice(6)));
        }
      }
    } catch (error) {
      if (error.status === 401) {
        state("refused");
        return;
      }
    } finally {
      clearTimeout(timer);
    }
    state("lost");
    await new Promise((go) => setTimeout(go, RETRY));
  }
}
