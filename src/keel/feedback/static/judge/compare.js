import { keyed } from "./dom.js";

const CHOICES = [
  ["1", "A better", "a", { best: 0, strength: "clear" }],
  ["2", "A slightly", "sa", { best: 0, strength: "slight" }],
  ["3", "Tie", "tie", { best: null, strength: "tie" }],
  ["4", "B slightly", "sb", { best: 1, strength: "slight" }],
  ["5", "B better", "b", { best: 1, strength: "clear" }],
  ["0", "Both bad", "bad", { best: null, strength: "both_bad" }],
];

/** Which of two is better. */
export function compare({ box, changed }) {
  let chosen = null;
  const buttons = CHOICES.map(([key, words, area, answer]) =>
    keyed(words, key, { class: `choice ${area}`, "aria-pressed": "false", onclick: (event) => event.detail < 2 && choose(answer) }));
  box.classList.add("compare");
  box.append(...buttons);

  function draw() {
    CHOICES.forEach(([, , , { best, strength }], place) =>
      buttons[place].setAttribute("aria-pressed", `${chosen?.best === best && chosen?.strength === strength}`));
  }
  function choose(answer) {
    chosen = answer;
    draw();
    changed();
  }
  return {
    instant: true,
    answer: () => chosen,
    begun: () => chosen,
    fill(answer) {
      chosen = answer;
      draw();
    },
    press(key) {
      const found = CHOICES.find(([its]) => its === key);
      if (found) choose(found[3]);
      return Boolean(found);
    },
    legend: CHOICES.map(([key, words]) => [key, words]),
  };
}
