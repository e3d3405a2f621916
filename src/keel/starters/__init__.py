"""First steps: look at a model and at data, and write the recipe that fits them."""
