// The sources that send most. A row, or Enter on its button, explains it.

import { find, keep, make, say } from "./dom.js";
import { count, words } from "./format.js";
import { explain } from "./explain.js";

const body = find("sources-table").tBodies[0];

const subject = (row) => row.client ?? row.source;

function create(row) {
  const button = make("button", { type: "button", class: "link" }, row.source);
  const cells = [["more"], ["number"], ["number dropped"], ["more"]].map(([kind]) => make("td", { class: kind }));
  const line = make("tr", {}, make("td", {}, button), ...cells);
  line.addEventListener("click", () => {
    const about = line.dataset.about;
    explain(about, button);
  });
  return line;
}

function update(line, row) {
  const [, who, offered, dropped, reason] = line.children;
  // A prefix that makes one source is asked for by its first address.
  line.dataset.about = row.source.startsWith("shared bucket") ? subject(row) : row.source.replace(/\/\d+$/, "");
  line.firstChild.firstChild.setAttribute("aria-label", `Explain ${row.source}`);
  say(who, row.client ? `${row.client} (${row.segment})` : row.segment);
  say(offered, count(row.packets_per_s));
  const none = row.dropped_per_s < 0.05;
  say(dropped, none ? "0" : count(row.dropped_per_s));
  dropped.classList.toggle("none", none);
  say(reason, words(row.reason));
}

export function show(snapshot) {
  keep(body, snapshot.sources, (row) => row.source, create, update);
  const total = snapshot.sources_total;
  say(find("sources-note"), total === 0
    ? "No packet was sampled lately."
    : `${snapshot.sources.length} of ${total} sources seen lately; rates are estimated from samples of about one packet in 32.`);
}
