"""What generate.py stands on: modes, the prior over latents, evaluation and the page."""
