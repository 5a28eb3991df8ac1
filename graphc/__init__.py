"""graphc: make a neural network small and fast from one spec file, and run it anywhere."""
