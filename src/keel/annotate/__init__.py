"""Who compares responses: scripted rules and your own annotators by one protocol; a person in a terminal."""
