// A line chart over the last minutes: a drawing, a legend with the newest (or the pointed-at)
// figures, and the same as a table for whoever does not look at drawings.

import { clock } from "./format.js";
import { draw, make, say } from "./dom.js";
import { History } from "./history.js";

const EDGE = { left: 52, right: 52, top: 8, bottom: 20 };
const LOOKS = ["first", "second", "third"];
const ROWS = 6;

export class Chart {
  #series;
  #title;
  #height;
  #points = [];
  #pointed = null;
  #drawn = 0;
  #width = 640;

  /**
   * `series`: `{ name, of: point => number | null, show: number => text, axis: "left" | "right",
   * area, least, top, look }`; at most three.
   */
  constructor(place, title, series, height = 180) {
    this.#series = series.map((one, n) => ({ look: LOOKS[n], ...one }));
    this.#title = title;
    this.#height = height;
    this.legend = make("ul", { class: "legend" });
    this.figures = this.#series.map((one) => {
      const value = make("span");
      const key = draw("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" },
        draw("line", { class: `line ${one.look}`, x1: 0, y1: 5, x2: 26, y2: 5 }));
      this.legend.append(make("li", {}, key, `${one.name} `, value));
      return value;
    });
    this.when = make("li", { class: "when" });
    this.legend.append(this.when);
    this.svg = draw("svg", { role: "img", "aria-label": title, preserveAspectRatio: "none" });
    this.rows = make("tbody");
    const head = make("tr", {}, make("th", { scope: "col" }, "Time"),
      ...series.map((one) => make("th", { scope: "col", class: "number" }, one.name)));
    this.table = make("details", {}, make("summary", {}, "The last minute as a table"),
      make("table", {}, make("caption", { class: "unseen" }, title), make("thead", {}, head), this.rows));
    this.table.addEventListener("toggle", () => this.#tabulate());
    this.root = make("div", { class: "chart" }, this.legend, this.svg, this.table);
    place.replaceChildren(this.root);
    this.svg.addEventListener("pointermove", (event) => this.#point(event));
    this.svg.addEventListener("pointerleave", () => {
      this.#pointed = null;
      this.#paint();
    });
    new ResizeObserver(([entry]) => {
      const width = Math.max(260, Math.round(entry.contentRect.width));
      if (width !== this.#width) {
        this.#width = width;
        this.#paint();
      }
    }).observe(this.root);
  }

  show(points) {
    this.#points = points;
    this.#paint();
    // A table that is read must not run away under the reader: it follows every ten seconds.
    const newest = points.at(-1)?.at ?? 0;
    if (newest - this.#drawn > 10_000) this.#tabulate();
  }

  #point(event) {
    if (!this.#points.length) return;
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - EDGE.left) / (box.width - EDGE.left - EDGE.right);
    const at = this.#points.at(-1).at - (1 - share) * History.span;
    this.#pointed = this.#points.reduce((best, point) =>
      Math.abs(point.at - at) < Math.abs(best.at - at) ? point : best);
    this.#paint();
  }

  #tabulate() {
    const newest = this.#points.at(-1)?.at ?? 0;
    this.#drawn = newest;
    const rows = [];
    for (let n = 0; n < ROWS; n += 1) {
      const [from, to] = [newest - (n + 1) * 10_000, newest - n * 10_000];
      const within = this.#points.filter((point) => point.at > from && point.at <= to);
      if (!within.length) continue;
      rows.push(make("tr", {}, make("th", { scope: "row" }, clock(to)),
        ...this.#series.map((one) => {
          const values = within.map(one.of).filter((value) => Number.isFinite(value));
          const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
          return make("td", { class: "number" }, values.length ? one.show(mean) : "-");
        })));
    }
    this.rows.replaceChildren(...rows);
  }

  #top(axis) {
    const series = this.#series.filter((one) => (one.axis ?? "left") === axis);
    if (!series.length) return null;
    const values = this.#points.flatMap((point) => series.map((one) => one.of(point)));
    const most = Math.max(...values.filter((value) => Number.isFinite(value)), 0);
    return { top: series[0].top ?? nice(Math.max(most, series[0].least ?? 1)), show: series[0].show };
  }

  #paint() {
    const [width, height] = [this.#width, this.#height];
    const inner = { w: width - EDGE.left - EDGE.right, h: height - EDGE.top - EDGE.bottom };
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const newest = this.#points.at(-1);
    const shown = this.#pointed ?? newest;
    this.#series.forEach((one, n) => {
      const value = shown ? one.of(shown) : null;
      say(this.figures[n], Number.isFinite(value) ? one.show(value) : "-");
    });
    say(this.when, this.#pointed ? `at ${clock(this.#pointed.at)}` : "now");
    if (!newest) return;
    const axes = { left: this.#top("left"), right: this.#top("right") };
    const x = (at) => EDGE.left + (1 - (newest.at - at) / History.span) * inner.w;
    const y = (axis, value) => EDGE.top + (1 - Math.min(value / axes[axis].top, 1)) * inner.h;
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      const line = EDGE.top + (1 - share) * inner.h;
      parts.push(draw("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: line, y2: line }));
      for (const [side, axis] of Object.entries(axes)) {
        if (!axis) continue;
        const at = side === "left"
          ? { x: EDGE.left - 6, "text-anchor": "end" }
          : { x: width - EDGE.right + 6, "text-anchor": "start" };
        parts.push(draw("text", { ...at, y: line + 4 }, axis.show(axis.top * share)));
      }
    }
    const marks = [[180, "start"], [120, "middle"], [60, "middle"], [0, "end"]];
    for (const [ago, anchor] of inner.w < 330 ? [marks[0], marks[3]] : marks) {
      const at = { x: x(newest.at - ago * 1000), y: height - 4, "text-anchor": anchor };
      parts.push(draw("text", at, ago ? `${ago / 60} min ago` : "now"));
    }
    for (const one of this.#series) {
      const axis = one.axis ?? "left";
      for (const run of runs(this.#points, one.of)) {
        const line = run.map((point) => `${x(point.at).toFixed(1)} ${y(axis, one.of(point)).toFixed(1)}`);
        if (one.area) {
          const floor = EDGE.top + inner.h;
          const path = `M${x(run[0].at).toFixed(1)} ${floor}L${line.join("L")}L${x(run.at(-1).at).toFixed(1)} ${floor}Z`;
          parts.push(draw("path", { class: `area ${one.look}`, d: path }));
        }
        parts.push(draw("path", { class: `line ${one.look}`, d: `M${line.join("L")}` }));
      }
    }
    if (this.#pointed) {
      const at = x(this.#pointed.at);
      parts.push(draw("line", { class: "cursor", x1: at, x2: at, y1: EDGE.top, y2: EDGE.top + inner.h }));
    }
    this.svg.replaceChildren(...parts);
    const told = this.#series.map((one) => `${one.name} ${Number.isFinite(one.of(newest)) ? one.show(one.of(newest)) : "none"}`);
    this.svg.setAttribute("aria-label", `${this.#title}, the last three minutes; now ${told.join(", ")}`);
  }
}

/** Stretches of points that have a figure and no gap: a lost stream draws no line. */
function runs(points, of) {
  const found = [];
  let run = [];
  let before = null;
  for (const point of points) {
    const has = Number.isFinite(of(point));
    if (!has || (before && point.at - before.at > 5000)) {
      if (run.length) found.push(run);
      run = [];
    }
    if (has) run.push(point);
    before = point;
  }
  if (run.length) found.push(run);
  return found;
}

/** The next 1, 2 or 5 times a power of ten. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999) ?? value;
}
