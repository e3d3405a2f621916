import { keyed, make } from "./dom.js";

const ROOM = 100000; // characters that the server takes beyond those of the response

/** Good as it is, or not; and what would be. */
export function review({ box, task, panes, changed, submit, warn }) {
  const original = task.responses[0].text.replace(/\r\n?/g, "\n"); // as a text field gives it back
  const longest = [...original].length + ROOM;
  let accepted = null;
  let asked = false; // whether the replacement is really to be dropped
  let excess = 0; // characters
  const accept = keyed("Accept", "a", { class: "choice", "aria-pressed": "false", onclick: (event) => event.detail < 2 && choose(true) });
  const reject = keyed("Reject, or mend it", "r", { class: "choice", "aria-pressed": "false", onclick: (event) => event.detail < 2 && choose(false) });
  const words = make("textarea", { dir: "auto", "aria-label": "A better response", oninput: typed });
  const send = make("button", { type: "button", class: "primary", onclick: submit }, "");
  const editor = make("article", { class: "response card editor", "aria-label": "Your replacement", hidden: true },
    make("header", {}, make("h2", {}, "Your replacement"), make("span", { class: "note" }, "starts as the response")), words,
    make("footer", { class: "row" }, send, make("span", { class: "note" }, make("kbd", {}, "Ctrl"), " ", make("kbd", {}, "Enter"))));
  words.value = original;
  words.setSelectionRange(0, 0);
  panes[0].after(editor);
  box.classList.add("review");
  box.append(accept, reject);

  function draw() {
    accept.setAttribute("aria-pressed", `${accepted === true}`);
    reject.setAttribute("aria-pressed", `${accepted === false}`);
    editor.hidden = accepted !== false;
    send.textContent = replacement() === null ? "Reject without a replacement" : "Reject, and send the replacement";
  }
  function replacement() {
    return words.value.trim() && words.value !== original ? words.value : null;
  }
  function typed() {
    ask(false);
    draw();
    const before = excess;
    measure();
    if (before && !excess) warn(null);
    if (Boolean(before) !== Boolean(excess)) changed(false);
  }
  /** What the server would not take is said while it can be mended. A text's `length` is never less than its characters. */
  function measure() {
    excess = words.value.length > longest ? Math.max(0, [...words.value].length - longest) : 0;
    send.disabled = excess > 0;
    if (excess) warn(`Your replacement is ${excess} character${excess === 1 ? "" : "s"} too long: shorten it before you send it.`, "warn");
  }
  function ask(now) {
    if (now) warn("Your replacement would not be sent. Press Accept (a) again to accept the response as it was, or Reject (r) to go on with the replacement.", "warn");
    else if (asked) warn(null);
    asked = now;
  }
  function choose(value) {
    if (value && !accepted && !asked && replacement() !== null) return ask(true);
    ask(false);
    accepted = value;
    draw();
    if (!value) {
      words.focus();
      editor.scrollIntoView({ block: "nearest" });
    }
    changed(value);
  }
  return {
    instant: true,
    send,
    answer() {
      if (accepted === null || (!accepted && excess)) return null;
      return { accepted, edited: accepted ? null : replacement() };
    },
    begun: () => ({ accepted, edited: words.value === original ? null : words.value }),
    fill(answer) {
      accepted = answer.accepted;
      words.value = answer.edited ?? original;
      draw();
      measure();
    },
    press(key) {
      if (key === "a" || key === "r") choose(key === "a");
      return key === "a" || key === "r";
    },
    legend: [["a", "accept"], ["r", "reject, with a replacement if you write one"]],
  };
}
