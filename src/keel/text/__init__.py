"""Text to token ids and back. `render` is the only owner of ids and of what is trained."""
