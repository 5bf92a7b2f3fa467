from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from ed_train.data.embeddings import EmbeddingCache


def captions(count: int) -> list[torch.Tensor]:
    return [torch.full((77,), n, dtype=torch.int64) for n in range(count)]


def encode(token_ids: torch.Tensor) -> torch.Tensor:
    """In the place of a text encoder: [n, 77, 4], in bfloat16."""
    return token_ids[:, :, None].expand(-1, -1, 4).to(torch.bfloat16) / 7


def never(token_ids: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the text encoder was called although nothing is missing")


def test_what_was_built_is_there_in_another_run(tmp_path) -> None:
    first = EmbeddingCache(tmp_path, key="k", rows=4, progress=False)
    assert first.get(captions(10)) is None
    first.build(captions(10), encode)
    again = EmbeddingCache(tmp_path, key="k", rows=4, progress=False)
    assert again.missing(captions(10)) == []
    again.build(captions(10), never)
    found = again.get(captions(10))
    assert torch.equal(torch.stack(found), encode(torch.stack(captions(10))))
    assert found[0].dtype == torch.bfloat16
    assert again.get(captions(11)) is None
    assert EmbeddingCache(tmp_path, key="other", rows=4).get(captions(1)) is None


def test_the_text_encoder_always_gets_as_many_captions(tmp_path) -> None:
    seen = []

    def recording(token_ids: torch.Tensor) -> torch.Tensor:
        seen.append(token_ids[:, 0].tolist())
        return encode(token_ids)

    twice = [*captions(6), *captions(6)]
    EmbeddingCache(tmp_path, key="k", rows=4, progress=False).build(twice, recording)
    assert seen == [[0, 1, 2, 3], [4, 5, 5, 5]]


def test_processes_take_a_share_each_and_see_what_the_others_did(tmp_path) -> None:
    caches = [EmbeddingCache(tmp_path, key="k", rows=4, progress=False) for _ in range(3)]
    shares = [cache.missing(captions(10))[rank::3] for rank, cache in enumerate(caches)]
    assert [len(share) for share in shares] == [4, 3, 3]
    caches[0].build(captions(10), encode, rank=0, world=3)
    assert len(caches[1].missing(captions(10))) == 6
    for rank in (1, 2):
        EmbeddingCache(tmp_path, key="k", rows=4, progress=False).build(shares[rank], encode)
    assert caches[0].missing(captions(10)) == []
    assert torch.equal(torch.stack(caches[0].get(captions(10))), encode(torch.stack(captions(10))))


KILLED = """
import sys, time, torch
from pathlib import Path
from ed_train.data import store
from ed_train.data.embeddings import EmbeddingCache
store._PACK_BYTES = 1 << 20
def encode(ids):
    print("encoding", flush=True)
    time.sleep(0.01)
    return ids[:, :, None].expand(-1, -1, 1024).float()
ids = [torch.full((77,), n, dtype=torch.int64) for n in range(2000)]
EmbeddingCache(Path(sys.argv[1]), key="k", rows=1, progress=False).build(ids, encode)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 needs POSIX")
def test_what_was_whole_when_a_build_was_killed_is_used(tmp_path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(33):  # a pack holds four
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = EmbeddingCache(tmp_path, key="k", rows=1, progress=False)
    done = [ids for ids in captions(2000) if cache.get([ids])]
    assert 20 <= len(done) < 2000
    assert all(torch.equal(cache.get([ids])[0], ids[:, None].expand(-1, 1024).float()) for ids in done)
    assert len(cache.missing(captions(2000))) == 2000 - len(done)
