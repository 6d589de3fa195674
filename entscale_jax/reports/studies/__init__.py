"""The sections of docs/scenes.md that tell a study's runs."""
