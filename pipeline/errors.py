"""Errors a user can meet. Each message names the thing, its value, what is allowed and what to do next."""


class StvgError(Exception):
    """Base of every error that is the input's fault, not the program's; commands print it without a traceback."""

    exit_code = 2


class InputError(StvgError):
    """Wrong usage, a bad configuration, or a file that is not what it should be."""


class StoreError(StvgError):
    """A store that is missing, damaged, locked, or made by other settings than the ones asked for."""


class VideoError(StvgError):
    """One video that cannot be used. It is written to the failure ledger and the run goes on.

    `stage` is where it failed (`open`, `decode`, `encode`), `reason` a short fixed word a program can count
    (`missing`, `empty`, `unreadable`, `truncated`, …), `detail` the sentence for people.
    """

    def __init__(self, stage: str, reason: str, detail: str) -> None:
        super().__init__(f"{reason} ({stage}): {detail}")
        self.stage = stage
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str, str]]:
        return VideoError, (self.stage, self.reason, self.detail)
