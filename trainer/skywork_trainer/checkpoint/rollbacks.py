"""Rollbacks beside the checkpoints: every generation reads them, and goes by them.

rollbacks/000001.json    the first of the run, and so on; never changed or removed
"""

import logging

from pydantic import ValidationError

from skywork_trainer.guards import Rollback
from skywork_trainer.storage import Store

_MOST_BYTES = 1 << 16
_MOST_ROLLBACKS = 10_000
_log = logging.getLogger(__name__)


def rollback_key(number: int) -> str:
    """Return the key of the run's rollback `number`, counted from 1."""
    return f"rollbacks/{number:06d}.json"


def read_rollbacks(store: Store) -> tuple[Rollback, ...]:
    """Return the run's rollbacks, oldest first; one that cannot be read is passed over and said so."""
    found = []
    for key in store.list("rollbacks/")[:_MOST_ROLLBACKS]:
        try:
            found.append(Rollback.model_validate_json(store.get_range(key, 0, _MOST_BYTES)))
        except ValidationError as error:
            _log.error("%s/%s cannot be read and is passed over: %s", store.uri, key, error)
    return tuple(found)
