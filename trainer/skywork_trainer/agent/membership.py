"""The membership as the kubelet writes it: a file of a downward-API volume, swapped as a whole."""

import logging
from pathlib import Path

from pydantic import ValidationError

from skywork_trainer.config import Membership, Role

_log = logging.getLogger(__name__)


class MembershipFile:
    """Reads the file when it changes; keeps the newest generation ever read, so that nothing ever goes back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._newest: Membership | None = None

    def read(self) -> Membership | None:
        """The newest membership; None before the operator has spoken."""
        try:
            # The kubelet swaps a symbolic link, so the file behind the path is a new one after each change.
            stat = self._path.stat()
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen == self._seen:
                return self._newest
            text = self._path.read_bytes()
        except OSError:
            return self._newest
        self._seen = seen
        if text.strip():
            self._accept(text)
        return self._newest

    def _accept(self, text: bytes) -> None:
        try:
            word = Membership.model_validate_json(text)
        except ValidationError as error:
            _log.error("unreadable membership, keeping the one before: %s", error)
            return
        if word.role is Role.TRAIN and not _names_a_place(word):
            _log.error("membership names no place in a world, keeping the one before: %s", word)
            return
        if self._newest is None or word.generation >= self._newest.generation:
            self._newest = word


def _names_a_place(word: Membership) -> bool:
    address, _, port = word.master.rpartition(":")
    return bool(address) and port.isdecimal() and word.rank < word.nodes
