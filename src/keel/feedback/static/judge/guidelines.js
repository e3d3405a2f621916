import { byId } from "./dom.js";

/** The guidelines: beside the task, or over it where there is no room. */
export class Guidelines {
  constructor(place) {
    Object.assign(this, { place, panel: byId("guidelines"), opener: byId("show-guidelines") });
    this.opener.addEventListener("click", () => this.toggle());
    byId("hide-guidelines").addEventListener("click", () => this.toggle(false));
  }

  /** With a task: open until this person closes them on this device. */
  offer() {
    if (localStorage.getItem(this.place) !== "closed") this.set(true);
  }

  toggle(open = this.panel.hidden) {
    this.set(open);
    localStorage.setItem(this.place, open ? "open" : "closed");
    if (open) this.panel.querySelector(".text").focus({ preventScroll: true });
    else this.opener.focus();
  }

  set(open) {
    this.panel.hidden = !open;
    this.opener.setAttribute("aria-expanded", `${open}`);
  }
}
