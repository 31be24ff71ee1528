"""All messages that cross a process boundary, as msgspec Structs: each is described once, with its limits."""
