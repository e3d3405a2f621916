import { cleaned, keyed, letter, make, sentence } from "./dom.js";

const ROLES = { user: "User", assistant: "Assistant", system: "System" };
const PLACE = "keel-as-written";
const EDGE = 10; // pixels above a message, in the shadow of what stands before it

/** The prompt and the responses: as Markdown, as written, or with their differences marked. */
export class Panes {
  constructor(box, tools, call, warn) {
    Object.assign(this, { box, tools, call, warn, task: null, together: false });
    this.mode = localStorage.getItem(PLACE) ? "written" : "markdown";
  }

  show(task) {
    this.task = task;
    if (this.mode === "differences") this.mode = this.before;
    const prompt = make("section", { class: "prompt card", "aria-label": "Prompt", tabindex: "0" },
      ...task.prompt.map((turn) => make("div", { class: `turn ${turn.role ?? ""}` },
        turn.role === null ? null : make("p", { class: "role" }, ROLES[turn.role] ?? turn.role), this.text(turn))));
    this.panes = task.responses.map((response, place) => this.pane(response, place));
    const responses = make("div", { class: "responses", "data-count": task.responses.length }, ...this.panes);
    this.box.replaceChildren(prompt, responses);
    this.drawTools();
  }

  /** Of a dialogue the last message is in sight, which the responses answer: its end, or its beginning where it is too long. */
  showLast() {
    const prompt = this.box.querySelector(".prompt"), turn = prompt.querySelector(".turn + .turn:last-child");
    if (turn) prompt.scrollTop += turn.getBoundingClientRect().top - prompt.getBoundingClientRect().top - EDGE;
  }

  pane(response, place) {
    const name = this.task.responses.length === 1 ? "Response" : `Response ${letter(place)}`;
    const text = this.text(response, { tabindex: "0", role: "region", "aria-label": `${name}, its text` });
    text.addEventListener("scroll", () => this.scrolled(text), { passive: true });
    return make("article", { class: "response card", "aria-label": name },
      make("header", {}, make("h2", {}, name)), text, make("footer"));
  }

  text(passage, attributes = {}) {
    if (this.mode === "markdown") return cleaned("div", { class: "text", ...attributes }, passage.html);
    return make("div", { class: "text written", ...attributes },
      ...passage.text.split("\n").map((line) => make("p", { dir: "auto" }, line || make("br"))));
  }

  drawTools() {
    const several = this.panes.length > 1;
    this.tools.hidden = false;
    this.tools.replaceChildren(
      keyed("As written", "m", { "aria-pressed": `${this.mode === "written"}`, onclick: () => this.toggle("written") }),
      several ? keyed("Differences", "d", { "aria-pressed": `${this.mode === "differences"}`, onclick: () => this.toggle("differences") }) : "",
      several ? keyed("Scroll together", "t", { "aria-pressed": `${this.together}`, onclick: () => this.toggleTogether() }) : "");
  }

  toggleTogether() {
    this.together = !this.together;
    this.drawTools();
  }

  /** What is still on its way for the task is let go. */
  clear() {
    this.task = null;
  }

  /** Null where they cannot be had, or the task is another by now. */
  async differences(task) {
    try {
      const { responses } = await this.call("GET", `/assignments/${task.assignment}/differences`);
      return task === this.task ? responses : null;
    } catch (error) {
      const offline = "Offline: the differences can be shown when the network is there again.";
      if (task === this.task) this.warn(error.status ? sentence(error.message) : offline, "warn");
      return null;
    }
  }

  async toggle(mode) {
    const task = this.task;
    const wanted = this.mode === mode ? (mode === "differences" ? this.before : "markdown") : mode;
    let marked = null;
    if (wanted === "differences") {
      marked = await this.differences(task);
      if (marked === null) return;
      this.before = this.mode === "differences" ? this.before : this.mode;
    } else if (wanted === "written") localStorage.setItem(PLACE, "yes");
    else localStorage.removeItem(PLACE);
    this.mode = wanted;
    const turns = this.box.querySelectorAll(".prompt .text");
    task.prompt.forEach((turn, place) => turns[place].replaceWith(this.text(turn)));
    task.responses.forEach((response, place) => this.fill(place, marked ? marked[place] : null, response));
    this.drawTools();
  }

  /** New insides for a pane, which stays where it was scrolled to. */
  fill(place, marked, response) {
    const old = this.panes[place].querySelector(".text");
    old.classList.toggle("written", this.mode !== "markdown");
    if (marked === null) old.replaceChildren(...this.text(response).childNodes);
    else old.replaceChildren(cleaned("div", { class: "marked", dir: "auto" }, marked));
  }

  scrolled(text) {
    if (!this.together || text.dataset.led) {
      delete text.dataset.led;
      return;
    }
    const share = text.scrollTop / Math.max(1, text.scrollHeight - text.clientHeight);
    for (const pane of this.panes) {
      const other = pane.querySelector(".text");
      const to = Math.round(share * (other.scrollHeight - other.clientHeight));
      if (other === text || Math.abs(other.scrollTop - to) < 1) continue;
      other.dataset.led = "yes";
      other.scrollTop = to;
    }
  }
}
