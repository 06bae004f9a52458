"""Weights of other layouts and architectures turned into a backbone's."""

import itertools
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from slide_mm.checkpoints.compare import CheckpointMismatchError
from slide_mm.checkpoints.errors import CheckpointError
from slide_mm.checkpoints.reading import read_checkpoint
from slide_mm.checkpoints.report import (
    GIVE_ANOTHER,
    MISSING,
    NO_PART,
    NO_PLACE,
    ConversionReport,
    Entry,
)
from slide_mm.checkpoints.rules import Rule
from slide_mm.checkpoints.sources import SOURCES
from slide_mm.checkpoints.state_dicts import (
    check_weight,
    choose_prefix,
    drop_wrapper_parts,
    get_state_dict,
)
from slide_mm.layers import SlideAttention

# The next smaller or larger arch of a family covers about 60 %.
MIN_COVERAGE = 0.9
_LAST_NORM = "out_norms.3."


class Given(NamedTuple):
    """A checkpoint's tensor in our layout.

    Attributes:
        source_name: Its name in the checkpoint.
        tensor: Its values, in our shape.
    """

    source_name: str
    tensor: Tensor


@dataclass(frozen=True)
class Conversion:
    """Converted weights.

    Attributes:
        weights: Tensors by the model's names. What the checkpoint lacks isn't among them, except
            for what makes Slide Attention start as plain local attention.
        report: What became of each tensor.
    """

    weights: dict[str, Tensor]
    report: ConversionReport


def load_pretrained(model: nn.Module, path: str | os.PathLike, prefix: str | None = None) -> None:
    """Load a checkpoint of any source into a backbone, and log the report.

    Args:
        model: A slide_mm backbone.
        path: See :func:`~slide_mm.checkpoints.read_checkpoint`.
        prefix: See :func:`convert_state_dict`.

    Raises:
        CheckpointError: If the file is missing, damaged, holds code, or doesn't fit.
    """
    conversion = convert_checkpoint(path, model, prefix=prefix)
    conversion.report.require(MIN_COVERAGE)
    model.load_state_dict(conversion.weights, strict=False)
    print_log(str(conversion.report), logger="current")


def convert_checkpoint(path: str | os.PathLike, model: nn.Module, **options: Any) -> Conversion:
    """Convert the weights in a file: see :func:`convert_state_dict`.

    Args:
        path: See :func:`~slide_mm.checkpoints.read_checkpoint`.
        model: A slide_mm backbone.
        **options: Further arguments of :func:`convert_state_dict`.
    """
    origin = f"checkpoint {path}"
    state_dict = get_state_dict(read_checkpoint(path), origin=origin)
    return convert_state_dict(state_dict, model, origin, **options)


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    model: nn.Module,
    origin: str,
    source: str | None = None,
    prefix: str | None = None,
    keep_classifier: bool = False,
) -> Conversion:
    """Convert weights of any source into a backbone's.

    Where the model slides and the checkpoint doesn't, query, key, value and projection carry over;
    the learned kernel and the biases of taps start at zero, for plain local attention.

    Args:
        state_dict: Weights of one of ``SOURCES``.
        model: A slide_mm backbone, on any device: only names, shapes and kinds of layers matter.
        origin: Where the weights come from, for messages.
        source: One of ``SOURCES``. Default: it is recognised.
        prefix: Take only the weights below this name. Default: it is the one below which a source
            has most names, such as ``backbone.`` or ``encoder.``, often none.
        keep_classifier: Convert the classifier too, with the norm in front of it, where the model
            has none.

    Raises:
        CheckpointError: If ``source`` is none, if the weights are of no source or of another
            model, or if one cannot be a weight: if it is not finite, integer or complex.
    """
    if source not in (None, *SOURCES):
        raise CheckpointError(f"source is {source!r}: choose one of {', '.join(SOURCES)}")
    state_dict, beside = _select(state_dict, prefix, source, origin)
    source = source or recognise(state_dict, origin)
    report = ConversionReport(origin, source, type(model).__name__)
    report.left_over += beside
    given = _translate(state_dict, model, report)
    zeros = _start_sliding(model, given, report)
    weights = {}
    for name, expected in _float_tensors(model.state_dict()).items():
        if name in zeros:
            weights[name] = torch.zeros(expected.shape)
            report.initialised.append(Entry(name, expected.numel(), "at zero"))
        elif name not in given or _is_other_classifier(name, given[name], expected):
            report.initialised.append(Entry(name, expected.numel(), MISSING))
        else:
            weights[name] = _fit(model, name, given.pop(name), expected, report)
    for name, (source_name, tensor) in given.items():
        if keep_classifier and name.startswith(("head.", _LAST_NORM)):
            weights[name] = tensor.clone()
            report.copied.append(Entry(name, tensor.numel()))
        else:
            note = _why_left_over(model, name)
            report.left_over.append(Entry(source_name, tensor.numel(), note))
    return Conversion(weights, report)


