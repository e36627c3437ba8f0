"""One module a policy, each a set of pure functions over plain data; `skywork_operator.decide` assembles them."""
