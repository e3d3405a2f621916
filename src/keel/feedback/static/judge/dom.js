/** An element: attributes that are null or false are left out, `on…` are listeners. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** HTML that the server cleaned. */
export function cleaned(tag, attributes, html) {
  const element = make(tag, attributes);
  element.innerHTML = html;
  return element;
}

/** A button with its key beside its words. */
export function keyed(words, key, attributes) {
  return make("button", { type: "button", "aria-keyshortcuts": key, ...attributes },
    make("span", {}, words), key ? make("kbd", { "aria-hidden": "true" }, key) : null);
}

/** Of what the server says in the middle of one. */
export const sentence = (words) => `${words.charAt(0).toUpperCase()}${words.slice(1)}.`;
export const byId = (id) => document.getElementById(id);
export const letter = (place) => "ABCDEFGHI"[place];
