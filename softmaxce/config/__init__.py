"""Reading a config: its keys, the registry of components, YAML with locations, and the message for every mistake."""
