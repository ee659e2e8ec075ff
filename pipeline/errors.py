"""Errors caused by the input.

Each message names the thing, its value, the allowed values and the next step.
"""


class StvgError(Exception):
    """Base of every error that the input causes; commands print its message without a traceback.

    Attributes:
        exit_code: Exit code of a command that ends with the error.
    """

    exit_code = 2


class InputError(StvgError):
    """Wrong usage, an invalid configuration, or a file with invalid content."""


class StoreError(StvgError):
    """A store that is missing, damaged, locked, or made with other settings than requested."""


class VideoError(StvgError):
    """A video that cannot be used. The failure ledger records the error and the run continues.

    Args:
        stage: The failing step: `open`, `decode` or `encode`.
        reason: A short fixed word that programs can count: `missing`, `empty`, `unreadable`,
            `truncated`, …
        detail: A sentence for people.

    Attributes:
        stage: As given.
        reason: As given.
        detail: As given.
    """

    def __init__(self, stage: str, reason: str, detail: str) -> None:
        super().__init__(f"{reason} ({stage}): {detail}")
        self.stage = stage
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str, str]]:
        # Exception pickles the message alone; workers send errors with all three arguments.
        return VideoError, (self.stage, self.reason, self.detail)
