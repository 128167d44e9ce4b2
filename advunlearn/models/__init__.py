"""Models: the denoiser and the text encoder that the method works on, and how they are loaded and saved."""
