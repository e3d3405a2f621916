import { make } from "./dom.js";

const PARTS = { question: "the question", guidelines: "the guidelines", criteria: "the further questions", scale: "the scale" };

/** Whether people are asked by now what this page asks; a sentence stands in `box` while they are not. */
export class Asked {
  constructor(call, way, box) {
    Object.assign(this, { call, way, box, version: way.version });
  }

  /** In words, what is asked otherwise. */
  async changes() {
    const { way: now } = await this.call("GET", `/projects/${this.way.project}/judging`);
    return Object.keys(PARTS)
      .filter((part) => JSON.stringify(now[part]) !== JSON.stringify(this.way[part]))
      .map((part) => PARTS[part]);
  }

  /** Every lease tells the version of what is asked. */
  async hear(version) {
    if (version === this.version) return;
    const before = this.version;
    this.version = version;
    try {
      const changes = version === this.way.version ? [] : await this.changes();
      if (version === this.version) this.draw(changes);
    } catch {
      if (version === this.version) this.version = before; // the next lease tells it again
    }
  }

  draw(changes) {
    const words = [changes.slice(0, -1).join(", "), ...changes.slice(-1)].filter(Boolean).join(" and ");
    this.box.hidden = !changes.length;
    this.box.replaceChildren(`${words.charAt(0).toUpperCase()}${words.slice(1)} changed: `, make("a", { href: "" }, "load this page again"), ".");
  }
}
