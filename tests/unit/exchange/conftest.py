import pytest
from skywork_trainer.tokenizer import LoadedTokenizer, train_tokenizer

from tests.unit.exchange.building import VOCABULARY

TEXTS = [f"文档{n}。document {n}: " + "abc " * (n % 9) for n in range(90)]


@pytest.fixture(scope="session")
def tokenizer() -> LoadedTokenizer:
    return train_tokenizer(iter(TEXTS), VOCABULARY)
