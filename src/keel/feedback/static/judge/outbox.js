import { isFinal } from "./api.js";
import { read, write } from "./storage.js";

const PAUSES = [500, 1000, 2000, 5000, 10000]; // ms between attempts

/**
 * Judgements on their way, in order. Each stays, in memory and in this tab's storage, until the server has it; it is
 * sent again under the same key, so that it is one judgement however often it arrives. What the server will not have as
 * it is, say because it no longer fits the project, is laid aside, also there, until its task is judged anew.
 */
export class Outbox {
  constructor(call, place, { told, kept, refused, unfit }) {
    Object.assign(this, { call, place, told, kept, refused, unfit, failures: 0, busy: false, timer: null });
    this.items = read(place, []);
    addEventListener("online", () => this.flush());
    addEventListener("beforeunload", (event) => {
      if (this.items.length) event.preventDefault();
    });
  }

  /** What waits to be sent. */
  get waiting() {
    return this.items.filter((item) => !item.aside);
  }

  /** What waits to be sent, and is not taken back by something that waits behind it. */
  get standing() {
    const last = new Map(this.waiting.map((item) => [item.body.assignment, item]));
    return this.waiting.filter((item) => last.get(item.body.assignment) === item && item.body.verdict !== "withdrawn");
  }

  /** What is to be judged anew. */
  get aside() {
    return this.items.filter((item) => item.aside);
  }

  /** `begun` is what stood in the form, of which `body` may be a part: it is kept with it, and not sent; nor is `practice`. */
  add(body, begun = body, practice = false) {
    const item = { key: crypto.randomUUID?.() ?? uuid(), body, begun, practice };
    this.items = this.items.filter((other) => !other.aside || other.body.assignment !== body.assignment);
    this.items.push(item);
    write(this.place, this.items);
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
        Object.assign(item, { aside: true, why: `That was not taken (${error.message})` });
        this.settle();
        this.unfit(item, error);
      } else if (isFinal(error)) {
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

  /** It is the project that changed; also when the page is loaded again. */
  blameProject(item) {
    item.why = "The project has changed";
    write(this.place, this.items);
  }

  drop(item) {
    this.items = this.items.filter((other) => other !== item);
    this.settle();
  }

  settle() {
    this.failures = 0;
    write(this.place, this.items);
    if (!this.waiting.length) this.told(this.aside.length ? "aside" : "saved");
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
