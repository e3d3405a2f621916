/* The page on which people judge: what is shown, what is said, what comes next. */
import { makeApi } from "./judge/api.js";
import { byId, cleaned, make } from "./judge/dom.js";
import { Form } from "./judge/form.js";
import { listen, showLegend } from "./judge/keys.js";
import { dated, Lender } from "./judge/lender.js";
import { Outbox } from "./judge/outbox.js";
import { Panes } from "./judge/panes.js";

const COUNT_EVERY = 10; // judgements between two looks at the server's count
const AGAIN = 3000; // ms until more is asked for after a failure
const LOOK_AGAIN = 30000; // ms, where nothing was left

const { way, user, csrf, correct } = JSON.parse(byId("start").textContent);
const api = makeApi(csrf);
const home = `/projects/${way.project}`;
const GUIDELINES = `keel-guidelines-${way.project}`;
const panes = new Panes(byId("task"), byId("tools"), api);
const past = []; // {task, said}, what this tab can take back
const counts = { answered: 0, left: 0, since: 0 };
let form = null;
let awaited = null; // the key of a practice answer whose outcome is shown when it comes
let watch = null; // how long the task was before somebody's eyes
let outdated = false; // the project is another than this page knows

const outbox = new Outbox(api, `keel-outbox-${user}-${way.project}`, {
  told: tell,
  kept(item, answer) {
    if (lender.current?.correcting) return location.assign(`${home}/history`);
    if (answer.practice && item.key === awaited) showOutcome(answer.practice);
    refill();
  },
  refused: (item, error) => warn(`That was not taken: ${error.message}.`, "bad"),
  unfit: (item, error) => stop(error.message),
});
const lender = new Lender(api, way, {
  ending(task, what) {
    const sentences = {
      ending: "This task goes back to the others soon. Press a key or click to keep it.",
      gone: "The time for this task was over, and somebody else has it now. What you say is kept all the same.",
    };
    if (what === "elsewhere") goOn("You judged that task in another tab.");
    else if (what === "renewed") warn(null);
    else warn(sentences[what], "warn");
  },
});

// --- a task comes ---

function show(task, said = "") {
  lender.current = task;
  awaited = null;
  warn(said || (task.practice ? "Practice: you are told afterwards what was expected." : null), said ? "" : "practice");
  panes.show(task);
  form = new Form(byId("answer"), way, task, panes.panes, { submit, undo, skip: () => send("skip"), problem: () => byId("problem").showModal() });
  watch = { seconds: task.said?.duration ?? 0, from: document.hidden ? null : performance.now() };
  byId("task").focus({ preventScroll: true });
  if (innerWidth < 900) scrollTo(0, 0);
}

function goOn(said = "") {
  if (outdated) return;
  if (outbox.aside.length) return anew();
  const task = lender.next();
  if (task) show(task, said);
  else {
    showNone("Fetching the next task …");
    refill();
  }
}

async function refill() {
  if (outdated) return;
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
    else showNone(error.status ? `${error.message}.` : "Offline: the next task comes when the network is back.", error.status === 410);
    if (!error.status || error.passing) setTimeout(() => lender.current ?? refill(), AGAIN);
  }
}

