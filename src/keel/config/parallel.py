"""How several processes hold a model between them."""

from __future__ import annotations

from pydantic import Field

from keel.config.base import Config


class ParallelConfig(Config):
    """Without effect where a run is one process; a run may go on with another number of them."""

    shard: int | None = Field(None, ge=1, description="processes that hold a model's weights between them; null: all")
    offload: bool = Field(False, description="keep sharded weights and the optimiser in the host's memory (GPUs)")
