"""What lies in a checkpoint that one process wrote, read without Keel."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def tensors_in(checkpoint: Path, kind: str) -> dict[str, Tensor]:
    """Those of one kind: `model` or `optimiser`."""
    (file,) = checkpoint.glob("*.safetensors")
    return {name.removeprefix(f"{kind}."): one for name, one in load_file(file).items() if name.startswith(f"{kind}.")}


def weights_in(checkpoint: Path) -> dict[str, Tensor]:
    """The trained weights, by their names in the module."""
    return tensors_in(checkpoint, "model")
