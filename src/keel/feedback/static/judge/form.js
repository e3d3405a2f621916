import { compare } from "./compare.js";
import { byId, keyed, letter, make } from "./dom.js";
import { rank } from "./rank.js";
import { rate } from "./rate.js";
import { review } from "./review.js";

const LONGEST = 5000; // a comment: with two line ends and the longest report it is what the server takes
const KINDS = { compare, rank, rate, review };

/** What is asked of one task: the answer in its way of judging, the criteria, a comment, a report. */
export class Form {
  /** `acts`: `submit`, skip, problem and undo; `begun` is told of each change of the answer, `warn` says a sentence. */
  constructor(box, way, task, panes, acts) {
    Object.assign(this, { box, way, task, acts, criteria: {} });
    const main = make("div", { class: "choices" });
    this.widget = KINDS[way.kind]({ box: main, panes, way, task, changed: (now) => this.changed(now), submit: acts.submit, warn: acts.warn });
    this.instant = this.widget.instant && way.criteria.length === 0;
    this.comment = make("textarea", { id: "comment", rows: "1", maxlength: LONGEST, dir: "auto", placeholder: "Comment (c)", "aria-label": "Comment" });
    this.problem = byId("problem-text");
    this.problem.value = "";
    const asked = way.criteria.map((criterion, number) => this.criterion(criterion, number, task));
    this.send = keyed("Submit", "Enter", { class: "primary send", onclick: acts.submit });
    this.send.hidden = this.instant;
    if (this.widget.send) this.widget.send.hidden = !this.instant;
    box.replaceChildren(
      asked.length ? make("div", { class: "criteria" }, ...asked) : "",
      make("div", { class: "dock" }, main,
        make("div", { class: "acts" }, keyed("Comment", "c", { class: "open-comment quiet", onclick: () => this.openComment() }), this.comment,
          keyed("Undo", "u", { class: "quiet", onclick: acts.undo }), keyed("Skip", "s", { class: "quiet", onclick: acts.skip }),
          keyed("Problem", "p", { class: "quiet", onclick: acts.problem }), this.send)));
    box.hidden = false;
    this.drawSend();
  }

  criterion({ name, question, options }, number, task) {
    const named = ["rate", "review"].includes(this.way.kind)
      ? options.map((option) => [option, option])
      : [...task.responses.map((_, place) => [place, letter(place)]), [null, "none"]];
    return make("fieldset", {}, make("legend", {}, question || name), ...named.map(([value, words]) =>
      make("label", { class: "option" }, make("input", {
        type: "radio", name: `criterion-${number}`, value: `${value}`,
        oninput: () => (this.criteria[name] = value),
      }), make("span", {}, words))));
  }

  fill({ answer, criteria, comment, problem = "" }) {
    if (answer) this.widget.fill(answer);
    this.way.criteria.forEach(({ name }, number) => {
      for (const radio of this.box.querySelectorAll(`[name="criterion-${number}"]`)) {
        radio.checked = name in criteria && radio.value === `${criteria[name]}`;
        if (radio.checked) this.criteria[name] = criteria[name]; // what is asked no more is left out
      }
    });
    this.problem.value = problem;
    this.comment.value = comment;
    this.comment.classList.toggle("open", comment !== "");
    this.drawSend();
  }

  changed(now = true) {
    this.drawSend();
    this.acts.begun();
    if (now && this.ready && this.instant) this.acts.submit();
  }

  drawSend() {
    this.send.setAttribute("aria-disabled", `${!this.ready}`);
  }

  get ready() {
    return this.widget.answer() !== null;
  }

  /** What is said; a skip or a problem brings no answer and keeps the comment, which a report follows. */
  said(verdict) {
    const words = verdict === "problem" ? [this.comment.value, this.problem.value] : [this.comment.value];
    const comment = words.map((text) => text.trim()).filter(Boolean).join("\n\n");
    const answer = verdict === "answer" ? this.widget.answer() : null;
    return { verdict, answer, criteria: verdict === "answer" ? this.criteria : {}, comment };
  }

  /** What is said so far, perhaps not whole: for `fill`. */
  begun() {
    return { answer: this.widget.begun(), criteria: this.criteria, comment: this.comment.value, problem: this.problem.value };
  }

  openComment() {
    this.comment.classList.add("open");
    this.comment.focus();
  }

  get legend() {
    return [
      ...this.widget.legend,
      ...(this.way.criteria.length ? [["q", "to the further questions; arrows choose"]] : []),
      ...(this.instant ? [] : [["Enter", "submit"]]),
      ["Ctrl Enter", "submit, also from a text field"],
      ["c", "comment"], ["s", "skip"], ["p", "report a problem"], ["u", "undo the last one"],
      ["m", "as written, or as Markdown"], ["d", "differences"], ["t", "scroll together"],
      ["g", "guidelines"], ["?", "these keys"],
    ];
  }
}
