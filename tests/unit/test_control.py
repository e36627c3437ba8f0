"""What operator, agent and workers say to each other survives the way, whatever is in it."""

import json
import math

import pytest
from skywork_operator.parsing import parse_words
from skywork_trainer.checkpoint.manifest import Counters
from skywork_trainer.config import AgentPhase, AgentStatus, CurvePoint, DomainLoss, Progress


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e300])
def test_a_loss_that_is_no_number_reaches_the_operator_with_all_else(loss: float) -> None:
    domain = DomainLoss(domain="web", loss=loss, tokens=3, step=7, bytes=9)
    point = CurvePoint(step=7, stage="s", losses={"web": loss}, train_loss=loss)
    progress = Progress(time=1.0, step=7, train_loss=loss, validation=(domain,), validation_curve=(point,))
    said = AgentStatus(phase=AgentPhase.TRAINING, generation=2, rank=0, progress=progress)
    # As the operator reads it: from the agent's page, and from the pod's termination message.
    for text in (said.model_dump_json(), json.dumps(json.loads(said.model_dump_json()))):
        heard = parse_words(AgentStatus, text)
        assert heard is not None and heard.progress is not None
        (found,) = heard.progress.validation
        assert found.loss == loss or (math.isnan(loss) and math.isnan(found.loss))
        assert heard.progress.step == 7


def test_a_checkpoint_whose_last_validation_was_no_number_can_be_read_again() -> None:
    domain = DomainLoss(domain="web", loss=math.nan, tokens=3, step=7)
    counters = Counters(train_loss=math.nan, validation=(domain,), totals={"a/b": 1.5})
    found = Counters.model_validate(json.loads(counters.model_dump_json()))
    assert math.isnan(found.validation[0].loss) and found.totals == counters.totals
