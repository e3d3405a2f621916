/** What this tab keeps, also when its page is loaded again. */
export function read(place, otherwise) {
  return JSON.parse(sessionStorage.getItem(place)) ?? otherwise;
}

export function write(place, value) {
  try {
    sessionStorage.setItem(place, JSON.stringify(value));
  } catch {
    // Full: what is in memory counts all the same.
  }
}
