// Changes on trial: confirm or roll back, before they take themselves back.

import { call } from "./api.js";
import { find, keep, make, say } from "./dom.js";
import { seconds } from "./format.js";

let mayWrite = false;
const section = find("pending");
let lingering = 0;

export function allow(rights) {
  mayWrite = rights.includes("write") || rights.includes("admin");
}

function create(one) {
  const button = (word, verb, strong) => {
    const made = make("button", { type: "button", class: strong ? "strong" : null, "aria-label": `${word} ${one.path}` }, word);
    made.addEventListener("click", () => decide(one, verb, made));
    return made;
  };
  const buttons = mayWrite ? [button("Confirm", "confirm", true), button("Roll back", "rollback", false)] : [];
  return make("li", {}, make("span", { class: "what" },
    make("code", {}, one.path), ` by ${one.by}, revision ${one.revision}; `, make("span")), ...buttons);
}

async function decide(one, verb, button) {
  button.disabled = true;
  try {
    await call("POST", `/v1/changes:${verb}?revision=${one.revision}`);
    finish(verb === "confirm" ? `${one.path} is kept.` : `${one.path} is as it was before.`);
    button.closest("li").remove();
  } catch (error) {
    finish(error.message);
    button.disabled = false;
  }
}

function finish(text) {
  say(find("pending-said"), text);
  lingering = Date.now() + 15_000;
}

export function show(snapshot) {
  const pending = snapshot.status.pending;
  keep(find("pending-list"), pending, (one) => `${one.revision}`, create, (line, one) => {
    const left = Math.max(one.confirm_by_unix_ms - snapshot.at_unix_ms, 0) / 1000;
    say(line.querySelector(".what > span"), `taken back in ${seconds(Math.round(left))}`);
  });
  if (pending.length && Date.now() > lingering) say(find("pending-said"), "");
  section.hidden = pending.length === 0 && Date.now() > lingering;
}
