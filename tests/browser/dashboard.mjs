// Opens the dashboard in Chromium as a person would, and prints what it found, one line of JSON
// each. Arguments: directory of node_modules, address of the page, directory for screenshots, token
// (none if empty).

import fs from "node:fs";
import { createRequire } from "node:module";

const [modules, address, pictures, token] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { chromium } = require("playwright-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const PATIENCE_MS = 20_000;

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

const faults = [];
const foreign = [];

async function open(width, height, colorScheme) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(address).origin) foreign.push(request.url());
  });
  await page.goto(address);
  return page;
}

const live = (page) => page.waitForFunction(() => document.getElementById("live").textContent === "live");

async function judge(name, page) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  const violations = found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.target).join(", ")}`);
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });
  print({ judged: name, violations, passes: found.passes.length, overflow });
}

const page = await open(1280, 900, "light");
if (token) {
  // Without it nothing is shown, and the form says why.
  await page.waitForFunction(() => !document.getElementById("token-form").hidden);
  print({ asked: await page.textContent("#token-why"), offered: await page.getAttribute("#offered-rate", "value") });
  await judge("token", page);
  await page.keyboard.type(token);
  await page.keyboard.press("Enter");
  await live(page);
  await page.reload();
  await live(page);
  print({ kept: await page.evaluate(() => [sessionStorage.length, localStorage.length, document.cookie]) });
  await page.locator("#who", { hasText: "read" }).waitFor();
  print({ who: await page.textContent("#who") });
  await page.locator("#sources-table tbody button").first().click();
  await page.locator("#explained h3").waitFor();
  print({ reset: await page.locator("#explained button").count(), faults, foreign });
  await browser.close();
  process.exit(0);
}

await live(page);
// When the counter of dropped packets moves, by the page's own clock.
const moved = page.evaluate(() => new Promise((resolve) => {
  const node = document.getElementById("dropped-total");
  const before = node.getAttribute("value");
  new MutationObserver((_, observer) => {
    if (node.getAttribute("value") === before) return;
    observer.disconnect();
    resolve(Date.now());
  }).observe(node, { attributes: true });
}));
await page.waitForFunction(() => document.getElementById("dropped-total").getAttribute("value") !== "");
print({ ready: await page.getAttribute("#dropped-total", "value") });
print({ moved_unix_ms: await moved });

// The keyboard alone from here on: to a source, to why, and back.
await page.locator("#sources-table tbody button").first().waitFor();
await page.locator("#happened .kind.drop").first().waitFor();
const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.id);
let steps = 0;
while (!(await focused()).startsWith("Explain ")) {
  await page.keyboard.press("Tab");
  steps += 1;
  if (steps > 60) throw new Error(`no source within ${steps} steps, at ${await focused()}`);
}
const source = (await focused()).slice("Explain ".length);
await page.keyboard.press("Enter");
await page.locator("#explained h3").waitFor();
print({ steps, source, focus: await focused(), explained: await page.textContent("#explained") });
await judge("light", page);
await page.locator("#explained").press("Escape");
print({ back: await focused() });

// A pending change, confirmed by keyboard.
await page.locator("#pending button", { hasText: "Confirm" }).focus();
await page.keyboard.press("Enter");
await page.locator("#pending-said", { hasText: "is kept" }).waitFor();
print({ confirmed: await page.textContent("#pending-said") });

// What it owes is forgiven after a question, by keyboard.
await page.locator("#subject").fill(source);
await page.locator("#subject").press("Enter");
await page.locator("#explained button").waitFor();
await page.locator("#explained button").focus();
await page.keyboard.press("Enter");
await page.locator("#ask[open]").waitFor();
await page.locator("#ask-yes").press("Enter");
await page.locator("#explained [role=status]", { hasText: /\S/ }).waitFor();
print({ reset: await page.textContent("#explained [role=status]") });

// Words of a sender's or a person's making are text.
print({ text: await page.textContent("#banners"), made: await page.locator("#banners img, #happened img").count() });
await page.context().close();

for (const [name, width, height, scheme] of [["dark", 1280, 900, "dark"], ["small", 375, 800, "light"], ["small-dark", 375, 800, "dark"]]) {
  const other = await open(width, height, scheme);
  await live(other);
  await other.locator("#sources-table tbody button").first().click();
  await other.locator("#explained h3").waitFor();
  await judge(name, other);
  await other.context().close();
}
print({ faults, foreign });
await browser.close();
