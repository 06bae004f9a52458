"""What is wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do."""
