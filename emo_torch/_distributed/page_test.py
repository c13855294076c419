"""All code of the page about distributed training runs, in two processes."""

import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from emo_torch._distributed.processes_test import Place, in_processes
from emo_torch._distributed.training_test import assert_same_in_all

DOCS = Path(__file__).parents[2] / "docs"
needs_pages = pytest.mark.skipif(
    not (DOCS / "trainers" / "distributed.md").exists(), reason="THE PAGES LIE IN THE REPOSITORY ALONE"
)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@needs_pages
@in_processes(2)
def test_all_code_of_the_page_runs(place: Place) -> None:
    port = torch.tensor(free_port())
    dist.broadcast(port, src=0)
    dist.destroy_process_group()
    place_in_words = {"RANK": place.rank, "WORLD_SIZE": place.size, "MASTER_PORT": port.item()}
    os.environ.update({name: str(value) for name, value in place_in_words.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.chdir(place.folder)
    page = (DOCS / "trainers" / "distributed.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 8
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "distributed.md", "exec"), names)
        if isinstance(names.get("model"), DistributedDataParallel):
            assert_same_in_all(dict(names["model"].named_parameters()), place)
    assert not names["optimizer"].emotion.short.isnan()
