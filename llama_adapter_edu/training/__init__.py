"""Fine-tuning: the loop, what a step does, and what a stopped run goes on from."""
