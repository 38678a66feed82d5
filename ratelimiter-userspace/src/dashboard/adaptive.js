// Limits that follow health: the factor against the latency that moved it.

import { Chart } from "./chart.js";
import { find, make, say } from "./dom.js";
import { rate, seconds, words } from "./format.js";
import { History } from "./history.js";

const MOST = 4;
const place = find("adaptive");
const none = make("p", { class: "note" }, "No backend's limits follow its health here.");
const shown = new Map();
place.append(none);

function part(name) {
  const history = new History();
  const facts = make("p", { class: "note" });
  const why = make("p", { class: "note" });
  const drawing = make("div");
  const box = make("div", {}, make("h3", { class: "unseen" }, `Backend ${name}`), drawing, facts, why);
  place.append(box);
  const chart = new Chart(drawing, `Factor and latency of backend ${name}`, [
    { name: "Factor", of: (point) => point.factor, show: (value) => value.toFixed(2), top: 1 },
    { name: "Latency", of: (point) => point.latency, show: seconds, axis: "right", least: 0.01, look: "third" },
  ], 160);
  return { history, facts, why, chart, box };
}

export function show(snapshot) {
  const backends = snapshot.adaptive.backends.slice(0, MOST);
  none.hidden = backends.length > 0;
  const names = new Set(backends.map((one) => one.backend));
  for (const [name, one] of shown) {
    if (!names.has(name)) {
      one.box.remove();
      shown.delete(name);
    }
  }
  for (const one of backends) {
    if (!shown.has(one.backend)) shown.set(one.backend, part(one.backend));
    const { history, facts, why, chart } = shown.get(one.backend);
    const heard = one.signal !== "absent";
    history.add({ at: snapshot.at_unix_ms, factor: one.factor, latency: heard && one.latency_ms > 0 ? one.latency_ms / 1000 : null });
    chart.show(history.points);
    const budget = one.budget === undefined ? "no budget" : `budget ${rate(one.budget)}`;
    say(facts, `${one.backend}: law ${one.law}, ${words(one.mode)}, ${budget}, demand ${rate(one.demand)}, `
      + `admitted ${rate(one.admitted)}; signal ${one.signal}${one.paused ? "; paused by a person" : ""}`);
    say(why, one.poll_problem ?? one.reason);
  }
}
