"""The exceptions layercache raises for the user's mistakes.

The command line turns any of them into one line on stderr and exit code 2. A message names what was
wrong and what to do about it, without a trailing full stop being required.
"""


class LayercacheError(Exception):
    """Base of every error that is the user's to mend."""


class RecipeError(LayercacheError):
    """A recipe or a command-line setting is wrong."""


class DataError(LayercacheError):
    """The user's data cannot be read or does not fit the template or the labels."""


class ModelError(LayercacheError):
    """A model cannot be loaded, or its self-check failed."""


class StoreError(LayercacheError):
    """A store cannot be opened, read or written."""


class QueryError(LayercacheError):
    """An SQL statement is refused or fails."""


class AnalysisError(LayercacheError):
    """An analysis cannot be computed from what the store holds."""
