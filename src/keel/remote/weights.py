"""New weights on their way to the servers: directories that they read, and each kind's way of being told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from keel.config.servers import ServerKind
from keel.errors import UserError
from keel.remote.server import Call, Failed, Refused, Server
from keel.runs import files

_KEPT = 2
_NOT_THERE = (403, 404, 405)  # how a server says that it takes no weights


class WeightsFolder:
    """Hugging Face directories of the newest weights, each whole or not there; the newest two are kept."""

    def __init__(self, folder: Path, write: Callable[[Path], None]) -> None:
        self.folder = folder.resolve()
        self._write = write
        self._versions: list[str] = []

    def publish(self, version: str) -> None:
        """Write the weights as they are now as `version`, unless it is there."""
        if version in self._versions:
            return
        if not self._versions:  # what a run that was killed left here
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        work = self.folder / f".{version}.work"
        work.mkdir()
        self._write(work)
        files.sync_tree(work)
        files.move(work, self.path(version))
        self._versions.append(version)
        while len(self._versions) > _KEPT:
            files.discard(self.path(self._versions.pop(0)))

    def path(self, version: str) -> Path:
        """Where that version lies."""
        return self.folder / version

    def discard(self) -> None:
        """Remove all of it, if any of it is this one's."""
        if self._versions:
            shutil.rmtree(self.folder, ignore_errors=True)


def load_on(server: Server, kind: ServerKind, folder: Path, version: str) -> None:
    """Have a server load the weights in a directory that it can read.

    Raises Failed where it did not, and UserError where it was not started so that it can.
    """
    try:
        _LOADERS[kind](server, str(folder), version)
    except Refused as refusal:
        if refusal.status not in _NOT_THERE:
            raise
        raise UserError(f"{refusal}; {_STARTED[kind]}") from None


def _load_on_keel(server: Server, folder: str, version: str) -> None:
    server.post(Call("/update_weights", {"path": folder, "version": version}))


def _load_on_vllm(server: Server, folder: str, version: str) -> None:
    """What was computed under the old weights, the cache of prefixes, has to go too."""
    arguments = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
    server.post(Call("/collective_rpc", arguments))
    answer = server.post(Call("/reset_prefix_cache", {}))
    if answer is not None and not answer.get("success"):
        raise Failed("its prefix cache cannot be reset while requests run")


def _load_on_sglang(server: Server, folder: str, version: str) -> None:
    answer = server.post(Call("/update_weights_from_disk", {"model_path": folder, "weight_version": version}))
    if not (answer or {}).get("success"):
        raise Failed(f"it did not load the weights ({(answer or {}).get('message')})")


_LOADERS: dict[ServerKind, Callable[[Server, str, str], None]] = {
    "keel": _load_on_keel,
    "vllm": _load_on_vllm,
    "sglang": _load_on_sglang,
}
_STARTED: dict[ServerKind, str] = {
    "keel": "start it with `keel serve MODEL --allow-updates`",
    "vllm": "start it with VLLM_SERVER_DEV_MODE=1 in its environment, on a loopback or private address",
    "sglang": "give ppo.servers the kind of server that it is",
}
