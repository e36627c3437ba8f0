"""The tokenizer of a run as the files that `transformers.AutoTokenizer` reads."""

import json

from skywork_trainer.tokenizer import TOKENIZER_FILE, LoadedTokenizer


def tokenizer_files(tokenizer: LoadedTokenizer, *, sequence_length: int) -> dict[str, bytes]:
    """Return the files by name; tokenizer.json is the run's own, byte for byte."""
    end_of_text = tokenizer.tokenizer.id_to_token(tokenizer.end_of_text)
    special = {"bos_token": end_of_text, "eos_token": end_of_text}
    config = special | {
        # The class that takes everything from tokenizer.json: one named after a model would add rules of its own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": sequence_length,
        "clean_up_tokenization_spaces": False,
    }
    files = {"tokenizer_config.json": config, "special_tokens_map.json": special}
    return {TOKENIZER_FILE: tokenizer.content} | {
        name: (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
        for name, content in files.items()
    }
