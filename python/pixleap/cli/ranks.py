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

    def share(self, count: int) -> tuple[int, int]:
        """First and past-the-last of the items that are this process's, by rank order."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

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
