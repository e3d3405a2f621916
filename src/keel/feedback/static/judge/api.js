const SMALL = 30000; // bytes that a closing page may still send

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

/** `call(method, path, body)` gives the JSON that the server answers; it throws Refused, or a TypeError off the network. */
export function makeApi(csrf) {
  return async function call(method, path, body) {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const answer = await fetch(`/api/v1${path}`, {
      method,
      body: text,
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
      keepalive: method !== "GET" && new TextEncoder().encode(text).length < SMALL,
    });
    const said = answer.status === 204 ? null : await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Refused(answer.status, said.error?.message ?? `the server answered ${answer.status}`);
    return said;
  };
}
