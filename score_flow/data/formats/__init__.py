"""Containers of images as people have them: what lies where in a file. Their sources stand in the room above."""
