// The head of the page: mode, readiness, banners, the large figures, packets and checks over time.

import { Chart } from "./chart.js";
import { find, keep, make, paint, say, tell } from "./dom.js";
import { clock, count, exact, percent, plural, rate, seconds, words } from "./format.js";
import { History } from "./history.js";

const history = new History();
const packets = new Chart(find("packets-chart"), "Packets by verdict", [
  { name: "Passed", of: (point) => point.passed, show: rate, area: true, least: 10 },
  { name: "Dropped", of: (point) => point.dropped, show: rate, area: true },
]);
const checks = new Chart(find("checks-chart"), "Checks", [
  { name: "Allowed", of: (point) => point.allowed, show: rate, area: true, least: 10 },
  { name: "Denied", of: (point) => point.denied, show: rate },
  { name: "99th percentile", of: (point) => point.p99, show: seconds, axis: "right", least: 1e-5 },
], 160);

const sum = (counts, verdict) =>
  counts.filter((one) => one.verdict === verdict).reduce((total, one) => total + one.packets, 0);

let before = null;
let begun = null;

export function show(snapshot) {
  const { status, checks: asked } = snapshot;
  heads(snapshot);
  const dropped = sum(status.counts, "drop");
  const p99 = asked.p99_s ?? null;
  tell(find("offered-rate"), rate(status.packets_per_s), status.packets_per_s);
  say(find("offered-total"), `${exact(status.offered)} in all`);
  tell(find("dropped-rate"), rate(status.dropped_per_s), status.dropped_per_s);
  tell(find("dropped-total"), `${exact(dropped)} in all`, dropped);
  if (before !== null && dropped > before && begun === null) begun = snapshot.at_unix_ms;
  if (before !== null && dropped === before && status.dropped_per_s < 0.5) begun = null;
  before = dropped;
  say(find("dropped-since"), begun === null ? "" : `since ${clock(begun)}`);
  tell(find("checks-rate"), rate(asked.per_s), asked.per_s);
  const share = asked.per_s > 0 ? asked.denied_per_s / asked.per_s : 0;
  say(find("checks-total"), asked.per_s > 0 ? `${percent(share)} denied` : `${exact(asked.allowed + asked.denied)} in all`);
  tell(find("checks-p99"), seconds(p99), p99);
  const over = status.crowd.reduce((total, one) => total + one.over_limit, 0);
  tell(find("over-limit"), exact(over), over);
  say(find("sources-known"), `${exact(snapshot.sources_total)} seen lately`);
  lowest(snapshot.adaptive.backends);

  history.add({
    at: snapshot.at_unix_ms,
    passed: Math.max(status.packets_per_s - status.dropped_per_s, 0),
    dropped: status.dropped_per_s,
    allowed: asked.per_s - asked.denied_per_s,
    denied: asked.denied_per_s,
    p99,
  });
  packets.show(history.points);
  checks.show(history.points);
}

function lowest(backends) {
  const least = backends.reduce((low, one) => (low && low.factor <= one.factor ? low : one), null);
  tell(find("factor"), least ? least.factor.toFixed(2) : "1", least?.factor ?? 1);
  const what = least && least.overall < 1 ? "is reduced" : "is as configured";
  say(find("factor-why"), least ? `${least.backend} ${what}` : "nothing follows health");
}

function heads(snapshot) {
  const { status, readiness } = snapshot;
  const mode = find("mode");
  const enforcing = status.mode === "enforce";
  say(mode, enforcing ? "enforcing" : status.mode);
  paint(mode, enforcing ? "good" : "warn");
  const ready = find("readiness");
  say(ready, words(readiness.status));
  paint(ready, { ready: "good", degraded: "warn" }[readiness.status] ?? "bad");
  document.title = `${readiness.status === "ready" ? "" : `${words(readiness.status)}: `}ratelimiter`;

  const banners = [];
  if (!enforcing) {
    banners.push({ kind: "warn", text: `Mode ${status.mode}: every packet is judged and counted, none is dropped.` });
  }
  for (const text of readiness.problems) {
    banners.push({ kind: readiness.status === "degraded" ? "warn" : "bad", text });
  }
  if (status.reload_error) banners.push({ kind: "bad", text: `The configuration file is refused: ${status.reload_error}` });
  const said = new Set(readiness.problems);
  for (const text of status.warnings) {
    if (said.has(text) || text.includes("runs in shadow")) continue;
    banners.push({ kind: "warn", text });
  }
  for (const breaker of snapshot.checks.breakers) {
    if (breaker.state !== "closed") banners.push({ kind: "warn", text: `The circuit breaker of ${breaker.backend} is ${words(breaker.state)}.` });
  }
  keep(find("banners"), banners, (one) => `${one.kind} ${one.text}`,
    (one) => make("p", { class: `banner ${one.kind}` }, one.text), () => {});

  say(find("agent"), `ratelimiter ${status.version}, process ${status.pid}, up ${seconds(status.uptime_s)}, `
    + `revision ${status.revision}, ${plural(status.clients, "client")}, ${plural(status.segments, "segment")}, `
    + `${status.allowed} allowed, ${status.blocked} blocked; program ${status.program_id} in ${status.pin_dir}`);
  reasons(status.counts);
}

const table = make("table", {},
  make("caption", { class: "unseen" }, "Packets by reason and verdict"),
  make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Reason"), make("th", { scope: "col" }, "Verdict"),
    make("th", { scope: "col", class: "number" }, "Packets"))),
  make("tbody"));
find("reasons").replaceChildren(table);

function reasons(counts) {
  const sorted = [...counts].sort((a, b) => b.packets - a.packets);
  keep(table.tBodies[0], sorted, (one) => `${one.reason} ${one.verdict}`,
    (one) => make("tr", {}, make("th", { scope: "row" }, words(one.reason)),
      make("td", { class: one.verdict === "drop" ? "dropped" : null }, one.verdict), make("td", { class: "number" })),
    (row, one) => {
      say(row.lastChild, exact(one.packets));
      row.lastChild.title = count(one.packets);
    });
}
