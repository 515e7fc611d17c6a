"""Devices by name."""

from __future__ import annotations

import torch

from games.errors import InputError


def named_device(field: str, name: str | None) -> torch.device:
    """The device of that name; None and `auto` are a GPU if there is one.

    `field` is the configuration's, for messages. Raises InputError for a device that cannot be used
    on this machine.
    """
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.zeros(1, device=device).item()
    except Exception as error:  # torch raises several kinds, and none of its own
        raise InputError(
            f"{field}={name}: not a device here; choose cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"{field}={name}: this machine has no such device; set {field}=cpu")
    return device
