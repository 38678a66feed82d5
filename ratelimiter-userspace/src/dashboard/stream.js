// Server-sent events over fetch: an EventSource cannot send a token.

import { headers, refusal } from "./api.js";

/** The agent sends a snapshot every second: a stream silent for this long is dead. */
const SILENCE_MS = 5000;
const PAUSES_MS = [500, 1000, 2000, 5000];

/**
 * Follows the agent for ever. `on.event(kind, data)` gets every event, `on.state(state, why)` how
 * it goes: `live`, `lost` (tried again by itself) or `denied` (tried again on `retry`).
 * Returns `retry`.
 */
export function follow(on) {
  let last = "";
  let wake = () => {};
  const run = async () => {
    let failures = 0;
    for (;;) {
      try {
        await listen(last, (event) => {
          failures = 0;
          if (event.id) last = event.id;
          on.state("live", "");
          on.event(event.kind, JSON.parse(event.data));
        });
        on.state("lost", "the agent ended the stream");
      } catch (error) {
        const denied = error.status === 401 || error.status === 403;
        on.state(denied ? "denied" : "lost", error.message);
        if (denied) {
          await new Promise((resolve) => (wake = resolve));
          continue;
        }
      }
      const pause = PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)];
      failures += 1;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  };
  run();
  return () => wake();
}

async function listen(last, take) {
  const stop = new AbortController();
  let watchdog = 0;
  const feed = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => stop.abort(new Error("the agent is silent")), SILENCE_MS);
  };
  feed();
  try {
    const after = last ? `&after=${encodeURIComponent(last)}` : "";
    const response = await fetch(`/v1/events?snapshots=true${after}`, {
      headers: headers({ Accept: "text/event-stream" }),
      cache: "no-store",
      redirect: "error",
      signal: stop.signal,
    });
    if (!response.ok) throw await refusal(response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      feed();
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event.data) take(event);
      }
    }
  } finally {
    clearTimeout(watchdog);
    stop.abort();
  }
}

/** The agent sends one `data` line per event. */
function parse(block) {
  const event = { id: "", kind: "message", data: "" };
  for (const line of block.split("\n")) {
    if (line.startsWith("id: ")) event.id = line.slice(4);
    else if (line.startsWith("event: ")) event.kind = line.slice(7);
    else if (line.startsWith("data: ")) event.data = line.slice(6);
  }
  return event;
}
