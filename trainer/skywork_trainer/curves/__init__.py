"""Reading a run's curves: what lies beside its checkpoints (`skywork_trainer.curve`) as one run, as it counts."""
