"""How much the weights of several models take, with what they share counted once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def weights_held(roles: Mapping[str, nn.Module]) -> dict[tuple[str, ...], int]:
    """Bytes of parameters by the roles that hold them: what several share stands under all their names, once.

    Adapters stand apart, under "adapters", and a policy's critic under "critic".
    """
    holders: dict[int, tuple[int, list[str]]] = {}
    for role, module in roles.items():
        for name, weight in module.named_parameters():
            size = weight.numel() * weight.element_size()
            holder = "adapters" if ".lora_" in name else "critic" if name.startswith("critic.") else role
            names = holders.setdefault(id(weight), (size, []))[1]
            if holder not in names:
                names.append(holder)
    held: dict[tuple[str, ...], int] = {}
    for size, names in holders.values():
        held[tuple(names)] = held.get(tuple(names), 0) + size
    return held


def describe_weights(roles: Mapping[str, nn.Module]) -> str:
    """`weights_held` and how many numbers train, in words."""
    held = weights_held(roles)
    parts = [
        f"{in_words(size)} {'one base for ' if len(names) > 1 else ''}{', '.join(names)}"
        for names, size in sorted(held.items(), key=lambda item: -item[1])
    ]
    weights = {id(weight): weight for module in roles.values() for weight in module.parameters()}.values()
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    return f"{in_words(sum(held.values()))} of weights ({'; '.join(parts)}); {trained:,} numbers train"


def in_words(num_bytes: int) -> str:
    """With the largest unit of which there is one."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if num_bytes >= 1 << power:
            return f"{num_bytes / (1 << power):,.1f} {unit}"
    return f"{num_bytes} B"
