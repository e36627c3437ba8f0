"""The parts of one pass, each over one Draft: what a run does next in the state of life it is in."""
