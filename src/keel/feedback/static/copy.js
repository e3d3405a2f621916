// Copies the secret that the page shows; selects it where the browser keeps the clipboard to itself (http without TLS).
const field = document.querySelector("#secret");
const button = document.querySelector("#copy");

async function copy() {
  const said = document.querySelector("#copied");
  try {
    await navigator.clipboard.writeText(field.value);
    said.textContent = "Copied";
  } catch {
    field.focus();
    field.select();
    said.textContent = "The browser keeps the clipboard from this page; the text is selected, copy it yourself";
  }
}

if (button) {
  button.hidden = false;
  button.addEventListener("click", copy);
}
