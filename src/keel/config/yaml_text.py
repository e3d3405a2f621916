"""YAML as a recipe is written in it: plain values alone, and each key once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


class NoYaml(ValueError):
    """The text is no YAML, or YAML of a kind that no recipe needs."""


def read_yaml(text: str) -> Any:
    """The value that a text stands for. Tags that would make objects are refused, and so is a key that stands twice.

    Raises NoYaml with what is wrong and where.
    """
    try:
        return yaml.load(text, _EachKeyOnce)  # a SafeLoader
    except RecursionError:
        raise NoYaml("brackets or levels too deep in each other") from None
    except yaml.YAMLError as error:
        raise NoYaml(str(error)) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of the loader
        raise NoYaml(f"a value that is not what its form or its tag says ({error})") from None


class _EachKeyOnce(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key `{key.value}` stands twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)
