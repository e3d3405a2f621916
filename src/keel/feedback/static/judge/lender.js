const AHEAD = 3; // tasks held: the one at work, and those that come after it
const MOST = 5; // that the server lends
const LOOK_EVERY = 2000; // ms
const RETURNED_AFTER = 1000; // ms until the server has what another tab gave back
const WARNING = 120000; // ms before the end of a lease, or a third of it

/** The tasks that this tab holds. Those that come next are here before they are asked for. */
export class Lender {
  constructor(call, way, { ending, lent }) {
    Object.assign(this, { call, way, ending, lent, current: null, held: [], done: new Set(), fetching: null, again: false });
    this.lastAct = performance.now();
    this.margin = Math.min(WARNING, (way.lease_seconds * 1000) / 3);
    for (const kind of ["keydown", "pointerdown", "wheel"])
      addEventListener(kind, () => (this.lastAct = performance.now()), { passive: true });
    setInterval(() => this.look(), LOOK_EVERY);
    this.channel = new BroadcastChannel(`keel-project-${way.project}`);
    this.channel.onmessage = ({ data }) => this.heard(data);
    addEventListener("pagehide", () => this.giveBack());
    addEventListener("pageshow", (event) => event.persisted && location.reload());
  }

  /** The next task, or null. */
  next() {
    this.current = this.held.shift() ?? null;
    return this.current;
  }

  /** The task at work is judged. */
  finish(task) {
    this.done.add(task.assignment);
    this.channel.postMessage({ judged: task.assignment });
  }

  /** A task that was taken back: it is at work again, and what was waits. */
  resume(task) {
    this.done.delete(task.assignment);
    this.channel.postMessage({ resumed: task.assignment });
    this.held = this.held.filter((one) => one.assignment !== task.assignment);
    if (this.current && this.current.assignment !== task.assignment && !this.current.correcting)
      this.held.unshift(this.current);
    this.current = task;
  }

  /**
   * Ask for more, and tell whether the server lends any. `waiting()` judgements are on their way, whose tasks it still
   * counts as held. What asks meanwhile is answered by a second look.
   */
  topUp(waiting) {
    this.again = Boolean(this.fetching);
    this.fetching ??= this.fetch(waiting).finally(() => (this.fetching = null));
    return this.fetching;
  }

  async fetch(waiting) {
    let lends = true;
    do {
      this.again = false;
      if (this.held.length >= AHEAD - 1) break;
      const count = Math.min(MOST, AHEAD + waiting());
      const { tasks, version } = await this.call("POST", `/projects/${this.way.project}/leases`, { count });
      const here = new Set([this.current, ...this.held].filter(Boolean).map((one) => one.assignment));
      this.held.push(...tasks.filter(({ assignment }) => !here.has(assignment) && !this.done.has(assignment)).map(dated));
      lends = tasks.length > 0;
      this.lent(version);
    } while (this.again);
    return lends;
  }

  /** Hold on to what would soon go back, if somebody is at work; else say so. */
  look() {
    if (document.hidden) return;
    const now = performance.now();
    for (const task of [this.current, ...this.held]) {
      if (!task || task.correcting || task.renewing || task.gone || task.ends - now > this.margin) continue;
      if (this.lastAct > task.ends - 2 * this.margin) this.renew(task);
      else if (task === this.current) this.ending(task, "ending");
    }
  }

  async renew(task) {
    task.renewing = true;
    try {
      const { seconds_left: left } = await this.call("POST", `/assignments/${task.assignment}/renew`);
      task.ends = performance.now() + left * 1000;
      if (task === this.current) this.ending(task, "renewed");
    } catch (error) {
      task.gone = error.status === 410 && error.message;
      if (task.gone && task === this.current) this.ending(task, "gone");
      else if (task.gone) this.held = this.held.filter((one) => one !== task);
    } finally {
      task.renewing = false;
    }
  }

  /** What another tab of this person says. */
  heard({ judged, resumed, returned = [] }) {
    this.done.delete(resumed);
    const mine = [this.current, ...this.held].filter((one) => one && !one.correcting);
    for (const task of mine) if (returned.includes(task.assignment)) setTimeout(() => this.renew(task), RETURNED_AFTER);
    if (!judged) return;
    this.done.add(judged);
    this.held = this.held.filter((one) => one.assignment !== judged);
    if (mine.includes(this.current) && this.current?.assignment === judged) this.ending(this.current, "elsewhere");
  }

  /** The page closes: others may have what it held. */
  giveBack() {
    const returned = [this.current, ...this.held]
      .filter((one) => one && !one.correcting && !this.done.has(one.assignment))
      .map((one) => one.assignment);
    for (const assignment of returned) this.call("POST", `/assignments/${assignment}/return`).catch(() => {});
    this.channel.postMessage({ returned });
  }
}

/** A task with the end of its lease on this page's clock. */
export function dated(task) {
  return { ...task, ends: performance.now() + task.seconds_left * 1000 };
}
