"""Pure values that all parts of meshray share. They import nothing else of meshray but the errors."""
