// Live pages of runs: parts of the page that are asked for again when the server tells of news, and charts.
import { Charts, tell } from "./charts.js";

const AGES = 30_000; // milliseconds after which "so long ago" is worth telling anew
const RETRY = 5_000; // milliseconds
const page = document.querySelector("[data-live]");
const pill = document.querySelector("#connection");
const charts = new Charts();
let cursor = page.dataset.cursor;
let source = null;
let busy = false;
let again = false;
let stageInSight = null; // the address of the one that was scrolled to last

/** Make `there` equal to `made`, leaving alone what is equal already: focus, scrolling, open details, canvases. */
function morph(there, made) {
  const had = [...there.childNodes];
  const wanted = [...made.childNodes];
  wanted.forEach((node, place) => {
    const old = had[place];
    if (!old) there.append(node);
    else if (old.nodeName !== node.nodeName) old.replaceWith(node);
    else if (old.nodeType !== Node.ELEMENT_NODE) old.data === node.data || (old.data = node.data);
    else {
      for (const { name } of [...old.attributes]) name === "open" || node.hasAttribute(name) || old.removeAttribute(name);
      for (const { name, value } of node.attributes) old.getAttribute(name) === value || old.setAttribute(name, value);
      morph(old, node);
    }
  });
  had.slice(wanted.length).forEach((node) => node.remove());
}

async function fetchPart(part) {
  const answer = await fetch(part.dataset.part);
  if (!answer.ok) throw new Error(`${part.dataset.part}: ${answer.status}`);
  return new DOMParser().parseFromString(await answer.text(), "text/html").body;
}

async function refreshPart(part) {
  const made = await fetchPart(part);
  if (part.dataset.of === "charts") {
    const open = part.querySelector("details.all")?.open;
    part.replaceChildren(...made.childNodes);
    const all = part.querySelector("details.all");
    if (all && open) all.open = true;
    charts.find();
    return;
  }
  const ticked = new Set([...part.querySelectorAll("input:checked")].map((input) => input.value));
  morph(part, made);
  for (const input of part.querySelectorAll("input")) input.checked = ticked.has(input.value);
}

/** Scrolls the row of stages, and not the page, to the stage that is shown, where that has become another. */
function keepStageInSight() {
  const stage = document.querySelector(".stages [aria-current]");
  if (!stage || stage.href === stageInSight) return;
  stageInSight = stage.href;
  const row = stage.closest(".stages");
  const [place, room] = [stage.getBoundingClientRect(), row.getBoundingClientRect()];
  row.scrollLeft += place.left + place.width / 2 - (room.left + room.width / 2);
}

/** Fetches the parts that change all the time, then those that have grown by the counts in the first. */
async function refresh() {
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  try {
    const parts = [...document.querySelectorAll("[data-part]")];
    await Promise.all(parts.filter((part) => !part.dataset.of).map(refreshPart));
    keepStageInSight();
    const counts = document.querySelector("[data-counts]")?.dataset ?? {};
    for (const part of parts.filter((one) => one.dataset.of)) {
      const now = counts[part.dataset.of];
      if (now === part.dataset.seen) continue;
      await refreshPart(part);
      part.dataset.seen = now;
    }
    await charts.update();
  } catch (error) {
    tell(error);
  } finally {
    busy = false;
  }
  if (again) {
    again = false;
    await refresh();
  }
}

function show(text, kind) {
  if (pill.textContent === text) return;
  pill.textContent = text;
  pill.className = `push pill ${kind}`;
}

function listen() {
  const runs = (page.dataset.run ?? "").split(" ").filter(Boolean);
  const query = new URLSearchParams([["cursor", cursor], ...runs.map((run) => ["run", run])]);
  source?.close(); // there is one where a page was hidden and shown again before its retry came
  source = new EventSource(`/api/watch/events?${query}`);
  source.onopen = () => show("live", "good");
  source.onerror = () => {
    show("the server does not answer", "bad");
    if (source.readyState === EventSource.CLOSED) setTimeout(() => document.hidden || listen(), RETRY); // else it tries itself
  };
  source.onmessage = (event) => {
    cursor = event.lastEventId;
    refresh();
  };
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    source.close(); // a page that nobody sees holds no connection
  } else {
    listen();
    refresh();
  }
});
setInterval(() => document.hidden || refresh(), AGES);
keepStageInSight();
charts.find();
listen();
