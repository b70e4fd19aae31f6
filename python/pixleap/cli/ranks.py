"""Several processes of one command, as torchrun starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ranks:
    """This process among those of the command; alone without torchrun's environment."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> Ranks:
        """Reads RANK, WORLD_SIZE and LOCAL_RANK, and joins the others (gloo)."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo")
        return cls(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))

    def share(self, items: list[Any]) -> list[Any]:
        """The consecutive part of `items` that is this process's; parts in rank order are all."""
        begin, end = (len(items) * (self.rank + i) // self.size for i in (0, 1))
        return items[begin:end]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in rank order, on each."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def leave(self) -> None:
        """Waits for nobody: what was to be exchanged is exchanged."""
        if self.size > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()
