"""PID 1 of a training pod: reads the membership, runs one generation of workers at a time, and says how it goes."""
