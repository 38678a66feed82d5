// Numbers, times and words as people read them.

const SCALES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

/** 1234567 as "1.23 M"; below a thousand as it is. */
export function count(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  const size = Math.abs(value);
  for (const [scale, letter] of SCALES) {
    if (size >= scale * 0.9995) return `${digits(value / scale)} ${letter}`;
  }
  return digits(value);
}

function digits(value) {
  const size = Math.abs(value);
  // Three figures, and no zeros that say nothing.
  return String(Number(value.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2)));
}

export const rate = (value) => `${count(value)}/s`;
export const exact = (value) => Math.round(value).toLocaleString("en");
export const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;

/** Seconds as "340 us", "12 ms", "3.4 s", "5 min". */
export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  if (value === 0) return "0 s";
  if (value < 1e-3) return `${digits(value * 1e6)} us`;
  if (value < 1) return `${digits(value * 1e3)} ms`;
  if (value < 120) return `${digits(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} days`;
}

export function bytes(value) {
  for (const [scale, letter] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (value >= scale) return `${digits(value / scale)} ${letter}`;
  }
  return `${value} B`;
}

export const clock = (unixMs) => new Date(unixMs).toLocaleTimeString("en-GB");
export const words = (name) => String(name).replaceAll("_", " ");
export const plural = (number, word) => `${exact(number)} ${word}${number === 1 ? "" : "s"}`;
