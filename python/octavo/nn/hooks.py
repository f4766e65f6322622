"""Who watches a module's calls."""

from __future__ import annotations

import torch


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether hooks of its own run with the module's forward or backward: its work may not move elsewhere."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)
