// Why a source or a client is judged as it is, kept up to date while it is shown; and its reset.

import { call } from "./api.js";
import { ask, find, make } from "./dom.js";
import { clock, count, exact, seconds, words } from "./format.js";

const place = find("explained");
let shown = null;
let mayWrite = false;
let opener = null;

export function allow(rights) {
  mayWrite = rights.includes("write") || rights.includes("admin");
}

// A client may well be called `12345` or `cafe:1`: those are no addresses.
const isIpv4 = (text) => /^\d{1,3}(\.\d{1,3}){3}$/.test(text);
const isIpv6 = (text) => /^[0-9a-fA-F:.]+$/.test(text) && (text.includes("::") || text.split(":").length === 8);
const isAddress = (text) => isIpv4(text) || isIpv6(text);
const query = (about) => `/v1/explain?${isAddress(about) ? "ip" : "client_id"}=${encodeURIComponent(about)}`;

/** Explains `about` and takes the reader there; `from` gets the focus back on Escape. */
export async function explain(about, from = null) {
  opener = from;
  find("subject").value = about;
  try {
    const found = await call("GET", query(about));
    shown = about;
    render(found, "");
  } catch (error) {
    shown = null;
    place.replaceChildren(make("p", { class: "banner bad", role: "alert" }, error.message));
  }
  place.focus();
}

/** Brings what is shown up to date, unless somebody works in it. */
export async function refresh() {
  const about = shown;
  if (!about || document.hidden || (place.contains(document.activeElement) && document.activeElement !== place)) return;
  try {
    const found = await call("GET", query(about));
    if (shown === about) render(found, "");
  } catch {
    // What was found stays; the stream says whether the agent is there.
  }
}

function render(found, said) {
  const verdict = make("span", { class: `pill ${found.verdict === "drop" ? "bad" : "good"}` }, found.verdict);
  const rule = found.rule;
  const facts = [
    ["Rule", `${words(rule.kind)} ${rule.name}${rule.prefix && rule.prefix !== rule.name ? ` (${rule.prefix})` : ""}, from the ${words(rule.defined_in)}`],
    ["Set by", rule.set_by ? `${rule.set_by}${rule.set_at_unix_ms ? ` at ${new Date(rule.set_at_unix_ms).toLocaleString("en-GB")}` : ""}` : null],
    ["Because", rule.reason],
    ["Ends", rule.expires_unix_ms ? new Date(rule.expires_unix_ms).toLocaleString("en-GB") : null],
    ["Client", found.client],
    ["Segment", found.segment],
    ["Counted", found.offered === undefined ? null : `${exact(found.offered)} offered, ${exact(found.admitted ?? 0)} admitted`],
  ];
  const list = make("dl", {});
  for (const [name, value] of facts) {
    if (value) list.append(make("dt", {}, name), make("dd", {}, value));
  }
  const open = place.querySelector("details")?.open ?? false;
  const reset = make("button", { type: "button" }, "Forgive what it owes");
  reset.addEventListener("click", () => forgive(found));
  place.replaceChildren(
    make("h3", {}, verdict, ` ${found.subject}`),
    make("p", {}, found.summary),
    list,
    ...found.units.map(unit),
    make("details", { open }, make("summary", {}, "The decision, step by step"),
      make("ol", {}, ...found.path.map((step) => make("li", {}, step)))),
    ...(mayWrite ? [make("p", {}, reset)] : []),
    make("p", { role: "status" }, said),
  );
}

function unit(one) {
  const next = one.retry_after_s > 0
    ? `in ${seconds(one.retry_after_s)}, at ${clock(one.next_allowed_unix_ms)}`
    : "now";
  return make("dl", {},
    make("dt", {}, words(one.limit)),
    make("dd", {}, `${exact(one.rate_limit)} ${one.unit} per ${one.time_window} s, burst ${exact(one.burst)}, ${one.mode}`),
    make("dt", {}, "Left"), make("dd", {}, `${count(one.tokens)} of ${exact(one.burst)}`),
    make("dt", {}, "Next"), make("dd", {}, next),
    make("dt", {}, "Full"), make("dd", {}, one.reset_after_s > 0 ? `in ${seconds(one.reset_after_s)}` : "now"));
}

async function forgive(found) {
  const about = shown;
  const yes = await ask(`Forgive ${found.subject}?`, "Its buckets are emptied: it may send a whole burst at once.", "Forgive");
  if (!yes || !about) return;
  try {
    const path = isAddress(about)
      ? `/v1/sources/${encodeURIComponent(about)}`
      : `/v1/clients/${encodeURIComponent(about)}/debt`;
    const done = await call("DELETE", path);
    render(await call("GET", query(about)), done.summary);
  } catch (error) {
    place.append(make("p", { class: "banner bad", role: "alert" }, error.message));
  }
  place.focus();
}

find("explain-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const about = find("subject").value.trim();
  if (about) explain(about, find("subject"));
});
find("explain").addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !shown) return;
  shown = null;
  place.replaceChildren();
  (opener?.isConnected ? opener : find("subject")).focus();
});
