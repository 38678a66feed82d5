// Questions to the agent, and the token they carry. The token lives in this tab's session storage
// and is sent to this page's own address alone.

const KEY = "ratelimiter-token";

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

export function headers(more = {}) {
  const bearer = token.get();
  return bearer ? { ...more, Authorization: `Bearer ${bearer}` } : more;
}

/** A refusal, in the agent's own words. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export async function refusal(response) {
  const problem = await response.json().catch(() => ({}));
  return new Refused(response.status, problem.detail ?? `the agent answered ${response.status}`);
}

export async function call(method, path) {
  const response = await fetch(path, {
    method,
    headers: headers({ Accept: "application/json" }),
    cache: "no-store",
    redirect: "error",
  });
  if (!response.ok) throw await refusal(response);
  return response.json();
}
