"""The paper's tables of a run: figures by size and method, with what they are of."""
