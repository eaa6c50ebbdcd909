"""Real data for the demo modules of Lightning: halves of digits for `BoringModel`, a text for the language model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import lightning as L
import torch
from lightning.pytorch.demos.transformer import WikiText2
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Subset

# Where the demo looks for its text, which it downloads if nothing is there.
EXPECTED = Path("data/wikitext-2.txt")


class HalfDigits(L.LightningDataModule):
    """The upper half of each of scikit-learn's digits: 32 numbers, which is what `BoringModel` takes.

    Args:
        batch_size: Digits in a batch.
        validate: Digits that are not for training.
    """

    def __init__(self, batch_size: int = 64, validate: int = 300) -> None:
        super().__init__()
        self.batch_size, self.validate = batch_size, validate

    def setup(self, stage: str) -> None:
        images = torch.from_numpy(load_digits().images).float()
        halves = images[:, :4].flatten(1) / 16
        self.training, self.held_out = halves[: -self.validate], halves[-self.validate :]

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.training, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.held_out, self.batch_size)

    def test_dataloader(self) -> DataLoader[Tensor]:
        return self.val_dataloader()


class PythonManual(L.LightningDataModule):
    """The language reference that Python shows for `help("lambda")`, cut into blocks of 35 words.

    The demo's `prepare_data` looks for a text at `data/wikitext-2.txt` of the working directory. Here it finds this
    one, and has nothing to download; the file is removed at the end.

    The last blocks are not for training. The demo has no validation step; `held_out` is for a look.

    Args:
        words: The most frequent words, which are kept; the others become `<unk>`.
        batch_size: Blocks in a batch.
        validate: Number of the blocks that are not for training.
    """

    def __init__(self, words: int = 998, batch_size: int = 20, validate: int = 100) -> None:
        super().__init__()
        self.words, self.batch_size, self.validate = words, batch_size, validate
        self.written = False

    @property
    def vocab_size(self) -> int:
        """The kept words, `<unk>`, and the `<eos>` of the demo."""
        return self.words + 2

    def prepare_data(self) -> None:
        text = manual(self.words)
        # The same text may be left from a run that was stopped.
        if EXPECTED.exists() and EXPECTED.read_text(encoding="utf8") != text:
            raise FileExistsError(f"{EXPECTED} holds another text; run this in a folder without one.")
        EXPECTED.parent.mkdir(exist_ok=True)
        EXPECTED.write_text(text, encoding="utf8")
        self.written = True

    def setup(self, stage: str) -> None:
        blocks = WikiText2(download=False)
        first = len(blocks) - self.validate
        self.training = Subset(blocks, range(first))
        self.held_out = [
            torch.stack(part) for part in zip(*(blocks[i] for i in range(first, len(blocks))), strict=True)
        ]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.training, self.batch_size, shuffle=True)

    def teardown(self, stage: str) -> None:
        if self.written:
            EXPECTED.unlink()
            if not any(EXPECTED.parent.iterdir()):
                EXPECTED.parent.rmdir()
            self.written = False


def manual(words: int) -> str:
    """The text, with the rarer words replaced."""
    lines = [line.split() for _, text in sorted(topics.items()) for line in text.splitlines() if line.strip()]
    counts = Counter(word for line in lines for word in line)
    kept = {word for word, _ in counts.most_common(words)}
    return "\n".join(" ".join(word if word in kept else "<unk>" for word in line) for line in lines)