def recognise(state_dict: Mapping[str, Tensor], origin: str) -> str:
    """Name the source whose table knows the weights.

    It must know all tensors of the parts that it has, such as ``layers``. Other parts, such as the
    mask token of self-supervised pretraining, say nothing about these.

    Args:
        state_dict: The weights.
        origin: Where they come from, for the message.

    Raises:
        CheckpointError: If no table does.
    """
    names = [name for name, tensor in state_dict.items() if tensor.is_floating_point()]
    known, unknown = {}, {}
    for key, source in SOURCES.items():
        known[key] = [name for name in names if source.targets(name)]
        unknown[key] = [
            name for name in names if source.has_part(name) and not source.targets(name)
        ]
    closest = max(SOURCES, key=lambda key: len(known[key]) - len(unknown[key]))
    if known[closest] and not unknown[closest]:
        return closest
    problem = f"begin with {next(iter(state_dict))}"
    if len(known[closest]) > len(names) / 2:
        problem = f"are most like {closest}, which has no {unknown[closest][0]}"
    raise CheckpointError(
        f"{origin} is of another model: its weights {problem}; known layouts are "
        f"{', '.join(SOURCES)}"
    )


def _select(
    state_dict: Mapping[str, Tensor], prefix: str | None, source: str | None, origin: str
) -> tuple[dict[str, Tensor], list[Entry]]:
    """Take the tensors below a prefix, and list those beside them."""
    names = Counter(map(drop_wrapper_parts, state_dict))
    state_dict = {
        name if names[drop_wrapper_parts(name)] > 1 else drop_wrapper_parts(name): tensor
        for name, tensor in state_dict.items()
    }
    if prefix is None:
        prefix = _find_prefix(list(state_dict), source, origin)
    prefix = f"{prefix.rstrip('.')}." if prefix else ""
    selected, beside = {}, []
    for name, tensor in state_dict.items():
        if name.startswith(prefix):
            selected[name.removeprefix(prefix)] = tensor
        elif tensor.is_floating_point():
            beside.append(Entry(name, tensor.numel(), NO_PART))
    if not _float_tensors(selected):
        first = next(iter(state_dict), "nothing")
        below = f" below {prefix!r}; its names begin with {first}" if prefix else ""
        raise CheckpointError(f"{origin} has no weights{below}")
    return selected, beside


def _find_prefix(names: list[str], source: str | None, origin: str) -> str:
    """Find the name below which a source has most weights."""
    sources = [source] if source else list(SOURCES)
    counts = Counter(
        (prefix, key)
        for name in names
        for prefix in _prefixes(name)
        for key in sources
        if SOURCES[key].targets(name.removeprefix(prefix))
    )
    most = max(counts.values(), default=0)
    best = sorted({prefix for (prefix, _), count in counts.items() if count == most})
    return choose_prefix(best, f"{origin} has a backbone") if best else ""


def _prefixes(name: str) -> list[str]:
    """List what a name can begin with, up to the first number."""
    parts = itertools.takewhile(lambda part: not part.isdigit(), name.split(".")[:-1])
    return list(itertools.accumulate((f"{part}." for part in parts), initial=""))


def _float_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}


def _translate(
    state_dict: Mapping[str, Tensor], model: nn.Module, report: ConversionReport
) -> dict[str, Given]:
    """Give all tensors our names and shapes; those without a target are left over."""
    source = SOURCES[report.source]
    if source.family not in (None, *(parent.__name__ for parent in type(model).__mro__)):
        raise CheckpointMismatchError(
            f"{report.origin} is for {source.family} (layout {report.source}), not for "
            f"{report.model}: give the checkpoint of this architecture"
        )
    given: dict[str, Given] = {}
    for name, tensor in state_dict.items():
        targets = source.targets(name)
        if not any(target for target, _ in targets):
            note = "not used" if targets else NO_PLACE if source.has_part(name) else NO_PART
            if tensor.is_floating_point():  # Others are tables of indices and the like.
                report.left_over.append(Entry(name, tensor.numel(), note))
            continue
        check_weight(name, tensor, torch.get_default_dtype(), report.origin)
        for target, rule in targets:
            reshaped = _reshape(rule, name, state_dict, report)
            if target in given:
                reshaped = given[target].tensor + reshaped
            given[target] = Given(name, reshaped)
    return given


