"""The built-in model and the captioned scenes that it is trained on; import the module that you need."""
