"""Whether weights fit a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from slide_mm.checkpoints.errors import CheckpointError


class CheckpointMismatchError(CheckpointError):
    """Weights of another architecture."""


@dataclass(frozen=True)
class StateDictFit:
    """How well given weights fit expected ones.

    Attributes:
        num_fitting: Tensors of the same name and shape in both.
        mismatched: Tensors of the same name but another shape: name, given, expected shape.
        missing: Expected and not given.
        unexpected: Given and not expected, in parts that are expected. A part is what a name
            begins with, such as ``backbone`` or ``stages``: weights of an auxiliary head or a
            classifier that the model lacks altogether say nothing about the parts it has.
    """

    num_fitting: int
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def num_tensors(self) -> int:
        """Tensors in either."""
        return self.num_fitting + len(self.mismatched) + len(self.missing) + len(self.unexpected)

    @property
    def fraction(self) -> float:
        """Share of the tensors that fit, from 0 to 1."""
        return self.num_fitting / max(self.num_tensors, 1)

    def first_problem(self) -> str:
        """Describe the first tensor that doesn't fit, or return an empty string."""
        if self.mismatched:
            name, given, expected = self.mismatched[0]
            return f"{name} is {given} in the checkpoint and {expected} in the model"
        if self.missing:
            return f"{self.missing[0]} is not in the checkpoint"
        return f"{self.unexpected[0]} is not in the model" if self.unexpected else ""


def compare_state_dicts(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> StateDictFit:
    """Compare names and shapes of floating-point tensors.

    Integer tensors, such as index tables and counters of batches, are not learned: checkpoints
    hold them or not, as the version of a library had it.

    Args:
        expected: The model's ``state_dict()``.
        given: The weights to load into it.
    """
    expected_shapes = _float_shapes(expected)
    given_shapes = _float_shapes(given)
    common = expected_shapes.keys() & given_shapes.keys()
    parts = {_part(name) for name in expected_shapes}
    mismatched = tuple(
        (name, given_shapes[name], shape)
        for name, shape in expected_shapes.items()
        if name in common and given_shapes[name] != shape
    )
    return StateDictFit(
        num_fitting=len(common) - len(mismatched),
        mismatched=mismatched,
        missing=tuple(name for name in expected_shapes if name not in common),
        unexpected=tuple(
            name for name in given_shapes if name not in common and _part(name) in parts
        ),
    )


def check_state_dict_fits(
    model: nn.Module, state_dict: Mapping[str, Tensor], source: str, minimum: float = 1.0
) -> None:
    """Refuse weights of another architecture.

    Args:
        model: The model to load the weights into.
        state_dict: The weights.
        source: Where they come from, for the message.
        minimum: Share of the tensors that must fit, from 0 to 1. Default: 1, all of them.

    Raises:
        CheckpointMismatchError: If fewer fit; the message counts them and names the first that
            doesn't, with both shapes.
    """
    fit = compare_state_dicts(model.state_dict(), state_dict)
    if fit.fraction >= minimum and fit.num_fitting:
        return
    needed = "all must" if minimum == 1 else f"at least {minimum:.0%} must"
    raise CheckpointMismatchError(
        f"{source} does not fit {type(model).__name__}: {fit.num_fitting} of {fit.num_tensors} "
        f"tensors fit ({int(100 * fit.fraction)}%, {needed}); first misfit: "
        f"{fit.first_problem()}; give the checkpoint of this architecture, "
        "or the config of this checkpoint"
    )


def _float_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()
    }


def _part(name: str) -> str:
    return name.partition(".")[0]
