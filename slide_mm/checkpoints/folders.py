"""Folders that hold a model: those of pack.py, and those of timm's hub format."""

import hashlib
import json
import os
from pathlib import Path

from slide_mm.checkpoints.errors import CheckpointError

WEIGHTS = "model.safetensors"
# What a whole folder has beside its weights: ours tells what they are, and so does timm's.
FACTS, TIMM_CONFIG = "model.json", "config.json"
HASH = "weights_sha256"


def find_weights(folder: str | os.PathLike) -> str:
    """Find the file of weights in a folder.

    Args:
        folder: Written by ``tools/model_converters/pack.py``, or by timm's ``save_for_hf``.

    Raises:
        CheckpointError: If it is neither, or its weights are not those that it was written with.
    """
    weights, facts = Path(folder, WEIGHTS), Path(folder, FACTS)
    if not weights.is_file() or not (facts.is_file() or Path(folder, TIMM_CONFIG).is_file()):
        raise CheckpointError(
            f"is a folder without {WEIGHTS} and {FACTS} or {TIMM_CONFIG}: give a file, or a whole "
            "folder of tools/model_converters/pack.py or of timm"
        )
    if facts.is_file() and read_facts(folder).get(HASH) != hash_file(weights):
        raise CheckpointError(
            f"has another {WEIGHTS} than its {FACTS} tells of: copy the folder again"
        )
    return str(weights)


def read_facts(folder: str | os.PathLike) -> dict:
    """Read what a packed folder tells of its model.

    Raises:
        CheckpointError: If it tells nothing.
    """
    try:
        facts = json.loads(Path(folder, FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"has no {FACTS} that can be read: {error}") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"has a {FACTS} that is no dict: copy the folder again")
    return facts


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
