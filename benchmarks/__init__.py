"""What the optimizers cost, measured."""
