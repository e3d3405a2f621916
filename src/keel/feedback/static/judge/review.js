import { keyed, make } from "./dom.js";

/** Good as it is, or not; and what would be. */
export function review({ box, task, panes, changed, submit }) {
  const original = task.responses[0].text.replace(/\r\n?/g, "\n"); // as a text field gives it back
  let accepted = null;
  const accept = keyed("Accept", "a", { class: "choice", "aria-pressed": "false", onclick: (event) => event.detail < 2 && choose(true) });
  const reject = keyed("Reject, or mend it", "r", { class: "choice", "aria-pressed": "false", onclick: (event) => event.detail < 2 && choose(false) });
  const words = make("textarea", { dir: "auto", "aria-label": "A better response", maxlength: "100000", oninput: draw });
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
    send.textContent = words.value.trim() && words.value !== original ? "Reject, and send the replacement" : "Reject without a replacement";
  }
  function choose(value) {
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
      if (accepted !== false) return accepted === null ? null : { accepted, edited: null };
      return { accepted, edited: words.value.trim() && words.value !== original ? words.value : null };
    },
    fill(answer) {
      accepted = answer.accepted;
      words.value = answer.edited ?? original;
      draw();
    },
    press(key) {
      if (key === "a" || key === "r") choose(key === "a");
      return key === "a" || key === "r";
    },
    legend: [["a", "accept"], ["r", "reject, with a replacement if you write one"]],
  };
}
