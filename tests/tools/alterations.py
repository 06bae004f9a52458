"""Configs altered at random, as people alter them."""

import copy
import random
from collections.abc import Iterator
from typing import Any

# What a run is made of; data folders are left alone, and so is how long it takes.
PARTS = (
    *("model", "train_dataloader", "val_dataloader", "val_evaluator", "optim_wrapper"),
    *("train_cfg", "val_cfg", "default_hooks", "env_cfg", "log_processor", "randomness"),
    *("default_scope", "param_scheduler", "custom_hooks", "visualizer"),
)
UNTOUCHED = ("data_root", "num_workers", "max_iters", "max_epochs")
OTHERS = (3, -1, 0, 0.5, float("nan"), "text", "3", None, True, [], [1, 2], {}, dict(type="Any"))


def alter(fields: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """Alter one place of a config; returns the altered copy and what was done."""
    fields = copy.deepcopy(fields)
    parts = {name: fields[name] for name in PARTS if fields.get(name) is not None}
    kind = rng.choice(("value", "value", "value", "range", "key", "type", "drop"))
    places = [(node, key, path) for node, key, path in walk(parts) if suits(kind, node, key)]
    node, key, path = rng.choice(places)
    owner = fields if node is parts else node
    before, name = owner[key], key
    if kind == "value":
        owner[key] = rng.choice([x for x in OTHERS if type(x) is not type(before)])
    elif kind == "range":
        owner[key] = rng.choice([-1, 0, -before, float("nan")])
    elif kind == "type":
        owner[key] = misspell(before, rng)
    else:
        del owner[key]
        if kind == "key":
            name = misspell(key, rng)
            owner[name] = before
    after = owner[name] if kind != "drop" else "nothing"
    return fields, f"{kind} of {path}: {before!r:.60} -> {name} = {after!r:.60}"


def walk(node: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Yield (container, key, dotted path) of every value below a node."""
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    else:
        return
    for key, value in items:
        below = f"{path}.{key}" if path else str(key)
        if key not in UNTOUCHED:
            yield node, key, below
            yield from walk(value, below)


def suits(kind: str, node: Any, key: Any) -> bool:
    value = node[key]
    if kind == "range":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "type":
        return key == "type"
    return kind == "value" or isinstance(node, dict)


def misspell(word: str, rng: random.Random) -> str:
    place = rng.randrange(len(word))
    return word[:place] + rng.choice(("", "x", word[place] * 2)) + word[place + 1 :]
