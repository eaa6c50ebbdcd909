"""How error messages show what was given."""

from __future__ import annotations

import re
from typing import Any

_LONGEST = 300


def shown(value: Any) -> str:
    """The ``repr`` on one line, cut where it is long: that of a tensor, a module or a config fills a screen.

    >>> import torch
    >>> shown(torch.zeros(2, 2))
    'tensor([[0., 0.], [0., 0.]])'
    """
    text = on_one_line(repr(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def on_one_line(text: str) -> str:
    """The text without line breaks, such as those in messages of torch."""
    return re.sub(r"\s*\n\s*", " ", text.strip())
