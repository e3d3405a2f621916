import { keyed, letter, make } from "./dom.js";

const LETTERS = ["z", "x", "v", "b", "n"]; // that mean nothing else on this page

/** A key for each number: a digit is that rating, or else the one that ends in it; what is left takes another key. */
function keysOf(numbers) {
  const keys = numbers.map((number) => (number >= 0 && number <= 9 ? `${number}` : null));
  const others = numbers[0] < 0 ? [...LETTERS] : ["-"]; // where there are numbers below zero a minus is no key: it would be theirs
  numbers.forEach((number, place) => {
    const last = `${Math.abs(number) % 10}`;
    if (!keys.includes(last)) keys[place] ??= last;
  });
  return keys.map((key) => key ?? others.shift());
}

/** A number for each response. */
export function rate({ panes, way, changed }) {
  const [lowest, highest] = way.scale;
  const numbers = Array.from({ length: highest - lowest + 1 }, (_, step) => lowest + step);
  const keys = keysOf(numbers);
  const plain = keys.every((key, place) => key === `${numbers[place]}`);
  const ratings = panes.map(() => null);
  let at = 0;
  const scales = panes.map((pane, response) => {
    const buttons = numbers.map((number, place) => keyed(`${number}`, keys[place] === `${number}` ? "" : keys[place], {
      "aria-pressed": "false",
      "aria-keyshortcuts": keys[place],
      "aria-label": `${panes.length > 1 ? `${letter(response)}: ` : ""}${number}${number === lowest ? ", worst" : number === highest ? ", best" : ""}`,
      onclick: (event) => event.detail < 2 && give(response, number),
    }));
    pane.querySelector("footer").replaceChildren(make("div", { class: "scale", role: "group", "aria-label": `Rating of ${pane.getAttribute("aria-label")}` },
      ...buttons), make("div", { class: "ends note", "aria-hidden": "true" }, make("span", {}, "worst"), make("span", {}, "best")));
    pane.addEventListener("focusin", () => move(response));
    return buttons;
  });
  move(0);

  function move(to) {
    at = (to + panes.length) % panes.length;
    panes.forEach((pane, place) => pane.classList.toggle("at", place === at && panes.length > 1));
  }
  function draw() {
    scales.forEach((buttons, response) => buttons.forEach((button, place) =>
      button.setAttribute("aria-pressed", `${ratings[response] === numbers[place]}`)));
  }
  function give(response, number) {
    ratings[response] = number;
    draw();
    const open = panes.map((_, place) => (response + 1 + place) % panes.length).find((place) => ratings[place] === null);
    if (open !== undefined) {
      move(open);
      panes[open].scrollIntoView({ block: "nearest" });
    }
    changed();
  }
  return {
    instant: panes.length === 1,
    answer: () => (ratings.includes(null) ? null : { ratings: [...ratings] }),
    begun: () => ({ ratings: [...ratings] }),
    fill(answer) {
      ratings.splice(0, ratings.length, ...answer.ratings.map((rating) => (numbers.includes(rating) ? rating : null)));
      draw();
      move(Math.max(0, ratings.indexOf(null)));
    },
    press(key) {
      const place = keys.indexOf(key);
      if (place >= 0) give(at, numbers[place]);
      else if (key === "j" || key === "k") move(at + (key === "j" ? 1 : -1));
      else return false;
      return true;
    },
    legend: [
      [plain ? `${keys[0]} – ${keys.at(-1)}` : `${keys[0]} … ${keys.at(-1)}`, `rate, from ${lowest} to ${highest}`],
      ...(panes.length > 1 ? [["j k", "next and previous response"]] : []),
    ],
  };
}
