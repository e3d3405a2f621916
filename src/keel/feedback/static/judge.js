/* The page on which people judge: what is shown, what is said, what comes next. */
import { isFinal, makeApi } from "./judge/api.js";
import { Asked } from "./judge/asked.js";
import { byId, cleaned, make, sentence } from "./judge/dom.js";
import { Drafts, holds } from "./judge/drafts.js";
import { Form } from "./judge/form.js";
import { Guidelines } from "./judge/guidelines.js";
import { listen, showLegend } from "./judge/keys.js";
import { Leftovers, typed } from "./judge/leftovers.js";
import { dated, Lender } from "./judge/lender.js";
import { Outbox } from "./judge/outbox.js";
import { Panes } from "./judge/panes.js";
import { recall } from "./judge/recall.js";
import { tellSaving } from "./judge/saving.js";

const COUNT_EVERY = 10; // judgements between two looks at the server's count
const AGAIN = 3000; // ms until more is asked for after a failure
const LOOK_AGAIN = 30000; // ms, where nothing was left

const { way, user, csrf, correct } = JSON.parse(byId("start").textContent);
const api = makeApi(csrf);
const home = `/projects/${way.project}`;
const theirs = `${user}-${way.project}`; // in the names of what a browser keeps, which others may use too
const drafts = new Drafts(`keel-drafts-${theirs}`);
const leftovers = new Leftovers(byId("leftovers"), `keel-leftovers-${theirs}`);
const guidelines = byId("guidelines") && new Guidelines(`keel-guidelines-${theirs}`);
const panes = new Panes(byId("task"), byId("tools"), api, warn);
const asked = new Asked(api, way, byId("changed"));
const past = []; // {task, verdict, begun}, what this page can take back
const counts = { answered: 0, left: 0, more: false, since: 0, changes: 0 };
let form = null;
let awaited = null; // the key of a practice answer whose outcome is shown when it comes
let watch = null; // how long the task was before somebody's eyes
let ready = false; // what was begun before this page was loaded is taken up
let undoing = Promise.resolve(); // one after the other
let outdated = false; // the project is another than this page knows

const outbox = new Outbox(api, `keel-outbox-${theirs}`, {
  told: (state) => tellSaving(byId("saving"), state, outbox),
  kept(item, answer) {
    counts.changes += 1;
    if (corrects(item)) return location.assign(`${home}/history`);
    if (answer.practice && item.key === awaited) showOutcome(answer.practice);
    refill();
  },
  refused(item, error) {
    const what = item.body.verdict === "withdrawn" ? "Something could not be taken back" : "Something that you said was not taken";
    leftovers.add(`${what}: ${error.message}.`, item.begun);
    if (corrects(item)) goOn();
  },
  unfit,
});
const lender = new Lender(api, way, {
  ending(task, what) {
    if (what === "elsewhere") {
      letGo(task.assignment, "You judged a task in another tab that you had begun in this one.");
      goOn("You judged that task in another tab.");
    } else if (what === "renewed") warn(null);
    else warn(what === "gone" ? lost(task) : "This task goes back to the others soon. Press a key or click to keep it.", "warn");
  },
  lent: (version) => outdated || asked.hear(version),
});

// --- a task comes ---

/** `begun` is what the form is filled with. */
function show(task, said = "", begun = drafts.of(task) ?? task.said) {
  lender.current = task;
  awaited = null;
  if (said) warn(said);
  else if (task.gone) warn(lost(task), "warn");
  else warn(task.practice ? "Practice: you are told afterwards what was expected." : null, "practice");
  panes.show(task);
  const acts = { submit, undo, skip: () => send("skip"), problem: () => byId("problem").showModal(), begun: keepDraft, warn };
  form = new Form(byId("answer"), way, task, panes.panes, acts);
  if (begun) form.fill(begun);
  watch = { seconds: begun?.duration ?? 0, from: document.hidden ? null : performance.now() };
  if (begun && !task.correcting) keepDraft(); // what was taken back stands nowhere else
  byId("task").focus({ preventScroll: true });
  if (innerWidth < 900) scrollTo(0, 0);
  guidelines?.offer();
  panes.showLast(); // once the pane has its size
}

function goOn(said = "") {
  form = null;
  byId("problem").close(); // it was about the task that goes
  if (outdated) return;
  if (outbox.aside.length) return anew();
  const task = lender.next();
  if (task) show(task, said);
  else {
    showNone("Fetching the next task …");
    if (said) warn(said);
    refill();
  }
}

async function refill() {
  if (outdated || !ready) return;
  if (counts.since++ % COUNT_EVERY === 0) count();
  try {
    const lends = await lender.topUp(() => outbox.waiting.length);
    if (outdated || lender.current || (outbox.waiting.length && !lender.held.length)) return;
    if (lender.held.length) goOn();
    else if (lends) setTimeout(refill, AGAIN); // what another tab is just sending
    else {
      showNone("Nothing is left for you to judge. Thank you.", true);
      count();
      setTimeout(() => lender.current ?? refill(), LOOK_AGAIN);
    }
  } catch (error) {
    if (lender.current) return;
    if (error.status === 401) showSignedOut();
    else showNone(error.status ? sentence(error.message) : "Offline: the next task comes when the network is back.", error.status === 410);
    if (!error.status || error.passing) setTimeout(() => lender.current ?? refill(), AGAIN);
  }
}

