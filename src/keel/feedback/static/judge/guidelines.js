import { byId } from "./dom.js";

/** The guidelines: beside the task, or over it where there is no room. */
export class Guidelines {
  constructor(place) {
    Object.assign(this, { place, panel: byId("guidelines"), opener: byId("show-guidelines") });
    this.opener.addEventListener("click", (event) => this.pressed(event));
    byId("hide-guidelines").addEventListener("click", (event) => this.pressed(event));
  }

  /** With a task: open until this person closes them on this device. */
  offer() {
    if (localStorage.getItem(this.place) !== "closed") this.set(true);
  }

  toggle() {
    const open = this.panel.hidden;
    this.set(open);
    localStorage.setItem(this.place, open ? "open" : "closed");
    (open ? this.panel.querySelector(".text") : byId("task")).focus({ preventScroll: true });
  }

  /** Who closes them by a button that they came to by keys stands where they can open them again. */
  pressed({ detail }) {
    this.toggle();
    if (this.panel.hidden && detail === 0) this.opener.focus();
  }

  set(open) {
    this.panel.hidden = !open;
    this.opener.setAttribute("aria-expanded", `${open}`);
  }
}
