"""ComfyUI nodes over the library; the only folder that imports ComfyUI."""
