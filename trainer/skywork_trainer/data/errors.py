"""The one error of the data path."""


class DataError(Exception):
    """Data cannot be used as configured: `reason` is CamelCase for machines, the message tells a person what to do.

    Reasons: SourceMissing, SourceInvalid, TokenizerInvalid, TokenizerMismatch, VocabularyTooLarge, MixtureInvalid,
    ShardCorrupt, OutputOccupied, InputMissing, InputInvalid.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable
