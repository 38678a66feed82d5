// The last minutes, as this page saw them.

const KEPT_MS = 180_000;

export class History {
  #points = [];

  add(point) {
    this.#points.push(point);
    while (this.#points[0].at < point.at - KEPT_MS) this.#points.shift();
  }

  get points() {
    return this.#points;
  }

  static get span() {
    return KEPT_MS;
  }
}
