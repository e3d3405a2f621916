import { byId, make } from "./dom.js";

const OFF = "keel-no-single-keys";

/** What the legend calls the key: with Caps Lock, and on layouts whose letters or digits are others, by its place. */
function named({ key, code }) {
  const place = /^(?:Key|Digit)([A-Z0-9])$/.exec(code);
  const plain = /^[a-z0-9?=]$/i.test(key) || key.length > 1;
  return (plain || !place ? key : place[1]).replace(/^[A-Z]$/, (letter) => letter.toLowerCase());
}

/** Keys are off while somebody types, while a dialog is open (but for the one that sends it), and where they are switched off. */
export function listen({ press, submit, undo, leave }) {
  const box = byId("single-keys");
  box.checked = !localStorage.getItem(OFF);
  keepFocus(byId("task"));
  box.addEventListener("change", () => (box.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "yes")));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("textarea, select, input:not([type=radio], [type=checkbox])");
    if (event.isComposing || event.repeat) return;
    const control = event.ctrlKey || event.metaKey;
    const dialog = document.querySelector("dialog[open]");
    if (dialog) {
      if (control && event.key === "Enter") dialog.querySelector(".primary").click();
      return;
    }
    let taken = true;
    if (control && event.key === "Enter") submit();
    else if (event.key === "Escape") leave(typing);
    else if (control && event.key === "z" && !typing) undo();
    else if (typing || control || event.altKey) taken = false;
    else if (event.key === "Enter") taken = !event.target.closest("button, a, summary") && submit() !== false;
    else taken = box.checked && event.key !== " " && press(named(event));
    if (taken) event.preventDefault();
  });
}

/** A button that was pressed with a pointer does not keep the focus: Enter is for the task again, and presses nothing twice. */
function keepFocus(task) {
  document.addEventListener("click", (event) => {
    if (event.detail > 0 && event.target.closest("button")) task.focus({ preventScroll: true });
  }, { capture: true }); // before what the press itself brings into focus
}

export function showLegend(lines) {
  byId("legend").replaceChildren(...lines.flatMap(([keys, words]) => [
    make("dt", {}, ...keys.split(" ").map((key) => (["–", "…"].includes(key) ? key : make("kbd", {}, key)))), make("dd", {}, words),
  ]));
  byId("keys").showModal();
}
