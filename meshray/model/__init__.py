"""Pure values that every part of meshray shares. Imports nothing else of meshray but the errors."""
