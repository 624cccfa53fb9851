"""What generate.py stands on: new latents, long sound, a judge and the page."""
