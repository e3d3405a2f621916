"""What is measured rather than asserted: speed and memory, side by side with other packages. See README.md."""
