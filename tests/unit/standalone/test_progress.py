"""The lines that `skywork-pretrain` prints."""

from typing import Any

from skywork_operator.standalone.progress import line, verdict

from tests.unit.operator.build import NOW, ago, plan, pod, progress, run, status_after, world


def trained(**said: Any) -> Any:
    begun = status_after(world(pod(0), pod(1), pod(2))).model_copy(update={"start_time": ago(100)})
    agent = progress(41, restored_time=NOW, **said)
    return plan(
        world(pod(0, generation=1, agent=agent), pod(1, generation=1), pod(2, generation=1), status=begun)
    ).status


def test_a_line_of_progress_has_the_losses_of_every_domain_and_how_much_of_the_time_was_training() -> None:
    losses = (
        {"domain": "zh", "loss": 2.0, "tokens": 9, "step": 4},
        {"domain": "en", "loss": 3.0, "tokens": 9, "step": 4},
    )
    status = trained(validation=losses, spent={"train": 80.0, "initialize": 15.0}, first_step_time=NOW - 82)
    assert line(run(status)) == (
        "stage general: step 41, 27% of the run, 3m left, loss 5.0000, 1,000 tokens/s, "
        "validation zh 2.0000 en 3.0000 (mean 2.5000), goodput 80%"
    )
    assert verdict(run(status), 0) == (
        "all stages are trained: 41 steps, 41,984 tokens; time: train 80%, initialize 15%, idle 5% of 100 s"
    )


def test_a_run_whose_workers_say_nothing_of_their_time_has_no_goodput() -> None:
    assert "goodput" not in line(run(trained()))
