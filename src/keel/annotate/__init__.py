"""Who compares responses: scripted rules here; files and people by the same protocol."""
