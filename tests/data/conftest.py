from __future__ import annotations

import importlib.util
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ed_train.data.captions import Caption
from ed_train.data.scan import ImageItem

PHOTOS = Path(str(importlib.util.find_spec("skimage").origin)).parent / "data"  # type: ignore[union-attr]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photo(tmp_path: Path) -> Callable[..., Path]:
    """Copies one of scikit-image's photos into the test's folder."""

    def copy(name: str = "chelsea.png", to: str | None = None) -> Path:
        target = tmp_path / (to or name)
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(PHOTOS / name, target))

    return copy


@pytest.fixture
def bomb() -> Callable[..., None]:
    """Writes a PNG of 74 bytes that claims to be enormous."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    def write(path: Path, width: int, height: int) -> None:
        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
        chunks = chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)

    return write


@pytest.fixture
def make_item() -> Callable[..., ImageItem]:
    def make(path: Path | str = "a.jpg", width: int = 512, height: int = 512, **changes: object) -> ImageItem:
        values = {"caption": Caption("a cat"), "multiply": 1.0, "flip_p": 0.0, "cond_dropout": 0.0, **changes}
        return ImageItem(Path(path), width, height, **values)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """A CLIP tokenizer that knows single bytes and no merges."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def vae():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()


@pytest.fixture(scope="session")
def encode(vae):
    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = vae.encode(pixels).latent_dist
        return posterior.mean, posterior.std

    return encode
