"""Coverage-guided fuzzing of what reads a user's files: `make fuzz`, or `make fuzz ARGS="--seconds 600"`.

It runs in an environment of its own, for it needs atheris. Every input is read as a data file (its first byte says by
which name) or as a recipe; whatever ends otherwise than with rows, a recipe or a UserError is a fault, and ends the run
with the input in a file.
"""

from __future__ import annotations

import argparse
import dis
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import atheris  # type: ignore[import-untyped]  # only in the environment of `make fuzz`

with atheris.instrument_imports(include=["keel.data", "keel.config"]):
    from keel.config import faults, yaml_text
    from keel.config.data import DataConfig
    from keel.config.recipe import parse_recipe
    from keel.data import convert, dialogues, files, json_text, layouts, rankings, read, reading, tables, values
    from keel.errors import UserError

from tests.hostile.valid import FILES

MODULES = (convert, dialogues, files, json_text, layouts, rankings, read, reading, tables, values, faults, yaml_text)
RECIPE = b"name: a\nmodel: {base: m, tune: lora}\nsft: {data: d.jsonl, lr: 1e-4}\nppo: {prompts: p, kl: {coef: 0.1}}\n"
WORDS = (
    b'"prompt"', b'"response"', b'"chosen"', b'"rejected"', b'"messages"', b'"role"', b'"content"', b'"conversations"',
    b'"from"', b'"instances"', b'"ranks"', b'"preferred"', b'"margin"', b"<|endoftext|>", b"\\ud800", b"NaN", b"1e999",
    b"[[[[", b"PAR1", b"\x1f\x8b", b"\xef\xbb\xbf", b"!!python/object",
    b"!!timestamp ", b"!!bool ", b"!!set", b"<<: *a", b"&a", b"reward:", b"evaluate:",
    b"collect:", b"\x00", b"\xff\xfe",
)  # fmt: skip
NAMES = tuple(FILES)


def try_one(data: bytes, folder: Path) -> None:
    """Read the input; raises what no user should see."""
    choice, content = data[:1], data[1:]
    number = choice[0] % (len(NAMES) + 1) if choice else 0
    try:
        if number == len(NAMES):
            tree = yaml_text.read_yaml(content.decode(errors="replace"))
            if isinstance(tree, dict):
                parse_recipe(tree, "fuzz.yaml")
            return
        path = folder / NAMES[number]
        path.write_bytes(content)
        config = DataConfig(path=str(path))
        for kind in convert.KINDS.values():
            tuple(reading.Reading(config, kind))
    except (UserError, yaml_text.NoYaml):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz/corpus"), help="kept between runs")
    options = parser.parse_args()
    options.corpus.mkdir(parents=True, exist_ok=True)
    lines = NAMES.index("layouts.jsonl")
    starts = [*enumerate([*FILES.values(), RECIPE]), *((lines, row) for row in FILES[NAMES[lines]].splitlines())]
    for number, (name, content) in enumerate(starts):
        (options.corpus / f"valid-{number}").write_bytes(bytes([name]) + content)
    words = options.corpus.parent / "words"
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in WORDS))
    folder = Path(tempfile.mkdtemp(prefix="keel-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    if not os.fork():  # libFuzzer ends its process
        limits = [f"-max_total_time={options.seconds}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=2048"]
        place = f"-artifact_prefix={options.corpus.parent}/"
        atheris.Setup([sys.argv[0], *limits, place, f"-dict={words}", str(options.corpus)], _in(folder))
        atheris.Fuzz()
    started = time.monotonic()
    _, status = os.wait()
    print(f"\n{time.monotonic() - started:.0f} s, {len(list(options.corpus.iterdir())):,} inputs kept")
    report(options.corpus, folder)
    sys.exit(os.waitstatus_to_exitcode(status))


def _in(folder: Path) -> Callable[[bytes], None]:
    return lambda data: try_one(data, folder)


def report(corpus: Path, folder: Path) -> None:
    """The share of each module's lines that the kept inputs reach."""
    seen: set[tuple[str, int]] = set()
    watched = {str(module.__file__) for module in MODULES}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in watched:
            return None
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    for path in sorted(corpus.iterdir()):
        try:
            try_one(path.read_bytes(), folder)
        except Exception as error:
            print(f"{path}: {type(error).__name__}: {error}")
    sys.settrace(None)
    for module in MODULES:
        name = str(module.__file__)
        lines = _lines_in_functions(compile(Path(name).read_text(encoding="utf-8"), name, "exec"))
        print(f"{module.__name__:<22} {len(lines & {line for file, line in seen if file == name}):>4} of {len(lines)}")


def _lines_in_functions(code: CodeType, depth: int = 0) -> set[int]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    own = {line for _, line in dis.findlinestarts(code) if line is not None and line != code.co_firstlineno}
    is_function = depth > 0 and code.co_flags & 1  # CO_OPTIMIZED: a class's body is not
    return (own if is_function else set()).union(*(_lines_in_functions(one, depth + 1) for one in inner))


if __name__ == "__main__":
    main()
