"""Everything that crosses a process boundary, as msgspec Structs: each message is described once, with its bounds."""