function showNone(words, over = false) {
  form = null;
  if (panes.task) warn(null); // it was about that
  panes.clear();
  byId("answer").hidden = true;
  byId("tools").hidden = true;
  const more = over && [
    make("button", { type: "button", onclick: refill }, "Look again"),
    make("button", { type: "button", onclick: undo }, "Undo the last one"),
    make("a", { class: "button", href: `${home}/history` }, "What you said"),
  ];
  byId("task").replaceChildren(make("div", { class: "none" }, make("p", { class: "lead" }, words), make("div", { class: "row" }, ...(more || []))));
}

function showSignedOut() {
  showNone("You are signed out. What you said is kept here and is sent when you are back.");
  byId("task").querySelector(".row").append(make("a", { class: "button primary", href: `/sign-in?next=${home}/judge` }, "Sign in"));
}

// --- something is begun ---

function keepDraft() {
  if (form && !awaited) drafts.keep(lender.current, { ...form.begun(), duration: seconds() });
}

/** A draft that can be gone on with no more: what was typed can be copied. */
function letGo(assignment, why) {
  const begun = drafts.forget(assignment);
  if (begun && holds(begun)) leftovers.add(why, begun);
}

const lost = ({ gone }) => `This task is not yours any more: ${gone}. What you say is kept all the same.`;

/** The tasks that were begun before this page was loaded come first. */
async function takeUp() {
  const sent = outbox.items.map(({ body }) => body.assignment);
  const begun = drafts.open.filter((one) => !sent.includes(one));
  lender.held.push(...(await Promise.all(begun.map(holdAgain))).filter(Boolean));
}

/** The task of a draft; also one that somebody else has by now, where anything was begun: what comes late is taken. */
async function holdAgain(assignment) {
  const path = `/assignments/${assignment}`;
  let gone = false;
  try {
    await api("POST", `${path}/renew`).catch((error) => {
      if (error.status !== 410 || !holds(drafts.begun[assignment])) throw error;
      gone = error.message;
    });
    return { ...dated(await api("GET", path)), gone };
  } catch (error) {
    if (isFinal(error)) letGo(assignment, `A task that you had begun is not yours any more: ${error.message}.`);
    return null;
  }
}

// --- something is said ---

function submit() {
  if (awaited) return goOn();
  if (!form?.ready) return false;
  if (lender.current.practice) return practise();
  return send("answer");
}

function send(verdict) {
  if (!form || awaited) return;
  const task = lender.current;
  post(task, form.said(verdict));
  if (!task.correcting) return goOn();
  form = null;
  freeze();
}

function post(task, said) {
  const begun = { ...form.begun(), duration: seconds() };
  lender.finish(task);
  if (!task.correcting) {
    past.push({ task, verdict: said.verdict, begun });
    tally(task, said.verdict, 1);
  }
  const key = outbox.add({ assignment: task.assignment, ...said, duration: begun.duration }, begun, task.practice);
  drafts.forget(task.assignment);
  return key;
}

function practise() {
  awaited = post(lender.current, form.said("answer"));
  freeze();
  form.send.hidden = form.send.disabled = false;
  form.send.firstChild.textContent = "Next";
  form.send.setAttribute("aria-disabled", "false");
  form.send.focus();
}

/** Whether it is a correction of the task that is shown. */
function corrects({ body }) {
  return lender.current?.correcting && lender.current.assignment === body.assignment;
}

function freeze() {
  for (const part of document.querySelectorAll(":is(#answer, #task) :is(button, textarea, input)")) part.disabled = true;
}

function showOutcome({ agrees, expected, why }) {
  const words = agrees ? `That agrees with what was expected: ${expected}.` : `Something else was expected: ${expected}.`;
  warn(words, agrees ? "good" : "bad");
  if (why) byId("notice").append(cleaned("div", { class: "text", tabindex: "0", role: "region", "aria-label": "Why" }, why));
}

/** The server will not have it as it is: the project is another by now, or it is mended after what is at work. */
async function unfit(item, { message }) {
  const changes = await asked.changes().catch(() => []); // off the network nobody knows
  if (changes.length) {
    outbox.blameProject(item);
    stop(message);
  } else if (ready && (!form || item.key === awaited)) goOn();
}

/** What was said does not fit the project any more: nothing goes on before the page knows it as it is now. */
function stop(reason) {
  if (outdated) return;
  awaited = form = null;
  freeze();
  warn("The project has changed: ", "bad");
  byId("notice").append(make("a", { href: "" }, "load this page again"), `. What you said is kept until you judge that task anew (${reason}).`);
  outdated = true;
  asked.draw([]);
}

