// Sends a file of tasks as it is, so that the server need not hold it in memory, and says what became of it.
const form = document.querySelector("#upload");

function say(sentences, kind) {
  const line = form.querySelector("[role=status]");
  line.hidden = false;
  line.className = `notice ${kind}`;
  line.replaceChildren(...sentences.map((sentence) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = sentence;
    return paragraph;
  }));
}

/** What this page says of how many there are, as it is by now. */
async function count() {
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  for (const part of document.querySelectorAll("[data-counts]")) part.replaceWith(page.getElementById(part.id) ?? part);
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { file, purpose, round, policy_version: version, csrf } = form.elements;
  const query = new URLSearchParams({ name: file.files[0].name.slice(-255), purpose: purpose.value, round: round.value || "1" });
  if (version.value) query.set("policy_version", version.value);
  const button = form.querySelector("button");
  button.disabled = true;
  say(["Reading…"], "");
  try {
    const answer = await fetch(`${form.dataset.url}?${query}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream", "X-CSRF-Token": csrf.value },
      body: file.files[0],
    });
    const done = await answer.json();
    if (answer.ok) {
      say(done.words, done.never_given || done.left_out.length ? "warn" : "good");
      await count();
    } else say([done.error.message.replace(/\.?$/, ".")], "bad");
  } catch {
    say(["The server did not answer, or ended the upload: the file may be too large."], "bad");
  } finally {
    button.disabled = false;
  }
});