function showNone(words, over = false) {
  form = null;
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

// --- something is said ---

function submit() {
  if (awaited) return goOn();
  if (!form?.ready) return false;
  if (lender.current.practice) return practise();
  return send("answer");
}

function send(verdict, comment) {
  if (!form || awaited) return;
  const task = lender.current;
  const said = form.said(verdict, comment);
  post(task, said);
  if (task.correcting) freeze();
  else goOn();
}

function post(task, said) {
  const whole = { ...said, duration: seconds() };
  past.push({ task, said: whole });
  lender.finish(task);
  if (!task.correcting && !task.practice && said.verdict === "answer") counts.answered += 1;
  if (!task.correcting && !task.practice) counts.left -= 1;
  drawCounts();
  return outbox.add({ assignment: task.assignment, ...whole });
}

function practise() {
  awaited = post(lender.current, form.said("answer"));
  freeze();
  form.send.hidden = form.send.disabled = false;
  form.send.firstChild.textContent = "Next";
  form.send.setAttribute("aria-disabled", "false");
  form.send.focus();
}

function freeze() {
  for (const part of byId("answer").querySelectorAll("button, textarea, input")) part.disabled = true;
}

function showOutcome({ agrees, expected, why }) {
  const words = agrees ? `That agrees with what was expected: ${expected}.` : `Something else was expected: ${expected}.`;
  warn(words, agrees ? "good" : "bad");
  if (why) byId("notice").append(cleaned("div", { class: "text" }, why));
}

/** What was said does not fit the project any more: nothing goes on before the page knows it as it is now. */
function stop(reason) {
  if (outdated) return;
  awaited = form = null;
  freeze();
  warn("The project has changed: ", "bad");
  byId("notice").append(make("a", { href: "" }, "load this page again"), `. What you said is kept until you judge that task anew (${reason}).`);
  outdated = true;
}

/** A task once more whose judgement did not fit the project, filled as far as it does now. */
async function anew() {
  const { body } = outbox.aside[0];
  try {
    const task = dated(await api("GET", `/assignments/${body.assignment}`));
    lender.resume(task);
    show({ ...task, said: body, correcting: body.assignment === correct }, "The project has changed: look at what you said, and send it anew.");
  } catch (error) {
    showNone(error.status ? `${error.message}.` : "Offline: the next task comes when the network is back.");
    setTimeout(goOn, AGAIN);
  }
}

/** Take back what was said last: the task is there again, filled as it was. */
async function undo() {
  if (outdated) return;
  if (!past.length) await recall();
  const last = past.pop();
  if (!last) return warn("There is nothing to take back.", "");
  outbox.add({ assignment: last.task.assignment, verdict: "withdrawn" });
  if (!last.task.practice && last.said.verdict === "answer") counts.answered -= 1;
  if (!last.task.practice) counts.left += 1;
  drawCounts();
  lender.resume(last.task);
  show({ ...last.task, said: last.said, ends: performance.now() + way.lease_seconds * 1000 }, "Taken back: say it anew.");
}

/** What was said before this page was loaded. */
async function recall() {
  try {
    const { lines } = await api("GET", `${home}/history?count=1`);
    if (!lines.length) return;
    const task = dated(await api("GET", `/assignments/${lines[0].assignment}`));
    past.push({ task: { ...task, said: null }, said: task.said });
  } catch (error) {
    warn(error.status ? `${error.message}.` : "Offline: this can be taken back when the network is there again.", "warn");
  }
}

// --- what stands above ---

function warn(words, kind) {
  if (outdated) return; // nothing else matters
  const notice = byId("notice");
  notice.hidden = words === null;
  notice.className = `notice ${kind ?? ""}`;
  notice.replaceChildren(words ?? "");
}

function tell(state) {
  const words = {
    saving: "Saving …",
    saved: "Saved",
    aside: `${outbox?.aside.length} to be judged anew`,
    retrying: "Trying again …",
    offline: `Offline: ${outbox?.waiting.length} kept, will retry`,
  };
  const place = byId("saving");
  place.dataset.state = state;
  if (state !== "signed out") place.replaceChildren(words[state]);
  else {
    const back = make("a", { href: "" }, "load this page again");
    place.replaceChildren("Signed out: what you said is kept in this tab; ", back, " to sign in and send it");
  }
}

async function count() {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  try {
    const { answered, left } = await api("GET", `${home}/judging?since=${midnight}`);
    const waiting = outbox.waiting.filter(({ body }) => body.verdict === "answer").length;
    Object.assign(counts, { answered: answered + waiting, left: Math.max(0, left - waiting) });
    drawCounts();
  } catch {
    // The old numbers stay.
  }
}

function drawCounts() {
  byId("progress").textContent = `${counts.answered} judged today · ${Math.max(0, counts.left)} left for you`;
}

function seconds() {
  const now = watch.from === null ? 0 : performance.now() - watch.from;
  return Math.min(86400, watch.seconds + now / 1000);
}

function toggleGuidelines(open = byId("guidelines").hidden) {
  const panel = byId("guidelines");
  panel.hidden = !open;
  byId("show-guidelines").setAttribute("aria-expanded", `${open}`);
  localStorage.setItem(GUIDELINES, open ? "open" : "closed");
  if (open) panel.querySelector(".text").focus({ preventScroll: true });
  else byId("show-guidelines").focus();
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
  else if (key === "g" && byId("guidelines")) toggleGuidelines();
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
    else if (byId("guidelines")?.hidden === false) toggleGuidelines(false);
  },
});
document.addEventListener("visibilitychange", () => {
  if (!watch) return;
  if (document.hidden) watch = { seconds: seconds(), from: null };
  else watch.from = performance.now();
});
byId("show-keys").addEventListener("click", legend);
byId("show-guidelines")?.addEventListener("click", () => toggleGuidelines());
byId("hide-guidelines")?.addEventListener("click", () => toggleGuidelines(false));
byId("problem").addEventListener("close", () => {
  if (byId("problem").returnValue === "report") send("problem", byId("problem-text").value.trim());
  byId("problem").returnValue = byId("problem-text").value = "";
});

if (byId("guidelines") && innerWidth >= 900 && localStorage.getItem(GUIDELINES) !== "closed") {
  byId("guidelines").hidden = false;
  byId("show-guidelines").setAttribute("aria-expanded", "true");
}
outbox.flush();
if (correct && !outbox.aside.length) {
  try {
    const task = dated(await api("GET", `/assignments/${correct}`));
    show({ ...task, correcting: true }, "You are correcting what you said.");
  } catch (error) {
    showNone(`${error.message}.`, true);
  }
} else goOn();