/** A task once more whose judgement did not fit the project, filled as far as it does now. */
async function anew() {
  const [item] = outbox.aside;
  const { body, begun } = item;
  try {
    const task = dated(await api("GET", `/assignments/${body.assignment}`));
    lender.resume(task);
    show({ ...task, said: begun, correcting: body.assignment === correct }, `${item.why}: look at what you said, and send it anew.`);
  } catch (error) {
    if (isFinal(error)) {
      leftovers.add(`Something that you said cannot be judged anew: ${error.message}.`, drafts.forget(body.assignment) ?? begun);
      outbox.drop(item);
      return goOn();
    }
    showNone(error.status ? sentence(error.message) : "Offline: the next task comes when the network is back.");
    setTimeout(goOn, AGAIN);
  }
}

function undo() {
  undoing = undoing.then(takeBack);
}

/** What was said last: the task is there again, filled as it was. */
async function takeBack() {
  if (outdated || !ready) return;
  if (lender.current?.correcting) return warn("You are correcting what you said: on this page nothing is taken back.");
  let last = past.pop();
  try {
    last ??= await recall(api, home, outbox);
  } catch (error) {
    return warn(error.status ? sentence(error.message) : "Offline: this can be taken back when the network is there again.", "warn");
  }
  if (outdated) return;
  if (!last) return warn("There is nothing to take back.");
  const { task, verdict, begun } = last;
  outbox.add({ assignment: task.assignment, verdict: "withdrawn" });
  tally(task, verdict, -1);
  letGo(task.assignment, "You had begun to correct what you now took back.");
  lender.resume(task);
  show({ ...task, gone: false, ends: performance.now() + way.lease_seconds * 1000 }, "Taken back: say it anew.", begun);
}

// --- what stands above ---

function warn(words, kind) {
  if (outdated) return; // nothing else matters
  const notice = byId("notice");
  notice.hidden = words === null;
  notice.className = `notice ${kind ?? ""}`;
  notice.replaceChildren(words ?? "");
}

async function count() {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000, { changes } = counts;
  try {
    const { answered, left, more } = await api("GET", `${home}/judging?since=${midnight}`);
    if (changes !== counts.changes) return count(); // what was kept meanwhile may not be in it
    if (outbox.waiting.length) counts.since = 0; // and what is not yet may be: the next look tells
    const waiting = outbox.waiting.filter(({ body, practice }) => body.verdict === "answer" && !practice).length;
    Object.assign(counts, { answered: answered + waiting, left: Math.max(0, left - waiting), more });
    drawCounts();
  } catch {
    // The old numbers stay.
  }
}

function tally({ practice }, verdict, one) {
  if (practice) return;
  counts.left -= one;
  if (verdict === "answer") counts.answered += one;
  drawCounts();
}

function drawCounts() {
  const left = Math.max(0, counts.left), more = left ? `more than ${left}` : "a few";
  byId("progress").textContent = `${counts.answered} judged today · ${counts.more ? more : left} left for you`;
}

function seconds() {
  const now = watch.from === null ? 0 : performance.now() - watch.from;
  return Math.min(86400, watch.seconds + now / 1000);
}

const legend = () => showLegend(form?.legend ?? [["u", "undo the last one"], ["?", "these keys"]]);
const ACTS = {
  s: () => send("skip"),
  p: () => byId("problem").showModal(),
  c: () => form.openComment(),
  m: () => panes.toggle("written"),
  d: () => panes.panes.length > 1 && panes.toggle("differences"),
  t: () => panes.toggleTogether(),
  q: () => byId("answer").querySelector("fieldset input:checked, fieldset input")?.focus(),
};

function press(key) {
  if (key === "?") legend();
  else if (key === "u") undo();
  else if (key === "g" && guidelines) guidelines.toggle();
  else if (!form || awaited) return false;
  else if (ACTS[key]) ACTS[key]();
  else return form.widget.press(key);
  return true;
}

listen({
  press,
  submit,
  undo,
  leave(typing) {
    if (typing) typing.blur();
    else if (guidelines && !guidelines.panel.hidden) guidelines.toggle();
  },
});
document.addEventListener("visibilitychange", () => {
  if (!watch) return;
  if (!document.hidden) watch.from = performance.now();
  else {
    watch = { seconds: seconds(), from: null };
    if (!lender.current?.correcting) keepDraft(); // the page may be left, or ended for its memory
  }
});
byId("show-keys").addEventListener("click", legend);
for (const id of ["work", "problem-text"]) byId(id).addEventListener("input", keepDraft);
addEventListener("beforeunload", (event) => {
  const draft = lender.current && drafts.of(lender.current);
  if (draft && typed(draft).length) event.preventDefault();
});
byId("problem").addEventListener("close", () => {
  if (byId("problem").returnValue === "report") send("problem");
  byId("problem").returnValue = "";
});

for (const { body } of outbox.standing) lender.done.add(body.assignment); // the server would lend them again
if (correct) {
  try {
    const task = dated(await api("GET", `/assignments/${correct}`));
    const aside = outbox.aside.find(({ body }) => body.assignment === correct);
    show({ ...task, said: aside?.begun ?? task.said, correcting: true }, "You are correcting what you said.");
  } catch (error) {
    showNone(sentence(error.message), true);
  }
  ready = true;
  outbox.flush();
} else {
  outbox.flush();
  await takeUp();
  ready = true;
  goOn();
  if (lender.current) refill();
}
