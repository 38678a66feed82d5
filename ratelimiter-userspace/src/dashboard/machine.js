// Interfaces, tables and the fleet.

import { find, keep, make, paint, say } from "./dom.js";
import { bytes, count, exact, percent, seconds, words } from "./format.js";

const PURPOSE = {
  CROWD4: "IPv4 sources", CROWD6: "IPv6 sources", TRACKED: "Tracked sources", PREFIXES4: "IPv4 prefixes",
  PREFIXES6: "IPv6 prefixes", POLICIES: "Policies",
};

export function show(snapshot) {
  const { status } = snapshot;
  interfaces(status.interfaces);
  tables(status);
  fleet(status.sync);
}

const nowhere = make("p", { class: "note" }, "Attached to nothing: no packet is judged.");
const list = make("table", {}, make("caption", { class: "unseen" }, "Interfaces"),
  make("thead", {}, make("tr", {}, ...["Name", "Mode", "State", "Since"].map((word) => make("th", { scope: "col" }, word)))),
  make("tbody"));
find("interfaces").replaceChildren(nowhere, list);

function interfaces(found) {
  nowhere.hidden = found.length > 0;
  list.hidden = found.length === 0;
  keep(list.tBodies[0], found, (one) => one.name,
    (one) => make("tr", {}, make("th", { scope: "row" }, one.name), make("td"),
      make("td", {}, make("span", { class: "pill" })), make("td")),
    (row, one) => {
      const [, mode, state, since] = row.children;
      say(mode, one.mode);
      say(state.firstChild, one.state);
      paint(state.firstChild, one.attached ? "good" : "bad");
      state.title = one.problem ?? "";
      say(since, seconds(Math.round(one.since_s)));
    });
}

/** A gauge with its figures beside it. Above `high` it is drawn as a warning. */
function bar(place, bars) {
  keep(place, bars, (one) => one.name,
    (one) => make("div", { class: "bar" }, make("span", {}, one.name), make("span", { class: "number" }),
      make("meter", { min: 0, max: 1, "aria-label": one.name })),
    (node, one) => {
      const [, figures, meter] = node.children;
      say(figures, one.text);
      meter.high = one.high;
      meter.low = one.high;
      meter.optimum = 0;
      meter.value = Math.min(one.share, 1);
      meter.title = `${percent(one.share)}: ${one.text}`;
    });
}

const bars = make("div");
const sizing = make("div");
const memory = make("p", { class: "note" });
find("tables").replaceChildren(bars, sizing, memory);

function tables(status) {
  const used = status.tables.filter((one) => one.used !== undefined && one.capacity > 0 && PURPOSE[one.name]);
  bar(bars, used.map((one) => ({
    name: PURPOSE[one.name],
    text: `${count(one.used)} of ${count(one.capacity)}`,
    share: one.used / one.capacity,
    // Full is the crowd's natural state: there, the sizing law says whether it is too small.
    high: one.name.startsWith("CROWD") ? 1 : 0.75,
  })));
  const worst = [...status.crowd].sort((a, b) => b.phi - a.phi).slice(0, 4).filter((one) => one.phi > 0.001);
  bar(sizing, worst.map((one) => ({
    name: `Sizing, ${one.segment} IPv${one.family} ${one.unit}`,
    text: `phi ${one.phi.toFixed(2)}, bound 0.8`,
    share: one.phi,
    high: 0.8,
  })));
  const all = status.tables.reduce((total, one) => total + one.bytes, 0);
  say(memory, `${bytes(all)} in the kernel, ${bytes(status.rss_bytes)} in the agent; store ${status.store.kind}`);
}

const facts = make("dl", { class: "facts" });
const alone = make("p", { class: "note" }, "This host limits by itself: no shared store is configured.");
find("fleet").replaceChildren(alone, facts);

function fleet(sync) {
  alone.hidden = sync.configured;
  facts.hidden = !sync.configured;
  if (!sync.configured) return;
  const rows = [
    ["Store", sync.store],
    ["State", sync.alone ? "away: this host limits by itself" : sync.connected ? "connected" : "connecting"],
    ["Hosts", `${sync.hosts_live} of ${sync.hosts_known} there`],
    ["Answered", sync.answered_s === undefined ? "never" : `${seconds(sync.answered_s)} ago`],
    ["Clients", exact(sync.clients)],
    ["Lost", `${exact(sync.late)} late, ${exact(sync.failed)} failed of ${exact(sync.calls)} calls`],
    ["Last problem", sync.error ?? ""],
  ].filter(([, value]) => value !== "");
  keep(facts, rows.flatMap(([name, value]) => [{ tag: "dt", name, text: name }, { tag: "dd", name, text: words(value) }]),
    (one) => `${one.tag} ${one.name}`, (one) => make(one.tag), (node, one) => say(node, one.text));
}