def _reshape(
    rule: Rule, name: str, state_dict: Mapping[str, Tensor], report: ConversionReport
) -> Tensor:
    module = name.rsplit(".", maxsplit=2)[0]
    try:
        return rule.reshape(state_dict[name], lambda other: state_dict.get(f"{module}.{other}"))
    except (AttributeError, IndexError, RuntimeError) as error:
        raise CheckpointMismatchError(
            f"{report.origin} is not of the layout {report.source}: {name} is "
            f"{tuple(state_dict[name].shape)}"
        ) from error


def _start_sliding(model: nn.Module, given: dict[str, Given], report: ConversionReport) -> set[str]:
    """Where the model slides and the checkpoint doesn't, keep query, key, value and projection.

    Returns:
        Names of the weights that start at zero.
    """
    zeros = set()
    for path in _starting_mixers(model, given, report.origin):
        for kind in ("weight", "bias"):
            parts = [f"{path}.q.{kind}", f"{path}.kv.{kind}"]
            if given.keys() >= set(parts):
                query, key_value = map(given.pop, parts)
                joined = torch.cat([query.tensor, key_value.tensor])
                given[f"{path}.qkv.{kind}"] = Given(query.source_name, joined)
        kept = tuple(f"{path}.{layer}." for layer in ("qkv", "proj"))
        dropped = [n for n in given if n.startswith(f"{path}.") and not n.startswith(kept)]
        for source_name, tensor in map(given.pop, dropped):
            note = "of the attention that slides now"
            report.left_over.append(Entry(source_name, tensor.numel(), note))
        # Without what else it learns, Slide Attention is plain local attention.
        learned = {f"{path}.{name}" for name, _ in model.get_submodule(path).named_parameters()}
        zeros |= {name for name in learned if not name.startswith(kept)}
    return zeros


def _starting_mixers(model: nn.Module, given: Mapping[str, Given], origin: str) -> list[str]:
    """List the mixers that slide in the model and are another attention in the checkpoint."""
    mixers = {name.partition(".mixer.")[0] + ".mixer" for name in given if ".mixer." in name}
    starting = []
    for path in sorted(mixers & dict(model.named_modules()).keys()):
        slides = isinstance(model.get_submodule(path), SlideAttention)
        slid = f"{path}.deformed_kernel" in given
        if slid and not slides:
            raise CheckpointMismatchError(
                f"{origin} slides in stage {path.split('.')[1]} and the model does not: list the "
                "stage in slide_stages"
            )
        if slides and not slid:
            starting.append(path)
    return starting


def _fit(
    model: nn.Module, name: str, given: Given, expected: Tensor, report: ConversionReport
) -> Tensor:
    """Copy a tensor, or interpolate a table of positions to another size."""
    tensor, sizes = given.tensor, (tuple(given.tensor.shape), tuple(expected.shape))
    if tensor.shape == expected.shape:
        report.copied.append(Entry(name, tensor.numel()))
    else:
        path, _, table = name.rpartition(".")
        resample = getattr(model.get_submodule(path), "resample", None)
        tensor = resample and resample(table, tensor.float())
        if tensor is None:
            raise CheckpointMismatchError(
                f"{report.origin} does not fit {report.model}: "
                f"{_describe_misfit(model, name, *sizes)}; {GIVE_ANOTHER}"
            )
        note = f"{sizes[0]} -> {sizes[1]}"
        report.resampled.append(Entry(name, tensor.numel(), note))
    return tensor.to(expected.dtype).clone(memory_format=torch.contiguous_format)


def _describe_misfit(
    model: nn.Module, name: str, given: tuple[int, ...], expected: tuple[int, ...]
) -> str:
    if name == f"{model.first_conv}.weight" and given[1] != expected[1]:
        return f"it takes images of {given[1]} channels and the model of {expected[1]}"
    return f"{name} is {given} in the checkpoint and {expected} in the model"


def _is_classifier(name: str) -> bool:
    return name.startswith("head.")


def _is_other_classifier(name: str, given: Given, expected: Tensor) -> bool:
    """Whether it tells other classes apart; the model's own then stays."""
    return _is_classifier(name) and given.tensor.shape != expected.shape


def _why_left_over(model: nn.Module, name: str) -> str:
    if _is_classifier(name):
        return "classifier"
    if name.startswith("out_norms."):
        return "norm of features that the model doesn't return"
    built = len(model.stages)
    if name.startswith("stages.") and int(name.split(".")[1]) >= built:
        return "stage that the model doesn't build"
    return NO_PLACE
