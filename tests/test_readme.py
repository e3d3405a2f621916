"""The README names exactly the files that exist.

Format: a heading `## The tree` (of any level), and after it a fenced block in which each line is

    path  what it is

with two spaces or more between the two. A path is written in full from the repository's root; a directory ends with
a slash. Blank lines are allowed. Listed must be everything at the top level and every package and module directly
under `src/keel` (its `__init__.py` apart); other paths may be. What exists is what git tracks.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest
import yaml

from keel.config.recipe import load_recipe, parse_recipe

ROOT = Path(__file__).parents[1]
PACKAGE = "src/keel/"

TREE = re.compile(r"^#+ The tree\n(?:(?!#|```).*\n)*```\w*\n(?P<lines>(?:(?!```).*\n)*)```$", re.MULTILINE)
LINE = re.compile(r"(?P<path>\S+) {2,}\S.*")


def listed_paths(readme: str) -> list[str]:
    """The paths of the README's tree, in its order; `ValueError` if the block is missing or a line is malformed."""
    tree = TREE.search(readme)
    if tree is None:
        raise ValueError("README.md has no fenced block after a heading 'The tree'")
    paths = []
    for line in filter(str.strip, tree["lines"].splitlines()):
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"not 'path  what it is': {line!r}")
        paths.append(match["path"])
    return paths


def existing_paths(tracked: list[str]) -> set[str]:
    """The tracked files and every directory above them, directories with a slash at the end."""
    directories = {f"{parent}/" for name in tracked for parent in PurePosixPath(name).parents if parent.name}
    return set(tracked) | directories


def required_paths(existing: set[str]) -> set[str]:
    """What a tree must list: all of the top level, and Keel's packages and modules."""
    top = {path for path in existing if "/" not in path.removesuffix("/")}
    inside = {path for path in existing if path.startswith(PACKAGE) and "/" not in path[len(PACKAGE) : -1]} - {PACKAGE}
    parts = {path for path in inside if path.endswith(("/", ".py"))}
    return top | parts - {f"{PACKAGE}__init__.py"}


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listing.stdout.strip("\0").split("\0")


def test_tree_names_what_exists() -> None:
    listed = listed_paths((ROOT / "README.md").read_text(encoding="utf-8"))
    existing = existing_paths(tracked_files())
    assert sorted(set(listed) - existing) == [], "the README lists what git does not track"
    assert sorted(required_paths(existing) - set(listed)) == [], "the README leaves out what exists"
    assert len(listed) == len(set(listed)), "the README lists a path twice"


README = """# Keel

## The tree

Some words.

```text
Makefile       the two commands
src/keel/      the package

src/keel/cli/  the command line
```

```bash
make demo  not part of the tree
```
"""


def test_parser_reads_the_block_after_its_heading() -> None:
    assert listed_paths(README) == ["Makefile", "src/keel/", "src/keel/cli/"]


def test_parser_refuses_a_readme_without_the_block() -> None:
    with pytest.raises(ValueError, match="no fenced block"):
        listed_paths(README.replace("The tree", "Something else"))


def test_parser_does_not_look_past_the_next_heading() -> None:
    with pytest.raises(ValueError, match="no fenced block"):
        listed_paths(README.replace("Some words.", "## Another"))


def test_parser_refuses_a_line_without_words() -> None:
    with pytest.raises(ValueError, match="'src/keel/cli/'"):
        listed_paths(README.replace("cli/  the command line", "cli/"))


def test_required_paths_by_hand() -> None:
    tracked = [
        ".ci/run",
        "Makefile",
        "src/keel/__init__.py",
        "src/keel/build.py",
        "src/keel/cli/run.py",
        "src/keel/py.typed",
    ]
    existing = existing_paths(tracked)
    assert existing - set(tracked) == {".ci/", "src/", "src/keel/", "src/keel/cli/"}
    assert required_paths(existing) == {".ci/", "Makefile", "src/", "src/keel/build.py", "src/keel/cli/"}


def test_the_recipe_shown_is_a_recipe() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    recipe = parse_recipe(yaml.safe_load(text), "README.md")
    assert recipe.ppo is not None
    assert [source.logged_as for source in recipe.ppo.reward] == ["reward", "my_rules.no_repetition"]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_one(path: Path) -> None:
    assert load_recipe(path).name == path.stem
