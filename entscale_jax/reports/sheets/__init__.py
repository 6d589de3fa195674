"""Contact sheets of a run, and the paper's figures among them."""
