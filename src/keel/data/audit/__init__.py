"""What is wrong, odd or lopsided in preference data: `keel data audit`. Keeps fingerprints of texts, never texts."""
