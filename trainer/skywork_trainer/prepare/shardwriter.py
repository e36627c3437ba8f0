"""Documents of one chunk, tokenized, into shards: their tokens, offsets, part digests and document hashes."""

import hashlib
from array import array
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from skywork_trainer.data.shards import PART_BYTES, Shard, part_digests, token_dtype
from skywork_trainer.prepare.examination import Kept
from skywork_trainer.storage import Store
from skywork_trainer.tokenizer import LoadedTokenizer


def hashes_key(shard: Shard) -> str:
    """Return where a shard's document hashes wait until the source is finished."""
    return f"work/{shard.stem}.u64"


@dataclass
class ShardWriter:
    """One shard that is being filled."""

    name: str
    tokenizer: LoadedTokenizer
    tokens: int = 0
    text_bytes: int = 0
    text_characters: int = 0
    documents: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)

    def add(self, kept: list[Kept], most_tokens: int) -> int:
        """Take documents in until the shard is full; return how many were taken."""
        texts = [document.text for document in kept]
        encodings = self.tokenizer.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        end = self.tokenizer.end_of_text
        for taken, (document, encoding) in enumerate(zip(kept, encodings, strict=True), 1):
            # An array of the standard library takes a list in at a third of numpy's time.
            tokens = np.frombuffer(array("I", [*encoding.ids, end]), dtype=np.uint32)
            self.documents.append(tokens)
            self.hashes.append(document.hash)
            self.tokens += len(tokens)
            self.text_bytes += len(document.text.encode())
            self.text_characters += len(document.text)
            if self.tokens >= most_tokens:
                return taken
        return len(kept)

    def publish(self, store: Store) -> Shard:
        """Write the shard's files and return its entry of the index."""
        dtype = np.dtype("<u2" if token_dtype(self.tokenizer.vocab_size) == "uint16" else "<u4")
        content = np.concatenate(self.documents).astype(dtype).tobytes()
        offsets = np.cumsum([0, *(len(document) for document in self.documents)]).astype("<u8").tobytes()
        digests = part_digests(content, PART_BYTES)
        shard = Shard(
            file=f"{self.name}.bin",
            tokens=self.tokens,
            documents=len(self.documents),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            offsets_sha256=hashlib.sha256(offsets).hexdigest(),
            parts_sha256=hashlib.sha256(digests).hexdigest(),
            text_bytes=self.text_bytes,
            text_characters=self.text_characters,
        )
        store.put(shard.file, content)
        store.put(f"{self.name}.idx", offsets)
        store.put(f"{self.name}.sum", digests)
        store.put(hashes_key(shard), np.array(self.hashes, dtype="<u8").tobytes())
        return shard
