import { letter, make } from "./dom.js";

const SLACK = 6; // pixels that a press may move before it is a drag
const ORDINALS = ["1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th"];

/** An order with ties: `places` holds the responses that have one, best first, and whether each is tied with the one before. */
export function rank({ box, panes, changed }) {
  let places = [];
  const chips = panes.map((_, k) => chip(k));
  const badges = panes.map((pane, k) => {
    const badge = make("button", { type: "button", class: "badge", onclick: () => toggle(k) });
    pane.querySelector("header").append(badge);
    return badge;
  });
  const line = make("div", { class: "line", role: "group", "aria-label": "Your order, best first" });
  const tray = make("div", { class: "tray", role: "group", "aria-label": "Not in the order yet" });
  box.classList.add("rank");
  box.append(line, tray);
  draw();

  function ranks() {
    const found = [];
    places.forEach(({ k, tied }, place) => (found[k] = place === 0 ? 1 : found[places[place - 1].k] + (tied ? 0 : 1)));
    return found;
  }
  /** Between two that are tied it is tied with both. */
  function put(k, place = places.length) {
    drop(k);
    places.splice(place, 0, { k, tied: places[place]?.tied ?? false });
    settle();
  }
  function takeOut(k) {
    drop(k);
    settle();
  }
  /** Those that it was tied with stay tied with each other. */
  function drop(k) {
    const here = places.findIndex((one) => one.k === k);
    if (here < 0) return;
    const [gone] = places.splice(here, 1);
    if (places[here]) places[here].tied &&= gone.tied;
  }
  function toggle(k) {
    if (places.some((one) => one.k === k)) takeOut(k);
    else put(k);
  }
  function tie(place) {
    if (place > 0) places[place].tied = !places[place].tied;
    settle();
  }
  function settle() {
    if (places.length) places[0].tied = false;
    draw();
    changed();
  }
  function draw() {
    const focused = document.activeElement;
    const found = ranks();
    line.replaceChildren(make("span", { class: "note" }, "best"), ...places.flatMap(({ k, tied }, place) =>
      place === 0 ? [chips[k]] : [make("button", {
        type: "button", class: "link", "data-place": place, "aria-pressed": `${tied}`,
        "aria-label": `${letter(k)} ties with ${letter(places[place - 1].k)}`, onclick: () => tie(place),
      }, tied ? "=" : ">"), chips[k]]), places.length ? make("span", { class: "note" }, "worst")
        : make("span", { class: "note" }, "… press the responses in their order, or drag them here"));
    tray.replaceChildren(...chips.filter((_, k) => found[k] === undefined));
    chips.forEach((one, k) => {
      one.setAttribute("aria-label", found[k] ? `${letter(k)}, ${ORDINALS[found[k] - 1]}` : `${letter(k)}, not in the order yet`);
      badges[k].textContent = found[k] ? ORDINALS[found[k] - 1] : "Put next";
      badges[k].setAttribute("aria-label", found[k] ? `${letter(k)} is ${ORDINALS[found[k] - 1]}; take it out` : `Put ${letter(k)} next`);
      badges[k].classList.toggle("placed", Boolean(found[k]));
    });
    if (focused?.dataset.place) line.querySelector(`[data-place="${focused.dataset.place}"]`)?.focus();
    else if (chips.includes(focused)) focused.focus();
  }

  function chip(k) {
    let start = null;
    let dragged = false;
    const element = make("button", { type: "button", class: "chip", onclick: () => !dragged && toggle(k) }, letter(k), make("kbd", { "aria-hidden": "true" }, `${k + 1}`));
    element.addEventListener("pointerdown", (event) => {
      dragged = false;
      if (event.button !== 0) return;
      start = event;
      element.setPointerCapture(event.pointerId);
    });
    element.addEventListener("pointermove", (event) => {
      if (!start) return;
      const [x, y] = [event.clientX - start.clientX, event.clientY - start.clientY];
      if (!dragged && Math.hypot(x, y) < SLACK) return;
      dragged = true;
      element.classList.add("dragged");
      element.style.transform = `translate(${x}px, ${y}px)`;
      mark(placeAt(event, k));
    });
    const end = (event) => {
      if (start && dragged && event.type === "pointerup") {
        if (inTray(event)) takeOut(k);
        else put(k, placeAt(event, k));
      }
      start = null;
      element.classList.remove("dragged");
      element.style.transform = "";
      mark(null);
    };
    element.addEventListener("pointerup", end);
    element.addEventListener("pointercancel", end);
    element.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const here = places.findIndex((one) => one.k === k);
      if (!step || here < 0) return;
      event.preventDefault();
      put(k, Math.max(0, here + step));
      element.focus();
    });
    return element;
  }
  /** Among the others in the order, the place that a pointer is at. */
  function placeAt({ clientX: x, clientY: y }, k) {
    const others = places.filter((one) => one.k !== k);
    const found = others.findIndex((one) => {
      const at = chips[one.k].getBoundingClientRect();
      return y < at.top - at.height / 2 || (y < at.bottom + at.height / 2 && x < at.left + at.width / 2);
    });
    return found < 0 ? others.length : found;
  }
  function inTray({ clientX: x, clientY: y }) {
    const at = tray.getBoundingClientRect();
    return x >= at.left && x <= at.right && y >= at.top && y <= at.bottom;
  }
  function mark(place) {
    const others = places.filter((one) => !chips[one.k].classList.contains("dragged"));
    chips.forEach((one, k) => one.classList.toggle("before", place !== null && others[place]?.k === k));
    line.classList.toggle("last", place !== null && place === others.length);
  }

  return {
    answer() {
      return places.length === panes.length ? { ranks: ranks() } : null;
    },
    begun: () => ({ ranks: ranks() }),
    fill(answer) {
      places = answer.ranks.map((its, k) => ({ k, its })).filter(({ its }) => its).sort((a, b) => a.its - b.its)
        .map(({ k, its }, place, all) => ({ k, tied: place > 0 && all[place - 1].its === its }));
      draw();
    },
    press(key) {
      if (key >= "1" && key <= `${panes.length}`) toggle(Number(key) - 1);
      else if (key === "=") tie(places.length - 1);
      else if (key === "Backspace" && places.length) takeOut(places.at(-1).k);
      else return false;
      return true;
    },
    legend: [
      [`1 – ${panes.length}`, "put A, B … next in the order, or take it out"],
      ["=", "tie the last one with the one before"],
      ["Backspace", "take the last one out"],
      ["← →", "move the one in focus"],
    ],
  };
}
