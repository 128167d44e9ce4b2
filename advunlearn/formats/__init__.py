"""Files of weights: read, write, recognise and convert them. Works on tensors and bytes; imports no model.

Keys and shapes are checked before a weight is used. docs/guide/formats.md lists what is read, written and refused.

weights: open a file. text_encoders: find text encoders in files and write them. openclip: OpenCLIP's layout.
sdxl_encoders: the two of an SDXL checkpoint. ldm_keys, single_file: Stable Diffusion 1.x checkpoints.
detect, inspect: describe a file. lora, convert: other formats.
released: download the encoders that the method's authors released.
"""
