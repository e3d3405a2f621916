import { read, write } from "./storage.js";

/** What one person has begun to say of tasks, kept in this tab until it is said. */
export class Drafts {
  constructor(place) {
    this.place = place;
    this.begun = read(place, {});
  }

  /** The draft of a task. One that was begun as a correction is only for correcting, and any other is not. */
  of({ assignment, correcting = false }) {
    const found = this.begun[assignment];
    return found?.correcting === correcting ? found : undefined;
  }

  /** The assignments that were not judged when it was begun, the last one first. */
  get open() {
    return Object.keys(this.begun).filter((assignment) => !this.begun[assignment].correcting).reverse();
  }

  keep({ assignment, correcting = false }, said) {
    delete this.begun[assignment];
    this.begun[assignment] = { ...said, correcting }; // as the last one
    write(this.place, this.begun);
  }

  /** Gives what there was. */
  forget(assignment) {
    const said = this.begun[assignment];
    delete this.begun[assignment];
    write(this.place, this.begun);
    return said;
  }
}

/** Whether anything was begun: chosen, or typed. */
export function holds({ answer, criteria, comment, problem }) {
  const values = Object.values(answer ?? {}).flat();
  return values.some((value) => value != null) || Object.keys(criteria).length > 0 || Boolean(comment || problem);
}
