"""The recipes, one YAML file each, and the JSON Schema of them; installed inside the wheel as softmaxce.configs."""
