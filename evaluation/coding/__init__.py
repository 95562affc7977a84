"""Images as bytes, and back: a stack of bits, and the chain of latents by which a model codes onto it."""
