"""Whether weights fit a model."""

from collections.abc import Mapping

from torch import Tensor, nn

from slide_mm.checkpoints.errors import CheckpointError


class CheckpointMismatchError(CheckpointError):
    """Weights of another architecture."""


def check_state_dict_fits(
    model: nn.Module, state_dict: Mapping[str, Tensor], source: str, minimum: float = 1.0
) -> None:
    """Refuse weights of another architecture.

    Names and shapes of floating-point tensors must be the same. Integer tensors, such as index
    tables and counters of batches, are not learned: checkpoints hold them or not, as the version of
    a library had it. So do weights of parts that the model lacks altogether, such as a classifier;
    a part is what a name begins with, such as ``backbone`` or ``stages``.

    Args:
        model: The model to load the weights into.
        state_dict: The weights.
        source: Where they come from, for the message.
        minimum: Share of the tensors that must fit, from 0 to 1. Default: 1, all of them.

    Raises:
        CheckpointMismatchError: If fewer fit; the message counts them and names the first that
            doesn't, with both shapes.
    """
    expected, given = _float_shapes(model.state_dict()), _float_shapes(state_dict)
    parts = {_part(name) for name in expected}
    names = list(expected)
    names += [name for name in given if name not in expected and _part(name) in parts]
    problems = [
        f"{name} is {given[name]} in the checkpoint and {expected[name]} in the model"
        for name in expected
        if given.get(name, expected[name]) != expected[name]
    ]
    problems += [f"{name} is not in the checkpoint" for name in expected if name not in given]
    problems += [f"{name} is not in the model" for name in names[len(expected) :]]
    num_fitting = len(names) - len(problems)
    fraction = num_fitting / max(len(names), 1)
    if fraction >= minimum and num_fitting:
        return
    first = problems[0] if problems else "it has no weights"
    needed = "all must" if minimum == 1 else f"at least {minimum:.0%} must"
    raise CheckpointMismatchError(
        f"{source} does not fit {type(model).__name__}: {num_fitting} of {len(names)} tensors fit "
        f"({int(100 * fraction)}%, {needed}); first misfit: {first}; give the checkpoint of this "
        "architecture, or the config of this checkpoint"
    )


def _float_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()
    }


def _part(name: str) -> str:
    return name.partition(".")[0]
