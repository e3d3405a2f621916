import { make } from "./dom.js";
import { read, write } from "./storage.js";

/** What cannot be kept: why, and the texts that were typed, to be copied until they are dismissed. */
export class Leftovers {
  constructor(box, place) {
    Object.assign(this, { box, place, items: read(place, []) });
    this.draw();
  }

  add(sentence, said) {
    this.items.push({ sentence, texts: typed(said) });
    this.settle();
  }

  dismiss(item) {
    this.items = this.items.filter((other) => other !== item);
    this.settle();
  }

  settle() {
    write(this.place, this.items);
    this.draw();
  }

  draw() {
    this.box.hidden = !this.items.length;
    this.box.replaceChildren(...this.items.map((item) => this.card(item)));
  }

  card(item) {
    const kept = item.texts.length ? " What you typed stays here, to be copied, until you dismiss it." : "";
    return make("div", { class: "notice bad" },
      make("div", { class: "row" }, make("p", { role: "alert" }, item.sentence + kept),
        make("button", { type: "button", class: "push", onclick: () => this.dismiss(item) }, "Dismiss")),
      ...item.texts.map(([label, text]) => make("label", {}, label, make("textarea", { readonly: true, rows: "3", dir: "auto" }, text))));
  }
}

/** The texts among what was said, each with its name. */
export function typed({ comment, answer, problem }) {
  return [["Your comment", comment], ["Your replacement", answer?.edited], ["Your report", problem]].filter(([, text]) => text?.trim());
}
