import { make } from "./dom.js";

/** Where what was said stands: saved, on its way, or kept here. */
export function tellSaving(place, state, { aside, waiting }) {
  const words = {
    saving: "Saving …",
    saved: "Saved",
    aside: `${aside.length} to be judged anew`,
    retrying: "Trying again …",
    offline: `Offline: ${waiting.length} kept, will retry`,
  };
  place.dataset.state = state;
  if (state !== "signed out") place.replaceChildren(words[state]);
  else {
    const back = make("a", { href: "" }, "load this page again");
    place.replaceChildren("Signed out: what you said is kept in this tab; ", back, " to sign in and send it");
  }
}
