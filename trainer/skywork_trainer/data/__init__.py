"""Training data: the order of the whole run as a pure function, and the token shards it points into."""
