"""`make demo`: the product does its whole job on a real Kubernetes, with real text and real faults."""
