"""Who compares responses: scripted rules and your own annotators by one protocol; people in a terminal, or the app."""
