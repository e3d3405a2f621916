const SMALL = 30000; // bytes that a closing page may still send
const PATIENCE = 30000; // ms: what hangs for longer is as good as off the network

/** An answer of the server that is no success. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** Whether the same request may do later. */
  get passing() {
    return this.status >= 500 || [401, 403, 408, 429].includes(this.status);
  }
}

/** Whether the same request will never do. */
export const isFinal = (error) => error instanceof Refused && !error.passing;

/** `call(method, path, body)` gives the JSON that the server answers; it throws Refused, or off the network what `fetch` does. */
export function makeApi(csrf) {
  return async function call(method, path, body) {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const answer = await fetch(`/api/v1${path}`, {
      method,
      body: text,
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
      keepalive: method !== "GET" && new TextEncoder().encode(text).length < SMALL,
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (answer.ok) return answer.status === 204 ? null : answer.json();
    const { error } = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, error?.message ?? `the server answered ${answer.status}`);
  };
}
