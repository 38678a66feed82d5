// The page: follows the agent's stream and hands what comes to the parts.

import { token } from "./api.js";
import { find, paint, say } from "./dom.js";
import { follow } from "./stream.js";
import * as adaptive from "./adaptive.js";
import * as explain from "./explain.js";
import * as happened from "./happened.js";
import * as machine from "./machine.js";
import * as overview from "./overview.js";
import * as pending from "./pending.js";
import * as sources from "./sources.js";

let heard = 0;

const on = {
  event(kind, data) {
    if (kind === "caller") {
      explain.allow(data.rights);
      pending.allow(data.rights);
      say(find("who"), `${data.name}: ${data.rights.join(", ") || "no rights"}`);
      find("forget").hidden = !token.get();
    } else if (kind === "snapshot") {
      heard = Date.now();
      document.body.classList.remove("waiting");
      for (const part of [overview, pending, sources, adaptive, machine]) part.show(data);
      explain.refresh();
    } else {
      happened.add(data);
    }
  },
  state(state, why) {
    const live = find("live");
    say(live, { live: "live", denied: "token needed" }[state] ?? "not live");
    live.title = why;
    paint(live, { live: "good", denied: "warn" }[state] ?? "bad");
    document.body.classList.toggle("stale", state !== "live");
    const form = find("token-form");
    if (state === "denied" && form.hidden) {
      form.hidden = false;
      find("token").focus();
    }
    if (state === "denied") say(find("token-why"), why);
    if (state === "live") form.hidden = true;
  },
};

const retry = follow(on);

find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(find("token").value.trim());
  find("token").value = "";
  retry();
});
find("forget").addEventListener("click", () => {
  token.set("");
  location.reload();
});
setInterval(() => {
  if (!document.body.classList.contains("stale") || !heard) return;
  const ago = Math.round((Date.now() - heard) / 1000);
  if (find("live").textContent.startsWith("not live")) say(find("live"), `not live for ${ago} s`);
}, 1000);
