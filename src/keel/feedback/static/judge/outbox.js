const PAUSES = [500, 1000, 2000, 5000, 10000]; // ms between attempts

/**
 * Judgements on their way, in order. Each stays, in memory and in this tab's storage, until the server has it; it is
 * sent again under the same key, so that it is one judgement however often it arrives. What no longer fits the project
 * is laid aside, also there, until its task is judged anew.
 */
export class Outbox {
  constructor(call, place, { told, kept, refused, unfit }) {
    Object.assign(this, { call, place, told, kept, refused, unfit, failures: 0, busy: false, timer: null });
    this.items = JSON.parse(sessionStorage.getItem(place) ?? "[]");
    addEventListener("online", () => this.flush());
    addEventListener("beforeunload", (event) => {
      if (this.items.length) event.preventDefault();
    });
  }

  /** What waits to be sent. */
  get waiting() {
    return this.items.filter((item) => !item.aside);
  }

  /** What is to be judged anew. */
  get aside() {
    return this.items.filter((item) => item.aside);
  }

  add(body) {
    const item = { key: crypto.randomUUID?.() ?? uuid(), body };
    this.items = this.items.filter((other) => !other.aside || other.body.assignment !== body.assignment);
    this.items.push(item);
    this.store();
    this.flush();
    return item.key;
  }

  async flush() {
    if (this.busy) return;
    this.busy = true;
    clearTimeout(this.timer);
    while (this.waiting.length && (await this.send(this.waiting[0])));
    this.busy = false;
  }

  /** Whether the next one may follow. */
  async send(item) {
    this.told(this.failures ? "retrying" : "saving");
    try {
      const answer = await this.call("PUT", `/judgements/${item.key}`, item.body);
      this.drop(item);
      this.kept(item, answer);
    } catch (error) {
      if (error.status === 422) {
        item.aside = true;
        this.settle();
        this.unfit(item, error);
      } else if (error.status && !error.passing) {
        this.drop(item);
        this.refused(item, error);
      } else {
        this.timer = setTimeout(() => this.flush(), PAUSES[Math.min(this.failures++, PAUSES.length - 1)]);
        this.told([401, 403].includes(error.status) ? "signed out" : "offline");
        return false;
      }
    }
    return true;
  }

  drop(item) {
    this.items = this.items.filter((other) => other !== item);
    this.settle();
  }

  settle() {
    this.failures = 0;
    this.store();
    if (!this.waiting.length) this.told(this.aside.length ? "aside" : "saved");
  }

  store() {
    try {
      sessionStorage.setItem(this.place, JSON.stringify(this.items));
    } catch {
      // Full: what is in memory is sent all the same.
    }
  }
}

/** Where the page is not served securely there is no randomUUID. */
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
