"""Runs a training script that nobody wants to edit: `python -m emo_torch.launch script.py ...`."""
