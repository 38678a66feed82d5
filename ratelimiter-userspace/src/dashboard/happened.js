// What happened lately, the newest first.

import { find, make } from "./dom.js";
import { clock, words } from "./format.js";

const MOST = 100;
const list = find("happened");

export function add(event) {
  const when = new Date(event.at_unix_ms);
  list.prepend(make("li", {},
    make("time", { datetime: when.toISOString(), title: when.toLocaleString("en-GB") }, clock(event.at_unix_ms)),
    make("span", { class: `kind ${event.kind}` }, words(event.kind)),
    make("span", { class: "text" }, event.text)));
  while (list.children.length > MOST) list.lastChild.remove();
  // Whoever cannot point must be able to scroll.
  list.tabIndex = 0;
}
