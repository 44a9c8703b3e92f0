// The server, as everybody else sees it: the page has no address of its own.

export class Refused extends Error {
  constructor(status, error, retry) {
    super(error.message);
    Object.assign(this, { status, code: error.code, param: error.param, retry });
  }
}

export async function ask(method, path, body, headers = {}) {
  const options = { method, headers: { ...headers }, credentials: "same-origin" };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused(0, { message: "the server cannot be reached", code: "offline" });
  }
  if (answer.status === 204) return null;
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  const error = found.error || { message: `the server answered ${answer.status}`, code: "http" };
  throw new Refused(answer.status, error, Number(answer.headers.get("retry-after")) || null);
}

export const status = () => ask("GET", "/api/status");
export const signIn = (token) => ask("POST", "/api/session", { token });
export const submit = (job, key) => ask("POST", "/api/jobs", job, key ? { "idempotency-key": key } : {});
export const job = (id) => ask("GET", `/api/jobs/${id}`);
export const cancel = (id) => ask("DELETE", `/api/jobs/${id}`);
export const forget = (id) => ask("DELETE", `/api/jobs/${id}?forget=true`);
export const retry = (id) => ask("POST", `/api/jobs/${id}/retry`);
export const history = (before, limit = 40) => ask("GET", `/api/jobs?limit=${limit}${before ? `&before=${before}` : ""}`);
export const recipe = (image) => ask("POST", "/api/recipe", { image });

export const OVER = ["done", "failed", "cancelled", "expired", "interrupted"];
const NAMES = ["queued", "running", "step", "preview", "link", ...OVER];

// Follow a job until it is over; the browser itself reconnects and says the last event it saw.
export function follow(id, listen) {
  const source = new EventSource(`/api/jobs/${id}/events`);
  let ended = false;
  const end = () => { ended = true; source.close(); };
  for (const name of NAMES) {
    source.addEventListener(name, (event) => {
      if (ended) return;
      if (OVER.includes(name)) end();
      listen(name, JSON.parse(event.data));
    });
  }
  source.addEventListener("error", async () => {
    if (ended || source.readyState !== EventSource.CLOSED) return;
    end(); // it will not come back by itself: ask how the job stands
    setTimeout(() => again(id, listen), 1000);
  });
  return end;
}

async function again(id, listen) {
  try {
    const found = await job(id);
    if (OVER.includes(found.state)) listen(found.state, found);
    else follow(id, listen);
  } catch (error) {
    if (error.status === 404) listen("failed", { id, state: "failed", error: "the server does not know this job" });
    else setTimeout(() => again(id, listen), 2000);
  }
}

// A job from beginning to end: its final state as JSON.
export async function carry(body, listen = () => {}) {
  const made = await submit(body);
  return new Promise((resolve) => {
    listen("made", made);
    follow(made.id, (name, data) => {
      listen(name, data);
      if (OVER.includes(name)) resolve(data);
    });
  });
}
