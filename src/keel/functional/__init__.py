"""Mathematics: tensors and floats in, tensors out. `docs/math/README.md` gives each function's equation and test."""
